"""The README's words about GPUs, made from ``bench/results/<gpu>.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import bars

PICTURES = {
    "time": "Time of each layer divided by that of the matrix products alone",
    "memory": "Peak memory of each layer",
    "roofline": "Attained rate against arithmetic intensity, below the measured ceilings",
}
NOTHING = (
    "Nothing has run on a GPU yet, so there is no GPU figure here; [another page](gpu/README.md) says what must "
    "be reached and how it will be measured."
)
STATE = "**they have not run on a GPU yet**, so there is no GPU figure here."


def published(folder: Path) -> dict[str, dict[str, Any]]:
    """The GPU files of a folder, by name."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: data for name, data in found.items() if isinstance(data, dict) and {"gpu", "bars"} <= set(data)}


def state(found: dict[str, dict[str, Any]]) -> str:
    """The sentence on where the project stands."""
    if not found:
        return STATE
    told = [f"{data['gpu']['name']} ({_reached(data)})" for data in found.values()]
    return f"they have been measured on {' and '.join(told)}: [the figures](bench/README.md#on-a-gpu)."


def _reached(data: dict[str, Any]) -> str:
    verdicts = [one["verdict"] for one in data["bars"]]
    return f"{sum(v in (bars.AIM, bars.MET) for v in verdicts)} of {len(verdicts)} bars met"


def block(found: dict[str, dict[str, Any]], folder: Path, root: Path) -> str:
    """All GPUs' tables, and the pictures that are there.

    Args:
        folder: of the files; a GPU's pictures lie in a folder of its name.
        root: from which the README's links go.
    """
    if not found:
        return NOTHING + "\n"
    return "\n\n".join(part for name, data in found.items() for part in _parts(data, folder / name, root)) + "\n"


def place(data: dict[str, Any]) -> str:
    """GPU, versions and commit in one line."""
    versions = {**data["versions"]}
    names = ("torch", "triton", "ptxas", "cuda", "inkan", "python")
    told = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
    return f"{data['gpu']['name']}, driver {data['gpu']['driver']}; {told}, commit {data['commit'][:10]}"


def _parts(data: dict[str, Any], pictures: Path, root: Path) -> Iterator[str]:
    yield _bars(data["bars"])
    for told in (_proved(data["stages"]), _unmeasured(data["bars"]), _ceilings(data["stages"])):
        if told:
            yield told
    parts = [r for r in data["stages"].get("parts", {}).get("results", []) if "variants" in r]
    if parts:
        yield _limits(parts)
    for name, words in PICTURES.items():
        path = pictures / f"{name}.png"
        if path.is_file():
            yield f"![{words}]({path.relative_to(root)})"
    clocks = [run["speed"] for run in data["runs"] if "speed" in run]
    told = "; ".join(_clock(run["clocks_before"], run["clocks_after"]) for run in clocks if run["clocks_before"])
    yield f"Measured on {place(data)}{f' (SM clock {told})' if told else ''}."


def _clock(before: dict[str, str], after: dict[str, str] | None) -> str:
    return f"{before['clocks.sm']} MHz before, {after['clocks.sm'] if after else '?'} MHz after"


def _bars(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| what | row | fastkan, ms | found | at least | aim | error | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for one in found:
        bar, value, seconds = bars.Bar(**one["bar"]), one["value"], one["seconds"]
        cells = [
            bar.what,
            bar.row.replace("bfloat16", "bf16").replace("highest", "float32"),
            "-" if seconds is None else f"{1e3 * seconds['median']:.3g} ± {_half(seconds) * 1e3:.1g}",
            "-" if value is None else _figure(bar, value),
            _bound(bar, bar.least),
            _bound(bar, bar.aim),
            "-" if one["error"] is None else f"{one['error']:.0e}",
            one["verdict"] if one["best"] is None else f"{one['verdict']}; {_best(bar, one['best'])}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    legend = (
        "Times are medians from a cold cache, ± half the distance of the quartiles, and what is found is a ratio "
        "within the rounds of one run. The error is the largest deviation from float64, of outputs and gradients, "
        "divided by the largest value."
    )
    return "\n".join(lines) + "\n\n" + legend


def _half(spread: dict[str, float]) -> float:
    return (spread["high"] - spread["low"]) / 2


def _figure(bar: bars.Bar, value: dict[str, float]) -> str:
    if bar.quantity == bars.MEMORY:
        return f"{100 * value['median']:.1f}%"
    return f"{value['median']:.2f} ± {_half(value):.2f} {UNITS[bar.quantity]}"


UNITS = {bars.TIME: "of its time", bars.SPEED: "of its speed"}


def _bound(bar: bars.Bar, bound: float) -> str:
    if bar.quantity == bars.MEMORY:
        return f"{100 * bound:g}%"
    return f"{bound:g} {UNITS[bar.quantity]}"


def _best(bar: bars.Bar, best: Sequence[Any]) -> str:
    return f"forced {best[0]} {best[1]:.2f}"


def _proved(stages: dict[str, Any]) -> str:
    """What was tested, in a sentence."""
    told = []
    for result in stages.get("tests", {}).get("results", []):
        told.append(f"tests: {result['closing']}")
    hazards = stages.get("hazard", {}).get("results", [])
    if hazards:
        trials, repeats, wrong = (sum(result[name] for result in hazards) for name in ("trials", "repeats", "wrong"))
        told.append(f"{trials} trials against exact results, {repeats} repeats, {wrong} trials wrong")
    for result in stages.get("sanitizer", {}).get("results", []):
        if result["tool"] != "none" or result["failure"]:
            told.append(f"{result['tool']}: {result['failure'] or 'nothing found'}")
    return "; ".join(told) + "." if told else ""


def _unmeasured(found: Sequence[dict[str, Any]]) -> str:
    told = [f"{one['bar']['what']} ({one['why']})" for one in found if one["verdict"] == bars.UNMEASURED]
    return f"Not measured: {'; '.join(told)}." if told else ""


def _ceilings(stages: dict[str, Any]) -> str:
    results = [r for r in stages.get("speed", {}).get("results", []) if r["kind"] == "ceilings"]
    if not results:
        return ""
    rates = ", ".join(f"{name} {found['rate'] / 1e12:.3g}" for name, found in results[0]["products"].items())
    copied = results[0]["copy"]["rate"] / 1e12
    return f"What this GPU does at its best: a copy {copied:.3g} TB/s; products, TFLOP/s: {rates}."


def _limits(parts: Sequence[dict[str, Any]]) -> str:
    """Time with a stage left out."""
    lines = [
        "| time with one stage left out, of the whole's | whole, ms | no features | no product | no loads |",
        "|---|---:|---:|---:|---:|",
    ]
    for result in parts:
        found = result["variants"]
        cells = [result["name"].replace("bfloat16", "bf16"), f"{1e3 * found['whole']['seconds']['median']:.3g}"]
        for name in ("no features", "no product", "no loads"):
            cells.append(f"{found[name]['ratio']['median']:.2f}" if name in found else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
