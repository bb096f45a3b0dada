"""The form of a claim: what is said, how it is run, and how its results become a verdict, a table and a picture."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import tidy
from ..records import Result

SEEDS = 5
HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"
# The colors of Okabe and Ito, which color-blind people can tell apart: KANs are blue, pykan is red, others are neutral.
COLORS = {"KAN": "#0072B2", "pykan": "#D55E00", "MLP": "#000000"}
OTHER_COLORS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C8C8C")


class Effort(NamedTuple):
    """The cost of a run.

    Args:
        seeds: the seeds, which are fixed before anything is run.
        share: the share of the processor time of a full run, at most 1. Counts of problems and steps shrink with it.
        peers: whether pykan takes part.
    """

    seeds: Sequence[int] = range(SEEDS)
    share: float = 1.0
    peers: bool = True

    def seconds(self, full: float) -> float:
        """Return the processor time for a part that takes ``full`` seconds in a full run."""
        return full * self.share

    def count(self, full: int, least: int = 1) -> int:
        """Return the number of steps or rows for a part that has ``full`` of them in a full run."""
        return max(least, round(full * self.share))

    def some(self, items: Sequence[Any]) -> list[Any]:
        """Return the first items, at least one."""
        return list(items[: max(1, math.ceil(len(items) * self.share))])


class Verdict(NamedTuple):
    """The answer, one of ``HOLDS``, ``IN_PART`` and ``FAILS``, a sentence with the main figures, and all others."""

    answer: str
    sentence: str
    more: str = ""

    @property
    def reason(self) -> str:
        """The sentences together."""
        return f"{self.sentence} {self.more}".strip()


class Claim(NamedTuple):
    """A claim about KANs.

    Args:
        name: the name on the command line and of the files.
        title: the title of a section.
        statement: what is claimed and where, with published figures.
        setting: what is run here, and what counts.
        run: a function that yields flat results, each with a ``case``, a ``contender`` and a ``seed``.
        verdict: the verdict by a rule that was written before the results were known.
        table: a table of text.
        draw: a picture.
    """

    name: str
    title: str
    statement: str
    setting: str
    run: Callable[[Effort], Iterator[Result]]
    verdict: Callable[[Sequence[Result]], Verdict]
    table: Callable[[Sequence[Result]], pd.DataFrame]
    draw: Callable[[Sequence[Result]], Figure]


# -- results --------------------------------------------------------------------------------------


def attempt(case: str, contender: str, seed: int, work: Callable[[], Result]) -> Result:
    """Return the result of ``work`` with the processor time; ``error`` is None and ``note`` says why if it raises."""
    start = time.process_time()
    found: Result = {"case": case, "contender": contender, "seed": seed, "error": None, "parameters": None}
    try:
        found |= work()
    except Exception as problem:  # of any kind: an error in a package must not end the run
        found["note"] = _why(problem)
    if found["error"] is not None and not math.isfinite(found["error"]):
        found |= {"error": None, "note": "not finite"}
    return {**found, "cpu": time.process_time() - start}


def attempts(
    case: str, contender: str, seed: int, grids: Sequence[int], work: Iterator[float], parameters: Callable[[int], int]
) -> Iterator[Result]:
    """Yield a result for each grid that ``work``, which yields the errors, comes to, with the time of all grids so far.

    An error that is not finite becomes None. If ``work`` raises, each grid that is left has a result whose ``error`` is
    None and whose ``note`` says why. If it ends early, since its time is up, the grids that are left have no result.

    Args:
        parameters: the number of parameters on a grid.
    """
    start, note = time.process_time(), None
    for grid in grids:
        error = None
        if note is None:
            try:
                error = next(work)
            except StopIteration:
                return
            except Exception as problem:  # of any kind: an error in a package must not end the run
                note = _why(problem)
        is_finite = error is not None and math.isfinite(error)
        yield {
            "case": case, "contender": contender, "seed": seed, "grid": grid, "error": error if is_finite else None,
            "parameters": parameters(grid), **({} if is_finite else {"note": note or "not finite"}),
            "cpu": time.process_time() - start,
        }  # fmt: skip


def _why(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"[:160]


def groups(results: Iterable[Result], *fields: str) -> dict[tuple, list[Result]]:
    """Group results by the values of fields, in the order of their first appearance."""
    found: dict[tuple, list[Result]] = {}
    for result in results:
        found.setdefault(tuple(result.get(field) for field in fields), []).append(result)
    return found


def values(results: Iterable[Result], field: str = "error") -> list[float]:
    """Return the values of a field, with infinity for results without a finite value."""
    found = [result.get(field) for result in results]
    return [math.inf if value is None or not math.isfinite(value) else float(value) for value in found]


def median(results: Iterable[Result], field: str = "error") -> float:
    """Return the median of a field over the seeds; NaN without results."""
    found = values(results, field)
    return statistics.median(found) if found else math.nan


def of(results: Iterable[Result], case: str | None = None, contender: str | None = None) -> list[Result]:
    """Return the results of a case and of a contender; None means any."""
    return [
        result
        for result in results
        if case in (None, result["case"]) and contender in (None, result["contender"])
    ]  # fmt: skip


def best(results: Iterable[Result], prefix: str, field: str = "error") -> tuple[str, float]:
    """Return the contender whose name starts with ``prefix`` that has the smallest median, and the median."""
    found = {
        name: median(group, field)
        for (name,), group in groups(results, "contender").items()
        if str(name).startswith(prefix)
    }
    return min(found.items(), key=lambda item: item[1]) if found else ("none", math.inf)


def spread_words(results: Sequence[Result], field: str = "error") -> str | None:
    """Return the median and the range over the seeds as text, such as ``1.2e-03 (1.0e-03 to 2.0e-03)``."""
    found = sorted(values(results, field))
    if not found:
        return None
    middle = number(statistics.median(found))
    return middle if len(found) == 1 else f"{middle} ({number(found[0])} to {number(found[-1])})"


def number(value: float) -> str:
    """Return a number as text with two digits, or ``failed`` for infinity."""
    return (
        "failed"
        if not math.isfinite(value)
        else f"{value:.1e}"
        if abs(value) < 0.01 or value >= 1e4
        else f"{value:.2g}"
    )


def error_table(results: Sequence[Result], what: str = "test RMSE", field: str = "error") -> pd.DataFrame:
    """Return a table with a row for each case and contender: parameters, error over the seeds, and seconds."""
    rows = []
    for (case, contender), group in groups(results, "case", "contender").items():
        counts = [result["parameters"] for result in group if result.get("parameters")]
        rows.append({
            "case": case, "network": contender, "parameters": str(counts[0]) if counts else None,
            f"{what}, median (range)": spread_words(group, field), "CPU s": f"{median(group, 'cpu'):.1f}",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("case")


# -- pictures -------------------------------------------------------------------------------------


def color(contender: str, index: int) -> str:
    """Return the color of a contender."""
    package = next((name for name in COLORS if contender.startswith(name)), None)
    return OTHER_COLORS[index % len(OTHER_COLORS)] if package is None else COLORS[package]


def bars(results: Sequence[Result], label: str, field: str = "error") -> Figure:
    """Draw a panel for each case with a dot for each seed and a line at the median of each contender."""
    cases = groups(results, "case")
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    names = list(dict.fromkeys(result["contender"] for result in results))
    figure = Figure(figsize=(6.5 * columns, 0.8 + lines * (0.7 + 0.27 * len(names))), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(cases) :]:
        axes.set_visible(False)
    for axes, ((case,), group) in zip(panels.flat, cases.items()):
        dots(axes, group, label, field)
        axes.set_title(case, fontsize=10, loc="left")
    return figure


def dots(axes: Axes, results: Sequence[Result], label: str, field: str = "error") -> None:
    """Draw a dot for each seed and a line at the median of each contender."""
    names = list(dict.fromkeys(result["contender"] for result in results))
    for at, name in enumerate(names):
        found = [value for value in values(of(results, None, name), field) if math.isfinite(value)]
        if found:
            shade = color(name, at)
            axes.plot(found, [at] * len(found), "o", color=shade, alpha=0.45, markersize=5)
            axes.plot([statistics.median(found)] * 2, [at - 0.35, at + 0.35], color=shade, linewidth=2.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlabel(label, fontsize=9)
    _powers(axes, "x")


def lines(
    results: Sequence[Result], across: str, label_across: str, label: str, field: str = "error", slope: float = 0.0
) -> Figure:
    """Draw a panel for each case with the median and the range of each contender over a field.

    Args:
        slope: the exponent of a dashed power law that starts at the first point of the first contender, or 0.
    """
    cases = groups(results, "case")
    columns = min(2, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(1 + 5.2 * columns, 0.6 + 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(cases) :]:
        axes.set_visible(False)
    names = list(dict.fromkeys(result["contender"] for result in results))
    shades = {name: color(name, at) for at, name in enumerate(names)}
    alike = {name: [other for other in names if shades[other] == shades[name]].index(name) for name in names}
    for axes, ((case,), group) in zip(panels.flat, cases.items()):
        for (name,), own in groups(group, "contender").items():
            points = {at: sorted(values(some, field)) for (at,), some in groups(own, across).items()}
            at = sorted(x for x in points if all(map(math.isfinite, points[x])))
            if not at:
                continue
            middle = [statistics.median(points[x]) for x in at]
            style, marker = ("-", ":", "--", "-.")[alike[name] % 4], "o^xs"[alike[name] % 4]
            axes.plot(at, middle, style, marker=marker, markersize=5, color=shades[name], label=name)
            axes.fill_between(
                at, [points[x][0] for x in at], [points[x][-1] for x in at], color=shades[name], alpha=0.15
            )
        first = sorted(next(iter(groups(group, "contender").values())), key=lambda result: result[across])
        if slope and first:
            start = median([each for each in first if each[across] == first[0][across]], field)
            ends = [first[0][across], first[-1][across]]
            axes.plot(
                ends, [start * (x / ends[0]) ** slope for x in ends], ":", color="#8C8C8C", label=f"slope {slope:g}"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(case, fontsize=10, loc="left")
        axes.set_xlabel(label_across, fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        _powers(axes, "y")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _powers(axes: Axes, along: str) -> None:
    """Draw a pale grid, and write powers of ten on a logarithmic axis."""
    tidy(axes, along)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value else "0")
