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
    for then in old.results:
        case, mode, contender = then["case"], then["mode"], then["contender"]
        if not is_ours(contender) or then["seconds"] is None:
            continue
        where = f"{case}, {MODES[mode].heading}"
        now = results.get((case, mode, contender))
        if now is None:
            found.missing.append(f"{where}, {contender}" if case in measured else case)
            continue
        if loads[case] > MAX_LOAD:
            found.disturbed.append(case)
        changes = [*_time(found, where, then, now, threshold), *_memory(then, now, threshold)]
        found.changes += [{"where": where, "contender": contender, **change} for change in changes]
    found.missing, found.disturbed = list(dict.fromkeys(found.missing)), list(dict.fromkeys(found.disturbed))
    return found


def _time(found: Comparison, where: str, then: Result, now: Result, threshold: float) -> Iterator[dict]:
    if now["seconds"] is None:
        found.compared += 1
        note = now["note"] or "nothing to time"
        yield {"then": f"{then['seconds'][0] * 1e3:.3g} ms", "now": note, "factor": None, "verdict": LOST}
        return
    both = [(name, ratio, now["ratios"][name]) for name, ratio in then["ratios"].items() if name in now["ratios"]]
    if not both:
        found.missing.append(f"{where}, {now['contender']}: no anchor in common")
    if not both or now["case"] in found.disturbed:
        return
    found.compared += 1
    slower = all(_grew(before, after, threshold) for _, before, after in both)
    if slower or all(_grew(after, before, threshold) for _, before, after in both):
        name, *pair = both[0]
        texts = [f"{m:.3g} [{low:.3g}-{high:.3g}] /{short_name(name)}" for m, low, high, _ in pair]
        factor = pair[1][0] / pair[0][0]
        yield {"then": texts[0], "now": texts[1], "factor": factor, "verdict": SLOWER if slower else FASTER}


def _grew(before: list[float], after: list[float], threshold: float) -> bool:
    return after[0] > threshold * before[0] and after[1] > before[2]


def _memory(then: Result, now: Result, threshold: float) -> Iterator[dict]:
    old, new = then["peak_bytes"], now["peak_bytes"]
    if now["seconds"] is not None and old and new and not 1 / threshold <= new / old <= threshold:
        texts = [f"{size / 2**20:.3g} MiB" for size in (old, new)]
        yield {"then": texts[0], "now": texts[1], "factor": new / old, "verdict": MORE if new > old else LESS}


def report_changes(found: Comparison, old: Record, new: Record, threshold: float, console: Console) -> None:
    """Print the changes, the worse ones first, and a summary."""
    if found.changes:
        frame = pd.DataFrame(sorted(found.changes, key=lambda change: change["verdict"] not in BAD))
        frame["factor"] = frame["factor"].map("{:.2f}".format, na_action="ignore")
        show(console, frame.set_index("where"), "Changes")
    lines = [f"then: {place(old.about)}"]
    if old.about["machine"] != new.about["machine"]:
        lines.append("The machines differ, so small changes of ratios mean little.")
    if found.missing:
        lines.append(f"Not measured now: {'; '.join(found.missing)}.")
    if found.disturbed:
        lines.append(f"Not compared in time, because other processes disturbed a run: {'; '.join(found.disturbed)}.")
    compared = f"{found.compared} times compared, {found.worse} things worse (threshold {threshold:g})."
    lines.append(compared if found.compared else "Nothing of ours could be compared.")
    console.print("\n".join(lines), markup=False)
