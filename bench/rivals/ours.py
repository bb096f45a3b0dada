"""fastkan itself."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastkan import KAN, KANLinear
from fastkan.training.regularization import Penalty

from ..cases import ENTROPY, L1, Case, Edges
from .registry import rival


class Penalised(nn.Module):
    """A network as its own ``fit`` trains it."""

    def __init__(self, network: KAN) -> None:
        super().__init__()
        self.network = network
        self.penalty = Penalty(network, L1, ENTROPY, 0.0, 0.0, "edge_forward_spline_n")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.penalty(x)


def penalised(case: Case, edges: list[Edges]) -> nn.Module:
    """``KAN`` with its :class:`Penalty`."""
    network = KAN(width=list(case.widths), grid=case.grid_size, k=case.order, seed=0)
    for layer, edge in zip(network.layers, edges):
        layer.spline_weight.copy_(edge.spline_weight)
        layer.get_parameter("base_weight").copy_(edge.base_weight)
        layer.get_parameter("spline_scale").fill_(1.0)
    return Penalised(network)


@rival("fastkan", sparse=penalised)
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
