"""``python -m bench.second_order``: the second-order optimizers, in float64 and processor seconds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch

from ..records import Record, Result, describe, read, write
from ..report import console as make_console
from ..report import show
from . import runs
from .poisson import PROBLEMS

PARTS = ("jacobian", "step", "poisson", "extension", "rows")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser("python -m bench.second_order", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    made.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="solutions")
    made.add_argument("--networks", nargs="+", choices=list(runs.RECIPES), default=list(runs.RECIPES))
    made.add_argument("--optimizers", nargs="+", choices=runs.OPTIMIZERS, default=runs.OPTIMIZERS)
    made.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    made.add_argument("--seconds", type=float, default=30.0, help="processor time of each solution")
    made.add_argument("--rows", type=int, default=1_000_000, help="number of rows of the last part")
    made.add_argument("--row-seconds", type=float, default=200.0, help="processor time of each fit to many rows")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes")
    made.add_argument("--add", type=Path, nargs="*", default=[], metavar="FILE", help="outcomes of earlier runs")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the measurements, print their results and write the files."""
    options = parser().parse_args(argv)
    console, about = make_console(), describe()
    results = [result for path in options.add for result in read(path).results]
    chosen = options.problems, options.networks, options.optimizers
    parts: dict[str, Callable[[], Iterable[Result]]] = {
        "jacobian": runs.jacobians,
        "step": lambda: [runs.step()],
        "poisson": lambda: runs.equations(*chosen, options.seconds, options.seeds),
        "extension": lambda: runs.extensions(options.seeds),
        "rows": lambda: runs.rows(options.rows, options.row_seconds),
    }
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for part in options.only:
            for result in parts[part]():
                results.append(result)
                console.print(*next(iter(runs.summary([result]))), sep="; ")
                if options.json is not None:
                    write(options.json, Record(results, about, {"dtype": "float64"}))
    finally:
        torch.set_default_dtype(default)
    show(console, table(results))
    if options.json is not None:
        write(options.json, Record(results, about, {"dtype": "float64"}))
    return 0


def table(results: list[Result]) -> pd.DataFrame:
    """A row of words for each measurement."""
    columns = ["measurement", "network or method", "outcome"]
    return pd.DataFrame(runs.summary(results), columns=columns).set_index("measurement")


if __name__ == "__main__":
    sys.exit(main())
