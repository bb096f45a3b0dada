"""Timing of functions on a GPU by CUDA events, with the operands not in the L2 cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

FLUSHES = 4  # size of the buffer that is overwritten before each sample, in multiples of the size of the L2 cache
MIN_ROUNDS, MAX_ROUNDS = 5, 50
MAX_HEADS = 50  # maximum number of times that the buffer is overwritten before a sample
Name = TypeVar("Name", bound=Hashable)


def seconds_on_gpu(tasks: Mapping[Name, Callable[[], object]], seconds: float) -> dict[Name, float]:
    """Return the median time of each task in seconds, on the current GPU and stream.

    Each round times every task once, and successive rounds begin with a different task. Before each sample, a buffer
    larger than the L2 cache is overwritten, so that the operands are not in the cache. The buffer is overwritten
    repeatedly for as long as the CPU takes to launch the task, so that the GPU does not wait for the launch.

    Args:
        tasks: functions without arguments. Each function is called twice before it is timed.
        seconds: approximate time limit for all tasks together; at least ``MIN_ROUNDS`` rounds are run.
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
    """Time one call of a task in seconds, after a first call that compiles the kernels.

    Returns:
        A tuple of the time until the call has returned, and the time until the GPU has finished the work.
    """
    task()
    torch.cuda.current_stream().synchronize()
    start = time.perf_counter()
    task()
    launched = time.perf_counter()
    torch.cuda.current_stream().synchronize()
    return launched - start, time.perf_counter() - start
