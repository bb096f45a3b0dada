"""``python -m bench --gpu OUT --plan``: what the stages would do, and about how long; found without a GPU.

What dominates is compiling. Builds are counted from the launches themselves (:mod:`bench.gpu.needed`); seconds of one
build and of one result are estimates, and the only numbers here that are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from . import hazard, needed, parts, sanitizer, speed, suite, tune
from .rows import Row, measured
from .stages import SHARES, share

BUILD_SECONDS = 1.6  # on one core; python -m bench.gpu.ahead says what it is
START_SECONDS = 5.0  # of a stage: its process, its CUDA context
RIVAL_SECONDS = 40.0  # of torch.compile, forward and backward of a layer


class Expected(NamedTuple):
    """Of a stage."""

    stage: str
    items: int
    builds: int | None  # that no stage before it has made; None if not known
    compiling: float
    running: float

    @property
    def seconds(self) -> float:
        return START_SECONDS + self.compiling + self.running


def expected(stages: Sequence[str], patterns: list[str] | None, workers: int) -> list[Expected]:
    """Each stage, with nothing compiled before."""
    made: set[tuple] = set()
    found = []
    for stage in stages:
        items, launches = needed.of_stage(stage, patterns)
        builds: int | None = len(launches.keys() - made)
        made |= launches.keys()
        count = len(items)
        compiling = BUILD_SECONDS * (builds or 0) / max(1, workers)
        if stage == "tests":
            count, builds = len(suite.test_files()), None
            running = 0.0
        elif stage == "hazard":
            running = count * hazard.MIN_SECONDS
        elif stage == "speed":
            compiling = _compiling(builds or 0, items, workers)
            running = sum(speed.expected_seconds(item) for item in items)
        elif stage == "tune":
            running = count * tune.RESERVE
        elif stage == "parts":
            count, builds = len(parts.subjects(False)), parts.count_builds()
            compiling, running = BUILD_SECONDS * builds / max(1, workers), count * parts.SECONDS
        else:
            running = len(sanitizer.TOOLS) * sanitizer.EXPECTED_SECONDS
        found.append(Expected(stage, count, builds, compiling, running))
    return found


def show(console: Console, stages: list[str], total: float, patterns: list[str] | None, workers: int) -> None:
    """As a table."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    view.title = f"{total:g} seconds, {workers} processes that compile"
    for heading in ("stage", "things", "new builds", "compiling s", "running s", "whole s", "share s"):
        view.add_column(heading, justify="left" if heading == "stage" else "right")
    for one in expected(stages, patterns, workers):
        unknown = one.builds is None
        view.add_row(
            one.stage,
            f"{one.items} files" if unknown else str(one.items),
            "-" if unknown else str(one.builds),
            *(["-"] * 3 if unknown else [f"{s:.0f}" for s in (one.compiling, one.running, one.seconds)]),
            f"{share(one.stage, stages, total * _rest(one.stage, stages)):.0f}",
        )
    console.print(view, highlight=False)
    if "speed" in stages:
        console.print(f"speed: what the bars ask for takes {_first(workers):.0f} s of it, and comes first")
    console.print(
        "Nothing of this was measured: builds are counted, seconds are guessed. What a stage leaves of its share goes "
        "to those after it; what has no time is left out by name, and --resume goes on with it. Nothing is compiled "
        "there if python -m bench.gpu.ahead has done it.",
        style="dim", highlight=False,
    )  # fmt: skip


def _first(workers: int) -> float:
    """Seconds until the speed stage has measured what the bars ask for."""
    first = speed.batches(measured(False))[0]
    with needed.launches() as found:
        for item in first:
            needed.touch_one(item)
    return START_SECONDS + _compiling(len(found), first, workers) + sum(speed.expected_seconds(item) for item in first)


def _compiling(builds: int, items: Sequence[Any], workers: int) -> float:
    """Of kernels side by side, then of rivals a few at a time."""
    rivals = sum(isinstance(item, Row) and item.rivals for item in items) * len(speed.COMPILED)
    waves = math.ceil(rivals / min(workers, speed.MAX_COMPILING)) if workers else rivals
    return BUILD_SECONDS * builds / max(1, workers) + RIVAL_SECONDS * waves


def _rest(stage: str, stages: list[str]) -> float:
    """Share of the whole that is left when a stage begins, if those before it took theirs."""
    after = stages[stages.index(stage) :]
    return sum(SHARES[name] for name in after) / sum(SHARES[name] for name in stages)
