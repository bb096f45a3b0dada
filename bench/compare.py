"""Two runs side by side, for CI: what of ours became slower, hungrier, or lost its time.

Ratios to the anchors are compared, not seconds: they mean the same on another day, and nearly so on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from .measure import MAX_OTHERS, Spread
from .modes import MODES
from .record import Record
from .report import place, short_name
from .rivals import is_ours
from .run import Row, Timing

THRESHOLD = 1.15
SLOWER, FASTER, MORE, LESS, LOST = "slower", "faster", "more memory", "less memory", "no time any more"
BAD = (SLOWER, MORE, LOST)


class Change(NamedTuple):
    """One thing that is not as it was."""

    where: str  # case and mode
    rival: str
    verdict: str  # one of those above
    old: str
    new: str
    factor: float | None  # new divided by old

    @property
    def is_bad(self) -> bool:
        return self.verdict in BAD


@dataclass
class Comparison:
    """What was found.

    Args:
        compared: how many times of ours both runs have.
        changes: among them.
        missing: what the old run has and the new one did not measure.
        disturbed: cases in which other processes took so much of the processor, in one of the runs, that times say
            nothing; memory is compared.
    """

    compared: int = 0
    changes: list[Change] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether something of ours is worse, or nothing could be compared."""
        return self.compared == 0 or any(change.is_bad for change in self.changes)


def compare(old: Record, new: Record, threshold: float = THRESHOLD) -> Comparison:
    """Compare our rows.

    A time is slower if its ratio to every anchor that both runs have grew by more than ``threshold``, and the quartiles
    of both runs lie apart. Memory has no spread.

    Args:
        threshold: a factor, 1 or more.
    """
    found = Comparison()
    measured = {result.case.name: result for result in new.results}
    for result in old.results:
        name = result.case.name
        if name not in measured:
            found.missing.append(name)
            continue
        calm = max(result.others or 0.0, measured[name].others or 0.0) <= MAX_OTHERS
        if not calm:
            found.disturbed.append(name)
        rows = {row.rival: row for row in measured[name].rows}
        for row in (row for row in result.rows if is_ours(row.rival)):
            for mode, timing in row.timings.items():
                where = f"{name}, {MODES[mode].heading}"
                if row.rival not in rows or mode not in measured[name].modes:
                    found.missing.append(f"{where}, {row.rival}")
                    continue
                pair = Pair(where, timing, rows[row.rival], mode)
                _compare_time(found, pair, threshold, calm)
                _compare_memory(found, pair, threshold)
    return found


class Pair(NamedTuple):
    """A time of ours, and the row in which it should be found again."""

    where: str
    old: Timing
    row: Row
    mode: str

    @property
    def new(self) -> Timing | None:
        return self.row.timings.get(self.mode)


def _compare_time(found: Comparison, pair: Pair, threshold: float, calm: bool) -> None:
    where, old, row, mode = pair
    if pair.new is None:
        why = row.note or row.notes.get(mode) or "nothing to time"
        found.changes.append(Change(where, row.rival, LOST, f"{old.seconds.median * 1e3:.3g} ms", why, None))
        found.compared += 1
        return
    both = [(anchor, old.ratios[anchor], pair.new.ratios[anchor]) for anchor in old.ratios if anchor in pair.new.ratios]
    if not both:
        found.missing.append(f"{where}, {row.rival}: no anchor in common")
        return
    if not calm:
        return
    found.compared += 1
    if all(_grew(before, after, threshold) for _, before, after in both):
        verdict = SLOWER
    elif all(_grew(after, before, threshold) for _, before, after in both):
        verdict = FASTER
    else:
        return
    anchor, before, after = both[0]
    then, now = (f"{r.median:.3g} [{r.low:.3g}-{r.high:.3g}] /{short_name(anchor)}" for r in (before, after))
    found.changes.append(Change(where, row.rival, verdict, then, now, after.median / before.median))


def _compare_memory(found: Comparison, pair: Pair, threshold: float) -> None:
    if pair.new is None or not pair.old.peak_bytes or not pair.new.peak_bytes:
        return
    factor = pair.new.peak_bytes / pair.old.peak_bytes
    if max(factor, 1 / factor) > threshold:
        then, now = (f"{timing.peak_bytes / 2**20:.3g} MiB" for timing in (pair.old, pair.new) if timing.peak_bytes)
        found.changes.append(Change(pair.where, pair.row.rival, MORE if factor > 1 else LESS, then, now, factor))


def _grew(before: Spread, after: Spread, threshold: float) -> bool:
    return after.median > threshold * before.median and after.low > before.high


def tell(found: Comparison, old: Record, new: Record, threshold: float, console: Console) -> None:
    """Print what changed, and a line that sums it up."""
    if found.changes:
        table = Table(title="What changed", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for heading in ("case, mode", "", "then", "now", "factor", ""):
            table.add_column(heading, overflow="fold")
        for change in sorted(found.changes, key=lambda change: not change.is_bad):
            factor = "" if change.factor is None else f"{change.factor:.2f}"
            style = "red" if change.is_bad else "green"
            table.add_row(change.where, change.rival, change.old, change.new, factor, change.verdict, style=style)
        console.print(table)
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
    worse = sum(change.is_bad for change in found.changes)
    yield f"{found.compared} times compared, {worse} things worse (threshold {threshold:g})."
