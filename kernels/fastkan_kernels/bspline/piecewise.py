"""Splines as polynomials of their cells: tables that depend on the knots alone."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..basis import Basis

MAX_KEPT_BYTES = 1 << 24
MAX_DENSE_CELLS = 48  # of which a dense table is the quicker one; above it grows with their square
SPARE = 10.0  # of the logarithm of a number, before a range ends
Array = Any  # numpy.ndarray


@dataclass(frozen=True, eq=False)
class Pieces:
    """On cell c, [t_c, t_{c+1}), spline c - k + r is ``sum_m local[r, m, c] u^m`` with u = (x - middle_c) rate_c.

    Counted from the middle, u is at most 1/2, and the terms are about as large as their sum: from the cell's beginning
    they would cancel, and cost float32 three bits.

    M knots, C = M - 1 cells, K = C - k splines; I is 1 where all inputs share their knots.

    Args:
        knots: ``[I, M, 1]``.
        cells: ``[I, 2, C]``, each one's middle, and 1 over its width (0 for a cell of no width), both rounded; the
            polynomials are for these.
        local: ``[I, k + 1, k + 1, C]``; 0 where the number names no spline.
        highest: the derivative up to which neither powers of the rates nor what they multiply leaves the dtype's range.
    """

    knots: Array
    cells: Array
    local: Array
    highest: int

    @property
    def order(self) -> int:
        """k."""
        return self.local.shape[1] - 1

    @property
    def count(self) -> int:
        """K, the number of splines."""
        return self.local.shape[3] - self.order

    @cached_property
    def table(self) -> Array:
        """All splines' coefficients on all cells, ``[I, K, (k + 1) C]``."""
        import numpy as np

        inputs, active, terms, cells = self.local.shape
        table = np.zeros((inputs, self.count + 2 * self.order, terms, cells), self.local.dtype)
        each = np.arange(cells)
        for r in range(active):
            table[:, each + r, :, each] = self.local[:, r].transpose(2, 0, 1)
        return np.ascontiguousarray(table[:, self.order : self.order + self.count]).reshape(inputs, self.count, -1)

    def polynomials(self, weight: Array) -> Array:
        """Coefficients of the edge functions on each cell, ``[K, I, O]`` to ``[I, O (k + 1), C]``."""
        import numpy as np

        (_, inputs, outputs), (_, active, terms, cells) = weight.shape, self.local.shape
        if cells <= MAX_DENSE_CELLS:
            return (weight.transpose(1, 2, 0) @ self.table).reshape(inputs, outputs * terms, cells)
        padded = np.zeros((inputs, outputs, 1, cells + self.order), weight.dtype)
        padded[..., 0, self.order : cells] = weight.transpose(1, 2, 0)
        total = padded[..., :cells] * self.local[:, None, 0]
        for r in range(1, active):
            total += padded[..., r : r + cells] * self.local[:, None, r]
        return total.reshape(inputs, outputs * terms, cells)

    def splines(self, polynomials: Array) -> Array:
        """Gradient with respect to the weights, from that with respect to :meth:`polynomials`, ``[K, I, O]``.

        Args:
            polynomials: ``[I, O, (k + 1) C]``, or of the last powers alone.
        """
        import numpy as np

        (inputs, outputs, width), (_, active, terms, cells) = polynomials.shape, self.local.shape
        powers = width // cells
        if cells <= MAX_DENSE_CELLS:
            table = self.table[:, :, (terms - powers) * cells :]
            return np.ascontiguousarray((polynomials @ table.transpose(0, 2, 1)).transpose(2, 0, 1))
        each = polynomials.reshape(inputs, outputs, powers, cells)
        found = np.zeros((inputs, outputs, cells + self.order), polynomials.dtype)
        for r in range(active):
            found[..., r : r + cells] += np.einsum(
                "iomc,imc->ioc", each, self._local_of(inputs)[:, r, terms - powers :]
            )
        return np.ascontiguousarray(found[..., self.order : cells].transpose(2, 0, 1))

    def _local_of(self, inputs: int) -> Array:
        import numpy as np

        return np.broadcast_to(self.local, (inputs, *self.local.shape[1:]))


def pieces(knots: Tensor, order: int) -> Pieces:
    """By Cox-de Boor's recursion on the k + 1 splines that each cell meets, in float64 and then rounded once.

    Example:
        >>> pieces(torch.tensor([[0.0, 1.0, 2.0]]), 1).local
        array([[[[ 0. ,  0.5],
                 [ 0. , -1. ]],
        <BLANKLINE>
                [[ 0.5,  0. ],
                 [ 1. ,  0. ]]]], dtype=float32)
    """
    t = knots.detach().to(torch.float64, copy=True)  # which others may write into
    width = t.diff(dim=1)
    inputs, cells = width.shape
    middle = torch.lerp(t[:, :-1], t[:, 1:], 0.5).to(knots.dtype).double()
    rate = torch.where(width > 0, 1 / width, 0.0).clamp(max=torch.finfo(knots.dtype).max).to(knots.dtype).double()
    per_u = torch.where(rate > 0, 1 / rate, 0.0)  # x = middle + per_u * u
    near = pad(t, (order, order), mode="replicate")
    values = [torch.zeros(inputs, order + 1, cells, dtype=t.dtype)]
    values[0][:, 0] = 1.0
    for degree in range(1, order + 1):
        raised = [torch.zeros_like(values[0]) for _ in range(degree + 1)]
        for r, value in enumerate(values):
            first = order + r + 1 - degree
            left, right = near[:, first : first + cells], near[:, first + degree : first + degree + cells]
            span = right - left
            share = value * torch.where(span > 0, 1 / span, 0.0).unsqueeze(1)
            raised[r] += _times_linear(share, right - middle, -per_u)
            raised[r + 1] += _times_linear(share, middle - left, per_u)
        values = raised
    local = torch.stack(values, 1)
    spline = torch.arange(cells) - order + torch.arange(order + 1).unsqueeze(1)
    local = torch.where(((spline >= 0) & (spline < cells - order)).unsqueeze(1), local, 0.0)
    made = t.unsqueeze(2), torch.stack([middle, rate], 1), local
    starts, places, rounded = (part.to(knots.dtype).contiguous().numpy() for part in made)
    return Pieces(starts, places, rounded, _highest(rate, order, knots.dtype))


def _highest(rate: Tensor, order: int, dtype: torch.dtype) -> int:
    """Coefficients that the narrowest cell's rate multiplies must not have been lost below the normal numbers."""
    limits = torch.finfo(dtype)
    wide = rate[rate > 0].log()
    low, high = (wide.min().item(), wide.max().item()) if wide.numel() else (0.0, 0.0)
    most, least = math.log(limits.max) - SPARE, math.log(limits.tiny) + SPARE
    lost = math.log(limits.eps) - least
    return sum(d * high < most and d * low > least and d * (high - low) < lost for d in range(1, order + 1))


def _times_linear(polynomial: Tensor, constant: Tensor, linear: Tensor) -> Tensor:
    """Polynomials ``[I, terms, C]`` times ``constant + linear u``; their last coefficient is known to be 0."""
    raised = pad(polynomial[:, :-1], (0, 0, 1, 0))
    return constant.unsqueeze(1) * polynomial + linear.unsqueeze(1) * raised


class _Kept:
    """The tables used last, up to :data:`MAX_KEPT_BYTES` of them."""

    def __init__(self) -> None:
        self.made: dict[tuple, Pieces] = {}  # the last used last
        self.bytes = 0
        self.lock = threading.Lock()

    def find(self, key: tuple) -> Pieces | None:
        with self.lock:
            found = self.made.pop(key, None)
            if found is not None:
                self.made[key] = found
            return found

    def add(self, key: tuple, made: Pieces) -> None:
        with self.lock:
            if key not in self.made:
                self.made[key] = made
                self.bytes += _bytes(made)
            while self.bytes > MAX_KEPT_BYTES:
                self.bytes -= _bytes(self.made.pop(next(iter(self.made))))


_kept = _Kept()


def pieces_of(knots: Tensor, basis: Basis) -> Pieces:
    """The same, made once for the same values: nobody is asked who may have written into the knots."""
    own = (knots if basis.uniform_grid is None else knots[:1]).detach()  # which all inputs share
    key = basis.order, own.dtype, own.shape, own.numpy().tobytes()
    found = _kept.find(key)
    if found is None:
        found = pieces(own, basis.order)
        _kept.add(key, found)
    return found


def _bytes(made: Pieces) -> int:
    """Memory of a table with its key, and of the dense one that may be made of it."""
    inputs, active, _, cells = made.local.shape
    dense = inputs * made.count * active * cells if cells <= MAX_DENSE_CELLS else 0
    return (made.local.size + 2 * made.knots.size + dense) * made.local.itemsize
