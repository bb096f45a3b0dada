"""The points of the curve of fits: one size or setting varied at a time around a base point, and two named tables."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NOISE = 0.1  # standard deviation of noise in the labels, which keeps fits from ending early
TEST_SHARE = 5  # one row in five is a test row
LAMB = 0.01
LEARNING_RATES = {"LBFGS": 1.0, "Adam": 0.01}
LOSSES = {"mse": None, "cross entropy": nn.functional.cross_entropy}


class Point(NamedTuple):
    """A network, its data and how it is fitted, float32.

    Args:
        axis: the part of the curve.
        widths: sizes of the layers' inputs, and of the last one's output.
        rows: training rows; a quarter as many are test rows.
        grid: G, with cubic splines.
        opt: "LBFGS" or "Adam".
        loss: "mse" or "cross entropy".
        lamb: strength of pykan's penalty, with its default weights.
        adapted: whether the fit moves the knots to the samples, its default.
        steps: of a fit; 0 stands for 5 of L-BFGS and 30 of Adam.
        table: the name of a real table in scikit-learn, which is used whole.
        quick: whether ``--quick`` measures it.
    """

    axis: str = "base"
    widths: tuple[int, ...] = (8, 5, 1)
    rows: int = 1000
    grid: int = 5
    opt: str = "LBFGS"
    loss: str = "mse"
    lamb: float = 0.0
    adapted: bool = True
    steps: int = 0
    table: str | None = None
    quick: bool = False

    @property
    def name(self) -> str:
        """All properties in short, for ``--points``."""
        words = [
            "-".join(map(str, self.widths)),
            f"{self.rows} rows" + (f" of {self.table}" if self.table else ""),
            f"G{self.grid}",
            self.opt,
            self.loss,
            "adapted" if self.adapted else "uniform",
        ]
        return ", ".join(words + ([f"lamb {self.lamb:g}"] if self.lamb else []))

    @property
    def step_count(self) -> int:
        """Number of steps of a fit."""
        return self.steps or {"LBFGS": 5, "Adam": 30}[self.opt]

    def dataset(self) -> dict[str, Tensor]:
        """Training and test rows for ``KAN.fit`` of both packages; the same at each call."""
        if self.table is not None:
            return split(*_table(self.table))
        generator = torch.Generator().manual_seed(0)
        total = self.rows + self.rows // (TEST_SHARE - 1)
        x = 2 * torch.rand(total, self.widths[0], generator=generator) - 1
        phases = torch.arange(self.widths[-1]) / 2
        clean = (torch.sin(math.pi * x + x.roll(1, 1) ** 2).sum(1, keepdim=True) + phases).sin()
        y = clean + NOISE * torch.randn(clean.shape, generator=generator)
        return split(x, y.argmax(1) if self.loss == "cross entropy" else y)

    def options(self) -> dict[str, Any]:
        """Arguments of ``KAN.fit`` in both packages."""
        return {
            "opt": self.opt,
            "steps": self.step_count,
            "lamb": self.lamb,
            "loss_fn": LOSSES[self.loss],
            "lr": LEARNING_RATES[self.opt],
            "update_grid": self.adapted,
        }


def split(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Training and test rows, the latter the last fifth."""
    train = len(x) - len(x) // TEST_SHARE
    return {
        "train_input": x[:train].contiguous(),
        "train_label": y[:train].contiguous(),
        "test_input": x[train:].contiguous(),
        "test_label": y[train:].contiguous(),
    }


def _table(name: str) -> tuple[Tensor, Tensor]:
    """Standardised columns and the classes, in an order drawn once."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y, dtype=torch.long)[order]


BASE = Point()
CANCER = Point(
    "tables", (30, 3, 2), 569, loss="cross entropy", table="breast_cancer", quick=True
)  # 455 rows are left for training
EIGHT = Point("tables", (8, 3, 1), 2250, quick=True)


def _axis(name: str, values: list, field: str = "widths", quick: Any = None) -> list[Point]:
    return [BASE._replace(axis=name, quick=value == quick, **{field: value}) for value in values]


_SETTINGS = [  # every combination of optimizer, loss, penalty and kind of grid, at the base point's size
    BASE._replace(
        axis="settings", widths=(8, 5, 1 if loss == "mse" else 2), opt=opt, loss=loss, lamb=lamb, adapted=adapted
    )
    for opt, loss, lamb, adapted in itertools.product(LEARNING_RATES, LOSSES, (0.0, LAMB), (True, False))
]
_ALL = [
    BASE._replace(quick=True),
    CANCER,
    CANCER._replace(opt="Adam", steps=100),
    EIGHT,
    EIGHT._replace(opt="Adam", steps=100),
    *_axis("rows", [100, 300, 1000, 3000, 10_000, 30_000, 100_000], "rows", quick=10_000),
    *_axis("columns", [(columns, 5, 1) for columns in (2, 4, 8, 16, 30, 60, 100)]),
    *_axis("grid", [3, 5, 10, 19, 20, 50, 100, 200], "grid", quick=20),
    *_axis("depth", [(8, *[5] * (depth - 1), 1) for depth in (2, 3, 4, 5)], quick=(8, 5, 5, 1)),
    *_axis("hidden width", [(8, width, 1) for width in (1, 2, 5, 10, 20, 32, 64)]),
    *_SETTINGS,
]
POINTS = list({point.name: point for point in reversed(_ALL)}.values())[::-1]  # the base point is on each axis: once


def chosen(patterns: list[str] | None, quick: bool) -> list[Point]:
    """Points whose axis is, or whose name contains, one of ``patterns``; without any, all (or the quick ones).

    Raises:
        ValueError: if a pattern fits none.
    """
    if not patterns:
        return [point for point in POINTS if point.quick or not quick]
    for pattern in patterns:
        if not any(_fits(pattern, point) for point in POINTS):
            raise ValueError(f"--points {pattern!r} fits none of {', '.join(point.name for point in POINTS)}")
    return [point for point in POINTS if any(_fits(pattern, point) for pattern in patterns)]


def _fits(pattern: str, point: Point) -> bool:
    return pattern == point.axis or pattern in point.name
