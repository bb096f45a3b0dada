"""Starts for fits of ``c f(z) + d`` with z = a x + b: the best places of a coarse grid.

z runs from p to q while x runs over the range of its samples, so that a grid over (p, q) does not depend on the units
of x. Directions of (p, q) that c and d can make up for are left out of the grid: powers, logarithms and exponentials
have one line of places, sines a table of frequencies and phases.

All samples are used: each is distributed linearly to the two nearest of ``NODES`` nodes on the range. R2 of a place
then takes three matrix products with the nodes' weights, and the values of f at the nodes are the same for all edges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.function_library import INF, Interval, SymbolicFunction

NODES = 129
MIN_HALF_LENGTH, MAX_HALF_LENGTH = 0.1, 40.0  # of the interval (p, q), for functions on the whole line
MAX_CENTRE = 50.0  # furthest z = 0 from the middle of the range, in half ranges: further out, all functions look linear
FAR_PENALTY = 1e-6  # subtracted from R2 for each half range between z = 0 and the middle, to break ties
BLOCK_ELEMENTS = 1 << 21


class Nodes(NamedTuple):
    """Samples of E edges, binned to nodes that are evenly spaced on each edge's range."""

    share: Tensor  # [NODES], positions of the nodes on the range, from 0 to 1
    weight: Tensor  # [E, NODES], share of the samples at each node; each row sums to 1
    y: Tensor  # [E, NODES], mean of the samples at each node, minus the mean of all samples
    variance: Tensor  # [E], variance of the samples' y


def bin_to_nodes(t: Tensor, y: Tensor) -> Nodes:
    """Bin samples ``t, y [E, N]`` to nodes; t is from 0 to 1, and each row of y has mean 0."""
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
    """Return the highest local maxima of the grid for each edge, and the best place with z = 0 inside the range: places
    (p, q), ``[E, count, 2]``, NaN where the grid has fewer maxima, and their R2, ``[E, count]``."""
    places, scores, centred = [], [], []
    for p, q in start_grids(function):
        flat = torch.stack([p, q], -1).view(-1, 2)
        middle = (flat.sum(1) / flat.diff(dim=1).squeeze(1)).abs()
        # far from z = 0 all places look alike, like a line or an exponential, so ties go to the nearest
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
    """Same as :func:`best_starts` for bounds on a and b; places are (a, b), and x is from ``low`` to ``high [E]``."""
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
    """Set ``r2 [E, g1, g2]`` to -inf where a neighbour is higher."""
    around = torch.nn.functional.max_pool2d(r2.unsqueeze(1), 3, 1, 1).squeeze(1)
    return torch.where(r2 >= around, r2, -INF)


def r2_at(function: SymbolicFunction, places: Tensor, nodes: Nodes) -> Tensor:
    """R2 with the best c and d of each edge at each of ``places [P, 2]``, ``[E, P]``; -inf outside the domain."""
    low, high = enclosing_branch(function, places.amin(1), places.amax(1))
    parts = []
    for part in places.split(max(1, BLOCK_ELEMENTS // NODES)):
        parts.append(function.fun(torch.lerp(part[:, :1], part[:, 1:], nodes.share)))
    f = torch.cat(parts)
    f = f - f.mean(1, keepdim=True)
    size = f.abs().amax(1, keepdim=True)
    f = f / size  # so that squares neither overflow nor underflow
    usable = (low < high) & size.squeeze(1).isfinite() & (size.squeeze(1) > 0)
    f = torch.where(usable.unsqueeze(1), f, 0.0)
    covariance = (nodes.weight * nodes.y) @ f.t()
    variance = nodes.weight @ f.square().t() - (nodes.weight @ f.t()).square()
    r2 = covariance.square() / (variance.clamp(min=1e-14) * nodes.variance.unsqueeze(1))
    return torch.where(usable & (variance > 1e-12), r2, -INF)


def enclosing_branch(function: SymbolicFunction, z_low: Tensor, z_high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the branch of f's domain that contains all z from ``z_low`` to ``z_high``; NaN where none does."""
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
    """Grids of p and q, pairs of ``[g1, g2]`` in which neighbouring entries are neighbouring places."""
    tables = []
    branches = function.branches()
    for number, branch in enumerate(branches):
        mirrored = branches[len(branches) - 1 - number]
        if function.symmetry and number < len(branches) // 2 and mirrored.low == -branch.high:
            continue  # by symmetry the branch z < 0 gives the same fits as z > 0
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
        p, q = -2 * half, torch.zeros_like(half)  # z <= 0, so that exp does not overflow
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
    """Grids of p and q from the interval's half length and centre, and with p and q swapped unless f is symmetric."""
    p, q = torch.broadcast_tensors(centre - half, centre + half)
    return [(p, q)] if function.symmetry else [(p, q), (q, p)]


def _log_spaced(low: float, high: float, count: int) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)


def _centres(step: float) -> Tensor:
    """Positions of z = 0, in half ranges from the middle: evenly spaced near the range, log-spaced further out."""
    inner = torch.arange(-1.25, 1.25 + step / 2, step, dtype=torch.float64)
    outer = _log_spaced(1.25, MAX_CENTRE, 11)[1:]
    return torch.cat([-outer.flip(0), inner, outer])


def _bounded_grid(branch: Interval, both_ways: bool) -> tuple[Tensor, Tensor]:
    """Grid of p and q on a bounded branch, at Chebyshev points, which are denser near its ends."""
    count = 28
    angle = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    ends = branch.low + (branch.high - branch.low) * (1 - angle.cos()) / 2
    p, q = torch.meshgrid(ends, ends, indexing="ij")
    usable = p != q if both_ways else p < q
    return torch.where(usable, p, math.nan), torch.where(usable, q, math.nan)


def _half_line_grid(homogeneous: bool) -> tuple[Tensor, Tensor]:
    """Grid of p and q on the half line from 0; for homogeneous f only the ratio p / q matters, and q is 1."""
    if homogeneous:
        p = torch.sigmoid(torch.linspace(-9, 4.5, 40, dtype=torch.float64)).unsqueeze(0)
        return p, torch.ones_like(p)
    p = _log_spaced(1e-3, 1e2, 16).unsqueeze(1)
    return torch.broadcast_tensors(p, p + _log_spaced(1e-2, 1e2, 20).unsqueeze(0))


def _periodic_grid(function: SymbolicFunction) -> tuple[Tensor, Tensor]:
    """Half lengths, spaced by about a quarter period over the range, and phases of a periodic function."""
    assert function.period is not None
    unit = function.period / (2 * math.pi)
    slow = torch.tensor([0.1, 0.2, 0.4, 0.7], dtype=torch.float64)
    half = unit * torch.cat([slow, torch.arange(1.0, 1.25 * MAX_HALF_LENGTH, 0.7, dtype=torch.float64)]).unsqueeze(1)
    turn = function.period / 2 if function.antiperiodic else function.period
    phases = 8 if function.antiperiodic else 16
    return half, torch.arange(phases, dtype=torch.float64).unsqueeze(0) * (turn / phases)
