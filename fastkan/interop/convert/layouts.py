"""How each package lays out a layer's tensors, and :class:`fastkan.KANLinear`'s from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
AWAY = 1e6


class Edges(NamedTuple):
    """A layer's tensors, named and laid out as :class:`fastkan.KANLinear` has them.

    Args:
        spline_weight: ``[G + k, in, out]``.
        base_weight, spline_scale, mask: ``[in, out]`` or None.
        knots: ``[in, G + 2k + 1]``.
    """

    spline_weight: Tensor
    base_weight: Tensor
    spline_scale: Tensor | None
    mask: Tensor | None
    knots: Tensor

    @property
    def order(self) -> int:
        """k."""
        return self.knots.shape[1] - self.spline_weight.shape[0] - 1

    def state(self) -> dict[str, Tensor]:
        """Contiguous tensors of their own, without those that are None."""
        return {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in self._asdict().items()
            if value is not None
        }


class Layout(NamedTuple):
    """A package's layer.

    Args:
        package: its name.
        needed, optional: names of its tensors.
        learned: which of them each of our parameters comes from.
        dims: how many dimensions some of them must have, so that ``read`` can lay them out.
        read: to ours.
    """

    package: str
    needed: frozenset[str]
    optional: frozenset[str]
    learned: dict[str, str]
    dims: dict[str, int]
    read: Callable[[Tensors], Edges]


def _efficient_kan(tensors: Tensors) -> Edges:
    scale = tensors.get("spline_scaler")
    return Edges(
        tensors["spline_weight"].permute(2, 1, 0),
        tensors["base_weight"].t(),
        None if scale is None else scale.t(),
        None,
        tensors["grid"],
    )


def _inkan(tensors: Tensors) -> Edges:
    """Splines and base function in one weight, ``[out, in * K + in]``; cubic, on one evenly spaced grid."""
    weight, starts = tensors["weight"], tensors["grid_starts"]
    count, columns = len(starts), weight.shape[1]
    inputs, rest = divmod(columns, count + 1)
    if rest:
        raise ValueError(f"a weight of {columns} columns on {count} splines is a surface of inkan's, dim=2: no edges")
    first, last = starts.double()[[0, -1]]
    step = tensors["step"] if "step" in tensors else _tidy((last - first) / (count - 1), count - 3, starts)
    knots = first + step * torch.arange(count + 4, dtype=torch.float64, device=starts.device)
    return Edges(
        weight[:, : inputs * count].reshape(-1, inputs, count).permute(2, 1, 0),
        weight[:, inputs * count :].t(),
        None,
        None,
        knots.to(torch.promote_types(starts.dtype, torch.float32)).repeat(inputs, 1),
    )


def _tidy(step: Tensor, intervals: int, starts: Tensor) -> Tensor:
    """inkan counts with the step that its range makes and keeps rounded starts alone: where a range of three decimals
    makes them, that."""
    parts = 1000 * intervals
    tidy = torch.round(step * parts) / parts
    rounding = torch.finfo(torch.float32).eps * starts.abs().max()
    return tidy if abs(tidy - step) * (len(starts) - 1) <= 2 * rounding else step


def _pykan(tensors: Tensors) -> Edges:
    mask = tensors["mask"]
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must hold 0 and 1 only; another factor belongs into scale_base and scale_sp")
    coef, grid = tensors["coef"].permute(2, 0, 1), tensors["grid"]
    return Edges(
        coef,
        tensors["scale_base"],
        tensors["scale_sp"],
        None if bool(mask.all()) else mask,
        _out_of_the_way(grid, grid.shape[1] - len(coef) - 1, mask),
    )


def coincident(knots: Tensor) -> Tensor:
    """Of which inputs two neighbours of ``knots [in, M]`` are one: there these packages compute no B-splines."""
    return (knots.diff(dim=1) == 0).any(1)


def _out_of_the_way(grid: Tensor, order: int, mask: Tensor) -> Tensor:
    """Where an input's samples were all one value, pykan's knots fall together: its splines are 0 and stay it (and
    that input's gradient is NaN). So they do with knots that no input comes to. Those that no edge has a use for may
    lie anywhere, too."""
    if order < 1 or grid.shape[1] <= 2 * order or len(mask) != len(grid):
        return grid  # which is refused
    wide = grid.to(torch.promote_types(grid.dtype, torch.float32))
    unused = (wide[:, :1] == wide).all(1) | ((mask == 0).all(1) & coincident(wide))
    steps = 1 + torch.arange(wide.shape[1], device=wide.device) / wide.shape[1]
    return torch.where(unused[:, None], AWAY * wide.abs().amax(1, keepdim=True).clamp(min=1) * steps, wide).to(wide)


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


def read(layout: Layout, tensors: Tensors) -> Edges:
    """A layer's tensors in our layout.

    Raises:
        ValueError: if they don't fit together, have no values, or make no splines.
    """
    for name, value in tensors.items():
        if value.is_meta:
            raise ValueError(f"{name} is on meta, and has no values to convert")
        if value.ndim != layout.dims.get(name, value.ndim):
            raise ValueError(
                f"{name} must have {layout.dims[name]} dimensions, as {layout.package}'s has; it has the shape "
                f"{list(value.shape)}"
            )
    edges = layout.read(tensors)
    count, inputs, outputs = edges.spline_weight.shape
    order = edges.order
    if not 1 <= order < edges.knots.shape[1] // 2:
        raise ValueError(f"{edges.knots.shape[1]} knots and {count} splines for each input make no order")
    wanted = {"base_weight": (inputs, outputs), "spline_scale": (inputs, outputs), "mask": (inputs, outputs)}
    for name, shape in {**wanted, "knots": (inputs, count + order + 1)}.items():
        value = getattr(edges, name)
        if value is not None and value.shape != shape:
            theirs = layout.learned.get(name, name)
            raise ValueError(f"{theirs} must come to the shape {list(shape)}, it comes to {list(value.shape)}")
    flat = coincident(edges.knots)
    if bool(flat.any()):
        raise ValueError(
            f"knots of the inputs {flat.nonzero().flatten().tolist()[:8]} coincide, where {layout.package} computes no "
            "B-splines; move its grid there first"
        )
    return edges
