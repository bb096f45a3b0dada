"""Timing of several tasks in turns, by CUDA events and from a cold cache.

As in :mod:`bench.measure`, the tasks take turns, and the times of a round are divided only by times of the same round.
Before each sample, a buffer larger than the L2 cache is overwritten for as long as the CPU takes to launch the task.
The operands are therefore not in the cache, and the GPU does not wait for launches.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping

import torch

from ..measure import Samples, Task, quiet, rotated, seconds
from .machine import Place

MIN_ROUNDS, MAX_ROUNDS, REHEARSED_ROUNDS = 7, 60, 2
FLUSHES = 4  # size of the overwritten buffer as a multiple of the L2 cache
# time for which the buffer is overwritten before a sample, as a multiple of the time to launch the task
HEAD_START = 1.5
MAX_FLUSHES = 200
CALLS_IN_A_ROW = 10


class Clock:
    """A clock for tasks on a GPU. In a rehearsal on a CPU, the wall clock is used."""

    def __init__(self, place: Place) -> None:
        self._place = place
        if place.is_gpu:
            size = FLUSHES * torch.cuda.get_device_properties(place.device).L2_cache_size
            self._lines = torch.empty(size, dtype=torch.uint8, device=place.device)
            self._lines.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(10):
                self._lines.zero_()
            end.record()
            torch.cuda.synchronize()
            self._flush_seconds = start.elapsed_time(end) * 1e-4

    def interleaved(self, tasks: Mapping[str, Task], budget: float) -> dict[str, Samples]:
        """Return the seconds of each task in each round.

        Args:
            tasks: the tasks, each of which must have run once, so that nothing is left to compile.
            budget: approximate time limit in seconds; at least ``MIN_ROUNDS`` rounds are run.
        """
        names = list(tasks)
        if not self._place.is_gpu:
            rounds = [{name: seconds(tasks[name]) for name in names} for _ in range(REHEARSED_ROUNDS)]
            return {name: [found[name] for found in rounds] for name in names}
        launch, whole = {}, {}
        for name, task in tasks.items():
            launch[name], whole[name] = min((self._cost(task) for _ in range(3)), key=lambda cost: cost[1])
        heads = {
            name: min(MAX_FLUSHES, 1 + math.ceil(HEAD_START * launch[name] / self._flush_seconds)) for name in names
        }
        each = sum(whole[name] + heads[name] * self._flush_seconds for name in names)
        samples: dict[str, Samples] = {name: [] for name in names}
        with quiet():
            for number in range(max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / each)))):
                events = {name: self._sample(tasks[name], heads[name]) for name in rotated(names, number)}
                torch.cuda.synchronize()
                for name, (start, end) in events.items():
                    samples[name].append(start.elapsed_time(end) * 1e-3)
                gc.collect()
        return samples

    def in_a_row(self, task: Task) -> float:
        """Return the mean seconds of a call in a series of successive calls, including the time of launches."""
        self._place.wait()
        start = time.perf_counter()
        calls = CALLS_IN_A_ROW if self._place.is_gpu else 1
        for _ in range(calls):
            task.call()
            task.between()
        self._place.wait()
        return (time.perf_counter() - start) / calls

    def _sample(self, task: Task, flushes: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(flushes):
            self._lines.zero_()
        start.record()
        task.call()
        end.record()
        task.between()
        return start, end

    def _cost(self, task: Task) -> tuple[float, float]:
        """Return a tuple of the seconds until a call returns, and the seconds until the GPU has finished its work."""
        self._place.wait()
        start = time.perf_counter()
        task.call()
        launched = time.perf_counter() - start
        self._place.wait()
        done = time.perf_counter() - start
        task.between()
        return launched, done
