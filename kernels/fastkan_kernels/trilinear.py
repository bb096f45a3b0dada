"""The trilinear form behind every layer, its three contractions, and a table of the contractions' derivatives.

    T_d = sum over n, i, b, o of  v[n,i] * psi_b^(d)(x[n,i]) * W[b,i,o] * g[n,o]

The form has three operands besides x: ``v``, ``W`` and ``g``. A contraction takes two of the operands, sums over
every index that the third operand does not have, and returns a tensor with the shape of the third operand. To
differentiate a contraction, take the upstream gradient as the operand that the contraction lacks. With all three
operands given, the form T_d is a scalar. The gradient of T_d with respect to an operand is the contraction that
returns a tensor of that operand's shape. The gradient of T_d with respect to x is ``v`` times the contraction H of
order d + 1. The table :data:`DERIVATIVES` contains the nine gradient formulas, which need only the kernels F, G and H.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import Tensor


class Contraction(NamedTuple):
    """The description of one of the contractions F, G and H: its name and the operands that it takes."""

    name: str
    free: str  # The result has the shape of the operand ``free``, which the contraction does not take.
    filled: tuple[str, str]  # The contraction takes the two operands in ``filled``.


class Rule(NamedTuple):
    """A rule for a gradient, which is ``times * contraction_{d + raises}`` with the upstream gradient as an operand."""

    contraction: str
    raises: int = 0
    times: str | None = None


CONTRACTIONS = {
    "F": Contraction("contract_out", free="g", filled=("v", "W")),
    "G": Contraction("contract_weight", free="W", filled=("v", "g")),
    "H": Contraction("contract_in", free="v", filled=("W", "g")),
}

# The table maps a contraction and one of its arguments to the rule for the gradient with respect to the argument.
DERIVATIVES = {
    ("F", "x"): Rule("H", raises=1, times="v"),
    ("F", "W"): Rule("G"),
    ("F", "v"): Rule("H"),
    ("G", "x"): Rule("H", raises=1, times="v"),
    ("G", "v"): Rule("H"),
    ("G", "g"): Rule("F"),
    ("H", "x"): Rule("H", raises=1, times="v"),
    ("H", "W"): Rule("G"),
    ("H", "g"): Rule("F"),
}


class Operands(NamedTuple):
    """The operands of a contraction. The operand ``W`` is stored in two parts, ``weight`` and ``base_weight``.

    Attributes:
        v: a factor ``[N, I]`` for each input value, or None if all factors are 1.
        weight: the weights ``[K, I, O]`` of the splines.
        base_weight: the weights ``[I, O]`` of the base function, or None if the layer has no base function.
        g: a factor ``[N, O]`` for each output value, usually the gradient of the output.

    The operand that a contraction does not take is None.
    """

    v: Tensor | None = None
    weight: Tensor = None  # type: ignore[assignment]  # a contraction reads only the operands that it takes
    base_weight: Tensor | None = None
    g: Tensor = None  # type: ignore[assignment]

    def with_operand(self, name: str, value: Any) -> Operands:
        """Return a copy in which the operand ``"v"``, ``"W"`` (a pair of tensors) or ``"g"`` is replaced."""
        v, weight, base_weight, g = self  # the _replace of NamedTuple takes four times as long
        if name == "W":
            return Operands(v, value[0], value[1], g)
        return Operands(value, weight, base_weight, g) if name == "v" else Operands(v, weight, base_weight, value)

    def without(self, name: str) -> Operands:
        """Return a copy in which the operand ``"v"``, ``"W"`` or ``"g"`` is None."""
        return self.with_operand(name, (None, None) if name == "W" else None)


def gradients(
    name: str,
    full: Operands,
    wanted: Collection[str],
    derivative: int,
    contract: Callable[[str, Operands, int], Tensor],
) -> dict:
    """Compute gradients of a contraction by the rules in :data:`DERIVATIVES`.

    Args:
        name: the contraction, ``"F"``, ``"G"`` or ``"H"``.
        full: the operands that the contraction was computed from, and the upstream gradient in place of the operand
            that the contraction computes. The upstream gradient of G is a pair, with one gradient for each part of W.
        wanted: the arguments to differentiate with respect to, among ``"x"``, ``"v"``, ``"W"`` and ``"g"``.
        derivative: the order d of the contraction.
        contract: a function ``contract(name, operands, d)`` that computes a contraction.

    Returns:
        A dictionary that maps each name in ``wanted`` to a gradient. The gradient for W is a pair.
    """
    found = {}
    for by in wanted:
        rule = DERIVATIVES[name, by]
        given = full.without(CONTRACTIONS[rule.contraction].free)
        value = contract(rule.contraction, given, derivative + rule.raises)
        times = getattr(full, rule.times) if rule.times else None
        found[by] = value if times is None else times * value
    return found
