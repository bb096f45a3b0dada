"""The three contractions as registered operators: the route under ``torch.compile``.

The compiler sees them whole. Their backward calls them again by the same table as the Functions'.
Small layers' operators it sees decomposed (:func:`_decompose`), and fuses.
An operator can't return "no tensor", so G without a base function returns an empty second part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode  # as torch.library.triton_op does

from ..backends.registry import BACKENDS, ContractionSpec, implementation
from ..basis import Basis, exact_products
from ..trilinear import Operands, gradients

_FIXED = (
    "int order, str base, bool uniform, float[]? cells, ScalarType? product, int derivative, str backend, str source"
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
    # PyTorch's cache on disk knows a compiled graph by its operators' names and arguments
    source = decomposition.source if decomposition else ""
    return (*call.basis, call.derivative, call.backend, source)


def _call(flat: tuple) -> ContractionSpec:
    order, base, uniform, cells, product, derivative, backend, _ = flat
    return ContractionSpec(Basis(order, base, uniform, cells and tuple(cells), product), derivative, backend)


def apply(name: str, call: ContractionSpec, x: Tensor, knots: Tensor, slots: Operands):
    """Call the registered operator of contraction ``name``."""
    operands = (getattr(slots, slot) for slot in _OPERANDS[name])
    out = OPERATORS[name](x, knots, *operands, *_flat(call))
    if name == "G" and call.basis.base == "none":
        return out[0], None
    return out


def _compute(name: str) -> Callable:
    def compute(x: Tensor, knots: Tensor, *rest):
        operands = _OPERANDS[name]
        slots = Operands(**dict(zip(operands, rest)))
        with exact_products(x):
            out = implementation(name, _call(rest[len(operands) :]), x, knots, slots, compiling=True)()
        if name == "G":
            return out[0].contiguous(), x.new_empty(0) if out[1] is None else out[1].contiguous()
        return out.contiguous()

    return compute


def _fake(name: str) -> Callable:
    def fake(x: Tensor, knots: Tensor, *rest):
        slots = Operands(**dict(zip(_OPERANDS[name], rest)))
        basis = _call(rest[len(_OPERANDS[name]) :]).basis
        if name == "F":
            return x.new_empty(x.shape[0], slots.weight.shape[2])
        if name == "H":
            return x.new_empty(x.shape)
        inputs, outputs = x.shape[1], slots.g.shape[1]
        base = x.new_empty(0) if basis.base == "none" else x.new_empty(inputs, outputs)
        return x.new_empty(basis.splines_of(knots), inputs, outputs), base

    return fake


def _register(name: str, operator_name: str):
    operands = _OPERANDS[name]
    operator = torch.library.custom_op(
        f"fastkan::{operator_name}", _compute(name), mutates_args=(), schema=_SCHEMAS[name]
    )
    operator.register_fake(_fake(name))

    def setup_context(ctx, inputs, output):
        x, knots, *rest = inputs
        ctx.call = _call(tuple(rest[len(operands) :]))
        ctx.save_for_backward(x, knots, *rest[: len(operands)])

    def backward(ctx, *upstream):
        x, knots, *saved = ctx.saved_tensors
        needed = dict(zip(("x", "knots", *operands), ctx.needs_input_grad))
        wanted = [by for by in ("x", "v", "g") if needed.get(by)]
        if needed.get("weight") or needed.get("base_weight"):
            wanted.append("W")

        def again(name: str, slots: Operands, derivative: int):
            return apply(name, ctx.call._replace(derivative=derivative), x, knots, slots)

        if name == "G":
            full = (upstream[0], None if ctx.call.basis.base == "none" else upstream[1])
        else:
            (full,) = upstream
        slots = Operands(**dict(zip(operands, saved)))
        found = gradients(name, slots, full, wanted, ctx.call.derivative, again)
        found["weight"], found["base_weight"] = found.pop("W", (None, None))
        by_operand = (found.get(operand) for operand in operands)
        return found.get("x"), None, *by_operand, *(None,) * len(_flat(ctx.call))

    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_torch_dispatch(FunctionalTensorMode, _decompose(name))
    return operator


def _decompose(name: str) -> Callable:
    """Return the rule that shows the compiler an operator decomposed, where its backend does that for its sizes."""

    def functionalize(mode, operator, types, args=(), kwargs=None):
        x, knots, *rest = args
        operands = _OPERANDS[name]
        call = _call(tuple(rest[len(operands) :]))
        decomposition = BACKENDS[call.backend].decomposition
        if decomposition is None or not decomposition.supports(x, knots, call.basis):
            return mode.__torch_dispatch__(operator, types, args, kwargs)
        with mode:
            slots = Operands(**dict(zip(operands, rest)))
            out = decomposition.contract(name, x, knots, slots, call.basis, call.derivative)
            return (out[0], x.new_empty(0) if out[1] is None else out[1]) if name == "G" else out

    return functionalize


OPERATORS = {
    "F": _register("F", "contract_out"),
    "G": _register("G", "contract_weight"),
    "H": _register("H", "contract_in"),
}
