"""The search for a sparser network that a fit with a sparsity penalty makes beside its descent.

Sparsity has many local minima: a node that is hardly needed survives, because the objective would first have to get
worse before its neighbours could take over. So from time to time a fit also tries a step with one hidden node set to
zero, and continues from whichever of the two networks has the smaller objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..layers.init import reinitialize
from ..network.attribution import attribution_scores
from ..network.refine import update_grid_from_samples
from ..network.trace import trace
from .objective import Objective

if TYPE_CHECKING:
    from ..network.core import Network

FIRST_TRIAL, TRIAL_INTERVAL = 4, 3  # in steps of the fit
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 4, 8
MIN_PROGRESS = 0.97  # a trial that is still worse must shrink its objective by this factor per step to continue
MIN_SCORE = 1e-2  # attribution score from which on a node counts as alive
MAX_MULTIPLICATION_TRIALS = 5  # trials with all addition nodes beside multiplication nodes set to zero
Node = tuple[int, int]  # layer of nodes, index in it


def penalty_ramp(step: int, steps: int) -> float:
    """Factor of the penalty's strength: it grows linearly to 1 over the first quarter of the steps, so that the network
    has learned something from the data before nodes vanish."""
    return min(1.0, (step + 1) / max(1, steps // 4))


class Trial(NamedTuple):
    """Hidden nodes to set to zero, and the seed of fresh parameters for the other edges, or None to keep those."""

    zeroed: list[Node]
    seed: int | None
    multiplications_only: bool = False  # whether these are all addition nodes beside multiplication nodes


class NodeTrials:
    """Trials in which a fit continues without one of the hidden nodes, starting with the least important one.

    The first round keeps the parameters of the other edges; a second round, in the first fit of a network only, draws
    them again. If a layer has both addition and multiplication nodes, the first fit also tries the multiplication
    nodes alone, a few times: sums can express products through squares, but with more edges, and a multiplication
    node whose factors have all become 0 has a zero gradient and cannot recover.
    """

    def __init__(
        self,
        model: Network,
        make_optimizer: Callable[[], Callable[[Tensor, Tensor], Any]],
        objective: Objective,
        update_grid: bool,
        steps: int,
    ) -> None:
        self.model, self.objective, self.make_optimizer = model, objective, make_optimizer
        self.update_grid, self.steps = update_grid, steps
        self.failures = 0  # failed trials of single nodes since the last success
        self.multiplication_trials = 0
        self.is_first_fit = not model.history

    def due(self, step: int) -> bool:
        """Whether a trial is made at this step."""
        return step >= FIRST_TRIAL and step % TRIAL_INTERVAL == 0

    def __call__(self, optimizer: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor, step: int) -> bool:
        """Make a normal step and a trial from the same parameters, keep the better result, and return whether that is
        the trial's. An exception leaves the network in the middle of the trial."""
        trial = self._next(x, at_full_strength=penalty_ramp(step, self.steps) == 1)
        if trial is None:
            optimizer(x, y)
            return False
        before = copy_state(self.model)
        optimizer(x, y)
        after, target = copy_state(self.model), self._value(x, y)
        self.model.load_state_dict(before)
        full = self.objective.strength
        if trial.seed is not None:
            reinit(self.model, trial.zeroed, trial.seed, reset_grid=trial.multiplications_only and self.update_grid)
        else:
            for node in trial.zeroed:
                zero_node(self.model, *node)
        trial_optimizer = self.make_optimizer()
        value = float("inf")
        for count in range(1, MAX_TRIAL_STEPS + 1):
            if self.update_grid and count > 1:
                update_grid_from_samples(self.model, x)
                trial_optimizer = self.make_optimizer()
            previous = value
            self.objective.strength = full * min(1.0, count / MIN_TRIAL_STEPS) ** 2 if trial.seed is not None else full
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
        """Return the next trial; None if a hidden layer has one node alive or formulas beside it, or at the end."""
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
    """Set the parameters of all numeric edges into and out of a node to 0."""
    subnodes = model.architecture.factors(layer)[node]
    for name in ("spline_weight", "base_weight"):
        into, out = getattr(model.layers[layer - 1], name), getattr(model.layers[layer], name)
        if into is not None:
            into[..., subnodes] = 0
        if out is not None:
            out[..., node, :] = 0


@torch.no_grad()
def reinit(model: Network, zeroed: list[Node], seed: int, reset_grid: bool) -> None:
    """Draw the parameters of all numeric edges again, and set some hidden nodes to zero. With ``reset_grid`` the layers
    after the first also get the knots of a fresh layer."""
    generator = torch.Generator().manual_seed(seed)
    for index, layer in enumerate(model.layers):
        if reset_grid and index > 0:
            layer._write_knots(layer._initial_knots())
        reinitialize(layer, generator)
    for node in zeroed:
        zero_node(model, *node)


def copy_state(model: Network) -> dict[str, Any]:
    """Copy of the state dict, which holds everything that training changes."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
