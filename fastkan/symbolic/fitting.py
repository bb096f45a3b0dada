"""Fit of ``c f(a x + b) + d`` to samples of many edges, for many functions f at once.

It has three stages: the best places of a coarse grid over (a, b) (``starts``), least-squares steps on samples binned to
nodes, and least-squares steps on the samples themselves (``polish``). c and d are solved exactly for each (a, b).
Parameters that give the same function are then replaced by those that are easiest to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.function_library import INF, SymbolicFunction, lookup
from .polish import Fits, evaluate, polish
from .starts import NODES, Nodes, best_starts, bin_to_nodes, box_starts, enclosing_branch

STARTS = 4  # places of the grid from which least-squares steps start
ROUGH_STEPS, FINE_STEPS = 12, 30
MAX_SAMPLES = 2000  # samples used by the last stage; more are subsampled
BLOCK_ELEMENTS = 1 << 20
MAX_AMPLITUDE = 1e6  # largest |c f| in standard deviations of y: beyond, rounding in float64 spoils the fit
MIN_SPAN, MAX_SPAN = 1e-3, 1e4  # widths of x's range for which |a| = 1 keeps c readable
MIN_MARGIN = 0.1  # share of theta's distance to the end of a domain that remains after one step

Range = tuple[float, float] | None


class Samples(NamedTuple):
    """Samples of E edges, in float64."""

    x: Tensor  # [E, N], inputs
    y: Tensor  # [E, N], outputs
    low: Tensor  # [E], least x
    high: Tensor  # [E], greatest x
    eps: float  # machine epsilon of the dtype in which the samples were given, at most that of float32
    fixed: Tensor  # [E], whether x or y is constant

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Samples:
        """Samples from x and y ``[N, E]``."""
        eps = min(max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps), torch.finfo(torch.float32).eps)
        x = x.detach().t().to("cpu", torch.float64, copy=True).contiguous()
        y = y.detach().t().to("cpu", torch.float64, copy=True).contiguous()
        return cls(x, y, x.amin(1), x.amax(1), eps, constant(x, eps) | constant(y, eps))

    def take(self, edges: Tensor) -> Samples:
        """Samples of some of the edges."""
        return self._replace(**{name: value[edges] for name, value in self._asdict().items() if name != "eps"})


class Coordinates(NamedTuple):
    """Coordinates theta of the search, with f's argument ``z = a x + b = theta_1 phi_1 + theta_2 phi_2``.

    Without bounds from the user, theta is (p, q), the values of z at the two ends of x's range; phi is then
    (1 - t, t) with t from 0 to 1 along the range. With bounds, theta is (a, b), and phi is (x, 1).
    """

    nodes: Tensor  # [1 or E, 2, NODES], phi at the nodes
    samples: Tensor  # [E, 2, N], phi at the samples
    ends: Tensor  # [1 or E, 2, 2], phi at the ends of the range
    bounds: Tensor | None  # [2, 2], bounds of theta; None if only the function's domain bounds it


def constant(values: Tensor, eps: float) -> Tensor:
    """Whether each row of ``values [E, N]`` is constant up to rounding, ``[E]``."""
    return values.amax(1) - values.amin(1) <= 2 * eps * values.abs().amax(1)


def fit(
    functions: Sequence[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> tuple[Tensor, Tensor]:
    """Return the best (a, b, c, d), ``[F, E, 4]``, of F functions for E edges, and their R2, ``[F, E]``. Where no fit
    is better than a constant, that is c = 0 and d the mean of y, with R2 = 0, or 1 if y is constant."""
    affine = constant_fits(functions, samples)
    r2 = constant(samples.y, samples.eps).double().repeat(len(functions), 1)
    count = samples.x.shape[1]
    each = max(len(functions) * max(STARTS * NODES, min(count, MAX_SAMPLES)), 8 * count)
    for block in (~samples.fixed).nonzero().flatten().split(max(1, BLOCK_ELEMENTS // each)):
        if not len(block):
            continue
        new_affine, new_r2 = _fit(functions, samples.take(block), a_range, b_range)
        better = new_r2 > 0
        affine[:, block] = torch.where(better.unsqueeze(2), new_affine, affine[:, block])
        r2[:, block] = torch.where(better, new_r2, 0.0)
    return affine, r2


def constant_fits(functions: Sequence[SymbolicFunction], samples: Samples) -> Tensor:
    """Constant fits, with c = 0, d the mean of y, and an argument in the domain, ``[F, E, 4]``."""
    affine = torch.zeros(len(functions), len(samples.x), 4, dtype=torch.float64)
    affine[..., 3] = samples.y.mean(1)
    for row, function in zip(affine, functions):
        row[:, 0] = float(_is_affine(function))
        row[:, 1] = function.branches()[-1].interior_point
    return affine


def _fit(
    functions: Sequence[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> tuple[Tensor, Tensor]:
    unbounded = a_range is None and b_range is None
    roots = {root.name: root for root in (_searched_as(one, unbounded) for one in functions) if not _is_affine(root)}
    arguments = dict(zip(roots, _search_inner(list(roots.values()), samples, a_range, b_range)))
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def finish(function: SymbolicFunction) -> tuple[Tensor, Tensor]:
        if function.name not in found:
            root = _searched_as(function, unbounded)
            if _is_affine(function):
                a, b = (torch.full_like(samples.low, value) for value in _default_inner(a_range, b_range))
            else:
                a, b = arguments[root.name]
                if root is not function:
                    a, b = inner_of_equivalent(function, a, b)
                if unbounded:
                    a, b = canonical_inner(function, a, b, samples.high - samples.low)
            affine, r2 = solve_outer(function, a, b, samples.x, samples.y)
            if unbounded:
                affine = absorb_factor(function, affine, samples.x, samples.y)
            if root is not function:
                r2 = torch.where(r2.isfinite(), finish(root)[1], r2)  # so that equivalent functions tie exactly
            found[function.name] = affine, r2
        return found[function.name]

    results = [finish(function) for function in functions]
    return torch.stack([affine for affine, _ in results]), torch.stack([r2 for _, r2 in results])


def _is_affine(function: SymbolicFunction) -> bool:
    """Whether c and d can make up for both a and b, as for f(z) = z."""
    return function.scale is not None and function.shift is not None


def _searched_as(function: SymbolicFunction, unbounded: bool) -> SymbolicFunction:
    """Return the function that is searched in place of this one: an equivalent one if it exists, such as sin for cos;
    with bounds on a and b only for an alias, since the bounds are on the function's own parameters."""
    if function.same_as is None or not (unbounded or function.alias):
        return function
    return lookup(function.same_as[0])


def _default_inner(a_range: Range, b_range: Range) -> tuple[float, float]:
    """Return the a nearest to 1 and the b nearest to 0 within bounds; a is not 0, which would remove x."""
    a = 1.0 if a_range is None else min(max(1.0, a_range[0]), a_range[1])
    if a == 0.0 and a_range is not None:
        a = a_range[0]
    b = 0.0 if b_range is None else min(max(0.0, b_range[0]), b_range[1])
    return a, b


# -- stages --------------------------------------------------------------------------------------------


def _search_inner(
    functions: list[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> list[tuple[Tensor, Tensor]]:
    """Return the best a and b, ``[E]`` each, for each function; NaN where the domain allows none."""
    if not functions:
        return []
    low, span = samples.low.unsqueeze(1), (samples.high - samples.low).unsqueeze(1)
    t = (samples.x - low) / span
    y = samples.y - samples.y.mean(1, keepdim=True)
    nodes = bin_to_nodes(t, y)
    if t.shape[1] > MAX_SAMPLES:
        some = torch.randperm(t.shape[1], generator=torch.Generator().manual_seed(0))[:MAX_SAMPLES]
        t, y = t[:, some], y[:, some]
        y = y - y.mean(1, keepdim=True)
    if a_range is None and b_range is None:
        share = nodes.share.unsqueeze(0)
        coordinates = Coordinates(
            torch.stack([1 - share, share], 1), torch.stack([1 - t, t], 1),
            torch.eye(2, dtype=torch.float64).unsqueeze(0), None,
        )  # fmt: skip
        found = [best_starts(function, nodes, STARTS) for function in functions]
    else:
        x = torch.cat([torch.lerp(low, low + span, nodes.share), low + t * span, low, low + span], 1)
        phi = torch.stack([x, torch.ones_like(x)], 1)
        bounds = [(-INF, INF) if one is None else one for one in (a_range, b_range)]
        coordinates = Coordinates(
            phi[..., :NODES], phi[..., NODES:-2], phi[..., -2:], torch.tensor(bounds, dtype=torch.float64)
        )  # fmt: skip
        box = samples.low, samples.high, a_range, b_range
        found = [box_starts(function, nodes, *box, STARTS) for function in functions]
    places = torch.stack([place for place, _ in found])
    theta = _polish_starts(functions, coordinates, places, nodes, y, min(1e-4 / samples.eps, MAX_AMPLITUDE))
    return [_inner_of_theta(function, one, coordinates, samples) for function, one in zip(functions, theta)]


def _polish_starts(
    functions: list[SymbolicFunction], coordinates: Coordinates, places: Tensor, nodes: Nodes, y: Tensor, limit: float
) -> Tensor:
    """Return the best theta, ``[F, E, 2]``, found from K starts ``places [F, E, K, 2]``; NaN where none is usable."""
    kinds, edges, count, _ = places.shape
    place = torch.arange(kinds * edges * count)
    function, edge = place // (edges * count), place // count % edges
    rough = _fits(functions, coordinates, places.reshape(-1, 2), function, edge, limit, nodes.y, nodes.weight)
    theta, loss = polish(functions, rough, ROUGH_STEPS)
    best = loss.view(kinds * edges, count).argmin(1) + torch.arange(kinds * edges) * count
    fine = _fits(functions, coordinates, theta[best], function[best], edge[best], limit, y, None)
    theta, loss = polish(functions, fine, FINE_STEPS)
    flat = loss.isfinite() & (evaluate(functions, fine).hessian == 0).all(1)  # f has slope 0 everywhere, as sgn has
    for row in flat.nonzero().flatten().tolist():
        theta[row] = _grid_search(functions, fine.take(torch.tensor([row])))
    return torch.where(loss.isfinite().unsqueeze(1), theta, math.nan).view(kinds, edges, 2)


def _fits(
    functions: list[SymbolicFunction],
    coordinates: Coordinates,
    theta: Tensor,
    function: Tensor,
    edge: Tensor,
    max_amplitude: float,
    y: Tensor,
    weight: Tensor | None,
) -> Fits:
    """Fits to polish, on the nodes if ``weight`` is given and on the samples otherwise."""
    phi, fine = (coordinates.samples, True) if weight is None else (coordinates.nodes, False)
    ends = coordinates.ends if len(coordinates.ends) == 1 else coordinates.ends[edge]
    if coordinates.bounds is None:
        bounds = []
        counts = torch.bincount(function, minlength=len(functions)).tolist()
        for one, part in zip(functions, theta.split(counts)):
            bounds.append(torch.stack(enclosing_branch(one, part.amin(1), part.amax(1)), 1))
        low, high = torch.cat(bounds).unsqueeze(1).expand(-1, 2, -1).unbind(2)
    else:
        low, high = (coordinates.bounds[:, side].expand(len(theta), 2) for side in range(2))
    return Fits(
        function, theta, phi[edge] if fine or len(phi) > 1 else phi, ends, y[edge],
        None if weight is None else weight[edge],
        low, high, MIN_MARGIN if coordinates.bounds is None else 0.0, torch.full_like(theta[:, 0], max_amplitude),
    )  # fmt: skip


def _grid_search(functions: list[SymbolicFunction], fit: Fits) -> Tensor:
    """Return the best theta, ``[2]``, of a grid search around one fit whose function has slope 0 almost everywhere."""
    theta = fit.theta[0]

    def best(around: Tensor) -> Tensor:
        losses = []
        for part in around.split(256):
            rows = fit.take(torch.zeros(len(part), dtype=torch.long))._replace(theta=part)
            losses.append(evaluate(functions, rows).loss)
        return around[torch.cat(losses).argmin()]

    if functions[int(fit.function)].scale is not None and fit.margin:  # a step function, so only its jump can be moved
        t = fit.phi[0, 1].sort().values
        middle = (t[1:] + t[:-1]) / 2
        span = theta[1] - theta[0]
        near = middle[(middle + theta[0] / span).abs() < 0.03]
        return best(torch.cat([theta.unsqueeze(0), span * torch.stack([-near, 1 - near], 1)]))
    reach = 0.05 * (theta[1] - theta[0]).abs() if fit.margin else 0.05 * theta.abs().amax()
    steps = torch.linspace(-1, 1, 13, dtype=theta.dtype)
    for _ in range(6):  # each grid is four times finer than the one before
        theta = best((theta + reach * torch.cartesian_prod(steps, steps)).clamp(fit.low[0], fit.high[0]))
        reach = reach / 4
    return theta


def _inner_of_theta(
    function: SymbolicFunction, theta: Tensor, coordinates: Coordinates, samples: Samples
) -> tuple[Tensor, Tensor]:
    """Return a and b for ``theta [E, 2]``, moved into the domain by as much as rounding of ``a x + b`` requires."""
    if coordinates.bounds is not None:
        a, b = theta.unbind(1)
        return a, b
    p, q = theta.unbind(1)
    span = samples.high - samples.low
    low, high = enclosing_branch(function, torch.minimum(p, q), torch.maximum(p, q))
    largest = torch.maximum(samples.low.abs(), samples.high.abs())
    margin = 4 * samples.eps * ((q - p).abs() * largest / span + torch.maximum(p.abs(), q.abs()))
    p, q = (torch.minimum(torch.maximum(end, low + margin), high - margin) for end in (p, q))
    a = (q - p) / span
    return a, p - a * samples.low


# -- canonical parameters ------------------------------------------------------------------------------


def solve_outer(function: SymbolicFunction, a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the best c and d, given a and b ``[E]`` and samples x and y ``[E, N]``: (a, b, c, d), ``[E, 4]``, and
    R2, ``[E]``, which is -inf where f is not finite or is constant."""
    f = function.fun(torch.addcmul(b.unsqueeze(1), a.unsqueeze(1), x))
    size = f.abs().amax(1)
    f_mean, y_mean = f.mean(1), y.mean(1)
    f, centred = f - f_mean.unsqueeze(1), y - y_mean.unsqueeze(1)
    norm = f.square().mean(1)
    c = (f * centred).mean(1) / norm
    unexplained = (centred - c.unsqueeze(1) * f).square().mean(1) / centred.square().mean(1)
    affine = torch.stack([a, b, c, y_mean - c * f_mean], 1)
    usable = (norm > (1e-14 * size).square()) & (affine.abs() < 1e30).all(1) & unexplained.isfinite()
    return affine, torch.where(usable, (1 - unexplained).clamp(min=0.0), -torch.inf)


def canonical_inner(function: SymbolicFunction, a: Tensor, b: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """Return, of all a and b that give the same function with other c and d, those that are easiest to read.

    These have ``|a| = 1`` if f is homogeneous (powers, roots, logarithms), else a > 0 if f is even or odd, and b within
    half a period of 0. If the width ``span [E]`` of x's range is far from 1, ``|a| = 1`` would make c huge or tiny, and
    a is kept.
    """
    if function.scale is not None:
        factor = torch.where((span > MIN_SPAN) & (span < MAX_SPAN), a.abs(), 1.0)
        a, b = a / factor, b / factor
    if function.symmetry is not None:
        b = torch.where(a < 0, -b, b)
        a = a.abs()
    if function.period is not None:
        turn = function.period / 2 if function.antiperiodic else function.period
        b = b - turn * torch.round(b / turn)
    return a, b


def absorb_factor(function: SymbolicFunction, affine: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Replace c by its sign where b can absorb its size, as in ``c exp(x + b) = exp(x + b + log(c))``."""
    if function.shift != "c" or function.scale is not None:
        return affine
    a, b, c, _ = affine.unbind(1)
    b = b + c.abs().log()
    f = function.fun(torch.addcmul(b.unsqueeze(1), a.unsqueeze(1), x))
    new = torch.stack([a, b, c.sign(), y.mean(1) - c.sign() * f.mean(1)], 1)
    return torch.where((c != 0).unsqueeze(1) & new.isfinite().all(1, keepdim=True), new, affine)


def inner_of_equivalent(function: SymbolicFunction, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b of a function from those of the function that ``same_as`` names."""
    assert function.same_as is not None
    inner, offset, _, _ = function.same_as[1]
    return a / inner, (b - offset) / inner
