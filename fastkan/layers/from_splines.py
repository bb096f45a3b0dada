"""``KANLinear.from_splines``: a layer with given knots and coefficients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import BASE, MAX_SPLINE_ORDER, Kind, Optional, check_knots, check_shape, checked, kind_of

from ..functional import OUTSIDE


class Numbers(Kind):
    """An argument kind that accepts a tensor, an array or lists of real numbers, and returns a dense tensor."""

    def read(self, name: str, value: Any) -> Tensor:
        try:
            tensor = torch.as_tensor(value)
        except Exception as error:  # the conversion of an object may raise any error
            raise TypeError(f"{name} must be a tensor, an array or lists of numbers, got {kind_of(value)}") from error
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must be a dense tensor of real numbers, got {tensor.dtype}, {tensor.layout}")
        if tensor.is_meta:
            raise ValueError(f"{name} must have values, got a tensor on meta")
        return tensor


NUMBERS = Numbers()


@checked(
    knots=NUMBERS, coefficients=NUMBERS, base_weight=Optional(NUMBERS), scale=Optional(NUMBERS),
    bias=Optional(NUMBERS), base=BASE, outside=OUTSIDE,
)  # fmt: skip
@torch.inference_mode(False)
@torch.no_grad()
def from_splines(
    cls: Any,
    knots: Tensor,
    coefficients: Tensor,
    base_weight: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    base: str = "silu",
    outside: str = "zero",
) -> Any:
    """Return a layer with copies of the given tensors, for example those of a layer of another package.

    The sizes follow from the shapes: ``K`` coefficients on ``M`` knots are splines of order ``k = M - K - 1`` on a grid
    of ``G = K - k`` intervals. All arguments may be tensors, arrays or lists. The parameters have the dtype and the
    device of the coefficients, and require gradients.

    Args:
        knots: the knots ``[in, G + 2k + 1]``, in the units of the inputs, non-decreasing in each row, or one row
            ``[G + 2k + 1]`` for all inputs. A row consists of the ``G + 1`` knots of the grid and ``k`` knots on each
            side of the grid.
        coefficients: the spline coefficients ``[G + k, in, out]``.
        base_weight: the weights ``[in, out]`` of the base function. If None, the layer has no base function.
        scale: the factors ``[in, out]`` of the splines, or None.
        bias: the bias ``[out]``, or None.
        base: the base function, which is only used if there are base weights.
        outside: how splines continue outside the grid; see :class:`KANLinear`.

    Raises:
        TypeError, ValueError: if a tensor has a shape or dtype that does not fit the others, if the knots and
            coefficients do not belong to an order from 1 to 5, or if the knots are not finite or decrease.

    Example:
        >>> knots, coefficients = torch.linspace(-2, 2, 11), torch.randn(7, 2, 5)
        >>> KANLinear.from_splines(knots, coefficients, base_weight=torch.randn(2, 5))
        KANLinear(2, 5, grid_size=4, spline_order=3)
    """
    weight = coefficients if coefficients.dtype.is_floating_point else coefficients.to(torch.get_default_dtype())
    check_shape("coefficients", weight, ("G + k", "in", "out"))
    count, inputs, outputs = weight.shape
    ends = knots.expand(inputs, -1) if knots.ndim == 1 else knots
    check_shape("knots", ends, (inputs, "G + 2k + 1"))
    order = ends.shape[1] - count - 1
    if not 1 <= order <= min(MAX_SPLINE_ORDER, count - 1):
        raise ValueError(
            f"knots must have G + 2k + 1 columns for G + k coefficients, with k from 1 to {MAX_SPLINE_ORDER}; got "
            f"{ends.shape[1]} columns for {count} coefficients"
        )
    ends = ends.to(weight.device, torch.float64 if weight.dtype == torch.float64 else torch.float32)
    check_knots(ends, order)
    edges, parts = (inputs, outputs), {"spline_weight": weight}
    for name, shown, value, shape in (
        ("base_weight", "base_weight", base_weight, edges),
        ("spline_scale", "scale", scale, edges),
        ("bias", "bias", bias, (outputs,)),
    ):
        if value is not None:
            check_shape(shown, value, shape)
            parts[name] = value
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


def _range(knots: Tensor, order: int) -> tuple[float, float]:
    """Return the lowest and the highest end of the grids."""
    if not len(knots):
        return -1.0, 1.0
    return knots[:, order].min().item(), knots[:, -order - 1].max().item()
