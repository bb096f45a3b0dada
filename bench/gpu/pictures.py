"""A GPU's figures as pictures: time against the matrix products, peak memory, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import COLOURS, HATCHES, bar_panels, draw_bar, head, saved, tidy
from ..report import digits
from . import contest
from .block import place
from .rows import SWEEP, Row

SWEPT = {row.name for row in SWEEP}
# colour and hatch of each contestant; names as a reader knows them
LOOKS = {
    contest.AUTO: ("fastkan", COLOURS["fastkan"], HATCHES[0]),
    contest.LINEAR: ("nn.Linear, as many parameters", COLOURS["MLP"], HATCHES[0]),
    contest.PLAIN: ("plain Cox-de Boor", COLOURS["plain Cox-de Boor"], HATCHES[0]),
    contest.COMPILED: ("plain Cox-de Boor, torch.compile", COLOURS["plain Cox-de Boor"], HATCHES[1]),
    contest.INKAN: ("inkan, torch.compile", COLOURS["inkan"], HATCHES[1]),
}
MARKERS = {"bfloat16": "o", "float16": "s", "tf32": "^", "highest": "D"}
DASHES = {"bfloat16": "-", "float16": (0, (1, 1)), "tf32": "--", "highest": ":"}
DTYPE_WORDS = {"bfloat16": "bf16", "float16": "fp16", "tf32": "tf32", "highest": "float32"}


def draw(data: dict[str, Any], folder: Path) -> list[Path]:
    """What there is, as PNG files.

    Args:
        data: of :mod:`bench.gpu.publish`.
        folder: made if it is not there; its parent must be.
    """
    results = data["stages"].get("speed", {}).get("results", [])
    rows = [result for result in results if result["kind"] == "row" and result["name"] not in SWEPT]
    figures: dict[str, Figure] = {}
    if any("cold" in c for result in rows for c in result["contestants"] if c["name"] == contest.AUTO):
        figures["time"] = _bars(rows, data, "time divided by the matrix products' own, log scale", _time)
        figures["memory"] = _bars(rows, data, "peak memory of a call beside its input and parameters, MiB", _memory)
    ceilings = next((result for result in results if result["kind"] == "ceilings"), None)
    if ceilings is not None:
        figures["roofline"] = _roofline(rows, ceilings, data)
    if figures:
        folder.mkdir(exist_ok=True)
    return [saved(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _time(entry: dict[str, Any]) -> tuple[float, float, float] | None:
    ratio = entry.get("cold", {}).get("ratios", {}).get(contest.GEMM)
    return None if ratio is None else (ratio["median"], ratio["low"], ratio["high"])


def _memory(entry: dict[str, Any]) -> tuple[float, float, float] | None:
    peak = entry.get("peak_bytes")
    return (peak / 2**20,) * 3 if peak and "cold" in entry else None


def _bars(rows: Sequence[dict[str, Any]], data: dict[str, Any], what: str, value: Any) -> Figure:
    """A panel for each row, a bar for each contestant."""
    figure, panels = bar_panels(len(rows), what, 1.3, 1.75)
    for axes, result in zip(panels, rows):
        _panel(axes, result, value)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low, high * (high / low) ** 0.2)  # room for what is written beside the bars
    head(figure, what.split(",")[0][0].upper() + what.split(",")[0][1:], place(data))
    return figure


def _panel(axes: Axes, result: dict[str, Any], value: Any) -> None:
    of = {c["name"]: c for c in result["contestants"]}
    shown = [(name, found) for name in LOOKS if name in of and (found := value(of[name])) is not None]
    floor = 1.0 if value is _time else min((found[0] for _, found in shown), default=1.0) / 2
    if value is _time:
        axes.axvline(1, color="black", linewidth=1, zorder=3)
    for at, (name, (median, low, high)) in enumerate(shown):
        _, colour, hatch = LOOKS[name]
        draw_bar(axes, at, (median, low, high), colour, hatch, digits(median), floor)
    axes.set_yticks(range(len(shown)), [LOOKS[name][0] for name, _ in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_title(result["name"].replace("bfloat16", "bf16").replace("highest", "float32"), fontsize=9, loc="left")
    tidy(axes, "x")


def _roofline(rows: Sequence[dict[str, Any]], ceilings: dict[str, Any], data: dict[str, Any]) -> Figure:
    """Operations of the dense products a second, over those for each byte that must be moved."""
    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    bandwidth = ceilings["copy"]["rate"]
    points = [point for result in rows for point in _points(result)]
    far = 4 * max([p[0] for p in points] + [found["rate"] / bandwidth for found in ceilings["products"].values()])
    near = min([p[0] for p in points] + [1.0]) / 2
    for dtype, found in ceilings["products"].items():
        ridge = found["rate"] / bandwidth
        axes.plot(
            [near, ridge, far], [near * bandwidth / 1e12, *[found["rate"] / 1e12] * 2], color="#777777",
            linestyle=DASHES[dtype], linewidth=1.2, label=f"{DTYPE_WORDS[dtype]}: {found['rate'] / 1e12:.3g} TFLOP/s",
        )  # fmt: skip
    for intensity, rate, name, dtype in points:
        words, colour, _ = LOOKS[name]
        axes.plot(
            intensity, rate / 1e12, MARKERS[dtype], color=colour, markersize=7, label=f"{words}, {DTYPE_WORDS[dtype]}"
        )
    axes.set_xlabel("operations of the dense products for each byte that must be moved")
    axes.set_ylabel("TFLOP/s")
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    axes.legend(list(handles.values()), list(handles), fontsize=8, frameon=False, loc="lower right")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    head(figure, f"Roofline; a copy moves {bandwidth / 1e12:.3g} TB/s", place(data))
    return figure


def _points(result: dict[str, Any]) -> list[tuple[float, float, str, str]]:
    """Intensity, rate, contestant and dtype."""
    row = Row(**result["row"])
    found = []
    for entry in result["contestants"]:
        inputs = {contest.AUTO: row.inputs, contest.LINEAR: row.wide}.get(entry["name"])
        if inputs is not None and "cold" in entry:
            seconds = entry["cold"]["seconds"]["median"]
            intensity = row.operations / row.least_bytes(inputs)
            found.append((intensity, row.operations / seconds, entry["name"], row.dtype))
    return found
