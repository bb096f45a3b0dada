"""Fresh parameters of a network's layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import grid
from .linear import KANLinear

NOISE = 0.3  # of a fresh spline's values, times 1 / grid_size


@torch.no_grad()
def reset(layer: KANLinear, noise: float, mean: float, spread: float, generator: torch.Generator | None) -> None:
    """Splines through noise at the knots, base weights evenly around ``mean``, scales of 1, each over the root of the
    inputs; drawn on the CPU, so that every device gets the same."""
    if layer.spline_weight.is_meta:
        return
    inputs, outputs, size = layer.in_features, layer.out_features, layer.grid_size
    unit = 1 / math.sqrt(inputs)
    drawn: Any = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    values = torch.rand(size + 1, inputs, outputs, **drawn).sub_(0.5)
    values = values.to(layer.knots.device) * (noise / size)
    layer.spline_weight.copy_(grid.through(values, layer.knots, layer.spline_order))
    if layer.base_weight is not None:
        weight = torch.rand(inputs, outputs, **drawn) * 2 - 1
        layer.base_weight.copy_(unit * (mean + spread * weight))
    if layer.spline_scale is not None:
        layer.spline_scale.fill_(unit)


def near(inputs: int, outputs: int) -> Tensor:
    """A mask of the edges to the nearest node on the other side, both layers spread over the same width."""
    apart = ((torch.arange(inputs) + 0.5) / inputs).unsqueeze(1) - (torch.arange(outputs) + 0.5) / outputs
    mask = torch.zeros(inputs, outputs)
    mask[torch.arange(inputs), apart.abs().argmin(1)] = 1
    mask[apart.abs().argmin(0), torch.arange(outputs)] = 1
    return mask
