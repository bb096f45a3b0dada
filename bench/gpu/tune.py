"""Stage ``tune``: every candidate of the Triton backend's choice, checked and timed; the best make a table.

A candidate is judged by its machine code before it is timed (:mod:`.static`), then by its numbers. The table is
``tuned.json`` beside the results; ``FASTKAN_TUNING`` names it to the backend, and ``python -m bench.gpu.ship`` makes
it one that is shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastkan_kernels import Basis, basis_of, uniform_knots
from fastkan_kernels.trilinear import Operands
from tests.support.oracle import Example, exact_with_sizes

from ..measure import Task, ratio, times
from . import static, ways
from .accuracy import Material, deviation
from .clock import Clock
from .place import Place
from .record import Record
from .rows import CONTRACTIONS, ROWS, Row
from .settings import BOUNDS, precision
from .truth import compute, kernel_operands
from .warm import in_parallel

TABLE = "tuned.json"
FINALISTS = 4  # beside the default
HEATS_SECONDS, FINAL_SECONDS = 1.0, 1.5  # for all candidates together, and for the finalists
WORTH = 0.98  # of the default's time, from which another configuration is entered
WARMING = 0.5  # of the stage's time, at most, to compile side by side
RESERVE = 5.0
REHEARSED = 3  # candidates
MORE = (
    Row(8192, 256, 256, 5, "bfloat16", "step"),
    Row(8192, 256, 256, 5, "highest", "step"),
    Row(8192, 256, 256, 5, "tf32", "step"),
    Row(1024, 1024, 1024, 5, "bfloat16", "step"),
    Row(8192, 256, 256, 64, "bfloat16", "step"),
    Row(8192, 256, 256, 64, "highest", "step"),
    Row(65536, 64, 64, 5, "highest", "step"),
    Row(1_000_000, 2, 64, 5, "bfloat16", "step"),
)


Judged = dict[
    "tuple[str, Any]", "str | None"
]  # what is wrong with a candidate's machine code, by row and configuration


class Choice(NamedTuple):
    """One contraction of one row."""

    row: Row
    contraction: str
    derivative: int

    @property
    def name(self) -> str:
        return self.row.name_of(self.contraction, self.derivative)


def choices(rehearsal: bool) -> list[Choice]:
    """Of the shapes of the speed stage, then of a few more."""
    layers = dict.fromkeys(row._replace(mode="step", rivals=False) for row in (*ROWS, *MORE))
    if rehearsal:
        layers = dict.fromkeys((Row(48, 5, 7, 5, "float16", "step"), Row(48, 5, 7, 5, "highest", "step")))
    return [Choice(row, *contraction) for row in layers for contraction in CONTRACTIONS]


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Tune all that there is time for, and write the table after each."""
    if not ways.available(place):
        record.note(f"nothing to tune: backend {place.backend!r} has no choices")
        return
    from fastkan_kernels.backends.triton import selection

    wanted = record.wanted(c for c in choices(not place.is_gpu) if not patterns or any(p in c.name for p in patterns))
    judged: Judged = {}
    parts = [(c, n) for c in wanted for n in range(PARTS)]
    in_parallel(_Warm(place), parts, workers, WARMING * record.left(), lambda found: judged.update(found or {}))
    clock = Clock(place)
    path, about = record.path.parent / TABLE, selection.metadata(place.device)
    table: dict[Any, Any] = _before(path, about)
    for choice in wanted:
        if record.left() < (RESERVE if place.is_gpu else 0):
            record.leave_out(choice.name)
            continue
        try:
            key, config, result = tuned(choice, place, clock, record.left, judged)
        except Exception as failure:
            record.add({"name": choice.name}, choice.name, f"{choice.name}: {failure!r}"[:500])
            continue
        if config is not None:
            table[key] = config
            selection.write_table(path, table, about)
        record.add(result, f"{choice.name}: {result['verdict']}", result["failure"])


def _before(path: Path, about: dict[str, str]) -> dict[Any, Any]:
    """What an earlier run into the same folder has tuned, if it was on such a machine."""
    from fastkan_kernels.backends.triton import selection

    if not path.exists():
        return {}
    table = selection.read_table(path)
    return dict(table.entries) if table.metadata == about else {}


def tuned(
    choice: Choice, place: Place, clock: Clock, left: Callable[[], float], judged: Judged
) -> tuple[Any, Any, dict[str, Any]]:
    """The key, the best configuration (None if nothing is right) and what was found.

    The first candidate is the default: what is taken without a table.

    Args:
        left: tells the seconds that are left; once there are none, no further candidate is tried.
        judged: what is known of machine code.
    """
    o, basis, slots = _operands(choice, place)
    arguments = (choice.contraction, o.x, o.knots, slots, basis, choice.derivative)
    with precision(choice.row.dtype, place.device.type):
        key, _ = ways.key_of(*arguments)
        configs = ways.candidates(*arguments)
        if not place.is_gpu:
            configs = configs[:REHEARSED]
        truth = exact_with_sizes(choice.contraction, o, basis, choice.derivative)
        tasks: dict[str, Task] = {}
        dropped: list[dict[str, Any]] = []
        for number, config in enumerate(configs):
            task = _task(choice, o, basis, config, place)
            why: str | None = "out of time"
            if left() > 0 or number == 0:
                why = _unfit(choice, config, task, place, judged) or _why_not(choice, task, truth, place)
            if why is None:
                tasks[str(number)] = task
            else:
                dropped.append({"config": config._asdict(), "why": why})
        wrong = [entry for entry in dropped if entry["why"].startswith("wrong")]
        failure = None
        if "0" not in tasks:
            failure = f"{choice.name}: the default {dropped[0]['why']}"
        elif wrong:
            failure = f"{choice.name}: {len(wrong)} candidates are wrong: {wrong[0]}"[:600]
        result: dict[str, Any] = {
            "name": choice.name,
            "key": key._asdict(),
            "candidates": len(configs),
            "dropped": dropped,
            "failure": failure,
        }
        if not tasks:
            return key, None, {**result, "verdict": "nothing fits", "failure": f"{choice.name}: no candidate runs"}
        heats = clock.interleaved(tasks, HEATS_SECONDS)
        result["heats"] = {n: {**configs[int(n)]._asdict(), "seconds": times(s).median} for n, s in heats.items()}
        fastest = sorted(tasks, key=lambda n: times(heats[n]).median)[:FINALISTS]
        default = "0" if "0" in tasks else fastest[0]
        final = clock.interleaved({n: tasks[n] for n in dict.fromkeys([default, *fastest])}, FINAL_SECONDS)
    against = {n: found for n in final if (found := ratio(final[n], final[default])) is not None}
    best = min(against, key=lambda n: against[n].median)
    if against[best].median > WORTH:
        best = default
    config = configs[int(best)]
    result |= {
        "default": configs[int(default)]._asdict(),
        "default_runs": "0" in tasks,
        "default_seconds": times(final[default])._asdict(),
        "best": config._asdict(),
        "best_seconds": times(final[best])._asdict(),
        "ratio": against[best]._asdict(),
        "verdict": f"{config.way} {against[best].median:.2f} of the default",
    }
    return key, config, result


def _operands(choice: Choice, place: Place) -> tuple[Example, Basis, Operands]:
    """The layer's, random."""
    row = choice.row
    material = Material.of(row, place)
    knots = uniform_knots(row.inputs, row.grid, row.case.order, device=place.device)
    o = Example(material.x, knots, None, *material.edges, material.upstream)
    return o, basis_of(knots, row.case.order), kernel_operands(choice.contraction, o)


def _task(choice: Choice, o: Example, basis: Basis, config: Any, place: Place) -> Task:
    def call() -> tuple[torch.Tensor, ...]:
        with place.ours(), ways.forced({choice.contraction: config}):
            return compute(choice.contraction, o, basis, choice.derivative)

    return Task(call)


def _unfit(choice: Choice, config: Any, task: Task, place: Place, judged: Judged) -> str | None:
    """What is wrong with a candidate's machine code, or None."""
    from fastkan_kernels.backends.triton.launch import Launch, launched_by
    from fastkan_kernels.backends.triton.rules import overlaps

    known = choice.name, config
    if known not in judged:
        try:
            kernels: list[Any] = []
            with launched_by(lambda launch: kernels.append(Launch.start(launch))):
                task.call()
            place.wait()
        except Exception:  # met again where its numbers are asked for
            return None
        capability = torch.cuda.get_device_capability(place.device) if place.is_gpu else (9, 0)
        judged[known] = static.fault(kernels, 10 * capability[0] + capability[1], overlaps(config))
    return judged[known]


def _why_not(choice: Choice, task: Task, truth: Any, place: Place) -> str | None:
    """Why a candidate is not timed: it does not run, or its result is wrong."""
    try:
        got = task.call()
        place.wait()
    except Exception as failure:
        return f"does not run: {type(failure).__name__}: {str(failure).strip()}"[:200]
    assert isinstance(got, tuple)
    for value, part in zip(got, truth, strict=True):
        found = deviation(value, part.value)
        if found.exceeds(BOUNDS[choice.row.dtype]):
            return f"wrong by {found.norm:.1e} and {found.largest:.1e} (bound {BOUNDS[choice.row.dtype]:g})"
    return None


PARTS = 4  # of a choice's candidates, that are compiled side by side


class _Warm:
    """Compiles a part of a choice's candidates in another process, and judges the machine code."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, item: tuple[Choice, int]) -> Judged:
        choice, part = item
        o, basis, slots = _operands(choice, self._place)
        arguments = (choice.contraction, o.x, o.knots, slots, basis, choice.derivative)
        judged: Judged = {}
        with precision(choice.row.dtype, self._place.device.type):
            for config in ways.candidates(*arguments)[part::PARTS]:
                _unfit(choice, config, _task(choice, o, basis, config, self._place), self._place, judged)
        return judged
