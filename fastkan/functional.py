"""A KAN layer as a function of its inputs and parameters, and the derivatives of a scalar function of each row."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastkan_kernels import (
    BASE,
    FLAG,
    ORDER,
    Basis,
    Callback,
    Choice,
    Each,
    Int,
    Operands,
    Optional,
    Pieces,
    Window,
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
    recorder,
    repr_with_shapes,
    round_weights,
    uniform_basis,
    working_dtype,
)

# The choices for the continuation of splines outside the grid.
OUTSIDE = Choice(("zero", "linear"))


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
    """Apply a KAN layer.

        y[..., o] = sum_i phi_io(x[..., i]) + bias[o]
        phi_io(x) = mask_io (spline_scale_io sum_b spline_weight[b,i,o] B_b(x) + base_weight_io silu(x))

    Args:
        x: the inputs ``[..., in]``.
        spline_weight: the spline coefficients ``[G + k, in, out]``.
        base_weight: the weights ``[in, out]`` of the base function. The argument must be None if ``base="none"``, and
            must not be None otherwise.
        knots: the knots ``[in, G + 2k + 1]``, in the units of x, non-decreasing in each row.
        spline_order: the order k of the splines, from 1 to 5.
        base: the base function, ``"silu"``, ``"gelu"``, ``"identity"`` or ``"none"``.
        bias: a bias ``[out]``, or None for no bias.
        spline_scale: a factor ``[in, out]`` for the spline of each edge, or None if all factors are 1.
        mask: a factor ``[in, out]`` for each edge function, or None if all factors are 1. An edge with the factor 0 is
            switched off, and its parameters get no gradient.
        outside: how splines continue outside the grid [t_k, t_{G+k}]. With ``"zero"``, a spline falls to zero over the
            outer knots. With ``"linear"``, a spline continues along its tangent, and an infinite x gives NaN.
        uniform: whether each row of the knots is equally spaced, which is not verified. If None, the spacing is
            determined from the values of the knots. If the knots are on a GPU, reading the values makes the host wait
            for the GPU. Code that calls the function often should pass a bool.

    Returns:
        A tensor ``[..., out]`` in the dtype of x or, under autocast, in the dtype of autocast, as from ``nn.Linear``.

    Raises:
        TypeError, ValueError: if the type, dtype, device or shape of an argument is wrong.

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
    window: Window | None = None,
) -> Tensor:
    """Apply a KAN layer. All arguments except x must have been validated.

    Both :func:`kan_linear` and the layer modules call this function. If a window is given, x is a validated batch of
    images ``[N, C, *size]``, and the result is their convolution ``[N, O, *size]``.
    """
    _, inputs, outputs = weight.shape
    rows = rows_of(x, inputs) if window is None else x
    check_alike(x, knots=knots, spline_weight=weight, base_weight=base_weight, spline_scale=scale, bias=bias)
    if mask is not None:
        if mask.device != x.device:
            raise ValueError(f"mask is on {mask.device}, but x is on {x.device}")
        mask = mask.to(weight.dtype)
    if scale is not None and weight.dtype.itemsize == 2 and x.device.type == "cpu":
        # The product of weight and scale is float32, so that only the final result is rounded to half precision.
        weight, scale = weight.float(), scale.float()
        base_weight = None if base_weight is None else base_weight.float()
        mask = None if mask is None else mask.float()
    recording = recorder() if window is None else None  # Jacobians of convolutions are computed column by column.
    if recording is None:
        operands = Operands(None, *fold_scale_and_mask(weight, base_weight, scale, mask))
    else:
        # The linear continuation multiplies by the base weights outside of the contractions.
        split = outside == "linear"
        operands = Operands(None, *recording.weights(weight, base_weight, scale, mask, len(rows) if split else None))
        bias = bias if bias is None else recording.rows(bias, len(rows))
    if outside == "linear":
        y = _linear_outside(rows, knots, operands, basis, pieces, window)
    else:
        y = contract("F", rows, knots, operands, basis, 0, pieces, window)
    if bias is not None:
        y = y + _per_channel(bias, y).to(y.dtype)
    product = autocast_dtype(x)
    if product is not None and x.dtype != torch.float64:  # as nn.Linear does; autocast does not change float64
        y = y.to(product)
    if window is not None:
        return y
    return y if x.ndim == 2 else y.view(*x.shape[:-1], outputs)


def rows_of(x: Tensor, inputs: int) -> Tensor:
    """Return ``x [..., in]`` as rows ``[N, in]``.

    Raises:
        TypeError, ValueError: if x is not a tensor, or the size of its last dimension is not ``inputs``.
    """
    if not isinstance(x, Tensor) and hasattr(x, "__array__"):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}: torch.from_numpy(array) makes one")
    check_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise ValueError(f"x must have the shape [..., in_features={inputs}], got {list(x.shape)}")
    if x.ndim == 2:
        return x
    return x.unsqueeze(0) if x.ndim == 1 else x.flatten(0, -2)


def _linear_outside(
    x: Tensor,
    knots: Tensor,
    operands: Operands,
    basis: Basis,
    pieces: Callable[[], Pieces] | None,
    window: Window | None,
) -> Tensor:
    """Apply a KAN layer whose splines continue along their tangents outside the grid.

    The splines contribute ``F_0(clamped, W) + F_1(end, W, x - end)``, where ``clamped`` is x clamped to the grid and
    ``end`` is the end of the grid that is nearest to x. The second term is zero for x inside the grid. The base
    function is defined everywhere and needs no continuation.
    """
    order = basis.order
    wide = x.to(torch.promote_types(x.dtype, knots.dtype))
    low, high = knots[:, order], knots[:, -order - 1]
    # The last knot of the grid belongs to the cell to its right, so the tangent is computed just below the last knot.
    low, high = _per_channel(low, x), _per_channel(predecessor(high), x)
    above = wide > high
    outside = above | (wide < low)
    end = torch.where(above, high, low)
    clamped = torch.where(outside, end, wide)
    # For an infinite x, a tangent with slope 0 has no defined value, so the result is NaN for every slope.
    nan_if_infinite = torch.where(wide.isinf(), torch.nan, 0.0)
    beyond = torch.where(outside, wide - end + nan_if_infinite, 0.0)
    splines, alone = basis._replace(base="none"), operands._replace(base_weight=None)
    y = contract("F", clamped, knots, alone, splines, 0, pieces, window)
    y = y + contract("F", end, knots, alone._replace(v=beyond), splines, 1, pieces, window)
    if operands.base_weight is not None:
        product, dtype = autocast_dtype(x), working_dtype(x.dtype)
        base = round_weights(base_function(wide.to(dtype), basis.base), product, dtype)
        weight = round_weights(operands.base_weight, product, dtype)
        with exact_products(x):
            if window is not None:
                y = y + window.convolve_base(base, weight)
            else:
                y = y + (torch.mm(base, weight) if weight.ndim == 2 else torch.einsum("ni,nio->no", base, weight))
    return y.to(x.dtype)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return values ``[..., C]`` in a shape that broadcasts over rows ``x [N, C]`` or images ``x [N, C, *size]``."""
    return values if x.ndim == 2 else values.view(-1, *(1,) * (x.ndim - 2))


def predecessor(x: Tensor) -> Tensor:
    """Return the next smaller floating-point number for each finite x.

    The result is equal to ``torch.nextafter(x, -inf)``, but the function uses only operations that ONNX supports. The
    implementation follows algorithm 2 of Rump, Zimmermann, Boldo and Melquiond, Computing predecessor and successor in
    rounding to nearest, 2009. If x is one of the first eight multiples of the smallest normal number, the result may be
    the second number below x.
    """
    limits = torch.finfo(x.dtype)
    unit = limits.eps / 2
    return x - (x.abs() * (unit * (1 + 2 * unit)) + limits.smallest_normal * limits.eps)


class Derivatives(namedtuple("Derivatives", ("value", "gradient", "hessian"))):
    """The value and the derivatives of a scalar function u at N rows of D numbers; see :func:`derivatives`.

    Attributes:
        value: the values of u, a tensor ``[N]``.
        gradient: the derivatives of u with respect to x, a tensor ``[N, D]``.
        hessian: the derivatives of the chosen columns of the gradient with respect to x, a tensor ``[N, columns, D]``.
    """

    # A typing.NamedTuple would have types that pdoc cannot resolve.
    value: Tensor
    gradient: Tensor
    hessian: Tensor

    def __repr__(self) -> str:
        return repr_with_shapes(self)


@checked(u=Callback(), columns=Optional(Each(Int(least=0))))
def derivatives(u: Callable[[Tensor], Tensor], x: Tensor, columns: Sequence[int] | None = None) -> Derivatives:
    """Compute the value, the gradient and the second derivatives of a function at each row of ``x``.

    The results are differentiable with respect to the parameters of ``u``, and with respect to x if x requires
    gradients, unless gradients are turned off. The function calls ``u`` once and uses one backward pass for the
    gradient and one for each row of the Hessian matrix.

    Args:
        u: a function, for example a :class:`KAN`, that computes one number ``[N]`` or ``[N, 1]`` for each row of x. Row
            n of the result must depend on row n of x only, which is not verified.
        x: the points ``[N, D]``.
        columns: the columns of x for which second derivatives are computed, or None for all columns.

    Returns:
        A tuple of ``value [N]``, ``gradient [N, D]`` and ``hessian [N, len(columns), D]``. The number
        ``hessian[n, i, j]`` is the second derivative with respect to ``x[n, columns[i]]`` and ``x[n, j]``.

    Raises:
        TypeError, ValueError: if x has the wrong type, dtype or shape, a column does not exist, or ``u(x)`` has the
            wrong shape or was computed from x by operations that autograd does not record.

    Example:
        >>> value, gradient, hessian = derivatives(lambda x: x[:, 0] ** 2 * x[:, 1], torch.tensor([[2.0, 3.0]]))
        >>> value.tolist(), gradient.tolist(), hessian.tolist()
        ([12.0], [[12.0, 4.0]], [[[6.0, 4.0], [4.0, 0.0]]])
    """
    check_tensor("x", x)
    check_shape("x", x, ("rows", "columns"))
    columns = range(x.shape[1]) if columns is None else columns
    if any(column >= x.shape[1] for column in columns):
        raise ValueError(f"columns must be below {x.shape[1]}, the number of columns of x, got {list(columns)}")
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        if x.is_inference():
            x = x.clone()
        if not (x.requires_grad and differentiable):
            x = x.detach().requires_grad_()
        value = u(x)
        check_tensor("u(x)", value)
        if value.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(f"u(x) must have the shape [{len(x)}] or [{len(x)}, 1], got {list(value.shape)}")
        value = value.flatten()
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError("u(x) does not depend on x by operations that autograd records")
        rows = [_slope(gradient[:, column].sum(), x, differentiable) for column in columns]
        hessian = torch.stack(rows, 1) if rows else x.new_empty(len(x), 0, x.shape[1])
    if not differentiable:
        value, gradient = value.detach(), gradient.detach()
    return Derivatives(value, gradient, hessian)


@checked(u=Callback())
def laplacian(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute the sum of the second derivatives of a function with respect to each column, at each row of ``x``.

    The arguments, the errors and the gradients are those of :func:`derivatives`.

    Returns:
        A tensor ``[N]``.

    Example:
        >>> laplacian(lambda x: x[:, 0] ** 2 * x[:, 1], torch.tensor([[2.0, 3.0]])).tolist()
        [6.0]
    """
    return derivatives(u, x).hessian.diagonal(dim1=1, dim2=2).sum(1)


def _slope(y: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """Return the derivative of the number y with respect to x, which is 0 if y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(y, x, retain_graph=True, create_graph=create_graph, materialize_grads=True)
    return slope
