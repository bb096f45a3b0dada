"""``KAN.fit``: what it trains on, what it trains, and what it returns."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from networks import D, mixed, network, parameters_of, points, same, unchanged
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastkan.kan.model import KAN
from fastkan.training.regularization import Penalty

OPTS = ["LBFGS", "Adam"]


def target(x: Tensor) -> Tensor:
    return torch.sin(3 * x[:, [0]]) + x[:, [1]] ** 2


def data(rows: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=D) - 1
    return x, target(x)


def dataset() -> dict[str, Tensor]:
    (x, y), (test_x, test_y) = data(), data(seed=1)
    return {"train_input": x, "train_label": y, "test_input": test_x, "test_label": test_y}


def fresh(width=(2, 3, 1), **options: Any) -> KAN:
    return KAN(list(width), grid=4, seed=0, dtype=D, **options)


def fit(model: KAN, data: Any, opt: str = "LBFGS", steps: int = 5, **options: Any) -> dict[str, list[float]]:
    lr = 1.0 if opt == "LBFGS" else 0.05
    return model.fit(data, opt=opt, steps=steps, **{"progress": False, "lr": lr, **options})


def rmse(model: KAN, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x) - y).square().mean().sqrt().item()


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


def test_adam_is_torchs() -> None:
    model, other = fresh(), fresh()
    x, y = data()
    fit(model, (x, y), "Adam", 7, update_grid=False)
    optimizer = torch.optim.Adam([p for p in other.parameters() if p.requires_grad and p.numel()], lr=0.05)
    for _ in range(7):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(other(x), y).backward()
        optimizer.step()
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


@pytest.mark.parametrize("opt", OPTS)
def test_dictionaries_pairs_and_loaders(opt: str) -> None:
    x, y = data()
    whole = fresh()
    fit(whole, dataset(), opt)
    for given in ((x, y), (x.numpy(), y.numpy()), [(x, y)], DataLoader(TensorDataset(x, y), batch_size=len(x))):
        model = fresh()
        results = fit(model, given, opt)
        assert results["test_loss"] == []
        if isinstance(given, tuple) and isinstance(given[0], Tensor):
            unchanged(model, parameters_of(whole))
        else:
            same(model(x), whole(x), digits=1e-3 if opt == "LBFGS" else 1e-9)


def test_a_loaders_batches_come_in_turn_and_again() -> None:
    x, y = data(50)
    seen = []
    model = fresh()
    real = torch.nn.functional.mse_loss

    def loss(p: Tensor, y: Tensor) -> Tensor:
        seen.append(y.flatten().tolist())
        return real(p, y)

    def forget(m: KAN, step: int, record: dict) -> None:
        if step == 0:
            del seen[:-2]  # the calls before anything changes

    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    fit(model, loader, "Adam", 7, loss_fn=loss, callbacks=[forget])
    sizes = [len(each) for each in seen]
    assert sizes == [size for n in (20, 20, 10, 20, 20, 10, 20) for size in (n, n)]  # the step, and its record
    assert seen[0] == y[:20].flatten().tolist()
    assert seen[4] == y[40:].flatten().tolist()


def test_batches_are_random_rows_each_once_before_any_comes_again() -> None:
    x, y = data(60)
    seen: list[Tensor] = []

    def loss(p: Tensor, y: Tensor) -> Tensor:
        if p.grad_fn is not None:  # of a step
            seen.append(y)
        return (p - y).square().mean()

    fit(fresh(), (x, y), "Adam", 6, batch=20, loss_fn=loss)
    for turn in (seen[:3], seen[3:]):
        assert sorted(torch.cat(turn).flatten().tolist()) == sorted(y.flatten().tolist())
    assert not torch.equal(seen[0], y[:20])
    assert not torch.equal(seen[0], seen[3])


@pytest.mark.parametrize("opt", OPTS)
def test_a_batch_larger_than_the_set_is_the_set(opt: str) -> None:
    one, other = fresh(), fresh()
    given = dataset()
    given["test_input"], given["test_label"] = given["test_input"][:7], given["test_label"][:7]
    fit(one, given, opt, batch=1000)
    fit(other, given, opt)
    unchanged(one, parameters_of(other))


@pytest.mark.parametrize("opt", OPTS)
def test_labels_without_a_second_dimension(opt: str) -> None:
    x, y = data()
    one, other = fresh(), fresh()
    assert fit(one, (x, y[:, 0]), opt) == fit(other, (x, y), opt)
    unchanged(one, parameters_of(other))
    test = {"test_input": x, "test_label": y[:, 0]}
    assert one.evaluate(test)["test_loss"] == pytest.approx(rmse(one, x, y), rel=1e-12)


def test_data_come_in_any_dtype() -> None:
    x, y = data()
    one, other = fresh(), fresh()
    fit(one, (x.float(), y.float()))
    fit(other, (x.float().double(), y.float().double()))
    unchanged(one, parameters_of(other))
    assert fit(fresh().float(), (x, y), steps=12)["train_loss"][-1] < 0.02


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


def test_nan_in_a_later_batch_is_refused_when_it_comes() -> None:
    x, y = data(60)
    x[45] = torch.nan
    model = fresh()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="x of batch 2 must be finite"):
        fit(model, DataLoader(TensorDataset(x, y), batch_size=20), "Adam", train=("spline",))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(t.isfinite().all() for t in model.parameters())


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


@pytest.mark.parametrize("where", ["loss", "callback", "metric", "interrupt"])
def test_flags_and_gradients_are_put_back_after_an_exception(where: str) -> None:
    model = fresh(affine_trainable=True)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    def fails(*args: Any) -> Any:
        raise KeyboardInterrupt if where == "interrupt" else ZeroDivisionError

    options = (
        {"loss_fn": fails} if where == "loss" else {"metrics": [fails]} if where == "metric" else {"callbacks": [fails]}
    )
    with pytest.raises(KeyboardInterrupt if where == "interrupt" else ZeroDivisionError):
        fit(model, data(), train=("spline",), **options)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert fit(model, data())["train_loss"]


# -- train and eval ---------------------------------------------------------------------------------


def test_train_of_a_bool_is_modules_and_of_data_is_fit() -> None:
    model = fresh()
    assert model.train(False) is model
    assert not any(module.training for module in model.modules())
    assert model.train(True) is model
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not model.layers[0].training
    assert model.train() is model
    assert model.training
    other = fresh()
    results = model.train(dataset(), opt="LBFGS", steps=3, lamb=0.01, lamb_entropy=10.0, progress=False)
    assert results == other.fit(dataset(), opt="LBFGS", steps=3, lamb=0.01, lamb_entropy=10.0, progress=False)
    assert model.train(data(), "Adam", 2, progress=False) == other.fit(data(), "Adam", 2, progress=False)
    assert model.training


def test_a_network_of_everything_is_trained() -> None:
    model = mixed()
    x = points(model, 50, wide=0.8)
    y = torch.stack([x.prod(1), x.sin().sum(1)], 1)
    before = rmse(model, x, y)
    results = fit(model, (x, y), steps=4, lamb=1e-4)
    assert results["train_loss"][-1] < 0.2 * before


def test_cross_entropy_with_integer_labels() -> None:
    x, _ = data(200)
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    for opt, steps in (("LBFGS", 10), ("Adam", 60)):
        model = fresh([2, 3])
        given = {"train_input": x, "train_label": labels, "test_input": x, "test_label": labels}
        results = fit(model, given, opt, steps, loss_fn=torch.nn.CrossEntropyLoss())
        loss = torch.nn.functional.cross_entropy(model(x), labels).item()
        assert results["train_loss"][-1] == results["test_loss"][-1] == pytest.approx(loss, rel=1e-12)
        assert (model(x).argmax(1) == labels).double().mean() > 0.9


def test_a_copy_goes_on_as_the_original() -> None:
    model = fresh()
    fit(model, dataset(), steps=3)
    other = copy.deepcopy(model)
    assert fit(model, dataset(), steps=3) == fit(other, dataset(), steps=3)
    unchanged(model, parameters_of(other))
