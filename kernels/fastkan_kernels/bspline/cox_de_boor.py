"""The definition of the features psi^(d), in plain PyTorch.

The B-splines come from the Cox-de Boor recursion (de Boor, A Practical Guide to Splines, IX (14) and X (16)). This
code is written for clarity rather than speed. It holds for all knots and dtypes, and autograd differentiates it to any
order, with respect to the knots too.

Special values of x mean the same on every backend, for every d and in every gradient:

- NaN: all features of that element are NaN, for every d. So row n of F, element (n, i) of H, and in G all
  weights of input i, which sum over n, become NaN; nothing else does.
- Infinity: splines are 0, and the base function has its limit: 0 or inf for silu and x for identity; their
  derivatives are 1 or 0. As in :class:`torch.nn.Linear`, an infinite feature times a weight of 0, or added to an
  infinite one of the other sign, gives NaN.
- On a knot: x belongs to the cell to its right, [t_j, t_{j+1}). On the last knot of all, and beyond both ends,
  splines are exactly 0, for every d. Cells without width contain no x (0/0 counts as 0).
- Under ``Basis.matmul_dtype=float16``, features beyond 65504 become infinite. Only base functions can be so large,
  since splines and their derivatives are rounded in units of a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..basis import BASE_FUNCTIONS, MAX_BASE_DERIVATIVE, Basis, working_dtype

SATURATED = 1e3  # |x| beyond which the logistic function is 0 or 1 in every dtype


def _over(numerator: Tensor, width: Tensor) -> Tensor:
    """``numerator / width``, with 0 as value and gradient where ``width`` is 0."""
    empty = width == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, width))


def nan_of(x: Tensor) -> Tensor:
    """NaN where x is NaN, and 0 elsewhere. All its derivatives are the same, since autograd differentiates the
    exponential."""
    lost = x.isnan()
    return torch.where(lost, torch.where(lost, x, 0.0).exp(), 0.0)


def splines(x: Tensor, knots: Tensor, order: int, derivative: int = 0) -> Tensor:
    """All B-splines at x, or their derivatives.

    Args:
        x: ``[N, I]``. NaN gives NaN; outside the knots, at infinities too, splines are 0.
        knots: ``[I, M]``, each row non-decreasing; knots may be repeated.
        order: degree k >= 0.
        derivative: d >= 0; above k the result is exactly 0.

    Returns:
        ``[N, M - k - 1, I]``: spline b of input i at ``[:, b, i]``. On a knot the value is that of
        the cell to its right, [t_j, t_{j+1}), for every d; at the last knot of all it is 0.

    Example:
        >>> splines(torch.tensor([[0.25]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]]), order=1)
        tensor([[[0.2500],
                 [0.0000]]])
    """
    x = x.unsqueeze(1)
    t = knots.t().unsqueeze(0)  # [1, M, I]
    count = knots.shape[1] - order - 1
    if derivative > order:
        return nan_of(x).repeat(1, count, 1)
    lost = nan_of(x)
    inside = (x >= t[:, :1]) & (x < t[:, -1:])
    x = torch.where(inside | x.isnan(), x, t[:, :1])  # inf * 0 would be NaN
    cells = ((x >= t[:, :-1]) & (x < t[:, 1:])) & inside
    values = torch.where(x.isnan(), x, cells.to(x.dtype))
    for degree in range(1, order + 1):
        width = t[:, degree:-1] - t[:, : -degree - 1]
        next_width = t[:, degree + 1 :] - t[:, 1:-degree]
        here, there = _over(values[:, :-1], width), _over(values[:, 1:], next_width)
        if degree > order - derivative:
            values = degree * (here - there)
        else:
            values = (x - t[:, : -degree - 1]) * here + (t[:, degree + 1 :] - x) * there
    return values + lost  # splines of empty cells, and constants, have not passed the NaN on


def check_base_derivative(name: str, derivative: int) -> None:
    """Raise a ValueError for a derivative of a base function that is not implemented: of silu above 4."""
    if name == "silu" and derivative > MAX_BASE_DERIVATIVE:
        raise ValueError(
            f"derivative of order {derivative} was asked of base='silu', which has them to "
            f"{MAX_BASE_DERIVATIVE}; use base='identity' or 'none' for higher ones"
        )


def base_function(x: Tensor, name: str, derivative: int = 0) -> Tensor:
    """The d-th derivative of a base function, elementwise.

    ``silu(x) = x s(x)`` with the logistic function s, so ``silu^(d) = d s^(d-1) + x s^(d)``; each s^(d) is a
    polynomial in s. At infinities the result is the limit. Autograd may differentiate it, at any x and to any order.

    Raises:
        ValueError: for an unknown name, or a derivative of silu above 4.
    """
    if name == "identity":
        return (x if derivative == 0 else float(derivative == 1)) + nan_of(x)
    if name != "silu":
        raise ValueError(f"base must be one of {BASE_FUNCTIONS}, got {name!r}")
    check_base_derivative(name, derivative)
    if derivative > 0:
        bounded = x.clamp(-SATURATED, SATURATED)  # inf * 0 would be NaN, here and in autograd's derivatives
        return silu_derivative(bounded, torch.sigmoid(x), torch.sigmoid(-x), derivative)
    # By silu(x) = x + silu(-x), the logistic is taken at -|x|, where it is small: near 1, rounding would lose 1 - s
    # in autograd's derivatives.
    positive = x > 0
    below = torch.where(positive, -x, x).clamp(min=-SATURATED)
    return torch.where(positive, x, 0.0) + below * torch.sigmoid(below)


def silu_derivative(x, s, rest, derivative: int):
    """silu^(d) for d from 1 to 4 at a finite x; the arguments are tensors or NumPy arrays.

    Args:
        s: the logistic function of x.
        rest: the logistic function of -x. It equals 1 - s, but computed as 1 - s it would lose its leading digits
            at a large x, where the derivatives are small.
    """
    if derivative == 1:
        return s * (1 + x * rest)
    slope, odd = s * rest, rest - s
    if derivative == 2:
        return slope * (2 + x * odd)
    third = 1 - 6 * slope
    if derivative == 3:
        return slope * (3 * odd + x * third)
    return slope * (4 * third + x * odd * (1 - 12 * slope))


def cell_width(knots: Tensor) -> Tensor:
    """Mean width of the cells of each input, ``[I]``."""
    return (knots[:, -1] - knots[:, 0]) / (knots.shape[1] - 1)


def round_features(psi: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Splines rounded to ``basis.matmul_dtype`` and converted back to their own dtype.

    They are rounded in units of a cell, so that no derivative overflows. If cells differ in width, no unit fits the
    derivatives in all cells into the range of float16, and they are not rounded.
    """
    matmul_dtype = basis.matmul_dtype
    if matmul_dtype is None or matmul_dtype == psi.dtype:
        return psi
    if derivative > 0 and matmul_dtype == torch.float16 and not basis.uniform:
        return psi
    unit = cell_width(knots).to(psi.dtype) ** derivative
    return (psi * unit).to(matmul_dtype).to(psi.dtype) / unit


def round_weights(weight: Tensor, matmul_dtype: torch.dtype | None, dtype: torch.dtype) -> Tensor:
    """Weights rounded to ``matmul_dtype``, unless it is None, and converted to ``dtype``."""
    if matmul_dtype is not None and matmul_dtype != weight.dtype:
        weight = weight.to(matmul_dtype)
    return weight.to(dtype)


def features(x: Tensor, knots: Tensor, basis: Basis, derivative: int = 0) -> tuple[Tensor, Tensor | None]:
    """All features of a layer: ``(splines [N, K, I], base [N, I] or None)``, in the working dtype."""
    dtype = working_dtype(x.dtype)
    x, knots = x.to(dtype), knots.to(dtype)
    psi = splines(x, knots, basis.order, derivative)
    psi = round_features(psi, knots, basis, derivative)
    if basis.base == "none":
        return psi, None
    base = base_function(x, basis.base, derivative)
    return psi, round_weights(base, basis.matmul_dtype, dtype)
