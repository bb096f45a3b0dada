"""The idea as data: one trilinear form, three contractions, closed under differentiation.

    T_d = sum over n, i, b, o of  v[n,i] * psi_b^(d)(x[n,i]) * W[b,i,o] * g[n,o]

The form has three slots, ``v``, ``W`` and ``g``. A contraction fills two of them and sums over every
index but those of the third, which it leaves free and so computes. To differentiate it, put the
upstream gradient into the free slot: all three are then full, the result is the number T_d, and its
gradient by a slot is the contraction that leaves *that* slot free, its gradient by x is ``v`` times
the next derivative's H. Nine rules, and no tenth kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import Tensor


class Contraction(NamedTuple):
    """One of F, G and H: what it computes, from which slots."""

    name: str  # says which index survives
    free: str  # the slot that it computes
    filled: tuple[str, str]  # the slots that it is given


class Rule(NamedTuple):
    """A gradient: ``times * contraction_{d + raises}`` of the full slots."""

    contraction: str
    raises: int = 0
    times: str | None = None


CONTRACTIONS = {
    "F": Contraction("contract_out", free="g", filled=("v", "W")),
    "G": Contraction("contract_weight", free="W", filled=("v", "g")),
    "H": Contraction("contract_in", free="v", filled=("W", "g")),
}

# (contraction, by what) -> the contraction that is its gradient
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
    """Operands of a contraction. ``W`` has two parts, the splines' and the base function's.

    Shapes: ``v [N, I]`` (None is all ones), ``weight [K, I, O]``, ``base_weight [I, O]`` (None
    without a base), ``g [N, O]``. The slot that a contraction leaves free is None.
    """

    v: Tensor | None = None
    weight: Tensor = None  # type: ignore[assignment]  # a contraction reads only what is filled
    base_weight: Tensor | None = None
    g: Tensor = None  # type: ignore[assignment]

    def with_operand(self, slot: str, value: Tensor | tuple[Tensor, Tensor | None]) -> Operands:
        """These operands with ``slot`` replaced."""
        values = {"weight": value[0], "base_weight": value[1]} if slot == "W" else {slot: value}
        return self._replace(**values)

    def without(self, slot: str) -> Operands:
        """These operands with ``slot`` left free."""
        parts = ("weight", "base_weight") if slot == "W" else (slot,)
        return self._replace(**dict.fromkeys(parts))  # type: ignore[arg-type]


def gradients(
    name: str,
    operands: Operands,
    upstream,
    wanted: Collection[str],
    derivative: int,
    contract: Callable[[str, Operands, int], Tensor],
) -> dict:
    """Gradients of contraction ``name``, read off :data:`DERIVATIVES`.

    Args:
        name: ``"F"``, ``"G"`` or ``"H"``.
        operands: its operands.
        upstream: gradient of what it returned; for G the pair of both parts of W.
        wanted: which of ``"x"``, ``"v"``, ``"W"``, ``"g"`` are asked for.
        derivative: its order d.
        contract: computes a contraction, ``contract(name, operands, d)``.

    Returns:
        A gradient (for W a pair) for each name in ``wanted``.
    """
    full = operands.with_operand(CONTRACTIONS[name].free, upstream)
    found = {}
    for by in wanted:
        rule = DERIVATIVES[name, by]
        given = full.without(CONTRACTIONS[rule.contraction].free)
        value = contract(rule.contraction, given, derivative + rule.raises)
        times = getattr(full, rule.times) if rule.times else None
        found[by] = value if times is None else times * value
    return found
