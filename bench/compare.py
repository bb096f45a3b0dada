"""Two runs side by side, for CI: times and memory of fastkan that became worse, and times that were lost.

Ratios to the anchors are compared instead of seconds, since they change little from day to day and between machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
from rich.console import Console

from .measure import MAX_LOAD
from .records import Record, Result, place
from .report import short_name, show
from .suite.contenders import is_ours
from .suite.modes import MODES

THRESHOLD = 1.15
SLOWER, FASTER, MORE, LESS, LOST = "slower", "faster", "more memory", "less memory", "no time any more"
BAD = (SLOWER, MORE, LOST)


@dataclass
class Comparison:
    """Differences between two runs.

    Args:
        compared: number of times that were compared.
        changes: one for each difference: ``where`` (case and mode), ``contender``, ``then``, ``now``, ``factor`` (now
            divided by then, or None) and ``verdict``, one of the words above.
        missing: what only the old run has.
        disturbed: cases in which other processes took too much of the processor in either run.
    """

    compared: int = 0
    changes: list[dict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)

    @property
    def worse(self) -> int:
        """Number of changes for the worse."""
        return sum(change["verdict"] in BAD for change in self.changes)

    @property
    def fails(self) -> bool:
        """Whether something of ours is worse, or nothing could be compared."""
        return self.compared == 0 or self.worse > 0


def compare(old: Record, new: Record, threshold: float = THRESHOLD) -> Comparison:
    """Compare the results of fastkan.

    A time is slower if its ratio to every anchor that both runs have grew by more than ``threshold``, and the quartiles
    of both runs lie apart. Memory has no spread.

    Args:
        threshold: a factor, 1 or more.
    """
    found = Comparison()
    results = {(r["case"], r["mode"], r["contender"]): r for r in new.results}
    measured = {result["case"] for result in new.results}
    loads = pd.DataFrame([*old.results, *new.results]).groupby("case")["load"].max()
    for result in old.results:
        case = result["case"]
        if not is_ours(result["contender"]) or result["seconds"] is None:
            continue
        where = f"{case}, {MODES[result['mode']].heading}"
        now = results.get((case, result["mode"], result["contender"]))
        if now is None:
            missing = case if case not in measured else f"{where}, {result['contender']}"
            found.missing += [missing] if missing not in found.missing else []
            continue
        calm = not loads[case] > MAX_LOAD
        if not calm and case not in found.disturbed:
            found.disturbed.append(case)
        _compare_time(found, where, result, now, threshold, calm)
        _compare_memory(found, where, result, now, threshold)
    return found


def _enter(found: Comparison, where: str, now: Result, verdict: str, *texts: str, factor: float | None) -> None:
    change = {"where": where, "contender": now["contender"], "then": texts[0], "now": texts[1]}
    found.changes.append(change | {"factor": factor, "verdict": verdict})


def _compare_time(found: Comparison, where: str, old: Result, new: Result, threshold: float, calm: bool) -> None:
    if new["seconds"] is None:
        then = f"{old['seconds'][0] * 1e3:.3g} ms"
        _enter(found, where, new, LOST, then, new["note"] or "nothing to time", factor=None)
        found.compared += 1
        return
    both = [
        (anchor, old["ratios"][anchor], new["ratios"][anchor]) for anchor in old["ratios"] if anchor in new["ratios"]
    ]
    if not both:
        found.missing.append(f"{where}, {new['contender']}: no anchor in common")
    if not both or not calm:
        return
    found.compared += 1
    if all(_grew(before, after, threshold) for _, before, after in both):
        verdict = SLOWER
    elif all(_grew(after, before, threshold) for _, before, after in both):
        verdict = FASTER
    else:
        return
    anchor, before, after = both[0]
    then, now = (f"{m:.3g} [{low:.3g}-{high:.3g}] /{short_name(anchor)}" for m, low, high, _ in (before, after))
    _enter(found, where, new, verdict, then, now, factor=after[0] / before[0])


def _compare_memory(found: Comparison, where: str, old: Result, new: Result, threshold: float) -> None:
    if new["seconds"] is None or not old["peak_bytes"] or not new["peak_bytes"]:
        return
    factor = new["peak_bytes"] / old["peak_bytes"]
    if max(factor, 1 / factor) > threshold:
        then, now = (f"{result['peak_bytes'] / 2**20:.3g} MiB" for result in (old, new))
        _enter(found, where, new, MORE if factor > 1 else LESS, then, now, factor=factor)


def _grew(before: list[float], after: list[float], threshold: float) -> bool:
    return after[0] > threshold * before[0] and after[1] > before[2]


def tell(found: Comparison, old: Record, new: Record, threshold: float, console: Console) -> None:
    """Print the changes, the worse ones first, and a summary."""
    if found.changes:
        frame = pd.DataFrame(sorted(found.changes, key=lambda change: change["verdict"] not in BAD))
        frame["factor"] = frame["factor"].map("{:.2f}".format, na_action="ignore")
        show(console, frame.set_index("where"), "Changes")
    for line in _summary(found, old, new, threshold):
        console.print(line, markup=False)


def _summary(found: Comparison, old: Record, new: Record, threshold: float) -> Iterator[str]:
    yield f"then: {place(old.about)}"
    if old.about["machine"] != new.about["machine"]:
        yield "The machines differ, so small changes of ratios mean little."
    if found.missing:
        yield f"Not measured now: {'; '.join(found.missing)}."
    if found.disturbed:
        yield f"Times are not compared where other processes disturbed one of the runs: {'; '.join(found.disturbed)}."
    if not found.compared:
        yield "Nothing of ours could be compared."
        return
    yield f"{found.compared} times compared, {found.worse} things worse (threshold {threshold:g})."
