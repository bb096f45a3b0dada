"""Initialization of the parameters and of the sparse masks of a network's layers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import grid


class Initialization(NamedTuple):
    """The distribution of the initial parameters of a layer with I inputs, O outputs and G grid intervals.

    Each spline interpolates uniformly distributed random values at the G + 1 knots of the grid. The weights of the base
    function are uniformly distributed.

    Attributes:
        noise: the width, multiplied by G, of the interval around 0 from which the values of the splines are drawn.
        base_mean, base_half_width: the midpoint and the half width, both multiplied by sqrt(I), of the range of the
            weights of the base function.
        unit_scale: whether the scales of the splines are 1. Otherwise, the scales are 1 / sqrt(I).
    """

    noise: float = 0.1
    base_mean: float = 0.0
    base_half_width: float = 1.0
    unit_scale: bool = True

    def spline_weight(self, knots: Tensor, order: int, outputs: int, generator: torch.Generator | None) -> Tensor:
        """Draw the coefficients ``[G + k, I, O]`` of the splines with the knots ``[I, G + 2k + 1]``.

        Args:
            generator: a random number generator of the CPU, with which a seed gives equal values on every device, or
                None to use torch's global generator of the device of the knots.
        """
        inputs, size = knots.shape[0], knots.shape[1] - 2 * order - 1
        values = _rand(knots.device, generator, size + 1, inputs, outputs).sub_(0.5)
        return grid.interpolate(values * (self.noise / size), knots, order)

    def base_weight(self, inputs: int, outputs: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Draw the weights ``[I, O]`` of the base function, with a generator as for the splines."""
        weight = _rand(device, generator, inputs, outputs) * 2 - 1
        return 1 / math.sqrt(inputs) * (self.base_mean + self.base_half_width * weight)

    def spline_scale(self, inputs: int) -> float:
        """Return the initial scale of all splines."""
        return 1.0 if self.unit_scale else 1 / math.sqrt(inputs)


def _rand(device: torch.device, generator: torch.Generator | None, *shape: int) -> Tensor:
    drawn_on = device if generator is None else "cpu"
    return torch.rand(*shape, generator=generator, dtype=torch.float32, device=drawn_on).to(device)


@torch.no_grad()
def assign(parameter: Tensor, values: Tensor) -> None:
    """Copy values into a parameter. If the parameter is distributed, the values of the first process are used."""
    values = values.to(parameter.dtype)
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor  # The import takes a second.

        values = distribute_tensor(values, mesh, parameter.placements)  # type: ignore[attr-defined]
    parameter.copy_(values)


def nearest_node_mask(inputs: int, outputs: int) -> Tensor:
    """Return a mask ``[inputs, outputs]`` of 0 and 1 that connects each node to the nearest node on the other side.

    To define the nearest node, the inputs and the outputs are placed evenly on two parallel lines of equal length.
    """
    i, o = torch.arange(inputs, device="cpu"), torch.arange(outputs, device="cpu")
    apart = ((i + 0.5) / inputs).unsqueeze(1) - (o + 0.5) / outputs
    mask = torch.zeros(inputs, outputs, device="cpu")
    mask[i, apart.abs().argmin(1)] = 1
    mask[apart.abs().argmin(0), o] = 1
    return mask
