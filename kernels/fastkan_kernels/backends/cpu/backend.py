"""F, G and H on a CPU, each by the quicker of two ways.

- dense: blocks of the dense features that stay in cache, each met by one matrix product
  (:mod:`.dense`). It costs K products for an input and output, at the speed of the product.
- banded: the k + 1 active coefficients of each input, gathered (:mod:`.banded`). It costs k + 1 of
  them, at the speed of a gather, so it wins on large grids. G has no such way.

:mod:`.choice` says which, from sizes alone. The base function is one plain product beside them
(:mod:`.base`). ``compiling`` lets PyTorch's compiler make the dense features (:mod:`.compiled`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline.cox_de_boor import round_weights
from ...trilinear import Operands
from . import banded, base, dense
from .blocks import block_shape, filling
from .selection import choose


def contract_out(
    x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int, *, compiling: bool = False
) -> Tensor:
    """F_d(x, W, v) = y[n,o], summed over b and i."""
    wide, knots, v, weight, base_weight, _ = _widened(x, knots, slots, basis)
    (rows, inputs), (count, _, outputs) = x.shape, weight.shape
    if rows * inputs * outputs == 0:
        return x.new_zeros(rows, outputs)
    if choose("F", outputs, count, basis, derivative) == "banded":
        y = banded.splines_out(wide, knots, v, weight, basis, derivative)
    else:
        y = dense.splines_out(wide, knots, v, weight, basis, derivative, compiling)
    if base_weight is not None:
        base.add_out(y, wide, v, base_weight, basis, derivative)
    return _narrowed(y, x)


def contract_weight(
    x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int, *, compiling: bool = False
) -> tuple[Tensor, Tensor | None]:
    """G_d(x, g, v) = dW[b,i,o], summed over n; the splines' part and the base function's."""
    wide, knots, v, _, _, g = _widened(x, knots, slots, basis)
    (rows, inputs), outputs, count = x.shape, g.shape[1], basis.splines_of(knots)
    based = basis.base != "none"
    if rows * inputs * outputs == 0:
        return x.new_zeros(count, inputs, outputs), x.new_zeros(inputs, outputs) if based else None
    splines = dense.splines_weight(wide, knots, v, g, basis, derivative, compiling)
    if not based:
        return _narrowed(splines, x), None
    return _narrowed(splines, x), _narrowed(base.weight_part(wide, v, g, basis, derivative), x)


def contract_in(
    x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int, *, compiling: bool = False
) -> Tensor:
    """H_d(x, W, g) = h[n,i], summed over b and o."""
    wide, knots, _, weight, base_weight, g = _widened(x, knots, slots, basis)
    (rows, inputs), (count, _, outputs) = x.shape, weight.shape
    if rows * inputs * outputs == 0:
        return x.new_zeros(x.shape)
    if choose("H", outputs, count, basis, derivative) == "banded":
        h = banded.splines_in(wide, knots, weight, g, basis, derivative)
    else:
        h = dense.splines_in(wide, knots, weight, g, basis, derivative, compiling)
    if base_weight is not None:
        base.add_in(h, wide, base_weight, g, basis, derivative)
    return _narrowed(h, x)


def unable(device: torch.device) -> str | None:
    """Why this backend can't serve tensors of a device, or None."""
    return None if device.type == "cpu" else f"it is for CPU tensors, and x is on {device.type!r}"


def describe(name: str, x: Tensor, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """What would run for a contraction of these sizes, in words."""
    rows, inputs = x.shape
    if rows * inputs * outputs == 0:
        return "nothing: one of the sizes is 0"
    way = choose(name, outputs, count, basis, derivative)
    if way == "banded":
        return f"banded: the {basis.order + 1} active of {count} splines of each input, gathered"
    made = {"closed": "in closed form", "scattered": "by scattering the active ones", "recursive": "by recursion"}
    how = filling(basis, count, derivative)
    block_rows, block_splines = block_shape(rows, count, inputs, how)
    parts = -(-rows // block_rows) * -(-count // block_splines)
    return (
        f"dense: features made {made[how]}, {parts} block{'s'[: parts != 1]} of "
        f"{block_rows} rows x {block_splines} splines, each met by a matrix product"
    )


def _widened(x: Tensor, knots: Tensor, slots: Operands, basis: Basis) -> tuple:
    """x, knots, v, weight, base_weight and g in the working dtype, weights rounded if asked."""
    dtype = working_dtype(x.dtype)
    if x.dtype == dtype == knots.dtype and basis.matmul_dtype is None:
        tensors = (x, knots, *slots)
        if all(t is None or t.dtype == dtype for t in tensors):
            return tensors
    v, g = (None if t is None else t.to(dtype) for t in (slots.v, slots.g))
    weight, base_weight = (
        None if w is None else round_weights(w, basis.matmul_dtype, dtype) for w in (slots.weight, slots.base_weight)
    )
    return x.to(dtype), knots.to(dtype), v, weight, base_weight, g


def _narrowed(result: Tensor, x: Tensor) -> Tensor:
    return result if result.dtype == x.dtype else result.to(x.dtype)
