"""Errors of a layer on a GPU against the float64 oracle, from the same rounded numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastkan_kernels import basis_of
from tests.support.oracle import Example, exact_with_sizes

from ..suite.cases import Edges
from .place import Place
from .rows import Row
from .settings import BOUNDS, kind

MAX_RATIO = 4  # the bound of the largest deviation in units of the bound of the norm


class Material(NamedTuple):
    """Input, upstream gradient and weights of all contestants of a row, in the row's dtype and on its device."""

    x: Tensor  # [N, I]
    upstream: Tensor  # [N, O]
    edges: Edges

    @classmethod
    def of(cls, row: Row, place: Place) -> Material:
        """Return the same random numbers each time."""
        case, to = row.case, kind(row.dtype, place.device)
        (edges,) = case.edges()
        return cls(case.inputs().to(**to), case.upstream().to(**to), Edges(*(part.to(**to) for part in edges)))


class Deviation(NamedTuple):
    """Relative errors: norm by norm, and the largest error by the largest true value."""

    norm: float
    largest: float

    def exceeds(self, bound: float) -> bool:
        """Whether the norm exceeds ``bound``, or the largest error ``MAX_RATIO`` times it; a NaN does."""
        return not (self.norm <= bound and self.largest <= MAX_RATIO * bound)


class Truth:
    """A row's output and, for a step, its gradients: ``y``, ``dx``, ``dw [K, I, O]`` and ``db [I, O]``."""

    def __init__(self, row: Row, material: Material, knots: Tensor) -> None:
        self._bound = BOUNDS[row.dtype]
        o = Example(material.x, knots, None, *material.edges, material.upstream)
        asked = {("y",): ("F", 0)} | ({("dx",): ("H", 1), ("dw", "db"): ("G", 0)} if row.mode == "step" else {})
        self.values: dict[str, Tensor] = {}
        for names, (contraction, derivative) in asked.items():
            found = exact_with_sizes(contraction, o, basis_of(knots, row.case.order), derivative)
            self.values.update((name, part.value) for name, part in zip(names, found, strict=True))

    def deviations(self, found: dict[str, Tensor]) -> dict[str, Deviation]:
        """Deviations of the results that a contestant has."""
        return {name: deviation(value, self.values[name]) for name, value in found.items()}

    def wrong(self, deviations: dict[str, Deviation]) -> str | None:
        """A message naming the results that are further off than the row's precision explains, or None."""
        far = [f"{n} by {d.norm:.1e} and {d.largest:.1e}" for n, d in deviations.items() if d.exceeds(self._bound)]
        return f"wrong: {', '.join(far)} (bound {self._bound:g})" if far else None


def deviation(value: Tensor, truth: Tensor) -> Deviation:
    """Deviation of a result from its true value."""
    off = value.double() - truth
    return Deviation(float(off.norm() / truth.norm()), float(off.abs().max() / truth.abs().max()))
