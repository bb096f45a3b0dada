"""The three contractions as one autograd Function, which is used in eager mode.

It saves x, W, v and g but not psi, except what a backend caches with the graph of a layer of few edges. Its backward
calls the same Function again by the table in :mod:`.trilinear`, so mixed derivatives of every order are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.modes import engine_executes, has_values
from ..backends.registry import ContractionSpec, implementation, vjp
from ..basis import exact_products
from ..trilinear import CONTRACTIONS, Operands, gradients


def required_grads(ctx, operands: Sequence[Tensor | None]) -> list[bool]:
    """Which gradients the backward pass in progress needs, one bool for each operand.

    ``ctx.needs_input_grad`` alone would include the weights in ``autograd.grad(u, x)``, since they require a gradient.

    Args:
        operands: the last arguments of ``forward``, each a tensor or None.
    """
    needed = list(ctx.needs_input_grad[-len(operands) :])
    nodes = iter(ctx.next_functions)  # one for each operand that is a tensor
    for place, operand in enumerate(operands):
        node = None if operand is None else next(nodes)[0]
        needed[place] = needed[place] and _will_execute(node)
    return needed


def _will_execute(node) -> bool:
    try:
        return engine_executes(node)
    except RuntimeError:  # raised for a leaf among the inputs of autograd.grad, and outside of a backward pass
        return True


class Contract(torch.autograd.Function):
    """Contraction F, G or H; the operand that it computes is passed as None, and G returns two parts."""

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
        spec = ctx.spec._replace(plain=has_values(x, *full))

        def contract(name: str, operands: Operands, derivative: int):
            return Contract.apply(name, spec._replace(derivative=derivative), x, knots, *operands)

        with exact_products(x):
            if torch.is_grad_enabled():
                found = gradients(ctx.name, full, wanted, spec.derivative, contract)
            else:
                found = vjp(ctx.name, spec, x, knots, full, wanted)
        weight, base_weight = found.get("W", (None, None))
        return None, None, found.get("x"), None, found.get("v"), weight, base_weight, found.get("g")
