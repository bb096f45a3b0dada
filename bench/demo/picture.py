"""The demo's picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from fastkan import KANLinear, convert
from fastkan_kernels import Basis, edge_std, edge_values

from ..measure import BUSY, times
from .classifier import OURS, PLAIN, Cost, Digits, Learner

EDGES = 6
# the plain layer's curves are pale and wide, fastkan's dark and narrow, so that both show where they coincide
STYLES: dict[str, dict[str, Any]] = {
    PLAIN: {"color": "#f2a65a", "linewidth": 5},
    OURS: {"color": "#1b4965", "linewidth": 1.5},
}


def draw(both: dict[str, Learner], cost: Cost, data: Digits, picture: Path) -> None:
    """Learning curves, bars of time and memory, and some learned edge functions."""
    figure = plt.figure(figsize=(13, 7.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    above, below = halves
    losses, accuracies, time, memory = above.subplots(1, 4, width_ratios=[2, 2, 1.1, 1.1])
    for name, learner in both.items():
        epochs = torch.arange(1, len(learner.losses) + 1) * (len(learner.accuracies) / len(learner.losses))
        losses.semilogy(epochs, learner.losses, label=name, **STYLES[name])
        share = [100 * accuracy for accuracy in learner.accuracies]
        accuracies.plot(range(1, len(share) + 1), share, label=name, **STYLES[name])
    _name(losses, "Training loss", "epoch", "cross entropy")
    _name(accuracies, "Test accuracy", "epoch", "images classified correctly, %")
    for axes in (losses, accuracies):
        axes.legend(frameon=False)
    spreads = {name: times(cost.seconds[name]) for name in both}
    below_, above_ = zip(*((1e3 * (s.median - s.low), 1e3 * (s.high - s.median)) for s in spreads.values()))
    _bars(time, {name: 1e3 * s.median for name, s in spreads.items()}, [below_, above_])
    _name(time, "Training step" + "\non a busy machine" * (cost.load > BUSY), "", "ms, median and quartiles")
    _bars(memory, {name: cost.memory[name] / 2**20 for name in both})
    _name(memory, "Memory of a step", "", "MiB, peak")

    below.suptitle("Learned functions of a pixel's brightness: the strongest edge of each of six pixels", fontsize=12)
    _edge_functions(below.subplots(1, EDGES, sharey=True), both, data)
    figure.suptitle("Handwritten digits, one KAN trained twice from the same weights on the same batches", fontsize=14)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _edge_functions(panels: list[Axes], both: dict[str, Learner], data: Digits) -> None:
    """The same edges of both first layers; the plain one is converted, which keeps its functions."""
    brightness = torch.linspace(-1, 1, 201)[:-1]
    points = brightness.unsqueeze(1).expand(-1, data.train_x.shape[1]).contiguous()
    layers = {PLAIN: convert(both[PLAIN].network[0]), OURS: both[OURS].network[0]}
    operands = {name: _operands(layer) for name, layer in layers.items()}
    knots, weight, base_weight, basis = operands[OURS]
    strongest, hidden = edge_std(data.train_x, knots, weight, base_weight, basis=basis).max(1)
    pixels = strongest.topk(EDGES).indices.tolist()
    for name, (knots, weight, base_weight, basis) in operands.items():
        values = edge_values(points, knots, weight, base_weight, basis=basis)
        for axes, pixel in zip(panels, pixels):
            axes.plot(brightness, values[:, pixel, hidden[pixel]], label=name, **STYLES[name])
    for axes, pixel in zip(panels, pixels):
        row, column = divmod(pixel, int(data.train_x.shape[1] ** 0.5))
        _name(axes, f"pixel at row {row + 1},\ncolumn {column + 1}, to hidden {int(hidden[pixel])}", "brightness", "")
        axes.set_xticks([-1, 0, 1])
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("value of the edge function")


def _operands(layer: Any) -> tuple[Any, ...]:
    """Knots, weights and basis."""
    assert isinstance(layer, KANLinear)
    weights = layer.spline_weight.detach(), layer.get_parameter("base_weight").detach()
    return layer.knots, *weights, Basis(layer.spline_order, layer.base)


def _bars(axes: Axes, values: dict[str, float], errors: Any = None) -> None:
    names = [name.replace(" ", "\n", 1) for name in values]
    colours = [STYLES[name]["color"] for name in values]
    bars = axes.bar(names, list(values.values()), yerr=errors, capsize=4, color=colours, width=0.65)
    axes.bar_label(bars, [f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in values.values()], padding=3)
    axes.margins(y=0.1)


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
