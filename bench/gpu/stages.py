"""The stages, each in a process of its own and within its share of the time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from . import hazard, parts, sanitizer, speed, suite, tune, warm
from .place import Place, about
from .record import Record

STAGES = {
    "tests": suite.run,
    "hazard": hazard.run,
    "speed": speed.run,
    "tune": tune.run,
    "parts": parts.run,
    "sanitizer": sanitizer.run,
}
# of the time, by worth; what a stage leaves goes to those after it
SHARES = {"tests": 0.20, "hazard": 0.17, "speed": 0.33, "tune": 0.16, "parts": 0.08, "sanitizer": 0.06}
LAST_WORDS, REHEARSED_WORDS = 10.0, 60.0  # seconds after a stage's time, when it is stopped


class Options(NamedTuple):
    """What a stage is asked; can be sent to another process.

    Args:
        before: names of results that earlier runs have, for each stage.
    """

    out: Path
    place: Place
    patterns: list[str] | None
    workers: int
    before: dict[str, list[str]]


def share(name: str, stages: Collection[str], left: float) -> float:
    """Seconds of the stage ``name``, when it and those after it have ``left``."""
    after = list(stages)[list(stages).index(name) :]
    return left * SHARES[name] / sum(SHARES[stage] for stage in after)


def run_stage(name: str, options: Options, ends: float) -> int:
    """One stage in this process, until ``ends`` on the wall clock. Returns 1 if anything failed, else 0."""

    def say(line: str) -> None:
        print(f"[{name}] {line}", flush=True)

    seconds = ends - time.time()
    settings = {"seconds": round(seconds, 1), "cases": options.patterns, "workers": options.workers}
    before = options.before.get(name, ())
    record = Record(path_of(name, options), name, about(options.place), settings, seconds, say, before)
    try:
        STAGES[name](record, options.place, options.patterns, options.workers)
    except Exception as failure:  # the other stages still run
        record.fail(f"{name}: {type(failure).__name__}: {failure}"[:500])
    if not (record.results or record.notes or record.failures or record.left_out):
        record.fail(f"{name}: nothing was done")
    record.save()
    return int(bool(record.failures))


def run_apart(name: str, options: Options, seconds: float) -> int:
    """One stage in a process of its own: after an error of the GPU nothing works in the same one."""
    process = warm.context().Process(target=_exit_with, args=(name, options, time.time() + seconds))
    process.start()
    words = LAST_WORDS if options.place.is_gpu else REHEARSED_WORDS  # the interpreter is slow
    process.join(seconds + words)
    if process.exitcode is None:
        process.kill()
        process.join()
        _say_stopped(name, options, words)
    return 0 if process.exitcode == 0 else 1


def _say_stopped(name: str, options: Options, words: float) -> None:
    """In the stage's file: on a GPU nothing takes that long by itself."""
    data = read(name, options)
    last = f"after {data['results'][-1].get('name')}" if data["results"] else "before its first result"
    data["failures"].append(f"{name}: stopped {words:g} s after its time, {last}: something hangs, or is slow")
    path_of(name, options).write_text(json.dumps(data, indent=1) + "\n")


def path_of(name: str, options: Options) -> Path:
    """Of a stage's results."""
    return options.out / f"{name}.json"


def read(name: str, options: Options) -> dict:
    """A stage's file; a failure if its process left none."""
    path = path_of(name, options)
    if not path.exists():
        failure = f"{name}: its process ended without a result"
        return {"stage": name, "failures": [failure], "left_out": [], "notes": [], "results": [], "seconds": 0}
    return json.loads(path.read_text())


def _exit_with(name: str, options: Options, ends: float) -> None:
    sys.stdout.flush()
    code = run_stage(name, options, ends)
    sys.stdout.flush()
    os._exit(code) if options.place.is_gpu else sys.exit(code)  # no waiting for what the GPU still holds
