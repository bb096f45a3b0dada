"""``python -m bench.workflow``: the article's session over seeds, and a suite of formulas, with each package."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.progress import Progress

from ..records import Record, Result, describe, place, read, write
from ..report import console as make_console
from ..report import markdown, show
from .sessions import MODULES, run
from .targets import ARTICLE, SUITE

LEGEND = (
    "Error: root mean square of the difference between the formula and the target at fresh points, over the "
    "target's standard deviation. Found: the target itself, with constants right to two digits "
    "(`bench/workflow/judge.py`). Broke off: an exception, or edges that no function fits, which fastkan does not "
    "force. Seconds: of processor time. The formulas, and the recipes: `bench/workflow/targets.py`."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m bench.workflow", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--packages", nargs="+", choices=list(MODULES), default=["fastkan"])
    made.add_argument("--seeds", type=int, default=10, help="number of seeds of the article's formula, from 0")
    made.add_argument("--only", nargs="+", help="names of formulas")
    made.add_argument("--suite-seeds", type=int, default=1, help="of each other formula; 0 leaves the suite out")
    made.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    made.add_argument("--plots", action="store_true", help="draw in each session, as the article does, for its time")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    made.add_argument("--add", type=Path, nargs="*", default=[], metavar="FILE", help="outcomes of earlier runs")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run, print and write."""
    options = parser().parse_args(argv)
    console = make_console()
    jobs = [(ARTICLE, seed) for seed in range(options.seeds)]
    jobs += [(target, seed) for target in SUITE if target is not ARTICLE for seed in range(options.suite_seeds)]
    jobs = [job for job in jobs if options.only is None or job[0].name in options.only]
    earlier = [read(path) for path in options.add]
    outcomes = [outcome for record in earlier for outcome in record.results]
    about = describe() if jobs or not earlier else earlier[0].about
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("sessions", total=len(jobs) * len(options.packages))
        for target, seed in jobs:
            for package in options.packages:
                progress.update(bar, description=f"{package}: {target.name}, seed {seed}")
                outcomes.append(run(package, target, seed, getattr(torch, options.dtype), options.plots))
                progress.advance(bar)
                if options.json is not None:
                    write(options.json, Record(outcomes, about, {"dtype": options.dtype}))
    show(console, _frame(outcomes))
    for line in summaries(outcomes):
        console.print(line)
    if options.json is not None:
        write(options.json, Record(outcomes, about, {"dtype": options.dtype}))
    if options.markdown is not None:
        parts = ["# The workflow: is the formula found?", markdown(_side_by_side(outcomes)), LEGEND]
        parts += ["\n".join(f"- {line}" for line in summaries(outcomes)), f"In {options.dtype}, on {place(about)}."]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return 0


def _frame(outcomes: Sequence[Result]) -> pd.DataFrame:
    """A row for each outcome."""
    return pd.DataFrame(
        {
            "formula": o["case"],
            "seed": o["seed"],
            "package": o["contender"],
            "pruned to": _shape(o["width"]),
            "found": "yes" if o["found"] else "no",
            "error": None if o["error"] is None else f"{o['error']:.1e}",
            "test RMSE": None if o["rmse"] is None else f"{o['rmse']:.1e}",
            "seconds": f"{sum(o['seconds'].values()):.1f}",
            "result": (o["note"] or o["formula"] or "")[:60],
        }
        for o in outcomes
    ).set_index("formula")


def _side_by_side(outcomes: Sequence[Result]) -> pd.DataFrame:
    """A row for each formula and seed, three columns for each package."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for o in outcomes:
        row = rows.setdefault((o["case"], o["seed"]), {"seed": o["seed"]})
        package = o["contender"]
        row[f"{package}: pruned to"] = _shape(o["width"]) + (", **found**" if o["found"] else "")
        row[f"{package}: error"] = "broke off" if o["note"] else f"{o['error']:.1e}"
        row[f"{package}: seconds"] = f"{sum(o['seconds'].values()):.1f}"
    return pd.DataFrame(rows.values(), index=[case for case, _ in rows]).rename_axis("formula")


def _shape(width: list | None) -> str:
    """Nodes of each layer, such as ``2-5-1``, or ``2-2+1x-1`` with a multiplication node."""
    if width is None:
        return "-"
    pairs = ([layer, 0] if isinstance(layer, int) else layer for layer in width)
    return "-".join(f"{added}+{multiplied}x" if multiplied else str(added) for added, multiplied in pairs)


def summaries(outcomes: Sequence[Result]) -> list[str]:
    """For each package a line on how many formulas were found, and on the time."""
    lines = []
    for package in dict.fromkeys(outcome["contender"] for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome["contender"] == package]
        of_article = [outcome["found"] for outcome in own if outcome["case"] == ARTICLE.name]
        others = [outcome["found"] for outcome in own if outcome["case"] != ARTICLE.name]
        parts = [f"{package}: the article's formula found for {sum(of_article)} of {len(of_article)} seeds"]
        if others:
            parts.append(f"{sum(others)} of {len(others)} other formulas")
        seconds = [sum(outcome["seconds"].values()) for outcome in own if outcome["note"] is None]
        if seconds:
            parts.append(f"{statistics.median(seconds):.1f} s of processor time for a session that ended (median)")
        lines.append("; ".join(parts))
    return lines


if __name__ == "__main__":
    sys.exit(main())
