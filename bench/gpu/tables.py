"""The stages' results as short tables, from their JSON: 120 columns are enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import bars, contest

MAX_LINES = 12  # of failures, for each stage
SHOWN = (
    contest.GEMM,
    contest.LINEAR,
    contest.PLAIN,
    contest.COMPILED,
    contest.INKAN,
    "fused",
    "pipelined",
    "chunked",
    "gather",
)
HEADINGS = {
    contest.PLAIN: "plain",
    contest.COMPILED: "comp.",
    contest.INKAN: "inkan",
    "pipelined": "pipe",
    "chunked": "chunk",
}
LEGEND = (
    "auto: median ms from a cold cache, launches hidden, ± half the distance of the quartiles. The others: their time "
    "over auto's in the same round, median: above 1, auto is quicker. gemm: the bare products; linear: nn.Linear of as "
    "many parameters. err: auto's largest deviation from float64 over the largest value; MiB: its peak beside output "
    "and gradients. -: no time (absent, failed or wrong: speed.json says which)."
)


def show(console: Console, found: dict[str, dict]) -> None:
    """One table or line for each stage, then what failed."""
    views = {
        "tests": _tests, "hazard": _hazard, "speed": _speed, "tune": _tune, "parts": _parts, "sanitizer": _sanitizer,
    }  # fmt: skip
    for stage, data in found.items():
        for part in views[stage](data):
            console.print(part, highlight=False)
    for stage, data in found.items():
        console.print(_closing(stage, data), highlight=False, markup=False)
        for line in data["failures"][:MAX_LINES]:
            console.print(f"  {line}", highlight=False, markup=False, style="red", overflow="fold")
        rest = len(data["failures"]) - MAX_LINES
        if rest > 0:
            console.print(f"  and {rest} more", style="red", highlight=False)


def _closing(stage: str, data: dict) -> str:
    failed = len(data["failures"])
    verdict = "ok" if not failed else f"{failed} failed"
    left = f"; left out: {_short(data['left_out'])}" if data["left_out"] else ""
    return f"{stage}: {verdict}, {len(data['results'])} results in {data['seconds']:.0f} s{left}"


def _short(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _tests(data: dict) -> Iterator[Any]:
    for result in data["results"]:
        yield f"tests: {result['closing'] or 'no closing line'}"


def _sanitizer(data: dict) -> Iterator[Any]:
    for result in data["results"]:
        yield f"{result['tool']}: {result['failure'] or 'nothing found'}"


def _hazard(data: dict) -> Iterator[Any]:
    """Counts by contraction and dtype."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in data["results"]:
        if "repeats" in result:
            groups.setdefault((f"{result['contraction']}_{result['derivative']}", result["setting"]), []).append(result)
    view = _view("hazard: repeats against exact results", "", "dtype", "trials", "repeats", "unseen poison", "wrong")
    for (contraction, setting), results in sorted(groups.items()):
        wrong = sum(r["failure"] is not None for r in results)
        view.add_row(
            contraction, setting, str(len(results)), str(sum(r["repeats"] for r in results)),
            str(sum(not r["poison_seen"] for r in results)), str(wrong), style="red" if wrong else None,
        )  # fmt: skip
    if groups:
        yield view


def _speed(data: dict) -> Iterator[Any]:
    for result in data["results"]:
        if result["kind"] == "ceilings":
            rates = ", ".join(f"{name} {found['rate'] / 1e12:.4g}" for name, found in result["products"].items())
            yield f"ceilings: copy {result['copy']['rate'] / 1e12:.3g} TB/s; TFLOP/s of products: {rates}"
    headings = [HEADINGS.get(name, name) for name in SHOWN]
    view = _view("speed", "row", "auto ms", *headings, "err", "MiB")
    for result in data["results"]:
        if result["kind"] == "row":
            view.add_row(*_row(result))
    yield view
    yield f"[dim]{LEGEND}[/dim]"
    for result in data["results"]:
        if result["kind"] == "graphed":
            yield _graphed(result)
    yield _bars(data)


def _bars(data: dict) -> Table:
    """What was to be reached, and what was."""
    view = _view("what must be reached: time is ours / anchor's, speed anchor's / ours, memory a share", "")
    for heading in ("quantity", "at least", "aim", "found", "±", "err", "verdict"):
        view.add_column(heading, justify="right", no_wrap=True)
    for one in bars.judged(data["results"]):
        bar, value = one.bar, one.value
        view.add_row(
            bar.what, bar.quantity, f"{bar.least:g}", f"{bar.aim:g}",
            "-" if value is None else f"{value.median:.3g}",
            "-" if value is None else f"{(value.high - value.low) / 2:.1g}",
            "-" if one.error is None else f"{one.error:.0e}", one.verdict,
            style={bars.MISSED: "red", bars.UNMEASURED: "dim"}.get(one.verdict),
        )  # fmt: skip
    return view


def _row(result: dict) -> list[str]:
    of = {c["name"]: c for c in result["contestants"]}
    auto = of[contest.AUTO]
    cells = [result["name"].replace("bfloat16", "bf16"), _milliseconds(auto["cold"]) if "cold" in auto else "-"]
    for name in SHOWN:
        against = of.get(name, {}).get("cold", {"ratios": {}})["ratios"].get(contest.AUTO)
        cells.append("-" if against is None else _digits(against["median"]))
    error = max((d["largest"] for d in auto.get("error", {}).values()), default=None)
    cells.append("-" if error is None else f"{error:.0e}")
    cells.append(f"{auto['extra_bytes'] / 2**20:.0f}" if "extra_bytes" in auto else "-")
    return cells


def _milliseconds(timing: dict) -> str:
    median, low, high = (1e3 * timing["seconds"][name] for name in ("median", "low", "high"))
    return f"{median:.3g} ±{(high - low) / 2 / median:.0%}"


def _graphed(result: dict) -> Table:
    view = _view(result["name"], "network", "fwd+bwd us", "/MLP", "training step us", "/MLP", "note")
    for entry in result["contestants"]:
        cells = [entry["name"]]
        for mode in ("backward", "step"):
            found = entry.get(mode)
            cells.append(f"{1e6 * found['seconds']['median']:.1f}" if found else "-")
            ratios = list(found["ratios"].values()) if found else []
            cells.append(f"{ratios[0]['median']:.2f}" if ratios else "-")
        view.add_row(*cells, entry["note"] or "")
    return view


def _tune(data: dict) -> Iterator[Any]:
    view = _view("tune: the best configuration against the default", "", "default", "us", "best", "us", "ratio", "ran")
    for result in data["results"]:
        if "best" not in result:
            continue
        default, best = result["default_seconds"]["median"], result["best_seconds"]["median"]
        ran = f"{result['candidates'] - len(result['dropped'])}/{result['candidates']}"
        view.add_row(
            result["name"].replace("bfloat16", "bf16"), _config(result["default"]), f"{1e6 * default:.0f}",
            _config(result["best"]), f"{1e6 * best:.0f}", f"{result['ratio']['median']:.2f}", ran,
        )  # fmt: skip
    if view.row_count:
        yield view


def _parts(data: dict) -> Iterator[Any]:
    """Time with a stage left out, of the whole kernel's."""
    names = ("no features", "no product", "no loads")
    view = _view("parts: time with one stage left out, of the whole kernel's", "", "whole us", *names)
    for result in data["results"]:
        if "variants" in result:
            found = result["variants"]
            view.add_row(
                result["name"].replace("bfloat16", "bf16"), f"{1e6 * found['whole']['seconds']['median']:.0f}",
                *(f"{found[name]['ratio']['median']:.2f}" if name in found else "-" for name in names),
            )  # fmt: skip
    if view.row_count:
        yield view


def _config(config: dict) -> str:
    tiles = f"{config['rows']}x{config['columns']}x{config['inner']}"
    splines = f" b{config['splines']}" if config["splines"] > 1 else ""
    return f"{config['way']} {tiles}{splines} w{config['warps']} s{config['stages']}"


def _digits(number: float) -> str:
    return f"{number:.2f}" if number < 9.95 else f"{number:.0f}"


def _view(title: str, *headings: str) -> Table:
    view = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for number, heading in enumerate(headings):
        view.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    return view
