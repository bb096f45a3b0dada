"""What the speed stage measures, as data."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..cases import Case
from .settings import REHEARSED

MODES = ("forward", "step")  # without gradients; forward and backward


class Row(NamedTuple):
    """One layer of cubic splines on a batch, in one precision and mode.

    Args:
        dtype: a key of ``settings.DTYPES``.
        rivals: whether the plain layer, compiled ones and other packages take part.
    """

    rows: int
    inputs: int
    outputs: int
    grid: int
    dtype: str
    mode: str
    rivals: bool = True

    @property
    def case(self) -> Case:
        return Case(self.rows, (self.inputs, self.outputs), self.grid)

    @property
    def wide(self) -> int:
        """Inputs of the linear layer of as many parameters, I (G + k + 1)."""
        return self.inputs * self.case.features

    @property
    def name(self) -> str:
        mode = "fwd" if self.mode == "forward" else "fwd+bwd"
        return f"{self.rows} {self.inputs}-{self.outputs} G{self.grid} {self.dtype} {mode}"

    @property
    def operations(self) -> int:
        """Of the dense products: 2 N I O (G + k + 1), three times in a step."""
        return 2 * self.rows * self.wide * self.outputs * (1 if self.mode == "forward" else 3)


WIDE = (8192, 1024, 1024, 5)
MANY = (65536, 64, 64, 5)
FINE = (8192, 256, 256, 256)

ROWS = (
    Row(*WIDE, "bfloat16", "forward"),
    Row(*WIDE, "bfloat16", "step"),
    Row(*WIDE, "tf32", "step"),
    Row(*WIDE, "highest", "step"),
    Row(*MANY, "bfloat16", "step"),
    Row(*MANY, "tf32", "step"),
    Row(*FINE, "bfloat16", "forward"),
    Row(*FINE, "bfloat16", "step"),
    Row(*FINE, "highest", "forward"),
    Row(*FINE, "highest", "step"),
    Row(*WIDE, "tf32", "forward"),
    Row(*WIDE, "highest", "forward"),
)


def _sweep() -> list[Row]:
    sizes = ((8192, 256, 256), (1024, 1024, 1024), (65536, 256, 64), (4096, 64, 256), (1_000_000, 2, 64))
    found = [
        Row(*size, grid, dtype, mode, rivals=False)
        for grid, dtype, size, mode in itertools.product((5, 20, 64), ("bfloat16", "highest"), sizes, MODES)
    ]
    return [row for row in found if row.rows * row.inputs * row.case.features < 1 << 28]


SWEEP = tuple(_sweep())
GRAPHED = Case(1000, (2, 5, 1))  # a training step under a CUDA graph


def rows(rehearsal: bool) -> list[Row]:
    """The rows in the order of their worth; for a rehearsal a few, at tiny sizes."""
    if not rehearsal:
        return [*ROWS, *SWEEP]
    found = [Row(32, 5, 7, 5, dtype, mode) for dtype, mode in zip(REHEARSED, itertools.cycle(MODES))]
    return [*found, Row(32, 5, 7, 33, "highest", "step")]


def graphed(rehearsal: bool) -> Case:
    """The small network's case."""
    return GRAPHED._replace(rows=64) if rehearsal else GRAPHED
