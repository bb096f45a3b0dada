"""``python -m bench.workflow.speed``: steps of a small network beside pykan's, in one run, as ratios.

The network of the article, 2-5-1, on 1000 rows: forward and backward, on the same rows each time, as fits of small
networks do, on adapted grids too, and on other rows each time; what L-BFGS evaluates in a fit with all sparsity terms
on. pykan is in both its modes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from fastkan import KAN, create_dataset
from fastkan.training.objective import Objective
from fastkan.training.regularization import Penalty

from ..machine import describe
from ..measure import Run, Task, interleaved, ratio, times
from ..memory import settle_allocator
from ..report import BUSY, place
from .targets import ARTICLE

SPARSE = (1.0, 10.0, 0.0, 0.0)  # lamb_l1, lamb_entropy and those of coefficients, as in the article
LAMB = 0.01
METRIC = "edge_forward_spline_n"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(
        "python -m bench.workflow.speed", description=(__doc__ or "").splitlines()[0].split(": ", 1)[1]
    )
    arguments.add_argument("--budget", type=float, default=20.0, help="seconds for each comparison")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = arguments.parse_args(argv)
    settle_allocator()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    dataset = create_dataset(ARTICLE.function, n_var=2)
    found = {
        "forward and backward": interleaved(_steps(dataset), options.budget),
        "loss with all sparsity terms, and backward": interleaved(_closures(dataset), options.budget),
    }
    for title, run in found.items():
        console.print(_table(title, run))
    console.print(place(describe()), style="dim")
    if options.json is not None:
        rows = {title: _numbers(run) for title, run in found.items()}
        options.json.write_text(json.dumps({**describe(), "results": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


def _steps(dataset: dict) -> dict[str, Task]:
    fresh, adapted = (KAN(width=ARTICLE.width, grid=5, k=3, seed=0) for _ in range(2))
    adapted.update_grid_from_samples(dataset["train_input"])
    slow, quick = _pykan(ARTICLE.width), _pykan(ARTICLE.width)
    with _silent():
        quick.speed()
    models: dict[str, Any] = {
        "fastkan": fresh,
        "fastkan, adapted grids": adapted,
        "pykan": slow,
        "pykan, speed mode": quick,
    }
    tasks = {name: Task(_step(model, model, dataset)) for name, model in models.items()}
    others = itertools.cycle([{**dataset, "train_input": dataset["train_input"] * (1 - n / 100)} for n in range(10)])
    tasks["fastkan, other rows"] = Task(lambda: _step(fresh, fresh, next(others))())
    return tasks


def _closures(dataset: dict) -> dict[str, Task]:
    """Value and gradient of loss and penalty; pykan as its fit sets it, without its symbolic branch."""
    tasks: dict[str, Task] = {}
    x, y = dataset["train_input"], dataset["train_label"]
    for name in ("fastkan", "fastkan, adapted grids"):
        model = KAN(width=ARTICLE.width, grid=5, k=3, seed=0)
        if "adapted" in name:
            model.update_grid_from_samples(x)
        objective = Objective(model, None, Penalty(model, *SPARSE, METRIC), LAMB, (False, 1000.0))
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        tasks[name] = Task(partial(objective.value_and_grad, x, y, learned))
    peer = _pykan(ARTICLE.width)
    peer.symbolic_enabled = False

    def forward(x: torch.Tensor) -> tuple:
        output = peer(x)
        return output, peer.get_reg(METRIC, *SPARSE)

    tasks["pykan"] = Task(_step(peer, forward, dataset))
    return tasks


def _step(model: nn.Module, forward: Callable, dataset: dict) -> Callable[[], None]:
    x, y = dataset["train_input"], dataset["train_label"]
    parameters = list(model.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        output = forward(x)
        if isinstance(output, tuple):
            loss = nn.functional.mse_loss(output[0], y) + LAMB * output[1]
        else:
            loss = nn.functional.mse_loss(output, y)
        loss.backward()

    return step


def _pykan(width: Sequence) -> Any:
    import kan

    with _silent():
        return kan.KAN(width=list(width), grid=5, k=3, seed=0, auto_save=False)


@contextlib.contextmanager
def _silent():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _table(title: str, run: Run) -> Table:
    busy = run.others is not None and run.others > BUSY
    view = Table(title=title + (" (on a busy machine: not worth much)" if busy else ""), box=box.SIMPLE_HEAD)
    for heading in ("", "ms", "quartiles", "times fastkan's", "quartiles"):
        view.add_column(heading, justify="right" if heading else "left")
    for name, row in _numbers(run).items():
        (middle, low, high), (more, least, most) = row["seconds"], row["ratio"]
        view.add_row(
            name, f"{middle * 1e3:.3g}", f"{low * 1e3:.3g}-{high * 1e3:.3g}", f"{more:.3g}", f"{least:.3g}-{most:.3g}"
        )
    return view


def _numbers(run: Run) -> dict[str, dict[str, list[float]]]:
    found = {}
    for name, samples in run.samples.items():
        taken, more = times(samples), ratio(samples, run.samples["fastkan"])
        assert more is not None  # every round has both
        found[name] = {"seconds": list(taken[:3]), "ratio": list(more[:3])}
    return found


if __name__ == "__main__":
    sys.exit(main())
