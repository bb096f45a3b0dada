"""One training step of a network, by either optimizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .objective import Evaluated, Objective

# L-BFGS in torch forgets curvature below 1e-10, and squares squares of slopes in their own precision, whatever the
# objective's units. So the objective gets units in which its largest derivative starts as the first of these, and as
# the next where no progress was made: the first step is as long, up to a length of 1.
STEEPEST = (2.0**-4, 2.0**4, 2.0**12)
HIGHEST = 2.0**96  # of these units: in float32 what is multiplied by one must not become infinite
HISTORY = 10
REFUSED = 10.0  # times the last good objective is what a line search is told of one that isn't finite
GAIN = 1e-6  # of the objective: less is none
SMOOTH = 1e-4  # an edge's size, see the objective's smooth: where sizes come to 0 their slopes jump, and searches stop


class LBFGS:
    """Up to 20 iterations with a strong Wolfe line search.

    A step that gains nothing makes it start anew, by the gradient alone. Where no such start gains anything, edges'
    sizes are rounded off at 0 from then on; where that does not help either, the end is reached, and further steps on
    the same batch do nothing. (Rounded off from the start they die less often, and fewer formulas are found.)
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, objective: Objective) -> None:
        self.objective, self.parameters = objective, parameters
        self.smooth, self.strength = 0.0, objective.strength
        self.unit: float | None = None
        self.idle, self.batch = 0, torch.empty(0)  # steps without gain on this batch
        self.optimizer = torch.optim.LBFGS(
            parameters,
            lr=lr,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=1e-32,
        )

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """One step on a batch; loss and penalty after it, where an evaluation has had these parameters."""
        if x is not self.batch:
            self.idle, self.batch = 0, x
        if self.strength != self.objective.strength:  # a sparsity penalty rises
            self.idle, self.strength = 0, self.objective.strength
        if self.idle >= len(STEEPEST):
            if self.smooth or self.objective.penalty is None:
                return None
            self.idle, self.smooth = 0, SMOOTH
        self.objective.smooth = self.smooth
        unit = self.unit = self._unit(x, y) if self.unit is None else self.unit
        first = good = math.inf
        evaluated, lowest = self.objective.evaluated, []

        def closure() -> float:
            nonlocal first, good, evaluated, lowest
            value = self.objective.value_and_grad(x, y, self.parameters, unit)
            if math.isfinite(value):
                first = value if math.isinf(first) else first
                if value <= good:  # a line search ends at the lowest, as a rule
                    good, evaluated = value, self.objective.evaluated
                    lowest = [parameter.detach().clone() for parameter in self.parameters]
                return value
            if math.isinf(good):  # not even where it starts
                return value
            return REFUSED * abs(good) + 1  # a wall for the line search to turn at

        with self.objective.step(x, y):
            self.optimizer.step(closure)
        if first - good > GAIN * abs(first):
            self.idle = 0
        else:
            self.optimizer.state.clear()
            self.unit = None
            self.idle += 1
        return evaluated if lowest and all(map(torch.equal, self.parameters, lowest)) else None

    def _unit(self, x: Tensor, y: Tensor) -> float:
        """A power of two, which costs no bit."""
        self.objective.value_and_grad(x, y, self.parameters)
        slopes = [parameter.grad for parameter in self.parameters]
        steepest = max((slope.abs().max().item() for slope in slopes if slope is not None), default=0.0)
        if not 0 < steepest < math.inf:
            return 1.0
        return min(HIGHEST, 2.0 ** round(math.log2(STEEPEST[self.idle] / steepest)))

    def restart(self) -> None:
        """Forget the curvature: the parameters, or the objective, mean something else now."""
        self.unit, self.idle, self.smooth = None, 0, 0.0
        self.optimizer.state.clear()


class Adam:
    """One iteration.

    Args:
        ahead: whether the next step is on the same batch, and nobody changes the network until then: the gradient that
            it needs is made with the value of this step's end.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, objective: Objective, ahead: bool = False) -> None:
        self.objective, self.parameters = objective, parameters
        self.ahead, self.pulled = ahead, False
        self.optimizer = torch.optim.Adam(parameters, lr=lr)

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """One step on a batch; loss and penalty after it, if they have been computed."""
        if not self.pulled:
            self.objective.value_and_grad(x, y, self.parameters)
        self.optimizer.step()
        if not self.ahead:
            return None
        self.objective.value_and_grad(x, y, self.parameters)
        self.pulled = True
        return self.objective.evaluated

    def restart(self) -> None:
        """Its averages go on, as the parameters change little."""
        self.pulled = False


OPTIMIZERS: dict[str, type[LBFGS] | type[Adam]] = {"LBFGS": LBFGS, "Adam": Adam}
