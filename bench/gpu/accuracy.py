"""How wrong a layer is on a GPU: against the plain recursion in float64, from the same rounded numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..suite.cases import Edges
from ..suite.plain import KANLinear as PlainKANLinear
from .place import Place
from .rows import Row
from .settings import BOUNDS, kind

BLOCK_ELEMENTS = 1 << 24  # of float64 splines at a time; autograd holds some thirty such tensors
MOST = 4  # times the bound of the norm is that of the largest deviation


class Material(NamedTuple):
    """What all contestants of a row are given, rounded to the row's dtype, on its device."""

    x: Tensor  # [N, I]
    upstream: Tensor  # [N, O]
    edges: Edges

    @classmethod
    def of(cls, row: Row, place: Place) -> Material:
        """The same each time, random."""
        case, to = row.case, kind(row.dtype, place.device)
        (edges,) = case.edges()
        return cls(case.inputs().to(**to), case.upstream().to(**to), Edges(*(part.to(**to) for part in edges)))


class Deviation(NamedTuple):
    """Relative: of the norms, and the largest over the largest true value."""

    norm: float
    largest: float

    def exceeds(self, bound: float) -> bool:
        """Whether the norm does, or the largest does by far; a NaN does."""
        return not (self.norm <= bound and self.largest <= MOST * bound)


class Truth:
    """A row's output and, for a step, its gradients: ``y``, ``dx``, ``dw [K, I, O]`` and ``db [I, O]``."""

    def __init__(self, row: Row, material: Material, knots: Tensor) -> None:
        self._bound = BOUNDS[row.dtype]
        layer = PlainKANLinear(row.inputs, row.outputs, row.grid, dtype=torch.float64).to(material.x.device)
        layer.load(*material.edges)
        layer.grid.copy_(knots)
        step = max(1, BLOCK_ELEMENTS // (row.inputs * (row.grid + 6)))
        ys, dxs = [], []
        for x, upstream in zip(material.x.split(step), material.upstream.split(step)):
            x = x.double().requires_grad_(row.mode == "step")
            with torch.set_grad_enabled(row.mode == "step"):
                y = layer(x)
            if row.mode == "step":
                y.backward(upstream.double())
                assert x.grad is not None
                dxs.append(x.grad)
            ys.append(y.detach())
        self.values = {"y": torch.cat(ys)}
        if row.mode == "step":
            assert layer.spline_weight.grad is not None
            assert layer.base_weight.grad is not None
            self.values |= {
                "dx": torch.cat(dxs),
                "dw": layer.spline_weight.grad.permute(2, 1, 0),
                "db": layer.base_weight.grad.t(),
            }

    def deviations(self, found: dict[str, Tensor]) -> dict[str, Deviation]:
        """Of those that were found."""
        return {name: deviation(value, self.values[name]) for name, value in found.items()}

    def wrong(self, deviations: dict[str, Deviation]) -> str | None:
        """Which are further off than the row's precision explains, in words."""
        far = [f"{n} by {d.norm:.1e} and {d.largest:.1e}" for n, d in deviations.items() if d.exceeds(self._bound)]
        return f"wrong: {', '.join(far)} (bound {self._bound:g})" if far else None


def deviation(value: Tensor, truth: Tensor) -> Deviation:
    """Of a result from what it should be."""
    off = value.double() - truth
    return Deviation(float(off.norm() / truth.norm()), float(off.abs().max() / truth.abs().max()))
