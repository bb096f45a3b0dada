"""The layer as a function, without a module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastkan_kernels import (
    BASE,
    FLAG,
    ORDER,
    Basis,
    Choice,
    Operands,
    Optional,
    Pieces,
    autocast_dtype,
    base_function,
    basis_of,
    check_alike,
    check_knots,
    check_shape,
    check_tensor,
    check_weights,
    checked,
    contract,
    exact_products,
    fold_scale_and_mask,
    needs_composite,
    round_weights,
    uniform_basis,
    working_dtype,
)

OUTSIDE = Choice(("zero", "linear"))  # what splines do beyond the grid


@checked(spline_order=ORDER, base=BASE, outside=OUTSIDE, uniform=Optional(FLAG))
def kan_linear(
    x: Tensor,
    spline_weight: Tensor,
    base_weight: Tensor | None = None,
    *,
    knots: Tensor,
    spline_order: int = 3,
    base: str = "silu",
    bias: Tensor | None = None,
    spline_scale: Tensor | None = None,
    mask: Tensor | None = None,
    outside: str = "zero",
    uniform: bool | None = None,
) -> Tensor:
    """A KAN layer: ``y[..., o] = sum_i phi_io(x[..., i]) + bias[o]`` with, on each edge,
    ``phi_io(x) = mask_io (spline_scale_io sum_b spline_weight[b,i,o] B_b(x) + base_weight_io silu(x))``.

    Args:
        x: ``[..., in]``.
        spline_weight: ``[G + k, in, out]``, the spline coefficients.
        base_weight: ``[in, out]``; None with ``base="none"``, and only then.
        knots: ``[in, G + 2k + 1]``, non-decreasing, in x's units.
        spline_order: k, 1 to 5.
        base: ``"silu"``, ``"identity"`` or ``"none"``.
        bias: ``[out]``.
        spline_scale: ``[in, out]``, a factor of each edge's spline.
        mask: ``[in, out]``; an edge with 0 is off and gets no gradient.
        outside: beyond the grid [t_k, t_{G+k}] a spline runs out to ``"zero"`` along the outer knots,
            or goes on ``"linear"``, by its tangent (an infinite x gives NaN then).
        uniform: whether each row of the knots is equally spaced. None looks, which reads their values
            (and waits for a GPU); who calls often says it, and is taken at their word.

    Returns:
        ``[..., out]`` in x's dtype.

    Raises:
        TypeError, ValueError: for arguments that don't fit together, before any work is done.

    Example:
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> w = torch.randn(8, 2, 4)
        >>> kan_linear(torch.rand(10, 2), w, knots=knots, base="none").shape
        torch.Size([10, 4])
    """
    check_tensor("x", x)
    check_tensor("spline_weight", spline_weight)
    check_shape("spline_weight", spline_weight, ("grid_size + spline_order", "in_features", "out_features"))
    count, inputs, outputs = spline_weight.shape
    check_tensor("knots", knots)
    check_shape("knots", knots, (inputs, count + spline_order + 1))
    if uniform is None:
        check_knots(knots, spline_order)
        basis = basis_of(knots, spline_order, base)
    else:
        unread = not uniform or needs_composite(knots) is not None
        basis = Basis(spline_order, base) if unread else uniform_basis(knots, spline_order, base)
    check_weights(knots, spline_weight, base_weight, basis, "spline_weight")
    for name, value, shape in (
        ("bias", bias, (outputs,)),
        ("spline_scale", spline_scale, (inputs, outputs)),
        ("mask", mask, (inputs, outputs)),
    ):
        if value is not None:
            check_tensor(name, value, any_dtype=name == "mask")
            check_shape(name, value, shape)
    return forward(x, spline_weight, base_weight, spline_scale, mask, bias, knots, basis, outside)


def forward(
    x: Tensor,
    weight: Tensor,
    base_weight: Tensor | None,
    scale: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    knots: Tensor,
    basis: Basis,
    outside: str,
    pieces: Callable[[], Pieces] | None = None,
) -> Tensor:
    """What :func:`kan_linear` and the module share, for arguments that are known to be in order but
    for x."""
    _, inputs, outputs = weight.shape
    rows = rows_of(x, inputs)
    check_alike(x, knots=knots, spline_weight=weight, base_weight=base_weight, spline_scale=scale, bias=bias)
    if mask is not None:
        if mask.device != x.device:
            raise ValueError(f"mask is on {mask.device}, but x is on {x.device}")
        mask = mask.to(weight.dtype)
    if scale is not None and weight.dtype.itemsize == 2 and x.device.type == "cpu":
        weight, scale = weight.float(), scale.float()  # rounded once, at the end
        base_weight = None if base_weight is None else base_weight.float()
        mask = None if mask is None else mask.float()
    slots = Operands(None, *fold_scale_and_mask(weight, base_weight, scale, mask))
    if outside == "linear":
        y = _linear_outside(rows, knots, slots, basis, pieces)
    else:
        y = contract("F", rows, knots, slots, basis, 0, pieces)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], outputs)


def rows_of(x: Tensor, inputs: int) -> Tensor:
    """``[..., in]`` as ``[N, in]``.

    Raises:
        TypeError, ValueError: if it is something else.
    """
    check_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise ValueError(f"x must have the shape [..., in_features={inputs}], got {list(x.shape)}")
    if x.ndim == 2:
        return x
    return x.unsqueeze(0) if x.ndim == 1 else x.flatten(0, -2)


def _linear_outside(
    x: Tensor, knots: Tensor, slots: Operands, basis: Basis, pieces: Callable[[], Pieces] | None
) -> Tensor:
    """F_0(near, W) + F_1(end, W, x - end) of the splines: ``near`` is x inside the grid and the nearest end
    outside, and the tangent at ``end`` counts outside alone. The base function needs no continuation."""
    order = basis.order
    wide = x.to(torch.promote_types(x.dtype, knots.dtype))
    low, high = knots[:, order], knots[:, -order - 1]
    # the last cell's own tangent: on the knot itself the cell to its right would count
    high = predecessor(high)
    above = wide > high
    outside = above | (wide < low)
    end = torch.where(above, high, low)
    near = torch.where(outside, end, wide)
    # an infinity would go to infinity where the tangent rises or falls, and have no value where it is flat
    endless = torch.where(wide.isinf(), torch.nan, 0.0)
    beyond = torch.where(outside, wide - end + endless, 0.0)
    splines, alone = basis._replace(base="none"), slots._replace(base_weight=None)
    y = contract("F", near, knots, alone, splines, 0, pieces)
    y = y + contract("F", end, knots, alone._replace(v=beyond), splines, 1, pieces)
    if slots.base_weight is not None:
        product, dtype = autocast_dtype(x), working_dtype(x.dtype)
        base = round_weights(base_function(wide.to(dtype), basis.base), product, dtype)
        with exact_products(x):
            y = y + torch.mm(base, round_weights(slots.base_weight, product, dtype))
    return y.to(x.dtype)


def predecessor(x: Tensor) -> Tensor:
    """The next number below each finite x, ``torch.nextafter(x, -inf)``, in operations that ONNX has.

    Rump, Zimmermann, Boldo and Melquiond, Computing predecessor and successor in rounding to nearest, 2009,
    algorithm 2. Among the first eight multiples of the smallest normal number it may be one number further.
    """
    limits = torch.finfo(x.dtype)
    unit = limits.eps / 2
    return x - (x.abs() * (unit * (1 + 2 * unit)) + limits.smallest_normal * limits.eps)
