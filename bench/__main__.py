"""``python -m bench``: KAN layers side by side on this machine."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import compare, records, report
from .measure import settle_allocator
from .records import Record, Result
from .suite import cases, modes
from .suite.contenders import CONTENDERS, OURS, Contender, load
from .suite.run import run_case

BUDGET, PATIENCE = 30.0, 15.0  # seconds
QUICK_BUDGET, QUICK_PATIENCE = 3.0, 0.5
SWEEP_BUDGET, SWEEP_PATIENCE = 5.0, 1.0
FIELDS = ("case", "rows", "widths", "grid_size", "order", "mode", "contender", "note", "error", "seconds", "ratios")
MEASURING = ("quick", "cases", "sweep", "modes", "contenders", "add", "threads", "budget", "json")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser("python -m bench", description=__doc__)
    what = arguments.add_argument_group("measurement")
    which = what.add_mutually_exclusive_group()
    then = arguments.add_argument_group("output")
    what.add_argument("--quick", action="store_true", help="under two minutes: nothing compiled, no large case")
    which.add_argument("--cases", nargs="+", metavar="PART", help="only cases whose names contain a part")
    which.add_argument("--sweep", nargs="+", metavar="NAME", help=f"one size varied: {', '.join(cases.SWEEPS)} or all")
    what.add_argument("--modes", nargs="+", metavar="NAME", help=f"{', '.join(modes.MODES)} or all; else the first two")
    words = "only those with a part in their names, and the anchors; needed for compiled ones with --quick or --sweep"
    what.add_argument("--contenders", "--rivals", nargs="+", metavar="PART", help=words)
    what.add_argument("--add", action="append", metavar="MODULE", help="a module or FILE.py that enters contenders")
    what.add_argument("--threads", type=int, help="torch's threads; default: all")
    what.add_argument("--budget", type=float, help=f"seconds of each timing ({BUDGET:g}; of a sweep {SWEEP_BUDGET:g})")
    what.add_argument("--from", dest="given", type=Path, metavar="FILE", help="measure nothing, read this JSON")
    then.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    then.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    then.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files into it")
    words = "exit with 1 if fastkan became slower, relative to the anchors, takes more memory, or lost a time"
    then.add_argument("--compare", type=Path, metavar="OLD.json", help=words)
    then.add_argument("--threshold", type=float, default=compare.THRESHOLD, help="by which factor (%(default)s)")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run, print, write. Returns 1 if fastkan has no time in some case, or ``--compare`` found something worse."""
    arguments = parser()
    options = arguments.parse_args(argv)
    try:
        _check(options)
        old = None if options.compare is None else records.read(options.compare, FIELDS)
        new = None if options.given is None else records.read(options.given, FIELDS)
        plan = None if new is not None else _plan(options)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
    except (ValueError, RuntimeError) as mistake:
        arguments.error(str(mistake))
    console = report.console()
    about = records.describe() if new is None else new.about
    console.print(records.place(about), style="dim")
    if plan is not None:
        results = [result for of_case in _measured(*plan, console) for result in of_case]
        new = Record(results, about, {"budget": plan[2], "quick": options.quick})
    else:
        assert new is not None
        _show(new.results, console)
    console.print(report.legend(new.results), style="dim")
    if options.json:
        records.write(options.json, new)
    if options.markdown:
        options.markdown.write_text(report.page(new.results, about), encoding="utf-8")
    if options.plots:
        from .plots import draw

        console.print(f"{options.plots}: {', '.join(path.name for path in draw(new, options.plots))}")
    worse = False
    if old is not None:
        found = compare.compare(old, new, options.threshold)
        compare.report_changes(found, old, new, options.threshold, console)
        worse = found.fails
    return int(worse or any(_lacks_time(result) for result in new.results))


def _check(options: argparse.Namespace) -> None:
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise ValueError(f"--budget must be a number of seconds above 0, got {options.budget}")
    if not 1 <= options.threshold < math.inf:
        raise ValueError(f"--threshold must be a factor of 1 or more, got {options.threshold}")
    for path in filter(None, (options.json, options.markdown, options.plots)):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} into")
    if options.plots and options.plots.exists() and not options.plots.is_dir():
        raise ValueError(f"--plots must be a folder, got the file {options.plots}")
    for name in MEASURING if options.given is not None else ():
        if getattr(options, name):
            raise ValueError(f"--from measures nothing, so --{name} has no meaning beside it")


def _plan(
    options: argparse.Namespace,
) -> tuple[list[cases.Case], list[Contender], float, float, tuple[str, ...]]:
    """Cases, contenders, budget, patience and modes."""
    for module in options.add or ():
        load(module)
    if options.sweep:
        chosen, budget, patience = cases.swept(options.sweep), SWEEP_BUDGET, SWEEP_PATIENCE
    else:
        chosen, budget, patience = cases.chosen(options.cases, options.quick), BUDGET, PATIENCE
    if options.quick:
        budget, patience = QUICK_BUDGET, QUICK_PATIENCE
    contenders = _contenders(options.contenders, eager=options.quick or bool(options.sweep))
    return chosen, contenders, options.budget or budget, patience, modes.chosen(options.modes)


def _contenders(patterns: list[str] | None, eager: bool) -> list[Contender]:
    for pattern in patterns or ():
        if not any(pattern in each.name for each in CONTENDERS):
            names = ", ".join(each.name for each in CONTENDERS)
            raise ValueError(f"no contender is named like {pattern!r}; there are {names}")
    if patterns:
        return [each for each in CONTENDERS if each.anchor or any(part in each.name for part in patterns)]
    return [each for each in CONTENDERS if not (eager and each.compiled)]


def _measured(
    chosen: list[cases.Case],
    contenders: list[Contender],
    budget: float,
    patience: float,
    timed: tuple[str, ...],
    console: Console,
) -> Iterator[list[Result]]:
    warnings.filterwarnings("ignore", module="kan|inkan")  # their own deprecations
    settle_allocator()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(chosen))
        for number, case in enumerate(chosen):

            def tick(doing: str, share: float, name: str = case.name, done: int = number) -> None:
                progress.update(bar, completed=done + share, description=f"{name}: {doing}")

            results = run_case(case, contenders, budget, patience, tick, timed)
            _show(results, progress.console)
            yield results


def _show(results: list[Result], console: Console) -> None:
    for title, frame, notes in report.tables(results):
        report.show(console, frame, title, notes)


def _lacks_time(result: Result) -> bool:
    """Whether it is one of the eager fastkan, without a time, in a mode that applies to the case."""
    if result["contender"] != OURS or result["seconds"] is not None:
        return False
    case = cases.Case(result["rows"], tuple(result["widths"]), result["grid_size"], result["order"])
    return modes.MODES[result["mode"]].why_not(case) is None


if __name__ == "__main__":
    sys.exit(main())
