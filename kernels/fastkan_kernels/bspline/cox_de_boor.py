"""The definition of the features psi^(d), in plain PyTorch.

B-splines are evaluated by the Cox-de Boor recursion (de Boor, A Practical Guide to Splines, IX (14) and X (16)). The
code is written for clarity rather than speed. The code works for all knots and dtypes, and autograd can differentiate
the splines to any order, including with respect to the knots.

All backends treat special values of x in the same manner, for every derivative order d and in every gradient:

- If x[n, i] is NaN, all features of x[n, i] are NaN. As a result, row n of F, element (n, i) of H, and all weights of
  input i in G are NaN. All other elements of F, G and H are unaffected.
- If x is infinite, all splines are 0, and the base function and its derivatives have their limits. For example, the
  limits of silu are 0 and inf. As in :class:`torch.nn.Linear`, the product of an infinite feature and a weight of 0 is
  NaN, and so is the sum of two infinite features of opposite sign.
- If x lies on a knot, x belongs to the cell to the right of the knot, [t_j, t_{j+1}). On the last knot, and outside of
  all knots, all splines and their derivatives are exactly 0. A cell of width 0 contains no x, and 0/0 counts as 0.
- If ``Basis.matmul_dtype`` is float16, features beyond 65504 become infinite. Only the base function can be that large,
  because splines and their derivatives are rounded in units of the cell width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..basis import BASE_FUNCTIONS, MAX_BASE_DERIVATIVE, Basis, working_dtype

SATURATED = 1e3  # for every |x| above this bound, the logistic function is exactly 0 or 1 in every dtype


def _over(numerator: Tensor, width: Tensor) -> Tensor:
    """Return ``numerator / width``. Where ``width`` is 0, the result and its gradient are 0."""
    empty = width == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, width))


def nan_of(x: Tensor) -> Tensor:
    """Return a tensor that is NaN where x is NaN, and 0 elsewhere.

    The derivatives of the result, of every order, are also NaN where x is NaN and 0 elsewhere.
    """
    lost = x.isnan()
    return torch.where(lost, torch.where(lost, x, 0.0).exp(), 0.0)


def splines(x: Tensor, knots: Tensor, order: int, derivative: int = 0) -> Tensor:
    """Evaluate all B-splines at x, or the d-th derivative of all B-splines at x.

    Args:
        x: the inputs ``[N, I]``. If x is NaN, the splines are NaN. Outside the knots, and at infinity, splines are 0.
        knots: the knots ``[I, M]``, non-decreasing in each row. Knots may be repeated.
        order: the degree k >= 0 of the splines.
        derivative: the order d >= 0 of the derivative. If d is larger than k, the result is exactly 0.

    Returns:
        A tensor ``[N, M - k - 1, I]``, in which the entries ``[:, b, i]`` are the values of spline b of input i. If x
        lies on a knot, the value is taken from the cell to the right of the knot. At the last knot, the value is 0.

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
    x = torch.where(inside | x.isnan(), x, t[:, :1])  # infinite x is replaced because inf * 0 would be NaN
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
    return values + lost  # if x is NaN, the sum is NaN even for splines that do not depend on x


def check_base_derivative(name: str, derivative: int) -> None:
    """Raise a ValueError if the base function is silu or gelu and the order of the derivative is above 4."""
    if name in ("silu", "gelu") and derivative > MAX_BASE_DERIVATIVE:
        raise ValueError(
            f"derivative must be at most {MAX_BASE_DERIVATIVE} for base={name!r}, got {derivative}; use "
            "base='identity' or 'none' for higher derivatives"
        )


def base_function(x: Tensor, name: str, derivative: int = 0) -> Tensor:
    """Compute the d-th derivative of a base function elementwise.

    With the logistic function s, ``silu(x) = x s(x)``. Therefore ``silu^(d) = d s^(d-1) + x s^(d)``, and each
    derivative s^(d) is a polynomial in s. With the distribution function P of the standard normal distribution,
    ``gelu(x) = x P(x)``, and each derivative above the first is a polynomial in x times the density. If x is infinite,
    the result is the limit of the derivative. Autograd can differentiate the result, at any x and to any order.

    Raises:
        ValueError: if the name is unknown, or ``derivative`` is above 4 and the base function is silu or gelu.
    """
    if name == "identity":
        return (x if derivative == 0 else float(derivative == 1)) + nan_of(x)
    if name not in ("silu", "gelu"):
        raise ValueError(f"base must be one of {BASE_FUNCTIONS}, got {name!r}")
    check_base_derivative(name, derivative)
    if derivative > 0:
        bounded = x.clamp(-SATURATED, SATURATED)  # x is bounded because inf * 0 would be NaN
        if name == "gelu":
            return _gelu_derivative(bounded, derivative)
        return silu_derivative(bounded, torch.sigmoid(x), torch.sigmoid(-x), derivative)
    # Because silu(x) = x + silu(-x), the logistic function s can be evaluated at -|x|, where s is small. If s were
    # close to 1, rounding errors would dominate the factor 1 - s in the derivatives that autograd computes. The same
    # holds for gelu and P.
    positive = x > 0
    below = torch.where(positive, -x, x).clamp(min=-SATURATED)
    return torch.where(positive, x, 0.0) + below * (torch.sigmoid(below) if name == "silu" else _normal(below))


def _normal(x: Tensor) -> Tensor:
    """Return the distribution function of the standard normal distribution."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)


def _gelu_derivative(x: Tensor, derivative: int) -> Tensor:
    """Return the derivative gelu^(d) of order d = 1 to 4 at a finite x."""
    square = x * x
    density = torch.exp(-0.5 * square) * (1 / math.sqrt(2 * math.pi))
    if derivative == 1:
        return _normal(x) + x * density
    if derivative == 2:
        return (2 - square) * density
    if derivative == 3:
        return x * (square - 4) * density
    return ((7 - square) * square - 4) * density


def silu_derivative(x, s, rest, derivative: int):
    """Return the derivative silu^(d) of order d = 1 to 4 at a finite x. The arguments are tensors or NumPy arrays.

    Args:
        s: the logistic function at x.
        rest: the logistic function at -x, which mathematically equals 1 - s. The computed difference 1 - s must not be
            passed, because at a large x the difference has few correct digits.
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
    """Return the mean width ``[I]`` of the cells of each input."""
    return (knots[:, -1] - knots[:, 0]) / (knots.shape[1] - 1)


def round_features(psi: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Round splines to ``basis.matmul_dtype`` and convert them back to their own dtype.

    Before the rounding, a derivative of order d is multiplied by the cell width to the power of d, so that it does not
    overflow; after the rounding, it is divided by the same factor. If the cells differ in width, derivatives are not
    rounded to float16, because no single factor keeps the derivatives in all cells within the range of float16.
    """
    matmul_dtype = basis.matmul_dtype
    if matmul_dtype is None or matmul_dtype == psi.dtype:
        return psi
    if derivative > 0 and matmul_dtype == torch.float16 and not basis.uniform:
        return psi
    unit = cell_width(knots).to(psi.dtype) ** derivative
    return (psi * unit).to(matmul_dtype).to(psi.dtype) / unit


def round_weights(weight: Tensor, matmul_dtype: torch.dtype | None, dtype: torch.dtype) -> Tensor:
    """Round weights to ``matmul_dtype``, unless ``matmul_dtype`` is None, and convert them to ``dtype``."""
    if matmul_dtype is not None and matmul_dtype != weight.dtype:
        weight = weight.to(matmul_dtype)
    return weight.to(dtype)


def features(x: Tensor, knots: Tensor, basis: Basis, derivative: int = 0) -> tuple[Tensor, Tensor | None]:
    """Return a tuple of the splines ``[N, K, I]`` and the base function ``[N, I]`` (or None), in the working dtype."""
    dtype = working_dtype(x.dtype)
    x, knots = x.to(dtype), knots.to(dtype)
    psi = splines(x, knots, basis.order, derivative)
    psi = round_features(psi, knots, basis, derivative)
    if basis.base == "none":
        return psi, None
    base = base_function(x, basis.base, derivative)
    return psi, round_weights(base, basis.matmul_dtype, dtype)
