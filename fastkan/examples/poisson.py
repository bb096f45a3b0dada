"""Solution of Poisson's equation: ``python -m fastkan.examples.poisson``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastkan import KAN
from fastkan.functional import laplacian
from fastkan.optim import LevenbergMarquardt

from ._command import run
from ._plots import plot_solution


def exact(x: Tensor) -> Tensor:
    """Return the exact solution ``[N]``, which is 0 on the border of the square [-1, 1] x [-1, 1]."""
    return torch.sin(torch.pi * x[:, 0]) * torch.sin(torch.pi * x[:, 1] ** 2)


def main(steps: int = 40, folder: Path = Path()) -> float:
    """Solve u_xx + u_yy = f with u = 0 on the border by the Levenberg-Marquardt method, and plot the solution."""
    network = KAN(width=[2, 10, 1], grid=5, k=5, seed=0, dtype=torch.float64)
    axis = torch.linspace(-1, 1, 42, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    f = laplacian(exact, x).detach()

    def u(x: Tensor) -> Tensor:
        return (1 - x**2).prod(1) * network(x)[:, 0]  # The first factor makes u equal to 0 on the border.

    for grid in (5, 10):
        network = network.refine(grid, x)
        optimizer = LevenbergMarquardt(network)
        for _ in range(steps):
            cost = optimizer.step(lambda: laplacian(u, x) - f)
        print(f"{grid} intervals: root mean square of the residuals {(2 * cost / len(x)) ** 0.5:.1e}")

    between = torch.cartesian_prod(*[torch.linspace(-1, 1, 199, dtype=torch.float64)] * 2)
    with torch.no_grad():
        solution = u(between).view(199, 199)
    error = solution - exact(between).view(199, 199)
    return plot_solution(folder / "poisson.png", solution, error, (-1, 1, -1, 1), "xy")


if __name__ == "__main__":
    run(main)
