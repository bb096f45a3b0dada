"""The k + 1 active coefficients of each input, gathered."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ...basis import Basis
from ...bspline.cox_de_boor import round_features
from ...bspline.local import local_features
from ..modes import has_values

BLOCK_LOOKUPS = 1 << 19  # coefficients looked up in one block


def splines_out(x: Tensor, knots: Tensor, v: Tensor | None, weight: Tensor, basis: Basis, derivative: int) -> Tensor:
    """The splines' part of F: the sum of the active rows of W, each times its spline's value."""
    table = weight.reshape(-1, weight.shape[2])
    y = x.new_empty(x.shape[0], weight.shape[2])
    for rows, index, values in _lookups(x, knots, basis, derivative):
        if v is not None:
            values = values * v[rows].unsqueeze(1)
        y[rows] = functional.embedding_bag(index.flatten(1), table, per_sample_weights=values.flatten(1), mode="sum")
    return y


def splines_in(x: Tensor, knots: Tensor, weight: Tensor, g: Tensor, basis: Basis, derivative: int) -> Tensor:
    """The splines' part of H: products of g with the active rows of W, each times its spline's value."""
    table = weight.reshape(-1, weight.shape[2])
    h = x.new_empty(x.shape)
    for rows, index, values in _lookups(x, knots, basis, derivative):
        dots = _gathered_dots(g[rows], table, index.flatten(1)).view(values.shape)
        torch.sum(dots.mul_(values), 1, out=h[rows])
    return h


def _lookups(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows, with the rows of the table that they look up and the splines' values, ``[rows, k+1, I]``."""
    inputs, count, active = x.shape[1], basis.splines_of(knots), basis.order + 1
    numbers = torch.arange(active, device=x.device).unsqueeze(1)
    column = torch.arange(inputs, device=x.device)
    step = max(1, BLOCK_LOOKUPS // (inputs * active))
    for n in range(0, x.shape[0], step):
        rows = slice(n, min(n + step, x.shape[0]))
        first, values = local_features(x[rows], knots, basis, derivative)
        values = round_features(values, knots, basis, derivative)
        number = first.unsqueeze(1) + numbers
        if not has_values(first) or first.min() < 0 or first.max() > count - active:  # some may name no spline
            known = number.clamp(0, count - 1)
            values = torch.where(number == known, values, 0.0)
            number = known
        yield rows, number.mul_(inputs).add_(column), values


def _gathered_dots(g: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Products ``dots[n, j] = g[n] . table[index[n, j]]``: the gradient of a bag with respect to its sample weights.

    The operator is the one that autograd calls for ``embedding_bag``; autograd itself would first compute the bags,
    which are not needed here.
    """
    rows, each = index.shape
    offsets = torch.arange(0, rows * each, each, device=index.device)
    bag = torch.arange(rows, device=index.device).repeat_interleave(each)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        g.contiguous(), table, index.reshape(-1), offsets, bag, 0
    )
