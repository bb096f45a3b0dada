"""Fits of ``c f(a x + b) + d`` to the samples of many edges, for many functions f at once.

Fitting has three stages: the search for the best points of a coarse grid over (a, b) (module ``starts``), least-squares
steps on samples that are binned to nodes, and least-squares steps on the samples themselves (module ``polish``). For
each (a, b), the best c and d are computed exactly. If several sets of parameters give the same function, the set that
is easiest to read is returned.
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

STARTS = 4  # Number of grid points from which least-squares steps start, for each function and edge
ROUGH_STEPS, FINE_STEPS = 12, 30
MAX_SAMPLES = 2000  # Maximum number of samples in the last stage; if there are more, a random subset is used
BLOCK_ELEMENTS = 1 << 20
# Maximum of |c f| in standard deviations of y; at larger values rounding errors in float64 make the fit inaccurate
MAX_AMPLITUDE = 1e6

# Minimum and maximum width of the range of x for which c is neither huge nor tiny if |a| = 1
MIN_SPAN, MAX_SPAN = 1e-3, 1e4

# Minimum fraction of the distance between theta and the end of the domain that must remain after one step
MIN_MARGIN = 0.1

Range = tuple[float, float] | None


class Samples(NamedTuple):
    """The samples of E edges, in float64."""

    x: Tensor  # [E, N], inputs
    y: Tensor  # [E, N], outputs
    low: Tensor  # [E], minimum of x
    high: Tensor  # [E], maximum of x
    eps: float  # machine epsilon of the dtype in which the samples were given, or of float32 if that is smaller
    fixed: Tensor  # [E], whether x or y is constant

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Samples:
        """Convert inputs ``x [N, E]`` and outputs ``y [N, E]`` to samples."""
        eps = min(max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps), torch.finfo(torch.float32).eps)
        x = x.detach().t().to("cpu", torch.float64, copy=True).contiguous()
        y = y.detach().t().to("cpu", torch.float64, copy=True).contiguous()
        return cls(x, y, x.amin(1), x.amax(1), eps, constant(x, eps) | constant(y, eps))

    def take(self, edges: Tensor) -> Samples:
        """Select the samples of the edges with the indices ``edges``."""
        return self._replace(**{name: value[edges] for name, value in self._asdict().items() if name != "eps"})


class Coordinates(NamedTuple):
    """The coordinates theta of the search; the argument of f is ``z = a x + b = theta_1 phi_1 + theta_2 phi_2``.

    If the user gives no bounds of a and b, theta is (p, q), the values of z at the two ends of the range of x, and phi
    is (1 - t, t), where t goes from 0 to 1 along the range. If the user gives bounds, theta is (a, b), and phi is
    (x, 1).
    """

    nodes: Tensor  # [1 or E, 2, NODES], phi at the nodes
    samples: Tensor  # [E, 2, N], phi at the samples
    ends: Tensor  # [1 or E, 2, 2], phi at the two ends of the range of x
    bounds: Tensor | None  # [2, 2], bounds of theta; None if theta is bounded by the function's domain only


def constant(values: Tensor, eps: float) -> Tensor:
    """Return a mask ``[E]`` that is True for each row of ``values [E, N]`` that is constant up to rounding errors."""
    return values.amax(1) - values.amin(1) <= 2 * eps * values.abs().amax(1)


def fit(
    functions: Sequence[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> tuple[Tensor, Tensor]:
    """Return a tuple of the best (a, b, c, d) ``[F, E, 4]`` of F functions for E edges and their R2 ``[F, E]``.

    If no fit of a function is better than a constant, c is 0, d is the mean of y, and R2 is 0. If y is constant, R2
    is 1.
    """
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
    """Return the parameters (a, b, c, d) ``[F, E, 4]`` of constant fits: c is 0, d is the mean of y, and ``a x + b`` is
    in the domain."""
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
            if root is not function:  # Equivalent functions get exactly the same R2, without rounding differences
                r2 = torch.where(r2.isfinite(), finish(root)[1], r2)
            found[function.name] = affine, r2
        return found[function.name]

    results = [finish(function) for function in functions]
    return torch.stack([affine for affine, _ in results]), torch.stack([r2 for _, r2 in results])


def _is_affine(function: SymbolicFunction) -> bool:
    """Whether any change of a and b can be undone by a change of c and d, as for f(z) = z."""
    return function.scale is not None and function.shift is not None


def _searched_as(function: SymbolicFunction, unbounded: bool) -> SymbolicFunction:
    """Return the function that is fitted in place of ``function``.

    This is the equivalent function that ``same_as`` names, such as sin for cos, or else ``function`` itself. If a or b
    is bounded, only aliases are replaced, because the bounds apply to the parameters of ``function``.
    """
    if function.same_as is None or not (unbounded or function.alias):
        return function
    return lookup(function.same_as[0])


def _default_inner(a_range: Range, b_range: Range) -> tuple[float, float]:
    """Return a tuple of the a closest to 1 and the b closest to 0 within the bounds.

    0 is avoided as a value of a, because ``a x + b`` would then not depend on x.
    """
    a = 1.0 if a_range is None else min(max(1.0, a_range[0]), a_range[1])
    if a == 0.0 and a_range is not None:
        a = a_range[0]
    b = 0.0 if b_range is None else min(max(0.0, b_range[0]), b_range[1])
    return a, b


# -- stages --------------------------------------------------------------------------------------------


def _search_inner(
    functions: list[SymbolicFunction], samples: Samples, a_range: Range, b_range: Range
) -> list[tuple[Tensor, Tensor]]:
    """Return a list that contains, for each function, a tuple of the best a ``[E]`` and the best b ``[E]``.

    a and b are NaN where no fit has all values of ``a x + b`` in the function's domain.
    """
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
    """Improve K starting points ``places [F, E, K, 2]`` of theta and return the best result ``[F, E, 2]``.

    The result is NaN where none of the K starting points is usable.
    """
    kinds, edges, count, _ = places.shape
    place = torch.arange(kinds * edges * count)
    function, edge = place // (edges * count), place // count % edges
    rough = _fits(functions, coordinates, places.reshape(-1, 2), function, edge, limit, nodes.y, nodes.weight)
    theta, loss = polish(functions, rough, ROUGH_STEPS)
    best = loss.view(kinds * edges, count).argmin(1) + torch.arange(kinds * edges) * count
    fine = _fits(functions, coordinates, theta[best], function[best], edge[best], limit, y, None)
    theta, loss = polish(functions, fine, FINE_STEPS)
    # The Hessian is 0 if the slope of f is 0 at all samples, as for sgn; theta is then improved by a grid search
    flat = loss.isfinite() & (evaluate(functions, fine).hessian == 0).all(1)
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
    """Return the input of :func:`polish`: fits to the nodes if ``weight`` is given, and to the samples otherwise."""
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
    """Return the best theta ``[2]`` near the theta of one fit, found by a grid search.

    A grid search is used for functions whose slope is 0 almost everywhere, such as sgn.
    """
    theta = fit.theta[0]

    def best(around: Tensor) -> Tensor:
        losses = []
        for part in around.split(256):
            rows = fit.take(torch.zeros(len(part), dtype=torch.long))._replace(theta=part)
            losses.append(evaluate(functions, rows).loss)
        return around[torch.cat(losses).argmin()]

    # The value of a step function depends only on the position of its jump, so the search is over this position
    if functions[int(fit.function)].scale is not None and fit.margin:
        t = fit.phi[0, 1].sort().values
        middle = (t[1:] + t[:-1]) / 2
        span = theta[1] - theta[0]
        near = middle[(middle + theta[0] / span).abs() < 0.03]
        return best(torch.cat([theta.unsqueeze(0), span * torch.stack([-near, 1 - near], 1)]))
    reach = 0.05 * (theta[1] - theta[0]).abs() if fit.margin else 0.05 * theta.abs().amax()
    steps = torch.linspace(-1, 1, 13, dtype=theta.dtype)
    for _ in range(6):  # Each grid is four times finer than the previous grid
        theta = best((theta + reach * torch.cartesian_prod(steps, steps)).clamp(fit.low[0], fit.high[0]))
        reach = reach / 4
    return theta


def _inner_of_theta(
    function: SymbolicFunction, theta: Tensor, coordinates: Coordinates, samples: Samples
) -> tuple[Tensor, Tensor]:
    """Return a tuple of a ``[E]`` and b ``[E]`` computed from ``theta [E, 2]``.

    If a and b are unbounded, theta is first moved away from the ends of the domain, so that rounding errors cannot move
    ``a x + b`` out of the domain.
    """
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
    """Compute the best c and d for given ``a [E]`` and ``b [E]`` and samples ``x [E, N]`` and ``y [E, N]``.

    Return a tuple of the parameters (a, b, c, d) ``[E, 4]`` and R2 ``[E]``. R2 is -inf where f is constant or not
    finite.
    """
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
    """Return a tuple of the a and b that are easiest to read among those that give the same fit with some c and d.

    ``|a|`` is 1 if f is a power, a root or a logarithm, a is positive if f is even or odd, and b is within half a
    period of 0. If the width ``span [E]`` of the range of x is very small or very large, the scale of a is not changed,
    because ``|a| = 1`` would make c huge or tiny.
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
    """Replace c by 1 or -1 where a change of b has the same effect, as in ``c exp(x + b) = exp(x + b + log(c))``."""
    if function.shift != "c" or function.scale is not None:
        return affine
    a, b, c, _ = affine.unbind(1)
    b = b + c.abs().log()
    f = function.fun(torch.addcmul(b.unsqueeze(1), a.unsqueeze(1), x))
    new = torch.stack([a, b, c.sign(), y.mean(1) - c.sign() * f.mean(1)], 1)
    return torch.where((c != 0).unsqueeze(1) & new.isfinite().all(1, keepdim=True), new, affine)


def inner_of_equivalent(function: SymbolicFunction, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of a and b of a function, given a and b of the equivalent function that ``same_as`` names."""
    assert function.same_as is not None
    inner, offset, _, _ = function.same_as[1]
    return a / inner, (b - offset) / inner
