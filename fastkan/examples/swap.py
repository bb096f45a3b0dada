"""Conversion of a pykan model to a fastkan model: ``python -m fastkan.examples.swap`` (needs pykan)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm.auto import trange

from fastkan import convert

from ._command import run


def main(steps: int = 50, folder: Path = Path()) -> float:
    """Convert a pykan model, compare the outputs of both models, and train both models alternately with Adam from the
    same initial parameters."""
    import kan

    theirs = kan.KAN(width=[2, 5, 1], grid=5, k=3, seed=0, auto_save=False)
    ours = convert(theirs)
    x = 2 * torch.rand(1000, 2) - 1
    y = torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2)
    difference = (ours(x) - theirs(x)).abs().max().item()
    print(f"largest difference between the outputs: {difference:.1e}")

    models: dict[str, Any] = {"pykan": theirs, "fastkan": ours}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=0.01) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    for _ in trange(steps):
        for name, model in models.items():
            start = time.perf_counter()
            loss = (model(x) - y).square().mean()
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(loss.item())

    axes = (figure := Figure(layout="constrained")).subplots()
    for name in models:
        axes.semilogy(torch.tensor(seconds[name]).cumsum(0).numpy(), losses[name], label=name)
    axes.set(xlabel="seconds", ylabel="loss")
    axes.legend()
    figure.savefig(folder / "swap.png")
    ratio = torch.tensor(seconds["pykan"]).median().item() / torch.tensor(seconds["fastkan"]).median().item()
    print(f"a step of pykan takes {ratio:.1f} times as long; see {folder / 'swap.png'}")
    return difference


if __name__ == "__main__":
    run(main)
