"""The base function's part of F, G and H: one more feature, as a plain product in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ...basis import Basis
from ...bspline.cox_de_boor import base_function, round_weights

BLOCK_ELEMENTS = 1 << 18


def add_out(y: Tensor, x: Tensor, v: Tensor | None, base_weight: Tensor, basis: Basis, derivative: int) -> None:
    """Add the base function's part of F to ``y [N, O]``."""
    for rows, base in _blocks(x, v, basis, derivative):
        y[rows].addmm_(base, base_weight)


def weight_part(x: Tensor, v: Tensor | None, g: Tensor, basis: Basis, derivative: int) -> Tensor:
    """The base function's part of G, ``[I, O]``."""
    part = g.new_empty(x.shape[1], g.shape[1])
    for rows, base in _blocks(x, v, basis, derivative):
        part.addmm_(base.t(), g[rows], beta=int(rows.start > 0))
    return part


def add_in(h: Tensor, x: Tensor, base_weight: Tensor, g: Tensor, basis: Basis, derivative: int) -> None:
    """Add the base function's part of H to ``h [N, I]``."""
    if basis.base == "silu" and derivative == 1 and basis.matmul_dtype is None:
        finite = torch.finfo(x.dtype)  # silu'(inf) would be NaN
        for rows in _rows(x):
            pulled = torch.mm(g[rows], base_weight.t())
            h[rows].add_(torch.ops.aten.silu_backward(pulled, x[rows].clamp(finite.min, finite.max)))
        return
    for rows, base in _blocks(x, None, basis, derivative):
        h[rows].addcmul_(base, torch.mm(g[rows], base_weight.t()))


def _rows(x: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // x.shape[1])
    for n in range(0, x.shape[0], step):
        yield slice(n, n + step)


def _blocks(x: Tensor, v: Tensor | None, basis: Basis, derivative: int) -> Iterator[tuple[slice, Tensor]]:
    for rows in _rows(x):
        base = round_weights(_base(x[rows], basis.base, derivative), basis.matmul_dtype, x.dtype)
        yield rows, base if v is None else base * v[rows]


def _base(x: Tensor, name: str, derivative: int) -> Tensor:
    if name == "silu" and derivative == 0:
        return functional.silu(x.clamp(min=torch.finfo(x.dtype).min))  # silu(-inf) would be NaN
    return base_function(x, name, derivative)
