"""Which edges of a network are splines, and which are formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.edge_functions import mask_of

if TYPE_CHECKING:
    from .core import Network


def edge_kinds(model: Network, layer: int) -> tuple[Tensor, Tensor]:
    """Which edges of a layer are on as a spline, and which as a formula, ``[in, out]`` of bool on the CPU."""
    numeric = mask_of(model.layers[layer]).cpu()
    formulas = torch.zeros_like(numeric)
    for edge in model.symbolic[layer].edges:
        formulas[edge.i, edge.j] = True
    return numeric, formulas


def edges_on(model: Network, layer: int) -> Tensor:
    """Which edges of a layer are on in either way."""
    numeric, formulas = edge_kinds(model, layer)
    return numeric | formulas
