"""Functions that evaluate and fit B-splines, with the same names and the same order of dimensions as in pykan."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkan_kernels import splines
from fastkan_kernels import validation as kinds

from ...layers.grid import add_outer_knots

ORDER = kinds.Int(least=0, most=5)


@kinds.checked(k=ORDER, extend=kinds.FLAG, device=kinds.DEVICE)
def B_batch(x: Tensor, grid: Tensor, k: int = 0, extend: bool = True, device: object = "cpu") -> Tensor:
    """Compute the values of all B-splines of order k at every row of ``x``.

    Args:
        x: inputs ``[N, in]``.
        grid: knots ``[in, G + 2k + 1]``, or ``[1, G + 2k + 1]`` if all columns have the same knots.
            :func:`extend_grid` computes the knots from the G + 1 knots of a grid.
        k: order of the splines, from 0 to 5.
        extend, device: ignored, as in pykan 0.2.8.

    Returns:
        The values ``[N, in, G + k]`` of the splines.

    Raises:
        TypeError, ValueError: if the knots do not fit ``x`` or ``k``, or if the knots decrease.

    Example:
        >>> grid = extend_grid(torch.linspace(-1, 1, 6)[None, :], k_extend=3)
        >>> B_batch(torch.rand(100, 2), grid, k=3).shape
        torch.Size([100, 2, 8])
    """
    return _basis("x", x, grid, k)


def _basis(name: str, x: Tensor, grid: Tensor, k: int) -> Tensor:
    """Return the values of :func:`B_batch`. Error messages use ``name`` as the name of ``x``."""
    kinds.check_tensor(name, x)
    kinds.check_shape(name, x, ("N", "in"))
    kinds.check_tensor("grid", grid)
    kinds.check_shape("grid", grid, ("in", "knots"))
    if grid.shape[0] not in (1, x.shape[1]) or grid.shape[1] < k + 2:
        raise ValueError(f"grid must have the shape [{x.shape[1]}, at least {k + 2}], got {list(grid.shape)}")
    if k:
        kinds.check_knots(grid, k)
    kinds.check_alike(x, grid=grid.to(x.dtype))
    return splines(x, grid.expand(x.shape[1], -1), k).transpose(1, 2)


@kinds.checked(k_extend=kinds.INDEX)
def extend_grid(grid: Tensor, k_extend: int = 0) -> Tensor:
    """Add ``k_extend`` knots on each side of a grid, at the mean spacing of the grid.

    Args:
        grid: knots ``[in, G + 1]``.
        k_extend: number of knots to add on each side.

    Returns:
        The extended knots ``[in, G + 1 + 2 k_extend]``.

    Example:
        >>> extend_grid(torch.tensor([[0.0, 1.0]]), k_extend=1)
        tensor([[-1.,  0.,  1.,  2.]])
    """
    kinds.check_tensor("grid", grid)
    kinds.check_shape("grid", grid, ("in", "knots"))
    if grid.shape[1] < 2:
        raise ValueError(f"grid must have at least two knots in a row, got {grid.shape[1]}")
    return add_outer_knots(grid, k_extend)


@kinds.checked(k=ORDER, device=kinds.DEVICE)
def coef2curve(x_eval: Tensor, grid: Tensor, coef: Tensor, k: int, device: object = "cpu") -> Tensor:
    """Compute the values of splines with given coefficients at every row of ``x_eval``.

    Args:
        x_eval: inputs ``[N, in]``.
        grid, k: knots and order of the splines, see :func:`B_batch`.
        coef: coefficients ``[in, out, G + k]``.
        device: ignored.

    Returns:
        The values ``[N, in, out]`` of the splines.

    Example:
        >>> grid = extend_grid(torch.linspace(-1, 1, 6)[None, :], k_extend=3)
        >>> coef2curve(torch.zeros(1, 1), grid, torch.ones(1, 2, 8), k=3).shape
        torch.Size([1, 1, 2])
    """
    basis = _basis("x_eval", x_eval, grid, k)
    kinds.check_tensor("coef", coef)
    kinds.check_shape("coef", coef, (x_eval.shape[1], "out", basis.shape[2]))
    kinds.check_alike(basis, coef=coef.to(basis.dtype))
    return torch.einsum("nib,iob->nio", basis, coef.to(basis))


@kinds.checked(k=ORDER)
def curve2coef(x_eval: Tensor, y_eval: Tensor, grid: Tensor, k: int) -> Tensor:
    """Compute the coefficients of the splines that fit given curves best in the sense of least squares.

    Args:
        x_eval: inputs ``[N, in]``.
        y_eval: values ``[N, in, out]`` of the curves at ``x_eval``.
        grid, k: knots and order of the splines, see :func:`B_batch`.

    Returns:
        The coefficients ``[in, out, G + k]``. If several coefficients fit equally well, the coefficients with the
        smallest norm are returned.

    Example:
        >>> grid = extend_grid(torch.linspace(-1, 1, 6)[None, :], k_extend=3)
        >>> x = torch.linspace(-1, 0.99, 50)[:, None]
        >>> coef = curve2coef(x, x[:, :, None] ** 2, grid, k=3)
        >>> bool((coef2curve(x, grid, coef, k=3)[:, :, 0] - x**2).abs().max() < 1e-5)
        True
    """
    basis = _basis("x_eval", x_eval, grid, k)
    kinds.check_finite("x_eval", x_eval)
    kinds.check_tensor("y_eval", y_eval)
    kinds.check_shape("y_eval", y_eval, (*x_eval.shape, "out"))
    kinds.check_alike(x_eval, y_eval=y_eval.to(x_eval.dtype))
    exact = basis.permute(1, 0, 2).double()  # float64 is needed to determine the numerical rank for the pseudoinverse
    solution = torch.linalg.pinv(exact, rtol=1e-10) @ y_eval.permute(1, 0, 2).double()
    return solution.transpose(1, 2).to(y_eval.dtype)
