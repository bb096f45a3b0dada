"""A small layer by the polynomials of its edges.

On a cell every edge function is a polynomial, whose coefficients are a small product of the weights and a table that
depends on the knots alone (:mod:`.pieces`). So a row costs numbers for each edge instead of for each feature, and the
slope comes from the same coefficients. It goes for any knots alike. What an edge gives at each row is there by itself,
so its spread is cheap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline.piecewise import Pieces
from .cells import Array, Room, base_at, deviation, look_up, over, product, slopes_at, values_at


class ByEdges:
    """One pass, and what its backward needs.

    Args:
        x: ``[I, N]``.
        weight, base_weight: ``[K, I, O]`` and ``[I, O]`` or None.
        sloped: whether a gradient by x may be wanted.
        room: where it gets its memory.

    Attributes:
        y: ``[O, N]``.
    """

    def __init__(
        self,
        x: Array,
        tables: Pieces,
        weight: Array,
        base_weight: Array | None,
        basis: Basis,
        sloped: bool,
        room: Room = None,
    ) -> None:
        import numpy as np

        self.x, self.tables, self.room = x, tables, room
        self.rows = look_up(x, tables, tables.polynomials(weight), basis.order, room)
        self.values = values_at(self.rows, room=room)
        self.base, self.base_slope = base_at(x, self.rows, basis.base, sloped)
        self.base_weight = None if base_weight is None else base_weight[:, :, None]
        if self.base is not None:
            self.values += self.base[:, None] * self.base_weight
        self.y = np.add.reduce(self.values, 0)

    def spread(self) -> tuple[Array, Array]:
        """Standard deviations over the rows, of the edges ``[I, O]`` and of the inputs ``[I]``."""
        self.edges, self.centred_edges = deviation(self.values)
        self.inputs, self.centred_inputs = deviation(self.x.copy())
        return self.edges, self.inputs

    def vjp(
        self,
        g: Array,
        by_edges: Array | None,
        by_inputs: Array | None,
        by_x: bool,
        by_weight: bool,
        by_base: bool,
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Gradients by x ``[I, N]``, weight and base_weight where they are wanted, else None.

        Args:
            g: of y, ``[O, N]``.
            by_edges, by_inputs: of the spreads.
        """
        freedom = self.x.shape[1] - 1
        edges_share = None if by_edges is None else over(by_edges / freedom, self.edges)
        inputs_share = None if by_inputs is None else over(by_inputs / freedom, self.inputs)
        return self.vjp_shares(g, edges_share, inputs_share, by_x, by_weight, by_base)

    def vjp_shares(
        self,
        g: Array,
        edges_share: Array | None,
        inputs_share: Array | None,
        by_x: bool,
        by_weight: bool,
        by_base: bool,
    ) -> tuple[Array | None, Array | None, Array | None]:
        """:meth:`vjp` with what the spreads' gradients come to for each centred value, ``[I, O]`` and ``[I]``."""
        import numpy as np

        inside, _, powers, own = self.rows[:4]
        inputs, outputs, _, rows = own.shape
        upstream = g[None]
        if edges_share is not None:
            upstream = upstream + self.centred_edges * edges_share[..., None]
        dx = dw = db = None
        if by_weight:
            raised = self.room and self.room("raised", (inputs, outputs, len(powers), rows), powers.dtype)
            raised = np.multiply(powers.transpose(1, 0, 2)[:, None], upstream[:, :, None], out=raised)
            polynomials = product(raised.reshape(inputs, -1, rows), inside.transpose(0, 2, 1))
            polynomials = polynomials.reshape(inputs, outputs, -1)
            dw = self.tables.splines(polynomials)
        if by_base and self.base is not None:
            db = product(upstream, self.base[:, :, None]).reshape(inputs, outputs)
        if by_x:
            slope = slopes_at(self.rows, self.room)
            if self.base is not None:
                slope += self.base_weight if self.base_slope is None else self.base_slope[:, None] * self.base_weight
            slope *= upstream
            dx = np.add.reduce(slope, 1)
            if inputs_share is not None:
                dx += self.centred_inputs * inputs_share[:, None]
        return dx, dw, db

    def vjp_in_torch(self, g: Tensor, by_x: bool, by_weight: bool, by_base: bool) -> tuple[Tensor | None, ...]:
        """:meth:`vjp` of y's gradient, for those who look on."""
        inside, rate, powers, own = (torch.from_numpy(each) for each in self.rows[:4])
        inputs, outputs, _, rows = own.shape
        g = g.unsqueeze(0)
        dx = dw = db = None
        if by_weight:
            raised = powers.transpose(0, 1).unsqueeze(1) * g.unsqueeze(2)
            polynomials = (raised.reshape(inputs, -1, rows) @ inside.mT).reshape(inputs, outputs, -1)
            dw = (polynomials @ torch.from_numpy(self.tables.table).mT).permute(2, 0, 1)
        if by_base and self.base is not None:
            db = (g @ torch.from_numpy(self.base).unsqueeze(2)).reshape(inputs, outputs)
        if by_x:
            steps = rate * powers[:-1] * torch.arange(1, len(powers), dtype=rate.dtype).view(-1, 1, 1)
            slope = torch.einsum("iopn,pin->ion", own[:, :, 1:], steps)
            if self.base is not None:
                by_base_function = torch.from_numpy(self.base_weight)
                if self.base_slope is not None:
                    by_base_function = torch.from_numpy(self.base_slope).unsqueeze(1) * by_base_function
                slope = slope + by_base_function
            dx = (slope * g).sum(1)
        return dx, dw, db
