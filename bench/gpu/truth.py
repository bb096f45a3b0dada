"""The error that rounding may make in a contraction on a GPU, and contractions by the public functions."""

from __future__ import annotations

import torch
from torch import Tensor

import fastkan_kernels
from fastkan_kernels import Basis
from fastkan_kernels.trilinear import CONTRACTIONS, Operands
from tests.support.oracle import Exact, Example

# Relative error of one product: both operands are rounded, or split into three, and the sum is rounded. STORED is the
# relative error of storing a result in each dtype.
UNIT = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-10,
    "autocast": 2.0**-7,  # float32 operands are rounded to bfloat16
    "tf32": 2.0**-9,
    "highest": 2.0**-16,
}
STORED = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-22, torch.float64: 2.0**-50}
CELL = 2.0**-22  # float32's error of t for each cell that is counted, and of psi^(d) in units of a cell


def kernel_operands(name: str, o: Example) -> Operands:
    """The operands that contraction ``name`` takes."""
    return Operands(o.v, o.weight, o.base_weight, o.g).without(CONTRACTIONS[name].free)


def budget(exact: Exact, product: str, stored: torch.dtype, cells: int, rate: float, derivative: int) -> Tensor:
    """The largest error that each number of a result may have.

    Args:
        product: a key of ``UNIT``.
        stored: the result's dtype.
        cells: number of cells of the knots.
        rate: largest number of cells per unit length.
    """
    psi_error = CELL * cells * rate**derivative
    return (UNIT[product] + STORED[stored]) * exact.size + psi_error * exact.ones


def compute(name: str, o: Example, basis: Basis, derivative: int) -> tuple[Tensor, ...]:
    """F, G or H by the public functions: G's two parts (one without a base function), else one."""
    if name == "F":
        y = fastkan_kernels.contract_out(o.x, o.knots, o.weight, o.base_weight, o.v, basis=basis, derivative=derivative)
        return (y,)
    if name == "G":
        splines, base = fastkan_kernels.contract_weight(o.x, o.knots, o.g, o.v, basis=basis, derivative=derivative)
        return (splines,) if base is None else (splines, base)
    h = fastkan_kernels.contract_in(o.x, o.knots, o.weight, o.base_weight, o.g, basis=basis, derivative=derivative)
    return (h,)
