"""Computation of the contractions F, G and H by hand-written kernels.

:mod:`.tuning.selection` chooses the implementation of each contraction. The implementations are the following:

- fused: a kernel computes the features in registers and multiplies them at once, so that only the result is written to
  memory (:mod:`.kernels.contract_out`, :mod:`.kernels.contract_weight`, :mod:`.kernels.contract_in`).
- chunked: a kernel writes the features of some rows to memory, and a matrix product reads them (:mod:`.chunked`).
- pipelined: a fused kernel on Hopper GPUs has hand-written waits, so that the computation of features and the matrix
  products overlap (:mod:`.hopper`).
- gather: a kernel for F or H reads only the weights of the k + 1 active splines of each input, without tensor cores
  (:mod:`.kernels.gather`).

Derivatives of the splines above the spline order are 0. For these derivatives, only the base function contributes to
the contractions, and PyTorch's own functions compute its contribution to F and H.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline.cox_de_boor import base_function
from ...trilinear import Operands
from . import chunked, hardware
from .kernels.contract_in import launch_in
from .kernels.contract_out import launch_out
from .kernels.contract_weight import launch_weight, parts_of
from .kernels.gather import launch_gather_in, launch_gather_out
from .launch import Launch
from .problem import Problem, form_of, problem
from .tuning.config import Config
from .tuning.key import key
from .tuning.selection import choose, choose_for


def contract_out(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """Return the contraction F_d(x, W, v) ``[N, O]``, which is summed over the splines b and the inputs i."""
    outputs = operands.weight.shape[2]
    if x.numel() * outputs == 0:
        return x.new_zeros(x.shape[0], outputs)
    p = problem("F", x, knots, operands, basis, derivative)
    if p.form == "none":
        return _base_out(p).to(x.dtype)
    return _out(p, choose_for(p, _out))


def contract_weight(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int
) -> tuple[Tensor, Tensor | None]:
    """Return the contraction G_d(x, g, v), which is summed over the rows n.

    Returns:
        A tuple of the tensor for the splines ``[K, I, O]`` and the tensor for the base function ``[I, O]``. Without a
        base function, None is returned in place of the tensor for the base function.
    """
    count, inputs, outputs = basis.splines_of(knots), x.shape[1], operands.g.shape[1]
    based = basis.base != "none"
    if x.numel() * outputs == 0:
        return x.new_zeros(count, inputs, outputs), x.new_zeros(inputs, outputs) if based else None
    p = problem("G", x, knots, operands, basis, derivative)
    return _weights(p, choose_for(p, _weights))


def contract_in(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """Return the contraction H_d(x, W, g) ``[N, I]``, which is summed over the splines b and the outputs o."""
    if x.numel() * operands.weight.shape[2] == 0:
        return x.new_zeros(x.shape)
    p = problem("H", x, knots, operands, basis, derivative)
    if p.form == "none":
        return _base_in(p).to(x.dtype)
    return _in(p, choose_for(p, _in))


def _out(p: Problem, config: Config) -> Tensor:
    y = p.x.new_empty(p.rows, p.outputs)
    if config.way == "chunked":
        chunked.out(p, config, y)
    else:
        launched_out(p, config, y).run()
    return y


def _in(p: Problem, config: Config) -> Tensor:
    if config.way == "chunked":
        h = p.x.new_empty(p.x.shape, dtype=p.work)
        chunked.into(p, config, h)
        return h.to(p.x.dtype)
    h = p.x.new_empty(p.x.shape)
    launched_in(p, config, h).run()
    return h


def _weights(p: Problem, config: Config) -> tuple[Tensor, Tensor | None]:
    if config.way == "pipelined":
        from .hopper.contract_weight import contract_weight as contract_pipelined

        if p.form == p.base == "none":
            return _nan_splines(p), None
        splines, base = contract_pipelined(p, config)
        return _nan_splines(p) if p.form == "none" else splines, base if p.base != "none" else None
    if p.form == "none":
        splines = _nan_splines(p)
    else:
        splines = _weight(p, config, base=False)
    return splines, _weight(p, config, base=True)[0] if p.base != "none" else None


def _nan_splines(p: Problem) -> Tensor:
    """Return G of the splines for a derivative above the spline order: NaN for each input that is NaN in any row."""
    nan = torch.where(p.x.isnan(), p.x, 0.0).sum(0)
    return nan.to(p.x.dtype).view(1, p.inputs, 1).repeat(p.spline_count, 1, p.outputs)


def _weight(p: Problem, config: Config, base: bool) -> Tensor:
    """Return G of the splines ``[K, I, O]`` or, if ``base``, G of the base function ``[1, I, O]``."""
    shape = (1 if base else p.spline_count, p.inputs, p.outputs)
    if config.way == "chunked":
        dw = p.x.new_empty(shape, dtype=p.work)
        chunked.weight(p, config, dw, base)
        return dw.to(p.x.dtype)
    parts, part_rows = parts_of(p, config)
    partial = p.x.new_empty((parts, *shape), dtype=p.x.dtype if parts == 1 else p.work)
    launched_weight(p, config, partial, part_rows, base).run()
    return partial[0] if parts == 1 else partial.sum(0).to(p.x.dtype)


def features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Return the d-th derivative of all splines ``[N, K, I]`` in the working dtype."""
    count = basis.splines_of(knots)
    made = x.new_empty(len(x), count, x.shape[1], dtype=working_dtype(x.dtype))
    if made.numel() == 0 or derivative > basis.order:
        return made.zero_()
    p = problem("F", x, knots, Operands(weight=x.new_empty(count, x.shape[1], 1)), basis, derivative)
    return chunked.features(p, made)


def launched_out(p: Problem, config: Config, y: Tensor) -> Launch:
    """Return the kernel launch that computes F.

    The chunked implementation is excluded, because it needs several launches.
    """
    if config.way == "pipelined":
        from .hopper.contract_out import launch_out as launch_pipelined

        return launch_pipelined(p, config, y)
    return (launch_gather_out if config.way == "gather" else launch_out)(p, config, y)


def launched_weight(p: Problem, config: Config, out: Tensor, part_rows: int, base: bool) -> Launch:
    """Return the kernel launch that computes G for the splines or, if ``base``, for the base function.

    The chunked implementation is excluded, because it needs several launches.
    """
    return launch_weight(p, config, out, part_rows, base)


def launched_in(p: Problem, config: Config, h: Tensor) -> Launch:
    """Return the kernel launch that computes H.

    The chunked implementation is excluded, because it needs several launches.
    """
    if config.way == "pipelined":
        from .hopper.contract_in import launch_in as launch_pipelined

        return launch_pipelined(p, config, h)
    return (launch_gather_in if config.way == "gather" else launch_in)(p, config, h)


def _base_out(p: Problem) -> Tensor:
    """Return F for a derivative above the spline order."""
    if p.base_weight is None:
        nan = torch.where(p.x.isnan(), p.x, 0.0).sum(1, keepdim=True)  # NaN for each row that has a NaN
        return nan.expand(-1, p.outputs).contiguous()
    base = base_function(p.x.to(p.work), p.base, p.derivative)
    base = base if p.v is None else base * p.v
    return chunked.product(base.to(p.matmul_dtype), p.base_weight, p.work)


def _base_in(p: Problem) -> Tensor:
    """Return H for a derivative above the spline order."""
    assert p.g is not None
    if p.base_weight is None:
        return torch.where(p.x.isnan(), p.x, 0.0)
    return base_function(p.x.to(p.work), p.base, p.derivative) * chunked.product(p.g, p.base_weight.t(), p.work)


def describe(name: str, x: Tensor, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """Return a description in words of the kernels that run for a contraction of the given sizes."""
    rows, inputs = x.shape
    if rows * inputs * outputs == 0:
        return "nothing: one of the sizes is 0"
    if form_of(basis, derivative) == "none":
        return "no splines: their derivative is 0; the base function by plain products"

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=x.dtype, device="meta")

    operands = Operands(g=empty(rows, outputs))
    if name != "G":
        base_weight = None if basis.base == "none" else empty(inputs, outputs)
        operands = operands._replace(weight=empty(count, inputs, outputs), base_weight=base_weight)
    knots = empty(inputs, count + basis.order + 1)
    p = problem(name, empty(rows, inputs), knots, operands, basis, derivative, hardware.capability(x.device))
    config = choose(key(p), p.capability, x.device)
    made = {"cardinal": "by truncated powers", "local": "from their cell's active ones"}[p.form]
    precision = f" ({p.precision})" if p.matmul_dtype == torch.float32 else ""
    product = str(p.matmul_dtype).removeprefix("torch.") + precision
    tile = f"tiles of {config.rows} x {config.columns}"
    if config.way == "gather":
        return f"gather: the {basis.order + 1} active of {count} splines of each input, {tile}, {config.warps} warps"
    if config.way == "chunked":
        return f"chunked: features written {made}, {len(list(chunked.chunks(p)))} chunks, products by PyTorch"
    loads = "descriptors" if config.descriptors else "pointers"
    if config.way == "pipelined":
        loads += ", waits by hand"
    return (
        f"{config.way}: features made in registers {made}, products in {product}, {tile} over {config.inner}, "
        f"{config.warps} warps, {config.stages} stages, {loads}"
    )
