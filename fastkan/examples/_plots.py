"""The picture of a solution and its error, which the examples of differential equations share."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor


def plot_solution(path: Path, solution: Tensor, error: Tensor, extent: tuple[float, ...], labels: str) -> float:
    """Draw a solution ``[columns, rows]`` beside its error, and return the mean squared error.

    Args:
        path: the file of the picture.
        solution, error: the values of the solution, and their differences from the exact solution.
        extent: the limits of the horizontal and of the vertical axis.
        labels: the names of the two axes, a letter for each.
    """
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, values, title in zip(figure.subplots(1, 2), (solution, error), ("solution", "error")):
        picture = axes.imshow(values.T.numpy(), origin="lower", extent=extent, aspect="auto")
        figure.colorbar(picture, ax=axes)
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    figure.savefig(path)
    mean = error.square().mean().item()
    print(f"mean squared error {mean:.1e}; see {path}")
    return mean
