"""The idea as data: one trilinear form, three contractions, closed under differentiation.

    T_d = sum over n, i, b, o of  v[n,i] * psi_b^(d)(x[n,i]) * W[b,i,o] * g[n,o]

The form has three operands besides x: ``v``, ``W`` and ``g``. A contraction takes two of them, sums over
every index that the third does not have, and returns a tensor of the third one's shape. To differentiate a
contraction, take the upstream gradient as its missing operand. With all three operands given, the form is the
number T_d. Its gradient with respect to an operand is the contraction that computes that operand, and its
gradient with respect to x is ``v`` times H of the next derivative. These are nine rules on the same three kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import Tensor


class Contraction(NamedTuple):
    """One of F, G and H, by the operands that it takes and the one whose shape its result has."""

    name: str
    free: str  # the operand whose place the result takes
    filled: tuple[str, str]  # the operands that are given


class Rule(NamedTuple):
    """The formula of a gradient: ``times * contraction_{d + raises}``, of the operands with the upstream gradient."""

    contraction: str
    raises: int = 0
    times: str | None = None


CONTRACTIONS = {
    "F": Contraction("contract_out", free="g", filled=("v", "W")),
    "G": Contraction("contract_weight", free="W", filled=("v", "g")),
    "H": Contraction("contract_in", free="v", filled=("W", "g")),
}

# (contraction, the argument that it is differentiated with respect to) -> the contraction that is its gradient
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
    """Operands of a contraction. ``W`` has two parts, the weights of the splines and those of the base function.

    Shapes: ``v [N, I]`` (None stands for all ones), ``weight [K, I, O]``, ``base_weight [I, O]`` (None
    without a base function), ``g [N, O]``. The operand that a contraction computes is None.
    """

    v: Tensor | None = None
    weight: Tensor = None  # type: ignore[assignment]  # a contraction reads only the operands that it takes
    base_weight: Tensor | None = None
    g: Tensor = None  # type: ignore[assignment]

    def with_operand(self, name: str, value: Any) -> Operands:
        """A copy with the operand ``"v"``, ``"W"`` (a pair of tensors) or ``"g"`` replaced."""
        v, weight, base_weight, g = self  # NamedTuple's _replace takes four times as long
        if name == "W":
            return Operands(v, value[0], value[1], g)
        return Operands(value, weight, base_weight, g) if name == "v" else Operands(v, weight, base_weight, value)

    def without(self, name: str) -> Operands:
        """A copy with the operand ``"v"``, ``"W"`` or ``"g"`` set to None."""
        return self.with_operand(name, (None, None) if name == "W" else None)


def gradients(
    name: str,
    full: Operands,
    wanted: Collection[str],
    derivative: int,
    contract: Callable[[str, Operands, int], Tensor],
) -> dict:
    """Gradients of a contraction, by the rules in :data:`DERIVATIVES`.

    Args:
        name: the contraction, ``"F"``, ``"G"`` or ``"H"``.
        full: the operands that it was computed from, and in the place of its result the upstream gradient.
        wanted: the arguments to differentiate with respect to, among ``"x"``, ``"v"``, ``"W"`` and ``"g"``.
        derivative: the order d of the contraction.
        contract: function that computes a contraction, ``contract(name, operands, d)``.

    Returns:
        The gradient for each name in ``wanted``; for W a pair.
    """
    found = {}
    for by in wanted:
        rule = DERIVATIVES[name, by]
        given = full.without(CONTRACTIONS[rule.contraction].free)
        value = contract(rule.contraction, given, derivative + rule.raises)
        times = getattr(full, rule.times) if rule.times else None
        found[by] = value if times is None else times * value
    return found
