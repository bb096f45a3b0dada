"""The command line of ``python -m bench --gpu``: the stages, one after another, and one table at the end."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from . import hazard, sanitizer, speed, suite, tables, tune, warm
from .place import Place, about, in_words
from .record import Record

STAGES = {"tests": suite.run, "hazard": hazard.run, "sanitizer": sanitizer.run, "speed": speed.run, "tune": tune.run}
SECONDS = 450.0  # for each stage
REHEARSED_SECONDS = 60.0
OVERTIME = 90.0  # after which a stage that has not ended is stopped
WIDTH = 120


class Options(NamedTuple):
    """What a stage is asked; can be sent to another process."""

    out: Path
    place: Place
    seconds: float
    patterns: list[str] | None
    workers: int


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        "python -m bench --gpu",
        description="Prove and measure the Triton kernels on this machine's GPU. Returns 1 if a number is wrong or a "
        "test fails.",
    )
    arguments.add_argument(
        "--gpu", type=Path, required=True, metavar="OUT", help="folder for a JSON file of each stage"
    )
    arguments.add_argument("--only", nargs="+", choices=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}")
    arguments.add_argument("--cases", nargs="+", metavar="PART", help="only what has such a part in its name")
    arguments.add_argument("--seconds", type=float, help=f"for each stage (default {SECONDS:g})")
    arguments.add_argument("--workers", type=int, help="processes that compile side by side (default: by cores)")
    arguments.add_argument("--backend", default="triton", help="what is proved and measured (default triton)")
    arguments.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"],
        help="cpu rehearses all but the sanitizer at tiny sizes; its times mean nothing (set TRITON_INTERPRET=1)",
    )  # fmt: skip
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the stages, print what they found. Returns 1 if anything failed, else 0."""
    arguments = parser()
    given = arguments.parse_args(argv)
    place = Place(torch.device(given.device), given.backend)
    rehearsal = not place.is_gpu
    seconds = given.seconds or (REHEARSED_SECONDS if rehearsal else SECONDS)
    if not 0 < seconds < math.inf:
        arguments.error(f"--seconds must be a number above 0, got {given.seconds}")
    if given.workers is not None and given.workers < 0:
        arguments.error(f"--workers must be 0 or more, got {given.workers}")
    reason = place.unable()
    if reason is not None:
        arguments.error(reason)
    given.gpu.mkdir(parents=True, exist_ok=True)
    workers = 0 if rehearsal and given.workers is None else warm.workers(given.workers)
    options = Options(given.gpu, place, seconds, given.cases, workers)
    stages = [name for name in STAGES if not given.only or name in given.only]
    for name in stages:
        path_of(name, options).unlink(missing_ok=True)  # of another run

    codes = [_run_apart(name, options) if len(stages) > 1 else run_stage(name, options) for name in stages]
    found = {name: _read(name, options) for name in stages}
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(in_words(about(place)), style="dim", highlight=False)
    tables.show(console, found)
    return int(any(codes) or any(data["failures"] for data in found.values()))


def run_stage(name: str, options: Options) -> int:
    """One stage in this process. Returns 1 if anything failed, else 0."""
    settings = {"seconds": options.seconds, "cases": options.patterns, "workers": options.workers}

    def say(line: str) -> None:
        print(f"[{name}] {line}", flush=True)

    record = Record(path_of(name, options), name, about(options.place), settings, options.seconds, say)
    try:
        STAGES[name](record, options.place, options.patterns, options.workers)
    except Exception as failure:  # the other stages still run
        record.fail(f"{name}: {type(failure).__name__}: {failure}"[:500])
    if not record.results and not record.notes and not record.failures:
        record.fail(f"{name}: nothing was done")
    record.save()
    return int(bool(record.failures))


def path_of(name: str, options: Options) -> Path:
    """Of a stage's results."""
    return options.out / f"{name}.json"


def _run_apart(name: str, options: Options) -> int:
    """One stage in a process of its own: after an error of the GPU nothing works in the same one."""
    process = multiprocessing.get_context("spawn").Process(target=_exit_with, args=(name, options))
    process.start()
    process.join(options.seconds + OVERTIME)
    if process.exitcode is None:
        process.kill()
        process.join()
    return 0 if process.exitcode == 0 else 1


def _exit_with(name: str, options: Options) -> None:
    sys.exit(run_stage(name, options))


def _read(name: str, options: Options) -> dict:
    """A stage's file; a failure if its process left none, or was stopped."""
    path = path_of(name, options)
    if not path.exists():
        return {
            "failures": [f"{name}: its process ended without a result"],
            "left_out": [],
            "results": [],
            "seconds": 0,
        }
    return json.loads(path.read_text())
