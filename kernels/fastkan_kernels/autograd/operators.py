"""The three contractions as registered PyTorch operators, which are used under ``torch.compile``.

The compiler treats an operator as a black box unless the backend provides a decomposition (:func:`_decompose`). The
compiler fuses a decomposition with the code around it. The backward pass of an operator calls the registered operators
again; the operators to call are read from :data:`..trilinear.DERIVATIVES`, as in the autograd Function. An operator
cannot return None in place of a tensor, so G returns an empty tensor as its second result if the layer has no base
function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode  # torch.library also uses this private class

from ..backends.convolution import Window
from ..backends.registry import BACKENDS, ContractionSpec, implementation
from ..basis import Basis, exact_products
from ..trilinear import CONTRACTIONS, Operands, gradients

_FIXED = (
    "int order, str base, bool uniform, float[]? uniform_grid, ScalarType? matmul_dtype, "
    "int derivative, str backend, str source, int[]? window"
)
_SCHEMAS = {
    "F": f"(Tensor x, Tensor knots, Tensor? v, Tensor weight, Tensor? base_weight, {_FIXED}) -> Tensor",
    "G": f"(Tensor x, Tensor knots, Tensor? v, Tensor g, {_FIXED}) -> (Tensor, Tensor)",
    "H": f"(Tensor x, Tensor knots, Tensor weight, Tensor? base_weight, Tensor g, {_FIXED}) -> Tensor",
}
_OPERANDS = {
    "F": ("v", "weight", "base_weight"),
    "G": ("v", "g"),
    "H": ("weight", "base_weight", "g"),
}


def _flat(call: ContractionSpec) -> tuple:
    decomposition = BACKENDS[call.backend].decomposition
    # PyTorch's cache on disk identifies a compiled graph by the names and arguments of its operators. The checksum
    # ``source`` is an argument, so that graphs compiled with an older version of the decomposition are not reused.
    source = decomposition.source if decomposition else ""
    return (*call.basis, call.derivative, call.backend, source, call.window and call.window.flat())


def _call(flat: tuple) -> ContractionSpec:
    order, base, uniform, uniform_grid, matmul_dtype, derivative, backend, _, window = flat
    basis = Basis(order, base, uniform, uniform_grid and tuple(uniform_grid), matmul_dtype)
    return ContractionSpec(basis, derivative, backend, window=window and Window.from_flat(window))


def apply(name: str, call: ContractionSpec, x: Tensor, knots: Tensor, operands: Operands):
    """Call the registered operator for the contraction ``name``."""
    given = (getattr(operands, field) for field in _OPERANDS[name])
    out = OPERATORS[name](x, knots, *given, *_flat(call))
    if name == "G" and call.basis.base == "none":
        return out[0], None
    return out


def _compute(name: str) -> Callable:
    def compute(x: Tensor, knots: Tensor, *rest):
        fields = _OPERANDS[name]
        operands = Operands(**dict(zip(fields, rest)))
        with exact_products(x):
            out = implementation(name, _call(rest[len(fields) :]), x, knots, operands, compiling=True)()
        if name == "G":
            return out[0].contiguous(), x.new_empty(0) if out[1] is None else out[1].contiguous()
        return out.contiguous()

    return compute


def _fake(name: str) -> Callable:
    def fake(x: Tensor, knots: Tensor, *rest):
        operands = Operands(**dict(zip(_OPERANDS[name], rest)))
        call = _call(rest[len(_OPERANDS[name]) :])
        basis, window = call.basis, call.window
        if name == "F":
            if window is not None:
                return x.new_empty(x.shape[0], window.out_channels(operands.weight), *window.out_size(x.shape[2:]))
            return x.new_empty(x.shape[0], operands.weight.shape[2])
        if name == "H":
            return x.new_empty(x.shape)
        inputs, outputs = x.shape[1], operands.g.shape[1]
        if window is not None:
            outputs = outputs // window.groups * window.taps
        base = x.new_empty(0) if basis.base == "none" else x.new_empty(inputs, outputs)
        return x.new_empty(basis.splines_of(knots), inputs, outputs), base

    return fake


def _register(name: str, operator_name: str):
    fields = _OPERANDS[name]
    operator = torch.library.custom_op(
        f"fastkan::{operator_name}", _compute(name), mutates_args=(), schema=_SCHEMAS[name]
    )
    operator.register_fake(_fake(name))

    def setup_context(ctx, inputs, output):
        x, knots, *rest = inputs
        ctx.call = _call(tuple(rest[len(fields) :]))
        ctx.save_for_backward(x, knots, *rest[: len(fields)])

    def backward(ctx, *upstream):
        x, knots, *saved = ctx.saved_tensors
        needed = dict(zip(("x", "knots", *fields), ctx.needs_input_grad))
        wanted = [by for by in ("x", "v", "g") if needed.get(by)]
        if needed.get("weight") or needed.get("base_weight"):
            wanted.append("W")

        def again(name: str, operands: Operands, derivative: int):
            return apply(name, ctx.call._replace(derivative=derivative), x, knots, operands)

        if name == "G":
            own = (upstream[0], None if ctx.call.basis.base == "none" else upstream[1])
        else:
            (own,) = upstream
        full = Operands(**dict(zip(fields, saved))).with_operand(CONTRACTIONS[name].free, own)
        found = gradients(name, full, wanted, ctx.call.derivative, again)
        found["weight"], found["base_weight"] = found.pop("W", (None, None))
        by_field = (found.get(field) for field in fields)
        return found.get("x"), None, *by_field, *(None,) * len(_flat(ctx.call))

    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_torch_dispatch(FunctionalTensorMode, _decompose(name))
    return operator


def _decompose(name: str) -> Callable:
    """Return the functionalization rule of an operator.

    The rule replaces the operator by its decomposition if the backend has a decomposition for the given sizes.
    """

    def functionalize(mode, operator, types, args=(), kwargs=None):
        x, knots, *rest = args
        fields = _OPERANDS[name]
        call = _call(tuple(rest[len(fields) :]))
        decomposition = BACKENDS[call.backend].decomposition
        if call.window or decomposition is None or not decomposition.supports(x, knots, call.basis):
            return mode.__torch_dispatch__(operator, types, args, kwargs)
        with mode:
            operands = Operands(**dict(zip(fields, rest)))
            out = decomposition.contract(name, x, knots, operands, call.basis, call.derivative)
            return (out[0], x.new_empty(0) if out[1] is None else out[1]) if name == "G" else out

    return functionalize


OPERATORS = {
    "F": _register("F", "contract_out"),
    "G": _register("G", "contract_weight"),
    "H": _register("H", "contract_in"),
}
