"""Grids: knots that follow the data, knots that nest, and the coefficients to go with them.

All in float64 on the tensors' own device; nothing here is a step of training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastkan_kernels import spline_values, splines, warn

ROWS = 4096  # samples in one piece of a least-squares fit
ANCHORS_PER_CELL = 4
ANCHOR_SHARE = 1e-6  # of the samples' weight


def interior(knots: Tensor, order: int) -> Tensor:
    """The grid proper, t_k to t_{G+k}: ``[I, G + 1]`` of ``[I, G + 2k + 1]``."""
    return knots[:, order : knots.shape[1] - order]


def add_outer_knots(grid: Tensor, order: int) -> Tensor:
    """A grid ``[I, G + 1]`` with ``order`` mean steps more on both sides, ``[I, G + 2k + 1]``."""
    first, last = grid[:, :1], grid[:, -1:]
    step = (last - first) / (grid.shape[1] - 1)
    away = torch.arange(1, order + 1, dtype=grid.dtype, device=grid.device)
    return torch.cat([first - step * away.flip(0), grid, last + step * away], 1)


def adapted_knots(x: Tensor, knots: Tensor, order: int, grid_size: int, grid_eps: float, margin: float) -> Tensor:
    """Knots at the quantiles of the samples, mixed with equally spaced ones.

    Args:
        x: ``[N, I]`` finite samples.
        knots: ``[I, M]``, what an input whose samples have no spread keeps (rescaled to G). Their dtype is what
            the new ones will be rounded to.
        grid_eps: 1 is equally spaced on the samples' range, 0 is the quantiles alone.
        margin: by what share of the range the equally spaced grid is wider, on each side.

    Where rounding would merge knots that differ, as of a column 1e6 +- 1 in float32, the spacing becomes as much
    more even as keeps them apart. Where even equally spaced ones would merge, the input keeps its grid.

    Returns:
        ``[I, G + 2k + 1]``, float64, of which none merge by rounding.

    Warns:
        UserWarning: for inputs whose samples differ, but by too little for knots of that dtype.
    """
    x = x.detach().double()
    low, high = x.amin(0), x.amax(0)
    shares = torch.linspace(0, 1, grid_size + 1, dtype=torch.float64, device=x.device)
    ordered = x.sort(0).values
    at = shares * (len(x) - 1)
    below = at.floor().long()
    above = (below + 1).clamp(max=len(x) - 1)
    quantiles = torch.lerp(ordered[below], ordered[above], (at - below).unsqueeze(1)).t()
    spread = high - low
    even = (low - margin * spread).unsqueeze(1) + (spread * (1 + 2 * margin)).unsqueeze(1) * shares
    full = add_outer_knots(grid_eps * even + (1 - grid_eps) * quantiles, order)
    merging = _merge(full, knots.dtype)
    if bool(merging.any()):
        highest = full.abs().amax(1).to(knots.dtype)
        spacing = (torch.nextafter(highest, torch.full_like(highest, torch.inf)) - highest).double()
        # cells two spacings wide stay apart, whichever way their ends are rounded
        needed = (2 * spacing / even.diff(dim=1).amin(1)).clamp(max=1.0).maximum(torch.full_like(spread, grid_eps))
        share = torch.where(merging, needed.nan_to_num(1.0), grid_eps).unsqueeze(1)
        full = torch.where(merging.unsqueeze(1), add_outer_knots(share * even + (1 - share) * quantiles, order), full)
    unresolved = (spread > 0) & _merge(full, knots.dtype)
    if bool(unresolved.any()):
        _warn_unresolved(unresolved, low, high, grid_size, knots.dtype)
    kept = add_outer_knots(subdivide(interior(knots, order).double(), grid_size), order)
    return torch.where((unresolved | (spread == 0)).unsqueeze(1), kept, full)


def _merge(knots: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether rounding to ``dtype`` makes knots equal that are not, for each input."""
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
    """A grid of ``grid_size`` intervals that follows the spacing of ``grid``; for a multiple of its
    intervals, each is cut into equal parts and all its knots stay."""
    old = grid.shape[1] - 1
    at = torch.arange(grid_size + 1, device=grid.device, dtype=torch.float64) * old / grid_size
    below = at.floor().long().clamp(max=old - 1)
    return torch.lerp(grid[:, below], grid[:, below + 1], at - below)


def insert_knots(weight: Tensor, knots: Tensor, finer: Tensor, order: int) -> Tensor:
    """Coefficients on a finer grid that holds every knot of the old one: the same function on the
    grid proper, exactly.

    A coefficient is the polar form of a polynomial piece at k consecutive knots (Ramshaw,
    Blossoms are polar forms, 1989), here at the finer ones, by de Boor's recursion.

    Args:
        weight: ``[G + k, I, O]`` on ``knots [I, G + 2k + 1]``.
        finer: ``[I, M']``, float64, whose grid proper holds that of ``knots``.

    Returns:
        ``[M' - k - 1, I, O]``, float64.
    """
    knots = knots.double()
    inputs, count = finer.shape[0], finer.shape[1] - order - 1
    piece = _piece(knots, finer, order)  # [I, count], a cell of the old knots
    # corner[i, b, r, c]: how much of old coefficient piece - k + c is in the r-th of the triangle
    corner = torch.eye(order + 1, dtype=torch.float64, device=knots.device)
    corner = corner.expand(inputs, count, -1, -1)
    steps = torch.arange(order + 1, device=knots.device)
    near = torch.gather(
        knots.unsqueeze(1).expand(-1, count, -1), 2,
        piece.unsqueeze(2) + torch.arange(1 - order, order + 1, device=knots.device),
    )  # t[piece - k + 1 .. piece + k]  # fmt: skip
    for level in range(1, order + 1):
        argument = finer[:, level : level + count].unsqueeze(2)
        left = near[:, :, level - 1 : order]
        right = near[:, :, order : 2 * order - level + 1]
        share = ((argument - left) / (right - left)).unsqueeze(3)
        corner = (1 - share) * corner[:, :, :-1] + share * corner[:, :, 1:]
    mixing = corner[:, :, 0]  # [I, count, k + 1]
    features = torch.arange(inputs, device=knots.device)
    total = torch.zeros(count, inputs, weight.shape[2], dtype=torch.float64, device=knots.device)
    for c in steps.tolist():
        total += mixing[:, :, c].t().unsqueeze(2) * weight[piece.t() - order + c, features].double()
    return total


def _piece(knots: Tensor, finer: Tensor, order: int) -> Tensor:
    """For each finer spline, the old cell that holds the widest of its cells in the grid proper."""
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
    """Whether the grid proper of ``finer`` holds every knot of that of ``knots``, and its ends."""
    old, new = interior(knots, order).double(), interior(finer, order).double()
    rounding = 4 * torch.finfo(knots.dtype).eps * old.abs().amax(1, keepdim=True)
    ends = (old[:, [0, -1]] - new[:, [0, -1]]).abs() <= rounding
    gap = (old.unsqueeze(2) - new.unsqueeze(1)).abs().amin(2)
    return bool(ends.all() & (gap <= rounding).all())


def refit(
    weight: Tensor, knots: Tensor, new_knots: Tensor, order: int, x: Tensor | None, outside: str = "zero"
) -> Tensor:
    """Coefficients on other knots, nearest to the old splines in the least-squares sense at ``x``.

    The minimum-norm solution by the normal equations in float64, the same on every device. Where no
    sample lies, evenly placed anchors of a millionth of the samples' weight hold the old function:
    without them its coefficients there would become 0.

    Args:
        weight: ``[K, I, O]`` on ``knots``.
        new_knots: ``[I, M']``.
        x: ``[N, I]`` samples, or None to fit evenly over the new grid.
        outside: whether the old splines run out to ``"zero"`` beyond their grid or go on ``"linear"``.

    Returns:
        ``[M' - k - 1, I, O]``, float64.
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
    new = spline_values(x, new_knots, order)
    old = splines_with_tangents(x, knots, order) if outside == "linear" else spline_values(x, knots, order)
    return torch.einsum("npi,nqi->ipq", new, new), torch.einsum("npi,nqi->ipq", new, old)


def interpolate(values: Tensor, knots: Tensor, order: int) -> Tensor:
    """Minimum-norm coefficients of splines that go through given values at the knots of the grid.

    One small pseudo-inverse serves all edges of an input, and all inputs that share their knots. What
    splines could follow only with coefficients ten times as large as the values they leave out: between
    repeated or very close knots, and the fastest changes at an even order.

    Args:
        values: ``[G + 1, I, O]`` at t_k to t_{G+k} of each input.

    Returns:
        ``[G + k, I, O]``, float64.
    """
    knots, inverse = knots.double().unique(dim=0, return_inverse=True)
    psi = splines(interior(knots, order).t(), knots, order).permute(2, 0, 1)  # [U, G + 1, K]
    solution = torch.linalg.pinv(psi, rtol=0.1)
    if len(solution) == 1:
        return torch.einsum("kp,pio->kio", solution[0], values.double())
    return torch.einsum("ikp,pio->kio", solution[inverse], values.double())


def splines_with_tangents(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """B-splines ``[N, K, I]`` at ``x [N, I]`` that go on by their tangents beyond the grid; NaN for an infinite x.

    Example:
        >>> knots = uniform_knots(1, grid_size=2, order=1)
        >>> splines_with_tangents(torch.tensor([[2.0]]), knots, order=1)[0, :, 0].round(decimals=4)
        tensor([ 0., -1.,  2.])
    """
    low, high = knots[:, order], knots[:, -order - 1]
    high = torch.nextafter(high, low)  # on the knot itself the cell to its right would count
    near = torch.where(x < low, low, torch.where(x > high, high, x))
    beyond = torch.where(x.isinf(), torch.nan, x - near).unsqueeze(1)
    return splines(near, knots, order) + splines(near, knots, order, 1) * beyond
