"""Tensor layouts of each package's layer, and their translation into the layout of :class:`fastkan.KANLinear`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
UNUSED_KNOT_FACTOR = 1e6  # knots that no edge uses are moved to this multiple of the largest knot


class LayerTensors(NamedTuple):
    """Tensors of one layer in the names and layout of :class:`fastkan.KANLinear`."""

    spline_weight: Tensor
    base_weight: Tensor
    spline_scale: Tensor | None
    mask: Tensor | None
    knots: Tensor

    @property
    def order(self) -> int:
        """Order k of the splines."""
        return self.knots.shape[1] - self.spline_weight.shape[0] - 1

    def state(self) -> dict[str, Tensor]:
        """State_dict of contiguous copies, without the tensors that are None."""
        return {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in self._asdict().items()
            if value is not None
        }


class Layout(NamedTuple):
    """Layout of the tensors in a package's layer.

    Args:
        package: name of the package.
        required, optional: names of the layer's tensors.
        parameters: name of the source tensor for each parameter of :class:`fastkan.KANLinear`.
        dims: number of dimensions of each tensor, which ``translate`` relies on.
        translate: function from the layer's tensors to :class:`LayerTensors`.
    """

    package: str
    required: frozenset[str]
    optional: frozenset[str]
    parameters: dict[str, str]
    dims: dict[str, int]
    translate: Callable[[Tensors], LayerTensors]


def _efficient_kan(tensors: Tensors) -> LayerTensors:
    scale = tensors.get("spline_scaler")
    scale = None if scale is None else scale.t()
    return LayerTensors(
        tensors["spline_weight"].permute(2, 1, 0), tensors["base_weight"].t(), scale, None, tensors["grid"]
    )


def _inkan(tensors: Tensors) -> LayerTensors:
    """Translate inkan's layer: cubic splines on one uniform grid, whose weight ``[out, in * K + in]`` holds the weights
    of the K splines of every input first, then those of the base function."""
    weight, starts = tensors["weight"], tensors["grid_starts"]
    count, columns = len(starts), weight.shape[1]
    inputs, rest = divmod(columns, count + 1)
    if rest:
        raise ValueError(
            f"a weight of {columns} columns for {count} splines belongs to inkan's dim=2, a surface, which has no edges"
        )
    first, last = starts.double()[[0, -1]]
    step = tensors["step"] if "step" in tensors else _exact_step((last - first) / (count - 1), count - 3, starts)
    knots = first + step * torch.arange(count + 4, dtype=torch.float64, device=starts.device)
    return LayerTensors(
        weight[:, : inputs * count].reshape(-1, inputs, count).permute(2, 1, 0),
        weight[:, inputs * count :].t(),
        None,
        None,
        knots.to(torch.promote_types(starts.dtype, torch.float32)).repeat(inputs, 1),
    )


def _exact_step(step: Tensor, intervals: int, starts: Tensor) -> Tensor:
    """Return the step that inkan computed with, where it can be recovered from the rounded knots that it stores.

    A range with at most three decimals has a step that is a multiple of 1 / (1000 intervals). If the nearest such
    step agrees with the stored knots up to their rounding, it is returned, and else ``step`` itself.
    """
    parts = 1000 * intervals
    exact = torch.round(step * parts) / parts
    rounding = torch.finfo(torch.float32).eps * starts.abs().max()
    return exact if abs(exact - step) * (len(starts) - 1) <= 2 * rounding else step


def _pykan(tensors: Tensors) -> LayerTensors:
    mask = tensors["mask"]
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must hold only 0 and 1; multiply any other factor into scale_base and scale_sp")
    coef, grid = tensors["coef"].permute(2, 0, 1), tensors["grid"]
    return LayerTensors(
        coef,
        tensors["scale_base"],
        tensors["scale_sp"],
        None if bool(mask.all()) else mask,
        _move_unused_knots(grid, grid.shape[1] - len(coef) - 1, mask),
    )


def has_coincident_knots(knots: Tensor) -> Tensor:
    """Whether each input has equal neighbours in ``knots [in, M]``, ``[in]``: other packages divide by zero there."""
    return (knots.diff(dim=1) == 0).any(1)


def _move_unused_knots(grid: Tensor, order: int, mask: Tensor) -> Tensor:
    """Replace coincident knots that don't matter by distinct ones far outside the data, where splines are 0 too: those
    of an input whose samples are all equal, as pykan's grid update makes them, or whose edges are all off."""
    if order < 1 or grid.shape[1] <= 2 * order or len(mask) != len(grid):
        return grid  # layer_tensors raises the error for these shapes
    wide = grid.to(torch.promote_types(grid.dtype, torch.float32))
    unused = (wide[:, :1] == wide).all(1) | ((mask == 0).all(1) & has_coincident_knots(wide))
    steps = 1 + torch.arange(wide.shape[1], device=wide.device) / wide.shape[1]
    return torch.where(
        unused[:, None], UNUSED_KNOT_FACTOR * wide.abs().amax(1, keepdim=True).clamp(min=1) * steps, wide
    ).to(wide)


EFFICIENT_KAN = Layout(
    "efficient-kan",
    frozenset({"grid", "base_weight", "spline_weight"}),
    frozenset({"spline_scaler"}),
    {"spline_weight": "spline_weight", "base_weight": "base_weight", "spline_scale": "spline_scaler"},
    {"grid": 2, "spline_weight": 3, "base_weight": 2, "spline_scaler": 2},
    _efficient_kan,
)
INKAN = Layout(
    "inkan",
    frozenset({"weight", "grid_starts"}),
    frozenset(),
    {"spline_weight": "weight", "base_weight": "weight"},
    {"weight": 2, "grid_starts": 1},
    _inkan,
)
PYKAN = Layout(
    "pykan",
    frozenset({"grid", "coef", "mask", "scale_base", "scale_sp"}),
    frozenset(),
    {"spline_weight": "coef", "base_weight": "scale_base", "spline_scale": "scale_sp"},
    {"grid": 2, "coef": 3, "mask": 2, "scale_base": 2, "scale_sp": 2},
    _pykan,
)
LAYOUTS = (EFFICIENT_KAN, INKAN, PYKAN)


def layer_tensors(layout: Layout, tensors: Tensors) -> LayerTensors:
    """Translate a source layer's tensors into the layout of :class:`fastkan.KANLinear`, and check them."""
    for name, value in tensors.items():
        if value.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values to convert")
        if value.ndim != layout.dims.get(name, value.ndim):
            raise ValueError(
                f"{name} must have {layout.dims[name]} dimensions, as in {layout.package}; got the shape "
                f"{list(value.shape)}"
            )
    translated = layout.translate(tensors)
    count, inputs, outputs = translated.spline_weight.shape
    order = translated.order
    if not 1 <= order < translated.knots.shape[1] // 2:
        raise ValueError(
            f"{translated.knots.shape[1]} knots and {count} splines for each input don't belong to any spline order: "
            "G + 2k + 1 knots and G + k splines are expected"
        )
    wanted = {"base_weight": (inputs, outputs), "spline_scale": (inputs, outputs), "mask": (inputs, outputs)}
    for name, shape in {**wanted, "knots": (inputs, count + order + 1)}.items():
        value = getattr(translated, name)
        if value is not None and value.shape != shape:
            theirs = layout.parameters.get(name, name)
            raise ValueError(f"{theirs} must have the shape {list(shape)} in fastkan's layout, got {list(value.shape)}")
    coincident = has_coincident_knots(translated.knots)
    if bool(coincident.any()):
        raise ValueError(
            f"knots of the inputs {coincident.nonzero().flatten().tolist()[:8]} coincide, where {layout.package} "
            "computes no B-splines; give these inputs another grid first"
        )
    return translated
