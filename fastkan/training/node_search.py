"""The search for a sparser network during a fit with a sparsity penalty.

The objective of a fit with a sparsity penalty has many local minima: a node that is hardly needed can remain, because
its removal would first increase the objective, until the other nodes have adapted. Every few steps, a fit therefore
also tries to continue with one hidden node set to zero, and keeps the network with the smaller objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..network.attribution import attribution_scores
from ..network.refine import update_grid_from_samples
from ..network.trace import trace
from .objective import Objective

if TYPE_CHECKING:
    from ..network.core import Network

# First step of a fit at which a trial may be made, and number of steps from one trial to the next.
FIRST_TRIAL, TRIAL_INTERVAL = 4, 3
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 4, 8
# A trial whose objective is still too large is continued only if its last step multiplied the objective by less than
# this factor.
MIN_PROGRESS = 0.97
# Attribution score above which a node counts as alive.
MIN_SCORE = 1e-2
# Maximum number of trials that set all addition nodes to zero in the layers that also have multiplication nodes.
MAX_MULTIPLICATION_TRIALS = 5
# The seeds of the starts of networks with different seeds are this far apart.
STARTS_PER_SEED = 1_000_003
# The layer of a node, and the index of the node in the layer.
Node = tuple[int, int]


def penalty_ramp(step: int, steps: int) -> float:
    """Return the factor by which the strength of the penalty is multiplied at a step. The factor grows linearly to 1
    over the first quarter of the steps, so that the network can fit the data roughly before nodes vanish."""
    return min(1.0, (step + 1) / max(1, steps // 4))


class Trial(NamedTuple):
    """The settings of one trial: the hidden nodes to set to zero, and the number of the start for which the parameters
    of the other edges are drawn. If the number is None, the other edges keep their parameters."""

    zeroed: list[Node]
    number: int | None
    # Whether ``zeroed`` holds all addition nodes of the layers that also have multiplication nodes.
    multiplications_only: bool = False


class NodeTrials:
    """The trials in which a fit continues without one of its hidden nodes, starting with the least important node.

    The first round of trials keeps the parameters of the other edges. A second round, which is made only in the first
    fit of a network, draws the parameters of the other edges at random. If a layer has both addition and multiplication
    nodes, the first fit of a network also makes a few trials with the multiplication nodes alone. Without those trials,
    a fit could express a product by sums of squares, with more edges than necessary, because a multiplication node
    whose factors have all become 0 has a zero gradient and cannot recover.
    """

    def __init__(
        self,
        model: Network,
        make_optimizer: Callable[[], Callable[[Tensor, Tensor], Any]],
        objective: Objective,
        update_grid: bool,
        steps: int,
        weight: Tensor | None = None,
    ) -> None:
        self.model, self.objective, self.make_optimizer, self.weight = model, objective, make_optimizer, weight
        self.update_grid, self.steps = update_grid, steps
        self.failures = 0  # number of failed trials of single nodes since the last successful trial
        self.multiplication_trials = 0
        self.is_first_fit = not model.history

    def due(self, step: int) -> bool:
        """Whether a trial is made at step ``step`` of the fit."""
        return step >= FIRST_TRIAL and step % TRIAL_INTERVAL == 0

    def __call__(self, optimizer: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor, step: int) -> bool:
        """Make a normal step and a trial from the same parameters, and keep the better of the two networks. Return True
        if the network of the trial is better. An exception leaves the network in the state of the unfinished trial."""
        trial = self._next(x, at_full_strength=penalty_ramp(step, self.steps) == 1)
        if trial is None:
            optimizer(x, y)
            return False
        before = copy_state(self.model)
        optimizer(x, y)
        after, target = copy_state(self.model), self._value(x, y)
        self.model.load_state_dict(before)
        full = self.objective.strength
        if trial.number is not None:
            reinit(self.model, trial.zeroed, trial.number, reset_grid=trial.multiplications_only and self.update_grid)
        else:
            for node in trial.zeroed:
                zero_node(self.model, *node)
        trial_optimizer = self.make_optimizer()
        value = float("inf")
        for count in range(1, MAX_TRIAL_STEPS + 1):
            if self.update_grid and count > 1:
                update_grid_from_samples(self.model, x, sample_weight=self.weight)
                trial_optimizer = self.make_optimizer()
            previous = value
            self.objective.strength = (
                full * min(1.0, count / MIN_TRIAL_STEPS) ** 2 if trial.number is not None else full
            )
            trial_optimizer(x, y)
            self.objective.strength = full
            value = self._value(x, y)
            if value < target or (count >= MIN_TRIAL_STEPS and not value < MIN_PROGRESS * previous):
                break
        if value < target:
            self.failures = 0
            return True
        self.model.load_state_dict(after)
        self.failures += not trial.multiplications_only
        return False

    def _value(self, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return self.objective(x, y).item()

    @torch.no_grad()
    def _next(self, x: Tensor, at_full_strength: bool) -> Trial | None:
        """Return the next trial, or None if no trial can be made. No trial can be made if a hidden layer has fewer than
        two nodes that count as alive, if an edge into or out of a hidden layer has a formula, or after the last
        trial."""
        model = self.model
        scores = attribution_scores(model, [step.nodes for step in trace(model, x)])
        alive: list[tuple[float, int, int]] = []
        dead: list[Node] = []
        for layer in range(1, model.depth):
            layer_scores = scores.nodes[layer].amax(0).tolist()
            above = [(score, layer, node) for node, score in enumerate(layer_scores) if score > MIN_SCORE]
            if len(above) < 2 or model.symbolic[layer - 1].edges or model.symbolic[layer].edges:
                return None
            alive += above
            dead += [(layer, node) for node, score in enumerate(layer_scores) if not score > MIN_SCORE]
        nodes = [(layer, node) for _, layer, node in sorted(alive)]
        shape = model.architecture
        mixed = (layer for layer in range(1, model.depth) if shape.arities[layer])
        additions = [(layer, node) for layer in mixed for node in range(shape.sums[layer])]
        may_multiply = self.is_first_fit and self.multiplication_trials < MAX_MULTIPLICATION_TRIALS
        if at_full_strength and may_multiply and set(additions) & set(nodes):
            self.multiplication_trials += 1
            return Trial(additions, self.multiplication_trials - 1, multiplications_only=True)
        if self.failures < len(nodes):
            return Trial([nodes[self.failures]], None)
        if self.failures < 2 * len(nodes) and self.is_first_fit:
            return Trial([nodes[self.failures - len(nodes)], *dead], self.failures)
        return None


@torch.no_grad()
def zero_node(model: Network, layer: int, node: int) -> None:
    """Set the parameters of all numeric edges that lead into or out of a node to 0."""
    subnodes = model.architecture.factors(layer)[node]
    for name in ("spline_weight", "base_weight"):
        into, out = getattr(model.layers[layer - 1], name), getattr(model.layers[layer], name)
        if into is not None:
            into[..., subnodes] = 0
        if out is not None:
            out[..., node, :] = 0


@torch.no_grad()
def reinit(model: Network, zeroed: list[Node], number: int, reset_grid: bool) -> None:
    """Draw new random parameters for all numeric edges, then set the hidden nodes in ``zeroed`` to zero. If
    ``reset_grid`` is true, also move the knots of every layer but the first to their initial positions.

    Args:
        number: the number of this start, below :data:`STARTS_PER_SEED`. Parameters are drawn from a seed for the
            network's own seed and this number, so that networks with other seeds have other starts. If the network's
            seed is None, they are drawn from torch's global generator. For networks with the seed 0, the start with
            the number 0 repeats the initial parameters.
    """
    own = model._seed
    generator = None if own is None else torch.Generator().manual_seed((own * STARTS_PER_SEED + number) % 2**63)
    for index, layer in enumerate(model.layers):
        if reset_grid and index > 0:
            layer._write_knots(layer._initial_knots())
        layer._draw_parameters(generator)
    for node in zeroed:
        zero_node(model, *node)


def copy_state(model: Network) -> dict[str, Any]:
    """Return a copy of the state dict, which holds everything that training changes."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
