"""Timing in turns, memory of a call, and a settled allocator."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import measure
from bench.measure import Task, interleaved, peak_bytes, ratio, spread, times, timing

ROOT = Path(__file__).resolve().parents[2]


def test_tasks_take_turns_and_each_round_starts_with_another() -> None:
    order: list[str] = []

    def task(name: str) -> Task:
        return Task(lambda: (order.append(name), time.sleep(2 * measure.SAMPLE_SECONDS))[0])

    samples, load = interleaved({name: task(name) for name in "abc"}, budget=0.5, anchors=["a"])
    rounds = len(samples["a"])
    taken = order[9:]  # after three calls of each, which estimate their time
    assert rounds >= measure.MIN_ROUNDS
    rounds_taken = [taken[6 * n : 6 * n + 6] for n in range(3)]  # each is called once before it is timed
    assert rounds_taken == [list("aabbcc"), list("bbccaa"), list("ccaabb")]
    assert all(len(s) == rounds for s in samples.values())
    assert 0 <= load <= 1


def test_the_load_of_other_processes_is_seen() -> None:
    def load_with(code: str | None) -> float:
        other = None if code is None else subprocess.Popen([sys.executable, "-c", code])
        load = measure.Load()
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
        share = load.share()
        if other is not None:
            other.kill()
            other.wait()
        return share

    busy = [load_with("while True: pass") for _ in range(3)]
    assert max(busy) > 0.3 / (os.cpu_count() or 1)
    assert all(0 <= share <= 1 for share in busy)


def test_processor_time_stands_still_while_a_task_waits() -> None:
    def waits() -> None:
        time.sleep(5e-3)

    wall, processor = (
        times(interleaved({"a": Task(waits)}, 0.03, clock=clock).samples["a"]).median
        for clock in (time.perf_counter, time.process_time)
    )
    assert wall >= 5e-3
    assert processor < 2e-3


def test_a_ratio_is_taken_within_each_round() -> None:
    """Twice as slow in each round, though rounds differ: the ratio of the medians is not 2."""
    anchor: measure.Samples = [1.0, 1.0, 5.0, None]
    other: measure.Samples = [2.0, None, 10.0, 3.0]
    found = ratio(other, anchor)
    assert found == spread([2.0, 2.0])
    assert times(other).median / times(anchor).median == 3.0
    assert ratio([None, 1.0], [1.0, None]) is None
    result = timing({"other": other, "anchor": anchor, "never": [None, 1.0, None, None]}, "other", ["anchor", "never"])
    assert result == {"seconds": [3.0, 2.5, 6.5, 3], "ratios": {"anchor": [2.0, 2.0, 2.0, 2]}}


def test_peak_memory_is_that_of_the_call() -> None:
    def call() -> torch.Tensor:
        torch.empty(1_000_000)
        return torch.empty(250_000)

    assert 4_000_000 <= peak_bytes(call) < 4_100_000
    assert 8_000_000 <= peak_bytes(lambda: np.empty(1_000_000)) < 8_100_000


FAULTS = """
import resource, torch
from bench.measure import settle_allocator
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(6_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if SETTLE: print(settle_allocator())
faults()
print(faults())
"""


def test_a_settled_allocator_reuses_what_was_freed() -> None:
    def run(settle: bool) -> list[str]:
        code = FAULTS.replace("SETTLE", str(settle))
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # as if nothing had been freed yet
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()

    worked, settled = run(settle=True)
    if worked != "True":
        pytest.skip("no glibc")
    (fresh,) = run(settle=False)
    assert int(fresh) > 100  # in pages of 4 KiB they are 5860, in huge ones fewer
    assert int(settled) < 20
