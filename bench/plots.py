"""Results as pictures: bars of ratios for each mode, lines for each sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.ticker as ticks
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import SWEEPS, VARIED, Case
from .measure import Spread
from .modes import MODES
from .record import Record
from .report import place, title
from .rivals import NOT_INSTALLED
from .run import WRONG, CaseResult, Row

ANCHOR = "MLP, as many parameters"
COLOURS = {  # of Okabe and Ito, which colour-blind people tell apart; one for each package
    "fastkan": "#0072B2",
    "MLP": "#000000",
    "bare matrix products": "#8C8C8C",
    "plain Cox-de Boor": "#E69F00",
    "inkan": "#009E73",
    "flashkan": "#CC79A7",
    "efficient_kan": "#56B4E9",
    "pykan": "#D55E00",
}
SPARE_COLOUR = "#B8A800"  # for rivals that were added
HATCHES = ("", "////", "....", "xxxx")  # for the variants of a package
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X<>"
DPI = 120
MIN_POINTS = 2  # of a sweep that is worth drawing


class Look(NamedTuple):
    """How a rival is drawn, everywhere."""

    colour: str
    variant: int  # of its package
    marker: str


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw all that a run has into PNG files.

    Args:
        folder: made if it is not there; its parent must be.

    Returns:
        The files: a mode's name for bars of its ratios, ``memory-`` and ``sweep-`` with what they show.
    """
    folder.mkdir(exist_ok=True)
    return [saved(figure, folder / f"{name}.png") for name, figure in _figures(record)]


def _figures(record: Record) -> Iterator[tuple[str, Figure]]:
    looks, where = _looks(record.results), place(record.about)
    swept = {name: _of_sweep(record.results, name) for name in SWEEPS}
    swept = {name: results for name, results in swept.items() if len(results) >= MIN_POINTS}
    in_sweeps = {result.case.name for results in swept.values() for result in results}
    single = [result for result in record.results if result.case.name not in in_sweeps]
    for mode in MODES:
        shown = [result for result in single if _has(result, mode)]
        if shown:
            yield mode, _bars(shown, mode, looks, where, _time)
            yield f"memory-{mode}", _bars(shown, mode, looks, where, _memory)
    for name, results in swept.items():
        yield f"sweep-{name}", _lines(results, name, looks, where)


class Bar(NamedTuple):
    """A ratio to the MLP and what is written beside it."""

    ratio: Spread
    words: str


def _time(row: Row, mode: str, anchor: Row) -> Bar | None:
    ratio = row.timings[mode].ratios.get(ANCHOR)
    return None if ratio is None else Bar(ratio, f"{digits(ratio.median)}x")


def _memory(row: Row, mode: str, anchor: Row) -> Bar | None:
    own, base = row.timings[mode].peak_bytes, anchor.timings[mode].peak_bytes
    if not own or not base:
        return None
    return Bar(Spread(own / base, own / base, own / base, 1), f"{digits(own / 2**20)} MiB")


def _bars(
    results: list[CaseResult],
    mode: str,
    looks: dict[str, Look],
    where: str,
    bar: Callable[[Row, str, Row], Bar | None],
) -> Figure:
    """A panel for each case, a line for each rival: from 1, the MLP, to the right where it takes more."""
    names = [name for name in looks if name != ANCHOR and any(_told(result, name, mode) for result in results)]
    columns = min(2, len(results))
    lines = -(-len(results) // columns)
    figure = Figure(figsize=(0.6 + 5.6 * columns, 1.5 + lines * (0.9 + 0.3 * len(names))), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, result in zip(panels.flat, results):
        _panel(axes, result, mode, names, looks, bar)
    for axes in panels.flat[len(results) :]:
        axes.set_visible(False)
    for column in range(columns):  # the lowest panel of each column names its axis
        lowest = max((line for line in range(lines) if line * columns + column < len(results)), default=0)
        panels[lowest, column].tick_params(labelbottom=True)
        panels[lowest, column].set_xlabel("divided by the MLP's, log scale")
    what = "time" if bar is _time else "peak memory"
    spread = ", median and quartiles" if bar is _time else ""
    head(figure, f"{MODES[mode].words}: {what}{spread}", where)
    low, high = panels[0, 0].get_xlim()
    panels[0, 0].set_xlim(min(low, 0.7), high * (high / low) ** 0.2)  # room for what is written beside the bars
    return figure


def _panel(
    axes: Axes,
    result: CaseResult,
    mode: str,
    names: Sequence[str],
    looks: dict[str, Look],
    bar: Callable[[Row, str, Row], Bar | None],
) -> None:
    rows = {row.rival: row for row in result.rows}
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1, zorder=3)
    for place_, name in enumerate(names):
        row = rows.get(name)
        found = bar(row, mode, rows[ANCHOR]) if row is not None and mode in row.timings else None
        if found is None:
            axes.annotate(
                _why_not(row, mode), (1, place_), (4, 0), textcoords="offset points", va="center", color="#777777",
                fontsize=8, style="italic",
            )  # fmt: skip
            continue
        ratio, look = found.ratio, looks[name]
        axes.barh(
            place_, ratio.median - 1, left=1, height=0.7, color=look.colour, hatch=HATCHES[look.variant % len(HATCHES)],
            edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        if ratio.high > ratio.low:
            spread = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            axes.errorbar(ratio.median, place_, xerr=spread, color="black", capsize=2.5, linewidth=1)
        axes.annotate(
            found.words, (max(ratio.high, 1.0), place_), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(title(result.case), fontsize=10, loc="left")
    tidy(axes, "x")


def _why_not(row: Row | None, mode: str) -> str:
    note = None if row is None else row.note or row.notes.get(mode)
    return "-" if note is None else note.split(":")[0]


def _lines(results: list[CaseResult], name: str, looks: dict[str, Look], where: str) -> Figure:
    """A column for each mode: time above, memory below; a line for each rival with a band of quartiles."""
    timed = [mode for mode in MODES if any(_has(result, mode) for result in results)]
    figure = Figure(figsize=(3.2 + 4.4 * len(timed), 8.2), layout="constrained")
    panels = figure.subplots(2, len(timed), sharex=True, sharey="row", squeeze=False)
    words, value = VARIED[name]
    for column, mode in enumerate(timed):
        above, below = panels[:, column]
        for rival, look in looks.items():
            found = [
                (value(result.case), row.timings[mode])
                for result in results
                for row in result.rows
                if row.rival == rival and mode in row.timings
            ]
            if not found:
                continue
            at, timings = zip(*found)
            style: dict[str, Any] = {
                "color": look.colour, "linestyle": DASHES[look.variant % len(DASHES)], "marker": look.marker,
                "markersize": 5, "linewidth": 2.4 if look.colour == COLOURS["fastkan"] else 1.4,
            }  # fmt: skip
            above.plot(at, [1e3 * t.seconds.median for t in timings], label=rival, **style)
            low, high = ([1e3 * getattr(t.seconds, side) for t in timings] for side in ("low", "high"))
            above.fill_between(at, low, high, color=look.colour, alpha=0.2, linewidth=0)
            below.plot(at, [(t.peak_bytes or float("nan")) / 2**20 for t in timings], label=rival, **style)
        above.set_title(MODES[mode].words, fontsize=11)
        below.set_xlabel(words)
        values = sorted({value(result.case) for result in results})
        for axes in (above, below):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(values, [str(v) for v in values])
            axes.xaxis.set_minor_locator(ticks.NullLocator())
            tidy(axes, "y")
    panels[0, 0].set_ylabel("time, ms: median and quartiles")
    panels[1, 0].set_ylabel("peak memory, MiB")
    handles = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels())}
    handles = {rival: handles[rival] for rival in looks if rival in handles}
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=10, handlelength=3.5
    )
    wrong = _wrong(results, value)
    heading = f"{words[0].upper()}{words[1:]} varied; otherwise {_middle(results, name)}"
    head(figure, heading, f"Too far from float64 to be timed: {wrong}\n{where}" if wrong else where)
    return figure


def _wrong(results: list[CaseResult], value: Callable[[Case], int]) -> str:
    """Who is, and where."""
    found: dict[str, list[str]] = {}
    for result in results:
        for row in result.rows:
            for mode, note in (("", row.note), *((f" ({MODES[mode].heading})", n) for mode, n in row.notes.items())):
                if note == WRONG:
                    found.setdefault(row.rival + mode, []).append(str(value(result.case)))
    return "; ".join(f"{name} at {', '.join(at)}" for name, at in found.items())


def _middle(results: list[CaseResult], name: str) -> str:
    """What a sweep keeps, in words."""
    case = results[0].case
    kept = {
        "rows": f"{case.rows} rows",
        "width": f"widths {'-'.join(map(str, case.widths))}",
        "grid": f"grid {case.grid_size}",
        "order": f"order {case.order}",
    }
    return ", ".join(words for other, words in kept.items() if other != name)


def _looks(results: list[CaseResult]) -> dict[str, Look]:
    """Of all rivals that are there, in the order of the tables."""
    names = dict.fromkeys(row.rival for result in results for row in result.rows if row.note != NOT_INSTALLED)
    found: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        package = name.split(",")[0]
        variant = seen[package] = seen.get(package, -1) + 1
        found[name] = Look(COLOURS.get(package, SPARE_COLOUR), variant, MARKERS[number % len(MARKERS)])
    return found


def _of_sweep(results: list[CaseResult], name: str) -> list[CaseResult]:
    wanted = {case.name for case in SWEEPS[name]}
    return sorted((r for r in results if r.case.name in wanted), key=lambda r: VARIED[name][1](r.case))


def _has(result: CaseResult, mode: str) -> bool:
    return any(row.rival == ANCHOR and mode in row.timings for row in result.rows)


def _told(result: CaseResult, name: str, mode: str) -> bool:
    return any(row.rival == name and (mode in row.timings or row.note or mode in row.notes) for row in result.rows)


def head(figure: Figure, words: str, where: str) -> None:
    """A title, and below where it was measured."""
    figure.suptitle(words, fontsize=13)
    figure.supxlabel(where, fontsize=7, color="#555555", wrap=True)


def tidy(axes: Axes, along: str) -> None:
    """Plain numbers and a pale grid along the logarithmic axis."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticks.NullFormatter())
    axes.grid(axis="x" if along == "x" else "y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def digits(value: float) -> str:
    """Three of them, or fewer."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def saved(figure: Figure, path: Path) -> Path:
    """As a file."""
    figure.savefig(path, dpi=DPI)
    return path
