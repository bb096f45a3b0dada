"""``python -m bench.claims``: tests of published claims about KANs, as results, pictures and one page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from ..records import RESULTS, Record, Result, describe, write
from ..report import console as make_console
from ..report import show
from . import equations, extension, forgetting, formulas, pde, scaling, speed, tables, transformers
from .claim import SEEDS, Claim, Effort
from .page import write_page
from .training import HAS_PYKAN

CLAIMS: Sequence[Claim] = (
    pde.CLAIM, forgetting.CLAIM, extension.CLAIM, scaling.CLAIM, equations.CLAIM, formulas.CLAIM, speed.CLAIM,
    transformers.CLAIM, tables.CLAIM,
)  # fmt: skip
QUICK = Effort((0,), 0.01, peers=False)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser("python -m bench.claims", description=(__doc__ or "").splitlines()[0])
    names = [claim.name for claim in CLAIMS]
    made.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    made.add_argument(
        "--quick", action="store_true", help="a check of the code in a minute, whose figures mean nothing"
    )
    made.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, which are counted from 0")
    made.add_argument("--no-peers", action="store_true", help="run without pykan")
    made.add_argument("--out", type=Path, default=RESULTS / "claims", metavar="FOLDER", help="folder of the results")
    made.add_argument("--page", action="store_true", help="run nothing; draw and write the page from the results")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the claims, write their results, and write the page. Return 1 if a claim did not come to its end."""
    options = parser().parse_args(argv)
    console = make_console()
    options.out.mkdir(parents=True, exist_ok=True)
    effort = QUICK if options.quick else Effort(range(options.seeds), 1.0, HAS_PYKAN and not options.no_peers)
    failed = 0
    for claim in [] if options.page else [claim for claim in CLAIMS if claim.name in options.only]:
        try:
            results = _run(claim, effort, options.out / f"{claim.name}.json", console)
            verdict, rows = claim.verdict(results), claim.table(results)
        except Exception:  # of any kind: the other claims still run
            console.print_exception()
            failed = 1
            continue
        show(console, rows, claim.title)
        console.print(f"{claim.statement}\n[bold]{verdict.answer}[/bold]: {verdict.reason}\n", highlight=False)
    console.print(f"written: {write_page(options.out, CLAIMS)}", highlight=False)
    return failed


def _run(claim: Claim, effort: Effort, file: Path, console: Console) -> list[Result]:
    """Run a claim in float64 on one thread.

    The file is written after each result, since a run may be interrupted; the page shows complete ones.
    """
    results: list[Result] = []
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    about, start = describe(), time.process_time()
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(claim.title, total=None)
            for result in claim.run(effort):
                results.append(result)
                words = f"{claim.title}: {result['case']}, {result['contender']}, seed {result['seed']}"
                progress.update(bar, description=words)
                minutes = (time.process_time() - start) / 60
                settings = {"share": effort.share, "seeds": list(effort.seeds), "minutes": minutes}
                write(file, Record(results, about, {**settings, "complete": False}))
        write(file, Record(results, about, {**settings, "complete": True}))
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)
    return results


if __name__ == "__main__":
    sys.exit(main())
