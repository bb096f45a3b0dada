"""The search for a sparser network, beside the descent to one.

Sparsity has many local minima: a node that is hardly needed is kept, because its neighbours would first have to get
worse to take over. So now and then a fit also tries to do without one hidden node, and keeps what came out better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attribution import attributed
from .initial import NOISE, reset
from .objective import Objective

if TYPE_CHECKING:
    from .network import KAN

FIRST, EVERY = 4, 3  # steps
SHORTEST, LONGEST = 4, 8  # steps of a trial
HOPE = 0.97  # of its objective that each more must come to while it is still above the other's
ALIVE = 1e-2  # what a node must be worth to be tried


def rise(step: int, steps: int) -> float:
    """By how much the penalty counts: it rises over the first quarter of the steps, so that the data are known before
    nodes die."""
    return min(1.0, (step + 1) / max(1, steps // 4))


class NodeTrials:
    """Tries without one hidden node, the least important first, in turn: from where the others are and, in the next
    round of a network's first fit, with fresh edges for them.

    Args:
        make_step: a fresh optimizer's step.
        objective: of a batch.
        update_grid: whether knots may move.
    """

    def __init__(
        self,
        model: KAN,
        make_step: Callable[[], Callable[[Tensor, Tensor], None]],
        objective: Objective,
        update_grid: bool,
    ) -> None:
        self.model, self.make_step, self.objective, self.update_grid = model, make_step, objective, update_grid
        self.failed = 0

    def due(self, step: int) -> bool:
        """Whether a trial belongs to this step."""
        return step >= FIRST and step % EVERY == 0

    def __call__(self, take: Callable[[Tensor, Tensor], None], x: Tensor, y: Tensor) -> bool:
        """One step as it is, and a trial; whether the trial's parameters are kept."""
        nodes = self._nodes(x)
        if self.failed >= 2 * len(nodes):  # each has been tried in both ways
            take(x, y)
            return False
        before = state_of(self.model)
        take(x, y)
        plain, reached = state_of(self.model), self._value(x, y)
        self.model.load_state_dict(before)
        left_out = nodes[self.failed % len(nodes)]
        afresh = not self.model.history and self.failed // len(nodes) % 2 == 1  # after trials from where they are
        full = self.objective.strength
        if afresh:
            redraw(self.model, [node for node in nodes if node != left_out], seed=self.failed)
        else:
            silence(self.model, *left_out)
        try_step = self.make_step()
        value = float("inf")
        for tried in range(1, LONGEST + 1):
            if self.update_grid and tried > 1:
                self.model.update_grid_from_samples(x)
                try_step = self.make_step()
            last = value
            self.objective.strength = full * min(1.0, tried / SHORTEST) ** 2 if afresh else full
            try_step(x, y)
            self.objective.strength = full
            value = self._value(x, y)
            if value < reached or (tried >= SHORTEST and not value < HOPE * last):
                break
        if value < reached:
            self.failed = 0
            return True
        self.model.load_state_dict(plain)
        self.failed += 1
        return False

    def _value(self, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return self.objective(x, y).item()

    @torch.no_grad()
    def _nodes(self, x: Tensor) -> list[tuple[int, int]]:
        """Hidden nodes that matter, ``(layer, node)``, the least important first; none where one is its layer's
        last, or where a formula is."""
        model = self.model
        scores = attributed(model, [step.nodes for step in model.trace(x)])
        found: list[tuple[float, int, int]] = []
        for layer in range(1, model.depth):
            worth = scores.nodes[layer].amax(0).tolist()
            alive = [(score, layer, node) for node, score in enumerate(worth) if score > ALIVE]
            if len(alive) < 2 or model.symbolic[layer - 1].edges or model.symbolic[layer].edges:
                return []
            found += alive
        return [(layer, node) for _, layer, node in sorted(found)]


@torch.no_grad()
def silence(model: KAN, layer: int, node: int) -> None:
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
def redraw(model: KAN, nodes: list[tuple[int, int]], seed: int) -> None:
    """Fresh numeric edges everywhere, and only these hidden nodes, ``(layer, node)``."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        reset(layer, NOISE, 0.0, 1.0, generator)
    for layer in range(1, model.depth):
        for node in range(model.width_in[layer]):
            if (layer, node) not in nodes:
                silence(model, layer, node)


def state_of(model: KAN) -> dict[str, Any]:
    """A copy of everything that training changes."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
