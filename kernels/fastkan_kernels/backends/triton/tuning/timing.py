"""Seconds on a GPU, by its own events, from a cold L2 cache, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

FLUSHES = 4  # times the L2 cache is what a flush writes
MIN_ROUNDS, MAX_ROUNDS = 5, 50
MAX_HEADS = 50
Name = TypeVar("Name", bound=Hashable)


def seconds_on_gpu(tasks: Mapping[Name, Callable[[], object]], seconds: float) -> dict[Name, float]:
    """The median of each task, on the current GPU and stream.

    Tasks take turns, each round begins with another one, and before each sample a buffer larger than the L2 cache is
    overwritten, as often as it takes the processor to launch the task: the GPU finds neither its operands in the
    cache nor itself waiting for a launch.

    Args:
        tasks: called before, so that nothing is left to compile.
        seconds: about how long it may take; there are ``MIN_ROUNDS`` however short that is.
    """
    lines = _lines()
    flush = _wall(lines.zero_)[1]
    costs = {name: _wall(task) for name, task in tasks.items()}
    heads = {name: min(MAX_HEADS, 1 + int(1.5 * launch / flush)) for name, (launch, _) in costs.items()}
    each = sum(whole + heads[name] * flush for name, (_, whole) in costs.items())
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / each)))
    samples: dict[Name, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(rounds):
        events = {}
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(heads[name]):
                lines.zero_()
            start.record()
            tasks[name]()
            end.record()
            events[name] = start, end
        torch.cuda.current_stream().synchronize()
        for name, (start, end) in events.items():
            samples[name].append(1e-3 * start.elapsed_time(end))
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _lines() -> torch.Tensor:
    size = FLUSHES * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def _wall(task: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a warm call: until it was launched, and until it was done."""
    task()
    torch.cuda.current_stream().synchronize()
    start = time.perf_counter()
    task()
    launched = time.perf_counter()
    torch.cuda.current_stream().synchronize()
    return launched - start, time.perf_counter() - start
