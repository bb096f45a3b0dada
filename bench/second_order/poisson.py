"""Poisson's equation on the square [-1, 1] x [-1, 1] with border values, as residuals for any network and optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastkan import KAN
from fastkan.functional import laplacian
from fastkan.optim import LevenbergMarquardt, SelfScaledBroyden

PI = math.pi
CHUNK = 20  # iterations of a first-order or quasi-Newton optimizer between two readings of the clock


class Problem(NamedTuple):
    """A solution ``u`` of Poisson's equation and its Laplacian, as functions of points ``[N, 2]``."""

    solution: Callable[[Tensor], Tensor]
    source: Callable[[Tensor], Tensor]


def _paper_source(z: Tensor) -> Tensor:
    x, y = z.unbind(1)
    curvature = 2 * PI * torch.cos(PI * y**2) - 4 * PI**2 * y**2 * torch.sin(PI * y**2)
    return torch.sin(PI * x) * (curvature - PI**2 * torch.sin(PI * y**2))


# The first problem is that of section 3.4 of Liu et al., KAN: Kolmogorov-Arnold Networks, 2024.
PROBLEMS = {
    "sin(pi x) sin(pi y^2)": Problem(lambda z: torch.sin(PI * z[:, 0]) * torch.sin(PI * z[:, 1] ** 2), _paper_source),
    "sin(pi x) sin(pi y)": Problem(
        lambda z: torch.sin(PI * z).prod(1), lambda z: -2 * PI**2 * torch.sin(PI * z).prod(1)
    ),
}


class Poisson:
    """The residuals of a network ``[N, 2] -> [N, 1]``.

    The points are nodes of Gauss-Legendre quadrature, so that half the sum of the squares is half the mean of the
    squared residual over the square, plus ``border^2`` times half the mean of the squared error on the border.

    Args:
        problem: the name of the problem.
        points: the number of points on each axis. Each side of the border has twice as many.
        border: the weight of the error on the border.
    """

    def __init__(self, problem: str, points: int = 31, border: float = 10.0) -> None:
        self.solution, source = PROBLEMS[problem]
        nodes, weights = _quadrature(points)
        self.inside = torch.cartesian_prod(nodes, nodes)
        self._inside_weight = torch.cartesian_prod(weights, weights).prod(1).sqrt()
        nodes, weights = _quadrature(2 * points)
        end = torch.full_like(nodes, 1 - 1e-12)  # Splines are zero from the last knot on.
        sides = ((nodes, -end), (nodes, end), (-end, nodes), (end, nodes))
        self.edge = torch.cat([torch.stack(side, 1) for side in sides])
        self._edge_weight = border * (weights.repeat(4) / 4).sqrt()
        self._source, self._values = source(self.inside), self.solution(self.edge)
        axis = torch.linspace(-1, 1, 201)[1:-1]
        self.test = torch.cartesian_prod(axis, axis)

    def residuals(self, network: nn.Module) -> list[Tensor]:
        """Return the weighted residuals of the equation and of the border."""
        equation = laplacian(network, self.inside) - self._source
        return [equation * self._inside_weight, (network(self.edge)[:, 0] - self._values) * self._edge_weight]

    @torch.no_grad()
    def error(self, network: nn.Module) -> float:
        """Return the mean squared error of the solution on 199 x 199 points."""
        return float((network(self.test)[:, 0] - self.solution(self.test)).square().mean())


def kan(seed: int, grid: int = 5, order: int = 3) -> KAN:
    """Return the paper's network [2, 10, 1]."""
    return KAN(width=[2, 10, 1], grid=grid, k=order, seed=seed)


def mlp(seed: int) -> nn.Module:
    """Return a network [2, 16, 16, 1] with 337 parameters; the KAN of order 5 on 5 intervals has 360."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


def solve(
    problem: Poisson, network: nn.Module, optimizer: str, seconds: float, grids: Sequence[int] = ()
) -> tuple[nn.Module, float, int]:
    """Minimize the residuals for some seconds of processor time.

    Args:
        optimizer: ``"Levenberg-Marquardt"``, ``"self-scaled Broyden"``, ``"L-BFGS"`` with a history of 100, or
            ``"Adam"`` with a learning rate that falls from 0.01 along a cosine.
        grids: further grids of a KAN. The time is divided equally among the grids.

    Returns:
        A tuple of the network, the last cost that was evaluated and the number of steps or iterations.
    """
    steps, cost = 0, math.inf
    for stage in range(1 + len(grids)):
        if stage:
            network = network.refine(grids[stage - 1], x=problem.inside)  # type: ignore[operator]
        make_step, share = _step(problem, network, optimizer), seconds / (1 + len(grids))
        start = now = time.process_time()
        while now < start + share:
            cost, count = make_step((now - start) / share)
            now = time.process_time()
            steps += count
            if not count:
                break
    return network, cost, steps


def adam_rate(used: float) -> float:
    """Return Adam's learning rate, which falls from 0.01 to 0 along a cosine, after a share of the time."""
    return 0.005 * (1 + math.cos(PI * min(used, 1.0)))


def _step(problem: Poisson, network: nn.Module, name: str) -> Callable[[float], tuple[float, int]]:
    """Return a function of the used share of the time that makes steps.

    It returns the cost and the number of steps; 0 steps if converged.
    """
    if name == "Levenberg-Marquardt":
        second = LevenbergMarquardt(network)

        def step(_: float) -> tuple[float, int]:
            cost = second.step(lambda: problem.residuals(network))
            return cost, int(second.report is not None and second.report.accepted)

        return step
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == "L-BFGS":
        first: Any = torch.optim.LBFGS(
            parameters, max_iter=CHUNK, history_size=100, line_search_fn="strong_wolfe", tolerance_grad=0.0,
            tolerance_change=1e-32,
        )  # fmt: skip
    elif name == "Adam":
        first = torch.optim.Adam(parameters)
    else:
        first = SelfScaledBroyden(parameters, max_iter=CHUNK)

    def closure() -> Tensor:
        first.zero_grad()
        cost = torch.stack([0.5 * block.square().sum() for block in problem.residuals(network)]).sum()
        cost.backward()
        return cost

    def iterate(used: float) -> tuple[float, int]:
        if name != "Adam":
            first.step(closure)
            return float(closure().detach()), CHUNK
        first.param_groups[0]["lr"] = adam_rate(used)
        for _ in range(CHUNK):
            cost = first.step(closure)
        return float(cost.detach()), CHUNK

    return iterate


def _quadrature(count: int) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights of Gauss-Legendre quadrature, with weights that sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.tensor(nodes), torch.tensor(weights / 2)
