"""Solution of Poisson's equation by a physics-informed network: ``python -m fastkan.examples.pinn``."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import trange

from fastkan import KAN

from ._command import run


def exact(x: Tensor) -> Tensor:
    """Return the exact solution, which is 0 on the border of the square [-1, 1] x [-1, 1]."""
    return torch.sin(torch.pi * x).prod(1, keepdim=True)


def main(steps: int = 100, folder: Path = Path()) -> float:
    """Solve u_xx + u_yy = f with u = 0 on the border by minimizing the squared residual with L-BFGS, and plot the
    solution."""
    network = KAN(width=[2, 5, 1], grid=10, k=3, seed=0, dtype=torch.float64)
    x = torch.cartesian_prod(*[torch.linspace(-1, 1, 32, dtype=torch.float64)] * 2).requires_grad_()
    f = -2 * torch.pi**2 * exact(x).detach()

    def u(x: Tensor) -> Tensor:
        return (1 - x**2).prod(1, keepdim=True) * network(x)  # The first factor makes u equal to 0 on the border

    def loss() -> Tensor:
        (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
        second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, [i]] for i in range(2)]
        value = (sum(second) - f).square().mean()
        optimizer.zero_grad()
        value.backward()
        return value

    optimizer = torch.optim.LBFGS(network.parameters(), history_size=100, line_search_fn="strong_wolfe")
    progress = trange(steps)
    for _ in progress:
        progress.set_postfix_str(f"residual {optimizer.step(loss).item():.1e}")

    with torch.no_grad():
        solution, error = u(x), u(x) - exact(x)
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, values, title in zip(figure.subplots(1, 2), (solution, error), ("solution", "error")):
        picture = axes.imshow(values.view(32, 32).T.numpy(), origin="lower", extent=(-1, 1, -1, 1))
        figure.colorbar(picture, ax=axes, shrink=0.7)
        axes.set_title(title)
    figure.savefig(folder / "pinn.png")
    print(f"mean squared error {error.square().mean().item():.1e}; see {folder / 'pinn.png'}")
    return error.square().mean().item()


if __name__ == "__main__":
    run(main)
