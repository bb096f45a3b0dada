"""Stage ``speed``: each row's contestants checked, then timed in turn; who is wrong gets no time."""

from __future__ import annotations

import gc
from typing import Any

import torch

from fastkan_kernels import uniform_knots
from fastkan_kernels.autograd.dispatch import route

from ..measure import Samples, Spread, peak_bytes, ratio, times
from . import bars, ceilings, contest, graphed
from .accuracy import Material, Truth
from .clock import Clock
from .contest import Absent, Products, Subject
from .place import Place, clocks
from .record import Record
from .rows import SWEEP, Ceilings, Graphed, Measured, Row, measured
from .settings import DTYPES, precision
from .warm import in_parallel

COLD_SECONDS, SWEEP_SECONDS = 4.0, 1.5  # of timing, for a row
WARM_SHARE = 0.3  # of that, for warm caches
COMPILED = (contest.COMPILED, contest.INKAN)
WARMING = 0.5  # of the time that is left, at most, to compile side by side
MAX_COMPILING = 4  # processes: the plain layer of the widest row takes 10 GB
# seconds that something may take, if all is compiled
RESERVE = {"rivals": 20.0, "row": 8.0, "sweep": 4.0, "graphed": 10.0, "ceilings": 6.0}


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Measure all that there is time for."""
    found = [item for item in measured(not place.is_gpu) if not patterns or any(p in item.name for p in patterns)]
    clock: Clock | None = None
    for batch in batches(record.wanted(found)):
        if record.left() > (RESERVE["sweep"] if place.is_gpu else 0):
            _compile(batch, place, workers, record)
        clock = clock or Clock(place)
        for item in batch:
            if record.left() < (expected_seconds(item) if place.is_gpu else 0):
                record.leave_out(item.name)
                continue
            record.extras["clocks_before"] = record.extras.get("clocks_before") or place_clocks(place)
            _one(item, place, clock, record)
            record.extras["clocks_after"] = place_clocks(place)
            record.extras["bars"] = bars.as_json(bars.judged(record.results))
            record.save()


def batches(items: list[Measured]) -> list[list[Measured]]:
    """What is compiled together: first what the bars need, last the sweep."""
    worth: dict[int, list[Measured]] = {}
    asked = {bar.row for bar in bars.BARS}
    for item in items:
        grade = 2 if item in SWEEP else 0 if item.name in asked or not isinstance(item, Row) else 1
        worth.setdefault(grade, []).append(item)
    return [worth[grade] for grade in sorted(worth)]


def place_clocks(place: Place) -> dict[str, str]:
    """Of a GPU, now."""
    return clocks() if place.is_gpu else {}


def _one(item: Measured, place: Place, clock: Clock, record: Record) -> None:
    if isinstance(item, Ceilings):
        try:
            result = ceilings.measure(item, place, clock)
        except Exception as failure:  # the rows are measured all the same
            record.fail(f"{item.name}: {type(failure).__name__}: {failure}"[:300])
            return
        rates = ", ".join(f"{name} {found['rate'] / 1e12:.3g}" for name, found in result["products"].items())
        record.add(result, f"copy {result['copy']['rate'] / 1e12:.3g} TB/s; TFLOP/s of products: {rates}")
        return
    result = graphed.measure(item, place, clock) if isinstance(item, Graphed) else measure(item, place, clock)
    timed = [c for c in result["contestants"] if {"cold", "step"} & set(c)]
    record.add(result, f"{item.name}: {len(timed)} contestants timed", _failure(result))


def expected_seconds(item: Measured) -> float:
    """What it is thought to take, if all is compiled."""
    return RESERVE[_kind(item)]


def _kind(item: Measured) -> str:
    if isinstance(item, Row):
        return "sweep" if item in SWEEP else "rivals" if item.rivals else "row"
    return "graphed" if isinstance(item, Graphed) else "ceilings"


def _compile(batch: list[Measured], place: Place, workers: int, record: Record) -> None:
    """Side by side: our kernels in all processes, then the rivals in a few."""
    found = [item for item in batch if isinstance(item, Row)]
    in_parallel(_Warm(place, False), found, workers, WARMING * record.left())
    rivals = [(row, name) for row in found if row.rivals for name in COMPILED]
    in_parallel(_Warm(place, True), rivals, min(workers, MAX_COMPILING), WARMING * record.left())


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
    result["clocks"] = place_clocks(place)
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
    """Bytes at the most of one call; those of them that are neither its output nor gradients; and what can't be
    spared: parameters, input, output and gradients."""
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
    held = 0
    if isinstance(subject, Subject):
        if row.mode == "step":
            kept += sum(t.grad.nbytes for t in (subject.x, *subject.parameters) if t.grad is not None)
        held = kept + sum(t.nbytes for t in (subject.x, *subject.parameters))
    clear()
    return {"peak_bytes": peak, "extra_bytes": max(0, peak - kept), "held_bytes": held}


def _failure(result: dict[str, Any]) -> str | None:
    """What is wrong with ours, or None."""
    wrong = [c for c in result["contestants"] if c["ours"] and c["note"] is not None and not c.get("absent")]
    return "; ".join(f"{result['name']}, {c['name']}: {c['note']}" for c in wrong) or None


class _Warm:
    """Calls in another process each contestant of a row that compiles something.

    Args:
        rivals: whether it is given pairs of a row and a rival's name, or rows, whose contestants of ours it calls.
    """

    def __init__(self, place: Place, rivals: bool) -> None:
        self._place, self._rivals = place, rivals

    def __call__(self, item: Any) -> None:
        row, rival = item if self._rivals else (item, None)
        material = Material.of(row, self._place)
        with precision(row.dtype, self._place.device.type):
            for contestant in contest.contestants(row, material, self._place):
                if contestant.name == rival if self._rivals else contestant.is_ours:
                    try:
                        contestant.make().task(row.mode).call()
                    except Exception:  # met again where it is measured
                        continue
