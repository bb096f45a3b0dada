"""``python -m bench.demo``: train a classifier with two layers, then find a formula; print and draw the results."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

from ..measure import BUSY, ratio, times
from ..records import describe, place
from ..report import console as make_console
from ..report import show, spread_text
from . import classifier, formula
from .classifier import OURS, PLAIN, Cost, Learner
from .picture import draw


def table(both: dict[str, Learner], cost: Cost) -> pd.DataFrame:
    """The results side by side."""
    plain, ours = both[PLAIN], both[OURS]
    rows: dict[str, list[str | None]] = {
        "epochs": [str(len(learner.accuracies)) for learner in (plain, ours)],
        "test accuracy": [f"{learner.accuracies[-1]:.1%}" for learner in (plain, ours)],
        "training loss at the end": [f"{learner.losses[-1]:.2e}" for learner in (plain, ours)],
        "training step, ms": [
            *(spread_text(times(cost.seconds[name]), 1e3) for name in (PLAIN, OURS)),
            spread_text(ratio(cost.seconds[PLAIN], cost.seconds[OURS])),
        ],
        "peak memory of a step, MiB": [
            *(f"{cost.memory[name] / 2**20:.1f}" for name in (PLAIN, OURS)),
            f"{cost.memory[PLAIN] / cost.memory[OURS]:.2f}",
        ],
    }
    columns = [PLAIN, OURS, f"{PLAIN.split()[0]} / {OURS}"]
    return pd.DataFrame([[*row, None][:3] for row in rows.values()], list(rows), columns)


def main(argv: list[str] | None = None) -> int:
    """Train, print, draw."""
    arguments = argparse.ArgumentParser("python -m bench.demo", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("demo-output"), help="folder of the pictures")
    options = arguments.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    console = make_console(110)
    data = classifier.digits()
    inputs, classes = data.train_x.shape[1], int(data.train_y.max()) + 1
    both = classifier.learners(inputs, classes)
    x, y = next(classifier.batches(data))
    weights = sum(p.numel() for p in both[OURS].network.parameters())
    console.print(
        f"Digits: {len(data.train_x)} images to learn from, {len(data.test_x)} for the test. A KAN of "
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
    show(console, table(both, cost))
    if len(both[OURS].accuracies) < classifier.EPOCHS:
        console.print(f"Training ended before the last epoch, since {classifier.PATIENCE:.0f} seconds had passed.")
    if cost.load > BUSY:
        console.print(f"Other processes took {cost.load:.0%} of the processor: the times are not reliable.")
    console.print(place(describe()), style="dim")
    console.print(f"Picture: {picture}")
    formula.find(options.out, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
