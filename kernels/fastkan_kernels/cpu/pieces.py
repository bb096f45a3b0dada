"""Splines as polynomials of their cells: tables that depend on the knots alone."""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..basis import Basis

MOST_KEPT = 1 << 10
SPARE = 10.0  # of the logarithm of a number, before a range ends
Array = Any  # numpy.ndarray


class Pieces(NamedTuple):
    """On cell c, [t_c, t_{c+1}), spline b is ``sum_m table[b, m, c] u^m`` with u = (x - middle_c) rate_c.

    Counted from the middle, u is at most 1/2, and the terms are about as large as their sum: from the cell's beginning
    they would cancel, and cost float32 three bits.

    M knots, C = M - 1 cells, K = C - k splines; I is 1 where all inputs share their knots.

    Args:
        knots: ``[I, M, 1]``.
        cells: ``[I, 2, C]``, each one's middle, and 1 over its width (0 for a cell of no width), both rounded; the
            polynomials are for these.
        table: ``[I, K, (k + 1) C]``.
        highest: the derivative up to which neither powers of the rates nor what they multiply leaves the dtype's range.
    """

    knots: Array
    cells: Array
    table: Array
    highest: int


def pieces(knots: Tensor, order: int) -> Pieces:
    """By Cox-de Boor's recursion on polynomials, in float64 and then rounded once.

    Example:
        >>> pieces(torch.tensor([[0.0, 1.0, 2.0]]), 1).table
        array([[[ 0.5,  0.5,  1. , -1. ]]], dtype=float32)
    """
    t = knots.detach().to(torch.float64, copy=True)  # which others may write into
    width = t.diff(dim=1)
    inputs, cells = width.shape
    # value[i, c, j, m]: coefficient of u^m of spline j on cell c
    value = torch.zeros(inputs, cells, cells, order + 1, dtype=t.dtype, device=t.device)
    value[:, :, :, 0] = torch.eye(cells, dtype=t.dtype, device=t.device)
    middle = torch.lerp(t[:, :-1], t[:, 1:], 0.5).to(knots.dtype).double()
    rate = torch.where(width > 0, 1 / width, 0.0).clamp(max=torch.finfo(knots.dtype).max).to(knots.dtype).double()
    start, per_u = middle.unsqueeze(2), torch.where(rate > 0, 1 / rate, 0.0).unsqueeze(2)  # x = start + per_u * u
    for degree in range(1, order + 1):
        span = t[:, degree:] - t[:, :-degree]
        steep = torch.where(span > 0, 1 / span, 0.0).unsqueeze(1)
        risen = (start - t[:, None, : span.shape[1]]) * steep  # (x - t_j) / (t_{j+d} - t_j) at u = 0
        lifted = _times_linear(value, risen, per_u * steep)
        value = lifted[:, :, :-1] + value[:, :, 1:] - lifted[:, :, 1:]
    made = t.unsqueeze(2), torch.stack([middle, rate], 1), value.permute(0, 2, 3, 1).flatten(2)
    starts, places, table = (part.to(knots.dtype).contiguous().numpy() for part in made)
    return Pieces(starts, places, table, _highest(rate, order, knots.dtype))


def _highest(rate: Tensor, order: int, dtype: torch.dtype) -> int:
    """Coefficients that the narrowest cell's rate multiplies must not have been lost below the normal numbers."""
    limits = torch.finfo(dtype)
    wide = rate[rate > 0].log()
    low, high = (wide.min().item(), wide.max().item()) if wide.numel() else (0.0, 0.0)
    most, least = math.log(limits.max) - SPARE, math.log(limits.tiny) + SPARE
    lost = math.log(limits.eps) - least
    return sum(d * high < most and d * low > least and d * (high - low) < lost for d in range(1, order + 1))


def _times_linear(polynomial: Tensor, constant: Tensor, linear: Tensor) -> Tensor:
    """Times ``constant + linear u``; the last coefficient is known to be 0."""
    raised = pad(polynomial[..., :-1], (1, 0))
    return constant.unsqueeze(3) * polynomial + linear.unsqueeze(3) * raised


_by_knots: dict[int, tuple[weakref.ref, int, int, Pieces]] = {}  # of id(knots): knots, version, order
_by_values: dict[tuple, Pieces] = {}


def pieces_of(knots: Tensor, basis: Basis) -> Pieces:
    """The same, made once: found by the tensor as it is now, or else by its values."""
    kept = _by_knots.get(id(knots))
    if kept is not None and kept[0]() is knots and kept[1:3] == (_version(knots), basis.order):
        return kept[3]
    shared = basis.cells is not None  # by all inputs
    own = (knots[:1] if shared else knots).detach()
    key = basis.order, own.dtype, own.shape, own.numpy().tobytes()
    found = _by_values.get(key)
    if found is None:
        found = pieces(own, basis.order)
        if len(_by_values) < MOST_KEPT:
            _by_values[key] = found
    if not knots.is_inference():  # of those nobody counts what is written into them
        identity = id(knots)
        reference = weakref.ref(knots, lambda _: _by_knots.pop(identity, None))
        _by_knots[identity] = reference, knots._version, basis.order, found
    return found


def _version(knots: Tensor) -> int:
    return -1 if knots.is_inference() else knots._version
