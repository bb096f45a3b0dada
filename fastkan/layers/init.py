"""Initialization of the parameters and of the sparse masks of a network's layers."""

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
    """Draw new random parameters for a layer, in place.

    Each spline interpolates uniformly distributed random values at the knots. The base weights are uniformly
    distributed and then divided by sqrt(inputs). The scales of the splines are set to 1 / sqrt(inputs). All random
    numbers are drawn on the CPU, so a seed gives equal parameters on every device.

    Args:
        layer: the layer whose parameters are replaced.
        generator: the random number generator, or None to use torch's global generator.
        noise: the values of the splines at the knots are drawn uniformly from an interval of width
            ``noise / grid_size`` around 0.
        base_mean, base_half_width: the midpoint and the half width of the range of base weights, before the division
            by sqrt(inputs).
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
    """Return a mask ``[inputs, outputs]`` of 0 and 1 that connects each node to the nearest node on the other side.

    To define the nearest node, the inputs and the outputs are placed evenly on two parallel lines of equal length.
    """
    apart = ((torch.arange(inputs) + 0.5) / inputs).unsqueeze(1) - (torch.arange(outputs) + 0.5) / outputs
    mask = torch.zeros(inputs, outputs)
    mask[torch.arange(inputs), apart.abs().argmin(1)] = 1
    mask[apart.abs().argmin(0), torch.arange(outputs)] = 1
    return mask
