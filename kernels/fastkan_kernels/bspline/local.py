"""Evaluation of only the active splines of each input value, the k + 1 splines that can be non-zero in its cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..basis import Basis
from ..knots import uniform_grid
from . import cardinal


def local_features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> tuple[Tensor, Tensor]:
    """Evaluate the active splines of each input value, or the d-th derivative of the active splines.

    Args:
        x: the inputs ``[N, I]`` in the working dtype.
        knots: the knots ``[I, G + 2k + 1]`` in the working dtype.
        derivative: the order d <= k of the derivative.

    Returns:
        A tuple of ``first [N, I]`` and ``values [N, k + 1, I]``. The spline with the index ``first + r`` has the value
        ``values[:, r]``. ``first`` is an int64 tensor with entries from -k-1 to G+2k. Near the ends of the knots, and
        outside the knots, some or all of the k + 1 indices belong to no spline, and the values at these indices are
        arbitrary. If x is NaN, ``first`` is 0 and the values are NaN.
    """
    if basis.uniform and derivative < basis.order:
        return _uniform(x, knots, basis, derivative)
    return _de_boor(x, knots, basis.order, derivative)


def _uniform(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> tuple[Tensor, Tensor]:
    order = basis.order
    first, inv_spacing = uniform_grid(knots, basis)
    t = torch.sub(x, first).mul_(inv_spacing).clamp_(-1.0, knots.shape[1] - 1.0)
    cell = t.floor()
    memory = x.new_empty((order + 1) * x.numel() * (1 + cardinal.scratch_needed(order, derivative)))
    # Evaluate the splines with the indices cell - k to cell, in coordinates in which every cell has width 1.
    values = cardinal.splines_at(cell, 1.0, order, derivative, memory, t, slice(-order, 1))
    values.mul_(cardinal.scale(order, derivative) * inv_spacing**derivative)
    return cell.nan_to_num_(nan=order).to(torch.int64).sub_(order), values


def _de_boor(x: Tensor, knots: Tensor, order: int, derivative: int) -> tuple[Tensor, Tensor]:
    """Evaluate the active splines by the Cox-de Boor recursion on the 2k knots around the cell of each x.

    The cell is found by a search, so an x on a knot always belongs to the cell to the right of the knot.
    """
    inputs, count = knots.shape
    cell = torch.searchsorted(knots.contiguous(), x.t().contiguous(), right=True).t().sub_(1)
    inside = (cell >= 0) & (cell < count - 1)
    nan = x.isnan()
    at = cell.clamp(0, count - 2)
    padded = functional.pad(knots, (order, order), mode="replicate").reshape(-1)
    at = at + (torch.arange(inputs, device=x.device) * (count + 2 * order) + order)
    near = {j: padded[at + j] for j in range(1 - order, order + 1)}

    values = [torch.ones_like(x)]
    for degree in range(1, order + 1):
        raised = [torch.zeros_like(x) for _ in range(degree + 1)]
        for r, value in enumerate(values):
            left, right = near[r + 1 - degree], near[r + 1]
            width = right - left
            share = torch.where(width == 0, 0.0, value / width)
            if degree > order - derivative:
                raised[r] -= degree * share
                raised[r + 1] += degree * share
            else:
                raised[r] += (right - x) * share
                raised[r + 1] += (x - left) * share
        values = raised
    stacked = torch.stack(values, 1)
    stacked = torch.where(inside.unsqueeze(1), stacked, 0.0)
    stacked = torch.where(nan.unsqueeze(1), x.unsqueeze(1), stacked)
    return torch.where(nan, 0, cell - order), stacked
