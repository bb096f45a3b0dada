"""``python -m bench.codegen``: compile every kernel on a machine without a GPU, and check the machine code.

A check fails if registers of a running matrix product are overwritten, if registers are spilled, if shared memory is
exceeded, if tensor core instructions are missing, if a minimum or maximum drops a NaN, or if ptxas serialised products
that must overlap with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich.progress import track

from ..report import console, show
from . import report
from .compile import CAPABILITIES, each, listed
from .judge import checked, failed

MODULE = "fastkan_kernels.backends.triton.builds"
WIDTH = 190  # width of the table in a file


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser("python -m bench.codegen", description=__doc__)
    arguments.add_argument("--capability", type=int, choices=CAPABILITIES, help="of one GPU; default: both")
    arguments.add_argument("--only", nargs="+", metavar="PART", help="only builds whose names contain a part")
    arguments.add_argument("--sample", action="store_true", help="a few builds: every kernel, dtype and form")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    arguments.add_argument("--markdown", type=Path, metavar="FILE", help="write a summary")
    arguments.add_argument("--keep", type=Path, metavar="DIR", help="write each build's PTX, machine code and log")
    arguments.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all)"
    )
    words = f"that lists the builds (default: {MODULE}; bench.gpu.ahead lists all that are tuned for the bars)"
    arguments.add_argument("--builds", default=MODULE, metavar="MODULE", help=words)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Compile and check the builds, print a table and write the report.

    Return 1 if a build fails, 2 if no build could be compiled, and otherwise 0.
    """
    arguments = parser()
    options = arguments.parse_args(argv)
    for path in filter(None, (options.json, options.markdown)):
        if not path.absolute().parent.is_dir():
            arguments.error(f"there is no folder {path.parent} to write {path.name} into")
    if options.jobs < 1:
        arguments.error(f"--jobs must be at least 1, got {options.jobs}")
    if reason := unable():
        print(reason, file=sys.stderr)
        return 2
    capabilities = [options.capability] if options.capability else list(CAPABILITIES)
    builds = {
        build.name: build
        for build in listed(options.builds, capabilities, options.sample)
        if not options.only or any(part in build.name for part in options.only)
    }
    if not builds:
        arguments.error(f"no build is named like {' or '.join(map(repr, options.only or ['']))}")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    view, about = console(WIDTH), report.about(capabilities)
    view.print(report.place(about), style="dim")
    with tempfile.TemporaryDirectory() as cache:
        work = partial(checked, keep=options.keep)
        coming: Iterable = each(
            work, options.builds, list(builds), Path(cache), options.jobs, sample=options.sample, anew=True
        )
        found = dict(track(coming, "compile", len(builds), console=view, transient=True))
    verdicts = [found[name] or failed(build, "compile", "it crashed") for name, build in builds.items()]
    show(view, report.table(verdicts), notes=report.LEGEND)
    for line in report.failures(verdicts):
        view.print(line, style="red", highlight=False, markup=False)
    view.print(
        f"{sum(verdict.passed for verdict in verdicts)} of {len(verdicts)} builds pass every check", style="bold"
    )
    if options.json:
        options.json.write_text(json.dumps(report.as_json(verdicts, about), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.page(verdicts, about))
    return int(not all(verdict.passed for verdict in verdicts))


def unable() -> str | None:
    """Return the reason why the current process cannot compile kernels, or None if it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        return "TRITON_INTERPRET is set: kernels would be interpreted, not compiled; unset it"
    return None


if __name__ == "__main__":
    sys.exit(main())
