"""A layer of few edges at many rows: :class:`.by_edges.ByEdges` in blocks that stay in a core's cache.

The first blocks are kept for the way back, which makes the others again: that costs up to half a step more, without a
jump, and bounds the memory whatever the number of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline.piecewise import MAX_DENSE_CELLS, Pieces
from .by_edges import ByEdges
from .cells import MAX_OWN_PRODUCTS, Arena, Array, Room, over

BLOCK_VALUES = 1 << 19  # numbers of a block's largest arrays together
MIN_ROWS = 256  # of a block
KEEP_VALUES = 1 << 22  # a pass of no more is kept whole


def blocks(rows: int, inputs: int, outputs: int, cells: int, order: int) -> tuple[int, int]:
    """The number of blocks of a pass, and how many of them are kept for its backward; from sizes alone."""
    terms = outputs * (order + 1)
    values = rows * inputs * (cells + 2 * terms)
    count = 1 if values <= KEEP_VALUES else -(-values // BLOCK_VALUES)
    if cells <= MAX_DENSE_CELLS:  # so that its products stay NumPy's own, which are the quicker ones
        count = max(count, min(rows // MIN_ROWS, -(-rows * cells * (terms + 2) // MAX_OWN_PRODUCTS)))
    return count, count if values <= KEEP_VALUES else max(1, count * KEEP_VALUES // values)


class _Arena(threading.local):
    """Each thread's."""

    def __init__(self) -> None:
        self.room = Arena()


_arena = _Arena()


class ByBlocks:
    """One pass, and what its backward needs; the arguments are :class:`.by_edges.ByEdges`'.

    Args:
        count: number of blocks.
        kept: how many of them are kept for the backward.
        spread: whether :meth:`spread` will be asked for.
    """

    def __init__(
        self,
        x: Array,
        tables: Pieces,
        weight: Array,
        base_weight: Array | None,
        basis: Basis,
        sloped: bool,
        count: int,
        kept: int,
        spread: bool,
    ) -> None:
        import numpy as np

        self.x, self.given, self.sloped = x, (tables, weight, base_weight, basis), sloped
        self.parts = [slice(x.shape[1] * n // count, x.shape[1] * (n + 1) // count) for n in range(count)]
        self.y = np.empty((weight.shape[2], x.shape[1]), x.dtype)
        self.edges_moments, self.inputs_moments = Moments(), Moments()
        self.kept: list[ByEdges] = []
        for place, part in enumerate(self.parts):
            block_pass = self._pass(part, sloped, None) if place < kept else self._pass(part, False, _arena.room)
            if place < kept:
                self.kept.append(block_pass)
            self.y[:, part] = block_pass.y
            if spread:
                self.edges_moments.add(block_pass.values)
                self.inputs_moments.add(block_pass.x)

    def _pass(self, part: slice, sloped: bool, room: Room) -> ByEdges:
        return ByEdges(self.x[:, part].copy(), *self.given, sloped=sloped, room=room)

    def _blocks(self) -> Iterator[tuple[slice, ByEdges]]:
        """Kept ones first, and the others made again."""
        for place, part in enumerate(self.parts):
            again = place >= len(self.kept)
            yield part, self._pass(part, self.sloped, _arena.room) if again else self.kept[place]

    def spread(self) -> tuple[Array, Array]:
        """Standard deviations over the rows, of the edges ``[I, O]`` and of the inputs ``[I]``."""
        return self.edges_moments.std(), self.inputs_moments.std()

    def vjp(
        self,
        g: Array,
        by_edges: Array | None,
        by_inputs: Array | None,
        by_x: bool,
        by_weight: bool,
        by_base: bool,
    ) -> tuple[Array | None, Array | None, Array | None]:
        """As :meth:`.by_edges.ByEdges.vjp`."""
        import numpy as np

        rows = self.x.shape[1]
        edges_share = None if by_edges is None else over(by_edges / (rows - 1), self.edges_moments.std())
        inputs_share = None if by_inputs is None else over(by_inputs / (rows - 1), self.inputs_moments.std())
        dx = np.empty_like(self.x) if by_x else None
        dw: Array | None = None
        db: Array | None = None
        for part, block_pass in self._blocks():
            if edges_share is not None:
                block_pass.centred_edges = self.edges_moments.centred(block_pass.values)
            if inputs_share is not None:
                block_pass.centred_inputs = self.inputs_moments.centred(block_pass.x)
            slope, *found = block_pass.vjp_shares(g[:, part], edges_share, inputs_share, by_x, by_weight, by_base)
            if dx is not None:
                dx[:, part] = slope
            dw, db = (_sum(total, each) for total, each in zip((dw, db), found))
        return dx, dw, db

    def vjp_in_torch(self, g: Tensor, by_x: bool, by_weight: bool, by_base: bool) -> tuple[Tensor | None, ...]:
        """:meth:`vjp` of y's gradient in PyTorch operations, for callers that batch or transform it."""
        slopes: list[Tensor] = []
        dw: Tensor | None = None
        db: Tensor | None = None
        for part, block_pass in self._blocks():
            slope, *found = block_pass.vjp_in_torch(g[:, part], by_x, by_weight, by_base)
            if slope is not None:
                slopes.append(slope)
            dw, db = (_sum(total, each) for total, each in zip((dw, db), found))
        return torch.cat(slopes, 1) if by_x else None, dw, db


def _sum(total: Any, each: Any) -> Any:
    return each if total is None else total if each is None else total + each


class Moments:
    """Mean and squares of columns that come in blocks of rows, joined as they come (Chan, Golub and LeVeque, Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).

    Values are taken less those of the first row, so that exactly 0 is left of what does not vary.
    """

    def __init__(self) -> None:
        self.rows = 0

    def add(self, values: Array) -> None:
        """One block, ``[..., N]``."""
        import numpy as np

        if self.rows == 0:
            self.first = values[..., :1].copy()
            self.mean = self.squares = np.zeros(values.shape[:-1], np.float64)
        apart = values - self.first
        rows = apart.shape[-1]
        mean = np.add.reduce(apart, -1, dtype=np.float64) / rows
        apart -= mean[..., None].astype(apart.dtype)
        joined = self.rows + rows
        step = mean - self.mean
        self.squares = self.squares + np.einsum("...n,...n->...", apart, apart) + step**2 * (self.rows * rows / joined)
        self.mean = self.mean + step * (rows / joined)
        self.rows = joined

    def std(self) -> Array:
        """Standard deviation of each column, in the values' dtype."""
        import numpy as np

        return np.sqrt(self.squares / (self.rows - 1)).astype(self.first.dtype)

    def centred(self, values: Array) -> Array:
        """Values less their mean."""
        apart = values - self.first
        apart -= self.mean[..., None].astype(apart.dtype)
        return apart
