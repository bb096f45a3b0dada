"""Functions that adapt grids to samples, refine grids, and compute the spline coefficients on a new grid.

All functions compute in float64 on the device of their arguments. Training never differentiates through the functions.

The letters in the shapes are the number of samples N, the number of inputs I, the number of outputs O, the number of
grid intervals G and the spline order k. A ``knots`` tensor has the shape ``[I, G + 2k + 1]`` and includes k outer knots
on each side. A ``grid`` tensor has the shape ``[I, G + 1]`` and no outer knots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastkan_kernels import check_finite, check_knots, check_shape, check_tensor, spline_values, splines, warn

MARGIN = 0.01  # the part of the range of the samples by which a grid extends beyond them at each end
ROWS = 4096  # the number of samples in a block of a least-squares fit; blocks bound the memory of the fit

# Number of anchors in each grid interval. Anchors are evenly spaced points that are added to the samples of a
# least-squares fit, so that intervals without samples are fitted too; see refit().
ANCHORS_PER_CELL = 4

ANCHOR_SHARE = 1e-6  # the total weight of all anchors, relative to the total weight of all samples


def interior(knots: Tensor, order: int) -> Tensor:
    """Remove the outer knots and return the grid ``[I, G + 1]``, which consists of the knots t_k to t_{G+k}."""
    return knots[:, order : knots.shape[1] - order]


def add_outer_knots(grid: Tensor, order: int) -> Tensor:
    """Add ``order`` knots to each side of a grid ``[I, G + 1]``, spaced by the mean width of the grid's intervals."""
    first, last = grid[:, :1], grid[:, -1:]
    step = (last - first) / (grid.shape[1] - 1)
    away = torch.arange(1, order + 1, dtype=grid.dtype, device=grid.device)
    return torch.cat([first - step * away.flip(0), grid, last + step * away], 1)


def read_sample_weight(weight: Tensor, rows: int) -> Tensor:
    """Check the weights of samples, and return them as ``[rows]`` in float64.

    Raises:
        TypeError: if the weights are not a dense tensor of real numbers.
        ValueError: if the weights are not as many as the rows, are negative or not finite, or are all 0.
    """
    check_tensor("sample_weight", weight, any_dtype=True)
    if weight.is_complex() or weight.is_meta:
        raise TypeError(f"sample_weight must be real numbers, got {'meta' if weight.is_meta else weight.dtype}")
    weight = weight.flatten()
    check_shape("sample_weight", weight, (rows,))
    check_finite("sample_weight", weight)
    weight = weight.detach().double()
    if bool((weight < 0).any()) or not bool((weight > 0).any()):
        raise ValueError("sample_weight must have no negative value and at least one positive value")
    return weight


def _quantiles(x: Tensor, shares: Tensor, weight: Tensor | None) -> Tensor:
    """Return the quantiles ``[shares, I]`` of samples ``[N, I]``, linearly interpolated between samples.

    With weights ``[N]``, a sample of weight 2 counts as two samples.
    """
    ordered, order = x.sort(0)
    if weight is None:
        at = shares * (len(x) - 1)
        below = at.floor().long()
        above = (below + 1).clamp(max=len(x) - 1)
        return torch.lerp(ordered[below], ordered[above], (at - below).unsqueeze(1))
    ends = weight[order].cumsum(0)  # sample n takes the places from ends[n - 1] to ends[n]
    at = shares * (ends[-1, 0] - 1).clamp_min(0)
    below = at.floor()
    places = torch.stack([below, below + 1], 1).flatten().expand(x.shape[1], -1).contiguous()
    found = torch.searchsorted(ends.t().contiguous(), places, right=True).clamp(max=len(x) - 1).t()
    values = ordered.gather(0, found)
    return torch.lerp(values[::2], values[1::2], (at - below).unsqueeze(1))


def adapted_knots(
    x: Tensor,
    knots: Tensor,
    order: int,
    grid_size: int,
    grid_eps: float,
    margin: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute knots from samples as a weighted mean of the quantiles of the samples and of evenly spaced points.

    Rounding to the dtype of the knots can make different knots equal, for example in float32 if all samples lie between
    1e6 - 1 and 1e6 + 1. In this case, the weight of the evenly spaced points is raised until rounding keeps all knots
    different. If rounding would make evenly spaced points equal as well, the grid of the input is not adapted.

    Args:
        x: finite samples ``[N, I]``.
        knots: the current knots ``[I, M]``. An input whose samples are all equal keeps its current grid, resampled to G
            intervals. The caller is expected to round the new knots to the dtype of ``knots``.
        order: the order k of the splines.
        grid_size: the number G of intervals of the new grid.
        grid_eps: the weight of the evenly spaced points; 0 places all knots at quantiles.
        margin: the distance by which the evenly spaced points extend beyond the samples on each side, as a fraction of
            the range of the samples.
        weight: positive weights ``[N]`` of the samples in the quantiles, or None.

    Returns:
        A float64 tensor ``[I, G + 2k + 1]``.

    Warns:
        UserWarning: if the samples of an input lie too close together for the dtype of ``knots``.
    """
    x = x.detach().double()
    low, high = x.amin(0), x.amax(0)
    shares = torch.linspace(0, 1, grid_size + 1, dtype=torch.float64, device=x.device)
    quantiles = _quantiles(x, shares, weight).t()
    width = high - low
    even = (low - margin * width).unsqueeze(1) + (width * (1 + 2 * margin)).unsqueeze(1) * shares
    full = add_outer_knots(grid_eps * even + (1 - grid_eps) * quantiles, order)
    merging = _merge(full, knots.dtype)
    if bool(merging.any()):
        highest = full.abs().amax(1).to(knots.dtype)
        spacing = (torch.nextafter(highest, torch.full_like(highest, torch.inf)) - highest).double()
        # If a cell is at least two spacings of the dtype wide, rounding cannot make the two ends of the cell equal.
        needed = (2 * spacing / even.diff(dim=1).amin(1)).clamp(max=1.0).maximum(torch.full_like(width, grid_eps))
        share = torch.where(merging, needed.nan_to_num(1.0), grid_eps).unsqueeze(1)
        full = torch.where(merging.unsqueeze(1), add_outer_knots(share * even + (1 - share) * quantiles, order), full)
    unresolved = (width > 0) & _merge(full, knots.dtype)
    if bool(unresolved.any()):
        _warn_unresolved(unresolved, low, high, grid_size, knots.dtype)
    kept = add_outer_knots(subdivide(interior(knots, order).double(), grid_size), order)
    return torch.where((unresolved | (width == 0)).unsqueeze(1), kept, full)


def _merge(knots: Tensor, dtype: torch.dtype) -> Tensor:
    """Check for each input whether rounding to ``dtype`` makes different knots equal."""
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
    """Return a grid with ``grid_size`` intervals, whose knots are linearly interpolated between the knots of ``grid``.

    If ``grid_size`` is a multiple of the current number of intervals, all knots are kept and each interval is divided
    into equal parts.
    """
    old = grid.shape[1] - 1
    at = torch.arange(grid_size + 1, device=grid.device, dtype=torch.float64) * old / grid_size
    below = at.floor().long().clamp(max=old - 1)
    return torch.lerp(grid[:, below], grid[:, below + 1], at - below)


def refine(
    weight: Tensor, knots: Tensor, order: int, grid_size: int, x: Tensor | None, outside: str
) -> tuple[Tensor, Tensor]:
    """Compute knots with ``grid_size`` intervals in the grid, and the coefficients of the same spline functions.

    If the new size is a multiple of the old size, and samples are given and lie in the grid, the grid is divided
    evenly, and the new outer knots are as far apart as the new knots of the grid. The functions are then the same on
    the grid, and equally spaced knots stay equally spaced. For any other size that is not smaller, all old knots
    including the outer knots are kept, and knots are inserted between them where the samples are, so that the functions
    are the same everywhere. For a smaller size, the functions are refitted by least squares.

    The even division has a rule of its own because layers with many edges are faster on equally spaced knots. On one
    CPU thread, a training step of two layers of 64 x 64 edges with 4096 rows takes 45 instead of 67 ms at 10 intervals,
    and 112 instead of 272 ms at 64 intervals. Layers with few edges take the same time with any knots.

    Args:
        weight: the old coefficients ``[G + k, I, O]``.
        knots: the old knots ``[I, G + 2k + 1]``.
        order: the order k of the splines.
        grid_size: the new number G' of intervals.
        x: finite samples ``[N, I]``, or None, which stands for the whole grid and for values outside of it.
        outside: the continuation of the splines beyond the grid, ``"zero"`` or ``"linear"``. With ``"linear"``, the
            functions on the grid determine the functions everywhere, and knots are inserted in the grid only.

    Returns:
        A tuple of the new coefficients ``[G' + k, I, O]`` in float64 and the new knots ``[I, G' + 2k + 1]`` in the
        dtype of the old knots.

    Raises:
        ValueError: if the dtype of the knots is too coarse for the new knots.
    """
    grid = interior(knots, order).double()
    old_size = grid.shape[1] - 1
    inserted = grid_size - old_size
    is_inside = outside == "linear" or (x is not None and bool(((x >= grid[:, 0]) & (x <= grid[:, -1])).all()))
    if inserted < 0 or (is_inside and grid_size % old_size == 0):
        finer = add_outer_knots(subdivide(grid, grid_size), order).to(knots.dtype)
    else:
        low, high = grid[:, :1], grid[:, -1:]
        if x is not None and outside == "zero":
            low, high = x.amin(0).double().unsqueeze(1), x.amax(0).double().unsqueeze(1)
        # A cell is added on each side of the knots, which extends twice as far beyond them as the samples do, because
        # splines vanish towards the last knot. The width of a cell is 0 if no sample lies beyond the knots on its side.
        # Both widths are 0 if fewer than two knots are inserted, because each of the two cells takes one of them.
        first, last = knots[:, :1].double(), knots[:, -1:].double()
        below = torch.minimum(first, 2 * low - first) if inserted >= 2 else first
        above = torch.maximum(last, 2 * high - last) if inserted >= 2 else last
        wide = torch.cat([below, knots.double(), above], 1)
        finer = _divide(wide, low, high, order, grid_size + 2 * order).to(knots.dtype)
        # The old functions are splines on the extended knots too, with coefficients 0 for the additional splines.
        knots = add_outer_knots(wide, order)
        weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, order + 1, order + 1))
    check_knots(finer, order)
    if inserted < 0:
        return refit(weight, knots, finer, order, x, outside), finer
    return insert_knots(weight, knots, finer.double(), order), finer


def _divide(knots: Tensor, low: Tensor, high: Tensor, order: int, count: int) -> Tensor:
    """Divide the cells that contain numbers from ``low`` to ``high``, so that there are ``count`` cells.

    The covered cells are all divided into the same number of parts, or some of the cells into one part more. If no cell
    is covered, the cells of the grid are divided.

    Args:
        knots: the knots ``[I, M]``. The first and the last cell are removed if their width is 0.
        low, high: the limits ``[I, 1]``.
        order: the order k. The grid consists of the knots t_{k+1} to t_{M-k-2}.
        count: the number of cells in the result.

    Returns:
        A tensor ``[I, count + 1]``.
    """
    left, right = knots[:, :-1], knots[:, 1:]
    covered = (right > low) & ((left < high) | (left <= low)) & (right > left)
    in_grid = (left >= knots[:, order + 1, None]) & (right <= knots[:, -order - 2, None]) & (right > left)
    covered = torch.where(covered.any(1, keepdim=True), covered, in_grid)
    parts = (~covered).long()
    parts[:, [0, -1]] = 0
    number, total = covered.cumsum(1), count - parts.sum(1, keepdim=True)
    share = total * number // number[:, -1:] - total * (number - 1) // number[:, -1:]
    parts = torch.where(covered, share, parts).flatten()
    cell = torch.repeat_interleave(parts)
    part = torch.arange(len(cell), device=knots.device) - (parts.cumsum(0) - parts)[cell]
    divided = left.flatten()[cell] + part / parts[cell] * (right - left).flatten()[cell]
    return torch.cat([divided.view(len(knots), count), knots[:, -1:]], 1)


def insert_knots(weight: Tensor, knots: Tensor, finer: Tensor, order: int) -> Tensor:
    """Compute the coefficients of spline functions on a finer grid that contains every knot of the old grid.

    Inside the finer grid, the functions with the new coefficients equal the old functions exactly. If the finer knots
    contain the outer knots too, the functions are equal everywhere. A coefficient is the polar form of a polynomial
    piece at k consecutive knots (Ramshaw, Blossoms are polar forms, 1989). The polar forms are evaluated at the finer
    knots by de Boor's recursion.

    Args:
        weight: the old coefficients ``[G + k, I, O]``.
        knots: the old knots ``[I, G + 2k + 1]``.
        finer: the finer knots ``[I, M']`` in float64. The grid of ``finer`` contains every knot of the old grid.
        order: the order k of the splines.

    Returns:
        A float64 tensor ``[M' - k - 1, I, O]``.
    """
    knots = knots.double()
    inputs, count = finer.shape[0], finer.shape[1] - order - 1
    piece = _piece(knots, finer, order)
    # triangle[i, b, r, c] is the weight of old coefficient ``piece - k + c`` in entry r of the current row of
    # de Boor's triangle, for new coefficient b of input i.
    triangle = torch.eye(order + 1, dtype=torch.float64, device=knots.device)
    triangle = triangle.expand(inputs, count, -1, -1)
    steps = torch.arange(order + 1, device=knots.device)
    around = torch.gather(
        knots.unsqueeze(1).expand(-1, count, -1), 2,
        piece.unsqueeze(2) + torch.arange(1 - order, order + 1, device=knots.device),
    )  # ``around`` contains the knots t[piece - k + 1] to t[piece + k]  # fmt: skip
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
    """Return, for each spline on the finer knots, the index of a cell of the old knots inside the spline's support.

    Among the finer cells that lie in the support of the spline and inside the grid, the widest cell is chosen. The
    function returns the index of the old cell that contains the widest cell, as a tensor ``[I, M' - k - 1]``.
    """
    count = finer.shape[1] - order - 1
    widths = finer.diff(dim=1)
    cells = torch.arange(widths.shape[1], device=finer.device)
    widths = torch.where((cells >= order) & (cells < count), widths, -1.0)
    windows = widths.unfold(1, order + 1, 1)  # [I, count, k + 1]
    cell = windows.argmax(2) + torch.arange(count, device=finer.device)
    middle = (finer.gather(1, cell) + finer.gather(1, cell + 1)) / 2
    found = torch.searchsorted(knots, middle.contiguous(), right=True) - 1
    return found.clamp(order, knots.shape[1] - order - 2)


def refit(
    weight: Tensor,
    knots: Tensor,
    new_knots: Tensor,
    order: int,
    x: Tensor | None,
    outside: str = "zero",
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Compute coefficients on new knots by a least-squares fit to the values of the old splines at ``x``.

    The minimum-norm solution of the normal equations is computed in float64, so the result does not depend on the
    device. The fit also includes anchors, which are evenly spaced points with a millionth of the weight of the samples.
    The anchors preserve the old function in regions without samples, where the coefficients would otherwise become 0.

    Args:
        weight: the old coefficients ``[K, I, O]``.
        knots: the old knots ``[I, M]``.
        new_knots: the new knots ``[I, M']``.
        order: the order k of the splines.
        x: samples ``[N, I]``, or None if the fit should use only the anchors.
        outside: the continuation of the splines beyond their grid, ``"zero"`` or ``"linear"``.
        sample_weight: weights ``[N]`` of the samples, or None.

    Returns:
        A float64 tensor ``[M' - k - 1, I, O]``.
    """
    knots, new_knots = knots.double(), new_knots.double()
    cells = new_knots.shape[1] - 2 * order - 1
    anchors = subdivide(interior(new_knots, order), cells * ANCHORS_PER_CELL).t()
    square, cross = _moments(anchors, new_knots, knots, order, outside)
    if x is not None and len(x):
        total = len(x) if sample_weight is None else sample_weight.sum()
        share = ANCHOR_SHARE * total / len(anchors)
        square, cross = square * share, cross * share
        parts = x.detach().double().split(ROWS)
        weights = [None] * len(parts) if sample_weight is None else sample_weight.split(ROWS)
        for part, part_weight in zip(parts, weights):
            more_square, more_cross = _moments(part, new_knots, knots, order, outside, part_weight)
            square, cross = square + more_square, cross + more_cross
    solution = torch.linalg.pinv(square, hermitian=True, rtol=1e-13) @ cross  # [I, K', K]
    return torch.einsum("ipq,qio->pio", solution, weight.detach().double())


def _moments(
    x: Tensor, new_knots: Tensor, knots: Tensor, order: int, outside: str, sample_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a tuple of the left side ``[I, K', K']`` and the right side ``[I, K', K]`` of the normal equations."""
    values = splines_with_tangents if outside == "linear" else spline_values
    new, old = values(x, new_knots, order), values(x, knots, order)
    left = new if sample_weight is None else new * sample_weight[:, None, None]
    return torch.einsum("npi,nqi->ipq", left, new), torch.einsum("npi,nqi->ipq", left, old)


def interpolate(values: Tensor, knots: Tensor, order: int) -> Tensor:
    """Compute the minimum-norm coefficients of splines that interpolate given values at the knots of the grid.

    Inputs with equal knots share one pseudo-inverse. The pseudo-inverse discards singular values below a tenth of the
    largest singular value, so that no coefficient is much larger than the values. The splines are therefore not exact
    where values differ between repeated or very close knots or, for even orders, alternate from knot to knot.

    Args:
        values: the values ``[G + 1, I, O]`` at the knots t_k to t_{G+k} of each input.
        knots: the knots ``[I, G + 2k + 1]``.
        order: the order k of the splines.

    Returns:
        A float64 tensor ``[G + k, I, O]``.
    """
    knots, inverse = knots.double().unique(dim=0, return_inverse=True)
    psi = splines(interior(knots, order).t(), knots, order).permute(2, 0, 1)  # [U, G + 1, K]
    solution = torch.linalg.pinv(psi, rtol=0.1)
    if len(solution) == 1:
        return torch.einsum("kp,pio->kio", solution[0], values.double())
    return torch.einsum("ikp,pio->kio", solution[inverse], values.double())


def splines_with_tangents(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Evaluate B-splines that are continued along their tangents beyond the grid.

    Args:
        x: the inputs ``[N, I]``. If x is infinite, the result is NaN.
        knots: the knots ``[I, G + 2k + 1]``.
        order: the order k of the splines.

    Returns:
        A tensor ``[N, K, I]``.

    Example:
        >>> knots = uniform_knots(1, grid_size=2, order=1)
        >>> splines_with_tangents(torch.tensor([[2.0]]), knots, order=1)[0, :, 0].round(decimals=4)
        tensor([ 0., -1.,  2.])
    """
    low, high = knots[:, order], knots[:, -order - 1]
    high = torch.nextafter(high, low)  # a point exactly on the last knot would belong to a cell outside of the grid
    clamped = torch.where(x < low, low, torch.where(x > high, high, x))
    beyond = torch.where(x.isinf(), torch.nan, x - clamped).unsqueeze(1)
    return splines(clamped, knots, order) + splines(clamped, knots, order, 1) * beyond
