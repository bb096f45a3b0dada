"""The tensor layouts of the layers of other packages, and their translation into the layout of
:class:`fastkan.KANLinear`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...layers.grid import add_outer_knots

Tensors = Mapping[str, Tensor]
FROM_SPLINES = "KANLinear.from_splines(knots, coefficients, ...) makes a layer from tensors in fastkan's layout"
UNUSED_KNOT_FACTOR = 1e6  # Knots that no edge uses are moved to this multiple of the largest absolute knot.


class LayerTensors(NamedTuple):
    """The tensors of one layer, with the names and the layout of :class:`fastkan.KANLinear`."""

    spline_weight: Tensor
    base_weight: Tensor | None
    spline_scale: Tensor | None
    mask: Tensor | None
    knots: Tensor
    bias: Tensor | None = None

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
        dims: the numbers of dimensions that each tensor may have, which are checked before ``translate`` is called.
        translate: function that converts a dictionary of the layer's tensors to :class:`LayerTensors`.
        otherwise: the remedy in the error message for a tensor with another number of dimensions.
    """

    package: str
    required: frozenset[str]  # names of the layer's tensors
    optional: frozenset[str]
    parameters: dict[str, str]  # name of the source tensor for each parameter of KANLinear
    dims: dict[str, tuple[int, ...]]  # numbers of dimensions that each tensor may have, which `translate` relies on
    translate: Callable[[Tensors], LayerTensors]
    otherwise: str = ""  # remedy for a tensor with another number of dimensions


def _efficient_kan(tensors: Tensors) -> LayerTensors:
    weight, grid = tensors["spline_weight"], tensors["grid"]
    scale, base_weight = tensors.get("spline_scaler"), tensors.get("base_weight")
    return LayerTensors(
        weight.permute(2, 1, 0),
        None if base_weight is None else base_weight.t(),
        None if scale is None else scale.t(),
        None,
        grid.expand(weight.shape[1], -1) if grid.ndim == 1 else grid,
        tensors.get("bias"),
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


def _old_pykan(tensors: Tensors) -> LayerTensors:
    """Translate the tensors of a layer of pykan 0.0, which have an entry for each edge, ``[out * in, ...]``, and the
    knots of the grid alone. The entry ``inputs`` is the number of inputs.

    To evaluate its splines, pykan 0.0 adds k knots on both sides, whose distance is the mean width of the cells.
    """
    inputs = int(tensors["inputs"])
    edges, count = tensors["coef"].shape
    if not inputs or edges % inputs:
        raise ValueError(f"coef must have a multiple of {inputs} rows, the number of inputs, got {edges} rows")

    def by_input(values: Tensor) -> Tensor:
        if len(values) != edges:
            raise ValueError(f"its tensors must have an entry for each of the {edges} edges, got {len(values)}")
        return values.reshape(edges // inputs, inputs, *values.shape[1:]).transpose(0, 1)

    grids = by_input(tensors["grid"])
    if bool((grids != grids[:, :1]).any()):
        raise ValueError("the edges of an input have different grids, but fastkan has one grid for each input")
    inner = grids[:, 0]
    order = count - inner.shape[1] + 1
    knots = add_outer_knots(inner, max(order, 0))
    names = ("coef", "mask", "scale_base", "scale_sp")
    return _pykan({"grid": knots, **{name: by_input(tensors[name]) for name in names}})


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
    frozenset({"grid", "spline_weight"}),
    frozenset({"base_weight", "spline_scaler", "bias"}),
    {"spline_weight": "spline_weight", "base_weight": "base_weight", "spline_scale": "spline_scaler", "bias": "bias"},
    {"grid": (1, 2), "spline_weight": (3,), "base_weight": (2,), "spline_scaler": (2,), "bias": (1,)},
    _efficient_kan,
    "for weights of groups, make a KANLinear for each group by KANLinear.from_splines",
)
INKAN = Layout(
    "inkan",
    frozenset({"weight", "grid_starts"}),
    frozenset(),
    {"spline_weight": "weight", "base_weight": "weight"},
    {"weight": (2,), "grid_starts": (1,)},
    _inkan,
)
_PYKAN_NAMES = {"spline_weight": "coef", "base_weight": "scale_base", "spline_scale": "scale_sp"}
PYKAN = Layout(
    "pykan",
    frozenset({"grid", "coef", "mask", "scale_base", "scale_sp"}),
    frozenset(),
    _PYKAN_NAMES,
    {"grid": (2,), "coef": (3,), "mask": (2,), "scale_base": (2,), "scale_sp": (2,)},
    _pykan,
)
OLD_PYKAN = Layout(
    "pykan 0.0",
    PYKAN.required,
    frozenset(),
    _PYKAN_NAMES,
    {"grid": (2,), "coef": (2,), "mask": (1,), "scale_base": (1,), "scale_sp": (1,)},
    _old_pykan,
)
_LAYOUTS = (EFFICIENT_KAN, INKAN, PYKAN, OLD_PYKAN)


def layout_of(tensors: Tensors) -> Layout | None:
    """Return the layout of a layer with these tensors, or None. The layers of the versions of pykan have tensors of the
    same names, with different numbers of dimensions."""
    for layout in _LAYOUTS:
        if layout.required <= tensors.keys():
            return OLD_PYKAN if layout is PYKAN and tensors["coef"].ndim == 2 else layout
    return None


def described(layouts: Iterable[Layout] = (EFFICIENT_KAN, INKAN, PYKAN)) -> str:
    """Return the names of packages, with the names of the tensors of their layers in parentheses."""
    return ", ".join(f"{each.package} ({', '.join(sorted(each.required))})" for each in layouts)


def layer_tensors(layout: Layout, tensors: Tensors) -> LayerTensors:
    """Translate the tensors of another package's layer into the layout of :class:`fastkan.KANLinear`, and check that
    the shapes fit together and that no knots coincide."""
    if layout is EFFICIENT_KAN:  # convkan's weights have a first dimension for groups of channels
        most = {name: dims[-1] for name, dims in layout.dims.items()}
        tensors = {
            name: value[0] if len(value.shape) == most.get(name, value.ndim) + 1 and len(value) == 1 else value
            for name, value in tensors.items()
        }
    for name, value in tensors.items():
        if value.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values to convert")
        if value.ndim not in layout.dims.get(name, (value.ndim,)):
            numbers = " or ".join(map(str, layout.dims[name]))
            instead = f"; {layout.otherwise}" if layout.otherwise else ""
            raise ValueError(
                f"{name} must have {numbers} dimensions, as in {layout.package}; got the shape "
                f"{list(value.shape)}{instead}"
            )
    translated = layout.translate(tensors)
    count, inputs, outputs = translated.spline_weight.shape
    order = translated.order
    if not 1 <= order < translated.knots.shape[1] // 2:
        raise ValueError(
            f"{translated.knots.shape[1]} knots and {count} splines for each input do not belong to any spline order: "
            f"G + 2k + 1 knots and G + k splines are expected; {FROM_SPLINES}"
        )
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("base_weight", "spline_scale", "mask"), (inputs, outputs))
    for name, shape in {**wanted, "bias": (outputs,), "knots": (inputs, count + order + 1)}.items():
        value = getattr(translated, name)
        if value is not None and value.shape != shape:
            theirs = layout.parameters.get(name, name)
            raise ValueError(
                f"{theirs} must have the shape {list(shape)} in fastkan's layout, got {list(value.shape)}; "
                f"{FROM_SPLINES}"
            )
    coincident = has_coincident_knots(translated.knots)
    if bool(coincident.any()):
        raise ValueError(
            f"knots of the inputs {coincident.nonzero().flatten().tolist()[:8]} coincide, where {layout.package} "
            "computes no B-splines; give these inputs another grid first"
        )
    return translated
