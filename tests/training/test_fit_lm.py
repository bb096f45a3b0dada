"""``KAN.fit`` by Levenberg-Marquardt: its losses, batches, the choice "auto", restarts, and fits that end early."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import D, mixed, network, parameters_of, points, unchanged
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastkan import KAN
from fastkan.optim import LevenbergMarquardt
from fastkan.training import fit as fit_module
from fastkan.training import optimizers, restarts
from fastkan_kernels import recorder


def data(rows: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=D) - 1
    return x, torch.sin(3 * x[:, [0]]) + x[:, [1]] ** 2


def dataset() -> dict[str, Tensor]:
    (x, y), (test_x, test_y) = data(), data(seed=1)
    return {"train_input": x, "train_label": y, "test_input": test_x, "test_label": test_y}


def classes() -> tuple[Tensor, Tensor]:
    x = data()[0]
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 0.5).long()


def fresh(width=(2, 3, 1), dtype=D, **options: Any) -> KAN:
    return KAN(list(width), seed=0, dtype=dtype, **{"grid": 4, **options})


def fit(model: KAN, given: Any = None, opt: str = "LM", steps: int = 5, **options: Any) -> dict[str, list[float]]:
    return model.fit(data() if given is None else given, opt=opt, steps=steps, **{"progress": False, **options})


def rmse(model: KAN, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x) - y).square().mean().sqrt().item()


def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of each optimizer is added that a fit constructs."""
    names: list[str] = []

    def noting(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            return make(*arguments, **options)

        return made

    for name, make in optimizers.OPTIMIZERS.items():
        monkeypatch.setitem(fit_module.OPTIMIZERS, name, noting(name, make))
    return names


# -- losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_the_record_contains_the_losses_of_the_network(dtype: torch.dtype) -> None:
    model, given = fresh(dtype=dtype), {name: value.to(dtype) for name, value in dataset().items()}
    results = fit(model, given, steps=30)
    assert [len(values) for values in results.values()] == [30] * 3
    exact = 1e-10 if dtype == D else 1e-3
    assert results["train_loss"][-1] == pytest.approx(rmse(model, *data_of(given, "train")), rel=exact)
    assert results["test_loss"][-1] == pytest.approx(rmse(model, *data_of(given, "test")), rel=exact)
    assert results["train_loss"][-1] < 1e-3
    assert model.history == [results]


def data_of(given: dict[str, Tensor], part: str) -> tuple[Tensor, Tensor]:
    return given[f"{part}_input"], given[f"{part}_label"]


@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, nn.CrossEntropyLoss()], ids=["function", "module"])
@pytest.mark.parametrize("batch", [-1, 70])
def test_cross_entropy(batch: int, loss: Callable[..., Tensor]) -> None:
    model, (x, labels) = fresh((2, 3, 3)), classes()
    results = fit(model, (x, labels), steps=20, loss_fn=loss, batch=batch)
    assert results["train_loss"][-1] == pytest.approx(loss(model(x), labels).item(), rel=1e-10)
    assert results["train_loss"][-1] < 0.1
    assert float((model(x).argmax(1) == labels).double().mean()) > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lamb": 0.01}, "opt='LM' needs lamb=0, because the penalty is not a sum of squares; use opt='LBFGS'"),
        ({"loss_fn": nn.functional.l1_loss}, "opt='LM' needs the mean squared error or torch's cross entropy.*LBFGS"),
        ({"loss_fn": nn.functional.mse_loss, "lamb": 1.0}, "opt='LM' needs"),
        ({"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, "opt='LM' needs the mean squared error or"),
        ({"loss_fn": nn.CrossEntropyLoss(weight=torch.ones(3, dtype=D))}, "opt='LM' needs the mean squared error or"),
        ({"loss_fn": nn.CrossEntropyLoss(reduction="sum")}, "opt='LM' needs the mean squared error or"),
    ],
)
def test_other_losses_are_refused(options: dict[str, Any], message: str) -> None:
    model = fresh((2, 3, 3))
    before = parameters_of(model)
    takes_classes = isinstance(options.get("loss_fn"), nn.CrossEntropyLoss)
    given = classes() if takes_classes else (data()[0], data()[1].repeat(1, 3))
    with pytest.raises(ValueError, match=message):
        fit(model, given, **options)
    unchanged(model, before)
    assert not model.history


def test_half_precision_is_refused() -> None:
    x, y = (each.half() for each in data())
    with pytest.raises(TypeError, match=r"dtype float32 or float64 .* got torch\.float16"):
        fit(fresh(dtype=torch.float16), (x, y))


def test_a_network_with_every_kind_of_parameter() -> None:
    model = mixed(affine_trainable=True)
    x = points(model, 150, wide=0.6)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    before, first = parameters_of(model), rmse(model, x, y)
    results = fit(model, (x, y), steps=10, update_grid=False)
    assert results["train_loss"] == sorted(results["train_loss"], reverse=True)
    assert results["train_loss"][-1] < first / 3
    changed = {name for name, value in parameters_of(model).items() if not torch.equal(value, before[name])}
    names = "spline_weight", "base_weight", "spline_scale", "affine", "node_scale", "node_bias", "subnode_scale"
    assert all(any(name in each for each in changed) for name in names)


# -- batches ----------------------------------------------------------------------------------------


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the acceleration, which is not computed if the rows come in batches."""
    monkeypatch.setattr(
        optimizers, "LevenbergMarquardt", functools.partial(LevenbergMarquardt, acceleration=False, damping=1.0)
    )


@pytest.mark.usefixtures("plain_steps")
@pytest.mark.parametrize("kind", ["batch", "loader", "shuffled", "chunks"])
@pytest.mark.parametrize("loss", [None, nn.functional.cross_entropy], ids=["squares", "classes"])
def test_batches_give_the_fit_of_all_rows(loss: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    width, (x, y) = ((2, 3, 1), data()) if loss is None else ((2, 3, 3), classes())
    whole, parts = (network(width=width) for _ in range(2))
    options: dict[str, Any] = {"steps": 4, "update_grid": False, "loss_fn": loss}
    expected = fit(whole, (x, y), **options)
    given: Any = x, y
    if kind == "batch":
        options["batch"] = 70
    elif kind == "chunks":
        monkeypatch.setattr(optimizers, "CHUNK_VALUES", 1)
        monkeypatch.setattr(optimizers, "MIN_CHUNK_ROWS", 64)
    else:
        given = DataLoader(TensorDataset(x, y), batch_size=70, shuffle=kind == "shuffled")
    found = fit(parts, given, **options)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-8)
    for one, other in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


# -- the choice -------------------------------------------------------------------------------------


class Shifted(KAN):
    """A network whose rows depend on each other."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = super().forward(x, **options)
        return y - y.mean(0)


def hooked() -> KAN:
    model = fresh()
    model.register_forward_hook(lambda module, inputs, output: output - output.mean(0))
    return model


@pytest.mark.parametrize(
    ("model", "options", "name"),
    [
        (fresh, {}, "LM"),
        (functools.partial(fresh, dtype=torch.float32), {}, "LM"),
        (functools.partial(fresh, (2, 12, 1), grid=30), {"train": ("base",)}, "LM"),
        (fresh, {"batch": 200}, "LM"),
        (functools.partial(fresh, (2, 12, 1), grid=30), {}, "LBFGS"),
        (fresh, {"batch": 50}, "LBFGS"),
        (fresh, {"lamb": 0.01}, "LBFGS"),
        (fresh, {"loss_fn": nn.functional.l1_loss}, "LBFGS"),
        (functools.partial(fresh, dtype=torch.bfloat16), {}, "LBFGS"),
        (functools.partial(Shifted, [2, 3, 1], grid=4, dtype=D), {}, "LBFGS"),
        (hooked, {}, "LBFGS"),
    ],
)  # fmt: skip
def test_auto(model: Callable[[], KAN], options: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names, made = chosen(monkeypatch), model()
    x, y = (each.to(made.dtype) for each in data())
    results = fit(made, (x, y), "auto", 2, update_grid=False, **options)
    assert names == [name]
    assert len(results["train_loss"]) == 2


def test_auto_chooses_lbfgs_for_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    names = chosen(monkeypatch)
    fit(fresh(), DataLoader(TensorDataset(*data()), batch_size=50), "auto", 2)
    assert names == ["LBFGS"]


@pytest.mark.parametrize("model", [lambda: Shifted([2, 3, 1], grid=4, dtype=D), hooked], ids=["subclass", "hook"])
def test_networks_that_mix_rows_are_refused(model: Callable[[], KAN]) -> None:
    made = model()
    before = parameters_of(made)
    with pytest.raises(ValueError, match="depends on several rows"):
        fit(made, update_grid=False)
    unchanged(made, before)


# -- restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_every_seed_finds_the_good_minimum(seed: int) -> None:
    x = 2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(1), dtype=D) - 1
    y = torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)
    model = KAN([2, 1, 1], grid=3, seed=seed, dtype=D)
    results = fit(model, (x, y), "auto", 40)
    assert results["train_loss"][-1] == pytest.approx(rmse(model, x, y), rel=1e-8)
    assert results["train_loss"][-1] < 0.03


def stuck(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let every start count as stuck, and return a list to which the loss of each further start is added."""
    losses: list[float] = []
    run = restarts.Restarts._run

    def noted(self: restarts.Restarts, x: Tensor, y: Tensor) -> float:
        losses.append(run(self, x, y))
        return losses[-1]

    monkeypatch.setattr(restarts.Restarts, "_run", noted)
    monkeypatch.setattr(restarts, "MAX_UNEXPLAINED", 0.0)
    return losses


@pytest.mark.parametrize("update_grid", [False, True])
def test_the_best_of_all_starts_is_kept(update_grid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = stuck(monkeypatch)
    kept = fit(fresh(), steps=restarts.START_STEPS, update_grid=update_grid)["train_loss"]
    assert len(losses) == restarts.MAX_STARTS
    assert kept[-1] <= min(losses) ** 0.5 * (1 + 1e-10)
    assert kept[-1] <= kept[-2]


def starts(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the initial parameters of a network and of all its further starts."""
    found: list[bytes] = []
    draw, model = restarts.reinit, KAN([2, 3, 1], grid=4, seed=seed, dtype=D)

    def noted(model: KAN, *arguments: Any, **options: Any) -> None:
        draw(model, *arguments, **options)
        found.append(model.layers[0].spline_weight.detach().numpy().tobytes())

    found.append(model.layers[0].spline_weight.detach().numpy().tobytes())
    monkeypatch.setattr(restarts, "reinit", noted)
    monkeypatch.setattr(restarts, "MAX_UNEXPLAINED", 0.0)
    fit(model, steps=restarts.START_STEPS)
    monkeypatch.undo()
    return found


def test_networks_with_different_seeds_have_different_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = (starts(seed, monkeypatch) for seed in (0, 1, 2, 7, 2**63 - 1))
    for found in (first, *others):
        assert len(found) == 1 + restarts.MAX_STARTS
    assert len(set(first).union(*others)) == 5 * len(first)
    assert starts(0, monkeypatch) == first


def test_starts_of_a_network_without_a_seed_come_from_the_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(starts(None, monkeypatch))
    assert found[0] == found[1]
    assert not set(found[0]) & set(found[2])


@pytest.mark.parametrize(
    "options",
    [{"train": ("spline",)}, {"batch": 50}, {"opt": "LBFGS"}, {"steps": restarts.START_STEPS - 1}, {"again": True},
     {"formula": True}, {"frozen": True}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_only_first_fits_of_whole_networks_start_again(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, model = stuck(monkeypatch), fresh()
    if options.pop("again", False):
        fit(model, steps=1)
    if options.pop("formula", False):
        model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False, verbose=False)
    if options.pop("frozen", False):
        model.layers[0].base_weight.requires_grad_(False)
    fit(model, **{"steps": restarts.START_STEPS, **options})
    assert not losses


# -- steps and their end ----------------------------------------------------------------------------


@pytest.mark.parametrize("train", [("spline",), ("base",), ("scale",), ("symbolic",), ("affine",), ("base", "grid")])
def test_parameters_that_are_not_trained_do_not_change(train: tuple[str, ...]) -> None:
    model = network([2, 3, 1], "own", affine_trainable=True, formulas=[(0, 0, 0, "sin"), (1, 2, 0, "exp")])
    groups = {
        "spline": "spline_weight", "base": "base_weight", "scale": "spline_scale", "symbolic": ".affine",
        "affine": "node_",
    }  # fmt: skip
    before, flags = parameters_of(model), [p.requires_grad for p in model.parameters()]
    results = fit(model, steps=4, train=train)
    changed = {name for name, value in parameters_of(model).items() if not torch.equal(value, before[name])}
    allowed = [groups[group] for group in train if group in groups]
    if "grid" in train:
        allowed += ["knots", "spline_weight"]
    assert changed
    assert all(any(part in name for part in allowed) for name in changed)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert results["train_loss"][-1] < results["train_loss"][0]


def test_a_large_layer_may_be_trained_in_part() -> None:
    """The weights are recorded, although their columns would be too many to compute one by one."""
    model = fresh((2, 12, 1), grid=30)
    results = fit(model, steps=4, train=("spline",), update_grid=False)
    assert results["train_loss"][-1] < 0.9 * rmse(fresh((2, 12, 1), grid=30), *data())


def test_a_fit_keeps_the_function_where_it_has_no_data() -> None:
    model = KAN([1, 1], grid=20, seed=0, dtype=D)
    left, right = torch.linspace(-1, -0.2, 60, dtype=D).unsqueeze(1), torch.linspace(0.2, 1, 60, dtype=D).unsqueeze(1)
    fit(model, (left, left.sin()), steps=10, train=("spline",))
    learned = model(left)
    assert rmse(model, left, left.sin()) < 0.02
    fit(model, (right, right.cos()), steps=10, train=("spline",))
    assert rmse(model, right, right.cos()) < 0.02
    assert torch.equal(model(left), learned)


def test_the_same_seed_gives_the_same_bits() -> None:
    one, other = fresh(), fresh()
    assert fit(one, steps=12) == fit(other, steps=12)
    unchanged(one, parameters_of(other))


def test_a_callback_ends_the_fit_and_may_write_parameters() -> None:
    model, seen = fresh(), []

    def halve(m: KAN, step: int, record: dict[str, list[float]]) -> bool:
        with torch.no_grad():
            m.layers[1].base_weight.mul_(0.5)
        seen.append(rmse(m, *data()))
        return step == 3

    results = fit(model, steps=9, callbacks=[halve])
    assert len(results["train_loss"]) == len(seen) == 4
    assert rmse(model, *data()) == seen[-1]


def test_a_callback_may_replace_an_edge_by_a_formula() -> None:
    model = fresh()

    def formula(m: KAN, step: int, record: dict[str, list[float]]) -> None:
        if step == 2:
            m.fix_symbolic(0, 1, 0, "x^2", fit_params_bool=False, verbose=False)

    results = fit(model, steps=8, callbacks=[formula], update_grid=False)
    assert results["train_loss"][-1] < results["train_loss"][3]
    assert not torch.equal(model.symbolic[0].affine[0], torch.tensor([1.0, 0, 1, 0], dtype=D))


def test_early_stopping() -> None:
    model, given = fresh(), dataset()
    given["train_label"] = given["train_label"] + torch.randn_like(given["train_label"]) / 3
    results = fit(model, given, steps=60, early_stopping=4)
    losses = results["test_loss"]
    assert len(losses) < 60
    assert min(losses) == pytest.approx(rmse(model, *data_of(given, "test")), rel=1e-12)


def test_steps_after_convergence_evaluate_the_loss_once() -> None:
    model = fresh((2, 1))
    x, y = data()[0], model(data()[0]).detach()
    calls: list[int] = []
    handle = model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    results = fit(model, (x, y), steps=30, update_grid=False)
    handle.remove()
    assert results["train_loss"][-1] < 1e-15
    assert len(calls) < 30 + 20


def test_no_grid_is_updated_in_a_fit_of_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update would make a converged optimizer try again."""
    updates: list[int] = []
    monkeypatch.setattr(fit_module, "update_grid_from_samples", lambda *_, **__: updates.append(1))
    fit(fresh((2, 1)), steps=2)
    assert updates
    updates.clear()
    model = fresh((2, 1))
    for i, name in enumerate(("sin", "x^2")):
        model.fix_symbolic(0, i, 0, name, fit_params_bool=False)
    results = fit(model, steps=30)
    assert not updates
    assert results["train_loss"][-1] < 1e-12


@pytest.mark.parametrize(("rows", "used"), [(200, 1), (20_000, 3)])
def test_tiny_fits_use_one_thread(rows: int, used: int) -> None:
    threads, seen = torch.get_num_threads(), []

    def note(*_: Any) -> None:
        seen.append(torch.get_num_threads())
        if len(seen) == 2:
            raise KeyError

    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError):
            fit(fresh(), data(rows), callbacks=[note])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert seen == [used] * 2


@pytest.mark.parametrize("batch", [-1, 70])
def test_a_fit_goes_on_if_a_callback_changes_the_network_after_convergence(batch: int) -> None:
    model = fresh((2, 1))
    x, y = data()[0], model(data()[0]).detach()

    def change(m: KAN, step: int, record: dict[str, list[float]]) -> None:
        if step == 9:
            with torch.no_grad():
                m.layers[0].base_weight.mul_(2)
        if step == 29:
            m.layers[0].set_mask(torch.tensor([[1], [0]]))

    options: dict[str, Any] = {"update_grid": False, "batch": batch, "callbacks": [change]}
    results = fit(model, (x, y), steps=32, **options)["train_loss"]
    assert max(results[8], results[29]) < 1e-5 < 1e-3 < min(results[10], results[30])
    assert results[31] == pytest.approx(rmse(model, x, y), rel=1e-10)


@pytest.mark.parametrize("opt", ["LM", "auto"])
def test_a_loss_that_is_not_finite_ends_the_fit(opt: str) -> None:
    for labels in (1e200, 1e308):
        model, (x, y) = fresh(), data()
        before = parameters_of(model)
        with pytest.warns(RuntimeWarning, match="step 0 made the loss infinite or NaN"):
            results = fit(model, (x, labels * y), opt, update_grid=False)
        assert results["train_loss"] == []
        unchanged(model, before)


class Stop(BaseException):
    """An exception that is not derived from Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Stop])
@pytest.mark.parametrize("batch", [-1, 70])
@pytest.mark.parametrize("at", [1, 4, 13, 22, 50])
def test_an_exception_at_any_evaluation_leaves_the_last_good_step(
    at: int, batch: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception occurs in the Jacobian, a trial, the acceleration or a restart. The record ends with the last step
    that was good."""
    stuck(monkeypatch)
    model, states, calls = fresh(), [parameters_of(fresh())], 0
    term = optimizers.LM._term

    def fails(self: optimizers.LM, x: Tensor, y: Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error("now")
        return term(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(optimizers.LM, "_term", fails)
        with pytest.raises(error):
            fit(model, steps=40, batch=batch, callbacks=[lambda m, *_: states.append(parameters_of(m))])
    unchanged(model, states[-1])
    assert [len(record["train_loss"]) for record in model.history] == [len(states) - 1] * (len(states) > 1)
    flags = [p.requires_grad for p in fresh().parameters()]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert recorder() is None
    assert fit(model, steps=2)["train_loss"]


def test_no_warnings() -> None:
    """A fit does not warn even if there are fewer rows than parameters, which :class:`LevenbergMarquardt` warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = fit(fresh(), data(20), steps=20)
    assert results["train_loss"][-1] < 1e-6
