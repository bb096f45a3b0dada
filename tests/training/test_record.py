"""What a fit measures after each step, of which rows, and how much that costs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from networks import D
from test_fit import OPTS, data, fit, fresh, rmse, target
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.training import optimizers
from fastkan.training.objective import Objective
from fastkan.training.regularization import Penalty


def large(rows: int = 60, tests: int = 90) -> dict[str, Tensor]:
    (x, y), (test_x, test_y) = data(rows), data(tests, seed=1)
    return {"train_input": x, "train_label": y, "test_input": test_x, "test_label": test_y}


class Evaluations:
    """Counts evaluations with a gradient, and notes the rows of those without one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pulls, self.without = 0, []
        vjp, forward = Objective.value_and_grad, KAN.forward

        def pulled(objective: Objective, *arguments: Any) -> float:
            self.pulls += 1
            return vjp(objective, *arguments)

        def seen(model: KAN, x: Tensor, **options: Any) -> Tensor:
            if not torch.is_grad_enabled():
                self.without.append(x)
            return forward(model, x, **options)

        monkeypatch.setattr(Objective, "value_and_grad", pulled)
        monkeypatch.setattr(KAN, "forward", seen)


@pytest.mark.parametrize("lamb", [0.0, 0.01])
def test_a_step_of_adam_evaluates_the_network_once(lamb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = fresh(), Evaluations(monkeypatch)
    fit(model, data(), "Adam", 20, update_grid=False, lamb=lamb)
    assert (seen.pulls, seen.without) == (21, [])
    fit(model, data(), "Adam", 20, lamb=lamb)
    assert (seen.pulls, seen.without) == (21 + 20 + 4, [])  # anew after each grid update


@pytest.mark.parametrize("options", [{}, {"lamb": 0.01, "try_without": False}, {"batch": 20}, {"update_grid": False}])
def test_a_step_of_lbfgs_is_recorded_from_its_own_evaluations(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, terms = fresh(), []
    real = Objective.terms
    monkeypatch.setattr(Objective, "terms", lambda *args: terms.append(torch.is_grad_enabled()) or real(*args))
    results = fit(model, data(), steps=12, **options)
    assert len(results["train_loss"]) == 12
    assert terms.count(False) <= 2  # where a line search does not end at its lowest
    if "batch" not in options:
        assert results["train_loss"][-1] == pytest.approx(rmse(model, *data()), rel=1e-12)


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("lamb", [0.0, 0.01])
def test_what_is_recorded_is_measured_after_the_step(opt: str, lamb: float) -> None:
    """Whether by an evaluation that is made anyhow, or, where somebody looks on, by one of its own."""
    one, other, seen = fresh(), fresh(), []
    given = large()
    results = fit(one, given, opt, 12, lamb=lamb)

    def watch(m: KAN, step: int, record: dict) -> None:
        seen.append((rmse(m, *data()), rmse(m, given["test_input"], given["test_label"])))

    watched = fit(other, given, opt, 12, lamb=lamb, callbacks=[watch])
    for name, values in results.items():
        assert values == pytest.approx(watched[name], rel=1e-9)
    assert results["train_loss"] == pytest.approx([train for train, _ in seen], rel=1e-9)
    assert results["test_loss"] == pytest.approx([test for _, test in seen], rel=1e-9)


def test_with_batches_the_test_is_as_large_as_a_batch_and_whole_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, seen = fresh(), large(tests=90), Evaluations(monkeypatch)
    results = fit(model, given, "Adam", 7, batch=30, update_grid=False)
    tests = [x for x in seen.without if any((x[0] == row).all() for row in given["test_input"])]
    assert [len(x) for x in tests] == [30] * 7 + [90]
    for turn in (tests[:3], tests[3:6]):  # each row once before any comes again
        assert sorted(torch.cat(turn)[:, 0].tolist()) == sorted(given["test_input"][:, 0].tolist())
    assert len(results["test_loss"]) == 7
    assert results["test_loss"][-1] == pytest.approx(rmse(model, given["test_input"], given["test_label"]), rel=1e-12)
    part = tests[-2]
    assert results["test_loss"][-2] != pytest.approx(rmse(model, part, target(part)), rel=1e-12)  # a step before


@pytest.mark.parametrize("opt", OPTS)
def test_with_log_the_test_is_measured_now_and_then_and_at_the_end(opt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, seen = fresh(), large(), Evaluations(monkeypatch)
    results = fit(model, given, opt, 9, log=4)
    assert [len(x) for x in seen.without].count(90) == 3  # after steps 0, 4 and 8
    every = fit(fresh(), given, opt, 9)
    for name in ("train_loss", "reg"):
        assert results[name] == every[name]
    losses = every["test_loss"]
    assert results["test_loss"] == [*[losses[0]] * 4, *[losses[4]] * 4, losses[8]]
    ends = fit(fresh(), given, opt, 7, log=4)["test_loss"]
    assert ends == [*[losses[0]] * 4, *[losses[4]] * 2, losses[6]]


@pytest.mark.parametrize("opt", OPTS)
def test_early_stopping_is_by_the_whole_test_set_after_each_step(opt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Evaluations(monkeypatch)
    fit(fresh(), large(), opt, 6, log=4, batch=20, early_stopping=6)
    assert [len(x) for x in seen.without].count(90) == 6


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("options", [{"batch": 20}, {"log": 5}, {"batch": 20, "log": 3}])
@pytest.mark.parametrize("end", ["callback", "steps", "NaN"])
def test_the_last_test_loss_is_the_networks_however_a_fit_ends(opt: str, options: dict[str, Any], end: str) -> None:
    given, model, now = large(), fresh(), []
    x, y = given["test_input"], given["test_label"]

    def loss(p: Tensor, label: Tensor) -> Tensor:
        return (p - label).square().mean() * (torch.nan if now and not torch.equal(label, y) else 1)

    def watch(m: KAN, step: int, record: dict) -> bool:
        now.extend([1] * (step == 3 and end == "NaN"))
        return step == 3 and end == "callback"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        results = fit(model, given, opt, 8, loss_fn=loss, callbacks=[watch], **options)
    assert len(results["test_loss"]) == len(results["train_loss"]) == (8 if end == "steps" else 4)
    assert results["test_loss"][-1] == pytest.approx(rmse(model, x, y) ** 2, rel=1e-12)


def test_half_precision_and_one_test_row() -> None:
    model = fresh().to(torch.bfloat16)
    given = {name: value.to(D)[: 1 if "test" in name else None] for name, value in large().items()}
    results = fit(model, given, "Adam", 4, batch=20)
    assert all(len(results[name]) == 4 for name in ("train_loss", "test_loss", "reg"))


@pytest.mark.parametrize("seed", [4, 5])  # others go on by themselves for as many steps
def test_a_strong_penalty_does_not_stop_lbfgs_far_from_a_minimum(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where edges come to 0 their sizes have kinks, at which every line search fails."""
    x, y = data(100)
    reached = []
    for smooth in (optimizers.SMOOTHING_LENGTH, 0.0):
        monkeypatch.setattr(optimizers, "SMOOTHING_LENGTH", smooth)
        model = KAN([2, 3, 1], grid=5, seed=seed, dtype=D)
        results = fit(model, (x, y), steps=150, lamb=1.0, try_without=False)
        loss, penalty = Penalty(model, 1.0, 2.0, 0.0, 0.0, "edge_forward_spline_n")(x)
        assert results["reg"][-1] == pytest.approx(penalty.item(), rel=1e-12)  # which is not rounded off
        reached.append(((loss - y).square().mean() + penalty).item())
    assert reached[0] < 0.8 * reached[1]
