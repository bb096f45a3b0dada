"""A warning of inputs that lie far from where a network can learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastkan_kernels import warn

from ..layers import grid

if TYPE_CHECKING:
    from ..network.core import Network

LARGE = 50.0  # what the median of a column's magnitude must exceed: base functions change around 0, over a few units
MAX_OUTSIDE = 0.5  # of a column's rows


def warn_of_scale(model: Network, x: Tensor, updates: bool) -> None:
    """Name the columns that a fit can hardly use as they are.

    Args:
        x: ``[N, in_features]``.
        updates: whether the fit moves the knots to where the rows are, which leaves only the base function far off.

    Warns:
        UserWarning: for columns with most rows outside of the grid, or with updates for columns of large numbers.
    """
    layer, rows = model.layers[0], model._select_inputs(x)
    if not model._has_numeric_edges(0):
        return
    if updates:
        if layer.base == "none":
            return
        far = rows.abs().median(0).values > LARGE
        what = f"hold numbers beyond {LARGE:g} for the most part, where the base function is a straight line"
        remedy = ""
    else:
        limits = grid.interior(layer.knots, layer.spline_order)
        outside = (rows < limits[:, 0]) | (rows > limits[:, -1])
        far = outside.to(torch.float32).mean(0) > MAX_OUTSIDE
        what, remedy = (
            "lie outside of the grid for the most part, where splines are 0",
            ", or fit with update_grid=True",
        )
    columns = model.input_id[far].tolist()
    if columns:
        shown = f"{columns[:8]}{' and more' if len(columns) > 8 else ''}"
        warn(f"the inputs' columns {shown} {what}; normalise them, as by (x - x.mean(0)) / x.std(0){remedy}")
