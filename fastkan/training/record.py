"""What a fit measures after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .data import Data, Pair
from .objective import Evaluated, Objective

LOSSES = ("train_loss", "test_loss", "reg")


class Record:
    """The losses, the penalty and the metrics of each step, under their names.

    Args:
        objective: of the fit.
        data: what it is trained and tested on.
        metrics: functions without argument.
        batch: rows of a test batch, where there are more; -1 is all.
        log: every how many steps the test loss is measured anew.
        seed: of the test batches.

    Raises:
        ValueError: for metrics of one name.

    Attributes:
        results: a list for each name, with an entry for each step.
    """

    def __init__(
        self,
        objective: Objective,
        data: Data,
        metrics: Sequence[Callable[[], Any]] = (),
        batch: int = -1,
        log: int = 1,
        seed: int | None = 0,
    ) -> None:
        self.objective, self.test, self.log, self.metrics = objective, data.test, log, metrics
        self.batches = None if data.test is None else Data(*data.test).batches(batch, seed)
        self.whole = data.test is None or batch == -1 or batch >= len(data.test[0])
        self.names = [getattr(metric, "__name__", type(metric).__name__) for metric in metrics]
        every = [*LOSSES, *self.names]
        twice = sorted({name for name in every if every.count(name) > 1})
        if twice:
            raise ValueError(f"metrics must have names of their own, got {twice} twice")
        self.results: dict[str, list[float]] = {name: [] for name in every}
        self.is_measured = True  # whether the last test loss is the whole set's, by the last step's parameters

    def measure(self, step: int, x: Tensor, y: Tensor, evaluated: Evaluated | None) -> bool:
        """Note losses and penalty after a step on a batch; whether they are finite.

        Args:
            evaluated: the batch's loss and penalty, where they are known.
        """
        with torch.no_grad():
            loss, penalty = self.objective.terms(x, y) if evaluated is None else evaluated
        losses, reg = self._shown(loss), 0.0 if penalty is None else float(penalty)
        if not math.isfinite(losses + reg):
            return False
        self.results["train_loss"].append(losses)
        self.results["reg"].append(reg)
        if self.batches is not None:
            fresh = step % self.log == 0
            self.is_measured = fresh and self.whole
            self.results["test_loss"].append(self._loss(next(self.batches)) if fresh else self.results["test_loss"][-1])
        return True

    def measure_metrics(self) -> None:
        """Note the metrics.

        Raises:
            TypeError: for one that gives no number.
        """
        found = [(name, number(name, metric())) for name, metric in zip(self.names, self.metrics)]
        for name, value in found:
            self.results[name].append(value)

    def finish(self) -> None:
        """Make the last test loss the whole set's, by the parameters of the last step."""
        if not self.is_measured and self.test is not None and self.results["test_loss"]:
            self.results["test_loss"][-1] = self._loss(self.test)
            self.is_measured = True

    def cut(self, steps: int) -> None:
        """Forget what comes after so many steps."""
        self.is_measured = self.is_measured and len(self.results["train_loss"]) <= steps
        for values in self.results.values():
            del values[steps:]

    @torch.no_grad()
    def _loss(self, rows: Pair) -> float:
        model, objective = self.objective.model, self.objective
        avoiding, y_th = objective.guarded
        return self._shown(objective.loss(model(rows[0], singularity_avoiding=avoiding, y_th=y_th), rows[1]))

    def _shown(self, loss: Any) -> float:
        value = float(loss)
        return math.sqrt(value) if self.objective.squares and value >= 0 else value


def number(name: str, value: Any) -> float:
    """A metric's value as a float."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"the metric {name} must return a number, got {type(value).__name__}") from None
