"""``python -m bench.workflow.speed``: steps of a small network beside pykan's, in one run, as ratios.

The network is the article's, 2-5-1, on 1000 rows. Timed are forward and backward, on the same rows each time, as in
fits of small networks, on adapted grids too, and on other rows each time; and the evaluation of L-BFGS in a fit with
all sparsity terms. pykan is timed in both its modes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fastkan import KAN, create_dataset
from fastkan.training.objective import Objective
from fastkan.training.regularization import Penalty

from ..measure import BUSY, Task, interleaved, settle_allocator, timing
from ..records import Record, Result, describe, place, write
from ..report import console as make_console
from ..report import show, spread_text
from . import silenced
from .targets import ARTICLE

SPARSE = (1.0, 10.0, 0.0, 0.0)  # lamb_l1, lamb_entropy and those of coefficients, as in the article
LAMB = 0.01
METRIC = "edge_forward_spline_n"
FASTKAN = "fastkan"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(
        "python -m bench.workflow.speed", description=(__doc__ or "").splitlines()[0].split(": ", 1)[1]
    )
    arguments.add_argument("--quick", action="store_true", help="two seconds for each comparison")
    arguments.add_argument("--budget", type=float, default=20.0, help="seconds for each comparison")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    options = arguments.parse_args(argv)
    settle_allocator()
    dataset, console = create_dataset(ARTICLE.function, n_var=2), make_console(110)
    budget = 2.0 if options.quick else options.budget
    results: list[Result] = []
    for case, make in {"forward and backward": _steps, "loss with all sparsity terms, and backward": _closures}.items():
        run = interleaved(make(dataset), budget)
        found = [
            {"case": case, "contender": name, **timing(run.samples, name, [FASTKAN]), "load": run.load}
            for name in run.samples
        ]
        show(console, _frame(found), case, "on a busy machine: not reliable" if run.load > BUSY else "")
        results += found
    console.print(place(describe()), style="dim")
    if options.json is not None:
        write(options.json, Record(results, describe(), {"budget": budget}))
    return 0


def _frame(results: Sequence[Result]) -> pd.DataFrame:
    rows = {
        r["contender"]: {"ms": spread_text(r["seconds"], 1e3), "/ fastkan": spread_text(r["ratios"][FASTKAN])}
        for r in results
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _steps(dataset: dict) -> dict[str, Task]:
    """Forward and backward of the mean squared error."""
    fresh, adapted = (KAN(width=ARTICLE.width, grid=5, k=3, seed=0) for _ in range(2))
    adapted.update_grid_from_samples(dataset["train_input"])
    slow, quick = _pykan(ARTICLE.width), _pykan(ARTICLE.width)
    with silenced():
        quick.speed()
    models = {FASTKAN: fresh, "fastkan, adapted grids": adapted, "pykan": slow, "pykan, speed mode": quick}
    tasks = {name: Task(_step(model, model, dataset)) for name, model in models.items()}
    others = itertools.cycle([{**dataset, "train_input": dataset["train_input"] * (1 - n / 100)} for n in range(10)])
    tasks["fastkan, other rows"] = Task(lambda: _step(fresh, fresh, next(others))())
    return tasks


def _closures(dataset: dict) -> dict[str, Task]:
    """Value and gradient of loss and penalty; pykan as its fit sets it up, without its symbolic branch."""
    tasks: dict[str, Task] = {}
    x, y = dataset["train_input"], dataset["train_label"]
    for name in (FASTKAN, "fastkan, adapted grids"):
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
        output, penalty = output if isinstance(output, tuple) else (output, None)
        loss = nn.functional.mse_loss(output, y)
        (loss if penalty is None else loss + LAMB * penalty).backward()

    return step


def _pykan(width: Sequence) -> Any:
    import kan

    with silenced():
        return kan.KAN(width=list(width), grid=5, k=3, seed=0, auto_save=False)


if __name__ == "__main__":
    sys.exit(main())
