"""From samples to affine parameters, in three stages: a grid, a polish on nodes, a polish on samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.function_library import INF, SymbolicFunction, lookup
from .canonical import canonical, derived, solved, unit_factor
from .polish import Fits, evaluate, polish
from .starts import NODES, Nodes, best_starts, box_starts, inside, shared_out

STARTS = 4  # places of a grid that are polished
ROUGH_STEPS, FINE_STEPS = 12, 30
SAMPLES = 2000  # that the last polish looks at
BLOCK_ELEMENTS = 1 << 20
LARGEST_TERM = 1e6  # c f, in spreads of y: what it may be in float64
KEPT = 0.1  # of its distance to the end of a domain, in one step

Range = tuple[float, float] | None


class Samples(NamedTuple):
    """Of E edges, in float64.

    Attributes:
        x, y: ``[E, N]``.
        low, high: ``[E]``, ends of x.
        eps: of the dtype that they came in.
        fixed: ``[E]``, whether x or y is constant.
    """

    x: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    eps: float
    fixed: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Samples:
        """From ``[N, E]``."""
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)
        eps = min(eps, torch.finfo(torch.float32).eps)
        x = x.detach().t().to("cpu", torch.float64, copy=True).contiguous()
        y = y.detach().t().to("cpu", torch.float64, copy=True).contiguous()
        return cls(x, y, x.amin(1), x.amax(1), eps, constant(x, eps) | constant(y, eps))

    def take(self, edges: Tensor) -> Samples:
        """Some of the edges."""
        return self._replace(**{name: value[edges] for name, value in self._asdict().items() if name != "eps"})


class Frame(NamedTuple):
    """What z is made of: ``theta_1 phi_1 + theta_2 phi_2``. Without bounds from the user theta is where the ends
    of x's range end up, else it is (a, b).

    Attributes:
        nodes, samples: phi, ``[1 or E, 2, NODES]`` and ``[E, 2, N]``.
        ends: phi at the ends of the range, ``[1 or E, 2, 2]``.
        box: bounds of theta, ``[2, 2]``, or None where that is the function's domain.
    """

    nodes: Tensor
    samples: Tensor
    ends: Tensor
    box: Tensor | None


def constant(values: Tensor, eps: float) -> Tensor:
    """``[E]``: whether rows ``[E, N]`` are the same number, but for rounding."""
    return values.amax(1) - values.amin(1) <= 2 * eps * values.abs().amax(1)


def fit(
    functions: Sequence[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> tuple[Tensor, Tensor]:
    """The best affine ``[F, E, 4]`` and R2 ``[F, E]``."""
    affine = constants(functions, samples)
    r2 = constant(samples.y, samples.eps).double().repeat(len(functions), 1)
    count = samples.x.shape[1]
    each = max(len(functions) * max(STARTS * NODES, min(count, SAMPLES)), 8 * count)
    for block in (~samples.fixed).nonzero().flatten().split(max(1, BLOCK_ELEMENTS // each)):
        if not len(block):
            continue
        part = samples.take(block)
        new_affine, new_r2 = _fit(functions, part, a_range, b_range)
        better = new_r2 > 0
        affine[:, block] = torch.where(better.unsqueeze(2), new_affine, affine[:, block])
        r2[:, block] = torch.where(better, new_r2, 0.0)
    return affine, r2


def constants(functions: Sequence[SymbolicFunction], samples: Samples) -> Tensor:
    """Fits with c = 0 and the mean for d, at an argument that is in the domain: ``[F, E, 4]``."""
    affine = torch.zeros(len(functions), len(samples.x), 4, dtype=torch.float64)
    affine[..., 3] = samples.y.mean(1)
    for row, function in zip(affine, functions):
        row[:, 0] = float(_linear(function))
        row[:, 1] = function.branches()[-1].interior_point
    return affine


def _fit(
    functions: Sequence[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> tuple[Tensor, Tensor]:
    free = a_range is None and b_range is None
    roots = {root.name: root for root in (_root(one, free) for one in functions) if not _linear(root)}
    arguments = dict(zip(roots, _arguments(list(roots.values()), samples, a_range, b_range)))
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def finish(function: SymbolicFunction) -> tuple[Tensor, Tensor]:
        if function.name not in found:
            root = _root(function, free)
            if _linear(function):
                a, b = (torch.full_like(samples.low, value) for value in _plain(a_range, b_range))
            else:
                a, b = arguments[root.name]
                if root is not function:
                    a, b = derived(function, a, b)
                if free:
                    a, b = canonical(function, a, b, samples.high - samples.low)
            affine, r2 = solved(function, a, b, samples.x, samples.y)
            if free:
                affine = unit_factor(function, affine, samples.x, samples.y)
            if root is not function:
                r2 = torch.where(r2.isfinite(), finish(root)[1], r2)  # ties are exact
            found[function.name] = affine, r2
        return found[function.name]

    results = [finish(function) for function in functions]
    return torch.stack([affine for affine, _ in results]), torch.stack([r2 for _, r2 in results])


def _linear(function: SymbolicFunction) -> bool:
    return function.scale is not None and function.shift is not None


def _root(function: SymbolicFunction, free: bool) -> SymbolicFunction:
    """What is searched in its place: bounds of a and b hold for the function itself."""
    if function.same_as is None or not (free or function.alias):
        return function
    return lookup(function.same_as[0])


def _plain(a_range: Range, b_range: Range) -> tuple[float, float]:
    """The a and b nearest to 1 and 0; an a of 0 would leave nothing of x."""
    a = 1.0 if a_range is None else min(max(1.0, a_range[0]), a_range[1])
    if a == 0.0 and a_range is not None:
        a = a_range[0]
    b = 0.0 if b_range is None else min(max(0.0, b_range[0]), b_range[1])
    return a, b


# -- stages --------------------------------------------------------------------------------------------


def _arguments(
    functions: list[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> list[tuple[Tensor, Tensor]]:
    """a and b ``[E]`` for each function, NaN where there are none."""
    if not functions:
        return []
    low, span = samples.low.unsqueeze(1), (samples.high - samples.low).unsqueeze(1)
    t = (samples.x - low) / span
    y = samples.y - samples.y.mean(1, keepdim=True)
    nodes = shared_out(t, y)
    if t.shape[1] > SAMPLES:
        some = torch.randperm(t.shape[1], generator=torch.Generator().manual_seed(0))[:SAMPLES]
        t, y = t[:, some], y[:, some]
        y = y - y.mean(1, keepdim=True)
    if a_range is None and b_range is None:
        share = nodes.share.unsqueeze(0)
        frame = Frame(
            torch.stack([1 - share, share], 1), torch.stack([1 - t, t], 1),
            torch.eye(2, dtype=torch.float64).unsqueeze(0), None,
        )  # fmt: skip
        found = [best_starts(function, nodes, STARTS) for function in functions]
    else:
        x = torch.cat([torch.lerp(low, low + span, nodes.share), low + t * span, low, low + span], 1)
        phi = torch.stack([x, torch.ones_like(x)], 1)
        bounds = [(-INF, INF) if one is None else one for one in (a_range, b_range)]
        frame = Frame(
            phi[..., :NODES], phi[..., NODES:-2], phi[..., -2:], torch.tensor(bounds, dtype=torch.float64)
        )  # fmt: skip
        found = [
            box_starts(function, nodes, samples.low, samples.high, a_range, b_range, STARTS) for function in functions
        ]
    places = torch.stack([place for place, _ in found])
    theta = _polished(functions, frame, places, nodes, y, min(1e-4 / samples.eps, LARGEST_TERM))
    return [_raw(function, one, frame, samples) for function, one in zip(functions, theta)]


def _polished(
    functions: list[SymbolicFunction], frame: Frame, places: Tensor, nodes: Nodes, y: Tensor, most: float
) -> Tensor:
    """From places ``[F, E, K, 2]`` to the best theta ``[F, E, 2]``, NaN where there is none."""
    kinds, edges, count, _ = places.shape
    place = torch.arange(kinds * edges * count)
    function, edge = place // (edges * count), place // count % edges
    rough = _fits(functions, frame, places.reshape(-1, 2), function, edge, most, nodes.y, nodes.weight)
    theta, loss = polish(functions, rough, ROUGH_STEPS)
    best = loss.view(kinds * edges, count).argmin(1) + torch.arange(kinds * edges) * count
    fine = _fits(functions, frame, theta[best], function[best], edge[best], most, y, None)
    theta, loss = polish(functions, fine, FINE_STEPS)
    flat = loss.isfinite() & (evaluate(functions, fine).hessian == 0).all(1)
    for row in flat.nonzero().flatten().tolist():
        theta[row] = _searched(functions, fine.take(torch.tensor([row])))
    return torch.where(loss.isfinite().unsqueeze(1), theta, math.nan).view(kinds, edges, 2)


def _fits(
    functions: list[SymbolicFunction],
    frame: Frame,
    theta: Tensor,
    function: Tensor,
    edge: Tensor,
    most: float,
    y: Tensor,
    weight: Tensor | None,
) -> Fits:
    """Rows to polish: on nodes with their weights, or on samples without."""
    phi, fine = (frame.samples, True) if weight is None else (frame.nodes, False)
    ends = frame.ends if len(frame.ends) == 1 else frame.ends[edge]
    if frame.box is None:
        bounds = []
        counts = torch.bincount(function, minlength=len(functions)).tolist()
        for one, part in zip(functions, theta.split(counts)):
            bounds.append(torch.stack(inside(one, part.amin(1), part.amax(1)), 1))
        low, high = torch.cat(bounds).unsqueeze(1).expand(-1, 2, -1).unbind(2)
    else:
        low, high = (frame.box[:, side].expand(len(theta), 2) for side in range(2))
    return Fits(
        function, theta, phi[edge] if fine or len(phi) > 1 else phi, ends, y[edge],
        None if weight is None else weight[edge],
        low, high, KEPT if frame.box is None else 0.0, torch.full_like(theta[:, 0], most),
    )  # fmt: skip


def _searched(functions: list[SymbolicFunction], fit: Fits) -> Tensor:
    """The best theta ``[2]`` around that of one fit whose function has no slope to go by."""
    theta = fit.theta[0]

    def best(around: Tensor) -> Tensor:
        losses = []
        for part in around.split(256):
            rows = fit.take(torch.zeros(len(part), dtype=torch.long))._replace(theta=part)
            losses.append(evaluate(functions, rows).loss)
        return around[torch.cat(losses).argmin()]

    if functions[int(fit.function)].scale is not None and fit.keep:  # all it can do is jump at 0
        t = fit.phi[0, 1].sort().values
        middle = (t[1:] + t[:-1]) / 2
        span = theta[1] - theta[0]
        near = middle[(middle + theta[0] / span).abs() < 0.03]
        return best(torch.cat([theta.unsqueeze(0), span * torch.stack([-near, 1 - near], 1)]))
    reach = 0.05 * (theta[1] - theta[0]).abs() if fit.keep else 0.05 * theta.abs().amax()
    steps = torch.linspace(-1, 1, 13, dtype=theta.dtype)
    for _ in range(6):  # ever finer grids
        theta = best((theta + reach * torch.cartesian_prod(steps, steps)).clamp(fit.low[0], fit.high[0]))
        reach = reach / 4
    return theta


def _raw(function: SymbolicFunction, theta: Tensor, frame: Frame, samples: Samples) -> tuple[Tensor, Tensor]:
    """a and b from theta ``[E, 2]``, as far inside the domain as rounding of ``a x + b`` needs."""
    if frame.box is not None:
        a, b = theta.unbind(1)
        return a, b
    p, q = theta.unbind(1)
    span = samples.high - samples.low
    low, high = inside(function, torch.minimum(p, q), torch.maximum(p, q))
    most = torch.maximum(samples.low.abs(), samples.high.abs())
    margin = 4 * samples.eps * ((q - p).abs() * most / span + torch.maximum(p.abs(), q.abs()))
    p, q = (torch.minimum(torch.maximum(end, low + margin), high - margin) for end in (p, q))
    a = (q - p) / span
    return a, p - a * samples.low
