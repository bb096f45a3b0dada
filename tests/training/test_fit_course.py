"""The course of a fit: grid updates, early ends, steps that fail, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import D, network, parameters_of, unchanged
from test_fit import OPTS, data, dataset, fit, fresh, rmse
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.network.refine import update_grid_from_samples
from fastkan.training.regularization import Penalty

# -- grid updates -----------------------------------------------------------------------------------


class Watched:
    """Notes at which steps a network's grids are updated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: list[int] = []
        self.step = 0
        update = update_grid_from_samples

        def noted(model: KAN, x: Tensor | None = None) -> None:
            self.at.append(self.step)
            update(model, x)

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
    """What is learned makes the test worse after a while."""
    given = dataset()
    given["test_label"] = 0.3 * given["test_label"]
    return given


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_keeps_the_best(opt: str, patience: int) -> None:
    model, given = fresh(), contrary()
    states = []
    options = {"lr": 0.01} if opt == "Adam" else {}
    results = fit(
        model,
        given,
        opt,
        300,
        early_stopping=patience,
        callbacks=[lambda m, *_: states.append(parameters_of(m))],
        **options,
    )
    losses = results["test_loss"]
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


@pytest.mark.parametrize("end", ["steps", "callback", "NaN"])
def test_early_stopping_keeps_the_best_however_a_fit_ends(end: str) -> None:
    model, given, states = fresh(), contrary(), []
    broken = Broken(on=end == "NaN")

    def watch(m: KAN, step: int, record: dict) -> bool:
        states.append(parameters_of(m))
        losses = record["test_loss"]
        past = step >= 3 and losses[-1] > min(losses)
        broken.now = past
        return past and end == "callback"

    steps = 300
    if end == "steps":
        results = fit(fresh(), given, "Adam", 300, early_stopping=2, lr=0.05, loss_fn=broken)
        steps = len(results["test_loss"]) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        results = fit(model, given, "Adam", steps, early_stopping=40, lr=0.05, loss_fn=broken, callbacks=[watch])
    losses = results["test_loss"]
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
    assert caught[0].filename == __file__.replace("test_fit_course", "test_fit")  # whose helper calls it
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
        results = fit(
            model,
            data(),
            "Adam",
            50,
            lr=1e160,
            update_grid=False,
            callbacks=[lambda m, *_: states.append(parameters_of(m))],
        )
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
    model, states = fresh(), []

    def loss(p: Tensor, label: Tensor) -> Tensor:
        moved = not torch.equal(model.layers[0].knots, states[0]["layers.0.knots"])
        return (p - label).square().mean() * (torch.nan if moved and len(states) > 2 else 1)

    states.append(parameters_of(model))
    with pytest.warns(RuntimeWarning, match="step 4 made the loss infinite or NaN"):
        fit(
            model, data(), "Adam", 6, loss_fn=loss, start_grid_update_step=1, stop_grid_update_step=8,
            grid_update_num=2,
            callbacks=[lambda m, *_: states.append(parameters_of(m))],
        )  # fmt: skip
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


# -- what is refused --------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"opt": "SGD"}, ValueError, "opt must be one of 'LBFGS', 'Adam'; got 'SGD'"),
    ({"steps": -1}, ValueError, "steps must be at least 0"),
    ({"steps": 2.0}, TypeError, "steps must be an int"),
    ({"log": 0}, ValueError, "log must be at least 1"),
    ({"batch": 0}, ValueError, "batch must be at least 1"),
    ({"batch": -2}, ValueError, "batch must be at least 1"),
    ({"grid_update_num": 0}, ValueError, "grid_update_num must be at least 1"),
    ({"early_stopping": 0}, ValueError, "early_stopping must be at least 1"),
    ({"save_fig_freq": 0}, ValueError, "save_fig_freq must be at least 1"),
    ({"train": "spline"}, ValueError, "train must be a tuple of names"),
    ({"train": ("splines",)}, ValueError, "train must be a tuple of names"),
    ({"train": ()}, ValueError, "leaves nothing to train"),
    ({"train": ("affine",)}, ValueError, "leaves nothing to train"),
    ({"lamb": 0.1, "reg_metric": "edges"}, ValueError, "reg_metric must be one of"),
    ({"display_metrics": ["loss"]}, ValueError, "display_metrics must be a tuple of names of"),
    ({"lr": -1.0}, ValueError, "[Ll]earning rate|lr"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
@pytest.mark.parametrize("opt", OPTS)
def test_arguments_out_of_range_are_refused_and_nothing_changed(
    opt: str, options: dict, error: type[Exception], message: str
) -> None:
    model = fresh()
    before = parameters_of(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(error, match=message):
        fit(model, data(), **{"opt": opt, **options})
    unchanged(model, before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert (model.history, model.sample) == ([], None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.rand(5, 3, dtype=D), torch.rand(5, 1, dtype=D)), r"x must have the shape \[N, 2\]"),
        ((torch.rand(5, 2, dtype=D), torch.rand(4, 1, dtype=D)), "y must have as many rows as x"),
        ((torch.rand(5, 2, dtype=D), torch.rand(5, 2, dtype=D)), r"y must have the shape \[5, 1\]"),
        ({"train_input": torch.rand(5, 2, dtype=D)}, "must have train_input and train_label"),
    ],
)
def test_data_that_do_not_fit_are_refused(given: Any, message: str) -> None:
    model = network([2, 3, 1])
    before = parameters_of(model)
    with pytest.raises(ValueError, match=message):
        fit(model, given)
    unchanged(model, before)
