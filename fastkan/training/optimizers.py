"""The two optimizers of a fit: L-BFGS and Adam, called once for each training step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .objective import Evaluated, Objective

# torch.optim.LBFGS drops curvature pairs below an absolute 1e-10 and computes squared norms of gradients in the dtype
# of the parameters, so its result depends on the units of the objective. The objective is therefore multiplied by a
# unit that makes its largest derivative equal to the first of these values, and to the next one after a step without
# gain. The length of the first iteration is proportional to it, up to a length of 1.
INITIAL_SLOPES = (2.0**-4, 2.0**4, 2.0**12)
MAX_UNIT = 2.0**96  # keeps products with the unit finite in float32
HISTORY_SIZE = 10
REJECTION_FACTOR = 10.0  # a non-finite objective is reported to the line search as this times the best finite value
MIN_GAIN = 1e-6  # relative decrease of the objective; a smaller one counts as no gain
SMOOTHING_LENGTH = 1e-4  # for `Objective.smooth`: the slope of an edge's size jumps at 0, where line searches then fail


class LBFGS:
    """L-BFGS with a strong Wolfe line search; one step is up to 20 iterations.

    After a step without gain the curvature is discarded and the next step starts from the gradient, in another unit.
    When each unit has been tried without gain, the sizes of edges in the penalty are smoothed near 0 and the units are
    tried again; if that does not help either, further steps on the same batch do nothing. Sizes are not smoothed from
    the start because fewer edges would then reach 0, and fewer formulas would be found.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, objective: Objective) -> None:
        self.objective, self.parameters = objective, parameters
        self.smooth, self.strength = 0.0, objective.strength
        self.unit: float | None = None
        self.idle_steps, self.batch = 0, torch.empty(0)  # steps without gain on this batch
        self.optimizer = torch.optim.LBFGS(
            parameters, lr=lr, history_size=HISTORY_SIZE, line_search_fn="strong_wolfe",
            tolerance_grad=0.0, tolerance_change=1e-32,
        )  # fmt: skip

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """Make one step on a batch, and return loss and penalty after it if they were evaluated there, else None."""
        if x is not self.batch:
            self.idle_steps, self.batch = 0, x
        if self.strength != self.objective.strength:  # the penalty ramps up during the first steps
            self.idle_steps, self.strength = 0, self.objective.strength
        if self.idle_steps >= len(INITIAL_SLOPES):
            if self.smooth or self.objective.penalty is None:
                return None
            self.idle_steps, self.smooth = 0, SMOOTHING_LENGTH
        self.objective.smooth = self.smooth
        unit = self.unit = self._unit(x, y) if self.unit is None else self.unit
        first = good = math.inf
        evaluated, lowest = self.objective.evaluated, []

        def closure() -> float:
            nonlocal first, good, evaluated, lowest
            value = self.objective.value_and_grad(x, y, self.parameters, unit)
            if math.isfinite(value):
                first = value if math.isinf(first) else first
                if value <= good:  # a line search usually ends at its lowest value
                    good, evaluated = value, self.objective.evaluated
                    lowest = [parameter.detach().clone() for parameter in self.parameters]
                return value
            if math.isinf(good):  # the starting point itself is not finite
                return value
            return REJECTION_FACTOR * abs(good) + 1

        with self.objective.step(x, y):
            self.optimizer.step(closure)
        if first - good > MIN_GAIN * abs(first):
            self.idle_steps = 0
        else:
            self.optimizer.state.clear()
            self.unit = None
            self.idle_steps += 1
        return evaluated if lowest and all(map(torch.equal, self.parameters, lowest)) else None

    def _unit(self, x: Tensor, y: Tensor) -> float:
        """Return the factor for the objective: a power of two, so that multiplying by it is exact."""
        self.objective.value_and_grad(x, y, self.parameters)
        slopes = [parameter.grad for parameter in self.parameters]
        steepest = max((slope.abs().max().item() for slope in slopes if slope is not None), default=0.0)
        if not 0 < steepest < math.inf:
            return 1.0
        return min(MAX_UNIT, 2.0 ** round(math.log2(INITIAL_SLOPES[self.idle_steps] / steepest)))

    def restart(self) -> None:
        """Discard the curvature after the parameters or the objective have changed from outside."""
        self.unit, self.idle_steps, self.smooth = None, 0, 0.0
        self.optimizer.state.clear()


class Adam:
    """Adam; one step is one iteration.

    Args:
        same_batch: whether every step is on the same batch and nothing else changes the network between steps. The
            gradient for the next step is then computed together with the loss after this one.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, objective: Objective, same_batch: bool = False
    ) -> None:
        self.objective, self.parameters = objective, parameters
        self.same_batch, self.has_gradient = same_batch, False
        self.optimizer = torch.optim.Adam(parameters, lr=lr)

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """Make one step on a batch, and return loss and penalty after it if they were computed, else None."""
        if not self.has_gradient:
            self.objective.value_and_grad(x, y, self.parameters)
        self.optimizer.step()
        if not self.same_batch:
            return None
        self.objective.value_and_grad(x, y, self.parameters)
        self.has_gradient = True
        return self.objective.evaluated

    def restart(self) -> None:
        """Drop the gradient computed ahead; the moving averages stay, since the parameters change little."""
        self.has_gradient = False


OPTIMIZERS: dict[str, type[LBFGS] | type[Adam]] = {"LBFGS": LBFGS, "Adam": Adam}
