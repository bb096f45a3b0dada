"""The banded algorithms for F and H, which gather only the k + 1 active coefficients of each input value."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ...basis import Basis
from ...bspline.cox_de_boor import round_features
from ...bspline.local import local_features
from ..modes import has_values

BLOCK_LOOKUPS = 1 << 19  # the maximum number of coefficients that are looked up in one block


def splines_out(x: Tensor, knots: Tensor, v: Tensor | None, weight: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Compute the spline part of F as a sum of the active rows of W, each multiplied by the value of its spline."""
    table = weight.reshape(-1, weight.shape[2])
    y = x.new_empty(x.shape[0], weight.shape[2])
    for rows, index, values in _lookups(x, knots, basis, derivative):
        if v is not None:
            values = values * v[rows].unsqueeze(1)
        y[rows] = functional.embedding_bag(index.flatten(1), table, per_sample_weights=values.flatten(1), mode="sum")
    return y


def splines_in(x: Tensor, knots: Tensor, weight: Tensor, g: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Compute the spline part of H from dot products of g with the active rows of W, times the splines' values."""
    table = weight.reshape(-1, weight.shape[2])
    h = x.new_empty(x.shape)
    for rows, index, values in _lookups(x, knots, basis, derivative):
        dots = _gathered_dots(g[rows], table, index.flatten(1)).view(values.shape)
        torch.sum(dots.mul_(values), 1, out=h[rows])
    return h


def _lookups(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield the slice of each block of rows, with table indices and spline values, both ``[rows, k + 1, I]``."""
    inputs, count, active = x.shape[1], basis.splines_of(knots), basis.order + 1
    numbers = torch.arange(active, device=x.device).unsqueeze(1)
    column = torch.arange(inputs, device=x.device)
    step = max(1, BLOCK_LOOKUPS // (inputs * active))
    for n in range(0, x.shape[0], step):
        rows = slice(n, min(n + step, x.shape[0]))
        first, values = local_features(x[rows], knots, basis, derivative)
        values = round_features(values, knots, basis, derivative)
        number = first.unsqueeze(1) + numbers
        # A vmap of the contraction hides the values, and some of the indices may belong to no spline.
        if not has_values(first) or first.min() < 0 or first.max() > count - active:
            known = number.clamp(0, count - 1)
            values = torch.where(number == known, values, 0.0)
            number = known
        yield rows, number.mul_(inputs).add_(column), values


def _gathered_dots(g: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Compute the dot products ``dots[n, j] = g[n] . table[index[n, j]]``.

    The dot products are the gradient of ``embedding_bag`` with respect to its per-sample weights. PyTorch's operator
    for the gradient is called directly, because autograd would first compute ``embedding_bag``, which is not needed.
    """
    rows, each = index.shape
    offsets = torch.arange(0, rows * each, each, device=index.device)
    bag = torch.arange(rows, device=index.device).repeat_interleave(each)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        g.contiguous(), table, index.reshape(-1), offsets, bag, 0
    )
