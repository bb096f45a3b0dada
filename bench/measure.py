"""Time, memory and load of the machine.

Tasks are timed in turns, A B C, B C A, C A B, in one run, so that a disturbance reaches all of them. A ratio is taken
within each round, and reported as the median over the rounds; medians of separate runs can't be divided.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch
from torch.autograd.profiler import profile

SAMPLE_SECONDS = 10e-3  # quick calls are repeated for this long in each round, so that caches are warm as in training
MAX_CALLS = 20
WARM_BELOW = 0.1  # seconds; the caches' state before a longer call makes no difference
MIN_ROUNDS = 3
MAX_ROUNDS = 200
LAP = 0.3  # seconds; over a shorter time the load of other processes can't be told from rounding
SPARE = 1.0  # times the budget, for repeating disturbed rounds
MAX_OVER = 3.0  # times the budget, after which rounds end even if the machine has become slower
MAX_LOAD = 0.15  # share of the processor that other processes may take in a round that counts
BUSY = 0.05  # load above which a table says so


class Task(NamedTuple):
    """A timed ``call``, and ``between``, which runs untimed after each call."""

    call: Callable[[], object]
    between: Callable[[], None] = lambda: None


class Spread(NamedTuple):
    """Median and quartiles of samples, one for each of ``rounds``."""

    median: float
    low: float
    high: float
    rounds: int


Samples = list["float | None"]  # one for each round; None where the task did not take part


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(statistics.median(samples), low, high, len(samples))


def times(samples: Samples) -> Spread:
    """Median and quartiles of the seconds of one task."""
    return spread([s for s in samples if s is not None])


def ratio(samples: Samples, anchor: Samples) -> Spread | None:
    """Ratios within the rounds in which both tasks took part; None if there are none."""
    pairs = [s / a for s, a in zip(samples, anchor) if s is not None and a is not None]
    return spread(pairs) if pairs else None


def timing(samples: Mapping[str, Samples], name: str, anchors: Sequence[str]) -> dict:
    """Seconds of a task and its ratios to the anchors, as a result's fields of these names."""
    found = {anchor: ratio(samples[name], samples[anchor]) for anchor in anchors if anchor in samples}
    ratios = {anchor: list(each) for anchor, each in found.items() if each is not None}
    return {"seconds": list(times(samples[name])), "ratios": ratios}


def seconds(task: Task, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call by a clock."""
    start = clock()
    task.call()
    taken = clock() - start
    task.between()
    return taken


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of round ``number``: each round starts with the next name."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


class Load:
    """Share of the processor that other processes take, from 0 to 1, since this object was made."""

    def __init__(self) -> None:
        self._start, self._own = time.perf_counter(), time.process_time()
        psutil.cpu_percent()  # which counts from its last call

    def seconds(self) -> float:
        """Elapsed time."""
        return time.perf_counter() - self._start

    def share(self) -> float:
        """The share; to be called once."""
        own = (time.process_time() - self._own) / (self.seconds() * (psutil.cpu_count() or 1))
        return max(0.0, psutil.cpu_percent() / 100 - own)


class Run(NamedTuple):
    """Samples of each task, and the load by other processes meanwhile."""

    samples: dict[str, Samples]
    load: float


def interleaved(
    tasks: Mapping[str, Task],
    budget: float,
    anchors: Sequence[str] = (),
    tick: Callable[[float], None] = lambda share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Time all tasks in turns.

    Rounds in which other processes took much of the processor are discarded and repeated, for at most ``SPARE``
    times the budget, unless the clock is that of the processor, which stands still while others compute.

    Args:
        tasks: warm: compiled, and called at least once.
        budget: approximate seconds for all. Each task has an equal share; one that is too slow for all rounds
            takes part in some of them, at even distances, and in ``MIN_ROUNDS`` at least.
        anchors: tasks that take part in every round.
        tick: receives the share of the rounds that is done.
        clock: ``time.perf_counter``, or ``time.process_time`` for tasks that compute in one thread on a busy machine.
    """
    names = list(tasks)
    estimate = {name: _estimate(task, clock) for name, task in tasks.items()}
    calls = {n: max(1, min(MAX_CALLS, int(SAMPLE_SECONDS / estimate[n]))) for n in names}
    share = budget / max(1, len(names))
    turns = {n: max(MIN_ROUNDS, min(MAX_ROUNDS, int(share / (calls[n] * estimate[n])))) for n in names}
    rounds = min(turns[n] for n in anchors) if anchors else max(turns.values())
    turns = {n: min(turns[n], rounds) for n in names}

    def one_round(number: int) -> dict[str, float | None]:
        found: dict[str, float | None] = dict.fromkeys(names)
        for name in rotated(names, number):
            if (number + 1) * turns[name] // rounds > number * turns[name] // rounds:
                if estimate[name] < WARM_BELOW:  # in training, the call before it is of the same network
                    seconds(tasks[name])
                found[name] = statistics.median([seconds(tasks[name], clock) for _ in range(calls[name])])
        gc.collect()
        return found

    done: list[dict[str, float | None]] = []
    lap: list[dict[str, float | None]] = []
    spare, disturbed = SPARE * budget if clock is time.perf_counter else 0.0, 0.0
    latest = time.perf_counter() + MAX_OVER * budget

    def enough() -> bool:
        each = all(sum(found[name] is not None for found in done) >= MIN_ROUNDS for name in names)
        return len(done) >= rounds or (each and time.perf_counter() > latest)

    with quiet():
        load = Load()
        while not enough():
            lap.append(one_round(len(done) + len(lap)))
            if load.seconds() < LAP and len(done) + len(lap) < rounds:
                continue
            elapsed, others = load.seconds(), load.share()
            if others > MAX_LOAD and spare > 0:
                spare -= elapsed
            else:
                disturbed += others * len(lap)
                done += lap
                tick(len(done) / rounds)
            lap, load = [], Load()
    return Run({name: [found[name] for found in done] for name in names}, disturbed / len(done))


def _estimate(task: Task, clock: Callable[[], float]) -> float:
    first = seconds(task, clock)
    return first if first > LAP else min(first, seconds(task, clock), seconds(task, clock))


@contextmanager
def quiet() -> Iterator[None]:
    """Disable automatic garbage collection, and exempt the objects that exist now from explicit collections."""
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


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that ``call`` held at once of its own allocations, its result included.

    PyTorch's profiler counts tensors, also those of compiled code and inside operators; ``tracemalloc`` counts NumPy's
    arrays. Where a call uses both, the two peaks are added, although they may not coincide.
    """
    with profile(profile_memory=True) as record:
        tracemalloc.start()
        try:
            result = call()
            _, arrays = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    del result
    allocations = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in allocations:
        held += event.nbytes()
        peak = max(peak, held)
    return peak + arrays


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of mallopt, from malloc.h
_MAX_MMAP_THRESHOLD = 32 << 20  # glibc's own limit on 64 bits
_NEVER = 2**31 - 1
_ROOM = 512 << 20
_top: list[torch.Tensor] = []


def settle_allocator() -> bool:
    """Put glibc's malloc into the state that it reaches in a long run; return False on another C library.

    It starts by mapping each block above 128 KiB afresh, at a page fault for every 4 KiB; as larger blocks are freed
    it raises that threshold to 32 MiB and reuses freed memory. So the time of a network would depend on what others
    had freed before it: by half, for tensors of a few MiB. This sets the highest threshold and frees one large
    range at once, from which later blocks come.
    """
    if _top:
        return True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    if not (mallopt(_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _NEVER)):
        return False
    size = _MAX_MMAP_THRESHOLD // 2
    room = [torch.zeros(size, dtype=torch.uint8) for _ in range(_ROOM // size)]
    _top.append(torch.zeros(1))  # stays above the range, which is therefore never returned to the system
    room.clear()
    return True
