"""What a contraction must give, in float64 by definition, and how far rounding may lead from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import fastkan_kernels
from fastkan_kernels import Basis
from fastkan_kernels.bspline.cox_de_boor import features
from fastkan_kernels.trilinear import CONTRACTIONS, Operands

BLOCK_ELEMENTS = 1 << 25  # of float64 features made at a time

# Relative, of one product: both operands rounded, or split into three, and the sum's own rounding. The
# last one is that of the result, for what is stored in two bytes.
UNIT = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-10,
    "autocast": 2.0**-7,  # to bfloat16, of what comes in float32
    "tf32": 2.0**-9,
    "highest": 2.0**-16,
}
STORED = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-22, torch.float64: 2.0**-50}
CELL = 2.0**-22  # of float32, by which t is off for each cell that is counted, and psi^(d) in units of a cell


class Example(NamedTuple):
    """Of every contraction; ``v`` and ``base_weight`` may be None."""

    x: Tensor
    knots: Tensor
    v: Tensor | None
    weight: Tensor
    base_weight: Tensor | None
    g: Tensor

    def slots(self, name: str) -> Operands:
        """Those that contraction ``name`` fills."""
        return Operands(self.v, self.weight, self.base_weight, self.g).without(CONTRACTIONS[name].free)

    def map(self, function) -> Example:
        """``function`` of each tensor."""
        return Example(*(None if t is None else function(t) for t in self))  # type: ignore[arg-type]


class Exact(NamedTuple):
    """A result, and for each of its numbers the sum of its terms' sizes, and that sum with 1 for every psi."""

    value: Tensor
    size: Tensor
    ones: Tensor

    def budget(self, product: str, stored: torch.dtype, cells: int, rate: float, derivative: int) -> Tensor:
        """How far off each number may be.

        Args:
            product: a key of ``UNIT``.
            stored: the result's dtype.
            cells: how many there are.
            rate: the most cells per unit length.
        """
        psi_error = CELL * cells * rate**derivative
        return (UNIT[product] + STORED[stored]) * self.size + psi_error * self.ones


def compute(name: str, o: Example, basis: Basis, derivative: int) -> tuple[Tensor, ...]:
    """F, G or H by the public functions: G's two parts (one without a base function), else one."""
    if name == "F":
        y = fastkan_kernels.contract_out(o.x, o.knots, o.weight, o.base_weight, o.v, basis=basis, derivative=derivative)
        return (y,)
    if name == "G":
        splines, base = fastkan_kernels.contract_weight(o.x, o.knots, o.g, o.v, basis=basis, derivative=derivative)
        return (splines,) if base is None else (splines, base)
    h = fastkan_kernels.contract_in(o.x, o.knots, o.weight, o.base_weight, o.g, basis=basis, derivative=derivative)
    return (h,)


def exact(name: str, o: Example, basis: Basis, derivative: int) -> tuple[Exact, ...]:
    """What :func:`compute` must give, on the operands' device, in blocks of rows."""
    wide = o.map(lambda tensor: tensor.double())
    plain = basis._replace(matmul_dtype=None)
    count = plain.splines_of(o.knots)
    step = max(1, BLOCK_ELEMENTS // max(1, count * o.x.shape[1]))
    blocks = []
    for start in range(0, max(1, len(o.x)), step):
        rows = slice(start, start + step)
        part = wide._replace(x=wide.x[rows], g=wide.g[rows], v=None if wide.v is None else wide.v[rows])
        psi, base = features(part.x, part.knots, plain, derivative)
        terms = part if name != "H" else part._replace(v=None)
        blocks.append(list(_parts(name, terms, psi, base)))
    if name == "G":
        return tuple(Exact(*(torch.stack(kind).sum(0) for kind in zip(*parts, strict=True))) for parts in zip(*blocks))
    return tuple(Exact(*(torch.cat(kind) for kind in zip(*parts, strict=True))) for parts in zip(*blocks))


def _parts(name: str, o: Example, psi: Tensor, base: Tensor | None) -> Iterator[Exact]:
    """Both parts of G, or the whole of F or H."""
    absolute = o.map(lambda tensor: tensor.abs())
    triples = [(o, psi), (absolute, psi.abs()), (absolute, torch.ones_like(psi))]
    splines = [_splines(name, operands, p) for operands, p in triples]
    if base is None or (name != "G" and o.base_weight is None):
        yield Exact(*splines)
        return
    # silu and its derivatives are made to a rounding of their size or of 1
    pairs = [(o, base), (absolute, base.abs()), (absolute, torch.ones_like(base))]
    bases = [_base(name, operands, b) for operands, b in pairs]
    if name == "G":
        yield Exact(*splines)
        yield Exact(*bases)
    else:
        yield Exact(*(s + b for s, b in zip(splines, bases)))


def _splines(name: str, o: Example, psi: Tensor) -> Tensor:
    n, count, inputs = psi.shape
    if o.v is not None:
        psi = psi * o.v.unsqueeze(1)
    flat, weight = psi.reshape(n, count * inputs), o.weight.flatten(0, 1)
    if name == "F":
        return flat @ weight
    if name == "G":
        return (flat.t() @ o.g).view(count, inputs, -1)
    return (psi * (o.g @ weight.t()).view(n, count, inputs)).sum(1)


def _base(name: str, o: Example, base: Tensor) -> Tensor:
    if o.v is not None:
        base = base * o.v
    if name == "G":
        return base.t() @ o.g
    assert o.base_weight is not None
    return base @ o.base_weight if name == "F" else base * (o.g @ o.base_weight.t())
