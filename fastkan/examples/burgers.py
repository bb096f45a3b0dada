"""Solution of Burgers' equation: ``python -m fastkan.examples.burgers``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastkan import KAN
from fastkan.functional import derivatives
from fastkan.optim import LevenbergMarquardt

from ._command import run
from ._plots import plot_solution

VISCOSITY = 0.1 / torch.pi


def reference(times: np.ndarray, places: np.ndarray) -> Tensor:
    """Return the solution ``[times, places]`` of a Fourier method, at evenly spaced places in [-1, 1)."""
    from scipy.integrate import solve_ivp

    wave = 1j * np.pi * np.arange(len(places) // 2 + 1)

    def slope(_: float, u: np.ndarray) -> np.ndarray:
        return np.fft.irfft(VISCOSITY * wave**2 * np.fft.rfft(u) - wave * np.fft.rfft(u**2 / 2), len(places))

    return torch.tensor(solve_ivp(slope, (0, 1), -np.sin(np.pi * places), t_eval=times, rtol=1e-8, atol=1e-8).y.T)


def main(steps: int = 40, folder: Path = Path()) -> float:
    """Solve u_t + u u_x = VISCOSITY u_xx on [-1, 1], from u = -sin(pi x) at t = 0 to t = 1, and plot the solution."""
    network = KAN(width=[2, 10, 1], grid=5, k=5, seed=0, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)  # A steep front can lie between the lines of a regular mesh of points.

    def u(x: Tensor) -> Tensor:  # The columns are 2 t - 1 and x. The result is exact at t = 0 and at both ends.
        return (x[:, 0] + 1) * (1 - x[:, 1] ** 2) * network(x)[:, 0] - torch.sin(torch.pi * x[:, 1])

    def residuals() -> Tensor:
        value, slope, curvature = derivatives(u, x, columns=[1])
        return 2 * slope[:, 0] + value * slope[:, 1] - VISCOSITY * curvature[:, 0, 1]

    for grid in (5, 10):
        x = 2 * torch.rand(4000, 2, generator=random, dtype=torch.float64) - 1
        network = network.refine(grid, x)
        optimizer = LevenbergMarquardt(network)
        for _ in range(steps):
            cost = optimizer.step(residuals)
        print(f"{grid} intervals: root mean square of the residuals {(2 * cost / len(x)) ** 0.5:.1e}")

    times, places = np.linspace(0, 1, 101), np.arange(-1, 1, 1 / 128)
    solution = u(torch.cartesian_prod(torch.tensor(2 * times - 1), torch.tensor(places))).detach().view(101, 256)
    return plot_solution(folder / "burgers.png", solution, solution - reference(times, places), (0, 1, -1, 1), "tx")


if __name__ == "__main__":
    run(main)
