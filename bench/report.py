"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from .cases import Case
from .errors import BOUND
from .measure import Spread
from .modes import MODES, PLAIN, Mode
from .rivals import NOT_INSTALLED, is_ours
from .run import CaseResult, Row

BUSY = 0.05  # share of the processor taken by others that is worth telling
ABSENT = "-"
LEGEND = (
    "Times are medians in ms, ± half the distance of their quartiles; ratios are medians of the ratios within each "
    "round of the interleaved run, ± likewise. Errors are the largest deviations from float64, divided by the largest "
    "value: of the output y, of its gradient dx by the input, and of the slope dW of a loss along a direction in the "
    f"space of all weights; beyond {BOUND:g} a rival gets no time. MiB is the peak of what the last mode of a table "
    "holds beside parameters and input."
)
PENALTIES = (
    "The sparsity terms are pykan's, whose value err reg is about; another package's are its own, and the MLP's are "
    "the sizes of its weights."
)


class View:
    """One table of a case: modes that are shown together.

    Args:
        result: of the case.
        modes: of which the last one's memory and errors are shown.
    """

    def __init__(self, result: CaseResult, modes: Sequence[Mode]) -> None:
        self.result, self.modes = result, modes
        self.anchors = _anchors(result, modes)

    @property
    def title(self) -> str:
        table = self.modes[-1].table
        return title(self.result.case) + ("" if table == PLAIN else f": {MODES[table].words}")

    def columns(self) -> list[str]:
        """Headings."""
        timed = []
        for mode in self.modes:
            timed += [f"{mode.heading} ms", *(f"{mode.heading} /{short_name(anchor)}" for anchor in self.anchors)]
        return ["", *timed, *self.modes[-1].errors, "MiB"]

    def rows(self) -> list[Row]:
        """Those with something to tell."""
        return [row for row in self.result.rows if row.note is None or row.error is not None]

    def cells(self, row: Row) -> list[str]:
        """A row of the table; empty where a note tells why, ``-`` where there is nothing to measure."""
        found = [row.rival]
        last = self.modes[-1]
        for mode in self.modes:
            timing = row.timings.get(mode.name)
            if timing is None:
                nothing = row.note is None and mode.name not in row.notes
                found += [ABSENT if nothing else "", *[""] * len(self.anchors)]
                continue
            found.append(_short(timing.seconds, 1e3))
            found += [_short(timing.ratios[a]) if a in timing.ratios else "" for a in self.anchors]
        error = row.error if last.table == PLAIN else row.errors.get(last.name)
        found += [""] * 3 if error is None else ["" if e is None else f"{e:.0e}" for e in error]
        peak = row.timings[last.name].peak_bytes if last.name in row.timings else None
        return [*found, "" if peak is None else f"{peak / 2**20:.1f}"]

    def notes(self) -> str:
        """Who has no time, and why; and whether the times are worth much."""
        found = []
        for row in self.result.rows:
            if row.note not in (None, NOT_INSTALLED):
                found.append(f"{row.rival}: {row.note}")
            for mode in self.modes:
                if mode.name in row.notes:
                    found.append(f"{row.rival}: {row.notes[mode.name]}")
        if self.result.others is not None and self.result.others > BUSY:
            found.append(f"other processes took {self.result.others:.0%} of the processor meanwhile")
        return "; ".join(dict.fromkeys(found))


def views(result: CaseResult) -> list[View]:
    """The tables of a case: forward with step, each other mode by itself."""
    groups: dict[str, list[Mode]] = {}
    for mode in (MODES[name] for name in result.modes):
        groups.setdefault(mode.table, []).append(mode)
    return [View(result, modes) for modes in groups.values()]


def tables(result: CaseResult) -> Iterator[Table]:
    """For the terminal."""
    for view in views(result):
        table = Table(
            title=view.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
            caption=view.notes(), caption_justify="left",
        )  # fmt: skip
        for heading in view.columns():
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for row in view.rows():
            table.add_row(*view.cells(row), style="bold" if is_ours(row.rival) else None)
        yield table


def markdown(results: list[CaseResult], about: dict) -> str:
    """The tables as Markdown, with where they were measured."""
    return "\n".join(_markdown_lines(results, about)) + "\n"


def _markdown_lines(results: list[CaseResult], about: dict) -> Iterator[str]:
    yield place(about)
    yield ""
    yield legend(results)
    for view in (view for result in results for view in views(result)):
        yield from ("", f"### {view.title}", "")
        yield "| " + " | ".join(view.columns()) + " |"
        yield "|---|" + "---:|" * (len(view.columns()) - 1)
        for row in view.rows():
            yield "| " + " | ".join(view.cells(row)) + " |"
        if view.notes():
            yield from ("", view.notes())


def legend(results: list[CaseResult]) -> str:
    """What the figures mean, and who is not there."""
    absent = dict.fromkeys(row.rival for r in results for row in r.rows if row.note == NOT_INSTALLED)
    words = [LEGEND]
    if any("sparse" in result.modes for result in results):
        words.append(PENALTIES)
    if absent:
        words.append(f"Not installed: {', '.join(absent)}.")
    return " ".join(words)


def title(case: Case) -> str:
    """A case in words."""
    widths = "-".join(map(str, case.widths))
    return f"{case.rows} rows, {widths}, grid {case.grid_size}, order {case.order}"


def place(about: dict) -> str:
    """Machine, versions and commit in one line."""
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    commit = f", commit {about['commit'][:10]}" if about["commit"] else ""
    return f"{machine['processor']}, {machine['threads']} threads, {machine['system']}; {versions}{commit}"


def short_name(anchor: str) -> str:
    """As headings call it."""
    return anchor.split(",")[0]


def _anchors(result: CaseResult, modes: Sequence[Mode]) -> list[str]:
    """Those that took part in these modes."""
    timings = (row.timings[mode.name] for row in result.rows for mode in modes if mode.name in row.timings)
    return list(dict.fromkeys(name for timing in timings for name in timing.ratios))


def _short(value: Spread, unit: float = 1.0) -> str:
    """Three digits, and as many decimals in what follows the ±."""
    median, half = value.median * unit, (value.high - value.low) * unit / 2
    decimals = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{decimals}f} ±{half:.{decimals}f}"
