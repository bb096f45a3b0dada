"""``python -m bench.workflow.curve``: CPU seconds of ``KAN.fit`` beside pykan's and efficient-kan's, over sizes."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..machine import describe
from ..measure import Samples, quiet, ratio, times
from ..memory import settle_allocator
from ..report import place
from .fits import EFFICIENT, FASTKAN, PYKAN, Fits, TooSlow, evaluation
from .points import Point, chosen

MAX_ROUNDS = 15
EVALUATIONS = 20
LEGEND = (
    "Milliseconds of processor time of a training step of a fit, its share of grid updates and test losses included: "
    "medians over rounds in which the packages take turns. Ratios are fastkan's time over the other's, medians of the "
    "ratios within each round, with quartiles. fastkan's fit has try_without=False, which pykan's has not; "
    "efficient-kan is its layer in a training loop, whose knots stay, without penalties."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m bench.workflow.curve", description=(__doc__ or "").split(": ", 1)[1])
    made.add_argument("--quick", action="store_true", help="a handful of points")
    made.add_argument("--points", nargs="+", metavar="TEXT", help="axes, or what the names of points contain")
    made.add_argument("--fastkan-only", action="store_true", help="no rivals: how time grows with size")
    made.add_argument(
        "--budget", type=float, default=10.0, help="CPU seconds at each point, after which no round begins"
    )
    made.add_argument("--limit", type=float, default=30.0, help="CPU seconds for a rival's step, else it is left out")
    made.add_argument("--threads", type=int, default=1, help="torch's threads, whose seconds all count")
    made.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    made.add_argument("--list", action="store_true", help="print the points and end")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    points = chosen(options.points, options.quick)
    if options.list:
        for point in points:
            console.print(f"{point.axis}: {point.name}", highlight=False)
        return 0
    settle_allocator()
    torch.set_num_threads(options.threads)
    found = []
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("fits", total=len(points))
        for point in points:
            progress.update(bar, description=f"{point.axis}: {point.name}")
            found.append(measure(point, options.budget, options.limit, options.fastkan_only))
            progress.advance(bar)
            if options.json is not None:
                _write(options.json, found)
    console.print(table(found))
    for line in summary(found):
        console.print(line)
    console.print(LEGEND, style="dim")
    console.print(place(describe()), style="dim")
    return 0


def measure(point: Point, budget: float, limit: float, fastkan_only: bool) -> dict[str, Any]:
    """Seconds of a step by each package, ratios of fastkan's to the others', and why one was left out."""
    fits = Fits(point, limit)
    names = [FASTKAN] if fastkan_only else list(fits.fits)
    notes, taken = {}, []
    for name in names:  # a first step each, which warms up and tells who is too slow
        try:
            fits.seconds(name, steps=1)
            taken.append(name)
        except TooSlow:
            notes[name] = f"a step takes more than {limit:g} s"
        except Exception as error:  # whatever another package raises, the others are measured
            if name == FASTKAN:
                raise
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    fits.limit = limit * point.step_count
    samples = _alternate(fits, taken, budget, notes)
    return {
        "axis": point.axis,
        "name": point.name,
        **{key: value for key, value in point._asdict().items() if key not in ("axis", "quick", "steps")},
        "steps": point.step_count,
        "seconds": {name: list(times(samples[name])) for name in samples},
        "ratio": {
            name: list(between)
            for name in samples
            if name != FASTKAN and (between := ratio(samples[FASTKAN], samples[name])) is not None
        },
        "evaluation": _evaluation(point),
        "notes": notes,
    }


def _alternate(fits: Fits, names: list[str], budget: float, notes: dict[str, str]) -> dict[str, Samples]:
    """Rounds of one fit by each, the order rotated; a package that fails in a round takes part in no more."""
    samples: dict[str, Samples] = {name: [] for name in names}
    began, rounds = time.process_time(), 0
    with quiet():
        while rounds < MAX_ROUNDS and (rounds == 0 or time.process_time() - began < budget):
            for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
                seconds = None
                if name not in notes:
                    try:
                        seconds = fits.seconds(name)
                    except Exception as error:  # such as lstsq's in pykan's grid update
                        if name == FASTKAN:
                            raise
                        notes[name] = f"{type(error).__name__} in round {rounds}"
                samples[name].append(seconds)
                gc.collect()
            rounds += 1
    return {name: found for name, found in samples.items() if any(each is not None for each in found)}


def _evaluation(point: Point) -> float:
    """The least CPU seconds of one evaluation of the objective and its gradient."""
    call = evaluation(point)
    call()
    found = []
    for _ in range(EVALUATIONS):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
        if sum(found) > 1:
            break
    return min(found)


def table(found: list[dict[str, Any]]) -> Table:
    """One row for each point."""
    view = Table(box=box.SIMPLE_HEAD)
    view.add_column("point")
    for heading in ("fastkan", "pykan", "efficient-kan", "/ pykan", "quartiles", "/ efficient-kan", "evaluation"):
        view.add_column(heading, justify="right")
    axis = None
    for row in found:
        if row["axis"] != axis:
            axis = row["axis"]
            view.add_section()
            view.add_row(f"[bold]{axis}[/bold]")
        by_pykan, by_efficient = row["ratio"].get(PYKAN), row["ratio"].get(EFFICIENT)
        view.add_row(
            row["name"],
            *(_milliseconds(row, name) for name in (FASTKAN, PYKAN, EFFICIENT)),
            f"{by_pykan[0]:.2f}" if by_pykan else "-",
            f"{by_pykan[1]:.2f}-{by_pykan[2]:.2f}" if by_pykan else "-",
            f"{by_efficient[0]:.2f}" if by_efficient else "-",
            f"{row['evaluation'] * 1e3:.3g}",
        )
        for name in row["seconds"].keys() - {FASTKAN, PYKAN, EFFICIENT}:
            view.add_row(f"  {name}", _milliseconds(row, name))
    return view


def _milliseconds(row: dict[str, Any], name: str) -> str:
    if name in row["seconds"]:
        return f"{row['seconds'][name][0] * 1e3:.3g}"
    return row["notes"].get(name, "-")


def ratios(found: list[dict[str, Any]], rival: str) -> dict[str, float]:
    """fastkan's time over a rival's, by the name of each point where both were measured."""
    return {row["name"]: row["ratio"][rival][0] for row in found if rival in row["ratio"]}


def summary(found: list[dict[str, Any]]) -> list[str]:
    """Median and worst ratio to each rival, and where that is."""
    lines = []
    for rival in (PYKAN, EFFICIENT):
        each = ratios(found, rival)
        if each:
            worst = max(each, key=lambda name: each[name])
            lines.append(
                f"{FASTKAN} / {rival} at {len(each)} points: {statistics.median(each.values()):.3f} in the median, "
                f"{each[worst]:.2f} at worst ({worst})"
            )
    return lines


def _write(path: Path, found: list[dict[str, Any]]) -> None:
    results = {**describe(), "legend": LEGEND, "summary": summary(found), "points": found}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
