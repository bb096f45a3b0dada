"""The three contractions as autograd Functions: the route of eager mode.

They save x, W, v and g, never psi (but for what a backend caches with the graph of a layer of few edges), and their
backward is the table in :mod:`.trilinear` on the same Functions again, so every mixed derivative of every order is
right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.registry import ContractionSpec, contract, vjp
from ..trilinear import Operands, gradients


def required_grads(ctx, operands: Sequence[Tensor | None]) -> list[bool]:
    """Which gradients are wanted of a backward that is under way.

    ``needs_input_grad`` alone says which could be: of ``autograd.grad(u, x)`` also those by the weights.

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
        # torch has no public name for it; tests/test_autograd.py pins it
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # of a leaf that autograd.grad was asked about, and where no engine runs
        return True


class _Contraction(torch.autograd.Function):
    """What the three share; the slot that ``name`` leaves free comes as None."""

    name: str

    @classmethod
    def run(cls, ctx, call: ContractionSpec, x: Tensor, knots: Tensor, *slots):
        ctx.call = call
        ctx.save_for_backward(x, knots, *slots)
        return contract(cls.name, call, x, knots, Operands(*slots))

    @classmethod
    def differentiate(cls, ctx, upstream) -> tuple[Tensor | None, ...]:
        x, knots, *saved = operands = ctx.saved_tensors
        by_x, _, by_v, by_weight, by_base, by_g = required_grads(ctx, operands)
        asked = {"x": by_x, "v": by_v, "W": by_weight or by_base, "g": by_g}
        wanted = [name for name, needed in asked.items() if needed]

        def again(name: str, slots: Operands, derivative: int):
            call = ctx.call._replace(derivative=derivative)
            return FUNCTIONS[name].apply(call, x, knots, *slots)

        if torch.is_grad_enabled():
            found = gradients(cls.name, Operands(*saved), upstream, wanted, ctx.call.derivative, again)
        else:
            found = vjp(cls.name, ctx.call, x, knots, Operands(*saved), upstream, wanted)
        weight, base_weight = found.get("W", (None, None))
        return None, found.get("x"), None, found.get("v"), weight, base_weight, found.get("g")


class ContractOut(_Contraction):
    """F_d(x, W, v)."""

    name = "F"

    @staticmethod
    def forward(ctx, call, x, knots, *slots):
        return ContractOut.run(ctx, call, x, knots, *slots)

    @staticmethod
    def backward(ctx, upstream):
        return ContractOut.differentiate(ctx, upstream)


class ContractWeight(_Contraction):
    """G_d(x, g, v), in two parts: the splines' and the base function's (None without one)."""

    name = "G"

    @staticmethod
    def forward(ctx, call, x, knots, *slots):
        return ContractWeight.run(ctx, call, x, knots, *slots)

    @staticmethod
    def backward(ctx, *upstream):
        return ContractWeight.differentiate(ctx, upstream)


class ContractIn(_Contraction):
    """H_d(x, W, g)."""

    name = "H"

    @staticmethod
    def forward(ctx, call, x, knots, *slots):
        return ContractIn.run(ctx, call, x, knots, *slots)

    @staticmethod
    def backward(ctx, upstream):
        return ContractIn.differentiate(ctx, upstream)


FUNCTIONS = {"F": ContractOut, "G": ContractWeight, "H": ContractIn}
