"""Timing side by side: A B C, B C A, C A B, ... in one run, so that what disturbs one disturbs all.

A ratio is taken within each round and its median over the rounds; the medians of two runs, divided,
would compare different weather.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from .machine import OtherWork

SAMPLE_SECONDS = 10e-3  # quick calls are made back to back for this long, as in training, where caches are warm
MAX_CALLS = 20
WARM_BELOW = 0.1  # seconds; to a longer call it is no matter what the caches hold when it starts
MIN_ROUNDS = 3
MAX_ROUNDS = 200
LAP = 0.3  # seconds; the shortest time over which others' work can be told from rounding
SPARE = 1.0
MAX_OVER = 3.0  # times the budget, after which rounds end though the machine has become slower
MAX_OTHERS = 0.15  # of the processor, that others may take from a round that counts


class Task(NamedTuple):
    """Something to time: ``call`` by the clock, ``between`` off it, after each call."""

    call: Callable[[], object]
    between: Callable[[], None] = lambda: None


class Spread(NamedTuple):
    """Median and quartiles of samples, one for each of ``rounds``."""

    median: float
    low: float
    high: float
    rounds: int


Samples = list["float | None"]  # for each round, or None where the task sat it out


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(statistics.median(samples), low, high, len(samples))


def times(samples: Samples) -> Spread:
    """Of the seconds of one task."""
    return spread([s for s in samples if s is not None])


def ratio(samples: Samples, anchor: Samples) -> Spread | None:
    """Of the ratios within the rounds that both took part in; None if there was none."""
    pairs = [s / a for s, a in zip(samples, anchor) if s is not None and a is not None]
    return spread(pairs) if pairs else None


def seconds(task: Task) -> float:
    """One call."""
    start = time.perf_counter()
    task.call()
    taken = time.perf_counter() - start
    task.between()
    return taken


class Run(NamedTuple):
    """What :func:`interleaved` found, and what share of the processor others had meanwhile, if known."""

    samples: dict[str, Samples]
    others: float | None


def interleaved(
    tasks: Mapping[str, Task],
    budget: float,
    anchors: Sequence[str] = (),
    tick: Callable[[float], None] = lambda share: None,
) -> Run:
    """Time all tasks in turn, the order rotated by one each round.

    Rounds in which other processes took much of the processor are thrown away and taken again, while
    there is time: ``SPARE`` times the budget for all of them.

    Args:
        tasks: warm already: compiled, and called at least once.
        budget: about how many seconds it may take. Each task has an equal share; one that is too
            slow for all rounds sits some out, evenly, but gets at least ``MIN_ROUNDS``.
        anchors: tasks that take part in every round.
        tick: told what share of the rounds is done.
    """
    names = list(tasks)
    estimate = {name: _estimate(task) for name, task in tasks.items()}
    calls = {n: max(1, min(MAX_CALLS, int(SAMPLE_SECONDS / estimate[n]))) for n in names}
    share = budget / max(1, len(names))
    turns = {n: max(MIN_ROUNDS, min(MAX_ROUNDS, int(share / (calls[n] * estimate[n])))) for n in names}
    rounds = min(turns[n] for n in anchors) if anchors else max(turns.values())
    turns = {n: min(turns[n], rounds) for n in names}

    def one_round(number: int) -> dict[str, float | None]:
        found: dict[str, float | None] = dict.fromkeys(names)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if (number + 1) * turns[name] // rounds > number * turns[name] // rounds:
                if estimate[name] < WARM_BELOW:  # in training its own last step was before it, not another's
                    seconds(tasks[name])
                found[name] = statistics.median([seconds(tasks[name]) for _ in range(calls[name])])
        gc.collect()
        return found

    kept: list[dict[str, float | None]] = []
    lap: list[dict[str, float | None]] = []
    spare, disturbed = SPARE * budget, 0.0
    latest = time.perf_counter() + MAX_OVER * budget

    def enough() -> bool:
        each = all(sum(found[name] is not None for found in kept) >= MIN_ROUNDS for name in names)
        return len(kept) >= rounds or (each and time.perf_counter() > latest)

    with quiet():
        watch = OtherWork()
        while not enough():
            lap.append(one_round(len(kept) + len(lap)))
            if watch.seconds() < LAP and len(kept) + len(lap) < rounds:
                continue
            others = watch.share()
            if others is not None and others > MAX_OTHERS and spare > 0:
                spare -= watch.seconds()
            else:
                disturbed += (others or 0.0) * len(lap)
                kept += lap
                tick(len(kept) / rounds)
            lap, watch = [], OtherWork()
    samples = {name: [found[name] for found in kept] for name in names}
    return Run(samples, None if others is None else disturbed / len(kept))


def _estimate(task: Task) -> float:
    first = seconds(task)
    return first if first > LAP else min(first, seconds(task), seconds(task))


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection but what is asked for, and then only of what came since."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
