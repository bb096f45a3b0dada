"""Knot vectors: how many, how spaced, and whether they are equally spaced."""

from __future__ import annotations

import torch
from torch import Tensor

from .basis import Basis
from .validation import BASE, DEVICE, INDEX, ORDER, Bounds, Dtype, Int, Real, check_shape, check_tensor, checked

SHAPE = ("in_features", "grid_size + 2 * spline_order + 1")

MAX_CELL_SHARE = 1e-3  # by which an equally spaced knot may be off its place


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
        TypeError, ValueError: for sizes, an order or a range out of range.

    Example:
        >>> uniform_knots(1, grid_size=2, order=1)
        tensor([[-2., -1.,  0.,  1.,  2.]])
    """
    low, high = grid_range
    # made in float64 and rounded once, so that each knot is within half an eps of its place
    steps = torch.arange(-order, grid_size + order + 1, dtype=torch.float64, device=device)
    row = low + steps * ((high - low) / grid_size)
    return row.to(dtype).expand(in_features, -1).contiguous()


@checked(tolerance=Real(least=0))
def knots_are_uniform(knots: Tensor, tolerance: float = 4.0) -> bool:
    """Whether each row is equally spaced to within a few eps of the knots' own dtype, and a thousandth of a cell.

    Knots made in float32 and widened to float64 are not: in float64 they are off by far more than
    rounding. Reads the values, so on a GPU it waits for it: ask once, when the knots change.

    Args:
        knots: ``[in_features, grid_size + 2 * spline_order + 1]``.
        tolerance: how many eps of its largest knot a row may be off.

    Raises:
        TypeError, ValueError: for what is no such tensor, or a tolerance below 0.

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
    # far from 0 a few eps may be wider than a cell
    cell = (last - first) / (knots.shape[-1] - 1)
    near = (wide - straight).abs() <= torch.minimum(tolerance * rounding, MAX_CELL_SHARE * cell)
    return bool((near.all() & (last > first).all()).item())


@checked(order=ORDER, base=BASE)
def basis_of(knots: Tensor, order: int, base: str = "silu") -> Basis:
    """The basis of a layer with these knots; reads them, so ask once, when the knots change.

    Raises:
        TypeError, ValueError: for what are no knots, or an order or a base that there is not.

    Example:
        >>> basis_of(uniform_knots(2, grid_size=4, order=1), order=1)
        Basis(order=1, base='silu', uniform=True, uniform_grid=(-1.5, 2.0), matmul_dtype=None)
    """
    return Basis(order, base, True, _shared_grid(knots)) if knots_are_uniform(knots) else Basis(order, base)


@checked(order=ORDER, base=BASE)
def uniform_basis(knots: Tensor, order: int, base: str = "silu") -> Basis:
    """The basis of a layer whose knots are known to be equally spaced.

    It reads them, to see whether all inputs share one row, only where that makes nobody wait.

    Raises:
        TypeError, ValueError: for what are no knots, or an order or a base that there is not.

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
    """First knot and cells per unit length of a uniform basis, numbers or ``([I], [I])``;
    t = (x - first) * inv_spacing counts cells."""
    return basis.uniform_grid or _grid_of(knots)


def _grid_of(knots: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded once, and upwards where the last knot, at which all splines are exactly 0, would otherwise fall inside
    the last cell."""
    knots = knots.to(torch.promote_types(knots.dtype, torch.float32))
    cells, first, width = knots.shape[1] - 1, knots[:, 0], knots[:, -1] - knots[:, 0]
    inv_spacing = (cells / (knots[:, -1].double() - first.double())).to(knots.dtype)
    short = width.double() * inv_spacing.double() < cells
    return first, torch.where(short, torch.nextafter(inv_spacing, torch.full_like(inv_spacing, torch.inf)), inv_spacing)
