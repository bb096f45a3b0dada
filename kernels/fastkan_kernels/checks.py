"""Validation at the Python edge: once for each call, before any work, naming what came."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .arguments import FLOATS, Choice, Dtype, Int
from .basis import BASE_FUNCTIONS, MAX_SPLINE_ORDER, Basis, autocast_dtype
from .trilinear import Slots

ORDER = Int(least=1, most=MAX_SPLINE_ORDER)
BASE = Choice(BASE_FUNCTIONS)


def check_int(name: str, value: object, least: int) -> int:
    """``value`` as an int, ``least`` or more."""
    return Int(least).read(name, value)


def check_dtype(dtype: object) -> None:
    """``dtype`` is one that a layer can have."""
    Dtype().read("dtype", dtype)


def check_basis(basis: object) -> None:
    """``basis`` is a :class:`Basis` that there are features for."""
    if not isinstance(basis, Basis):
        raise TypeError(f"basis must be a Basis, got {type(basis).__name__}")
    ORDER.read("spline_order", basis.order)
    BASE.read("base", basis.base)
    if basis.product is not None:
        check_dtype(basis.product)


def check_tensor(name: str, value: object, any_dtype: bool = False) -> None:
    """``value`` is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
    if value.dtype not in FLOATS and not any_dtype:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: tuple[int | str, ...]) -> None:
    """``value`` has a shape; a str in ``expected`` names a free dimension."""
    if value.ndim == len(expected) and all(
        isinstance(want, str) or want == got for want, got in zip(expected, value.shape)
    ):
        return
    wanted = ", ".join(map(str, expected))
    raise ValueError(f"{name} must have the shape [{wanted}], got {list(value.shape)}")


def check_knots(knots: Tensor, order: int) -> None:
    """``knots`` are finite, non-decreasing, and have a width where the splines live.

    Reads the values, so it is for the moment when knots are made, not for each call.
    """
    check_tensor("knots", knots)
    least = 2 * order + 2  # one interval, extended by k on both sides
    if knots.ndim != 2 or knots.shape[1] < least:
        raise ValueError(
            f"knots must have the shape [in_features, grid_size + 2 * spline_order + 1] with at least "
            f"{least} columns for spline_order={order}, got {list(knots.shape)}"
        )
    if knots.is_meta:
        return
    wide = knots.detach().double()
    if not bool(wide.isfinite().all()):
        raise ValueError("knots must be finite, got NaN or infinity among them")
    falls = (wide.diff(dim=1) < 0).any(1)
    if bool(falls.any()):
        rows = falls.nonzero().flatten().tolist()
        raise ValueError(f"knots must be non-decreasing in each row; those of features {rows[:8]} are not")
    # counting cells divides by their mean width, in the knots' own precision
    finite = torch.finfo(knots.dtype)
    width = (wide[:, -order - 1] - wide[:, order]) / (knots.shape[1] - 2 * order - 1)
    flat = width < finite.tiny
    if bool(flat.any()):
        rows = flat.nonzero().flatten().tolist()
        raise ValueError(
            f"the grid must have a width: knots[:, {order}] < knots[:, {-order - 1}] does not hold for "
            f"features {rows[:8]} in {knots.dtype}"
        )
    if bool((wide[:, -1] - wide[:, 0] > finite.max).any()):
        raise ValueError(f"the knots' range must be finite in {knots.dtype}, got one that is wider than {finite.max:g}")


def check_weights(
    knots: Tensor, weight: Tensor, base_weight: Tensor | None, basis: Basis, name: str = "weight"
) -> None:
    """Knots and both parts of W fit together, and the base function has its part or none.

    Args:
        name: what the caller calls the splines' part.
    """
    check_tensor(name, weight)
    check_shape(name, weight, (basis.splines_of(knots), knots.shape[0], "out_features"))
    if (base_weight is None) != (basis.base == "none"):
        given = "None" if base_weight is None else "a tensor"
        raise ValueError(f"base={basis.base!r}, but base_weight is {given}")
    if base_weight is not None:
        check_tensor("base_weight", base_weight)
        check_shape("base_weight", base_weight, tuple(weight.shape[1:]))


def check_operands(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, filled: Collection[str] = ()) -> None:
    """Types, shapes, dtypes and devices of a contraction's tensors agree.

    Args:
        filled: which of W and g must be there.
    """
    check_basis(basis)
    check_tensor("x", x)
    check_tensor("knots", knots)
    check_shape("knots", knots, ("in_features", "grid_size + 2 * spline_order + 1"))
    least = 2 * basis.order + 2
    if knots.shape[1] < least:
        raise ValueError(
            f"knots must have at least {least} columns for spline_order={basis.order}, got {knots.shape[1]}"
        )
    check_shape("x", x, ("N", knots.shape[0]))
    outputs: int | str = "out_features"
    if "W" in filled:
        check_weights(knots, slots.weight, slots.base_weight, basis)
        outputs = slots.weight.shape[2]
    if "g" in filled:
        check_tensor("g", slots.g)
        check_shape("g", slots.g, (x.shape[0], outputs))
    if slots.v is not None:
        check_tensor("v", slots.v)
        check_shape("v", slots.v, tuple(x.shape))
    check_alike(x, knots=knots, **slots._asdict())


def check_alike(x: Tensor, **others: Tensor | None) -> None:
    """All on x's device; dtypes equal, but for autocast and for knots kept in float32."""
    device, dtype = x.device, x.dtype
    for name, value in others.items():
        if value is None:
            continue
        if value.device != device:
            raise ValueError(f"{name} is on {value.device}, but x is on {device}")
        if value.dtype == dtype or autocast_dtype(x) is not None:
            continue
        if name == "knots" and value.dtype == torch.float32 and x.dtype.itemsize == 2:
            continue
        raise TypeError(
            f"{name} is {value.dtype}, but x is {x.dtype}; convert one of them (for a module: layer.to(x.dtype))"
        )


def check_finite(name: str, value: Tensor) -> None:
    """No NaN and no infinity: for data that something is fitted to."""
    if value.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on meta")
    bad = int((~value.detach().isfinite()).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite of {value.numel()} values")
