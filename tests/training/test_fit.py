"""``KAN.fit``: what it trains and records, the course of a fit, and fits that break off."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import D, mixed, network, parameters_of, points, unchanged
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastkan.kan.model import KAN
from fastkan.network.refine import update_grid_from_samples
from fastkan.training import optimizers
from fastkan.training.node_search import NodeTrials
from fastkan.training.objective import Objective
from fastkan.training.regularization import Penalty

OPTS = ["LBFGS", "Adam"]


def target(x: Tensor) -> Tensor:
    return torch.sin(3 * x[:, [0]]) + x[:, [1]] ** 2


def data(rows: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=D) - 1
    return x, target(x)


def dataset(tests: int = 60) -> dict[str, Tensor]:
    (x, y), (test_x, test_y) = data(), data(tests, seed=1)
    return {"train_input": x, "train_label": y, "test_input": test_x, "test_label": test_y}


def fresh(width=(2, 3, 1), **options: Any) -> KAN:
    return KAN(list(width), grid=4, seed=0, dtype=D, **options)


def fit(model: KAN, data: Any, opt: str = "LBFGS", steps: int = 5, **options: Any) -> dict[str, list[float]]:
    lr = 1.0 if opt == "LBFGS" else 0.05
    return model.fit(data, opt=opt, steps=steps, **{"progress": False, "lr": lr, **options})


def rmse(model: KAN, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x) - y).square().mean().sqrt().item()


def noting(states: list[dict[str, Tensor]]) -> Callable[..., None]:
    """A callback that appends the state after each step."""
    return lambda model, *_: states.append(parameters_of(model))


# -- what comes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("opt", "steps", "bound"), [("LBFGS", 12, 0.01), ("Adam", 150, 0.05)])
def test_the_loss_falls_and_the_record_says_so(opt: str, steps: int, bound: float) -> None:
    model, given = fresh(), dataset()
    before = rmse(model, *data())
    results = fit(model, given, opt, steps)
    assert set(results) == {"train_loss", "test_loss", "reg"}
    assert [len(values) for values in results.values()] == [steps] * 3
    assert all(isinstance(value, float) for values in results.values() for value in values)
    assert results["train_loss"][-1] < bound < before
    assert results["train_loss"][-1] == pytest.approx(rmse(model, *data()), rel=1e-12)
    assert results["test_loss"][-1] == pytest.approx(rmse(model, *data(seed=1)), rel=1e-12)
    assert results["reg"] == [0.0] * steps
    assert model.history == [results]
    fit(model, given, opt, 2)
    assert [len(record["reg"]) for record in model.history] == [steps, 2]
    assert torch.equal(model.sample, given["train_input"])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("clamp", [False, True])
def test_adam_is_torchs_and_a_callback_may_write_parameters(clamp: bool) -> None:
    """The gradient of the next step is that of the written parameters, however they are written.

    A loss function makes the fit use autograd, as the loop does, so that both have the same bits.
    """
    model, other = fresh(), fresh()
    x, y = data()

    def clamped(m: KAN, *_: Any) -> None:
        for parameter in m.layers.parameters():
            parameter.data.clamp_(-0.3, 0.3)

    loss = torch.nn.functional.mse_loss
    fit(model, (x, y), "Adam", 7, update_grid=False, callbacks=[clamped] * clamp, loss_fn=loss)
    optimizer = torch.optim.Adam([p for p in other.parameters() if p.requires_grad and p.numel()], lr=0.05)
    for _ in range(7):
        optimizer.zero_grad()
        loss(other(x), y).backward()
        optimizer.step()
        if clamp:
            clamped(other)
    unchanged(model, parameters_of(other))


def test_no_steps_change_nothing() -> None:
    model = fresh()
    before = parameters_of(model)
    assert fit(model, data(), steps=0) == {"train_loss": [], "test_loss": [], "reg": []}
    unchanged(model, before)


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("options", [{}, {"batch": 50}, {"lamb": 0.01}], ids=["all rows", "batches", "sparse"])
def test_the_same_seed_gives_the_same_bits(opt: str, options: dict[str, Any]) -> None:
    state = torch.get_rng_state()

    def trained(seed: int) -> tuple[KAN, dict]:
        model = fresh()
        return model, fit(model, dataset(), opt, 6, seed=seed, **options)

    (one, first), (other, second), (third, _) = trained(3), trained(3), trained(4)
    unchanged(one, parameters_of(other))
    assert first == second
    assert torch.equal(one.layers[0].spline_weight, third.layers[0].spline_weight) == ("batch" not in options)
    assert torch.equal(torch.get_rng_state(), state)


# -- data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train_input", "train_label", "test_input", "test_label"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_in_the_data_is_refused_before_anything_changes(name: str, value: float) -> None:
    model, given = fresh(), dataset()
    given[name] = given[name].clone()
    given[name][3] = value
    before = parameters_of(model)
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        fit(model, given)
    unchanged(model, before)
    assert (model.history, model.sample) == ([], None)


def test_a_last_batch_of_one_row_and_a_penalty() -> None:
    x, y = data(41)
    results = fit(fresh(), DataLoader(TensorDataset(x, y), batch_size=20), "Adam", 6, lamb=0.01)
    assert [value == 0 for value in results["reg"]] == [False, False, True] * 2


# -- the penalty ------------------------------------------------------------------------------------

TERMS = {
    "lamb_l1": (1.0, 0.0, 0.0, 0.0),
    "lamb_entropy": (0.0, 1.0, 0.0, 0.0),
    "lamb_coef": (0.0, 0.0, 1.0, 0.0),
    "lamb_coefdiff": (0.0, 0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("name", list(TERMS))
def test_each_term_makes_what_it_says_smaller(name: str, opt: str) -> None:
    x, y = data()
    none = dict.fromkeys(TERMS, 0.0)
    terms = (*TERMS[name], "edge_forward_spline_n")
    plain, penalised = fresh(), fresh()
    options = {"steps": 6} if opt == "LBFGS" else {"steps": 50, "lr": 0.01}
    fit(plain, (x, y), opt, **options)
    results = fit(penalised, (x, y), opt, lamb=0.1, **{**none, name: 1.0}, **options)
    assert results["reg"][-1] == pytest.approx(Penalty(penalised, *terms)(x)[1].item(), rel=1e-12)
    assert results["train_loss"][-1] == pytest.approx(rmse(penalised, x, y), rel=1e-12)
    assert results["reg"][-1] < 0.9 * Penalty(plain, *terms)(x)[1].item()


@pytest.mark.parametrize("metric", ["edge_forward_sum", "edge_forward_spline_u", "edge_backward", "node_backward"])
def test_every_metric_can_be_asked_for(metric: str) -> None:
    x, y = data()
    model = fresh()
    results = fit(model, (x, y), steps=2, lamb=0.01, reg_metric=metric)
    assert results["reg"][-1] == pytest.approx(Penalty(model, 1.0, 2.0, 0.0, 0.0, metric)(x)[1].item(), rel=1e-12)
    assert results["train_loss"][-1] < results["train_loss"][0]


# -- what is trained --------------------------------------------------------------------------------

GROUPS = {
    "spline": r"layers\.\d\.spline_weight",
    "base": r"layers\.\d\.base_weight",
    "scale": r"layers\.\d\.spline_scale",
    "symbolic": r"symbolic\.\d\.affine",
    "affine": r"(sub)?node_(scale|bias)\.\d",
    "grid": r"layers\.\d\.(knots|spline_weight)",
}


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("train", [("spline",), ("base",), ("scale",), ("symbolic",), ("affine",), ("base", "grid")])
def test_what_is_not_trained_stays_as_it_is_bit_by_bit(train: tuple[str, ...], opt: str) -> None:
    model = network([2, 3, 1], "own", affine_trainable=True, formulas=[(0, 0, 0, "sin"), (1, 2, 0, "exp")])
    before = parameters_of(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    fit(model, data(), opt, 3, train=train, lamb=0.001)
    after = parameters_of(model)
    changed = {
        name for name, value in before.items() if isinstance(value, Tensor) and not torch.equal(value, after[name])
    }
    expected = {name for name in before if any(re.fullmatch(GROUPS[group], name) for group in train)}
    assert changed == expected
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize("opt", OPTS)
def test_nothing_is_forgotten_where_no_data_are(opt: str) -> None:
    """Continual learning: the second half is learned, and the first stays as it was, bit by bit."""
    model = KAN([1, 1], grid=20, seed=0, dtype=D, grid_range=(-1, 1))
    left, right = torch.linspace(-1, -0.2, 60, dtype=D).unsqueeze(1), torch.linspace(0.2, 1, 60, dtype=D).unsqueeze(1)
    steps = 10 if opt == "LBFGS" else 200
    fit(model, (left, left.sin()), opt, steps, train=("spline",))
    learned = model(left)
    assert rmse(model, left, left.sin()) < 0.02
    fit(model, (right, right.cos()), opt, steps, train=("spline",))
    assert rmse(model, right, right.cos()) < 0.02
    assert torch.equal(model(left), learned)


@pytest.mark.parametrize("options", [{"steps": 3}, {"steps": 16, "lamb": 0.01}], ids=["plain", "sparse"])
def test_frozen_parameters_stay_frozen(options: dict[str, Any]) -> None:
    model = fresh(sb_trainable=False)
    model.layers[1].spline_scale.requires_grad_(False)
    before = parameters_of(model)
    fit(model, data(), **options)
    for name in ("layers.0.base_weight", "layers.1.base_weight", "layers.1.spline_scale"):
        assert torch.equal(parameters_of(model)[name], before[name])
    assert not model.layers[0].base_weight.requires_grad
    assert model.layers[0].spline_scale.requires_grad


def test_splines_of_edges_that_are_formulas_are_not_trained() -> None:
    model = network([2, 2, 1], "own", formulas=[(0, i, j, "sin") for i in range(2) for j in range(2)])
    model.layers[0].set_mask(torch.zeros(2, 2))
    before = parameters_of(model)
    fit(model, data(), steps=3)
    after = parameters_of(model)
    for name in before:
        if name.startswith("layers.0."):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(before["symbolic.0.affine"], after["symbolic.0.affine"])


def test_train_of_a_network_takes_a_bool_or_data() -> None:
    model = fresh()
    for mode in (False, True):
        assert model.train(mode) is model
        assert all(module.training == mode for module in model.modules())
    assert model.eval() is model
    assert not model.layers[0].training
    assert model.train() is model
    results = model.train(dataset(), opt="LBFGS", steps=3, lamb=0.01, lamb_entropy=10.0, progress=False)
    assert results == fit(fresh(), dataset(), steps=3, lamb=0.01, lamb_entropy=10.0)
    assert model.training


# -- train and eval ---------------------------------------------------------------------------------


def test_a_network_of_everything_is_trained() -> None:
    model = mixed()
    x = points(model, 50, wide=0.8)
    y = torch.stack([x.prod(1), x.sin().sum(1)], 1)
    before = rmse(model, x, y)
    results = fit(model, (x, y), steps=4, lamb=1e-4)
    assert results["train_loss"][-1] < 0.2 * before


def test_a_copy_goes_on_as_the_original() -> None:
    model = fresh()
    fit(model, dataset(), steps=3)
    other = copy.deepcopy(model)
    assert fit(model, dataset(), steps=3) == fit(other, dataset(), steps=3)
    unchanged(model, parameters_of(other))


# -- what a fit records ------------------------------------------------------------------------------


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
    """The record comes from an evaluation of the step, or with a callback from one of its own."""
    one, other, seen = fresh(), fresh(), []
    given = dataset(tests=90)
    results = fit(one, given, opt, 12, lamb=lamb)

    def watch(m: KAN, step: int, record: dict) -> None:
        seen.append((rmse(m, *data()), rmse(m, given["test_input"], given["test_label"])))

    watched = fit(other, given, opt, 12, lamb=lamb, callbacks=[watch])
    for name, values in results.items():
        assert values == pytest.approx(watched[name], rel=1e-9)
    assert results["train_loss"] == pytest.approx([train for train, _ in seen], rel=1e-9)
    assert results["test_loss"] == pytest.approx([test for _, test in seen], rel=1e-9)


def test_with_batches_the_test_is_as_large_as_a_batch_and_whole_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, seen = fresh(), dataset(tests=90), Evaluations(monkeypatch)
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
    model, given, seen = fresh(), dataset(tests=90), Evaluations(monkeypatch)
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
    fit(fresh(), dataset(tests=90), opt, 6, log=4, batch=20, early_stopping=6)
    assert [len(x) for x in seen.without].count(90) == 6


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("options", [{"batch": 20}, {"log": 5}, {"batch": 20, "log": 3}])
@pytest.mark.parametrize("end", ["callback", "steps", "NaN"])
def test_the_last_test_loss_is_the_networks_however_a_fit_ends(opt: str, options: dict[str, Any], end: str) -> None:
    given, model, now = dataset(tests=90), fresh(), []
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
    given = {name: value.to(D)[: 1 if "test" in name else None] for name, value in dataset(tests=90).items()}
    results = fit(model, given, "Adam", 4, batch=20)
    assert all(len(results[name]) == 4 for name in ("train_loss", "test_loss", "reg"))


@pytest.mark.parametrize("seed", [4, 5])  # others go on by themselves for as many steps
def test_a_strong_penalty_does_not_stop_lbfgs_far_from_a_minimum(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where edges approach 0 their sizes have kinks, at which every line search fails."""
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


# -- grid updates -----------------------------------------------------------------------------------


class Watched:
    """Notes at which steps a network's grids are updated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: list[int] = []
        self.step = 0
        update = update_grid_from_samples

        def noted(model: KAN, x: Tensor | None = None, **options: Any) -> None:
            self.at.append(self.step)
            update(model, x, **options)

        monkeypatch.setattr("fastkan.training.fit.update_grid_from_samples", noted)

    def __call__(self, model: KAN, step: int, record: dict) -> None:
        self.step = step + 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 5, 10]),
        ({"update_grid": False}, []),
        ({"grid_update_num": 25}, [0, 2, 4, 6, 8, 10, 12]),
        ({"stop_grid_update_step": 6, "grid_update_num": 3}, [0, 2, 4]),
        ({"stop_grid_update_step": 6, "grid_update_num": 100}, [0, 1, 2, 3, 4, 5]),
        ({"start_grid_update_step": 4}, [5, 10]),
        ({"stop_grid_update_step": 0}, []),
        ({"stop_grid_update_step": -1}, []),
        ({"train": ("spline",)}, []),
        ({"train": ("spline", "grid")}, [0, 5, 10]),
    ],
)
def test_grids_are_updated_at_these_steps(monkeypatch: pytest.MonkeyPatch, options: dict, expected: list[int]) -> None:
    watched = Watched(monkeypatch)
    fit(fresh(), data(), "Adam", 13, callbacks=[watched], **options)
    assert watched.at == expected


@pytest.mark.parametrize("opt", OPTS)
def test_knots_follow_the_samples(opt: str) -> None:
    x, y = data()
    model = fresh()
    fit(model, (5 * x + 3, y), opt, 2)
    knots = model.layers[0].knots[:, [3, -4]]
    low, high = (5 * x + 3).aminmax(dim=0)
    assert ((knots[:, 0] - low).abs() < 0.2).all()
    assert ((knots[:, 1] - high).abs() < 0.2).all()


@pytest.mark.parametrize("opt", OPTS)
def test_a_grid_update_at_every_step_does_not_keep_a_fit_from_its_end(opt: str) -> None:
    model = fresh()
    results = fit(model, data(), opt, 10 if opt == "LBFGS" else 150, grid_update_num=50)
    assert results["train_loss"][-1] < (0.02 if opt == "LBFGS" else 0.1)


# -- early ends -------------------------------------------------------------------------------------


def contrary() -> dict[str, Tensor]:
    """Labels for which the test loss rises after a while."""
    given = dataset()
    given["test_label"] = 0.3 * given["test_label"]
    return given


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_keeps_the_best(opt: str, patience: int) -> None:
    model, given, states = fresh(), contrary(), []
    options = {"lr": 0.01} if opt == "Adam" else {}
    losses = fit(model, given, opt, 300, early_stopping=patience, callbacks=[noting(states)], **options)["test_loss"]
    best = losses.index(min(losses))
    assert len(losses) == best + patience + 1 < 300
    unchanged(model, states[best])
    assert rmse(model, given["test_input"], given["test_label"]) == pytest.approx(min(losses), rel=1e-12)


def test_early_stopping_watches_the_training_loss_where_nothing_else_is() -> None:
    model = fresh()
    results = fit(model, data(), "Adam", 100, early_stopping=3, lr=2.0)
    losses = results["train_loss"]
    assert len(losses) == losses.index(min(losses)) + 4
    assert rmse(model, *data()) == pytest.approx(min(losses), rel=1e-12)


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("end", ["steps", "callback", "NaN", "exception"])
def test_early_stopping_keeps_the_best_however_a_fit_ends(end: str, opt: str) -> None:
    model, given, states = fresh(), contrary(), []
    broken = Broken(on=end == "NaN")

    def watch(m: KAN, step: int, record: dict) -> bool:
        states.append(parameters_of(m))
        losses = record["test_loss"]
        past = broken.now = step >= 3 and losses[-1] > min(losses)
        if past and end == "exception":
            raise Boom
        return past and end == "callback"

    steps = 300
    if end == "steps":
        steps = len(fit(fresh(), given, opt, 300, early_stopping=2, loss_fn=broken)["test_loss"]) - 1
    with warnings.catch_warnings(), pytest.raises(Boom) if end == "exception" else nullcontext():
        warnings.simplefilter("ignore", RuntimeWarning)
        fit(model, given, opt, steps, early_stopping=200, loss_fn=broken, callbacks=[watch])
    losses = model.history[0]["test_loss"]
    best = losses.index(min(losses))
    assert best < len(losses) - 1
    unchanged(model, states[best])


def test_callbacks_see_model_step_and_record_and_may_end_the_fit() -> None:
    model, seen = fresh(), []

    def watch(m: KAN, step: int, record: dict[str, list[float]]) -> bool:
        assert m is model
        seen.append((step, len(record["train_loss"])))
        return step == 2

    results = fit(model, data(), steps=9, callbacks=[watch, lambda *_: None, lambda *_: torch.zeros(3)])
    assert seen == [(0, 1), (1, 2), (2, 3)]
    assert len(results["train_loss"]) == 3


def test_metrics_are_recorded_under_their_names() -> None:
    model = fresh()
    x, y = data()

    def worst() -> Tensor:
        return (model(x) - y).abs().max()

    class Count:
        def __call__(self) -> int:
            return 7

    results = fit(model, (x, y), steps=3, metrics=[worst, Count()])
    assert list(results) == ["train_loss", "test_loss", "reg", "worst", "Count"]
    assert results["Count"] == [7.0] * 3
    assert results["worst"][-1] == worst().item()
    assert all(isinstance(value, float) for value in results["worst"])


# -- steps that fail --------------------------------------------------------------------------------


class Broken:
    """A mean squared error that is NaN from some moment on."""

    def __init__(self, value: float = torch.nan, on: bool = True) -> None:
        self.now, self.value, self.on = False, value, on

    def __call__(self, p: Tensor, y: Tensor) -> Tensor:
        error = (p - y).square().mean()
        return error * self.value if self.now and self.on else error


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("opt", OPTS)
def test_a_loss_that_becomes_nan_takes_the_fit_back_to_the_last_good_parameters(opt: str, value: float) -> None:
    model, loss, states = fresh(), Broken(value), []

    def watch(m: KAN, step: int, record: dict) -> None:
        states.append(parameters_of(m))
        loss.now = step == 3

    with pytest.warns(RuntimeWarning, match=r"step 4 made the loss infinite or NaN") as caught:
        results = fit(
            model, dataset(), opt, 9, loss_fn=loss, callbacks=[watch], metrics=[depth], update_grid=False, lamb=1e-3
        )
    assert caught[0].filename == __file__
    unchanged(model, states[3])
    assert {name: len(values) for name, values in results.items()} == dict.fromkeys(results, 4)
    assert model.history == [results]
    assert all(parameter.requires_grad for parameter in model.layers.parameters())
    loss.now = False
    assert fit(model, dataset(), opt, 2, loss_fn=loss)["train_loss"][-1] < results["train_loss"][0]


def depth() -> int:
    return 2


def test_steps_that_are_far_too_long_are_taken_back() -> None:
    model, states = fresh(), [parameters_of(fresh())]
    with pytest.warns(RuntimeWarning, match="made the loss infinite or NaN"):
        results = fit(model, data(), "Adam", 50, lr=1e160, update_grid=False, callbacks=[noting(states)])
    unchanged(model, states[-1])
    assert len(results["train_loss"]) == len(states) - 1
    assert all(torch.isfinite(torch.tensor(results["train_loss"])))


def test_lbfgs_turns_back_at_a_wall() -> None:
    """A loss that is NaN for some parameters: the line search has to stay on the good side."""
    x, y = data()
    model, refused = fresh(), []

    def loss(p: Tensor, label: Tensor) -> Tensor:
        value = (p - label).square().mean() - 1e-4 * (p + 0.92).log().mean()
        refused.extend([1] * value.isnan())
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = fit(model, (x, y), steps=8, loss_fn=loss, update_grid=False)
    assert refused
    assert len(results["train_loss"]) == 8
    assert results["train_loss"][-1] < 0.01


def test_a_grid_update_after_which_the_loss_is_nan_is_taken_back() -> None:
    model = fresh()
    states = [parameters_of(model)]

    def loss(p: Tensor, label: Tensor) -> Tensor:
        moved = not torch.equal(model.layers[0].knots, states[0]["layers.0.knots"])
        return (p - label).square().mean() * (torch.nan if moved and len(states) > 2 else 1)

    updates = {"start_grid_update_step": 1, "stop_grid_update_step": 8, "grid_update_num": 2}
    with pytest.warns(RuntimeWarning, match="step 4 made the loss infinite or NaN"):
        fit(model, data(), "Adam", 6, loss_fn=loss, callbacks=[noting(states)], **updates)
    unchanged(model, states[-1])
    assert torch.equal(model.layers[0].knots, states[0]["layers.0.knots"])


@pytest.mark.parametrize("opt", OPTS)
def test_a_penalty_that_is_nan_is_no_silent_end(opt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    real = Penalty.__call__
    bad = []

    def penalty(self: Penalty, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        output, value = real(self, *arguments, **options)
        return output, value * torch.nan if bad else value

    def numbers(self: Penalty, *arguments: Any) -> tuple[float, float, list]:
        *values, pulled = real_numbers(self, *arguments)
        return (*(value * (torch.nan if bad else 1) for value in values), pulled)

    real_numbers = Penalty.vjp
    monkeypatch.setattr(Penalty, "__call__", penalty)
    monkeypatch.setattr(Penalty, "vjp", numbers)
    states = []

    def watch(m: KAN, step: int, record: dict) -> None:
        states.append(parameters_of(m))
        bad.extend([1] * (step == 1))

    with pytest.warns(RuntimeWarning, match="step 2 made the loss infinite or NaN"):
        results = fit(model, data(), opt, 5, lamb=0.01, callbacks=[watch], update_grid=False)
    unchanged(model, states[1])
    assert len(results["train_loss"]) == len(results["reg"]) == 2


# -- what is seen of it -----------------------------------------------------------------------------


def test_the_progress_bar_says_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    model = fresh()
    results = model.fit(dataset(), steps=4, lamb=0.01)
    text = capsys.readouterr().err
    for step in range(4):
        shown = " | ".join(f"{name}: {results[name][step]:.2e}" for name in ("train_loss", "test_loss", "reg"))
        assert (shown in text) or step < 3  # the bar is drawn ten times a second at most
    assert "4/4" in text
    model.fit(data(), steps=2, display_metrics=["reg", "depth"], metrics=[depth])
    text = capsys.readouterr().err
    assert "reg: 0.00e+00 | depth: 2.00e+00" in text
    assert "loss" not in text
    model.fit(data(), steps=2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_pictures_of_a_fit(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    before, folder = plt.get_fignums(), tmp_path / "some" / "video"
    fit(fresh([2, 1]), data(), "Adam", 5, save_fig=True, save_fig_freq=2, img_folder=str(folder), in_vars=["a", "b"])
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "2.jpg", "4.jpg"]
    assert plt.imread(folder / "4.jpg").std() > 1
    assert plt.get_fignums() == before


def test_grids_that_degenerate_break_no_fit_in_float32() -> None:
    """Each column has three values, so that quantiles coincide; solvers of other packages raise here."""
    x = data(100)[0].float()
    y, x = torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2), x.round()
    model = KAN([2, 5, 1], grid=5, seed=0)
    results = model.fit((x, y), steps=12, lamb=0.001, grid_update_num=50, progress=False)
    assert len(results["train_loss"]) == 12
    cells = (3 * x[:, 0] + x[:, 1]).unique(return_inverse=True)[1]
    means = torch.stack([y[cells == cell].mean() for cell in range(9)])[cells]
    assert results["train_loss"][-1] < 1.2 * (y[:, 0] - means).square().mean().sqrt()  # what nine numbers allow
    assert all(p.isfinite().all() for p in model.parameters())


# -- a fit that breaks off ---------------------------------------------------------------------------

SPARSE: dict[str, Any] = {"steps": 20, "lamb": 0.01, "lamb_entropy": 10.0}


def table() -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=D) - 1
    return x, torch.sin(3 * x[:, [0]]) + x[:, [1]] * x[:, [2]]


def sparse() -> KAN:
    return KAN([3, 5, 1], grid=3, seed=0, dtype=D)


class Interrupted:
    """A Ctrl-C at a network's nth evaluation; how many there were, and whether a trial was going on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.count, self.trying, self.tried = 0, False, []
        vjp, trial = Objective.value_and_grad, NodeTrials.__call__

        def counted(objective: Objective, *arguments: Any) -> float:
            if self.count == at:
                raise KeyboardInterrupt
            self.tried.append(self.trying)
            self.count += 1
            return vjp(objective, *arguments)

        def noted(trials: NodeTrials, *arguments: Any) -> bool:
            self.trying = True
            try:
                return trial(trials, *arguments)
            finally:
                self.trying = False

        monkeypatch.setattr(Objective, "value_and_grad", counted)
        monkeypatch.setattr(NodeTrials, "__call__", noted)


def test_an_interrupt_at_any_evaluation_leaves_what_the_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table()
    whole = sparse()
    with monkeypatch.context() as patch:
        watched = Interrupted(patch)
        expected = fit(whole, (x, y), **SPARSE)
    in_trials = [place for place, trying in enumerate(watched.tried) if trying]
    assert len(in_trials) > 100
    places = [0, 1, 30, *range(50, watched.count, watched.count // 8), *in_trials[:: len(in_trials) // 8]]
    lengths = set()
    for at in places:
        model = sparse()
        flags = [p.requires_grad for p in model.parameters()]
        start = rmse(model, x, y)
        with monkeypatch.context() as patch:
            Interrupted(patch, at)
            with pytest.raises(KeyboardInterrupt):
                fit(model, (x, y), **SPARSE)
        (record,) = model.history or [{name: [] for name in expected}]
        done = len(record["train_loss"])
        lengths.add(done)
        assert record == {name: values[:done] for name, values in expected.items()}
        assert rmse(model, x, y) == pytest.approx(record["train_loss"][-1] if done else start, rel=1e-9)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None for p in model.parameters())
        assert bool(model.history) == bool(done)
    assert len(lengths) > 5


class Boom(Exception):
    pass


def fails(at: int) -> Callable[..., Any]:
    """A function that fails the nth time, from 0 on."""
    calls = []

    def call(*args: Any) -> float:
        calls.append(1)
        if len(calls) == at + 1:
            raise Boom
        return 0.5

    return call


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("where", ["callback", "metric", "loss of the test"])
def test_an_exception_of_the_callers_at_any_step(opt: str, at: int, where: str) -> None:
    model, states = fresh(affine_trainable=True), [parameters_of(fresh(affine_trainable=True))]
    flags = [p.requires_grad for p in model.parameters()]
    fail, given = fails(at), dataset()

    def loss(p: Tensor, y: Tensor) -> Tensor:
        if where == "loss of the test" and torch.equal(y, given["test_label"]) and not torch.is_grad_enabled():
            fail()
        return (p - y).square().mean()

    options: dict[str, Any] = {"callbacks": [noting(states)]}
    if where == "callback":
        options["callbacks"].append(fail)
    elif where == "metric":
        options["metrics"] = [lambda: model.layers[0].base_weight.sum(), fail]
    with pytest.raises(Boom):
        fit(model, given, opt, 9, loss_fn=loss, train=("spline", "grid"), **options)
    done = at + (where == "callback")
    unchanged(model, states[done])
    assert [len(record["train_loss"]) for record in model.history] == [done] * bool(done)
    assert all(len(values) == done for record in model.history for values in record.values())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert fit(model, given, opt, 2)["train_loss"]


def test_an_exception_in_a_grid_update(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states = fresh(), []
    write = type(model.layers[0])._write_splines
    calls = []

    def fail(layer: Any, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        write(layer, *arguments, **options)
        if len(calls) == 4:  # the last layer's, after it
            raise KeyboardInterrupt

    monkeypatch.setattr(type(model.layers[0]), "_write_splines", fail)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data(), "Adam", 9, callbacks=[noting(states)])
    assert len(states) == 5
    unchanged(model, states[-1])


def test_gradients_from_before_are_put_back() -> None:
    model = fresh()
    x, y = data()
    (model(x) - y).square().mean().backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    fit(model, (x, y), train=("spline",))
    fit(model, (x, y), "Adam")
    with pytest.raises(Boom):
        fit(model, (x, y), callbacks=[fails(2)])
    for parameter, gradient in zip(model.parameters(), before):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


# -- what a callback may do -------------------------------------------------------------------------


@pytest.mark.parametrize("opt", OPTS)
def test_copies_and_files_made_in_a_callback_train_on_as_the_network(opt: str, tmp_path: Any) -> None:
    model, copies = fresh(), []
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    def keep(m: KAN, step: int, record: dict) -> None:
        m.save(tmp_path / f"{step}.pt")
        copies.append(copy.deepcopy(m))
        assert {name: p.requires_grad for name, p in m.named_parameters()} == flags

    results = fit(model, data(), opt, 3, train=("spline",), callbacks=[keep])
    for step, kept in enumerate(copies):
        loaded = KAN.load(tmp_path / f"{step}.pt")
        for other in (kept, loaded):
            assert {name: p.requires_grad for name, p in other.named_parameters()} == flags
            assert other.history == [{name: values[: step + 1] for name, values in results.items()}]
        unchanged(loaded, parameters_of(kept))
    before = parameters_of(loaded)
    fit(loaded, data(), opt, 3)
    assert not torch.equal(loaded.layers[0].base_weight, before["layers.0.base_weight"])


# -- what is refused before anything changes ---------------------------------------------------------

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"opt": "SGD"}, "opt must be one of 'auto', 'LBFGS', 'Adam', 'LM'; got 'SGD'"),
    ({"steps": -1}, "steps must be at least 0"),
    ({"steps": 2.0}, "steps must be an int"),
    ({"log": 0}, "log must be at least 1"),
    ({"batch": 0}, "batch must be at least 1"),
    ({"batch": -2}, "batch must be at least 1"),
    ({"grid_update_num": 0}, "grid_update_num must be at least 1"),
    ({"early_stopping": 0}, "early_stopping must be at least 1"),
    ({"save_fig_freq": 0}, "save_fig_freq must be at least 1"),
    ({"train": "spline"}, "train must be a tuple of names"),
    ({"train": ("splines",)}, "train must be a tuple of names"),
    ({"train": ()}, "leaves nothing to train"),
    ({"train": ("affine",)}, "leaves nothing to train"),
    ({"display_metrics": ["loss"]}, "display_metrics must be a tuple of names of"),
    ({"lr": 0}, "lr must be above 0, got 0"),
    ({"lr": float("nan")}, "lr must be finite"),
    ({"lr": "1"}, "lr must be a number"),
    ({"lamb": -1}, "lamb must be at least 0, got -1"),
    *(({"lamb": 0.1, name: "1"}, f"{name} must be a number") for name in
      ("lamb_l1", "lamb_entropy", "lamb_coef", "lamb_coefdiff")),
    ({"lamb_l1": -1}, "lamb_l1 must be at least 0"),
    ({"loss_fn": 3}, "loss_fn must be a function, got int"),
    ({"callbacks": [3]}, r"callbacks\[0\] must be a function, got int"),
    ({"callbacks": print}, "callbacks must be a sequence"),
    ({"metrics": ["acc"]}, r"metrics\[0\] must be a function, got str"),
    ({"metrics": [len, len]}, r"metrics must have different names, got \['len'\] more than once"),
    ({"save_fig": "yes"}, "save_fig must be True or False, got 'yes'"),
    ({"save_fig": True, "in_vars": ["a"]}, "in_vars must have 2 names, got 1"),
    ({"save_fig": True, "out_vars": 5}, "out_vars"),
    ({"save_fig": True, "beta": "3"}, "beta must be a number"),
    ({"save_fig": True, "img_folder": 3}, "img_folder must be a path, .* got int"),
    ({"update_grid": "no"}, "update_grid must be True or False, got 'no'"),
    ({"y_th": None}, "y_th must be a number"),
    ({"reg_metric": "edges"}, "reg_metric must be one of"),
    ({"start_grid_update_step": 1.5}, "start_grid_update_step must be an int"),
    ({"train": 5}, "train must be a tuple of names of .* got int"),
    ({"train": [5]}, "train must be a tuple of names"),
    ({"display_metrics": 5}, "display_metrics must be a sequence, got int"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"progress": None}, "progress must be True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[message for _, message in BAD_OPTIONS])
def test_bad_arguments_are_refused_and_nothing_changed(
    options: dict, message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = fresh()
    before = parameters_of(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    x, y = data()
    with pytest.raises((TypeError, ValueError), match=message):
        fit(model, (5 * x, y), **options)
    unchanged(model, before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert (model.history, model.sample) == ([], None)


def test_a_metric_without_a_number_says_so() -> None:
    model = fresh()
    with pytest.raises(TypeError, match="the metric <lambda> must return a number, got str"):
        fit(model, data(), metrics=[lambda: "good"])
    unchanged(model, parameters_of(fresh()))
    assert model.history == []
