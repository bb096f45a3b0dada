"""Initial parameters and sparse initial masks of the layers of a network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import grid
from .linear import KANLinear


@torch.no_grad()
def reinitialize(
    layer: KANLinear,
    generator: torch.Generator | None,
    noise: float = 0.3,
    base_mean: float = 0.0,
    base_half_width: float = 1.0,
) -> None:
    """Draw new parameters of a layer, in place.

    Splines interpolate uniform noise of the width ``noise / grid_size`` at the knots, base weights are uniform, and
    scales of splines are 1. Base weights and scales are divided by the square root of the number of inputs. All is
    drawn on the CPU, so that a seed gives the same parameters on every device.
    """
    if layer.spline_weight.is_meta:
        return
    inputs, outputs, size = layer.in_features, layer.out_features, layer.grid_size
    unit = 1 / math.sqrt(inputs)
    drawn: Any = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    values = torch.rand(size + 1, inputs, outputs, **drawn).sub_(0.5)
    values = values.to(layer.knots.device) * (noise / size)
    layer.spline_weight.copy_(grid.interpolate(values, layer.knots, layer.spline_order))
    if layer.base_weight is not None:
        weight = torch.rand(inputs, outputs, **drawn) * 2 - 1
        layer.base_weight.copy_(unit * (base_mean + base_half_width * weight))
    if layer.spline_scale is not None:
        layer.spline_scale.fill_(unit)


def nearest_node_mask(inputs: int, outputs: int) -> Tensor:
    """Return a mask ``[inputs, outputs]`` of 0 and 1 that connects each node to the nearest node on the other side, if
    the nodes of both sides are spaced evenly over the same width."""
    apart = ((torch.arange(inputs) + 0.5) / inputs).unsqueeze(1) - (torch.arange(outputs) + 0.5) / outputs
    mask = torch.zeros(inputs, outputs)
    mask[torch.arange(inputs), apart.abs().argmin(1)] = 1
    mask[apart.abs().argmin(0), torch.arange(outputs)] = 1
    return mask
