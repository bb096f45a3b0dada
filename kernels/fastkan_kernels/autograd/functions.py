"""The three contractions as one autograd Function, which is used in eager mode.

The Function saves x, W, v and g for the backward pass, but not the features psi. For layers with few edges, a backend
may cache further arrays in the graph. The backward pass calls the Function again, following the table of derivatives in
:mod:`.trilinear`, so that mixed derivatives of every order are computed correctly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.modes import engine_executes, has_values
from ..backends.registry import ContractionSpec, implementation, vjp
from ..basis import Basis, exact_products
from ..trilinear import CONTRACTIONS, Operands, gradients


def required_grads(ctx, operands: Sequence[Tensor | None]) -> list[bool]:
    """Return a list with one bool for each operand: whether the current backward pass needs the gradient of the
    operand.

    The attribute ``ctx.needs_input_grad`` alone is not sufficient. In a call of ``autograd.grad(u, x)``,
    ``ctx.needs_input_grad`` is also True for weights that require a gradient.

    Args:
        ctx: the context of the autograd Function.
        operands: the last arguments of ``forward``, each a tensor or None.
    """
    needed = list(ctx.needs_input_grad[-len(operands) :])
    nodes = iter(ctx.next_functions)  # There is one node for each operand that is a tensor.
    for place, operand in enumerate(operands):
        node = None if operand is None else next(nodes)[0]
        needed[place] = needed[place] and _will_execute(node)
    return needed


def _will_execute(node) -> bool:
    try:
        return engine_executes(node)
    except RuntimeError:
        # PyTorch raises the error for leaves among the inputs of autograd.grad, and outside a backward pass.
        return True


class WeightGradient(NamedTuple):
    """The arguments of a call of G in a backward pass, from which G can be computed without its sum over the rows."""

    x: Tensor
    knots: Tensor
    v: Tensor | None
    g: Tensor
    basis: Basis
    derivative: int


class Contract(torch.autograd.Function):
    """An autograd Function for the contractions F, G and H. The operand that the contraction computes is passed as
    None.

    The contraction G returns two tensors, one for the splines and one for the base function.

    If the weight tensor has an attribute ``weight_gradients`` that is a list, a backward pass appends the arguments of
    G to the list instead of computing G; see :mod:`..row_jacobian`. The list is an attribute of the tensor because
    PyTorch runs backward passes on GPUs in threads of its own.
    """

    @staticmethod
    def forward(ctx, name: str, spec: ContractionSpec, x: Tensor, knots: Tensor, *operands):
        ctx.name, ctx.spec = name, spec
        ctx.save_for_backward(x, knots, *operands)
        return implementation(name, spec, x, knots, Operands(*operands))()

    @staticmethod
    def backward(ctx, *upstream):
        x, knots, *saved = tensors = ctx.saved_tensors
        by_x, _, by_v, by_weight, by_base, by_g = required_grads(ctx, tensors)
        wanted = [by for by, needed in zip("xvWg", (by_x, by_v, by_weight or by_base, by_g)) if needed]
        own = upstream if ctx.name == "G" else upstream[0]
        full = Operands(*saved).with_operand(CONTRACTIONS[ctx.name].free, own)
        basis, order, backend, cache, _, window = ctx.spec
        spec = ContractionSpec(basis, order, backend, cache, has_values(x, *full), window)
        calls = getattr(saved[1], "weight_gradients", None)
        if calls is not None and "W" in wanted:
            wanted.remove("W")
            calls.append(WeightGradient(x, knots, full.v, full.g, basis, order))

        def contract(name: str, operands: Operands, derivative: int):
            return Contract.apply(name, spec._replace(derivative=derivative), x, knots, *operands)

        with exact_products(x):
            if torch.is_grad_enabled():
                found = gradients(ctx.name, full, wanted, spec.derivative, contract)
            else:
                found = vjp(ctx.name, spec, x, knots, full, wanted)
        weight, base_weight = found.get("W", (None, None))
        return None, None, found.get("x"), None, found.get("v"), weight, base_weight, found.get("g")
