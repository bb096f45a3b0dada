"""``python -m bench.workflow``: the article's session over seeds, and a suite of formulas, by each package."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..machine import describe
from ..report import place
from .sessions import SESSIONS, Outcome, run
from .targets import ARTICLE, SUITE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m bench.workflow", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--packages", nargs="+", choices=list(SESSIONS), default=["fastkan"])
    made.add_argument("--seeds", type=int, default=10, help="of the article's formula: 0 to this, less one")
    made.add_argument("--only", nargs="+", help="names of formulas")
    made.add_argument("--suite-seeds", type=int, default=1, help="of each other formula; 0 leaves the suite out")
    made.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    made.add_argument("--plots", action="store_true", help="draw in each session, as the article does, for its time")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    made.add_argument("--add", type=Path, nargs="*", default=[], metavar="FILE", help="outcomes of runs before")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run, print and write."""
    options = parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    jobs = [(ARTICLE, seed) for seed in range(options.seeds)]
    jobs += [(target, seed) for target in SUITE if target is not ARTICLE for seed in range(options.suite_seeds)]
    jobs = [job for job in jobs if options.only is None or job[0].name in options.only]
    outcomes = [_read(outcome) for path in options.add for outcome in json.loads(path.read_text())["outcomes"]]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("sessions", total=len(jobs) * len(options.packages))
        for target, seed in jobs:
            for package in options.packages:
                progress.update(bar, description=f"{package}: {target.name}, seed {seed}")
                outcomes.append(run(package, target, seed, getattr(torch, options.dtype), options.plots))
                progress.advance(bar)
                if options.json is not None:
                    _write(options.json, options.dtype, outcomes)
    console.print(_table(outcomes))
    for package in dict.fromkeys(outcome.package for outcome in outcomes):
        console.print(_summary(package, outcomes))
    if options.json is not None:
        _write(options.json, options.dtype, outcomes)
    if options.markdown is not None:
        options.markdown.write_text(markdown(outcomes, options.dtype), encoding="utf-8")
    return 0


def _read(outcome: dict) -> Outcome:
    return Outcome(**outcome)


def markdown(outcomes: list[Outcome], dtype: str) -> str:
    """The table of all outcomes, the packages side by side."""
    packages = list(dict.fromkeys(outcome.package for outcome in outcomes))
    head = "| formula | seed |" + "".join(f" {package}: pruned to | error | seconds |" for package in packages)
    lines = ["# The workflow: is the formula found?", "", head, "|---|---:|" + "---|---:|---:|" * len(packages)]
    rows = {(o.target, o.seed, o.package): o for o in outcomes}
    for target, seed in dict.fromkeys((o.target, o.seed) for o in outcomes):
        cells = []
        for package in packages:
            o = rows.get((target, seed, package))
            if o is None:
                cells.append(" - | - | - |")
                continue
            came = _shape(o.width) + (", **found**" if o.found else "")
            apart = "broke off" if o.failure else f"{o.error:.1e}"
            cells.append(f" {came} | {apart} | {sum(o.seconds.values()):.1f} |")
        lines.append(f"| {target} | {seed} |" + "".join(cells))
    text = (
        "\nError: root mean square of the difference between the formula and the target at fresh points, over the "
        "target's standard deviation. Found: the target itself, with constants right to two digits "
        "(`bench/workflow/judge.py`). Broke off: an exception, or edges that no function fits, which fastkan does not "
        "force. Seconds: of processor time. What is looked for, and how: `bench/workflow/targets.py`.\n"
    )
    summaries = "".join(f"- {_summary(package, outcomes)}\n" for package in packages)
    return "\n".join(lines) + "\n" + text + f"\n{summaries}\nIn {dtype}, on {place(describe())}.\n"


def _shape(width: list | None) -> str:
    return "-" if width is None else "-".join(_layer(each) for each in width)


def _write(path: Path, dtype: str, outcomes: list[Outcome]) -> None:
    found = {"machine": describe(), "dtype": dtype, "outcomes": [outcome._asdict() for outcome in outcomes]}
    path.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


def _table(outcomes: list[Outcome]) -> Table:
    view = Table(box=box.SIMPLE_HEAD)
    for heading in ("formula", "seed", "package", "pruned to", "found", "error", "test RMSE", "seconds", "what it is"):
        view.add_column(heading, justify="left" if heading in ("formula", "package", "what it is") else "right")
    for o in outcomes:
        view.add_row(
            o.target,
            str(o.seed),
            o.package,
            _shape(o.width),
            "yes" if o.found else "no",
            "-" if o.error is None else f"{o.error:.1e}",
            "-" if o.rmse is None else f"{o.rmse:.1e}",
            f"{sum(o.seconds.values()):.1f}",
            (o.failure or o.formula or "")[:60],
        )
    return view


def _layer(width: list[int] | int) -> str:
    if isinstance(width, int):
        return str(width)
    added, multiplied = width
    return f"{added}+{multiplied}x" if multiplied else str(added)


def _summary(package: str, outcomes: list[Outcome]) -> str:
    mine = [outcome for outcome in outcomes if outcome.package == package]
    of_article = [outcome for outcome in mine if outcome.target == ARTICLE.name]
    others = [outcome for outcome in mine if outcome.target != ARTICLE.name]
    parts = [
        f"{package}: the article's formula found for {sum(o.found for o in of_article)} of {len(of_article)} seeds"
    ]
    if others:
        parts.append(f"{sum(o.found for o in others)} of {len(others)} other formulas")
    seconds = [sum(outcome.seconds.values()) for outcome in mine if outcome.failure is None]
    if seconds:
        parts.append(f"{statistics.median(seconds):.1f} s of processor time for a session that ended (median)")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
