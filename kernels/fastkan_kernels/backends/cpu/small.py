"""F, G and H of a layer so small that calls cost more than numbers, with what more of them will need kept.

F_0 and its backward go two ways: by the edges' polynomials (:mod:`.by_edges`), and, where no gradient by x is wanted,
by the features (:mod:`.by_features`), which are kept for rows that come again. What a graph of derivatives asks for
goes by what is kept with it of its rows (:mod:`.at_rows`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline.piecewise import Pieces, pieces_of
from ...trilinear import CONTRACTIONS, Operands, gradients
from ..modes import has_values, needs_graph
from . import selection as choice
from .at_rows import AtRows
from .by_blocks import ByBlocks, blocks
from .by_edges import ByEdges
from .by_features import SHARED, ByFeatures, KeptFeatures
from .cells import Array, Room

MAX_KNOTS = 1 << 14  # whose tables are at most 36 times as many numbers
SHARING = 4  # times that contractions in a graph of derivatives save by what they share
MAX_KEPT_AT_ROWS = 1 << 21  # numbers that a graph of derivatives keeps for each derivative

Pass = ByEdges | ByFeatures | ByBlocks


def serves(x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int) -> bool:
    """Whether this is for a forward like that."""
    return (
        derivative == 0
        and slots.v is None
        and x.dtype == knots.dtype == slots.weight.dtype
        and pays(len(x), [(knots, slots.weight, basis)], None if needs_graph(x) else SHARED)
        and has_values(x)
    )


def pays(rows: int, layers: Sequence[tuple[Tensor, Tensor, Basis]], features: KeptFeatures | None) -> bool:
    """Whether layers one after another, each of knots, weight and basis, are the quicker for it at so many rows.

    Args:
        features: as in :func:`run`, or None where a gradient by x may be wanted, to which they don't lead.
    """
    own = general = 0.0
    for place, (knots, weight, basis) in enumerate(layers):
        count, inputs, outputs = weight.shape
        if not is_of_kind(rows, knots, outputs, basis, weight.dtype):
            return False
        sizes = rows, inputs, outputs, count
        general += choice.step_cost(*sizes, basis)
        if place == 0 and features is not None and rows * inputs * (count + 1) <= features.most:
            own += choice.kept_cost(*sizes, basis, again=features is not SHARED)
        else:
            own += choice.piecewise_cost(*sizes, basis)
    return own < general


def is_of_kind(rows: int, knots: Tensor, outputs: int, basis: Basis, dtype: torch.dtype) -> bool:
    """Whether there is something to compute, in a dtype that NumPy has, with tables of a moderate size."""
    if knots.numel() > MAX_KNOTS:
        return False
    return rows * knots.numel() * outputs > 0 and basis.matmul_dtype is None and dtype in (torch.float32, torch.float64)


def run(
    x: Array,
    tables: Pieces,
    weight: Array,
    base_weight: Array | None,
    basis: Basis,
    by_x: bool,
    features: KeptFeatures | None,
    spread: bool = False,
    room: Room = None,
) -> Pass:
    """A layer's pass.

    Args:
        x: ``[I, N]``, contiguous; nobody may write into it afterwards.
        by_x: whether a gradient by x may be wanted.
        features: what is kept of rows that may come again, or None.
        spread: whether the edges' standard deviations will be asked for.
        room: where the pass gets its memory, if it is not to be outlived by another one of the same room.
    """
    if features is not None and not by_x and x.size * (tables.count + 1) <= features.most:
        return ByFeatures(x, tables, weight, base_weight, basis, features)
    inputs, outputs = weight.shape[1:]
    count, kept = blocks(x.shape[1], inputs, outputs, tables.count + basis.order, basis.order)
    if count > 1:
        return ByBlocks(x, tables, weight, base_weight, basis, by_x, count, kept, spread)
    return ByEdges(x, tables, weight, base_weight, basis, by_x, room)


def quiet() -> Any:
    """NumPy says nothing of numbers that are none."""
    import numpy as np

    return np.errstate(all="ignore")


def forward(kept: dict, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, by_x: bool) -> tuple[Tensor, Pass]:
    """F_0(x, W), and what its backward needs.

    Args:
        kept: where it leaves what :func:`contract` may need.
    """
    weight, base_weight = array(slots.weight), None if slots.base_weight is None else array(slots.base_weight)
    with quiet():
        taken = run(columns(x), pieces_of(knots, basis), weight, base_weight, basis, by_x, SHARED)
        if isinstance(taken, ByEdges):
            kept["pass"] = taken, weight.tobytes()
    return torch.from_numpy(taken.y.T.copy()), taken


def backward(kept: Pass, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x, weight and base_weight where they are wanted, else None."""
    if not has_values(g):  # of a batch of gradients, or with tangents
        dx, dw, db = kept.vjp_in_torch(g.t(), by_x, by_weight, by_base)
        return None if dx is None else dx.t(), dw, db
    with quiet():
        dx, dw, db = kept.vjp(array(g).T, None, None, by_x, by_weight, by_base)
    dx = None if dx is None else dx.T.copy()
    return tuple(None if each is None else torch.from_numpy(each) for each in (dx, dw, db))


def contract(name: str, kept: dict, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int) -> Any:
    """F, G or H; None where this is not for a layer like that.

    Args:
        kept: whatever contractions of the same x, knots and basis have left there.
    """
    at = _at_rows(kept, x, knots, slots, basis, derivative)
    if at is None:
        return None
    with quiet():
        value = at.contract(name, _arrays(slots), derivative)
    return _tensors(value)


def vjp(
    name: str,
    kept: dict,
    x: Tensor,
    knots: Tensor,
    slots: Operands,
    upstream: Any,
    wanted: Collection[str],
    basis: Basis,
    derivative: int,
) -> dict[str, Any] | None:
    """:func:`..trilinear.gradients` of a contraction as numbers, without a graph; else as :func:`contract`."""
    free = CONTRACTIONS[name].free
    full = slots.with_operand(free, upstream)
    at = _at_rows(kept, x, knots, full, basis, derivative, derivative + 1)
    if at is None:
        return None
    arrays = _arrays(full)
    upstream = arrays[1:3] if free == "W" else getattr(arrays, free)
    with quiet():
        found = gradients(name, arrays, upstream, wanted, derivative, at.contract)
    return {by: _tensors(value) for by, value in found.items()}


def _at_rows(kept: dict, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, *derivatives: int) -> AtRows | None:
    """What was kept of these rows, or is now; None where it can't serve."""
    given = [x, *(each for each in slots if each is not None)]
    if not (all(each.dtype == knots.dtype for each in given) and has_values(*given)):
        return None
    at: AtRows | None = kept.get("rows")
    if at is None and "pass" in kept:
        taken, weight = kept["pass"]
        at = kept["rows"] = AtRows(taken.x, pieces_of(knots, basis), basis, taken.rows, weight)
    if at is None:
        outputs = (slots.g if slots.weight is None else slots.weight).shape[-1]
        if not (
            is_of_kind(len(x), knots, outputs, basis, x.dtype) and _keeps(len(x), knots, outputs, basis, derivatives)
        ):
            return None
        with quiet():
            at = kept["rows"] = AtRows(columns(x), pieces_of(knots, basis), basis)
    highest = at.tables.highest
    return at if all(d <= highest or d > basis.order for d in derivatives) else None


def _keeps(rows: int, knots: Tensor, outputs: int, basis: Basis, derivatives: Sequence[int]) -> bool:
    """Whether what is kept of the rows pays, and fits into memory; in graphs of derivatives it serves many
    contractions."""
    inputs, count = len(knots), basis.splines_of(knots)
    if rows * inputs * (knots.shape[1] + outputs * (basis.order + 1)) > MAX_KEPT_AT_ROWS:
        return False
    own = choice.piecewise_cost(rows, inputs, outputs, count, basis) / (SHARING if derivatives[0] > 0 else 1)
    return own < choice.step_cost(rows, inputs, outputs, count, basis)


def _arrays(slots: Operands) -> Any:
    """As :class:`.at_rows.AtRows` takes them."""
    v, weight, base_weight, g = slots
    return Operands(
        None if v is None else columns(v),
        None if weight is None else array(weight),
        None if base_weight is None else array(base_weight),
        None if g is None else columns(g),
    )


def _tensors(value: Any) -> Any:
    """What a contraction gives; G's two parts."""
    if isinstance(value, tuple):
        splines, base = value
        return torch.from_numpy(splines), None if base is None else torch.from_numpy(base)
    return torch.from_numpy(value.T.copy())


def columns(x: Tensor) -> Array:
    """``[N, I]`` as a contiguous ``[I, N]`` of its own."""
    return array(x).T.copy()


def array(tensor: Tensor) -> Array:
    """Its values; of a negated or conjugated view too."""
    return tensor.numpy(force=True)
