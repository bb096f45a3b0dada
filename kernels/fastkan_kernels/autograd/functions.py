"""The three contractions as autograd Functions, which are used in eager mode.

They save x, W, v and g but not psi, except what a backend caches of x for the smallest layers. Their backward calls the
same Functions again by the table in :mod:`.trilinear`, so mixed derivatives of every order are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.registry import ContractionSpec, contract, small_of, vjp
from ..trilinear import Operands, gradients


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
        # PyTorch has no public name for this; tests/kernels/test_autograd.py fails if it changes.
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised for a leaf among the inputs of autograd.grad, and outside of a backward pass
        return True


class _Contraction(torch.autograd.Function):
    """Code that the three Functions share. The operand that contraction ``name`` computes is passed as None."""

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


class ContractOutSmall(_Contraction):
    """F_0(x, W) of a small layer, by a backend whose backward reuses what its forward has cached. A backward that
    builds a graph follows the table instead."""

    name = "F"

    @staticmethod
    def forward(ctx, call, x, knots, *slots):
        by_x = ctx.needs_input_grad[1]
        y, ctx.kept = small_of(call).forward(call.kept, x, knots, Operands(*slots), call.basis, by_x)
        ctx.call = call
        ctx.save_for_backward(x, knots, *slots)
        return y

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():
            return ContractOut.differentiate(ctx, upstream)
        # Reading ctx.saved_tensors raises if one of them was modified in place.
        by_x, _, _, by_weight, by_base, _ = required_grads(ctx, ctx.saved_tensors)
        dx, dw, db = small_of(ctx.call).backward(ctx.kept, upstream, by_x, by_weight, by_base)
        return None, dx, None, None, dw, db, None


class ContractWeight(_Contraction):
    """G_d(x, g, v): the part of the splines, and that of the base function or None without one."""

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
