"""Grids: adapting knots to samples, refining them, and computing the coefficients that keep the functions.

All functions work in float64 on the device of their arguments, and none is differentiated in training.

Shapes: N samples, I inputs, O outputs, G intervals, order k. ``knots`` are ``[I, G + 2k + 1]``, with k outer knots on
each side; a ``grid`` is ``[I, G + 1]``, without them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastkan_kernels import spline_values, splines, warn

ROWS = 4096  # samples per block of a least-squares fit, which bounds its memory
ANCHORS_PER_CELL = 4  # points per interval that hold the old function where no sample lies, see refit()
ANCHOR_SHARE = 1e-6  # weight of all anchors, as a share of the weight of all samples


def interior(knots: Tensor, order: int) -> Tensor:
    """Return the grid t_k to t_{G+k} without the outer knots: ``[I, G + 1]`` of ``[I, G + 2k + 1]``."""
    return knots[:, order : knots.shape[1] - order]


def add_outer_knots(grid: Tensor, order: int) -> Tensor:
    """Add ``order`` knots to each side of a grid ``[I, G + 1]``, at the distance of its mean interval."""
    first, last = grid[:, :1], grid[:, -1:]
    step = (last - first) / (grid.shape[1] - 1)
    away = torch.arange(1, order + 1, dtype=grid.dtype, device=grid.device)
    return torch.cat([first - step * away.flip(0), grid, last + step * away], 1)


def adapted_knots(x: Tensor, knots: Tensor, order: int, grid_size: int, grid_eps: float, margin: float) -> Tensor:
    """Compute knots ``[I, G + 2k + 1]``, float64, from samples ``x [N, I]``: a mixture of their quantiles and of evenly
    spaced points.

    Where rounding to the dtype of the present ``knots [I, M]`` would make different knots equal, as for a column
    1e6 +- 1 in float32, the share of the evenly spaced points is raised until they stay different. Where even those
    would become equal, the input keeps its grid, with a warning; an input whose samples are all equal keeps its grid
    too, resampled to G intervals.

    Args:
        grid_eps: share of the evenly spaced points; 0 gives the quantiles alone.
        margin: how much wider than the samples' range the evenly spaced grid is on each side, as a share of the range.
    """
    x = x.detach().double()
    low, high = x.amin(0), x.amax(0)
    shares = torch.linspace(0, 1, grid_size + 1, dtype=torch.float64, device=x.device)
    ordered = x.sort(0).values
    at = shares * (len(x) - 1)
    below = at.floor().long()
    above = (below + 1).clamp(max=len(x) - 1)
    quantiles = torch.lerp(ordered[below], ordered[above], (at - below).unsqueeze(1)).t()
    width = high - low
    even = (low - margin * width).unsqueeze(1) + (width * (1 + 2 * margin)).unsqueeze(1) * shares
    full = add_outer_knots(grid_eps * even + (1 - grid_eps) * quantiles, order)
    merging = _merge(full, knots.dtype)
    if bool(merging.any()):
        highest = full.abs().amax(1).to(knots.dtype)
        spacing = (torch.nextafter(highest, torch.full_like(highest, torch.inf)) - highest).double()
        # The ends of a cell that is two spacings of the dtype wide stay different however they are rounded.
        needed = (2 * spacing / even.diff(dim=1).amin(1)).clamp(max=1.0).maximum(torch.full_like(width, grid_eps))
        share = torch.where(merging, needed.nan_to_num(1.0), grid_eps).unsqueeze(1)
        full = torch.where(merging.unsqueeze(1), add_outer_knots(share * even + (1 - share) * quantiles, order), full)
    unresolved = (width > 0) & _merge(full, knots.dtype)
    if bool(unresolved.any()):
        _warn_unresolved(unresolved, low, high, grid_size, knots.dtype)
    kept = add_outer_knots(subdivide(interior(knots, order).double(), grid_size), order)
    return torch.where((unresolved | (width == 0)).unsqueeze(1), kept, full)


def _merge(knots: Tensor, dtype: torch.dtype) -> Tensor:
    """Return for each input whether rounding to ``dtype`` makes different knots equal."""
    return ((knots.diff(dim=1) > 0) & (knots.to(dtype).diff(dim=1) == 0)).any(1)


def _warn_unresolved(inputs: Tensor, low: Tensor, high: Tensor, grid_size: int, dtype: torch.dtype) -> None:
    which = inputs.nonzero().flatten().tolist()
    first = which[0]
    warn(
        f"inputs {which[:8]} keep their grids: their samples vary too little for {dtype} (input {first} from "
        f"{low[first].item():.9g} to {high[first].item():.9g}), which has too few numbers there for {grid_size} "
        "intervals. Subtract the columns' means first, take fewer intervals, or use a float64 layer"
    )


def subdivide(grid: Tensor, grid_size: int) -> Tensor:
    """Return a grid of ``grid_size`` intervals whose spacing follows that of ``grid``.

    A multiple of the present number of intervals divides each of them into equal parts and keeps all knots.
    """
    old = grid.shape[1] - 1
    at = torch.arange(grid_size + 1, device=grid.device, dtype=torch.float64) * old / grid_size
    below = at.floor().long().clamp(max=old - 1)
    return torch.lerp(grid[:, below], grid[:, below + 1], at - below)


def insert_knots(weight: Tensor, knots: Tensor, finer: Tensor, order: int) -> Tensor:
    """Compute the coefficients of the same functions on a finer grid that contains every knot of the old one.

    The result is exact inside the grid. A coefficient is the polar form of a polynomial piece at k consecutive knots
    (Ramshaw, Blossoms are polar forms, 1989); it is evaluated at the finer knots by de Boor's recursion.

    Args:
        weight: ``[G + k, I, O]`` on ``knots [I, G + 2k + 1]``; the result is ``[M' - k - 1, I, O]``, float64.
        finer: ``[I, M']`` knots, float64, whose grid contains that of ``knots``.
    """
    knots = knots.double()
    inputs, count = finer.shape[0], finer.shape[1] - order - 1
    piece = _piece(knots, finer, order)  # [I, count], a cell of the old knots
    # triangle[i, b, r, c] is the factor of the old coefficient number piece - k + c in entry r of the present
    # row of de Boor's triangle for the new coefficient b of input i.
    triangle = torch.eye(order + 1, dtype=torch.float64, device=knots.device)
    triangle = triangle.expand(inputs, count, -1, -1)
    steps = torch.arange(order + 1, device=knots.device)
    around = torch.gather(
        knots.unsqueeze(1).expand(-1, count, -1), 2,
        piece.unsqueeze(2) + torch.arange(1 - order, order + 1, device=knots.device),
    )  # t[piece - k + 1 .. piece + k]  # fmt: skip
    for level in range(1, order + 1):
        argument = finer[:, level : level + count].unsqueeze(2)
        left = around[:, :, level - 1 : order]
        right = around[:, :, order : 2 * order - level + 1]
        share = ((argument - left) / (right - left)).unsqueeze(3)
        triangle = (1 - share) * triangle[:, :, :-1] + share * triangle[:, :, 1:]
    mixing = triangle[:, :, 0]  # [I, count, k + 1]
    features = torch.arange(inputs, device=knots.device)
    total = torch.zeros(count, inputs, weight.shape[2], dtype=torch.float64, device=knots.device)
    for c in steps.tolist():
        total += mixing[:, :, c].t().unsqueeze(2) * weight[piece.t() - order + c, features].double()
    return total


def _piece(knots: Tensor, finer: Tensor, order: int) -> Tensor:
    """Return for each finer spline the old cell that contains the widest of its cells inside the grid."""
    count = finer.shape[1] - order - 1
    widths = finer.diff(dim=1)
    cells = torch.arange(widths.shape[1], device=finer.device)
    widths = torch.where((cells >= order) & (cells < count), widths, -1.0)
    windows = widths.unfold(1, order + 1, 1)  # [I, count, k + 1]
    cell = windows.argmax(2) + torch.arange(count, device=finer.device)
    middle = (finer.gather(1, cell) + finer.gather(1, cell + 1)) / 2
    found = torch.searchsorted(knots, middle.contiguous(), right=True) - 1
    return found.clamp(order, knots.shape[1] - order - 2)


def nests(knots: Tensor, finer: Tensor, order: int) -> bool:
    """Whether the grid of ``finer`` has the ends of that of ``knots`` and contains all its knots, up to rounding."""
    old, new = interior(knots, order).double(), interior(finer, order).double()
    rounding = 4 * torch.finfo(knots.dtype).eps * old.abs().amax(1, keepdim=True)
    ends = (old[:, [0, -1]] - new[:, [0, -1]]).abs() <= rounding
    gap = (old.unsqueeze(2) - new.unsqueeze(1)).abs().amin(2)
    return bool(ends.all() & (gap <= rounding).all())


def refit(
    weight: Tensor, knots: Tensor, new_knots: Tensor, order: int, x: Tensor | None, outside: str = "zero"
) -> Tensor:
    """Compute coefficients on other knots whose splines are nearest to the old ones at ``x``, by least squares.

    The normal equations are solved for the minimum-norm solution in float64, which gives the same result on every
    device. Evenly spaced anchors with a millionth of the samples' weight keep the old function where no sample lies;
    without them the coefficients there would become 0.

    Args:
        weight: ``[K, I, O]`` on ``knots``; the result is ``[M' - k - 1, I, O]`` on ``new_knots [I, M']``, float64.
        x: ``[N, I]`` samples, or None to fit at points spread evenly over the new grid.
        outside: how the old splines continue beyond their grid, ``"zero"`` or ``"linear"``.
    """
    knots, new_knots = knots.double(), new_knots.double()
    cells = new_knots.shape[1] - 2 * order - 1
    anchors = subdivide(interior(new_knots, order), cells * ANCHORS_PER_CELL).t()
    square, cross = _moments(anchors, new_knots, knots, order, outside)
    if x is not None and len(x):
        share = ANCHOR_SHARE * len(x) / len(anchors)
        square, cross = square * share, cross * share
        for part in x.detach().double().split(ROWS):
            more_square, more_cross = _moments(part, new_knots, knots, order, outside)
            square, cross = square + more_square, cross + more_cross
    solution = torch.linalg.pinv(square, hermitian=True, rtol=1e-13) @ cross  # [I, K', K]
    return torch.einsum("ipq,qio->pio", solution, weight.detach().double())


def _moments(x: Tensor, new_knots: Tensor, knots: Tensor, order: int, outside: str) -> tuple[Tensor, Tensor]:
    """Return the left and right sides of the normal equations, ``[I, K', K']`` and ``[I, K', K]``."""
    new = spline_values(x, new_knots, order)
    old = splines_with_tangents(x, knots, order) if outside == "linear" else spline_values(x, knots, order)
    return torch.einsum("npi,nqi->ipq", new, new), torch.einsum("npi,nqi->ipq", new, old)


def interpolate(values: Tensor, knots: Tensor, order: int) -> Tensor:
    """Compute the minimum-norm coefficients ``[G + k, I, O]``, float64, of splines that interpolate ``values [G + 1, I,
    O]`` at the knots of the grid.

    One pseudo-inverse is computed for all edges of all inputs that share their knots. It drops singular values below a
    tenth of the largest, so that no coefficient is much larger than the values: splines do not follow values that
    differ between repeated or very close knots, nor, for even orders, values that alternate from knot to knot.
    """
    knots, inverse = knots.double().unique(dim=0, return_inverse=True)
    psi = splines(interior(knots, order).t(), knots, order).permute(2, 0, 1)  # [U, G + 1, K]
    solution = torch.linalg.pinv(psi, rtol=0.1)
    if len(solution) == 1:
        return torch.einsum("kp,pio->kio", solution[0], values.double())
    return torch.einsum("ikp,pio->kio", solution[inverse], values.double())


def splines_with_tangents(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Evaluate B-splines ``[N, K, I]`` that continue along their tangents beyond the grid; an infinite x gives NaN."""
    low, high = knots[:, order], knots[:, -order - 1]
    high = torch.nextafter(high, low)  # on the last knot itself the cell to its right counts
    clamped = torch.where(x < low, low, torch.where(x > high, high, x))
    beyond = torch.where(x.isinf(), torch.nan, x - clamped).unsqueeze(1)
    return splines(clamped, knots, order) + splines(clamped, knots, order, 1) * beyond
