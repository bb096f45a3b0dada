"""A fit at a point of the curve with each package, and one evaluation of its objective, in CPU seconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastkan import KAN
from fastkan.training.objective import Objective
from fastkan.training.regularization import Penalty

from ..suite.plain import KANLinear
from . import silenced
from .points import LEARNING_RATES, LOSSES, Point

FASTKAN, DEFAULT, PYKAN, EFFICIENT = "fastkan", "fastkan, try_without", "pykan", "efficient-kan"
LOSS_WEIGHTS = (1.0, 2.0, 0.0, 0.0)  # lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff: the defaults of both packages
METRIC = "edge_forward_spline_n"


class TooSlow(Exception):
    """A fit has taken more CPU seconds than its limit."""


class Fits:
    """Fits of one point, each of a fresh model on the same data.

    Args:
        point: network, data and settings.
        limit: CPU seconds after which another package's fit ends, at its next evaluation of the loss.
    """

    def __init__(self, point: Point, limit: float) -> None:
        self.point, self.limit = point, limit
        self.dataset = point.dataset()
        self.fits: dict[str, Callable[[int], Callable[[], object]]] = {FASTKAN: partial(self._fastkan, False)}
        if point.lamb and point.opt == "LBFGS":
            self.fits[DEFAULT] = partial(self._fastkan, True)
        self.fits[PYKAN] = self._pykan
        if not point.lamb:
            self.fits[EFFICIENT] = self._efficient

    def seconds(self, trainer: str, steps: int | None = None) -> float:
        """CPU seconds of each step of a fit; making the model is not timed.

        Raises:
            TooSlow: if another package's fit takes longer than the limit.
        """
        steps = self.point.step_count if steps is None else steps
        with silenced():
            torch.manual_seed(0)
            fit = self.fits[trainer](steps)
            start = time.process_time()
            fit()
            return (time.process_time() - start) / steps

    def _fastkan(self, try_without: bool, steps: int) -> Callable[[], object]:
        model = KAN(width=list(self.point.widths), grid=self.point.grid, k=3, seed=0)
        options = {**self.point.options(), "steps": steps, "try_without": try_without, "progress": False}
        return partial(model.fit, self.dataset, **options)

    def _pykan(self, steps: int) -> Callable[[], object]:
        import kan

        model = kan.KAN(width=list(self.point.widths), grid=self.point.grid, k=3, seed=0, auto_save=False)
        loss = LOSSES[self.point.loss] or nn.functional.mse_loss
        options = {**self.point.options(), "steps": steps, "loss_fn": _limited(loss, self.limit)}
        return partial(model.fit, self.dataset, **options)

    def _efficient(self, steps: int) -> Callable[[], object]:
        """Its layers in a loop that does the same as a fit, with fixed knots, as in its own examples."""
        layers = [KANLinear(i, o, self.point.grid) for i, o in itertools.pairwise(self.point.widths)]
        model = nn.Sequential(*layers)
        loss = _limited(LOSSES[self.point.loss] or nn.functional.mse_loss, self.limit)
        x, y, test_x, test_y = self.dataset.values()
        rate = LEARNING_RATES[self.point.opt]

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            return value

        if self.point.opt == "Adam":
            optimizer: Any = torch.optim.Adam(model.parameters(), lr=rate)
        else:
            optimizer = torch.optim.LBFGS(
                model.parameters(), lr=rate, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=0.0,
                tolerance_change=1e-32,
            )  # fmt: skip

        def fit() -> list[float]:
            losses = []
            for _ in range(steps):
                losses.append(optimizer.step(closure).item())
                with torch.no_grad():
                    losses.append(loss(model(test_x), test_y).item())
            return losses

        return fit


def evaluation(point: Point) -> Callable[[], float]:
    """A call that computes the objective of fastkan's fit, and its gradient, once at the point's start."""
    data = point.dataset()
    model = KAN(width=list(point.widths), grid=point.grid, k=3, seed=0)
    if point.adapted:
        model.update_grid_from_samples(data["train_input"])
    penalty = Penalty(model, *LOSS_WEIGHTS, METRIC) if point.lamb else None
    objective = Objective(model, LOSSES[point.loss], penalty, point.lamb, (False, 1000.0))
    for affine in (*model.node_scale, *model.node_bias, *model.subnode_scale, *model.subnode_bias):
        affine.requires_grad_(False)
    learned = [each for each in model.parameters() if each.requires_grad and each.numel()]
    return partial(objective.value_and_grad, data["train_input"], data["train_label"], learned)


def _limited(loss: Callable[[Tensor, Tensor], Tensor], limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    latest = time.process_time() + limit

    def limited(output: Tensor, label: Tensor) -> Tensor:
        if time.process_time() > latest:
            raise TooSlow
        return loss(output, label)

    return limited
