"""The features psi^(d) by definition, in plain PyTorch.

Cox-de Boor's recursion (de Boor, A Practical Guide to Splines, IX (14) and X (16)) on constant
cell masks. Readable rather than quick, right on every knot and every dtype, and differentiable by
PyTorch itself to any order, by the knots too.

The meaning of x that is no ordinary number, for every backend, every d and every gradient alike:

- NaN: every feature of that input is NaN, of every d. So row n of F, element (n, i) of H, and in G all
  weights of input i, which sum over n, become NaN; nothing else does.
- Infinite: splines are 0, and the base function has its limit: silu 0 and inf, identity x itself; its
  derivatives 1 or 0. An infinite feature times a weight of 0, or beside one of the other sign, is NaN
  as in :class:`torch.nn.Linear`.
- On a knot: the cell to its right counts, [t_j, t_{j+1}). On the last knot of all, and beyond both ends,
  splines are exactly 0, of every d. Cells of no width hold nothing (0/0 counts as 0).
- Products rounded to float16 (``Basis.matmul_dtype``) lose what is beyond 65504 to an infinity, which only a
  base function can reach. Splines and their derivatives are rounded in units of a cell and can't.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..basis import BASE_FUNCTIONS, MAX_BASE_DERIVATIVE, Basis, working_dtype

SATURATED = 1e3  # beyond it the logistic is 0 or 1 in every dtype


def _over(numerator: Tensor, width: Tensor) -> Tensor:
    """``numerator / width``, and 0 over a width of 0, in value and in gradient."""
    empty = width == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, width))


def nan_of(x: Tensor) -> Tensor:
    """NaN where x is NaN, and 0 elsewhere; so are all derivatives, which PyTorch takes of the exponential."""
    lost = x.isnan()
    return torch.where(lost, torch.where(lost, x, 0.0).exp(), 0.0)


def splines(x: Tensor, knots: Tensor, order: int, derivative: int = 0) -> Tensor:
    """B-splines, or their derivatives, of every input.

    Args:
        x: ``[N, I]``. NaN gives NaN; outside the knots, infinities included, splines are 0.
        knots: ``[I, M]``, each row non-decreasing; repeated knots are legal.
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
    x = torch.where(inside | x.isnan(), x, t[:, :1])  # an infinity times 0 would be NaN
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
    return values + lost  # between repeated knots, or as constants, some have been without it


def check_base_derivative(name: str, derivative: int) -> None:
    """Raises a ValueError for a derivative that a base function does not have in closed form."""
    if name == "silu" and derivative > MAX_BASE_DERIVATIVE:
        raise ValueError(
            f"derivative of order {derivative} was asked of base='silu', which has them to "
            f"{MAX_BASE_DERIVATIVE}; use base='identity' or 'none' for higher ones"
        )


def base_function(x: Tensor, name: str, derivative: int = 0) -> Tensor:
    """The base function's derivative of order d, elementwise.

    ``silu(x) = x s(x)`` with the logistic s, so ``silu^(d) = d s^(d-1) + x s^(d)``; each s^(d) is a
    polynomial in s. At infinities it takes its limit. PyTorch may differentiate it, at any x and to any order.

    Raises:
        ValueError: for an unknown name, or a derivative of silu above 4.
    """
    if name == "identity":
        return (x if derivative == 0 else float(derivative == 1)) + nan_of(x)
    if name != "silu":
        raise ValueError(f"base must be one of {BASE_FUNCTIONS}, got {name!r}")
    check_base_derivative(name, derivative)
    if derivative > 0:
        bounded = x.clamp(-SATURATED, SATURATED)  # inf * 0 would be NaN, here and in what PyTorch differentiates
        return silu_derivative(bounded, torch.sigmoid(x), torch.sigmoid(-x), derivative)
    # silu(x) = x + silu(-x): on this side of 0 the logistic is small, and 1 - s is not lost in its derivatives
    positive = x > 0
    below = torch.where(positive, -x, x).clamp(min=-SATURATED)
    return torch.where(positive, x, 0.0) + below * torch.sigmoid(below)


def silu_derivative(x, s, rest, derivative: int):
    """silu^(d), d from 1 to 4, of a finite x: tensors, or arrays of NumPy.

    Args:
        s, rest: the logistic of x and that of -x, which is 1 - s but for its rounding: beside 1 that would
            lose what is left of the derivatives at a large x.
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
    """Mean width of a cell of each input, ``[I]``."""
    return (knots[:, -1] - knots[:, 0]) / (knots.shape[1] - 1)


def round_features(psi: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Features rounded to ``basis.matmul_dtype`` in units of a cell, where no derivative overflows, and back.

    Where cells differ in width, no unit fits derivatives in all of them into float16's range, and they
    are left as they are.
    """
    product = basis.matmul_dtype
    if product is None or product == psi.dtype:
        return psi
    if derivative > 0 and product == torch.float16 and not basis.uniform:
        return psi
    unit = cell_width(knots).to(psi.dtype) ** derivative
    return (psi * unit).to(product).to(psi.dtype) / unit


def round_weights(weight: Tensor, product: torch.dtype | None, dtype: torch.dtype) -> Tensor:
    """Weights rounded to ``product``, in the dtype of the work."""
    if product is not None and product != weight.dtype:
        weight = weight.to(product)
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
