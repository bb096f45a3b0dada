"""Definitions of the layers and networks that are measured, and of the bars, which the kernels must reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..measure import Spread
from ..suite.cases import Case

GEMM, LINEAR, PLAIN, COMPILED, INKAN = "gemm", "linear", "plain", "plain, compiled", "inkan, compiled"
MLP, HELD = "MLP, as many parameters", "held"
ANCHORS = (GEMM, LINEAR, PLAIN, COMPILED, INKAN)
AUTO = "auto"  # fastkan with the implementations that it chooses by default
# the contractions of a training step, and the derivative order of each contraction
CONTRACTIONS = {"F": 0, "G": 0, "H": 1}


class Row(NamedTuple):
    """A layer of cubic splines on a batch, in one precision and mode.

    Args:
        rows: batch size N.
        inputs: number of inputs I.
        outputs: number of outputs O.
        grid: number of grid intervals G.
        dtype: a key of :data:`bench.gpu.machine.DTYPES`.
        mode: "forward" without gradients, "step" for forward and backward, or "contractions" for F, G and H separately.
        rivals: whether the layer is compared with the layers of other libraries instead of with matrix products.
    """

    rows: int
    inputs: int
    outputs: int
    grid: int
    dtype: str
    mode: str = "step"
    rivals: bool = False

    @property
    def case(self) -> Case:
        return Case(self.rows, (self.inputs, self.outputs), self.grid)

    @property
    def wide(self) -> int:
        """The number of inputs, I (G + k + 1), of an ``nn.Linear`` with as many parameters as the layer."""
        return self.inputs * self.case.features

    @property
    def name(self) -> str:
        beside = " beside other layers" if self.rivals else ""
        return f"{self.rows} {self.inputs}-{self.outputs} G{self.grid} {self.dtype} {self.mode}{beside}"


class Graphed(NamedTuple):
    """A training step of a network in a CUDA graph."""

    case: Case = Case(1000, (2, 5, 1))

    @property
    def name(self) -> str:
        return f"{self.case.name} graphed"


WIDE, MANY, FINE = (8192, 1024, 1024, 5), (65536, 64, 64, 5), (8192, 256, 256, 256)
LAYERS = (  # the layers of the bars in the order of their importance
    Row(*WIDE, "bfloat16"), Row(*MANY, "bfloat16"), Row(*FINE, "bfloat16"), Row(*WIDE, "tf32"), Row(*MANY, "tf32"),
    Row(*WIDE, "highest"), Row(1000, 2, 5, 5, "highest"), Row(1000, 5, 1, 5, "highest"),
)  # fmt: skip
FIRST, FORWARD, FINE_FORWARD = LAYERS[0], Row(*WIDE, "bfloat16", "forward"), Row(*FINE, "bfloat16", "forward")
BESIDE = FIRST._replace(rivals=True)
GRAPHED = Graphed()
# All rows that are measured, the most important first, because the time on a machine may end before all are measured.
MEASURED: tuple[Row | Graphed, ...] = (
    FORWARD, FIRST, *LAYERS[1:6], FINE_FORWARD, GRAPHED, BESIDE,
    *(layer._replace(mode="contractions") for layer in LAYERS[:6]),
    Row(*FINE, "highest"), Row(8192, 256, 256, 5, "bfloat16"), Row(8192, 256, 256, 64, "bfloat16"),
    Row(1024, 1024, 1024, 5, "bfloat16"), Row(1_000_000, 2, 64, 5, "bfloat16"),
)  # fmt: skip
REHEARSED: tuple[Row | Graphed, ...] = (
    Row(32, 5, 7, 5, "float16", "forward"), Row(32, 5, 7, 5, "highest"), Row(32, 5, 7, 5, "highest", "contractions"),
    Row(32, 5, 7, 5, "tf32", rivals=True), Graphed(GRAPHED.case._replace(rows=64)),
)  # fmt: skip

TIME, SPEED, MEMORY = "time", "speed", "memory"
AIM, MET, MISSED, UNMEASURED = "aim met", "met", "missed", "unmeasured"


class Bar(NamedTuple):
    """A goal.

    Args:
        row: name of the row that is measured.
        anchor: the contestant of the row with which fastkan is compared.
        quantity: ``TIME`` is the time of fastkan divided by the time of the anchor, ``SPEED`` is the inverse, and
            ``MEMORY`` is the peak of extra memory as a share of the memory of parameters, inputs, outputs and
            gradients.
        least: the value that must be reached, a minimum for ``SPEED`` and a maximum for the other quantities.
        aim: the better value that should be reached, but need not be.
    """

    row: str
    anchor: str
    quantity: str
    least: float
    aim: float

    @property
    def name(self) -> str:
        if self.quantity == MEMORY:
            return f"{self.row}: extra memory, as a share of what must be held"
        return f"{self.row}: {self.quantity}, relative to {self.anchor}"

    def verdict(self, value: float) -> str:
        """Return whether a value reaches the bar. The result is False for NaN."""
        reached = [value >= bound if self.quantity == SPEED else value <= bound for bound in (self.aim, self.least)]
        return AIM if reached[0] else MET if reached[1] else MISSED

    def text(self, value: float) -> str:
        """Return a value of the bar's quantity as text."""
        return f"{100 * value:.3g}%" if self.quantity == MEMORY else f"{value:.2f}"


BARS = (
    Bar(FORWARD.name, GEMM, SPEED, 0.60, 0.85),
    Bar(FIRST.name, LINEAR, TIME, 1.3, 1.0),
    Bar(LAYERS[3].name, LINEAR, TIME, 1.4, 1.0),
    Bar(LAYERS[5].name, LINEAR, TIME, 1.4, 1.0),
    Bar(LAYERS[1].name, LINEAR, TIME, 2.0, 1.2),
    Bar(LAYERS[4].name, LINEAR, TIME, 2.0, 1.2),
    Bar(FINE_FORWARD.name, LINEAR, TIME, 0.8, 0.6),
    Bar(LAYERS[2].name, LINEAR, TIME, 1.0, 0.75),
    Bar(BESIDE.name, PLAIN, SPEED, 10.0, 20.0),
    Bar(BESIDE.name, COMPILED, SPEED, 2.0, 4.0),
    Bar(BESIDE.name, INKAN, SPEED, 2.0, 4.0),
    Bar(FIRST.name, HELD, MEMORY, 0.10, 0.02),
    Bar(GRAPHED.name, MLP, TIME, 2.0, 1.2),
)


class Judged(NamedTuple):
    """A bar with the measured value.

    Args:
        bar: the bar.
        verdict: ``AIM``, ``MET``, ``MISSED`` or ``UNMEASURED``.
        value: the value of the bar's quantity, or None if nothing was measured or the results of fastkan were wrong.
        seconds: the time of fastkan.
        error: the largest deviation of fastkan's results from float64, divided by the largest value.
        why: the reason why ``value`` is None.
    """

    bar: Bar
    verdict: str
    value: Spread | None = None
    seconds: Spread | None = None
    error: float | None = None
    why: str | None = None


def judged(results: Sequence[Mapping[str, Any]], bars: Sequence[Bar] = BARS) -> Iterator[Judged]:
    """Yield each bar with the verdict that follows from the results of the stage ``speed``."""
    by_name = {result["name"]: result["contestants"] for result in results}
    for bar in bars:
        contestants = by_name.get(bar.row)
        if contestants is None:
            yield Judged(bar, UNMEASURED, why="there was no time for it")
            continue
        ours, anchor = contestants[AUTO], contestants.get(bar.anchor, {})
        error, note = ours.get("error"), ours.get("note")
        if note is not None:  # a contestant whose result is wrong or that raises an error has no time
            yield Judged(bar, MISSED, error=error, why=note)
            continue
        seconds = Spread(*ours["seconds"])
        if bar.quantity == MEMORY:
            share = ours["extra_bytes"] / ours["held_bytes"]
            value = Spread(share, share, share, 1)
        elif bar.anchor in ours["ratios"]:
            value = Spread(*ours["ratios"][bar.anchor])
            if bar.quantity == SPEED:
                value = Spread(1 / value.median, 1 / value.high, 1 / value.low, value.rounds)
        else:
            yield Judged(bar, UNMEASURED, seconds=seconds, error=error, why=anchor.get("note") or "no anchor")
            continue
        yield Judged(bar, bar.verdict(value.median), value, seconds, error)
