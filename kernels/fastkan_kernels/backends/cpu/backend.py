"""The contractions F, G and H by PyTorch operations. The spline part of each is computed by one of two algorithms.

- The dense algorithm (:mod:`.dense`) evaluates all features in blocks that stay in cache, and multiplies each block by
  the weights in one matrix product. The dense algorithm takes K multiplications for each row, input and output.
- The banded algorithm (:mod:`.banded`) gathers the k + 1 active coefficients of each input. The banded algorithm takes
  only k + 1 multiplications for each row, input and output, but a gather is slower than a matrix product. The banded
  algorithm is therefore faster only on large grids. There is no banded algorithm for G.

The module :mod:`.selection` chooses between the two algorithms on a CPU. The backend "dense" uses the functions of this
module with the dense algorithm alone, on any device. The base function counts as one more feature, and its matrix
product with the base weights is added in blocks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...trilinear import Operands
from . import banded, dense, selection


def contract_out(
    x: Tensor,
    knots: Tensor,
    operands: Operands,
    basis: Basis,
    derivative: int,
    *,
    compiling: bool = False,
    dense_only: bool = False,
) -> Tensor:
    """Compute F_d(x, W, v) = y[n,o], a sum over b and i.

    Args:
        compiling: whether the dense features may be computed by compiled code (:mod:`.compiled`).
        dense_only: whether the banded algorithm, which is meant for a CPU, must not be used.
    """
    wide, knots, v, _, weight, base_weight = _widened(x, knots, operands, basis)
    count, inputs, outputs = weight.shape
    if x.numel() * outputs == 0:
        return x.new_zeros(len(x), outputs)
    if not dense_only and selection.choose("F", len(x), inputs, outputs, count, basis, derivative) == "banded":
        y = banded.splines_out(wide, knots, v, weight, basis, derivative)
    else:
        y = wide.new_empty(len(x), outputs)
        features = dense.DenseFeatures(wide, knots, basis, derivative, v, compiling)
        for rows, splines, psi in features.blocks():
            part = weight[splines].reshape(-1, outputs)
            y[rows].addmm_(psi.flatten(1), part, beta=int(splines.start > 0), alpha=features.scale)
    if base_weight is not None:
        for rows, base in dense.base_blocks(wide, basis, derivative, v):
            y[rows].addmm_(base, base_weight)
    return y.to(x.dtype)


def contract_weight(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int, *, compiling: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute G_d(x, g, v) = dW[b,i,o], a sum over n, and return its parts for the splines and the base function."""
    wide, knots, v, g, _, _ = _widened(x, knots, operands, basis)
    sizes = basis.splines_of(knots), x.shape[1], g.shape[1]
    new = wide.new_empty if x.numel() * g.shape[1] > 0 else wide.new_zeros
    dw, db = new(sizes), new(sizes[1:]) if basis.base != "none" else None
    if dw.numel() * len(x) > 0:
        features = dense.DenseFeatures(wide, knots, basis, derivative, v, compiling)
        for rows, splines, psi in features.blocks():
            part = dw[splines].view(-1, g.shape[1])
            part.addmm_(psi.flatten(1).t(), g[rows], beta=int(rows.start > 0), alpha=features.scale)
        if features.filling == "scattered":  # scattering sets only k + 1 splines to NaN, but all splines must be NaN
            lost = wide.isnan().any(0)
            if not x.is_cpu or lost.any():  # reading a value of a GPU would make the program wait
                dw.masked_fill_(lost.unsqueeze(1), torch.nan)
        if db is not None:
            for rows, base in dense.base_blocks(wide, basis, derivative, v):
                db.addmm_(base.t(), g[rows], beta=int(rows.start > 0))
    return dw.to(x.dtype), None if db is None else db.to(x.dtype)


def contract_in(
    x: Tensor,
    knots: Tensor,
    operands: Operands,
    basis: Basis,
    derivative: int,
    *,
    compiling: bool = False,
    dense_only: bool = False,
) -> Tensor:
    """Compute H_d(x, W, g) = h[n,i], a sum over b and o."""
    wide, knots, _, g, weight, base_weight = _widened(x, knots, operands, basis)
    count, inputs, outputs = weight.shape
    if x.numel() * outputs == 0:
        return x.new_zeros(x.shape)
    if not dense_only and selection.choose("H", len(x), inputs, outputs, count, basis, derivative) == "banded":
        h = banded.splines_in(wide, knots, weight, g, basis, derivative)
    else:
        h = wide.new_zeros(wide.shape)
        features = dense.DenseFeatures(wide, knots, basis, derivative, None, compiling)
        for rows, splines, psi in features.blocks():
            part = weight[splines].reshape(-1, outputs)
            if features.filling == "recursive":  # the recursion stores the values of consecutive rows contiguously
                products = (part @ g[rows].t()).view(-1, inputs, len(psi)).permute(2, 0, 1)
            else:
                products = (g[rows] @ part.t()).view(psi.shape)
            h[rows].add_(products.mul_(psi).sum(1), alpha=features.scale)
    if base_weight is not None:
        for rows, base in dense.base_blocks(wide, basis, derivative):
            h[rows].addcmul_(base, g[rows] @ base_weight.t())
    return h.to(x.dtype)


def unable(device: torch.device) -> str | None:
    """Return the reason why the CPU backend does not support tensors on a device, or None if the device is a CPU."""
    return None if device.type == "cpu" else f"it is for CPU tensors, and x is on {device.type!r}"


def describe(
    name: str, x: Tensor, outputs: int, count: int, basis: Basis, derivative: int, dense_only: bool = False
) -> str:
    """Describe the algorithm and the blocks that a contraction of the given sizes would use."""
    rows, inputs = x.shape
    if rows * inputs * outputs == 0:
        return "nothing: one of the sizes is 0"
    if not dense_only and selection.choose(name, rows, inputs, outputs, count, basis, derivative) == "banded":
        return f"banded: the {basis.order + 1} active of {count} splines of each input, gathered"
    made = {"closed": "in closed form", "scattered": "by scattering the active ones", "recursive": "by recursion"}
    how = dense.filling(basis, count, derivative, on_cpu=x.is_cpu)
    block_rows, block_splines = dense.block_shape(rows, count, inputs, how, x.is_cpu)
    parts = -(-rows // block_rows) * -(-count // block_splines)
    return (
        f"dense: features made {made[how]}, {parts} block{'s'[: parts != 1]} of "
        f"{block_rows} rows x {block_splines} splines, each met by a matrix product"
    )


def _widened(x: Tensor, knots: Tensor, operands: Operands, basis: Basis) -> list:
    """Return x, knots, v, g, weight and base_weight in the working dtype, with the weights rounded if requested."""
    dtype = working_dtype(x.dtype)
    plain = [t if t is None else t.to(dtype) for t in (x, knots, operands.v, operands.g)]
    weights = operands.weight, operands.base_weight
    return plain + [w if w is None else w.to(basis.matmul_dtype or w.dtype).to(dtype) for w in weights]
