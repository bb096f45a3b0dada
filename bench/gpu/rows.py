"""What the speed stage measures, as data."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..suite.cases import Case
from .settings import DTYPES, REHEARSED

CONTRACTIONS = (("F", 0), ("G", 0), ("H", 1))  # of a step, each with its derivative
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

    def name_of(self, contraction: str, derivative: int) -> str:
        """Of one of its contractions."""
        return f"{contraction}_{derivative} {self.rows} {self.inputs}-{self.outputs} G{self.grid} {self.dtype}"

    @property
    def operations(self) -> int:
        """Of the dense products: 2 N I O (G + k + 1), three times in a step."""
        return 2 * self.rows * self.wide * self.outputs * (1 if self.mode == "forward" else 3)

    def least_bytes(self, inputs: int) -> int:
        """What must be moved if each operand is read once and each result written once.

        Args:
            inputs: numbers that a row of x has: ``inputs`` of a KAN layer, ``wide`` of the linear one.
        """
        x, w, y = self.rows * inputs, self.wide * self.outputs, self.rows * self.outputs
        return DTYPES[self.dtype].itemsize * (x + w + y) * (1 if self.mode == "forward" else 2)


WIDE = (8192, 1024, 1024, 5)
MANY = (65536, 64, 64, 5)
FINE = (8192, 256, 256, 256)

# In the order of their worth: those that the bars ask for come first. A rival is compiled for most of a minute, so
# they take part where they are asked for, and once in float32.
ROWS = (
    Row(*WIDE, "bfloat16", "forward", rivals=False),
    Row(*WIDE, "bfloat16", "step"),
    Row(*WIDE, "tf32", "step", rivals=False),
    Row(*WIDE, "highest", "step", rivals=False),
    Row(*MANY, "bfloat16", "step", rivals=False),
    Row(*MANY, "tf32", "step", rivals=False),
    Row(*FINE, "bfloat16", "forward", rivals=False),
    Row(*FINE, "bfloat16", "step", rivals=False),
    Row(*FINE, "highest", "forward", rivals=False),
    Row(*FINE, "highest", "step", rivals=False),
    Row(*WIDE, "tf32", "forward", rivals=False),
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


class Ceilings(NamedTuple):
    """What the GPU does at its best: a large copy, and a large product of two matrices of each dtype."""

    copied: int  # bytes, read and written
    side: int  # of the matrices
    dtypes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"ceilings: a copy, and products {self.side}x{self.side}x{self.side}"


class Graphed(NamedTuple):
    """A training step under a CUDA graph."""

    case: Case

    @property
    def name(self) -> str:
        return f"{self.case.name}, graphed"


CEILINGS = Ceilings(8 << 30, 8192, ("bfloat16", "float16", "tf32", "highest"))
GRAPHED = Graphed(Case(1000, (2, 5, 1)))

Measured = Row | Ceilings | Graphed


def measured(rehearsal: bool) -> list[Measured]:
    """All that the speed stage measures, in the order of its worth; for a rehearsal a few, at tiny sizes."""
    if not rehearsal:
        return [CEILINGS, *ROWS[:2], GRAPHED, *ROWS[2:], *SWEEP]
    found = [Row(32, 5, 7, 5, dtype, mode) for dtype, mode in zip(REHEARSED, itertools.cycle(MODES))]
    ceilings = Ceilings(1 << 16, 32, ("float16", "highest"))
    return [ceilings, *found, Row(32, 5, 7, 33, "highest", "step"), Graphed(GRAPHED.case._replace(rows=64))]
