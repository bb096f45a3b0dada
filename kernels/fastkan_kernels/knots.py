"""Functions that create equally spaced knots, test knots for equal spacing, and find the basis of given knots."""

from __future__ import annotations

import torch
from torch import Tensor

from .basis import Basis
from .validation import BASE, DEVICE, INDEX, ORDER, Bounds, Dtype, Int, Real, check_shape, check_tensor, checked

SHAPE = ("in_features", "grid_size + 2 * spline_order + 1")

# Largest accepted distance between a knot and its exact equally spaced position, as a fraction of the cell width.
MAX_CELL_SHARE = 1e-3


@checked(
    in_features=INDEX, grid_size=Int(least=1), order=ORDER, grid_range=Bounds(), dtype=Dtype(),
    device=DEVICE,
)  # fmt: skip
def uniform_knots(
    in_features: int,
    grid_size: int,
    order: int,
    grid_range: tuple[float, float] = (-1.0, 1.0),
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return equally spaced knots on ``grid_range``, extended by ``order`` steps on both sides.

    Returns:
        A tensor ``[in_features, grid_size + 2 * order + 1]`` whose rows are all equal.

    Raises:
        TypeError, ValueError: if a size or the order is out of bounds, or the range is not increasing.

    Example:
        >>> uniform_knots(1, grid_size=2, order=1)
        tensor([[-2., -1.,  0.,  1.,  2.]])
    """
    low, high = grid_range
    # The knots are computed in float64 and rounded once, so each knot is as accurate as its dtype allows.
    steps = torch.arange(-order, grid_size + order + 1, dtype=torch.float64, device=device)
    row = low + steps * ((high - low) / grid_size)
    return row.to(dtype).expand(in_features, -1).contiguous()


@checked(tolerance=Real(least=0))
def knots_are_uniform(knots: Tensor, tolerance: float = 4.0) -> bool:
    """Check whether each row of the knots is equally spaced, up to rounding in the dtype of the knots.

    Every knot must lie within ``tolerance`` rounding errors, and within a thousandth of a cell, of its exact equally
    spaced position.
    Knots that were computed in float32 and then converted to float64 do not count as equally spaced, because their
    rounding errors are far larger than a float64 eps. The function reads the values of the knots, which makes the
    program wait for the GPU, so call the function once whenever the knots change.

    Args:
        knots: the knots ``[in_features, grid_size + 2 * spline_order + 1]``.
        tolerance: the largest accepted deviation of a knot, as a multiple of the dtype's eps times the largest
            absolute knot of the row.

    Raises:
        TypeError, ValueError: if ``knots`` is not a two-dimensional tensor, or ``tolerance`` is below 0.

    Example:
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> knots_are_uniform(knots), knots_are_uniform(knots.double())
        (True, False)
    """
    check_tensor("knots", knots)
    check_shape("knots", knots, SHAPE)
    if knots.is_meta or knots.shape[-1] < 2 or knots.shape[0] == 0:
        return False
    wide = knots.detach().double()
    first, last = wide[:, :1], wide[:, -1:]
    steps = torch.arange(knots.shape[-1], dtype=torch.float64, device=knots.device)
    straight = first + (last - first) * (steps / (knots.shape[-1] - 1))
    rounding = torch.finfo(knots.dtype).eps * wide.abs().amax(1, keepdim=True)
    # If the knots are far from 0, a few eps of rounding may exceed the width of a cell.
    cell = (last - first) / (knots.shape[-1] - 1)
    near = (wide - straight).abs() <= torch.minimum(tolerance * rounding, MAX_CELL_SHARE * cell)
    return bool((near.all() & (last > first).all()).item())


@checked(order=ORDER, base=BASE)
def basis_of(knots: Tensor, order: int, base: str = "silu") -> Basis:
    """Return the basis of a layer with the given knots.

    The function reads the values of the knots, which makes the program wait for the GPU, so call the function once
    whenever the knots change.

    Raises:
        TypeError, ValueError: if ``knots`` has the wrong shape, or the order or base function is not supported.

    Example:
        >>> basis_of(uniform_knots(2, grid_size=4, order=1), order=1)
        Basis(order=1, base='silu', uniform=True, uniform_grid=(-1.5, 2.0), matmul_dtype=None)
    """
    return Basis(order, base, True, _shared_grid(knots)) if knots_are_uniform(knots) else Basis(order, base)


@checked(order=ORDER, base=BASE)
def uniform_basis(knots: Tensor, order: int, base: str = "silu") -> Basis:
    """Return the basis of a layer whose knots are known to be equally spaced.

    If the knots are on the CPU, the function reads the values of the knots and checks whether all inputs have the same
    knots.
    Knots on a GPU are not read, because the program would have to wait for the GPU.

    Raises:
        TypeError, ValueError: if ``knots`` has the wrong shape, or the order or base function is not supported.

    Example:
        >>> uniform_basis(uniform_knots(2, grid_size=4, order=1), order=1).uniform_grid
        (-1.5, 2.0)
    """
    check_tensor("knots", knots)
    check_shape("knots", knots, SHAPE)
    readable = knots.device.type == "cpu" and not torch.compiler.is_compiling()
    return Basis(order, base, True, _shared_grid(knots) if readable else None)


def _shared_grid(knots: Tensor) -> tuple[float, float] | None:
    if knots.shape[0] == 0 or not bool((knots == knots[:1]).all()):
        return None
    first, inv_spacing = _grid_of(knots[:1])
    return first.item(), inv_spacing.item()


def uniform_grid(knots: Tensor, basis: Basis) -> tuple[Tensor | float, Tensor | float]:
    """Return a tuple of the first knot and the inverse spacing of equally spaced knots.

    The first knot and the inverse spacing are numbers if all inputs have the same knots, and tensors ``[I]`` otherwise.
    An input value x lies in the cell with the index ``floor((x - first) * inv_spacing)``.
    """
    return basis.uniform_grid or _grid_of(knots)


def _grid_of(knots: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of the first knot ``[I]`` and the inverse spacing ``[I]`` of each row.

    The inverse spacing is rounded only once. The inverse spacing is rounded up if the last knot would otherwise fall
    into the last cell, because all splines must be exactly 0 at the last knot.
    """
    knots = knots.to(torch.promote_types(knots.dtype, torch.float32))
    cells, first, width = knots.shape[1] - 1, knots[:, 0], knots[:, -1] - knots[:, 0]
    inv_spacing = (cells / (knots[:, -1].double() - first.double())).to(knots.dtype)
    short = width.double() * inv_spacing.double() < cells
    return first, torch.where(short, torch.nextafter(inv_spacing, torch.full_like(inv_spacing, torch.inf)), inv_spacing)
