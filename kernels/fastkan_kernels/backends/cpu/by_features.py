"""A small layer by its features, which are kept for rows that come again.

The first layer meets the same batch at every evaluation of an L-BFGS step, and of most fits of a small network. Its
features depend on the rows and the knots alone, so they are made once; then a layer is one product, and so is its
gradient. Rows are recognised by their values: nobody is asked who may have written into them.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline.piecewise import MAX_DENSE_CELLS, Pieces
from .cells import Array, Rows, base_at, deviation, look_up, over, product, values_at

MAX_FEATURES = 1 << 19  # numbers, of rows that nobody says will come again
MAX_KEPT = 4  # batches: of training and test, for two models


class Features:
    """Of some rows.

    Args:
        x: ``[I, N]``.

    Attributes:
        values: ``[I, P, N]``, P splines and, last, the base function if there is one.
    """

    def __init__(self, x: Array, tables: Pieces, basis: Basis) -> None:
        import numpy as np

        inputs, active, terms, cells = tables.local.shape
        if cells <= MAX_DENSE_CELLS:
            rows = look_up(x, tables, tables.table.reshape(inputs, -1, cells), basis.order)
            values = values_at(rows)
        else:
            numbers = np.broadcast_to(np.arange(cells, dtype=x.dtype), (inputs, terms, cells))  # of terms, the first's
            local = np.concatenate([tables.local.reshape(inputs, -1, cells), numbers], 1)
            rows = look_up(x, tables, local, basis.order)
            values = self._placed(rows, active, tables.count)
        base, _ = base_at(x, rows, basis.base, sloped=False)
        self.values = values if base is None else np.concatenate([values, base[:, None]], 1)
        self._x = x

    @staticmethod
    def _placed(rows: Rows, active: int, count: int) -> Array:
        """The active splines' values in their places among all, ``[I, K, N]``."""
        import numpy as np

        order, (inputs, _, _, number) = active - 1, rows.own.shape
        cell = rows.own[:, active, 0].astype(np.int64)  # 0 outside of the grid, where the values are 0
        padded = np.zeros((inputs, count + 2 * order, number), rows.own.dtype)
        at = cell[:, None] + np.arange(active)[:, None]
        np.put_along_axis(padded, at, values_at(rows._replace(own=rows.own[:, :active])), 1)
        values = padded[:, order : order + count]
        return values if rows.finite else np.where(np.isnan(rows.within)[:, None], np.nan, values)

    @cached_property
    def inputs(self) -> Array:
        """Standard deviations of the inputs, ``[I]``."""
        return deviation(self._x.copy())[0]

    @cached_property
    def covariance(self) -> Array:
        """Over the rows, ``[I, P, P]``, in float64: an edge that hardly varies is a small difference of its terms."""
        import numpy as np

        _, centred = deviation(self.values.astype(np.float64))
        return product(centred, centred.transpose(0, 2, 1)) / (centred.shape[2] - 1)


class KeptFeatures:
    """The features of the rows that came last.

    Args:
        most: numbers that the features of some rows may be, to be kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: list[tuple[Pieces, str, bytes, Features]] = []  # the last used first

    def find(self, x: Array, tables: Pieces, basis: Basis) -> Features:
        """Those kept, or new ones. ``x [I, N]`` must be contiguous, and nobody may write into it afterwards."""
        own = x.tobytes()
        kept = self.kept
        for place, (of_tables, base, of_rows, found) in enumerate(kept):
            same_kind = found.values.shape[::2] == x.shape and found.values.dtype == x.dtype
            if of_tables is tables and base == basis.base and same_kind and of_rows == own:
                if place:
                    self.kept = [kept[place], *kept[:place], *kept[place + 1 :]]
                return found
        found = Features(x, tables, basis)
        self.kept = [(tables, basis.base, own, found), *kept[: MAX_KEPT - 1]]
        return found


SHARED = KeptFeatures(MAX_FEATURES)  # by whoever has none of its own


class ByFeatures:
    """One pass, and what its backward needs; the arguments are :class:`.by_edges.ByEdges`'."""

    def __init__(
        self, x: Array, tables: Pieces, weight: Array, base_weight: Array | None, basis: Basis, kept: KeptFeatures
    ) -> None:
        import numpy as np

        self.features = kept.find(x, tables, basis)
        self.joined = weight if base_weight is None else np.concatenate([weight, base_weight[None]])  # [P, I, O]
        self.splines = len(weight)
        psi = self.features.values
        self.y = product(self.joined.transpose(2, 1, 0).reshape(-1, psi.shape[0] * psi.shape[1]), self._flat())

    def _flat(self) -> Array:
        return self.features.values.reshape(-1, self.features.values.shape[2])

    def spread(self) -> tuple[Array, Array]:
        """Standard deviations over the rows, of the edges ``[I, O]`` and of the inputs ``[I]``."""
        import numpy as np

        weight = self.joined.transpose(1, 2, 0).astype(np.float64)  # [I, O, P]
        self.by_covariance = weight @ self.features.covariance
        variance = np.einsum("iop,iop->io", self.by_covariance, weight)
        self.edges = np.sqrt(np.maximum(variance, 0))
        return self.edges.astype(self.joined.dtype), self.features.inputs

    def vjp(
        self, g: Array, by_edges: Array | None, by_inputs: object, by_x: bool, by_weight: bool, by_base: bool
    ) -> tuple[None, Array | None, Array | None]:
        """As :meth:`.by_edges.ByEdges.vjp`, but by x: who wants that goes the other way."""
        if not (by_weight or by_base):
            return None, None, None
        inputs, count, _ = self.features.values.shape
        both = product(self._flat(), g.T).reshape(inputs, count, -1).transpose(1, 0, 2)
        if by_edges is not None:
            pulled = self.by_covariance * over(by_edges, self.edges)[..., None]
            both = both + pulled.transpose(2, 0, 1).astype(both.dtype)
        db = both[self.splines].copy() if by_base and count > self.splines else None
        return None, both[: self.splines].copy() if by_weight else None, db

    def vjp_in_torch(self, g: Tensor, by_x: bool, by_weight: bool, by_base: bool) -> tuple[Tensor | None, ...]:
        """:meth:`vjp` of y's gradient, for those who look on."""
        both = torch.einsum("ipn,on->pio", torch.from_numpy(self.features.values), g)
        splines, base = both[: self.splines], both[self.splines :]
        return None, splines if by_weight else None, base[0] if by_base and len(base) else None
