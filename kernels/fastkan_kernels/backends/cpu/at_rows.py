"""F_d, G_d and H_d of a small layer, of every d, at the same rows.

A PINN asks for some twenty contractions of one batch in one graph. What they share is made once: where the rows lie,
the powers and base functions that each derivative needs, and what the edges of the last weights give at each row,

    E_d[i,o,n] = sum_b psi_b^(d)(x[n,i]) W[b,i,o].

Of that F is the sum over i of v E, and H the sum over o of g E. For few outputs G puts powers in the place of splines,
sums them over the rows of each cell, and multiplies the sums by the table that makes splines of powers
(:mod:`.pieces`); for more it is the product with the splines, which are kept as well.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ...basis import Basis
from ...bspline.cox_de_boor import base_function, check_base_derivative, silu_derivative
from ...bspline.piecewise import MAX_DENSE_CELLS, Pieces
from ...trilinear import Operands
from .cells import Array, Rows, base_at, look_up, meet, product, terms_at, values_at

FEATURES = 2  # powers of all outputs for each spline, above which splines are made for G after all


class AtRows:
    """Of rows ``x [I, N]``.

    Args:
        rows: where they lie, if it is known; with the polynomials of ``weight``.
        weight: bytes of a ``[K, I, O]``.
    """

    def __init__(
        self, x: Array, tables: Pieces, basis: Basis, rows: Rows | None = None, weight: bytes | None = None
    ) -> None:
        self.x, self.tables, self.basis = x, tables, basis
        self.rows = look_up(x, tables, None, basis.order) if rows is None else rows
        self._terms: dict[int, Array] = {}
        self._bases: dict[int, Array] = {}
        self._splines: dict[int, Array] = {}  # [I, K, N]
        # the last weights' bytes, the rows with their polynomials, and E_d: replaced as one, as other threads may look
        self._met: tuple[bytes, Rows, dict[Any, Array]] | None
        self._met = None if weight is None else (weight, self.rows, {})

    def contract(self, name: str, slots: Operands, derivative: int) -> Any:
        """F_d ``[O, N]``, G_d in two parts ``[K, I, O]`` and ``[I, O]``, or H_d ``[I, N]``.

        Args:
            slots: arrays, v ``[I, N]`` and g ``[O, N]``.
        """
        import numpy as np

        v, weight, base_weight, g = slots
        if name == "G":
            return self._weights(g, v, derivative)
        base = self._base_of(derivative)
        if name == "H" and base is not None and base_weight is not None and not self.rows.finite:
            # of edges at an infinity some would be inf and some -inf
            return np.einsum("ion,on->in", self._edges_of(weight, None, derivative), g) + base * product(base_weight, g)
        edges = self._edges_of(weight, base_weight, derivative)
        if name == "H":
            return np.einsum("ion,on->in", edges, g)
        return np.add.reduce(edges, 0) if v is None else np.einsum("ion,in->on", edges, v)

    def _weights(self, g: Array, v: Array | None, derivative: int) -> tuple[Array, Array | None]:
        import numpy as np

        inputs, rows = self.x.shape
        outputs, order, count = len(g), self.basis.order, self.tables.count
        upstream = g[None] if v is None else v[:, None] * g  # [I or 1, O, N]
        if derivative > order:
            by_input = (self._nothing()[:, None] * upstream).sum(2)
            splines = np.repeat(by_input[None], count, 0)
        elif outputs * (order + 1) > FEATURES * count and count <= MAX_DENSE_CELLS:
            by_input = product(self._splines_of(derivative), upstream.transpose(0, 2, 1))
            splines = np.ascontiguousarray(by_input.transpose(1, 0, 2))
        else:
            raised = self._terms_of(derivative).transpose(1, 0, 2)[:, None] * upstream[:, :, None]
            sums = product(raised.reshape(inputs, -1, rows), self.rows.inside.transpose(0, 2, 1))
            sums = sums.reshape(inputs, outputs, -1)  # [I, O, (k + 1 - d) C]
            splines = self.tables.splines(sums)
        base = self._base_of(derivative)
        return splines, None if base is None else product(upstream, base[:, :, None]).reshape(inputs, outputs)

    def _edges_of(self, weight: Array, base_weight: Array | None, derivative: int) -> Array:
        """E_d. Weights are recognised by their values: a table's W, and whatever else takes its place."""
        import numpy as np

        own, met = weight.tobytes(), self._met
        if met is None or met[0] != own:
            met = self._met = own, self._meet(weight), {}
        _, rows, edges = met
        key = derivative, None if base_weight is None else base_weight.tobytes()
        found = edges.get(key)
        if found is None:
            if derivative > self.basis.order:
                found = np.repeat(self._nothing()[:, None], weight.shape[2], 1)
            else:
                found = values_at(rows, self._terms_of(derivative))
            base = self._base_of(derivative)
            if base is not None and base_weight is not None:
                found += base[:, None] * base_weight[:, :, None]
            edges[key] = found
        return found

    def _meet(self, weight: Array) -> Rows:
        return meet(self.rows, self.tables.polynomials(weight))

    def _terms_of(self, derivative: int) -> Array:
        if derivative not in self._terms:
            self._terms[derivative] = terms_at(self.rows, derivative)
        return self._terms[derivative]

    def _splines_of(self, derivative: int) -> Array:
        if derivative not in self._splines:
            self._splines[derivative] = values_at(self._met_by_splines, self._terms_of(derivative))
        return self._splines[derivative]

    @cached_property
    def _met_by_splines(self) -> Rows:
        table = self.tables.table
        return meet(self.rows, table.reshape(len(table), -1, self.tables.cells.shape[2]))

    def _base_of(self, derivative: int) -> Array:
        """psi^(d) of the base function, ``[I, N]``; None without one."""
        if derivative not in self._bases:
            base = self.basis.base
            check_base_derivative(base, derivative)
            if derivative == 0 or base == "none":
                self._bases[derivative] = base_at(self.x, self.rows, base, sloped=False)[0]
            elif base == "silu":
                self._bases[derivative] = silu_derivative(self.rows.within, *self._logistics, derivative)
            else:
                self._bases[derivative] = base_function(torch.from_numpy(self.x), base, derivative).numpy()
        return self._bases[derivative]

    @cached_property
    def _logistics(self) -> tuple[Array, Array]:
        """At x and at -x."""
        x = torch.from_numpy(self.rows.within)
        return x.sigmoid().numpy(), (-x).sigmoid().numpy()

    def _nothing(self) -> Array:
        """A spline's derivative above its order: 0, and NaN at NaN."""
        import numpy as np

        return np.where(np.isnan(self.x), self.x, self.x.dtype.type(0))
