"""Candidate layouts for layers of unknown classes, which are derived from the shapes of their tensors.

A candidate is only used if the converted layer has the outputs of the original layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastkan_kernels import MAX_SPLINE_ORDER

from ...layers.grid import add_outer_knots
from .layouts import LayerTensors, Layout, Tensors


class _Roles(NamedTuple):
    """The names of the tensors of a layer, with the numbers and flags that convert them to fastkan's layout."""

    weight: str
    axes: tuple[int, ...]  # the dimensions of the weight that are coefficients, inputs and outputs
    knots: str
    order: int
    extends: bool  # whether the tensor has only the knots of the grid, so that outer knots are added
    base_weight: tuple[str, bool] | None  # a name, and whether the tensor is [out, in]
    scale: tuple[str, bool] | None
    bias: str | None

    def translate(self, tensors: Tensors) -> LayerTensors:
        weight = tensors[self.weight].permute(self.axes)
        knots = tensors[self.knots]
        knots = knots.expand(weight.shape[1], -1) if knots.ndim == 1 else knots
        if self.extends:
            knots = add_outer_knots(knots, self.order)
        base_weight, scale = (
            None if each is None else tensors[each[0]].t() if each[1] else tensors[each[0]]
            for each in (self.base_weight, self.scale)
        )
        bias = None if self.bias is None else tensors[self.bias]
        return LayerTensors(weight, base_weight, scale, None, knots, bias)


def guesses(module: nn.Module, held: dict[str, Tensor]) -> Iterator[Layout]:
    """Yield the layouts that interpret all parameters of a module as parameters of a B-spline layer.

    The module must have exactly one parameter with three dimensions, which is interpreted as the coefficients, and an
    increasing tensor that is not trained, which is interpreted as the knots. It may also have up to two parameters of
    the shape ``[in, out]`` or ``[out, in]``, and one bias.
    """
    if not any(value.ndim == 3 for value in module._parameters.values() if value is not None):
        return
    for knots in [name for name, value in held.items() if not value.requires_grad and may_be_knots(value)]:
        by_size: dict[int, list[str]] = {1: [], 2: [], 3: []}
        for name, value in module.named_parameters():
            if name != knots:
                by_size.setdefault(value.ndim if name in held else 4, []).append(name)
        if len(by_size) > 3 or len(by_size[3]) != 1 or len(by_size[2]) > 2 or len(by_size[1]) > 1:
            continue
        (weight,) = by_size[3]
        bias = by_size[1][0] if by_size[1] else None
        for axes in itertools.permutations(range(3)):
            count, inputs, outputs = (held[weight].shape[axis] for axis in axes)
            columns = held[knots].shape[-1]
            if held[knots].ndim == 2 and len(held[knots]) != inputs:
                continue
            if bias is not None and len(held[bias]) != outputs:
                continue
            for extends, order in ((False, columns - count - 1), (True, count - columns + 1)):
                if not 1 <= order <= min(MAX_SPLINE_ORDER, count - 1):
                    continue
                for base_weight, scale in _of_edges(held, by_size[2], inputs, outputs):
                    yield _layout(_Roles(weight, axes, knots, order, extends, base_weight, scale, bias), held)


def may_be_knots(value: Tensor) -> bool:
    """Whether a tensor is one row of increasing numbers for all inputs, or one row for each input."""
    if value.ndim not in (1, 2) or not value.is_floating_point() or value.is_meta or value.shape[-1] < 2:
        return False
    return bool((value.diff(dim=-1) > 0).all())


def _of_edges(held: dict[str, Tensor], names: list[str], inputs: int, outputs: int) -> Iterator[tuple[Any, Any]]:
    """Yield the assignments of tensors ``[in, out]`` or ``[out, in]`` to the weights of the base function and the
    scales of the splines."""
    ways = [
        [(name, turned) for turned, shape in ((False, (inputs, outputs)), (True, (outputs, inputs)))
         if held[name].shape == shape]
        for name in names
    ]  # fmt: skip
    for chosen in itertools.product(*ways):
        padded = [*chosen, *[None] * (2 - len(chosen))]
        yield from itertools.permutations(padded)


def _layout(roles: _Roles, held: dict[str, Tensor]) -> Layout:
    parameters = {"spline_weight": roles.weight}
    for name, role in (("base_weight", roles.base_weight), ("spline_scale", roles.scale)):
        if role is not None:
            parameters[name] = role[0]
    if roles.bias is not None:
        parameters["bias"] = roles.bias
    required = frozenset({*parameters.values(), roles.knots})
    dims: dict[str, tuple[int, ...]] = {name: (held[name].ndim,) for name in required}
    return Layout("its class", required, frozenset(), parameters, dims, roles.translate)
