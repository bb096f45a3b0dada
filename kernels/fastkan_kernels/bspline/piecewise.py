"""Tables of the polynomials that splines consist of. The tables depend only on the knots.

A cell is the interval between two neighbouring knots. Every spline is a polynomial on each cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..basis import Basis

# The maximum number of cells up to which a dense table is faster than the polynomials of the active splines. The size
# of a dense table is proportional to the square of the number of cells.
MAX_DENSE_CELLS = 48
# The minimum distance from the limits of the range of a dtype, as a natural logarithm.
MARGIN = 10.0
Array = Any  # The type is numpy.ndarray, but the functions import NumPy only when they run.


@dataclass(frozen=True, eq=False)
class Pieces:
    """A table of the polynomials of all splines.

    On cell c, which is the interval [t_c, t_{c+1}), the spline with index c - k + r is ``sum_m local[r, m, c] u^m``
    with u = (x - middle_c) rate_c. Since u is measured from the middle of the cell, its absolute value is at most 1/2,
    and the terms are about as large as their sum. If u were measured from the beginning of the cell, the terms would
    cancel, and float32 results would lose three bits.

    There are M knots, C = M - 1 cells and K = C - k splines for each of I inputs. I is 1 if all inputs share their
    knots.

    Args:
        knots: the knots ``[I, M, 1]``.
        cells: an array ``[I, 2, C]`` with the middle and the reciprocal of the width of each cell. The reciprocal is
            set to 0 for a cell of width 0. Middles and reciprocals are rounded to the dtype of the knots, and the
            polynomials are computed for the rounded numbers.
        local: the coefficients ``[I, k + 1, k + 1, C]``, which are 0 if there is no spline with the index c - k + r.
        highest: the highest derivative for which the powers of the reciprocal widths, and their products with the
            coefficients, stay within the range of the dtype.

    Example:
        >>> pieces(torch.tensor([[0.0, 1.0, 2.0]]), 1).cells
        array([[[0.5, 1.5],
                [1. , 1. ]]], dtype=float32)
    """

    knots: Array
    cells: Array
    local: Array
    highest: int

    @cached_property
    def order(self) -> int:
        """The order k of the splines."""
        return self.local.shape[1] - 1

    @cached_property
    def count(self) -> int:
        """The number K of splines."""
        return self.local.shape[3] - self.order

    @cached_property
    def table(self) -> Array:
        """The coefficients ``[I, K, (k + 1) C]`` of all splines on all cells."""
        import numpy as np

        inputs, active, terms, cells = self.local.shape
        table = np.zeros((inputs, self.count + 2 * self.order, terms, cells), self.local.dtype)
        each = np.arange(cells)
        for r in range(active):
            table[:, each + r, :, each] = self.local[:, r].transpose(2, 0, 1)
        return np.ascontiguousarray(table[:, self.order : self.order + self.count]).reshape(inputs, self.count, -1)

    def polynomials(self, weight: Array) -> Array:
        """Return the coefficients ``[I, O (k + 1), C]`` of the edge functions on each cell for ``weight [K, I, O]``."""
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
        """Return the gradient ``[K, I, O]`` with respect to the weights of :meth:`polynomials`.

        Args:
            polynomials: the gradient ``[I, O, (k + 1) C]`` with respect to the result of :meth:`polynomials`. If the
                last dimension has m C entries with m < k + 1, the entries belong to the m highest powers.
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
    """Return the table for ``knots [I, M]``, computed by the Cox-de Boor recursion for the k + 1 splines of each cell.

    The table is computed in float64 and rounded once, to the dtype of the knots.

    Example:
        >>> pieces(torch.tensor([[0.0, 1.0, 2.0]]), 1).local
        array([[[[ 0. ,  0.5],
                 [ 0. , -1. ]],
        <BLANKLINE>
                [[ 0.5,  0. ],
                 [ 1. ,  0. ]]]], dtype=float32)
    """
    import numpy as np

    own = knots.detach().numpy(force=True)
    limits = torch.finfo(knots.dtype)
    with np.errstate(all="ignore"):
        t = own.astype(np.float64)
        width = np.diff(t)
        inputs, cells = width.shape
        middle = (t[:, 1:] - 0.5 * width).astype(own.dtype).astype(np.float64)
        rate = np.minimum(np.where(width > 0, 1 / width, 0.0), limits.max).astype(own.dtype).astype(np.float64)
        per_u = np.where(rate > 0, 1 / rate, 0.0)  # The inverse map is x = middle + per_u * u.
        near = np.pad(t, ((0, 0), (order, order)), mode="edge")
        values = np.zeros((inputs, 1, order + 1, cells))  # The splines of one degree have the shape [I, r, power, C].
        values[:, 0, 0] = 1.0
        for degree in range(1, order + 1):
            first = np.arange(order + 1 - degree, order + 1)[:, None] + np.arange(cells)
            left, right = near[:, first], near[:, first + degree]
            span = right - left
            share = values * np.where(span > 0, 1 / span, 0.0)[:, :, None]
            raised = np.zeros((inputs, degree + 1, order + 1, cells))
            raised[:, :-1] += _times_linear(share, right - middle[:, None], -per_u[:, None])
            raised[:, 1:] += _times_linear(share, middle[:, None] - left, per_u[:, None])
            values = raised
        spline = np.arange(cells) - order + np.arange(order + 1)[:, None]
        values = np.where(((spline >= 0) & (spline < cells - order))[:, None], values, 0.0)
        highest = _highest(rate, order, limits)
    middles_and_rates = np.stack([middle, rate], 1).astype(own.dtype)
    return Pieces(own[:, :, None].copy(), middles_and_rates, values.astype(own.dtype), highest)


def pieces_of(knots: Tensor, basis: Basis) -> Pieces:
    """Return the table for ``knots [I, M]``, or for the first row of the knots if all inputs share their knots.

    Example:
        >>> from fastkan_kernels import basis_of, uniform_knots
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> pieces_of(knots, basis_of(knots, 3)).count
        8
    """
    return pieces(knots if basis.uniform_grid is None else knots[:1], basis.order)


def _highest(rate: Array, order: int, limits: torch.finfo) -> int:
    """Return the highest derivative whose factors stay within the range of the normal numbers of the dtype."""
    import numpy as np

    logs = np.log(rate[rate > 0])
    low, high = (logs.min(), logs.max()) if logs.size else (0.0, 0.0)
    most, least = math.log(limits.max) - MARGIN, math.log(limits.tiny) + MARGIN
    lost = math.log(limits.eps) - least
    return sum(d * high < most and d * low > least and d * (high - low) < lost for d in range(1, order + 1))


def _times_linear(polynomials: Array, constant: Array, linear: Array) -> Array:
    """Multiply ``polynomials [I, r, power, C]``, whose last coefficients are 0, by ``constant + linear u``."""
    product = constant[:, :, None] * polynomials
    product[:, :, 1:] += linear[:, :, None] * polynomials[:, :, :-1]
    return product
