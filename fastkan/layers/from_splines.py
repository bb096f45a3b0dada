"""``KANLinear.from_splines``: a layer with given knots and coefficients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import BASE, MAX_SPLINE_ORDER, check_knots, check_shape, checked

from ..functional import OUTSIDE


@checked(base=BASE, outside=OUTSIDE)
@torch.inference_mode(False)
@torch.no_grad()
def from_splines(
    cls: Any,
    knots: Any,
    coefficients: Any,
    base_weight: Any = None,
    scale: Any = None,
    bias: Any = None,
    *,
    base: str = "silu",
    outside: str = "zero",
) -> Any:
    """Return a layer with copies of the given tensors, for example those of a layer of another package.

    The sizes follow from the shapes: ``K`` coefficients on ``M`` knots are splines of order ``k = M - K - 1`` on a grid
    of ``G = K - k`` intervals. All arguments may be tensors, arrays or lists. The parameters have the dtype and the
    device of the coefficients, and are trained.

    Args:
        knots: the knots ``[in, G + 2k + 1]``, in the units of the inputs, non-decreasing in each row, or one row
            ``[G + 2k + 1]`` for all inputs. Besides the ``G + 1`` knots of the grid, ``k`` knots on each side.
        coefficients: the spline coefficients ``[G + k, in, out]``.
        base_weight: the weights ``[in, out]`` of the base function. If None, the layer has no base function.
        scale: the factors ``[in, out]`` of the splines, or None.
        bias: the bias ``[out]``, or None.
        base: the base function, if there are base weights.
        outside: how splines continue outside the grid; see :class:`KANLinear`.

    Raises:
        TypeError, ValueError: if a tensor has a shape or dtype that does not fit the others, if the knots and
            coefficients do not belong to an order from 1 to 5, or if the knots are not finite or decrease.

    Example:
        >>> knots, coefficients = torch.linspace(-2, 2, 11), torch.randn(7, 2, 5)
        >>> KANLinear.from_splines(knots, coefficients, base_weight=torch.randn(2, 5))
        KANLinear(2, 5, grid_size=4, spline_order=3)
    """
    weight = _read("coefficients", coefficients)
    if not weight.dtype.is_floating_point:
        weight = weight.to(torch.get_default_dtype())
    check_shape("coefficients", weight, ("G + k", "in", "out"))
    count, inputs, outputs = weight.shape
    ends = _read("knots", knots)
    if ends.ndim == 1:
        ends = ends.expand(inputs, -1)
    check_shape("knots", ends, (inputs, "G + 2k + 1"))
    order = ends.shape[1] - count - 1
    if not 1 <= order <= min(MAX_SPLINE_ORDER, count - 1):
        raise ValueError(
            f"knots must have G + 2k + 1 columns for G + k coefficients, with k from 1 to {MAX_SPLINE_ORDER}; got "
            f"{ends.shape[1]} columns for {count} coefficients"
        )
    ends = ends.to(weight.device, torch.float64 if weight.dtype == torch.float64 else torch.float32)
    check_knots(ends, order)
    given = {"base_weight": base_weight, "spline_scale": scale, "bias": bias}
    parts = {"spline_weight": weight}
    for name, value in given.items():
        if value is not None:
            shown = "scale" if name == "spline_scale" else name
            parts[name] = _read(shown, value)
            check_shape(shown, parts[name], (outputs,) if name == "bias" else (inputs, outputs))
    with torch.random.fork_rng(devices=[]):  # the constructor draws initial weights, which are replaced below
        layer = cls(
            inputs, outputs, count - order, order, base="none" if base_weight is None else base, outside=outside,
            bias=bias is not None, spline_scale=scale is not None, dtype=weight.dtype, device="cpu",
            grid_range=_range(ends, order),
        )  # fmt: skip
    layer.to(weight.device)
    for name, value in parts.items():
        copied = value.detach().to(weight, copy=True).contiguous()
        setattr(layer, name, nn.Parameter(copied))
    layer.set_knots(ends)
    return layer


def _read(name: str, value: Any) -> Tensor:
    """Return a tensor, array or list as a dense tensor that has values."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor, an array or lists of numbers: {error}") from None
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be a dense tensor of real numbers, got {tensor.dtype}, {tensor.layout}")
    if tensor.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on meta")
    return tensor


def _range(knots: Tensor, order: int) -> tuple[float, float]:
    """Return the lowest and the highest end of the grids."""
    if not len(knots):
        return -1.0, 1.0
    return knots[:, order].min().item(), knots[:, -order - 1].max().item()
