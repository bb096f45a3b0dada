"""One case, all contenders: build, compare with float64, warm up, and time side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ..measure import interleaved, peak_bytes, seconds, timing
from ..records import Result
from .cases import Case
from .contenders import CONTENDERS, Contender
from .errors import Error, Oracle
from .modes import DEFAULT, MODES, PLAIN, Subject

WRONG = "wrong"  # note of a contender whose values are too far from float64
WARMING = 0.4  # approximate share of a case's time that warming up takes


class LeftOut(Exception):
    """A contender is not timed, for the reason in the text."""


def run_case(
    case: Case,
    contenders: Sequence[Contender] = CONTENDERS,
    budget: float = 30.0,
    patience: float = 15.0,
    tick: Callable[[str, float], None] = lambda doing, share: None,
    modes: Sequence[str] = DEFAULT,
) -> list[Result]:
    """Measure a case.

    Args:
        contenders: one that fails or is wrong gets a note and no time.
        budget: approximate seconds of each mode's timing.
        patience: seconds; a contender whose step takes longer is left out, unless it is an anchor or ours.
        tick: receives what is being done, and the share of the case that is done.
        modes: names in :data:`bench.suite.modes.MODES`.

    Returns:
        A result for each contender and each mode that applies to it.
    """
    torch.compiler.reset()  # the previous case's shapes would make this one's dynamic
    oracle = Oracle(case)
    found: list[tuple[Result, Subject | None]] = []
    for number, contender in enumerate(contenders):
        tick(f"warm up {contender.name}", WARMING * number / len(contenders))
        found += _prepared(contender, oracle, patience, modes)
    anchors = [contender.name for contender in contenders if contender.anchor]
    for number, mode in enumerate(modes):
        ready = {row["contender"]: subject for row, subject in found if row["mode"] == mode and subject is not None}
        if not ready:
            continue
        start, share = WARMING + (1 - WARMING) * number / len(modes), (1 - WARMING) / len(modes)
        run = interleaved(
            {name: subject.task(mode) for name, subject in ready.items()},
            budget,
            [name for name in anchors if name in ready],
            lambda done, m=mode, s=start, w=share: tick(MODES[m].heading, s + w * done),  # type: ignore[misc]
        )
        for row, subject in found:
            if row["mode"] == mode and subject is not None:
                row |= timing(run.samples, row["contender"], anchors) | {"load": round(run.load, 4)}
    return [row for row, _ in found]


def checked(contender: Contender, oracle: Oracle, mode: str = PLAIN) -> tuple[Subject, Error | None]:
    """Its network for a mode, and the errors of that network; None where it can't be compared with float64."""
    network = contender.make(oracle.case, mode=mode)
    comparable = contender.is_kan and not (mode == "sparse" and contender.own_penalty)
    error = oracle.error(network, lambda edges: contender.make(oracle.case, edges, mode), mode) if comparable else None
    return Subject(network, oracle.x, oracle.upstream), error


def _prepared(
    contender: Contender, oracle: Oracle, patience: float, modes: Sequence[str]
) -> Iterator[tuple[Result, Subject | None]]:
    """For each mode a result that has no time yet, and the network to time unless a note says why there is none."""
    case = oracle.case
    if contender.anchor or contender.ours:
        patience = float("inf")
    sizes = {name: value for name, value in case._asdict().items() if name != "quick"}
    nothing: Result = {"note": None, "error": None, "seconds": None, "ratios": {}, "peak_bytes": None, "load": None}
    common: Result = {"case": case.name, **sizes, "mode": None, "contender": contender.name, **nothing}
    with _noting(common):
        _raise(contender.why_not(case))
        plain = _compared(contender, oracle, PLAIN, common)
        _warm_up(plain, PLAIN, patience)
    for mode in filter(contender.takes, modes):
        row, subject = {**common, "mode": mode}, None
        if row["note"] is None:
            with _noting(row):
                _raise(MODES[mode].why_not(case))
                subject = plain if MODES[mode].table == PLAIN else _compared(contender, oracle, mode, row)
                _warm_up(subject, mode, patience)
                row["peak_bytes"] = peak_bytes(getattr(subject.unseen(), mode))
                subject.clear()
        yield row, subject if row["note"] is None else None


@contextmanager
def _noting(row: Result) -> Iterator[None]:
    try:
        yield
    except LeftOut as reason:
        row["note"] = str(reason)
    except Exception as failure:  # of any kind: an error in another package must not end the run
        reason_ = (str(failure).strip().splitlines() or [""])[0]
        row["note"] = f"failed: {type(failure).__name__}: {reason_}"[:100]


def _raise(reason: str | None) -> None:
    if reason is not None:
        raise LeftOut(reason)


def _compared(contender: Contender, oracle: Oracle, mode: str, row: Result) -> Subject:
    row["error"] = None
    subject, error = checked(contender, oracle, mode)
    if error is not None:
        row["error"] = list(error)
        _raise(WRONG if error.too_large else None)
    return subject


def _warm_up(subject: Subject, mode: str, patience: float) -> None:
    seconds(subject.task(mode))
    taken = seconds(subject.task(mode))
    if taken > patience:
        raise LeftOut(f"left out: {taken:.1f} s for a call")
