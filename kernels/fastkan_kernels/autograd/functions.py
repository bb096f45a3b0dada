"""The three contractions as one autograd Function: the route of eager mode.

It saves x, W, v and g, never psi (but for what a backend caches with the graph of a layer of few edges), and its
backward is the table in :mod:`.trilinear` on the same Function again, so every mixed derivative of every order is
right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.modes import engine_executes, has_values
from ..backends.registry import ContractionSpec, implementation, vjp
from ..basis import exact_products
from ..trilinear import Operands, gradients


def required_grads(ctx, operands: Sequence[Tensor | None]) -> list[bool]:
    """Return which gradients a backward that is under way must compute.

    ``needs_input_grad`` includes those that nothing uses: in ``autograd.grad(u, x)`` the ones of the weights too.

    Args:
        operands: the last that ``forward`` was given, each a tensor or None.
    """
    needed = list(ctx.needs_input_grad[-len(operands) :])
    nodes = iter(ctx.next_functions)  # one for each tensor
    for place, operand in enumerate(operands):
        node = None if operand is None else next(nodes)[0]
        needed[place] = needed[place] and _will_execute(node)
    return needed


def _will_execute(node) -> bool:
    try:
        return engine_executes(node)
    except RuntimeError:  # a leaf of autograd.grad, or no engine runs
        return True


class Contract(torch.autograd.Function):
    """Contraction F, G or H; the operand that it leaves free is None, and G returns two parts."""

    @staticmethod
    def forward(ctx, name: str, spec: ContractionSpec, x: Tensor, knots: Tensor, *operands):
        ctx.name, ctx.spec = name, spec
        ctx.save_for_backward(x, knots, *operands)
        return implementation(name, spec, x, knots, Operands(*operands))()

    @staticmethod
    def backward(ctx, *upstream):
        x, knots, *saved = tensors = ctx.saved_tensors
        by_x, _, by_v, by_weight, by_base, by_g = required_grads(ctx, tensors)
        required = {"x": by_x, "v": by_v, "W": by_weight or by_base, "g": by_g}
        wanted = [by for by, needed in required.items() if needed]
        operands, own = Operands(*saved), upstream if ctx.name == "G" else upstream[0]
        spec = ctx.spec._replace(plain=has_values(x, *saved, *upstream))

        def contract(name: str, operands: Operands, derivative: int):
            return Contract.apply(name, spec._replace(derivative=derivative), x, knots, *operands)

        with exact_products(x):
            if torch.is_grad_enabled():
                found = gradients(ctx.name, operands, own, wanted, spec.derivative, contract)
            else:
                found = vjp(ctx.name, spec, x, knots, operands, own, wanted)
        weight, base_weight = found.get("W", (None, None))
        return None, None, found.get("x"), None, found.get("v"), weight, base_weight, found.get("g")
