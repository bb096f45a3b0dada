"""One case, all rivals: build, check, warm up, time side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .cases import Case
from .errors import Error, Oracle
from .measure import Samples, Spread, Task, interleaved, ratio, seconds, times
from .memory import peak_bytes
from .rivals import RIVALS, Rival

MODES = ("forward", "step")  # inference; forward and backward


class Timing(NamedTuple):
    """Seconds of a rival in one mode, and its ratios to the anchors."""

    seconds: Spread
    ratios: dict[str, Spread]


@dataclass
class Row:
    """What was found of a rival; ``note`` says why something is missing."""

    rival: str
    note: str | None = None
    error: Error | None = None
    peak_bytes: int | None = None  # of a step: what it holds beside parameters and input
    timings: dict[str, Timing] = field(default_factory=dict)


class CaseResult(NamedTuple):
    """All rivals in one case."""

    case: Case
    rows: list[Row]
    others: float | None  # share of the processor that other processes took meanwhile


class Subject:
    """A rival's network with a case's input and upstream gradient."""

    def __init__(self, network: nn.Module, x: Tensor, upstream: Tensor) -> None:
        self.network, self.x, self.upstream = network, x, upstream
        self.parameters = list(network.parameters())

    def forward(self) -> None:
        with torch.no_grad():
            self.network(self.x)

    def step(self) -> None:
        self.network(self.x).backward(self.upstream)

    def clear(self) -> None:
        """As ``zero_grad`` does."""
        for parameter in self.parameters:
            parameter.grad = None

    def task(self, mode: str) -> Task:
        return Task(getattr(self, mode), self.clear)


def run_case(
    case: Case,
    rivals: Sequence[Rival] = RIVALS,
    budget: float = 30.0,
    patience: float = 15.0,
    tick: Callable[[str, float], None] = lambda doing, share: None,
) -> CaseResult:
    """Measure a case.

    Args:
        rivals: who takes part. One that fails, or is wrong, gets a note and no time.
        budget: seconds for each mode's timing, about.
        patience: seconds; another package whose step takes longer is left out.
        tick: told what is being done and what share of the case is done.
    """
    torch.compiler.reset()  # or the shapes of the case before would make this one's dynamic
    x, upstream, oracle = case.inputs(), case.upstream(), Oracle(case)
    subjects: dict[str, Subject] = {}
    rows: dict[str, Row] = {}
    for number, rival in enumerate(rivals):
        tick(f"warm up {rival.name}", 0.4 * number / len(rivals))
        row, subject = _prepared(rival, case, x, upstream, oracle, patience)
        rows[rival.name] = row
        if subject is not None:
            subjects[rival.name] = subject

    others: float | None = None
    anchors = [rival.name for rival in rivals if rival.anchor and rival.name in subjects]
    for number, mode in enumerate(MODES):
        start = 0.4 + 0.3 * number
        tasks = {name: subject.task(mode) for name, subject in subjects.items()}
        samples, share = interleaved(
            tasks,
            budget,
            anchors,
            lambda share, s=start, m=mode: tick(m, s + 0.3 * share),  # type: ignore[misc]
        )
        others = share if share is None or others is None else max(share, others)
        for name in tasks:
            rows[name].timings[mode] = _timing(samples, name, anchors)
    return CaseResult(case, list(rows.values()), others)


def _prepared(
    rival: Rival, case: Case, x: Tensor, upstream: Tensor, oracle: Oracle, patience: float
) -> tuple[Row, Subject | None]:
    """Build, check and warm up."""
    note = rival.why_not(case)
    if note is not None:
        return Row(rival.name, note), None
    try:
        network = rival.make(case)
        error = oracle.error(network) if rival.is_kan else None
        if error is not None and error.too_large:
            return Row(rival.name, "wrong", error), None
        subject = Subject(network, x, upstream)
        for mode in MODES:
            seconds(subject.task(mode))
        taken = seconds(subject.task("step"))
        if taken > patience and rival.needs is not None and not rival.anchor:
            return Row(rival.name, f"left out: {taken:.1f} s for a step", error), None
        peak = peak_bytes(subject.step)
        subject.clear()
    except Exception as failure:  # whatever another package does, the others are still measured
        reason = (str(failure).strip().splitlines() or [""])[0]
        return Row(rival.name, f"failed: {type(failure).__name__}: {reason}"[:100]), None
    return Row(rival.name, None, error, peak), subject


def _timing(samples: dict[str, Samples], name: str, anchors: list[str]) -> Timing:
    ratios = {anchor: ratio(samples[name], samples[anchor]) for anchor in anchors}
    return Timing(times(samples[name]), {anchor: r for anchor, r in ratios.items() if r is not None})
