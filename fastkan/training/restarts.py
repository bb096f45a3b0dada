"""Further starts of a fit from new random parameters, for fits that are stuck in a bad local minimum.

The error of a network with few nodes has bad local minima, in which a part of the target is not represented at all. The
Levenberg-Marquardt method and L-BFGS converge to such a minimum from more than half of the random initial parameters of
a network of the shape [2, 1, 1], within a few steps. After :data:`START_STEPS` steps of its first fit, a network whose
error is still large is therefore trained for as many steps from other initial parameters, and the best network is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..network.refine import update_grid_from_samples
from .node_search import copy_state, reinit

if TYPE_CHECKING:
    from ..network.core import Network

# The number of steps after which the error is examined, and the maximum number of further starts.
START_STEPS, MAX_STARTS = 8, 6
# The mean squared error, relative to the variance of the labels, above which other initial parameters are tried.
MAX_UNEXPLAINED = 0.01


class Restarts:
    """The further starts of a fit.

    Args:
        make_optimizer: a function that returns a new optimizer.
        updates: the steps of the fit at which the grids are updated.
        weight: the weights ``[N]`` of the rows, or None.
    """

    def __init__(
        self,
        model: Network,
        make_optimizer: Callable[[], Callable[[Tensor, Tensor], Any]],
        updates: Collection[int],
        weight: Tensor | None = None,
    ) -> None:
        self.model, self.make_optimizer, self.updates, self.weight = model, make_optimizer, updates, weight

    def __call__(self, x: Tensor, y: Tensor, loss: float) -> bool:
        """Train the network from other initial parameters, and keep the best network. Return whether the parameters
        have changed.

        Args:
            x, y: all rows of the data.
            loss: the mean squared error of the network.
        """
        share = torch.ones(len(y), 1, device=y.device) if self.weight is None else self.weight.unsqueeze(1)
        share, wide = share.double() / share.double().sum(), y.double()
        limit = MAX_UNEXPLAINED * float((share * (wide - (share * wide).sum(0)).square()).sum(0).mean())
        first, best = loss, copy_state(self.model)
        for number in range(1, MAX_STARTS + 1):
            if loss <= limit:
                break
            reinit(self.model, [], number, reset_grid=bool(self.updates))
            value = self._run(x, y)
            if value < loss:
                loss, best = value, copy_state(self.model)
        self.model.load_state_dict(best)
        return loss < first

    def _run(self, x: Tensor, y: Tensor) -> float:
        optimizer, loss = self.make_optimizer(), math.inf
        for step in range(START_STEPS):
            if step in self.updates:
                update_grid_from_samples(self.model, x, sample_weight=self.weight)
            evaluated = optimizer(x, y)
            if evaluated is not None:
                loss = float(evaluated[0])
        return loss
