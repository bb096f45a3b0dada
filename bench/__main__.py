"""``python -m bench``: KAN layers side by side on this machine."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .cases import Case, chosen
from .machine import describe
from .memory import settle_allocator
from .rivals import RIVALS, Rival
from .run import CaseResult, run_case

BUDGET, PATIENCE = 30.0, 15.0  # seconds
QUICK_BUDGET, QUICK_PATIENCE = 5.0, 0.5
WIDTH = 136  # of the tables, where there is no terminal to fit


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser("python -m bench", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="under two minutes: no compiled rivals, no large case")
    arguments.add_argument("--cases", nargs="+", metavar="PART", help="only cases with such a part in their names")
    arguments.add_argument("--rivals", nargs="+", metavar="PART", help="only rivals likewise, and the anchors")
    arguments.add_argument("--threads", type=int, help="of torch; default: all")
    arguments.add_argument("--budget", type=float, help=f"seconds for each timing (default {BUDGET:g})")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    arguments.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    arguments.add_argument(
        "--gpu", metavar="OUT", help="the Triton kernels on a GPU instead; --gpu OUT --help tells more"
    )
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run, print, write. Returns 1 if a rival of ours has no time, else 0."""
    given = sys.argv[1:] if argv is None else argv
    if any(argument.split("=")[0] == "--gpu" for argument in given):
        from .gpu import command

        return command.main(given)
    arguments = parser()
    options = arguments.parse_args(argv)
    try:
        cases = chosen(options.cases, options.quick)
        rivals = _rivals(options.rivals, options.quick)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
    except (ValueError, RuntimeError) as mistake:
        arguments.error(str(mistake))
    if options.budget is not None and not 0 < options.budget < math.inf:
        arguments.error(f"--budget must be a number of seconds above 0, got {options.budget}")
    for path in filter(None, (options.json, options.markdown)):
        if not path.parent.is_dir():
            arguments.error(f"there is no folder {path.parent} to write {path.name} into")
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    warnings.filterwarnings("ignore", module="kan|inkan")  # other packages' affairs
    settle_allocator()
    about = describe()
    console.print(report.place(about), style="dim")

    budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    patience = QUICK_PATIENCE if options.quick else PATIENCE
    results = _run(cases, rivals, budget, patience, console)
    console.print(report.LEGEND, style="dim")
    if options.json:
        settings = {"budget": budget, "quick": options.quick}
        options.json.write_text(json.dumps(report.as_json(results, about, settings), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown(results, about))
    ours = [row for result in results for row in result.rows if row.rival.startswith("fastkan")]
    return int(any(row.note is not None for row in ours if "compile" not in row.rival))


def _run(cases: list[Case], rivals: list[Rival], budget: float, patience: float, console: Console) -> list[CaseResult]:
    results = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        bar = progress.add_task("", total=len(cases))
        for number, case in enumerate(cases):

            def tick(doing: str, share: float, name: str = case.name, done: int = number) -> None:
                progress.update(bar, completed=done + share, description=f"{name}: {doing}")

            results.append(run_case(case, rivals, budget, patience, tick))
            progress.console.print(report.table(results[-1]))
    return results


def _rivals(patterns: list[str] | None, quick: bool) -> list[Rival]:
    for pattern in patterns or ():
        if not any(pattern in rival.name for rival in RIVALS):
            raise ValueError(f"no rival is named like {pattern!r}; there are {', '.join(r.name for r in RIVALS)}")
    if patterns:
        return [rival for rival in RIVALS if rival.anchor or any(part in rival.name for part in patterns)]
    return [rival for rival in RIVALS if not (quick and rival.compiled)]


if __name__ == "__main__":
    sys.exit(main())
