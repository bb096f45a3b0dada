"""One case, all rivals: build, check, warm up, time side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .cases import Case
from .errors import Error, Oracle
from .measure import Samples, Spread, interleaved, ratio, seconds, times
from .memory import peak_bytes
from .modes import DEFAULT, MODES, PLAIN, Subject
from .rivals import RIVALS, Rival

WRONG = "wrong"  # the note of a rival, or of a mode of it, that is too far from float64
WARMING = 0.4  # of a case's time, about


class Timing(NamedTuple):
    """Seconds of a rival in one mode, its ratios to the anchors, and its memory.

    Args:
        peak_bytes: what it holds beside parameters and input.
    """

    seconds: Spread
    ratios: dict[str, Spread]
    peak_bytes: int | None = None


@dataclass
class Row:
    """What was found of a rival.

    Args:
        note: why it has no time at all.
        notes: why it has none in some modes.
        error: of its network.
        errors: of what else its modes give.
    """

    rival: str
    note: str | None = None
    error: Error | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, Error] = field(default_factory=dict)


class CaseResult(NamedTuple):
    """All rivals in one case."""

    case: Case
    rows: list[Row]
    others: float | None  # share of the processor that other processes took meanwhile
    modes: tuple[str, ...] = DEFAULT


class Ready(NamedTuple):
    """A rival that is right and warm in a mode."""

    subject: Subject
    peak_bytes: int


def run_case(
    case: Case,
    rivals: Sequence[Rival] = RIVALS,
    budget: float = 30.0,
    patience: float = 15.0,
    tick: Callable[[str, float], None] = lambda doing, share: None,
    modes: Sequence[str] = DEFAULT,
) -> CaseResult:
    """Measure a case.

    Args:
        rivals: who takes part. One that fails, or is wrong, gets a note and no time.
        budget: seconds for each mode's timing, about.
        patience: seconds; a rival whose step takes longer is left out, unless it is an anchor or ours.
        tick: told what is being done and what share of the case is done.
        modes: names in :data:`bench.modes.MODES`.
    """
    torch.compiler.reset()  # or the shapes of the case before would make this one's dynamic
    oracle = Oracle(case)
    rows: dict[str, Row] = {}
    ready: dict[str, dict[str, Ready]] = {mode: {} for mode in modes}
    for number, rival in enumerate(rivals):
        tick(f"warm up {rival.name}", WARMING * number / len(rivals))
        rows[rival.name], found = _prepared(rival, oracle, patience, modes)
        for mode, it in found.items():
            ready[mode][rival.name] = it

    others: float | None = None
    for number, mode in enumerate(modes):
        if not ready[mode]:
            continue
        anchors = [rival.name for rival in rivals if rival.anchor and rival.name in ready[mode]]
        start, share = WARMING + (1 - WARMING) * number / len(modes), (1 - WARMING) / len(modes)
        run = interleaved(
            {name: it.subject.task(mode) for name, it in ready[mode].items()},
            budget,
            anchors,
            lambda done, m=mode, s=start, w=share: tick(MODES[m].heading, s + w * done),  # type: ignore[misc]
        )
        others = run.others if run.others is None or others is None else max(run.others, others)
        for name, it in ready[mode].items():
            rows[name].timings[mode] = _timing(run.samples, name, anchors, it.peak_bytes)
    return CaseResult(case, list(rows.values()), others, tuple(modes))


def checked(rival: Rival, oracle: Oracle, mode: str = "step") -> tuple[Subject, Error | None]:
    """Its network for a mode, and how wrong what it gives is; None where float64 can't tell."""
    network = rival.make(oracle.case, mode=mode)
    judged = rival.is_kan and not (mode == "sparse" and rival.own_penalty)
    error = oracle.error(network, lambda edges: rival.make(oracle.case, edges, mode), mode) if judged else None
    return Subject(network, oracle.x, oracle.upstream), error


def _prepared(rival: Rival, oracle: Oracle, patience: float, modes: Sequence[str]) -> tuple[Row, dict[str, Ready]]:
    """Build, check and warm up, for each mode."""
    row, found = Row(rival.name, rival.why_not(oracle.case)), dict[str, Ready]()
    if row.note is not None:
        return row, found
    patience = float("inf") if rival.anchor or rival.ours else patience
    try:
        plain, row.error = checked(rival, oracle)
        if row.error is not None and row.error.too_large:
            row.note = WRONG
            return row, found
        seconds(plain.task("step"))
        taken = seconds(plain.task("step"))
        if taken > patience:
            row.note = f"left out: {taken:.1f} s for a step"
            return row, found
    except Exception as failure:  # whatever another package does, the others are still measured
        row.note = _told(failure)
        return row, found
    for mode in modes:
        if not rival.takes(mode):
            continue
        try:
            found[mode] = _ready(rival, mode, oracle, plain, row, patience)
        except _LeftOut as reason:
            row.notes[mode] = str(reason)
        except Exception as failure:
            row.notes[mode] = _told(failure)
    return row, found


class _LeftOut(Exception):
    """Its text says why."""


def _ready(rival: Rival, mode: str, oracle: Oracle, plain: Subject, row: Row, patience: float) -> Ready:
    reason = MODES[mode].why_not(oracle.case)
    if reason is not None:
        raise _LeftOut(reason)
    subject = plain
    if MODES[mode].table != PLAIN:
        subject, error = checked(rival, oracle, mode)
        if error is not None:
            row.errors[mode] = error
            if error.too_large:
                raise _LeftOut(WRONG)
    seconds(subject.task(mode))
    taken = seconds(subject.task(mode))
    if taken > patience:
        raise _LeftOut(f"left out: {taken:.1f} s")
    peak = peak_bytes(getattr(subject.unseen(), mode))
    subject.clear()
    return Ready(subject, peak)


def _told(failure: Exception) -> str:
    reason = (str(failure).strip().splitlines() or [""])[0]
    return f"failed: {type(failure).__name__}: {reason}"[:100]


def _timing(samples: dict[str, Samples], name: str, anchors: list[str], peak: int) -> Timing:
    ratios = {anchor: ratio(samples[name], samples[anchor]) for anchor in anchors}
    return Timing(times(samples[name]), {anchor: r for anchor, r in ratios.items() if r is not None}, peak)
