"""fastkan itself."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from fastkan import KANLinear

from ..cases import Case, Edges
from .registry import rival


@rival("fastkan")
def fastkan(case: Case, edges: list[Edges]) -> nn.Module:
    """``KANLinear`` layers, eager."""
    layers = []
    for (inputs, outputs), edge in zip(case.layers, edges):
        layer = KANLinear(inputs, outputs, case.grid_size, case.order)
        layer.spline_weight.copy_(edge.spline_weight)
        layer.get_parameter("base_weight").copy_(edge.base_weight)
        layers.append(layer)
    return nn.Sequential(*layers)


@rival("fastkan, torch.compile", compiled=True)
def fastkan_compiled(case: Case, edges: list[Edges]) -> nn.Module:
    """The same under ``torch.compile``."""
    return cast(nn.Module, torch.compile(fastkan(case, edges)))
