"""Stage ``speed``: each row's contestants checked, then timed in turn; who is wrong gets no time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch

from fastkan_kernels import uniform_knots
from fastkan_kernels.routing import route

from ..measure import Samples, Spread, ratio, times
from ..memory import peak_bytes
from . import contest, graphed
from .accuracy import Material, Truth
from .clock import Clock
from .contest import Absent, Contestant, Products, Subject
from .place import Place, clocks
from .record import Record
from .rows import Row, rows
from .settings import DTYPES, precision
from .warm import in_parallel

COLD_SECONDS, SWEEP_SECONDS = 5.0, 1.5  # of timing, for a row
WARM_SHARE = 0.3  # of that, for warm caches
WARMING = 0.35  # of the stage's time, at most, to compile side by side
MOST_COMPILING = 5  # processes: the plain layer of the widest row takes 10 GB
RESERVE = {True: 40.0, False: 12.0}  # seconds that a row with or without rivals may take


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Measure all that there is time for."""
    wanted = [row for row in rows(not place.is_gpu) if not patterns or any(p in row.name for p in patterns)]
    in_parallel(_Warm(place), wanted, min(workers, MOST_COMPILING), WARMING * record.left())
    clock = Clock(place)
    small_done = False
    for row in wanted:
        if not row.rivals and not small_done:
            graphed.run(record, place, clock, patterns)
            small_done = True
        if record.left() < (RESERVE[row.rivals] if place.is_gpu else 0):
            record.leave_out(row.name)
            continue
        result = measure(row, place, clock)
        found = [c for c in result["contestants"] if "cold" in c]
        record.add(result, f"{row.name}: {len(found)} contestants timed", _failure(result))
    if not small_done:
        graphed.run(record, place, clock, patterns)


def measure(row: Row, place: Place, clock: Clock) -> dict[str, Any]:
    """One row, whatever befalls its contestants."""
    torch.compiler.reset()  # or the shapes of the row before would make this one's dynamic
    material = Material.of(row, place)
    result: dict[str, Any] = {"kind": "row", "name": row.name, "row": row._asdict(), "operations": row.operations}
    with precision(row.dtype, place.device.type):
        truth: Truth | None = None
        subjects: dict[str, Any] = {}
        entries: dict[str, dict[str, Any]] = {}
        for contestant in contest.contestants(row, material, place):
            entry: dict[str, Any] = {"name": contestant.name, "ours": contestant.is_ours, "note": None}
            entries[contestant.name] = entry
            try:
                subject = contestant.make()
                if isinstance(subject, Subject) and contestant.name != contest.LINEAR:
                    if truth is None:
                        knots = uniform_knots(row.inputs, row.grid, row.case.order, device=place.device)
                        truth = Truth(row, material, knots)
                        result["auto_backend"] = route(material.x, knots).backend
                    _check(entry, subject, truth, row)
                if entry["note"] is None:
                    subject.task(row.mode).call()
                    entry |= _peak(subject, row, place)
                    subjects[contestant.name] = subject
            except Absent as reason:
                entry["note"], entry["absent"] = str(reason), True
            except Exception as failure:
                entry["note"] = f"failed: {type(failure).__name__}: {str(failure).strip()}"[:300]
            gc.collect()
            if place.is_gpu:
                torch.cuda.empty_cache()
        tasks = {name: subject.task(row.mode) for name, subject in subjects.items()}
        seconds = COLD_SECONDS if row.rivals else SWEEP_SECONDS
        cold = clock.interleaved(tasks, seconds)
        warm = clock.interleaved(tasks, WARM_SHARE * seconds, warm=True) if place.is_gpu else {}
        for name, task in tasks.items():
            entries[name]["cold"] = timing(cold, name)
            if warm:
                entries[name]["warm"] = timing(warm, name)
            entries[name]["in_a_row_seconds"] = clock.in_a_row(task)
    result["clocks"] = clocks() if place.is_gpu else {}
    result["contestants"] = list(entries.values())
    return result


def timing(samples: dict[str, Samples], name: str) -> dict[str, Any]:
    """Seconds of a contestant and its ratios to the anchors that took part."""
    ratios = {a: ratio(samples[name], samples[a]) for a in contest.ANCHORS if a in samples}
    return {
        "seconds": times(samples[name])._asdict(),
        "ratios": {anchor: found._asdict() for anchor, found in ratios.items() if isinstance(found, Spread)},
    }


def _check(entry: dict[str, Any], subject: Subject, truth: Truth, row: Row) -> None:
    deviations = truth.deviations(subject.found(row.mode))
    entry["error"] = {name: deviation._asdict() for name, deviation in deviations.items()}
    entry["note"] = truth.wrong(deviations)


def _peak(subject: Subject | Products, row: Row, place: Place) -> dict[str, int]:
    """Bytes at the most of one call, and those of them that are neither its output nor gradients."""
    call, clear = subject.task(row.mode)
    clear()
    if place.is_gpu:
        place.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        place.wait()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = peak_bytes(call)
    kept = row.rows * row.outputs * DTYPES[row.dtype].itemsize
    if isinstance(subject, Subject) and row.mode == "step":
        kept += sum(t.grad.nbytes for t in (subject.x, *subject.parameters) if t.grad is not None)
    clear()
    return {"peak_bytes": peak, "extra_bytes": max(0, peak - kept)}


def _failure(result: dict[str, Any]) -> str | None:
    """What is wrong with ours, or None."""
    wrong = [c for c in result["contestants"] if c["ours"] and c["note"] is not None and not c.get("absent")]
    return "; ".join(f"{result['name']}, {c['name']}: {c['note']}" for c in wrong) or None


class _Warm:
    """Calls in another process each contestant of a row that compiles something."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, row: Row) -> None:
        material = Material.of(row, self._place)
        with precision(row.dtype, self._place.device.type):
            for contestant in self._compiling(row, material):
                try:
                    contestant.make().task(row.mode).call()
                except Exception:  # met again where it is measured
                    continue

    def _compiling(self, row: Row, material: Material) -> Iterator[Contestant]:
        found = contest.contestants(row, material, self._place)
        yield from (c for c in found if c.is_ours)
        yield from (c for c in found if c.name in (contest.COMPILED, contest.INKAN))
