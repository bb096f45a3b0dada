"""A KAN layer in an ordinary PyTorch model: ``python -m fastkan.examples.quickstart``."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import trange

from fastkan import KANLinear, explain

from ._command import run


def main(steps: int = 500, folder: Path = Path()) -> float:
    """Fit a function of two variables with two KAN layers and Adam, and plot the fit beside the function."""
    torch.manual_seed(0)
    first = KANLinear(2, 16, grid_size=8)
    model = nn.Sequential(first, KANLinear(16, 1, grid_size=8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def target(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(4 * x[:, :1]) * torch.cos(3 * x[:, 1:])

    progress = trange(steps)
    for _ in progress:
        x = 2 * torch.rand(1000, 2) - 1
        loss = (model(x) - target(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.set_postfix_str(f"loss {loss.item():.1e}")
    print(explain(first, x))  # The printed text says which backend and which implementation compute the layer

    line = torch.linspace(-1, 1, 101)
    points = torch.cartesian_prod(line, line)
    with torch.no_grad():
        surfaces = {"function": target(points), "fit": model(points)}
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2), surfaces.items()):
        axes.imshow(values.view(101, 101).T.numpy(), origin="lower", extent=(-1, 1, -1, 1), vmin=-1, vmax=1)
        axes.set_title(title)
    figure.savefig(folder / "quickstart.png")
    error = (surfaces["fit"] - surfaces["function"]).square().mean().sqrt().item()
    print(f"root mean squared error {error:.1e}; see {folder / 'quickstart.png'}")
    return error


if __name__ == "__main__":
    run(main)
