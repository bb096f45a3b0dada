"""The search for a sparser network, beside the descent to one.

Sparsity has many local minima: a node that is hardly needed is kept, because its neighbours would first have to get
worse to take over. So now and then a fit also tries to do without one hidden node, and keeps what came out better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..layers.init import NOISE, reset
from ..network.attribution import attributed
from ..network.refine import update_grid_from_samples
from ..network.trace import trace
from .objective import Objective

if TYPE_CHECKING:
    from ..network.core import Network

FIRST_TRIAL, TRIAL_INTERVAL = 4, 3  # steps
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 4, 8  # steps of a trial
MIN_PROGRESS = 0.97  # of its objective that each more must come to while it is still above the other's
MIN_SCORE = 1e-2  # what a node must be worth to be tried
MAX_MULTIPLICATION_TRIALS = 5  # trials of multiplications alone
Node = tuple[int, int]  # layer, and place in it


def penalty_ramp(step: int, steps: int) -> float:
    """By how much the penalty counts: it rises over the first quarter of the steps, so that the data are known before
    nodes die."""
    return min(1.0, (step + 1) / max(1, steps // 4))


class Trial(NamedTuple):
    """What is tried: to do without hidden nodes, from where the others are or, with a seed, with fresh edges."""

    zeroed: list[Node]
    seed: int | None
    multiplied: bool = False  # whether it is the multiplications alone


class NodeTrials:
    """Tries without one hidden node, the least important first, in turn: from where the others are and, in the next
    round of a network's first fit, with fresh edges for them. Where some nodes of a layer add and others multiply, that
    fit also tries the multiplications alone, some times: squares of sums make products too, but longer ones, and a
    multiplication that has died has no slope to come back by.

    Args:
        make_step: a fresh optimizer's step.
        objective: of a batch.
        update_grid: whether knots may move.
        steps: of the fit.
    """

    def __init__(
        self,
        model: Network,
        make_step: Callable[[], Callable[[Tensor, Tensor], Any]],
        objective: Objective,
        update_grid: bool,
        steps: int,
    ) -> None:
        self.model, self.make_step, self.objective, self.update_grid = model, make_step, objective, update_grid
        self.steps, self.failed, self.multiplied = steps, 0, 0
        self.is_first = not model.history

    def due(self, step: int) -> bool:
        """Whether a trial belongs to this step."""
        return step >= FIRST_TRIAL and step % TRIAL_INTERVAL == 0

    def __call__(self, take: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor, step: int) -> bool:
        """One step as it is, and a trial; whether the trial's parameters are kept. What breaks off in it leaves the
        network in the middle of the trial."""
        trial = self._next(x, risen=penalty_ramp(step, self.steps) == 1)
        if trial is None:
            take(x, y)
            return False
        before = copy_state(self.model)
        take(x, y)
        plain, reached = copy_state(self.model), self._value(x, y)
        self.model.load_state_dict(before)
        full = self.objective.strength
        if trial.seed is not None:
            reinit(self.model, trial.zeroed, trial.seed, regrid=trial.multiplied and self.update_grid)
        else:
            for node in trial.zeroed:
                zero_node(self.model, *node)
        try_step = self.make_step()
        value = float("inf")
        for tried in range(1, MAX_TRIAL_STEPS + 1):
            if self.update_grid and tried > 1:
                update_grid_from_samples(self.model, x)
                try_step = self.make_step()
            last = value
            self.objective.strength = full * min(1.0, tried / MIN_TRIAL_STEPS) ** 2 if trial.seed is not None else full
            try_step(x, y)
            self.objective.strength = full
            value = self._value(x, y)
            if value < reached or (tried >= MIN_TRIAL_STEPS and not value < MIN_PROGRESS * last):
                break
        if value < reached:
            self.failed = 0
            return True
        self.model.load_state_dict(plain)
        self.failed += not trial.multiplied  # which has a count of its own
        return False

    def _value(self, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return self.objective(x, y).item()

    @torch.no_grad()
    def _next(self, x: Tensor, risen: bool) -> Trial | None:
        """None where a layer's last node is left or a formula is, and when each has been tried in both ways."""
        model = self.model
        scores = attributed(model, [step.nodes for step in trace(model, x)])
        alive: list[tuple[float, int, int]] = []
        dead: list[Node] = []
        for layer in range(1, model.depth):
            worth = scores.nodes[layer].amax(0).tolist()
            found = [(score, layer, node) for node, score in enumerate(worth) if score > MIN_SCORE]
            if len(found) < 2 or model.symbolic[layer - 1].edges or model.symbolic[layer].edges:
                return None
            alive += found
            dead += [(layer, node) for node, score in enumerate(worth) if not score > MIN_SCORE]
        nodes = [(layer, node) for _, layer, node in sorted(alive)]
        sums = self._beside_multiplications()
        if risen and self.is_first and self.multiplied < MAX_MULTIPLICATION_TRIALS and set(sums) & set(nodes):
            self.multiplied += 1
            return Trial(sums, self.multiplied - 1, multiplied=True)
        if self.failed < len(nodes):
            return Trial([nodes[self.failed]], None)
        if self.failed < 2 * len(nodes) and self.is_first:
            return Trial([nodes[self.failed - len(nodes)], *dead], self.failed)
        return None

    def _beside_multiplications(self) -> list[Node]:
        """The hidden nodes that add, in layers where others multiply."""
        nodes = self.model.architecture
        layers = (layer for layer in range(1, self.model.depth) if nodes.arities[layer])
        return [(layer, node) for layer in layers for node in range(nodes.sums[layer])]


@torch.no_grad()
def zero_node(model: Network, layer: int, node: int) -> None:
    """Set the numeric edges into and out of a node to 0."""
    into, out = model.layers[layer - 1], model.layers[layer]
    subnodes = model.architecture.factors(layer)[node]
    for weights in (into.spline_weight, into.base_weight):
        if weights is not None:
            weights[..., subnodes] = 0
    for weights in (out.spline_weight, out.base_weight):
        if weights is not None:
            weights[..., node, :] = 0


@torch.no_grad()
def reinit(model: Network, zeroed: list[Node], seed: int, regrid: bool) -> None:
    """Fresh numeric edges everywhere, but for hidden nodes to do without; with ``regrid`` on the first grids behind
    hidden nodes."""
    generator = torch.Generator().manual_seed(seed)
    for place, layer in enumerate(model.layers):
        if regrid and place > 0:
            layer.replace_knots(layer.initial_knots())
        reset(layer, NOISE, 0.0, 1.0, generator)
    for node in zeroed:
        zero_node(model, *node)


def copy_state(model: Network) -> dict[str, Any]:
    """A copy of everything that training changes."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
