"""Trials without some hidden nodes, beside a sparse fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import D, network, parameters_of, points, unchanged
from torch import Tensor

from fastkan import create_dataset
from fastkan.kan.model import KAN
from fastkan.training.node_search import FIRST_TRIAL, MAX_MULTIPLICATION_TRIALS, TRIAL_INTERVAL, NodeTrials, Trial

LATE = 99  # a step at which the penalty has risen


def product(seed: int) -> tuple[KAN, dict[str, Tensor]]:
    model = KAN(width=[2, [2, 1], 1], grid=3, seed=seed, dtype=D)
    return model, create_dataset(lambda x: x[:, [0]] * x[:, [1]], n_var=2, train_num=50, test_num=50, dtype=D)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_product_is_found_as_the_multiplication_alone(seed: int) -> None:
    """Without trials a sum takes over, which makes the product of squares."""
    widths = []
    for try_without in (True, False):
        model, data = product(seed)
        results = model.fit(data, steps=16, lamb=1e-2, try_without=try_without, progress=False)
        widths.append(model.prune().width)
        assert (results["test_loss"][-1] < 0.1) == try_without
    assert widths == [[[2, 0], [0, 1], [1, 0]], [[2, 0], [1, 0], [1, 0]]]


class Scripted:
    """An objective that rises or falls from each evaluation to the next."""

    def __init__(self, rises: bool) -> None:
        self.strength, self.step, self.value = 0.5, 1.0 if rises else -1.0, 100.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.value += self.step
        return torch.tensor(self.value)


def trials(model: KAN, rises: bool, update_grid: bool = True) -> tuple[NodeTrials, list[Trial | None], Any]:
    """Trials whose optimizer does nothing, the list that records them, and their objective."""
    objective: Any = Scripted(rises)
    made = NodeTrials(model, lambda: lambda x, y: None, objective, update_grid, steps=100)
    told: list[Trial | None] = []
    following = made._next

    def spied(*args: Any, **options: Any) -> Trial | None:
        told.append(following(*args, **options))
        return told[-1]

    made._next = spied  # type: ignore[method-assign]
    return made, told, objective


def test_multiplications_alone_take_no_turn_of_a_node() -> None:
    model = network([2, [2, 1], 1])
    made, told, _ = trials(model, rises=True)
    x = points(model)
    taken = []
    for _ in range(MAX_MULTIPLICATION_TRIALS + 2 * 3 + 1):
        assert not made(lambda x, y: taken.append(len(x)), x, x[:, :1], LATE)
    *tried, last = told
    assert last is None
    assert len(taken) == len(told)  # a step is taken each time
    assert all(trial is not None for trial in tried)
    alone, each, afresh = tried[:MAX_MULTIPLICATION_TRIALS], tried[MAX_MULTIPLICATION_TRIALS:-3], tried[-3:]
    assert [trial.zeroed for trial in alone] == MAX_MULTIPLICATION_TRIALS * [[(1, 0), (1, 1)]]
    assert len({trial.number for trial in alone}) == MAX_MULTIPLICATION_TRIALS
    assert sorted(trial.zeroed for trial in each) == [[(1, 0)], [(1, 1)], [(1, 2)]]
    assert all(trial.number is None for trial in each)
    assert [trial.zeroed for trial in afresh] == [trial.zeroed for trial in each]
    assert all(trial.number is not None for trial in afresh)


@pytest.mark.parametrize(
    ("width", "why"),
    [
        ([2, 3, 1], "nothing multiplies"),
        ([2, [0, 3], 1], "nothing adds"),
        ([2, [2, 1], 1], "the penalty has not risen"),
        ([2, [2, 1], 1], "not the first fit"),
    ],
)
def test_multiplications_alone_are_not_tried_where(width: list, why: str) -> None:
    model = network(width)
    if why == "not the first fit":
        model.history.append({})
    made, told, _ = trials(model, rises=True)
    x = points(model)
    for _ in range(4):
        made(lambda x, y: None, x, x[:, :1], FIRST_TRIAL if why == "the penalty has not risen" else LATE)
    assert all(trial is None or len(trial.zeroed) == 1 for trial in told)
    assert told[0] is not None


@pytest.mark.parametrize("width", [[2, [0, 1], 1], [2, 1, 1]])
def test_a_layers_last_node_is_not_tried(width: list) -> None:
    model = network(width)
    made, told, _ = trials(model, rises=True)
    x = points(model)
    before = parameters_of(model)
    assert not made(lambda x, y: None, x, x[:, :1], LATE)
    assert told == [None]
    unchanged(model, before)


def set_up() -> tuple[KAN, dict[str, Any], list[bool], list[int]]:
    model = network([2, [2, 1], [1, 1], 2], "adapted", off=[(0, 1, 2), (1, 0, 1), (2, 1, 0)])
    model.layers[1].set_mask(None)
    return model, parameters_of(model), [p.requires_grad for p in model.parameters()], model.grid


@pytest.mark.parametrize("update_grid", [True, False])
def test_trials_that_fail_leave_everything_as_it_was(update_grid: bool) -> None:
    model, before, trained, grid = set_up()
    made, told, objective = trials(model, True, update_grid)
    x = points(model)
    for _ in range(MAX_MULTIPLICATION_TRIALS + 2 * 5):
        made(lambda x, y: None, x, x[:, :1], LATE)
        unchanged(model, before)
        assert objective.strength == 0.5
    assert any(trial and trial.number is not None for trial in told)
    assert [p.requires_grad for p in model.parameters()] == trained
    assert model.grid == grid


@pytest.mark.parametrize("update_grid", [True, False])
def test_a_trial_that_is_kept_changes_weights_and_knots_alone(update_grid: bool) -> None:
    model, before, trained, grid = set_up()
    made, told, objective = trials(model, False, update_grid)
    x = points(model)
    assert made(lambda x, y: None, x, x[:, :1], LATE)
    assert told[0] is not None
    assert told[0].multiplications_only
    assert objective.strength == 0.5
    after = parameters_of(model)
    assert after.keys() == before.keys()
    moved = {
        name for name, value in after.items() if isinstance(value, Tensor) and not torch.equal(value, before[name])
    }
    numeric = [f"layers.{l}.{name}" for l in range(3) for name in ("spline_weight", "base_weight", "spline_scale")]
    assert moved == {*numeric, *(["layers.1.knots", "layers.2.knots"] if update_grid else [])}
    assert all(after[name].shape == before[name].shape for name in moved)
    assert [p.requires_grad for p in model.parameters()] == trained
    assert model.grid == grid
    for layer, sums in ((1, [0, 1]), (2, [0])):
        into, out = model.layers[layer - 1], model.layers[layer]
        for weights in (into.spline_weight, into.base_weight):
            assert (weights[..., sums] == 0).all()
            assert (weights[..., sums[-1] + 1 :] != 0).any()
        for weights in (out.spline_weight, out.base_weight):
            assert (weights[..., sums, :] == 0).all()
    assert model(x).isfinite().all()


def test_trials_are_due_every_few_steps() -> None:
    made, _, _ = trials(network([2, 3, 1]), rises=True)
    due = [step for step in range(20) if made.due(step)]
    assert due
    assert all(step >= FIRST_TRIAL and step % TRIAL_INTERVAL == 0 for step in due)
