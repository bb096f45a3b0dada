"""The tensor layouts of the layers of other packages, and their translation into the layout of
:class:`fastkan.KANLinear`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
UNUSED_KNOT_FACTOR = 1e6  # Knots that no edge uses are moved to this multiple of the largest absolute knot.


class LayerTensors(NamedTuple):
    """The tensors of one layer, with the names and the layout of :class:`fastkan.KANLinear`."""

    spline_weight: Tensor
    base_weight: Tensor
    spline_scale: Tensor | None
    mask: Tensor | None
    knots: Tensor

    @property
    def order(self) -> int:
        """The order k of the splines."""
        return self.knots.shape[1] - self.spline_weight.shape[0] - 1

    def state(self) -> dict[str, Tensor]:
        """Return a state_dict of contiguous copies. Tensors that are None are left out."""
        return {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in self._asdict().items()
            if value is not None
        }


class Layout(NamedTuple):
    """The layout of the tensors in a layer of another package.

    Args:
        package: name of the package.
        required, optional: names of the tensors that a layer must have, and names of the tensors that it may have.
        parameters: dictionary from the names of the parameters of :class:`fastkan.KANLinear` to the names of the
            corresponding tensors of the package.
        dims: number of dimensions of each tensor, which is checked before ``translate`` is called.
        translate: function that converts a dictionary of the layer's tensors to :class:`LayerTensors`.
    """

    package: str
    required: frozenset[str]  # names of the layer's tensors
    optional: frozenset[str]
    parameters: dict[str, str]  # name of the source tensor for each parameter of KANLinear
    dims: dict[str, int]  # number of dimensions of each tensor, which `translate` relies on
    translate: Callable[[Tensors], LayerTensors]


def _efficient_kan(tensors: Tensors) -> LayerTensors:
    scale = tensors.get("spline_scaler")
    scale = None if scale is None else scale.t()
    return LayerTensors(
        tensors["spline_weight"].permute(2, 1, 0), tensors["base_weight"].t(), scale, None, tensors["grid"]
    )


def _inkan(tensors: Tensors) -> LayerTensors:
    """Translate the tensors of an inkan layer, which has cubic splines on one uniform grid. The weight of an inkan
    layer has the shape ``[out, in * K + in]``. Its first ``in * K`` columns are the weights of the splines, and its
    last ``in`` columns are the weights of the base function."""
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
    """Return the exact knot spacing with which inkan computed, if the spacing can be recovered from the rounded knots
    that inkan stores.

    If the ends of the range have at most three decimals, the spacing is a multiple of 1 / (1000 intervals). If the
    multiple of 1 / (1000 intervals) that is nearest to ``step`` agrees with the stored knots up to rounding, the
    multiple is returned. Otherwise ``step`` is returned.
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
    """Return a bool tensor ``[in]``: whether an input has two equal neighbours in ``knots [in, M]``. Other packages
    divide by zero for an input with equal neighbours."""
    return (knots.diff(dim=1) == 0).any(1)


def _move_unused_knots(grid: Tensor, order: int, mask: Tensor) -> Tensor:
    """Replace coincident knots that have no effect by distinct knots far outside of the data.

    Coincident knots have no effect if all edges of the input are off, or if all knots of the input are equal. A grid
    update of pykan makes all knots of an input equal if all samples of the input are equal. With the new knots, the
    splines of the input are 0 on the data, as they are with equal knots.
    """
    if order < 1 or grid.shape[1] <= 2 * order or len(mask) != len(grid):
        return grid  # ``layer_tensors`` raises the error for invalid shapes
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
    """Translate the tensors of another package's layer into the layout of :class:`fastkan.KANLinear`, and check that
    the shapes fit together and that no knots coincide."""
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
            f"{translated.knots.shape[1]} knots and {count} splines for each input do not belong to any spline order: "
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
