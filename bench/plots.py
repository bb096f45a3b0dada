"""Results as pictures: bars of ratios for each mode, lines for each sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.ticker as ticks
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, Result, place
from .report import digits, title
from .suite.cases import SWEEPS, VARIED, Case
from .suite.contenders import MLP, NOT_INSTALLED, OURS
from .suite.modes import MODES
from .suite.run import WRONG

COLOURS = {  # those of Okabe and Ito, which colour-blind people can tell apart; one for each package
    OURS: "#0072B2",
    "MLP": "#000000",
    "bare matrix products": "#8C8C8C",
    "plain Cox-de Boor": "#E69F00",
    "inkan": "#009E73",
    "flashkan": "#CC79A7",
    "efficient_kan": "#56B4E9",
    "pykan": "#D55E00",
}
OTHER_COLOUR = "#B8A800"  # for added contenders
HATCHES = ("", "////", "....", "xxxx")  # for the variants of a package
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X<>"
DPI = 120
MIN_POINTS = 2  # of a sweep that is drawn as lines


class Look(NamedTuple):
    """Colour, variant within the package, and marker of a contender in all pictures."""

    colour: str
    variant: int
    marker: str


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw PNG files of all results.

    Args:
        folder: created if it does not exist; its parent must.

    Returns:
        The files: a mode's name for bars of its ratios, and names that begin with ``memory-`` and ``sweep-``.
    """
    folder.mkdir(exist_ok=True)
    return [saved(figure, folder / f"{name}.png") for name, figure in _figures(record)]


def _figures(record: Record) -> Iterator[tuple[str, Figure]]:
    looks, where = _looks(record.results), place(record.about)
    names = {result["case"] for result in record.results}
    sweeps = {name: [case for case in cases if case.name in names] for name, cases in SWEEPS.items()}
    sweeps = {name: cases for name, cases in sweeps.items() if len(cases) >= MIN_POINTS}
    in_sweeps = {case.name for cases in sweeps.values() for case in cases}
    single = [result for result in record.results if result["case"] not in in_sweeps]
    for mode in MODES:
        shown = {r["case"] for r in single if r["mode"] == mode and r["contender"] == MLP and r["seconds"]}
        panels = [r for r in single if r["mode"] == mode and r["case"] in shown]
        if panels:
            yield mode, _bars(panels, mode, looks, where, _time)
            yield f"memory-{mode}", _bars(panels, mode, looks, where, _memory)
    for name, cases in sweeps.items():
        yield f"sweep-{name}", _lines(record.results, name, cases, looks, where)


Bar = tuple[Sequence[float], str]  # median and quartiles of a ratio to the MLP, and the text beside it


def _time(result: Result, anchor: Result) -> Bar | None:
    ratio = result["ratios"].get(MLP)
    return None if ratio is None else (ratio, f"{digits(ratio[0])}x")


def _memory(result: Result, anchor: Result) -> Bar | None:
    own, base = result["peak_bytes"], anchor["peak_bytes"]
    return ([own / base] * 3, f"{digits(own / 2**20)} MiB") if own and base else None


def _bars(
    results: Sequence[Result], mode: str, looks: dict[str, Look], where: str, bar: Callable[..., Bar | None]
) -> Figure:
    """A panel for each case, a bar for each contender, from 1, the MLP."""
    names = [name for name in looks if name != MLP and any(result["contender"] == name for result in results)]
    cases = list(dict.fromkeys(result["case"] for result in results))
    what = "time" if bar is _time else "peak memory"
    label, height = f"{what} divided by the MLP's, log scale", 0.9 + 0.3 * len(names)
    figure, panels = bar_panels(len(cases), label, 1.5, height, sharey=True)
    for axes, case in zip(panels, cases):
        rows = {result["contender"]: result for result in results if result["case"] == case}
        axes.axvline(1, color="black", linewidth=1, zorder=3)
        for at, name in enumerate(names):
            row = rows.get(name)
            found = bar(row, rows[MLP]) if row is not None and row["seconds"] else None
            if found is None:
                note = "-" if row is None or row["note"] is None else row["note"].split(":")[0]
                axes.annotate(
                    note, (1, at), (4, 0), textcoords="offset points", va="center", color="#777777", fontsize=8,
                    style="italic",
                )  # fmt: skip
            else:
                look = looks[name]
                draw_bar(axes, at, found[0], look.colour, HATCHES[look.variant % len(HATCHES)], found[1])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title(rows[MLP]), fontsize=10, loc="left")
        tidy(axes, "x")
    spread = ", median and quartiles" if bar is _time else ""
    head(figure, f"{MODES[mode].words}: {what}{spread}", where)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(min(low, 0.7), high * (high / low) ** 0.2)  # room for the text beside the bars
    return figure


def bar_panels(count: int, label: str, margin: float, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of panels in up to two columns, on one logarithmic axis that is labelled below each column."""
    columns = min(2, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(0.6 + 5.6 * columns, margin + height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=sharey, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for column in range(columns):
        lowest = panels[(count - 1 - column) // columns, column]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(label, fontsize=9)
    for axes in panels.flat[:count]:
        axes.set_xscale("log")
    return figure, list(panels.flat[:count])


def draw_bar(
    axes: Axes, at: int, spread: Sequence[float], colour: str, hatch: str, words: str, floor: float = 1.0
) -> None:
    """A horizontal bar from ``floor`` to a median, with quartiles and a text."""
    median, low, high = spread[:3]
    axes.barh(at, median - floor, left=floor, height=0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
    if high > low:
        axes.errorbar(median, at, xerr=[[median - low], [high - median]], color="black", capsize=2.5, linewidth=1)
    axes.annotate(words, (max(high, floor), at), (5, 0), textcoords="offset points", va="center", fontsize=9)


def _lines(results: Sequence[Result], name: str, cases: Sequence[Case], looks: dict[str, Look], where: str) -> Figure:
    """A column for each mode, time above and memory below; a line for each contender with a band of quartiles."""
    words, value = VARIED[name]
    values = {case.name: value(case) for case in sorted(cases, key=value)}
    shown = [result for result in results if result["case"] in values]
    timed = [mode for mode in MODES if any(result["mode"] == mode and result["seconds"] for result in shown)]
    figure = Figure(figsize=(3.2 + 4.4 * len(timed), 8.2), layout="constrained")
    panels = figure.subplots(2, len(timed), sharex=True, sharey="row", squeeze=False)
    for mode, (above, below) in zip(timed, panels.T):
        for contender, look in looks.items():
            found = [r for r in shown if r["contender"] == contender and r["mode"] == mode and r["seconds"]]
            if not found:
                continue
            found.sort(key=lambda result: values[result["case"]])
            at = [values[result["case"]] for result in found]
            style: dict[str, Any] = {
                "color": look.colour, "linestyle": DASHES[look.variant % len(DASHES)], "marker": look.marker,
                "markersize": 5, "linewidth": 2.4 if look.colour == COLOURS[OURS] else 1.4, "label": contender,
            }  # fmt: skip
            median, low, high = ([1e3 * result["seconds"][part] for result in found] for part in range(3))
            above.plot(at, median, **style)
            above.fill_between(at, low, high, color=look.colour, alpha=0.2, linewidth=0)
            below.plot(at, [(result["peak_bytes"] or float("nan")) / 2**20 for result in found], **style)
        above.set_title(MODES[mode].words, fontsize=11)
        below.set_xlabel(words)
        for axes in (above, below):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(list(values.values()), [str(v) for v in values.values()])
            axes.xaxis.set_minor_locator(ticks.NullLocator())
            tidy(axes, "y")
    panels[0, 0].set_ylabel("time, ms: median and quartiles")
    panels[1, 0].set_ylabel("peak memory, MiB")
    handles = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels())}
    ordered = [name for name in looks if name in handles]
    figure.legend(
        [handles[name] for name in ordered], ordered, loc="outside right upper", frameon=False, handlelength=3.5
    )
    wrong = _wrong(shown, values)
    head(
        figure,
        f"{words[0].upper()}{words[1:]} varied; otherwise {_constant(cases[0], name)}",
        f"Too far from float64 to be timed: {wrong}\n{where}" if wrong else where,
    )
    return figure


def _wrong(results: Sequence[Result], values: dict[str, int]) -> str:
    """The contenders that are too far from float64, and at which values of the sweep."""
    found: dict[str, list[str]] = {}
    for result in results:
        if result["note"] == WRONG:
            name = f"{result['contender']} ({MODES[result['mode']].heading})"
            found.setdefault(name, []).append(str(values[result["case"]]))
    return "; ".join(f"{name} at {', '.join(at)}" for name, at in found.items())


def _constant(case: Case, name: str) -> str:
    """The properties that a sweep keeps, in words."""
    words = {
        "rows": f"{case.rows} rows",
        "width": f"widths {'-'.join(map(str, case.widths))}",
        "grid": f"grid {case.grid_size}",
        "order": f"order {case.order}",
    }
    return ", ".join(text for other, text in words.items() if other != name)


def _looks(results: Sequence[Result]) -> dict[str, Look]:
    """Looks of all installed contenders, in the order of the tables."""
    found: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for name in dict.fromkeys(r["contender"] for r in results if r["note"] != NOT_INSTALLED):
        package = name.split(",")[0]
        variant = seen[package] = seen.get(package, -1) + 1
        found[name] = Look(COLOURS.get(package, OTHER_COLOUR), variant, MARKERS[len(found) % len(MARKERS)])
    return found


def head(figure: Figure, words: str, where: str) -> None:
    """Write a title, and below the picture where it was measured."""
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


def saved(figure: Figure, path: Path) -> Path:
    """Save a figure, and return the path."""
    figure.savefig(path, dpi=DPI)
    return path
