"""``python -m bench``: KAN layers side by side on this machine."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import cases, compare, modes, record, report
from .cases import Case
from .machine import describe
from .memory import settle_allocator
from .record import Record
from .rivals import RIVALS, Rival, load
from .run import CaseResult, run_case

BUDGET, PATIENCE = 30.0, 15.0  # seconds
QUICK_BUDGET, QUICK_PATIENCE = 3.0, 0.5
SWEEP_BUDGET, SWEEP_PATIENCE = 5.0, 1.0
WIDTH = 144  # of the tables, where there is no terminal to fit
MEASURING = ("quick", "cases", "sweep", "modes", "rivals", "add", "threads", "budget", "json")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser("python -m bench", description=__doc__)
    what = arguments.add_argument_group("what is measured")
    what.add_argument("--quick", action="store_true", help="under two minutes: no compiled rivals, no large case")
    which = what.add_mutually_exclusive_group()
    which.add_argument("--cases", nargs="+", metavar="PART", help="only cases with such a part in their names")
    which.add_argument(
        "--sweep", nargs="+", metavar="NAME", help=f"one thing varied instead: {', '.join(cases.SWEEPS)} or all"
    )
    what.add_argument(
        "--modes", nargs="+", metavar="NAME", help=f"{', '.join(modes.MODES)} or all; default: forward and step"
    )
    what.add_argument(
        "--rivals", nargs="+", metavar="PART", help="only rivals likewise, and the anchors; needed for compiled ones "
        "with --quick or --sweep"
    )  # fmt: skip
    what.add_argument(
        "--add", action="append", metavar="MODULE", help="a module or FILE.py that enters rivals of your own"
    )
    what.add_argument("--threads", type=int, help="of torch; default: all")
    what.add_argument(
        "--budget", type=float, help=f"seconds for each timing (default {BUDGET:g}; sweep {SWEEP_BUDGET:g})"
    )
    what.add_argument("--from", dest="given", type=Path, metavar="FILE", help="measure nothing, take this JSON")
    then = arguments.add_argument_group("what is made of it")
    then.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    then.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    then.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files into it")
    then.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="exit with 1 if fastkan became slower, relative to the "
        "anchors, or takes more memory, or has no time any more"
    )  # fmt: skip
    then.add_argument(
        "--threshold", type=float, default=compare.THRESHOLD, help="by which factor (default %(default)s)"
    )
    arguments.add_argument(
        "--gpu", metavar="OUT", help="the Triton kernels on a GPU instead; --gpu OUT --help tells more"
    )
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run, print, write. Returns 1 if a rival of ours has no time, or ``--compare`` found something worse."""
    given = sys.argv[1:] if argv is None else argv
    if any(argument.split("=")[0] == "--gpu" for argument in given):
        from .gpu import command

        return command.main(given)
    arguments = parser()
    options = arguments.parse_args(argv)
    try:
        _check(options)
        old = None if options.compare is None else record.read(options.compare)
        new = None if options.given is None else record.read(options.given)
        plan = None if new is not None else _plan(options)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
    except (ValueError, RuntimeError) as mistake:
        arguments.error(str(mistake))
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    about = describe() if new is None else new.about
    console.print(report.place(about), style="dim")
    if plan is not None:
        new = Record(list(_measured(*plan, console)), about, {"budget": plan[2], "quick": options.quick})
    else:
        assert new is not None
        for result in new.results:
            _show(result, console)
    console.print(report.legend(new.results), style="dim")
    if options.json:
        options.json.write_text(json.dumps(record.as_json(new), indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.markdown(new.results, about), encoding="utf-8")
    if options.plots:
        from .plots import draw

        console.print(f"{options.plots}: {', '.join(path.name for path in draw(new, options.plots))}")
    worse = False
    if old is not None:
        found = compare.compare(old, new, options.threshold)
        compare.tell(found, old, new, options.threshold, console)
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
    if options.given is not None:
        for name in MEASURING:
            if getattr(options, name):
                raise ValueError(f"--from measures nothing, so --{name} has no meaning beside it")


def _plan(options: argparse.Namespace) -> tuple[list[Case], list[Rival], float, float, tuple[str, ...]]:
    """Cases, rivals, budget, patience and modes."""
    for module in options.add or ():
        load(module)
    if options.sweep:
        chosen, budget, patience = cases.swept(options.sweep), SWEEP_BUDGET, SWEEP_PATIENCE
    else:
        chosen, budget, patience = cases.chosen(options.cases, options.quick), BUDGET, PATIENCE
    if options.quick:
        budget, patience = QUICK_BUDGET, QUICK_PATIENCE
    rivals = _rivals(options.rivals, eager=options.quick or bool(options.sweep))
    return chosen, rivals, options.budget or budget, patience, modes.chosen(options.modes)


def _measured(
    chosen: list[Case], rivals: list[Rival], budget: float, patience: float, timed: tuple[str, ...], console: Console
) -> Iterator[CaseResult]:
    warnings.filterwarnings("ignore", module="kan|inkan")  # other packages' affairs
    settle_allocator()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        bar = progress.add_task("", total=len(chosen))
        for number, case in enumerate(chosen):

            def tick(doing: str, share: float, name: str = case.name, done: int = number) -> None:
                progress.update(bar, completed=done + share, description=f"{name}: {doing}")

            result = run_case(case, rivals, budget, patience, tick, timed)
            _show(result, progress.console)
            yield result


def _show(result: CaseResult, console: Console) -> None:
    for table in report.tables(result):
        console.print(table)


def _rivals(patterns: list[str] | None, eager: bool) -> list[Rival]:
    for pattern in patterns or ():
        if not any(pattern in rival.name for rival in RIVALS):
            raise ValueError(f"no rival is named like {pattern!r}; there are {', '.join(r.name for r in RIVALS)}")
    if patterns:
        return [rival for rival in RIVALS if rival.anchor or any(part in rival.name for part in patterns)]
    return [rival for rival in RIVALS if not (eager and rival.compiled)]


def _lacks_time(result: CaseResult) -> bool:
    """Whether our eager layer is without a time in a mode that the case has."""
    wanted = [mode for mode in result.modes if modes.MODES[mode].why_not(result.case) is None]
    ours = [row for row in result.rows if row.rival == "fastkan"]
    return any(mode not in row.timings for row in ours for mode in wanted)


if __name__ == "__main__":
    sys.exit(main())
