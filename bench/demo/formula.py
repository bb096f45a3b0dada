"""The demo's second part: find a formula from data, by the steps of a well-known article on KANs."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from rich.console import Console

from fastkan import KAN, create_dataset

TEXT = "exp(sin(pi x_1) + x_2^2)"
SEED = 0


def target(x: torch.Tensor) -> torch.Tensor:
    """The function to find."""
    return torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2)


def find(folder: Path, console: Console) -> None:
    """Train sparsely, prune, train, replace edges by formulas, train, print; with two pictures."""
    began = time.perf_counter()
    dataset = create_dataset(target, n_var=2)
    model = KAN(width=[2, 5, 1], grid=5, k=3, seed=SEED)
    console.print(f"\nA formula: {len(dataset['train_input'])} values of {TEXT}, and a KAN of 2-5-1 to find it.")
    model.fit(dataset, opt="LBFGS", steps=20, lamb=0.01, lamb_entropy=10.0, progress=False)
    pictures = [folder / "kan-trained.png", folder / "kan-formula.png"]
    _save(model, pictures[0], "after sparse training")
    model = model.prune()
    results = model.fit(dataset, steps=50, progress=False)
    nodes = "-".join(str(added + multiplied) for added, multiplied in model.width)
    console.print(f"Pruned to {nodes}; root mean square error on the test set {results['test_loss'][-1]:.1e}.")
    model.auto_symbolic(verbose=0)
    results = model.fit(dataset, steps=50, progress=False)
    _save(model, pictures[1], "as formulas")
    (formula,), _ = model.symbolic_formula(digits="auto")
    console.print(f"Formula: {formula}", soft_wrap=True, highlight=False)
    console.print(
        f"Error before rounding {results['test_loss'][-1]:.1e}; found in {time.perf_counter() - began:.1f} s. "
        f"Pictures: {', '.join(map(str, pictures))}"
    )


def _save(model: KAN, path: Path, title: str) -> None:
    figure = model.plot(title=title)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
