"""A fit that breaks off, wherever that is: the network is as good as its record says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import D, parameters_of, unchanged
from test_fit import OPTS, data, dataset, fit, fresh, rmse
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.training.node_search import NodeTrials
from fastkan.training.objective import Objective

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
    model, states = fresh(), [parameters_of(fresh())]
    fail = fails(at)
    given = dataset()
    tests: list[int] = []

    def loss(p: Tensor, y: Tensor) -> Tensor:
        if where == "loss of the test" and torch.equal(y, given["test_label"]) and not torch.is_grad_enabled():
            tests.append(1)
            fail()
        return (p - y).square().mean()

    options: dict[str, Any] = {"callbacks": [lambda m, *_: states.append(parameters_of(m))]}
    if where == "callback":
        options["callbacks"].append(fail)
    elif where == "metric":
        options["metrics"] = [lambda: model.layers[0].base_weight.sum(), fail]
    with pytest.raises(Boom):
        fit(model, given, opt, 9, loss_fn=loss, **options)
    done = at + (where == "callback")
    unchanged(model, states[done])
    assert [len(record["train_loss"]) for record in model.history] == [done] * bool(done)
    assert all(len(values) == done for record in model.history for values in record.values())
    assert fit(model, given, opt, 2)["train_loss"]


@pytest.mark.parametrize("opt", OPTS)
def test_early_stopping_keeps_the_best_of_what_breaks_off(opt: str) -> None:
    model, given, states = fresh(), dataset(), []
    given["test_label"] = 0.3 * given["test_label"]

    def watch(m: KAN, step: int, record: dict) -> None:
        states.append(parameters_of(m))
        losses = record["test_loss"]
        if step > 3 and losses[-1] > min(losses):
            raise Boom

    with pytest.raises(Boom):
        fit(model, given, opt, 300, early_stopping=200, callbacks=[watch])
    losses = model.history[0]["test_loss"]
    best = losses.index(min(losses))
    assert best < len(losses) - 1
    unchanged(model, states[best])


def test_an_exception_in_a_grid_update(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states = fresh(), []
    update = type(model.layers[0]).update_grid
    calls = []

    def fail(layer: Any, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        update(layer, *arguments, **options)
        if len(calls) == 4:  # the last layer's, after it
            raise KeyboardInterrupt

    monkeypatch.setattr(type(model.layers[0]), "update_grid", fail)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data(), "Adam", 9, callbacks=[lambda m, *_: states.append(parameters_of(m))])
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


def test_parameters_that_a_callback_writes_count_at_once() -> None:
    """The gradient of the next step is theirs, however they are written."""
    x, y = data()
    one, other = fresh(), fresh()

    def clamped(m: KAN, *_: Any) -> None:
        for parameter in m.layers.parameters():
            parameter.data.clamp_(-0.3, 0.3)

    fit(one, (x, y), "Adam", 5, update_grid=False, callbacks=[clamped])
    optimizer = torch.optim.Adam([p for p in other.parameters() if p.requires_grad and p.numel()], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(other(x), y).backward()
        optimizer.step()
        clamped(other)
    unchanged(one, parameters_of(other))


# -- what is refused before anything changes ---------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
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
    ({"metrics": [len, len]}, r"metrics must have names of their own, got \['len'\] twice"),
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


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
@pytest.mark.parametrize("opt", OPTS)
def test_bad_arguments_are_refused_and_nothing_changed(
    opt: str, options: dict, message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = fresh()
    before = parameters_of(model)
    x, y = data()
    with pytest.raises((TypeError, ValueError), match=message):
        fit(model, (5 * x, y), opt, **options)
    unchanged(model, before)
    assert (model.history, model.sample) == ([], None)


def test_a_metric_without_a_number_says_so() -> None:
    model = fresh()
    before = parameters_of(model)
    with pytest.raises(TypeError, match="the metric label must return a number, got str"):
        fit(model, data(), metrics=[label])
    unchanged(model, before)
    assert model.history == []


def label() -> str:
    return "good"
