"""F, G and H from blocks of the dense features, each met by one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...basis import Basis
from .blocks import DenseFeatures
from .workspace import scratch


def splines_out(
    x: Tensor, knots: Tensor, v: Tensor | None, weight: Tensor, basis: Basis, derivative: int, compiling: bool
) -> Tensor:
    """The splines' part of F, ``[N, O]``."""
    outputs = weight.shape[2]
    psi = DenseFeatures(x, knots, basis, derivative, v, compiling)
    y = x.new_empty(x.shape[0], outputs)
    for block in psi.blocks():
        part = weight[block.splines].reshape(-1, outputs)
        kept = int(block.splines.start > 0)
        y[block.rows].addmm_(block.psi.flatten(1), part, beta=kept, alpha=psi.scale)
    return y


def splines_weight(
    x: Tensor, knots: Tensor, v: Tensor | None, g: Tensor, basis: Basis, derivative: int, compiling: bool
) -> Tensor:
    """The splines' part of G, ``[K, I, O]``."""
    psi = DenseFeatures(x, knots, basis, derivative, v, compiling)
    dw = x.new_empty(psi.count, x.shape[1], g.shape[1])
    for block in psi.blocks():
        part = dw[block.splines].view(-1, g.shape[1])
        kept = int(block.rows.start > 0)
        part.addmm_(block.psi.flatten(1).t(), g[block.rows], beta=kept, alpha=psi.scale)
    if psi.filling == "scattered":  # it puts a NaN into k + 1 splines; by definition all are NaN
        lost = x.isnan().any(0)
        if lost.any():
            dw.masked_fill_(lost.unsqueeze(1), torch.nan)
    return dw


def splines_in(
    x: Tensor, knots: Tensor, weight: Tensor, g: Tensor, basis: Basis, derivative: int, compiling: bool
) -> Tensor:
    """The splines' part of H, ``[N, I]``."""
    psi = DenseFeatures(x, knots, basis, derivative, None, compiling)
    cells = basis.uniform_grid if psi.filling != "recursive" and basis.matmul_dtype is None else None
    if cells is not None and derivative > 0 and len(x) > weight.shape[2]:
        # a spline's derivative is the spline of one order less on the differences of its coefficients
        steps = functional.pad(weight, (0, 0, 0, 0, 1, 1)).diff(dim=0).mul_(cells[1])
        return splines_in(x, knots, steps, g, basis._replace(order=basis.order - 1), derivative - 1, compiling)
    memory = scratch(x, psi.shape[0] * psi.shape[1] * x.shape[1], "products")

    def products(rows: slice, numbers: slice) -> Tensor:
        part = weight[numbers].reshape(-1, weight.shape[2])
        if psi.filling == "recursive":  # its features lie along the rows
            along = torch.mm(part, g[rows].t(), out=_matrix(memory, len(part), rows.stop - rows.start))
            return along.view(-1, x.shape[1], along.shape[1]).permute(2, 0, 1)
        made = torch.mm(g[rows], part.t(), out=_matrix(memory, rows.stop - rows.start, len(part)))
        return made.view(len(made), -1, x.shape[1])

    h = x.new_zeros(x.shape)
    for rows, part in psi.dots(products):
        h[rows].add_(part, alpha=psi.scale)
    return h


def _matrix(memory: Tensor, rows: int, columns: int) -> Tensor:
    return memory[: rows * columns].view(rows, columns)
