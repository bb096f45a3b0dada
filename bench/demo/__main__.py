"""``python -m bench.demo``: trains a classifier both ways, and finds a formula; tells what it saw and draws it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ..machine import describe
from ..measure import Spread, ratio, times
from ..report import BUSY, place
from . import classifier, formula
from .classifier import OURS, PLAIN, Cost, Learner
from .picture import draw


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
    data = classifier.digits()
    inputs, classes = data.train_x.shape[1], int(data.train_y.max()) + 1
    both = classifier.learners(inputs, classes)
    x, y = next(classifier.batches(data))
    weights = sum(p.numel() for p in both[OURS].network.parameters())
    console.print(
        f"Digits: {len(data.train_x)} images to learn from, {len(data.test_x)} to be tested on. A KAN of "
        f"{inputs}-{classifier.HIDDEN}-{classes}, grid 5, cubic: {weights:,} "
        f"weights; Adam, up to {classifier.EPOCHS} epochs of {classifier.BATCHES} batches of {len(x)}."
    )
    with torch.no_grad():
        apart = (both[PLAIN].network(x) - both[OURS].network(x)).abs().max().item()
    console.print(f"Same starting weights: the outputs of the two differ by {apart:.0e} at most.")
    with console.status("timing steps of both in turn"):
        cost = classifier.measure(classifier.learners(inputs, classes), x, y)
    classifier.train(both, data)
    picture = options.out / "digits.png"
    draw(both, cost, data, picture)
    console.print(table(both, cost))
    if len(both[OURS].accuracies) < classifier.EPOCHS:
        console.print(f"Training ended before the last epoch, since {classifier.PATIENCE:.0f} seconds had passed.")
    if cost.others is not None and cost.others > BUSY:
        console.print(f"Other processes took {cost.others:.0%} of the processor: the times are not worth much.")
    console.print(place(describe()), style="dim")
    console.print(f"Picture: {picture}")
    formula.find(options.out, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
