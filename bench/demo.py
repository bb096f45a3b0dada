"""``python -m bench.demo``: one classifier of handwritten digits, trained twice.

Once with the plain Cox-de Boor layer, once with ``fastkan.KANLinear``: from the same weights, on the same
batches, by the same optimizer, step by step in turn. Everything it tells is measured while it runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from fastkan import KANLinear

from .demo_plot import draw
from .machine import describe
from .measure import Samples, Spread, Task, interleaved, ratio, times
from .memory import peak_bytes
from .plain import PlainKANLinear
from .report import BUSY, place

HIDDEN, BATCHES, EPOCHS, LEARNING_RATE = 256, 3, 30, 3e-3
BUDGET = 6.0  # seconds, for timing steps
PATIENCE = 60.0  # seconds; on a slow machine training ends before the last epoch
PLAIN, OURS = "plain Cox-de Boor", "fastkan"


class Digits(NamedTuple):
    """8 x 8 images as rows of 64 numbers from -1 to 1, the grid's range, and what they show."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Cost(NamedTuple):
    """What a training step takes, by network."""

    seconds: dict[str, Samples]
    memory: dict[str, int]  # bytes at the peak, beside parameters, optimizer state and input
    others: float | None  # share of the processor that other processes took meanwhile


class Learner:
    """A network in training, and how it has done."""

    def __init__(self, network: nn.Sequential) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One training step; returns its loss."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def test(self, x: Tensor, y: Tensor) -> float:
        """Share of the images that are told right."""
        return (self.network(x).argmax(1) == y).float().mean().item()


def digits() -> Digits:
    """Scikit-learn's bundled digits, a quarter of them kept for the test."""
    pixels, shown = load_digits(return_X_y=True)
    split = train_test_split(pixels / 8 - 1, shown, test_size=0.25, stratify=shown, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])
    return Digits(train_x, train_y, test_x, test_y)


def learners(inputs: int, classes: int) -> dict[str, Learner]:
    """Both networks, with the same weights."""
    torch.manual_seed(0)
    ours = [KANLinear(inputs, HIDDEN), KANLinear(HIDDEN, classes)]
    plain = [PlainKANLinear(layer.in_features, layer.out_features).load_from(layer) for layer in ours]
    return {PLAIN: Learner(nn.Sequential(*plain)), OURS: Learner(nn.Sequential(*ours))}


def batches(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images once, shuffled, in equal parts."""
    order = torch.randperm(len(data.train_x))
    for part in order[: len(order) // BATCHES * BATCHES].chunk(BATCHES):
        yield data.train_x[part], data.train_y[part]


def measure(both: dict[str, Learner], x: Tensor, y: Tensor) -> Cost:
    """Steps of both side by side; these learn from one batch only and are of no other use."""
    tasks = {name: Task(partial(learner.step, x, y)) for name, learner in both.items()}
    for task in tasks.values():
        task.call()
    memory = {}
    for name, learner in both.items():
        learner.optimizer.zero_grad()
        memory[name] = peak_bytes(tasks[name].call)
    samples, others = interleaved(tasks, BUDGET, list(tasks))
    return Cost(samples, memory, others)


def train(both: dict[str, Learner], data: Digits) -> None:
    """Both in turn, on the same batches."""
    start = time.perf_counter()
    with tqdm(total=EPOCHS, desc="training both", unit="epoch") as bar:
        for _ in range(EPOCHS):
            for x, y in batches(data):
                for learner in both.values():
                    learner.losses.append(learner.step(x, y).item())
            for learner in both.values():
                learner.accuracies.append(learner.test(data.test_x, data.test_y))
            bar.set_postfix({name: f"{learner.accuracies[-1]:.1%}" for name, learner in both.items()})
            bar.update()
            if time.perf_counter() - start > PATIENCE:
                break


def table(both: dict[str, Learner], cost: Cost) -> Table:
    """What came out, side by side."""
    plain, ours = both[PLAIN], both[OURS]
    view = Table(box=box.SIMPLE_HEAD)
    for heading in ("", PLAIN, OURS, f"{PLAIN.split()[0]} / {OURS}"):
        view.add_column(heading, justify="right" if heading else "left")
    view.add_row("epochs", *(str(len(learner.accuracies)) for learner in (plain, ours)))
    view.add_row("test accuracy", *(f"{learner.accuracies[-1]:.1%}" for learner in (plain, ours)))
    view.add_row("training loss at the end", *(f"{learner.losses[-1]:.2e}" for learner in (plain, ours)))
    gained = ratio(cost.seconds[PLAIN], cost.seconds[OURS])
    assert gained is not None  # both take part in every round
    view.add_row(
        "training step, ms (median, quartiles)",
        *(_quartiles(times(cost.seconds[name]), 1e3) for name in (PLAIN, OURS)),
        _quartiles(gained),
    )
    view.add_row(
        "peak memory of a step, MiB",
        *(f"{cost.memory[name] / 2**20:.1f}" for name in (PLAIN, OURS)),
        f"{cost.memory[PLAIN] / cost.memory[OURS]:.2f}",
    )
    return view


def _quartiles(value: Spread, unit: float = 1.0) -> str:
    digits = 2 if unit == 1 else 1
    return f"{value.median * unit:.{digits}f} [{value.low * unit:.{digits}f}-{value.high * unit:.{digits}f}]"


def main(argv: list[str] | None = None) -> int:
    """Train, tell, draw."""
    arguments = argparse.ArgumentParser("python -m bench.demo", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("demo-output"), help="where the picture goes")
    options = arguments.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    data = digits()
    inputs, classes = data.train_x.shape[1], int(data.train_y.max()) + 1
    both = learners(inputs, classes)
    x, y = next(batches(data))
    console.print(
        f"Digits: {len(data.train_x)} images to learn from, {len(data.test_x)} to be tested on. A KAN of "
        f"{inputs}-{HIDDEN}-{classes}, grid 5, cubic: {sum(p.numel() for p in both[OURS].network.parameters()):,} "
        f"weights; Adam, up to {EPOCHS} epochs of {BATCHES} batches of {len(x)}."
    )
    with torch.no_grad():
        apart = (both[PLAIN].network(x) - both[OURS].network(x)).abs().max().item()
    console.print(f"Same starting weights: the outputs of the two differ by {apart:.0e} at most.")
    with console.status("timing steps of both in turn"):
        cost = measure(learners(inputs, classes), x, y)
    train(both, data)
    picture = options.out / "digits.png"
    draw(both, cost, data, picture)
    console.print(table(both, cost))
    if cost.others is not None and cost.others > BUSY:
        console.print(f"Other processes took {cost.others:.0%} of the processor: the times are not worth much.")
    console.print(place(describe()), style="dim")
    console.print(f"Picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
