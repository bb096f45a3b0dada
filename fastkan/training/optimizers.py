"""The optimizers of a fit: L-BFGS, Adam and Levenberg-Marquardt. An optimizer is called once for each training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..optim.levenberg_marquardt import LevenbergMarquardt, binary_cross_entropy, cross_entropy
from .evidence import Evidence
from .objective import Evaluated, Objective, has_row_losses, is_cross_entropy

# torch.optim.LBFGS discards curvature pairs below the absolute value 1e-10, and computes squared norms of gradients in
# the dtype of the parameters. The result of L-BFGS therefore depends on the scale of the objective. For this reason the
# objective is multiplied by a scale factor, the ``unit``, that makes the largest derivative of the objective equal to
# the first entry of ``INITIAL_SLOPES``. After a step without gain, the next entry of ``INITIAL_SLOPES`` is used. The
# length of the first iteration is proportional to the largest derivative, up to a length of 1.
INITIAL_SLOPES = (2.0**-4, 2.0**4, 2.0**12)
# Maximum scale factor of the objective. With this limit, products with the scale factor are finite in float32.
MAX_UNIT = 2.0**96
HISTORY_SIZE = 10
# If the objective is not finite, the line search is given this multiple of the best finite value of the objective.
REJECTION_FACTOR = 10.0
# Minimum relative decrease of the objective that counts as a gain.
MIN_GAIN = 1e-6
# Number of consecutive steps of Levenberg-Marquardt without a gain after which a fit has converged.
MAX_IDLE_STEPS = 2
# Damping of the first step of Levenberg-Marquardt in the first fit of a network. Random initial parameters are far from
# a minimum: with the default 1e-3, networks [2, 1, 1] take 5 steps without progress, and no restart helps.
FIRST_DAMPING = 0.1
# Levenberg-Marquardt processes the rows in chunks with about ``CHUNK_VALUES`` values of nodes.
CHUNK_VALUES, MIN_CHUNK_ROWS = 1 << 17, 1 << 10
# Value of ``Objective.smooth`` while edge sizes are smoothed near 0. The derivative of an edge size jumps at 0, and
# line searches can fail there.
SMOOTHING_LENGTH = 1e-4


class LBFGS:
    """The L-BFGS optimizer with a strong Wolfe line search. One step consists of up to 20 iterations.

    After a step without gain, the curvature is discarded, and the next step starts in the direction of the gradient
    with another scale factor of the objective. When every scale factor (``INITIAL_SLOPES``) has been tried without
    gain, the edge sizes in the penalty are smoothed near 0 and the scale factors are tried again. If smoothing does not
    help either, further steps on the same batch do nothing. Edge sizes are not smoothed from the start, because fewer
    edges would then reach 0 and fewer formulas would be found.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, objective: Objective) -> None:
        self.objective, self.parameters = objective, parameters
        self.smooth, self.strength = 0.0, objective.strength
        self.unit: float | None = None
        self.idle_steps, self.batch = 0, torch.empty(0)  # ``idle_steps`` counts the steps without gain on ``batch``
        self.optimizer = torch.optim.LBFGS(
            parameters, lr=lr, history_size=HISTORY_SIZE, line_search_fn="strong_wolfe",
            tolerance_grad=0.0, tolerance_change=1e-32,
        )  # fmt: skip

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """Make one step on a batch. Return a tuple of the loss and the penalty after the step, or None if the line
        search did not evaluate the objective at the final parameters."""
        if x is not self.batch:
            self.idle_steps, self.batch = 0, x
        # The strength of the penalty increases during the first steps of a fit.
        if self.strength != self.objective.strength:
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
                if value <= good:  # a line search usually ends at the parameters with the lowest objective
                    good, evaluated = value, self.objective.evaluated
                    lowest = [parameter.detach().clone() for parameter in self.parameters]
                return value
            if math.isinf(good):  # the objective is not finite at the starting point
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
        """Return the scale factor of the objective. The scale factor is a power of two, so that multiplication by the
        factor is exact."""
        self.objective.value_and_grad(x, y, self.parameters)
        slopes = [parameter.grad for parameter in self.parameters]
        steepest = max((slope.abs().max().item() for slope in slopes if slope is not None), default=0.0)
        if not 0 < steepest < math.inf:
            return 1.0
        return min(MAX_UNIT, 2.0 ** round(math.log2(INITIAL_SLOPES[self.idle_steps] / steepest)))

    def restart(self) -> None:
        """Discard the curvature, because the parameters or the objective were changed outside of the optimizer."""
        self.unit, self.idle_steps, self.smooth = None, 0, 0.0
        self.optimizer.state.clear()


class Adam:
    """The Adam optimizer. One step consists of one iteration.

    Args:
        same_batch: whether every step is on the same batch and nothing else changes the network between steps. If so,
            the gradient for the next step is computed together with the loss after the current step.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, objective: Objective, same_batch: bool = False
    ) -> None:
        self.objective, self.parameters = objective, parameters
        self.same_batch, self.has_gradient = same_batch, False
        self.optimizer = torch.optim.Adam(parameters, lr=lr)

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """Make one step on a batch. Return a tuple of the loss and the penalty after the step, or None if the loss and
        the penalty were not computed."""
        if not self.has_gradient:
            self.objective.value_and_grad(x, y, self.parameters)
        self.optimizer.step()
        if not self.same_batch:
            return None
        self.objective.value_and_grad(x, y, self.parameters)
        self.has_gradient = True
        return self.objective.evaluated

    def restart(self) -> None:
        """Discard the gradient that was computed for the next step. The moving averages of Adam are kept, because a
        grid update changes the parameters only slightly."""
        self.has_gradient = False


class LM:
    """The Levenberg-Marquardt method, whose steps use all rows of the data.

    After two steps without gain, further steps only evaluate the loss, until the loss has changed or :meth:`restart` is
    called.

    Args:
        passes: a function that returns an iterator over all batches of the data. If None, the batch that the optimizer
            is called with contains all rows.
        options: further arguments of :class:`fastkan.optim.LevenbergMarquardt`.

    Raises:
        ValueError: if the objective has a penalty, or the loss is neither the mean squared error nor the cross entropy.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        objective: Objective,
        passes: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None = None,
        **options: Any,
    ) -> None:
        if not objective.squares and not has_row_losses(objective.loss):
            raise ValueError(
                "opt='LM' needs the mean squared error or torch's cross entropy as the loss, got another loss_fn; use "
                "opt='LBFGS' or 'Adam'"
            )
        if objective.penalty is not None:
            raise ValueError("opt='LM' needs lamb=0, because the penalty is not a sum of squares; use opt='LBFGS'")
        self.objective, self.passes, self.idle_steps, self.reached = objective, passes, 0, math.inf
        self.evidence = Evidence(parameters, objective) if objective.estimates_decay else None
        decayed = set(map(id, objective.decayed()))
        if self.evidence is not None:
            options["weight_decay"] = self.evidence.decay
        elif objective.weight_decay:
            factors = [torch.full_like(each, id(each) in decayed).flatten() for each in parameters]
            options["weight_decay"] = objective.weight_decay * torch.cat(factors).detach().double()
        # The outputs of a network without hooks and overridden methods are known to be row-wise.
        verify = objective.model._has_hooks_or_override()
        self.optimizer = LevenbergMarquardt(parameters, verify=verify, **options)
        self.count: int | None = None  # the number of elements of all labels

    def __call__(self, x: Tensor, y: Tensor) -> Evaluated | None:
        """Make one step. Return a tuple of the mean loss over all rows after the step and the penalty 0, or None if the
        loss of the batch is not finite before the step."""
        rows = max(MIN_CHUNK_ROWS, CHUNK_VALUES // sum(self.objective.model.width_out))
        is_single = self.passes is None and len(x) <= rows
        if self.count is None:
            self.count = y.numel() if self.passes is None else sum(part[1].numel() for part in self.passes())
        weight = self.objective.sample_weight
        parts = (x, y) if weight is None else (x, y, weight)
        batches: Any = self.passes or (lambda: zip(*(part.split(rows) for part in parts)))

        def residuals() -> Any:
            return self._term(*parts) if is_single else (self._term(*batch) for batch in batches())

        try:
            if self.idle_steps >= MAX_IDLE_STEPS:
                cost = self.optimizer.cost(residuals)
                if abs(cost - self.reached) <= MIN_GAIN * self.reached:
                    return cost - self.optimizer.decay_cost(), 0.0
            cost = self.reached = self.optimizer.step(residuals)
        except ValueError:
            with torch.no_grad():
                if math.isfinite(self.objective(x, y)):
                    raise
            return None
        report = self.optimizer.report
        assert report is not None
        gained = report.accepted and report.before - cost > MIN_GAIN * report.before
        loss = cost - self.optimizer.decay_cost()
        if self.evidence is not None and report.accepted:
            gained = self.evidence.update(self.optimizer, loss) or gained
        self.idle_steps = 0 if gained else self.idle_steps + 1
        return loss, 0.0

    def _term(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Any:
        avoiding, y_th = self.objective.guarded
        prediction = self.objective.model(x, singularity_avoiding=avoiding, y_th=y_th)
        assert self.count is not None
        if self.objective.squares:
            residuals = (prediction - y) * math.sqrt(2 / self.count)
            return residuals if weight is None else residuals * weight.sqrt().unsqueeze(1)
        factor = 1 / self.count if weight is None else weight / self.count
        term = cross_entropy if is_cross_entropy(self.objective.loss) else binary_cross_entropy
        return term(prediction, y, factor)

    def restart(self) -> None:
        """Try further steps, because the parameters were changed outside of the optimizer."""
        self.idle_steps = 0


OPTIMIZERS: dict[str, type[LBFGS] | type[Adam] | type[LM]] = {"LBFGS": LBFGS, "Adam": Adam, "LM": LM}
