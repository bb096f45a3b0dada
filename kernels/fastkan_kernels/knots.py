"""Knot vectors: equally spaced ones, and the basis that a layer with given knots has."""

from __future__ import annotations

import torch
from torch import Tensor

from .basis import Basis
from .validation import BASE, DEVICE, INDEX, ORDER, Bounds, Dtype, Int, Real, check_shape, check_tensor, checked

SHAPE = ("in_features", "grid_size + 2 * spline_order + 1")

MAX_CELL_SHARE = 1e-3  # largest deviation of an equally spaced knot from its place, as a share of a cell


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
    """Equally spaced knots on ``grid_range``, extended by ``order`` steps on both sides.

    Returns:
        ``[in_features, grid_size + 2 * order + 1]``, the same row for each feature.

    Raises:
        TypeError, ValueError: if a size or the order is out of its bounds, or the range is not increasing.

    Example:
        >>> uniform_knots(1, grid_size=2, order=1)
        tensor([[-2., -1.,  0.,  1.,  2.]])
    """
    low, high = grid_range
    # Computed in float64 and rounded once, so that each knot is within half an eps of its place.
    steps = torch.arange(-order, grid_size + order + 1, dtype=torch.float64, device=device)
    row = low + steps * ((high - low) / grid_size)
    return row.to(dtype).expand(in_features, -1).contiguous()


@checked(tolerance=Real(least=0))
def knots_are_uniform(knots: Tensor, tolerance: float = 4.0) -> bool:
    """Whether each row is equally spaced to within a few eps of the knots' own dtype, and a thousandth of a cell.

    Knots computed in float32 and converted to float64 are not: their rounding errors are far larger than a
    float64 eps. The values are read, which waits for a GPU, so call this once whenever the knots change.

    Args:
        knots: ``[in_features, grid_size + 2 * spline_order + 1]``.
        tolerance: largest deviation of a knot, in eps of the largest absolute knot of its row.

    Raises:
        TypeError, ValueError: if ``knots`` is no tensor of that shape, or ``tolerance`` is below 0.

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
    # Far from 0 a few eps may exceed the width of a cell.
    cell = (last - first) / (knots.shape[-1] - 1)
    near = (wide - straight).abs() <= torch.minimum(tolerance * rounding, MAX_CELL_SHARE * cell)
    return bool((near.all() & (last > first).all()).item())


@checked(order=ORDER, base=BASE)
def basis_of(knots: Tensor, order: int, base: str = "silu") -> Basis:
    """The basis of a layer with these knots. The values are read, so call this once whenever the knots change.

    Raises:
        TypeError, ValueError: if ``knots`` has another shape, or the order or base function is not supported.

    Example:
        >>> basis_of(uniform_knots(2, grid_size=4, order=1), order=1)
        Basis(order=1, base='silu', uniform=True, uniform_grid=(-1.5, 2.0), matmul_dtype=None)
    """
    return Basis(order, base, True, _shared_grid(knots)) if knots_are_uniform(knots) else Basis(order, base)


@checked(order=ORDER, base=BASE)
def uniform_basis(knots: Tensor, order: int, base: str = "silu") -> Basis:
    """The basis of a layer whose knots are known to be equally spaced.

    The values are read, to find out whether all inputs share one row, only if they are on the CPU; a GPU would
    have to be waited for.

    Raises:
        TypeError, ValueError: if ``knots`` has another shape, or the order or base function is not supported.

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
    """First knot and inverse spacing of a uniform basis: two numbers if all inputs share them, else two tensors
    ``[I]``. An input lies in cell ``floor((x - first) * inv_spacing)``."""
    return basis.uniform_grid or _grid_of(knots)


def _grid_of(knots: Tensor) -> tuple[Tensor, Tensor]:
    """First knot and inverse spacing of each row, ``([I], [I])``.

    The inverse spacing is rounded once. It is rounded up where the last knot, at which all splines are exactly 0,
    would otherwise be counted into the last cell.
    """
    knots = knots.to(torch.promote_types(knots.dtype, torch.float32))
    cells, first, width = knots.shape[1] - 1, knots[:, 0], knots[:, -1] - knots[:, 0]
    inv_spacing = (cells / (knots[:, -1].double() - first.double())).to(knots.dtype)
    short = width.double() * inv_spacing.double() < cells
    return first, torch.where(short, torch.nextafter(inv_spacing, torch.full_like(inv_spacing, torch.inf)), inv_spacing)
