"""The function ``explain``, which describes the route and the backend that a call of a layer would use."""

from __future__ import annotations

from torch import Tensor

from fastkan_kernels import BACKENDS, Operands, autocast_dtype, check_alike, has_values, route

from ..functional import rows_of
from .conv import KANConv
from .linear import KANLinear

_STEPS = (
    ("F", 0, "forward"),
    ("G", 0, "gradient with respect to the weights"),
    ("H", 1, "gradient with respect to the input"),
)


def explain(layer: KANLinear, x: Tensor) -> str:
    """Describe which route and which backend ``layer(x)`` would use, and why, without running the layer.

    Args:
        layer: a :class:`KANLinear` or a :class:`KANConv2d`.
        x: an input of the layer.

    Returns:
        A text of a few lines.

    Raises:
        TypeError: if ``layer`` is not a :class:`KANLinear`.
        ValueError: if x has the wrong shape.
        RuntimeError: if the selected backend does not support the call.

    Example:
        >>> print(explain(KANLinear(64, 64), torch.rand(4096, 64)))  # doctest: +ELLIPSIS
        64 -> 64, 8 splines of order 3 on knots that are uniform, base silu; x is 4096 rows of float32 on cpu
        route: functions, because of eager mode
        backend: cpu (auto: x is on the CPU)
        F_0 (forward): dense: features made in closed form, ... each met by a matrix product
        G_0 (gradient with respect to the weights): dense: features made in closed form, ...
        H_1 (gradient with respect to the input): dense: features made in closed form, ...
    """
    if not isinstance(layer, KANLinear):
        raise TypeError(f"layer must be a KANLinear, got {type(layer).__name__}")
    flat = layer.pixels(x) if isinstance(layer, KANConv) else rows_of(x, layer.in_features)
    check_alike(x, knots=layer.knots, spline_weight=layer.spline_weight)
    basis, product = layer.basis, autocast_dtype(x)
    rows = flat.shape[0]
    taken = route(x, layer.knots)
    operands = Operands(weight=layer.spline_weight, base_weight=layer.base_weight)
    with_product = basis._replace(matmul_dtype=product)
    at_rows = BACKENDS[taken.backend].at_rows if has_values(flat, layer.knots) else None
    piecewise = (
        at_rows is not None
        and not isinstance(layer, KANConv)
        and at_rows({}, flat, layer.knots, operands, with_product, 0) is not None
    )
    count = layer.spline_weight.shape[0]
    knots = "uniform" if basis.uniform else "of any spacing"
    lines = [
        f"{layer.in_features} -> {layer.out_features}, {count} splines of order {layer.spline_order} on knots "
        f"that are {knots}, base {layer.base}; x is {rows} rows of {x.dtype} on {x.device}".replace("torch.", ""),
        f"route: {taken.way}, because of {taken.way_because}",
        f"backend: {taken.backend} ({taken.backend_because})",
    ]
    if product is not None:
        rounded = f"autocast: features and weights are rounded to {product} before their product, and outputs after it"
        lines.append(rounded.replace("torch.", ""))
    if layer.outside == "linear":
        lines.append("outside='linear': F_1 at the grid's nearest point is added to F_0")
    if taken.way == "functions" and piecewise:
        lines.append("F_0, piecewise: polynomials of the edges on the cells of the knots, cached for the backward")
        return "\n".join(lines)
    if isinstance(layer, KANConv):
        lines.append("F_0, G_0, H_1: features of each pixel in blocks of images and channels, convolved by PyTorch")
        return "\n".join(lines)
    for name, derivative, what in _STEPS:
        how = BACKENDS[taken.backend].describe(name, flat, layer.out_features, count, with_product, derivative)
        lines.append(f"{name}_{derivative} ({what}): {how}")
    return "\n".join(lines)
