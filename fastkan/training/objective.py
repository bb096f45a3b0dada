"""The objective that a fit minimizes: the loss of a batch plus a penalty, and the gradient of the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastkan_kernels import FusedStack, StackCache, StackLayer, has_values, supports_stack

from .regularization import Penalty

if TYPE_CHECKING:
    from ..network.core import Network

Loss = Callable[[Tensor, Tensor], Tensor]
Evaluated = tuple[Any, Any]
# The elements are x, y, the layers of the fused stack and the inputs of the fused stack.
Held = tuple[Tensor, Tensor, list[StackLayer] | None, Tensor | None]


class Objective:
    """The objective ``loss + strength * penalty`` of a batch.

    Args:
        model: the network that is trained.
        loss: a function ``loss(prediction, label)``. If None, the loss is the mean squared error.
        penalty: the penalty, or None if there is no penalty.
        strength: the factor of the penalty.
        guarded: the arguments ``singularity_avoiding`` and ``y_th`` of :meth:`KAN.forward`.

    Attributes:
        evaluated: the loss and the penalty in the last call of :meth:`value_and_grad`, as numbers or 0-d tensors. The
            attribute is None if only the penalty with smoothed sizes is known.
        smooth: the maximum error of the smooth approximation of edge sizes; see ``regularization.rounded``.
        is_partial: whether the model has parameters that require a gradient but are not trained.
        sample_weight: the weights ``[N]`` of the rows of the current batch in the loss, or None. The mean of the
            weights over all rows is 1. The penalty does not use the weights.
        weight_decay: the factor of half the sum of squares of the weights in the objective. The recorded loss does not
            contain this term.
        estimates_decay: whether the optimizer estimates the weight decay of each group of weights itself.
        rows: the number of independent labels, for the estimates of the weight decay.
    """

    evaluated: Evaluated | None = None
    smooth = 0.0
    is_partial = False
    sample_weight: Tensor | None = None
    weight_decay = 0.0
    estimates_decay = False
    rows = 0.0

    def __init__(
        self, model: Network, loss: Loss | None, penalty: Penalty | None, strength: float, guarded: tuple[bool, float]
    ) -> None:
        self.model, self.penalty, self.strength, self.guarded = model, penalty, strength, guarded
        self.squares = loss is None
        self._cache = StackCache()
        self._repeated: Tensor | None = None  # The batch that is evaluated repeatedly.
        self._held: Held | None = None
        self.loss: Loss = nn.functional.mse_loss if loss is None else loss

    def terms(self, x: Tensor, y: Tensor, smooth: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Return a tuple of the loss and the penalty for a batch.

        The penalty is None if the objective has no penalty.
        """
        if self.penalty is None:
            output, penalty = self.model(x, singularity_avoiding=self.guarded[0], y_th=self.guarded[1]), None
        else:
            output, penalty = self.penalty(x, *self.guarded, smooth=smooth)
        if self.sample_weight is None:
            return self.loss(output, y), penalty
        return (self.sample_weight * row_losses(self.loss, output, y)).mean(), penalty

    def decayed(self) -> list[nn.Parameter]:
        """Return the parameters that ``weight_decay`` keeps small: the coefficients of splines and base functions."""
        pairs = ((layer.spline_weight, layer.base_weight) for layer in self.model.layers if not layer._frozen)
        return [parameter for pair in pairs for parameter in pair if parameter is not None and parameter.requires_grad]

    def _decay(self) -> Tensor | float:
        squares = (parameter.square().sum() for parameter in self.decayed())
        return 0.5 * self.weight_decay * sum(squares) if self.weight_decay else 0.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the value of the objective for a batch."""
        loss, penalty = self.terms(x, y)
        return (loss if penalty is None else loss + self.strength * penalty) + self._decay()

    def value_and_grad(self, x: Tensor, y: Tensor, parameters: Sequence[nn.Parameter], unit: float = 1.0) -> float:
        """Return the value of the objective times ``unit``.

        If the value is finite, the gradient of the returned value is stored in the attribute ``grad`` of each
        parameter.
        """
        for parameter in parameters:
            parameter.grad = None
        held = self._held
        if held is None or held[0] is not x or held[1] is not y:
            held = self._hold(x, y)
        if held[2] is not None:
            return self._value_and_grad_arrays(held, parameters, unit)
        loss, penalty = self.terms(x, y, self.smooth)
        if penalty is None:
            self.evaluated = loss.detach(), 0.0
        else:
            self.evaluated = None if self.smooth else (loss.detach(), penalty.detach())
        value = ((loss if penalty is None else loss + self.strength * penalty) + self._decay()) * unit
        known = value.item()
        if math.isfinite(known):
            value.backward(inputs=list(parameters) if self.is_partial else None)
        return known

    @contextmanager
    def step(self, x: Tensor, y: Tensor) -> Iterator[None]:
        """Read the layers of the network once for all evaluations of the objective inside the ``with`` block.

        No other code may change the network inside the block, which contains one step of an optimizer.
        """
        self._repeated = x
        self._held = self._hold(x, y)
        try:
            yield
        finally:
            self._held = None

    def _hold(self, x: Tensor, y: Tensor) -> Held:
        stack = self._stack(x, y)
        return x, y, stack, None if stack is None else self.model._select_inputs(x)

    def _stack(self, x: Tensor, y: Tensor) -> list[StackLayer] | None:
        """Return the layers of the network, or None if value and gradient cannot be computed on arrays."""
        if not self.squares or not (self.penalty is None or self.penalty.is_of_spreads(x)):
            return None
        if x.requires_grad or y.requires_grad or x.dtype != y.dtype or self.model._has_hooks_or_override():
            return None
        stack = self.model._stacked_layers()
        if stack is None or y.shape != (len(x), stack[-1].weight.shape[2]):
            return None
        if self._repeated is None:
            self._repeated = x
        if not (supports_stack(x, stack, x is self._repeated) and has_values(y)):
            return None
        return stack if all(map(_takes_gradients, stack)) else None

    def _value_and_grad_arrays(self, held: Held, parameters: Sequence[nn.Parameter], unit: float) -> float:
        """Compute :meth:`value_and_grad` on arrays, for a small network and the mean squared error.

        An autograd graph would need three times as many calls, and most of the time for a small network goes into the
        overhead of calls.
        """
        import numpy as np

        x, y, stack, inputs = held
        assert stack is not None
        assert inputs is not None
        with np.errstate(all="ignore"):
            cache = self._cache if x is self._repeated else None
            run = FusedStack(inputs, stack, self.penalty is not None, cache, fixed_x=True)
            residual = run.y - y.numpy(force=True).T
            wide = residual.astype(np.float64)
            wide *= wide
            if self.sample_weight is not None:
                weight = self.sample_weight.numpy(force=True)
                wide *= weight
                residual *= weight
            value = float(np.add.reduce(wide, None)) / wide.size  # A BLAS call would use several threads.
            by_spreads: list = [(None, None)] * len(stack)
            self.evaluated = value, 0.0
            if self.penalty is not None:
                strength = float(self.strength)
                exact, penalty, by_spreads = self.penalty.vjp(run.stds(), strength * unit, self.smooth)
                self.evaluated = value, exact
                value += strength * penalty
            value *= unit
            if not math.isfinite(value):
                return value
            operands = [operand for layer in stack for operand in layer[:4]]
            trained = set(map(id, parameters))
            needed = list(map(trained.__contains__, map(id, operands)))
            residual *= 2 * unit / residual.size
            _, found = run.vjp(residual, by_spreads, [False, *needed])
        for parameter, gradient in zip(operands, found):
            if gradient is not None:
                assert parameter is not None
                gradient = torch.from_numpy(gradient)
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if self.weight_decay:
            with torch.no_grad():
                value += float(self._decay()) * unit
                for parameter in self.decayed():
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter, alpha=self.weight_decay * unit)
        return value


def is_cross_entropy(loss: Loss) -> bool:
    """Check whether a loss is the mean cross entropy of torch with default options."""
    if loss is nn.functional.cross_entropy:
        return True
    if type(loss) is not nn.CrossEntropyLoss:
        return False
    return loss.weight is None and loss.ignore_index < 0 and loss.reduction == "mean" and loss.label_smoothing == 0


def is_binary_cross_entropy(loss: Loss) -> bool:
    """Check whether a loss is the mean binary cross entropy of torch for logits, with default options."""
    if loss is nn.functional.binary_cross_entropy_with_logits:
        return True
    if type(loss) is not nn.BCEWithLogitsLoss:
        return False
    return loss.weight is None and loss.pos_weight is None and loss.reduction == "mean"


def has_row_losses(loss: Loss) -> bool:
    """Check whether :func:`row_losses` supports a loss."""
    return loss is nn.functional.mse_loss or is_cross_entropy(loss) or is_binary_cross_entropy(loss)


def row_losses(loss: Loss, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the loss ``[N]`` of each row, whose mean is the loss of the batch."""
    if is_cross_entropy(loss):
        return nn.functional.cross_entropy(prediction, y, reduction="none")
    if is_binary_cross_entropy(loss):
        return nn.functional.binary_cross_entropy_with_logits(prediction, y, reduction="none").mean(1)
    return (prediction - y).square().mean(1)


def _takes_gradients(layer: StackLayer) -> bool:
    """Whether all operands of a layer are leaf tensors without hooks, so that gradients can be assigned directly."""
    for operand in layer[:4]:
        if operand is not None and not operand.is_leaf:
            return False
        if operand is not None and (operand._backward_hooks or operand._post_accumulate_grad_hooks):
            return False
    return True
