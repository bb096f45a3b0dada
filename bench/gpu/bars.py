"""What the kernels must reach, as data: each a ratio of two times in one run, or a share of memory.

An anchor is a contestant of the same row: see :mod:`bench.gpu.contest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..measure import Spread
from . import contest, graphed
from .rows import FINE, GRAPHED, MANY, WIDE, Row

AIM, MET, MISSED, UNMEASURED = "aim met", "met", "missed", "unmeasured"
VERDICTS = (AIM, MET, MISSED, UNMEASURED)
TIME, SPEED, MEMORY = "time", "speed", "memory"  # ours / anchor's; anchor's / ours; share of what must be held


class Bar(NamedTuple):
    """One thing to reach.

    Args:
        what: it is about, in words.
        row: name of the result that tells.
        anchor: the contestant it is held against; of memory, "held": parameters, activations and gradients.
        quantity: ``TIME`` and ``MEMORY`` must be at most, ``SPEED`` at least what follows.
        least: that must be reached.
        aim: that should be.
    """

    what: str
    row: str
    anchor: str
    quantity: str
    least: float
    aim: float


class Judged(NamedTuple):
    """A bar with what was found; all but the verdict None if there is no such result.

    Args:
        value: in the bar's quantity, median and quartiles.
        seconds: ours.
        error: our largest deviation from float64, relative to the largest value.
        best: the way of ours that was the quickest, if it was not what is taken by itself, and its value.
    """

    bar: Bar
    verdict: str
    value: Spread | None = None
    seconds: Spread | None = None
    error: float | None = None
    best: tuple[str, float] | None = None
    why: str | None = None


def _name(size: tuple[int, int, int, int], dtype: str, mode: str) -> str:
    return Row(*size, dtype, mode).name


FIRST = _name(WIDE, "bfloat16", "step")
HELD = "held"
LINEAR = "nn.Linear of as many parameters"

BARS = (
    Bar("forward, bf16, against the matrix product alone", _name(WIDE, "bfloat16", "forward"), contest.GEMM,
        SPEED, 0.60, 0.85),
    Bar(f"forward and backward, bf16, against {LINEAR}", FIRST, contest.LINEAR, TIME, 1.3, 1.0),
    Bar("the same in tf32", _name(WIDE, "tf32", "step"), contest.LINEAR, TIME, 1.4, 1.0),
    Bar("the same in float32", _name(WIDE, "highest", "step"), contest.LINEAR, TIME, 1.4, 1.0),
    Bar("narrow and long, bf16, forward and backward", _name(MANY, "bfloat16", "step"), contest.LINEAR, TIME, 2.0, 1.2),
    Bar("the same in tf32", _name(MANY, "tf32", "step"), contest.LINEAR, TIME, 2.0, 1.2),
    Bar("a fine grid, bf16, forward", _name(FINE, "bfloat16", "forward"), contest.LINEAR, TIME, 0.8, 0.6),
    Bar("a fine grid, bf16, forward and backward", _name(FINE, "bfloat16", "step"), contest.LINEAR, TIME, 1.0, 0.75),
    Bar("against the plain Cox-de Boor layer", FIRST, contest.PLAIN, SPEED, 10.0, 20.0),
    Bar("against that layer under torch.compile", FIRST, contest.COMPILED, SPEED, 2.0, 4.0),
    Bar("against inkan under torch.compile", FIRST, contest.INKAN, SPEED, 2.0, 4.0),
    Bar("peak memory beyond parameters, activations and gradients", FIRST, HELD, MEMORY, 0.10, 0.02),
    Bar("a small network's training step, graphed, against the MLP's", GRAPHED.name, graphed.ANCHOR, TIME, 2.0, 1.2),
)  # fmt: skip


def judged(results: Sequence[dict[str, Any]], bars: Sequence[Bar] = BARS) -> list[Judged]:
    """Each bar by the results of the speed stage."""
    by_name = {result["name"]: result for result in results}
    return [_judge(bar, by_name.get(bar.row)) for bar in bars]


def as_json(found: Sequence[Judged]) -> list[dict[str, Any]]:
    """For a file."""
    return [
        {
            **one._asdict(),
            "bar": one.bar._asdict(),
            "value": None if one.value is None else one.value._asdict(),
            "seconds": None if one.seconds is None else one.seconds._asdict(),
        }
        for one in found
    ]


def _judge(bar: Bar, result: dict[str, Any] | None) -> Judged:
    if result is None:
        return Judged(bar, UNMEASURED, why="there was no time for it")
    of = {c["name"]: c for c in result["contestants"]}
    ours = of.get(graphed.OURS if result["kind"] == "graphed" else contest.AUTO, {"note": "it did not take part"})
    error = _error(ours)
    timing = ours.get("step" if result["kind"] == "graphed" else "cold")
    if timing is None:
        verdict = UNMEASURED if ours.get("absent") else MISSED  # wrong or failed
        return Judged(bar, verdict, error=error, why=ours["note"])
    seconds = Spread(**timing["seconds"])
    if bar.quantity == MEMORY:
        share = ours["extra_bytes"] / ours["held_bytes"]
        return Judged(bar, _verdict(bar, share), Spread(share, share, share, 1), seconds, error)
    ratio = timing["ratios"].get(bar.anchor)
    if ratio is None:
        return Judged(bar, UNMEASURED, None, seconds, error, why=of.get(bar.anchor, {}).get("note") or "no anchor")
    value = _in(bar, Spread(**ratio))
    return Judged(bar, _verdict(bar, value.median), value, seconds, error, _best(bar, of, value))


def _in(bar: Bar, ratio: Spread) -> Spread:
    """A ratio of times in the bar's quantity."""
    if bar.quantity == TIME:
        return ratio
    return Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low, ratio.rounds)


def _verdict(bar: Bar, value: float) -> str:
    def reaches(bound: float) -> bool:
        return value >= bound if bar.quantity == SPEED else value <= bound

    return AIM if reaches(bar.aim) else MET if reaches(bar.least) else MISSED  # a NaN misses


def _best(bar: Bar, of: dict[str, dict], value: Spread) -> tuple[str, float] | None:
    """The way that beats what is taken by itself, if any does."""
    found = dict(_ways(bar, of))
    if not found:
        return None
    best = (max if bar.quantity == SPEED else min)(found, key=lambda name: found[name])
    better = found[best] > value.median if bar.quantity == SPEED else found[best] < value.median
    return (best, found[best]) if better else None


def _ways(bar: Bar, of: dict[str, dict]) -> Iterator[tuple[str, float]]:
    for name in contest.OURS:
        ratio = of.get(name, {}).get("cold", {}).get("ratios", {}).get(bar.anchor)
        if name != contest.AUTO and ratio is not None:
            yield name, _in(bar, Spread(**ratio)).median


def _error(entry: dict[str, Any]) -> float | None:
    found = entry.get("error")
    if isinstance(found, dict):
        return max((deviation["largest"] for deviation in found.values()), default=None)
    return found
