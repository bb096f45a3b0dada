"""``python -m bench.codegen``: compile every shipped kernel for GPUs that needn't be there, and check the code.

Fails on registers overwritten in flight, spills, too much shared memory, missing tensor core instructions,
minima and maxima that lose a NaN, and products that ptxas serialised though they were to overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .judge import Verdict
from .run import CAPABILITIES, listed, run

MODULE = "fastkan_kernels.backends.triton.builds"
CANDIDATES = "bench.codegen.candidates"
WIDTH = 190  # of the table, where there is no terminal to fit


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser("python -m bench.codegen", description=__doc__)
    arguments.add_argument("--capability", type=int, choices=CAPABILITIES, help="of one GPU; default: both")
    arguments.add_argument("--only", nargs="+", metavar="PART", help="only builds with such a part in their names")
    arguments.add_argument("--sample", action="store_true", help="a few builds: every kernel, dtype and form")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    arguments.add_argument("--markdown", type=Path, metavar="FILE", help="write a summary")
    arguments.add_argument("--keep", type=Path, metavar="DIR", help="write each build's PTX, machine code and log")
    arguments.add_argument("--jobs", type=int, default=_processors(), metavar="N", help="processes (default: all)")
    arguments.add_argument("--candidates", action="store_true", help="instead, all that the stage tune would time")
    arguments.add_argument("--builds", default=MODULE, metavar="MODULE", help=f"that lists them (default: {MODULE})")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Compile, print, write. Returns 1 if a build fails, 2 if none could be compiled, else 0."""
    arguments = parser()
    options = arguments.parse_args(argv)
    if options.candidates:
        options.builds = CANDIDATES
    for path in filter(None, (options.json, options.markdown)):
        if not path.parent.is_dir():
            arguments.error(f"there is no folder {path.parent} to write {path.name} into")
    if options.jobs < 1:
        arguments.error(f"--jobs must be at least 1, got {options.jobs}")
    if reason := _unable():
        print(reason, file=sys.stderr)
        return 2
    capabilities = [options.capability] if options.capability else list(CAPABILITIES)
    names = [
        build.name
        for build in listed(options.builds, capabilities, options.sample)
        if not options.only or any(part in build.name for part in options.only)
    ]
    if not names:
        arguments.error(f"no build is named like {' or '.join(map(repr, options.only or ['']))}")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    about = report.about(capabilities)
    console.print(report.place(about), style="dim")
    verdicts = _run(options, names, console)
    _print(verdicts, console)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(verdicts, about), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown(verdicts, about))
    return int(not all(verdict.passed for verdict in verdicts))


def _run(options: argparse.Namespace, names: list[str], console: Console) -> list[Verdict]:
    with (
        tempfile.TemporaryDirectory() as cache,
        Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True,
        ) as progress,
    ):  # fmt: skip
        bar = progress.add_task("compile", total=len(names))

        def done(verdict: Verdict) -> None:
            progress.update(bar, advance=1, description=verdict.name)

        return run(options.builds, names, cache, options.jobs, options.keep, options.sample, done)


def _print(verdicts: list[Verdict], console: Console) -> None:
    console.print(report.table(verdicts))
    console.print(report.LEGEND, style="dim")
    for line in report.failures(verdicts):
        console.print(line, style="red", highlight=False, markup=False)
    passed = sum(verdict.passed for verdict in verdicts)
    console.print(f"{passed} of {len(verdicts)} builds pass every check", style="bold")


def _unable() -> str | None:
    """Why nothing can be compiled here, or None."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        return "TRITON_INTERPRET is set: kernels would be interpreted, not compiled; unset it"
    return None


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
