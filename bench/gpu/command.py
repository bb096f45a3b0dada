"""The command line of ``python -m bench --gpu``: the stages, one after another, and their tables at the end."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from . import join, plan, tables, warm
from .place import Place, about, in_words
from .stages import STAGES, Options, path_of, read, run_apart, run_stage, share

TOTAL = 540.0  # for all stages
REHEARSED_SECONDS = 60.0  # for each
WIDTH = 120


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        "python -m bench --gpu",
        description="Prove and measure the Triton kernels on this machine's GPU; bench/gpu/README.md tells more. "
        "Returns 1 if a number is wrong or a test fails.",
    )
    arguments.add_argument(
        "--gpu", type=Path, required=True, metavar="OUT", help="folder for a JSON file of each stage"
    )
    arguments.add_argument("--only", nargs="+", choices=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}")
    arguments.add_argument("--cases", nargs="+", metavar="PART", help="only what has such a part in its name")
    times = arguments.add_mutually_exclusive_group()
    times.add_argument(
        "--total", type=float, metavar="SECONDS", help=f"for all stages together, shared by worth (default {TOTAL:g})"
    )
    times.add_argument("--seconds", type=float, help="for each stage instead")
    arguments.add_argument(
        "--resume", type=Path, nargs="+", metavar="EARLIER", help="folders of earlier runs on such a GPU: what they "
        "have is not done again"
    )  # fmt: skip
    arguments.add_argument(
        "--plan", action="store_true", help="do nothing, and say what would be done, with how many builds of kernels "
        "and about how long (needs no GPU)"
    )  # fmt: skip
    arguments.add_argument("--workers", type=int, help="processes that compile side by side (default: by cores)")
    arguments.add_argument("--backend", default="triton", help="what is proved and measured (default triton)")
    arguments.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"],
        help="cpu rehearses all but the sanitizer at tiny sizes; its times mean nothing (set TRITON_INTERPRET=1)",
    )  # fmt: skip
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the stages, print what they found. Returns 1 if anything failed, else 0."""
    began = time.monotonic()
    arguments = parser()
    given = arguments.parse_args(argv)
    place = Place(torch.device(given.device), given.backend)
    rehearsal = not place.is_gpu
    for name in ("total", "seconds"):
        asked = getattr(given, name)
        if asked is not None and not 0 < asked < math.inf:
            arguments.error(f"--{name} must be a number above 0, got {asked}")
    if given.workers is not None and given.workers < 0:
        arguments.error(f"--workers must be 0 or more, got {given.workers}")
    stages = [name for name in STAGES if not given.only or name in given.only]
    total = given.total or (given.seconds or (REHEARSED_SECONDS if rehearsal else 0.0)) * len(stages) or TOTAL
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    if given.plan:
        plan.show(console, stages, total, given.cases, warm.workers(given.workers))
        return 0
    reason = place.unable()
    if reason is not None:
        arguments.error(reason)
    try:
        earlier = [join.read(folder) for folder in given.resume or ()]
        if given.gpu.resolve() in [folder.resolve() for folder in given.resume or ()]:
            raise ValueError(f"--resume takes folders of earlier runs, not that of this one, {given.gpu}")
        _check(earlier, place)
    except ValueError as mistake:
        arguments.error(str(mistake))
    given.gpu.mkdir(parents=True, exist_ok=True)
    workers = 0 if rehearsal and given.workers is None else warm.workers(given.workers)
    options = Options(given.gpu, place, given.cases, workers, join.done(join.joined(earlier)))
    for name in stages:
        path_of(name, options).unlink(missing_ok=True)  # of another run

    codes = []
    for name in stages:
        left = max(1.0, total - (time.monotonic() - began))
        seconds = total / len(stages) if given.seconds or (rehearsal and not given.total) else share(name, stages, left)
        run = run_apart if len(stages) > 1 else _alone
        codes.append(run(name, options, seconds))
    found = {name: read(name, options) for name in stages}
    shown = join.joined([*earlier, found])
    console.print(in_words(about(place)), style="dim", highlight=False)
    tables.show(console, {name: shown[name] for name in STAGES if name in shown})
    return int(any(codes) or any(data["failures"] for data in found.values()))


def _alone(name: str, options: Options, seconds: float) -> int:
    return run_stage(name, options, time.time() + seconds)


def _check(earlier: list[join.Run], place: Place) -> None:
    """Raises a ValueError if figures of this run could not stand beside those of the earlier ones."""
    if not earlier:
        return
    here = {**about(place), "stage": "this run"}
    problem = join.mismatch([*(stage for run in earlier for stage in run.values()), here])
    if problem is not None:
        raise ValueError(f"--resume: {problem}")
