"""Starting points for fits of ``c f(z) + d`` with z = a x + b: the best points of a coarse grid.

The grid is over (p, q), the values of z at the two ends of the range of x, so that the grid does not depend on the
units of x. The grid does not vary (p, q) in directions in which a change can be undone by a change of c and d. For this
reason, the grid of a power, logarithm or exponential is one-dimensional, and the grid of a sine is over frequency and
phase.

All samples are used: each sample is distributed linearly to the two nearest of ``NODES`` nodes on the range of x. The
R2 values of all grid points then take three matrix products with the weights of the nodes, and the values of f at the
nodes are computed once for all edges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.function_library import INF, Interval, SymbolicFunction

NODES = 129
# Range of the half length of the interval (p, q), for functions that are defined on the whole real line
MIN_HALF_LENGTH, MAX_HALF_LENGTH = 0.1, 40.0

# Maximum distance of z = 0 from the middle of the interval, in half lengths; at larger distances every function is
# nearly linear on the interval
MAX_CENTRE = 50.0

# Amount by which R2 is reduced, to break ties, for each half length between z = 0 and the middle of the interval
FAR_PENALTY = 1e-6
BLOCK_ELEMENTS = 1 << 21


class Nodes(NamedTuple):
    """The samples of E edges, binned to nodes that are evenly spaced on the input range of each edge."""

    share: Tensor  # [NODES], positions of the nodes on the range, from 0 to 1
    weight: Tensor  # [E, NODES], fraction of the samples at each node; each row sums to 1
    y: Tensor  # [E, NODES], mean of the samples at each node, minus the mean of all samples
    variance: Tensor  # [E], variance of the samples' y


def bin_to_nodes(t: Tensor, y: Tensor) -> Nodes:
    """Bin samples t and y, ``[E, N]`` each, to nodes; t must be between 0 and 1, and each row of y must have mean 0."""
    edges, samples = t.shape
    place = t * (NODES - 1)
    left = place.floor().clamp(0, NODES - 2)
    right_share = place - left
    index = left.long()
    weight, total = t.new_zeros(2, edges, NODES)
    for node, part in ((index, 1 - right_share), (index + 1, right_share)):
        weight.scatter_add_(1, node, part / samples)
        total.scatter_add_(1, node, part * y / samples)
    mean = torch.where(weight > 0, total / weight.clamp(min=torch.finfo(t.dtype).tiny), 0.0)
    share = torch.linspace(0, 1, NODES, dtype=t.dtype)
    return Nodes(share, weight, mean, y.square().mean(1))


def best_starts(function: SymbolicFunction, nodes: Nodes, count: int) -> tuple[Tensor, Tensor]:
    """Return a tuple of the starting points (p, q) ``[E, count, 2]`` of each edge and their R2 ``[E, count]``.

    The starting points of an edge are the ``count - 1`` highest local maxima of R2 on the grid and the best grid point
    for which z is 0 within the range of x. If the grid has fewer local maxima, the remaining points are NaN.
    """
    places, scores, centred = [], [], []
    for p, q in start_grids(function):
        flat = torch.stack([p, q], -1).view(-1, 2)
        middle = (flat.sum(1) / flat.diff(dim=1).squeeze(1)).abs()
        # Far from z = 0, all grid points give nearly the same line or exponential. The penalty then makes the grid
        # point with the smallest distance from z = 0 the best.
        r2 = r2_at(function, flat, nodes) - (FAR_PENALTY * middle).nan_to_num(0.0)  # [E, P]
        places.append(flat)
        scores.append(local_maxima(r2.view(-1, *p.shape)).flatten(1))
        centred.append(torch.where(middle <= 1, r2, -INF))
    place, r2, inner = torch.cat(places), torch.cat(scores, 1), torch.cat(centred, 1)
    top, index = r2.topk(min(count - 1, r2.shape[1]), 1)
    best, where = inner.max(1, keepdim=True)
    top, index = torch.cat([top, best], 1), torch.cat([index, where], 1)
    return torch.where(top.isfinite().unsqueeze(2), place[index], math.nan), top


def box_starts(
    function: SymbolicFunction,
    nodes: Nodes,
    low: Tensor,
    high: Tensor,
    a_range: tuple[float, float] | None,
    b_range: tuple[float, float] | None,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Return starting points as in :func:`best_starts` if a or b is bounded; each starting point is then a pair (a, b).

    The inputs x of each edge are between ``low [E]`` and ``high [E]``.
    """
    places, scores = [], []
    for edge, (x_low, x_high) in enumerate(zip(low.tolist(), high.tolist())):
        half, middle = (x_high - x_low) / 2, (x_high + x_low) / 2
        if a_range is None:
            sizes = _log_spaced(MIN_HALF_LENGTH, MAX_HALF_LENGTH, 24) / half
            a = torch.cat([-sizes.flip(0), sizes]).unsqueeze(1)
        else:
            turns = math.ceil((a_range[1] - a_range[0]) * half / 0.35)
            a = torch.linspace(*a_range, min(max(41, turns), 301), dtype=torch.float64).unsqueeze(1)
        if b_range is None:
            b = -a * (middle + half * _centres(1 / 16))
        else:
            b = torch.linspace(*b_range, 41, dtype=torch.float64).unsqueeze(0)
        place = torch.stack(torch.broadcast_tensors(a, b), -1)
        ends = torch.stack([place[..., 0] * x_low + place[..., 1], place[..., 0] * x_high + place[..., 1]], -1)
        one = Nodes(nodes.share, *(value[edge : edge + 1] for value in nodes[1:]))
        r2 = local_maxima(r2_at(function, ends.view(-1, 2), one).view(1, *place.shape[:2])).flatten(1)
        top, index = r2.topk(count, 1)
        places.append(place.view(-1, 2)[index])
        scores.append(top)
    best = torch.cat(scores)
    return torch.where(best.isfinite().unsqueeze(2), torch.cat(places), math.nan), best


def local_maxima(r2: Tensor) -> Tensor:
    """Return ``r2 [E, g1, g2]`` with every entry that is less than one of its neighbours replaced by -inf."""
    around = torch.nn.functional.max_pool2d(r2.unsqueeze(1), 3, 1, 1).squeeze(1)
    return torch.where(r2 >= around, r2, -INF)


def r2_at(function: SymbolicFunction, places: Tensor, nodes: Nodes) -> Tensor:
    """Return the R2 ``[E, P]`` of each edge, with the best c and d, at each grid point (p, q) in ``places [P, 2]``.

    R2 is -inf at grid points outside the domain of the function.
    """
    low, high = enclosing_branch(function, places.amin(1), places.amax(1))
    parts = []
    for part in places.split(max(1, BLOCK_ELEMENTS // NODES)):
        parts.append(function.fun(torch.lerp(part[:, :1], part[:, 1:], nodes.share)))
    f = torch.cat(parts)
    f = f - f.mean(1, keepdim=True)
    size = f.abs().amax(1, keepdim=True)
    f = f / size  # f is scaled so that its squares neither overflow nor underflow
    usable = (low < high) & size.squeeze(1).isfinite() & (size.squeeze(1) > 0)
    f = torch.where(usable.unsqueeze(1), f, 0.0)
    covariance = (nodes.weight * nodes.y) @ f.t()
    variance = nodes.weight @ f.square().t() - (nodes.weight @ f.t()).square()
    r2 = covariance.square() / (variance.clamp(min=1e-14) * nodes.variance.unsqueeze(1))
    return torch.where(usable & (variance > 1e-12), r2, -INF)


def enclosing_branch(function: SymbolicFunction, z_low: Tensor, z_high: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of the lower and the upper end of the branch of f's domain that contains a given interval.

    The given interval is from ``z_low`` to ``z_high``. Both ends are NaN where no branch of the domain contains the
    whole interval.
    """
    low, high = torch.full_like(z_low, math.nan), torch.full_like(z_low, math.nan)
    for branch in function.branches():
        start, end = torch.full_like(z_low, branch.low), torch.full_like(z_low, branch.high)
        if function.poles and function.period is not None:
            turns = torch.floor((z_low - branch.low) / function.period) * function.period
            start, end = start + turns, end + turns
        holds = (z_low >= start) if branch.low_closed else (z_low > start)
        holds &= (z_high <= end) if branch.high_closed else (z_high < end)
        low, high = torch.where(holds, start, low), torch.where(holds, end, high)
    return low, high


# -- grids -------------------------------------------------------------------------------------------


def start_grids(function: SymbolicFunction) -> list[tuple[Tensor, Tensor]]:
    """Return a list of grids, each a tuple of p ``[g1, g2]`` and q ``[g1, g2]`` that vary gradually along both axes."""
    tables = []
    branches = function.branches()
    for number, branch in enumerate(branches):
        mirrored = branches[len(branches) - 1 - number]
        if function.symmetry and number < len(branches) // 2 and mirrored.low == -branch.high:
            continue  # Since f is even or odd, the branch z < 0 gives the same fits as the branch z > 0
        tables += _branch_grids(function, branch)
    return tables


def _branch_grids(function: SymbolicFunction, branch: Interval) -> list[tuple[Tensor, Tensor]]:
    if math.isfinite(branch.low) and math.isfinite(branch.high):
        return [_bounded_grid(branch, both_ways=function.symmetry is None)]
    if math.isfinite(branch.low) or math.isfinite(branch.high):
        p, q = _half_line_grid(homogeneous=function.scale is not None)
        if math.isfinite(branch.low):
            p, q = branch.low + p, branch.low + q
        else:
            p, q = branch.high - q, branch.high - p
        return [(p, q), (q, p)]
    if function.shift is not None:
        half = _log_spaced(0.02, 60.0, 30).unsqueeze(0)
        p, q = -2 * half, torch.zeros_like(half)  # z is at most 0, so that exp does not overflow
        return [(p, q), (q, p)]
    if function.scale is not None:
        middle, half = _centres(1 / 32).unsqueeze(0), torch.ones(1, dtype=torch.float64)
    elif function.period is not None:
        return _both_directions(function, *_periodic_grid(function))
    else:
        ratio = 1.6 if function.symmetry else 1.3
        count = round(math.log(MAX_HALF_LENGTH / MIN_HALF_LENGTH) / math.log(ratio)) + 1
        half = _log_spaced(MIN_HALF_LENGTH, MAX_HALF_LENGTH, count).unsqueeze(1)
        middle = _centres(1 / 16).unsqueeze(0)
    return _both_directions(function, half, -half * middle)


def _both_directions(function: SymbolicFunction, half: Tensor, centre: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return a list that contains the grid of p and q with the given half lengths and centres.

    If f is not symmetric, the list also contains the grid with p and q swapped.
    """
    p, q = torch.broadcast_tensors(centre - half, centre + half)
    return [(p, q)] if function.symmetry else [(p, q), (q, p)]


def _log_spaced(low: float, high: float, count: int) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)


def _centres(step: float) -> Tensor:
    """Return the grid of positions of z = 0, measured from the middle of the interval in half lengths.

    Positions within or close to the interval are evenly spaced, and positions further out are log-spaced.
    """
    inner = torch.arange(-1.25, 1.25 + step / 2, step, dtype=torch.float64)
    outer = _log_spaced(1.25, MAX_CENTRE, 11)[1:]
    return torch.cat([-outer.flip(0), inner, outer])


def _bounded_grid(branch: Interval, both_ways: bool) -> tuple[Tensor, Tensor]:
    """Return the grid of p and q on a bounded branch, at Chebyshev points, which are denser near its ends."""
    count = 28
    angle = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    ends = branch.low + (branch.high - branch.low) * (1 - angle.cos()) / 2
    p, q = torch.meshgrid(ends, ends, indexing="ij")
    usable = p != q if both_ways else p < q
    return torch.where(usable, p, math.nan), torch.where(usable, q, math.nan)


def _half_line_grid(homogeneous: bool) -> tuple[Tensor, Tensor]:
    """Return the grid of p and q on the half line from 0.

    If f is homogeneous, only the ratio p / q matters, so that q is 1 at all grid points.
    """
    if homogeneous:
        p = torch.sigmoid(torch.linspace(-9, 4.5, 40, dtype=torch.float64)).unsqueeze(0)
        return p, torch.ones_like(p)
    p = _log_spaced(1e-3, 1e2, 16).unsqueeze(1)
    return torch.broadcast_tensors(p, p + _log_spaced(1e-2, 1e2, 20).unsqueeze(0))


def _periodic_grid(function: SymbolicFunction) -> tuple[Tensor, Tensor]:
    """Return a tuple of half lengths of the interval (p, q) and phases of a periodic function.

    The length of the interval grows by at most about a quarter of a period from one half length to the next.
    """
    assert function.period is not None
    unit = function.period / (2 * math.pi)
    slow = torch.tensor([0.1, 0.2, 0.4, 0.7], dtype=torch.float64)
    half = unit * torch.cat([slow, torch.arange(1.0, 1.25 * MAX_HALF_LENGTH, 0.7, dtype=torch.float64)]).unsqueeze(1)
    turn = function.period / 2 if function.antiperiodic else function.period
    phases = 8 if function.antiperiodic else 16
    return half, torch.arange(phases, dtype=torch.float64).unsqueeze(0) * (turn / phases)
