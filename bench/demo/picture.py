"""The demo's picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

from fastkan import KANLinear, convert
from fastkan_kernels import Basis, edge_std, edge_values

from ..measure import BUSY, times
from .classifier import Cost, Digits, Learner

EDGES = 6
# the plain layer's curves are pale and wide, fastkan's dark and narrow, so that both show where they coincide
STYLES: tuple[dict[str, Any], ...] = ({"color": "#f2a65a", "linewidth": 5}, {"color": "#1b4965", "linewidth": 1.5})


def draw(both: dict[str, Learner], cost: Cost, data: Digits, picture: Path) -> None:
    """Learning curves, bars of time and memory, and some learned edge functions."""
    figure = plt.figure(figsize=(13, 7.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    above, below = halves
    curves = above.subplots(1, 4, width_ratios=[2, 2, 1.1, 1.1])
    batches = len(next(iter(both.values())).losses) / len(next(iter(both.values())).accuracies)
    for (name, learner), style in zip(both.items(), STYLES):
        epochs = [(step + 1) / batches for step in range(len(learner.losses))]
        curves[0].semilogy(epochs, learner.losses, label=name, **style)
        share = [100 * accuracy for accuracy in learner.accuracies]
        curves[1].plot(range(1, len(share) + 1), share, label=name, **style)
    _name(curves[0], "Training loss", "epoch", "cross entropy")
    _name(curves[1], "Test accuracy", "epoch", "images classified correctly, %")
    for axes in curves[:2]:
        axes.legend(frameon=False)
    spreads = [times(samples) for samples in cost.seconds.values()]
    medians = [1e3 * s.median for s in spreads]
    errors = [[1e3 * (s.median - s.low) for s in spreads], [1e3 * (s.high - s.median) for s in spreads]]
    _bars(curves[2], list(both), medians, errors)
    busy = cost.load > BUSY
    _name(curves[2], "Training step" + "\non a busy machine" * busy, "", "ms, median and quartiles")
    _bars(curves[3], list(both), [peak / 2**20 for peak in cost.memory.values()])
    _name(curves[3], "Memory of a step", "", "MiB, peak")

    below.suptitle("Learned functions of a pixel's brightness: the strongest edge of each of six pixels", fontsize=12)
    panels = below.subplots(1, EDGES, sharey=True)
    _edge_functions(panels, both, data)
    figure.suptitle("Handwritten digits, one KAN trained twice from the same weights on the same batches", fontsize=14)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _edge_functions(panels: list[Axes], both: dict[str, Learner], data: Digits) -> None:
    layers = [_as_ours(learner.network[0]) for learner in both.values()]
    ours = layers[-1]
    strength = edge_std(data.train_x, ours.knots, *_weights(ours), basis=_basis(ours))
    strongest, hidden = strength.max(1)
    pixels = strongest.topk(EDGES).indices
    brightness = torch.linspace(-1, 1, 201)[:-1]
    for (name, layer), style in zip(zip(both, layers), STYLES):
        values = _functions(layer, brightness)
        for axes, pixel in zip(panels, pixels.tolist()):
            axes.plot(brightness, values[:, pixel, hidden[pixel]], label=name, **style)
    side = int(data.train_x.shape[1] ** 0.5)
    for number, (axes, pixel) in enumerate(zip(panels, pixels.tolist())):
        row, column = divmod(pixel, side)
        _name(axes, f"pixel at row {row + 1},\ncolumn {column + 1}, to hidden {int(hidden[pixel])}", "brightness", "")
        axes.set_xticks([-1, 0, 1])
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
        if number == 0:
            axes.set_ylabel("value of the edge function")


def _as_ours(layer: nn.Module) -> KANLinear:
    ours = layer if isinstance(layer, KANLinear) else convert(layer)
    assert isinstance(ours, KANLinear)
    return ours


def _functions(layer: KANLinear, at: Tensor) -> Tensor:
    """Every edge function of a layer at the same points, ``[points, in, out]``."""
    x = at.unsqueeze(1).expand(-1, layer.in_features).contiguous()
    return edge_values(x, layer.knots, *_weights(layer), basis=_basis(layer))


def _weights(layer: KANLinear) -> tuple[Tensor, Tensor]:
    return layer.spline_weight.detach(), layer.get_parameter("base_weight").detach()


def _basis(layer: KANLinear) -> Basis:
    return Basis(layer.spline_order, layer.base)


def _bars(axes: Axes, names: list[str], values: list[float], errors: list[list[float]] | None = None) -> None:
    colors = [style["color"] for style in STYLES]
    bars = axes.bar(range(len(names)), values, yerr=errors, capsize=4, color=colors, width=0.65)
    axes.bar_label(bars, [f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in values], padding=3)
    axes.margins(y=0.1)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
