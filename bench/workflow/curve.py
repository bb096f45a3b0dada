"""``python -m bench.workflow.curve``: CPU seconds of ``KAN.fit`` beside pykan's and efficient-kan's, over sizes."""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.progress import Progress

from ..measure import Samples, quiet, rotated, settle_allocator, timing
from ..records import Record, Result, describe, place, write
from ..report import console as make_console
from ..report import show, spread_text
from .fits import EFFICIENT, FASTKAN, PYKAN, Fits, TooSlow, evaluation
from .points import Point, chosen

MAX_ROUNDS = 15
EVALUATIONS = 20
LEGEND = (
    "Milliseconds of processor time of a training step of a fit, with its share of grid updates and test losses: "
    "medians over rounds in which the packages take turns. Ratios are fastkan's time over the other's, medians of the "
    "ratios within each round, ± half the distance of the quartiles. fastkan's fit has try_without=False, an option "
    "that pykan lacks; efficient-kan is its layer in a training loop with fixed knots and without penalties."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m bench.workflow.curve", description=(__doc__ or "").split(": ", 1)[1])
    made.add_argument("--quick", action="store_true", help="a handful of points")
    made.add_argument("--points", nargs="+", metavar="TEXT", help="axes, or parts of the names of points")
    made.add_argument("--fastkan-only", action="store_true", help="no other package: how time grows with size")
    made.add_argument("--budget", type=float, default=10.0, help="CPU seconds of a point, after which no round begins")
    made.add_argument("--limit", type=float, default=30.0, help="CPU seconds of another package's step")
    made.add_argument("--threads", type=int, default=1, help="torch's threads, whose seconds all count")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    made.add_argument("--list", action="store_true", help="print the points and end")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser().parse_args(argv)
    console = make_console()
    points = chosen(options.points, options.quick)
    if options.list:
        for point in points:
            console.print(f"{point.axis}: {point.name}", highlight=False)
        return 0
    settle_allocator()
    torch.set_num_threads(options.threads)
    about, results = describe(), list[Result]()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("fits", total=len(points))
        for point in points:
            progress.update(bar, description=f"{point.axis}: {point.name}")
            results += measure(point, options.budget, options.limit, options.fastkan_only)
            progress.advance(bar)
            if options.json is not None:
                write(options.json, Record(results, about, {"budget": options.budget, "limit": options.limit}))
    show(console, table(results))
    for line in summary(results):
        console.print(line)
    console.print(f"{LEGEND}\n{place(about)}", style="dim")
    return 0


def measure(point: Point, budget: float, limit: float, fastkan_only: bool) -> list[Result]:
    """Seconds of a step with each package, fastkan's with ratios to the others, and why one was left out."""
    fits = Fits(point, limit)
    names = [FASTKAN] if fastkan_only else list(fits.fits)
    notes: dict[str, str] = {}
    ready = []
    for name in names:  # a first step each, which warms up and shows which one is too slow
        try:
            fits.seconds(name, steps=1)
            ready.append(name)
        except TooSlow:
            notes[name] = f"a step takes more than {limit:g} s"
        except Exception as error:  # of any kind: an error in another package must not end the run
            if name == FASTKAN:
                raise
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    fits.limit = limit * point.step_count
    samples = _alternate(fits, ready, budget, notes)
    sizes = {key: value for key, value in point._asdict().items() if key != "quick"} | {"steps": point.step_count}
    results: list[Result] = []
    for name in names:
        row = {"case": point.name, **sizes, "contender": name, "note": notes.get(name), "seconds": None, "ratios": {}}
        if name in samples:
            row |= timing(samples, name, [other for other in names if other != FASTKAN] if name == FASTKAN else [])
        results.append(row)
    results[0]["evaluation"] = _evaluation(point)
    return results


def _alternate(fits: Fits, names: list[str], budget: float, notes: dict[str, str]) -> dict[str, Samples]:
    """Rounds of one fit by each, the order rotated; a package that fails in a round takes part in no more."""
    samples: dict[str, Samples] = {name: [] for name in names}
    began, rounds = time.process_time(), 0
    with quiet():
        while rounds < MAX_ROUNDS and (rounds == 0 or time.process_time() - began < budget):
            for name in rotated(names, rounds):
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
    found: list[float] = []
    while len(found) < EVALUATIONS and sum(found) <= 1:
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def table(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each point: milliseconds, and ratios of fastkan's time to the others'."""
    rows: dict[str, dict[str, str | None]] = {}
    for result in results:
        row = rows.setdefault(result["case"], {})
        spread = result["seconds"]
        row[result["contender"]] = result["note"] if spread is None else f"{spread[0] * 1e3:.3g}"
        for name in (PYKAN, EFFICIENT):
            if name in result["ratios"]:
                row[f"/ {name}"] = spread_text(result["ratios"][name])
        if result.get("evaluation"):
            row["evaluation"] = f"{result['evaluation'] * 1e3:.3g}"
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("point")
    return frame[sorted(frame, key=["/ pykan", "/ efficient-kan", "evaluation"].count)]


def summary(results: Sequence[Result]) -> list[str]:
    """Median and worst ratio to each other package, and the point of the latter."""
    lines = []
    for name in (PYKAN, EFFICIENT):
        each = {r["case"]: r["ratios"][name][0] for r in results if name in r["ratios"]}
        if each:
            worst = max(each, key=lambda case: each[case])
            lines.append(
                f"{FASTKAN} / {name} at {len(each)} points: {statistics.median(each.values()):.3f} in the median, "
                f"{each[worst]:.2f} at worst ({worst})"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
