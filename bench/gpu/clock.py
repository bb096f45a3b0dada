"""Timing on a GPU by its own events, from cold caches, side by side.

As in :mod:`bench.measure`, tasks take turns and a ratio is taken within a round. Before each sample a
buffer larger than the L2 cache is overwritten, as often as it takes the processor to launch the task:
so the GPU finds neither its operands in the cache nor itself waiting for the next launch.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..measure import Samples, Task, quiet
from ..measure import seconds as by_the_clock
from .place import Place, cache_bytes

MAX_ROUNDS = 60
MIN_ROUNDS = 7
REHEARSED_ROUNDS = 2
FLUSHES = 4  # times the L2 cache is what a flush writes
HEAD_START = 1.5  # times what launching was seen to take
MAX_FLUSHES = 200
CALLS_IN_A_ROW = 10


class Cost(NamedTuple):
    """Of one call, in seconds: until it was launched, and until it was done."""

    launch: float
    whole: float


class Clock:
    """Times tasks on the device of ``place``; on a CPU by the wall clock."""

    def __init__(self, place: Place) -> None:
        self._place = place
        if place.is_gpu:
            self._lines = torch.empty(FLUSHES * cache_bytes(place.device), dtype=torch.uint8, device=place.device)
            self._flush_seconds = self._flush_cost()

    def interleaved(self, tasks: Mapping[str, Task], seconds: float, warm: bool = False) -> dict[str, Samples]:
        """Seconds of each task in each round; the order is rotated by one from round to round.

        Args:
            tasks: called before, so that nothing is left to compile.
            seconds: about how long it may take; there are ``MIN_ROUNDS`` however short that is.
            warm: let each sample follow a call of the same task, instead of cold caches.
        """
        names = list(tasks)
        costs = {name: self._cost(task) for name, task in tasks.items()}
        if self._place.is_gpu:
            heads = {name: self._head(cost.launch * (2 if warm else 1)) for name, cost in costs.items()}
            each = sum((1 + warm) * costs[n].whole + heads[n] * self._flush_seconds for n in names)
            rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / each)))
        else:
            heads, rounds = {}, REHEARSED_ROUNDS
        samples: dict[str, Samples] = {name: [] for name in names}
        with quiet():
            for number in range(rounds):
                first = number % len(names)
                order = names[first:] + names[:first]
                taken = self._gpu_round(order, tasks, heads, warm) if heads else self._cpu_round(order, tasks)
                for name in names:
                    samples[name].append(taken[name])
                gc.collect()
        return samples

    def in_a_row(self, task: Task) -> float:
        """Seconds of a call among calls one after another, as a program makes them: launches count."""
        self._place.wait()
        start = time.perf_counter()
        calls = CALLS_IN_A_ROW if self._place.is_gpu else 1
        for _ in range(calls):
            task.call()
            task.between()
        self._place.wait()
        return (time.perf_counter() - start) / calls

    def _gpu_round(
        self, order: list[str], tasks: Mapping[str, Task], heads: dict[str, int], warm: bool
    ) -> dict[str, float]:
        events = {}
        for name in order:
            task = tasks[name]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(heads[name]):
                self._lines.zero_()
            if warm:
                task.call()
                task.between()
            start.record()
            task.call()
            end.record()
            task.between()
            events[name] = start, end
        torch.cuda.synchronize()
        return {name: start.elapsed_time(end) * 1e-3 for name, (start, end) in events.items()}

    @staticmethod
    def _cpu_round(order: list[str], tasks: Mapping[str, Task]) -> dict[str, float]:
        return {name: by_the_clock(tasks[name]) for name in order}

    def _cost(self, task: Task) -> Cost:
        found = []
        for _ in range(3 if self._place.is_gpu else 1):
            self._place.wait()
            start = time.perf_counter()
            task.call()
            launched = time.perf_counter()
            self._place.wait()
            found.append(Cost(launched - start, time.perf_counter() - start))
            task.between()
        return min(found, key=lambda cost: cost.whole)

    def _head(self, launch: float) -> int:
        return min(MAX_FLUSHES, 1 + math.ceil(HEAD_START * launch / self._flush_seconds))

    def _flush_cost(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._lines.zero_()
        start.record()
        for _ in range(10):
            self._lines.zero_()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e-4
