"""Labels of every shape and kind, with every kind of loss: none is spread over rows in silence."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from networks import D, parameters_of, unchanged
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

from fastkan.kan.model import KAN
from fastkan.training.data import read_data

X = 2 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=D) - 1
Y = torch.sin(3 * X[:, 0]) + X[:, 1] ** 2  # [N]
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def fresh(outputs: int = 1) -> KAN:
    return KAN([2, outputs], grid=4, seed=0, dtype=D)


def fit(model: KAN, data: Any, loss: Any, **options: Any) -> dict[str, list[float]]:
    return model.fit(data, loss_fn=loss, progress=False, **{"steps": 8, **options})


def rmse(model: KAN) -> float:
    return (model(X)[:, 0] - Y).square().mean().sqrt().item()


def square(p: Tensor, y: Tensor) -> Tensor:
    return (p - y).square().mean()


# -- values -----------------------------------------------------------------------------------------

LOSSES = {
    "lambda": square,
    "module": nn.MSELoss(),
    "function": functional.mse_loss,
    "partial": partial(functional.mse_loss, reduction="mean"),
    "huber": nn.HuberLoss(delta=10),
    "log cosh": lambda p, y: torch.log(torch.cosh(p - y)).mean(),
    "a column of its own": lambda p, y: (p[:, 0] - y).square().mean(),
    "a column of both": lambda p, y: (p.flatten() - y.flatten()).square().mean(),
    "a shape that is asserted": lambda p, y: functional.gaussian_nll_loss(p[:, 0], y, torch.ones(len(y), dtype=D)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["pair", "loader", "dictionary", "arrays", "dataset"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_labels_of_one_dimension_are_learned_row_by_row(name: str, form: str) -> None:
    given: dict[str, Any] = {
        "pair": (X, Y),
        "loader": DataLoader(TensorDataset(X, Y), batch_size=60),
        "dictionary": {"train_input": X, "train_label": Y, "test_input": X, "test_label": Y},
        "arrays": (X.numpy(), Y.numpy()),
        "dataset": TensorDataset(X, Y),
    }
    model = fresh()
    results = fit(model, given[form], LOSSES[name])
    assert rmse(model) < 0.01
    if form == "dictionary":
        assert results["test_loss"][-1] == pytest.approx(results["train_loss"][-1], rel=1e-12)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.bool, torch.uint8])
def test_whole_numbers_for_one_output_are_values(kind: torch.dtype) -> None:
    labels = (Y > 0.3).to(kind)
    model = fresh()
    fit(model, (X, labels), nn.BCEWithLogitsLoss())
    assert ((model(X)[:, 0] > 0) == (Y > 0.3)).double().mean() > 0.95
    several = fresh(2)
    fit(several, (X, torch.stack([labels, 1 - labels.long()], 1)), nn.BCEWithLogitsLoss())
    assert ((several(X)[:, 0] > 0) == (Y > 0.3)).double().mean() > 0.95


def test_a_loss_that_pairs_all_rows_with_all_says_so() -> None:
    with pytest.warns(UserWarning, match="same value whichever row a label belongs to") as caught:
        fit(fresh(), (X, Y[:, None]), lambda p, y: (p[:, 0] - y).square().mean())
    assert caught[0].filename == __file__


SPREAD: dict[str, tuple[int, Tensor, list[int]]] = {
    "a column for two outputs": (2, Y[:, None], [60, 1]),
    "one dimension for two outputs": (2, Y, [60]),
    "two columns for one output": (1, torch.stack([Y, Y], 1), [60, 2]),
    "three dimensions": (1, Y.view(60, 1, 1), [60, 1, 1]),
    "a column of classes": (3, CLASSES[:, None], [60, 1]),
}


@pytest.mark.parametrize("form", ["pair", "loader", "dictionary", "test"])
@pytest.mark.parametrize("name", list(SPREAD))
def test_labels_that_would_be_spread_are_refused_before_anything_changes(name: str, form: str) -> None:
    outputs, labels, shape = SPREAD[name]
    model = fresh(outputs)
    before = parameters_of(model)
    right = torch.zeros(60, outputs, dtype=D)
    given, label = {
        "pair": ((X, labels), "y"),
        "loader": (DataLoader(TensorDataset(X, labels), batch_size=60), "y of batch 0"),
        "dictionary": ({"train_input": X, "train_label": labels}, "train_label"),
        "test": ({"train_input": X, "train_label": right, "test_input": X, "test_label": labels}, "test_label"),
    }[form]
    message = f"{label} has the shape {shape}, but the output has {[60, outputs]}"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(model, given, square)
    unchanged(model, before)
    assert (model.history, model.sample) == ([], None)


def test_a_later_batch_that_would_be_spread_is_refused_when_it_comes() -> None:
    batches = [(X, Y[:, None]), (X, torch.stack([Y, Y], 1))]
    with pytest.raises(ValueError, match=r"y of batch 1 has the shape \[60, 2\], but the output has \[60, 1\]"):
        fit(fresh(), batches, square)


def test_labels_that_can_not_be_spread_are_the_losss_own() -> None:
    """Such as a curve that a few numbers describe."""
    at = torch.linspace(0, 1, 9, dtype=D)
    model = fresh(2)
    wanted = Y[:, None] + 2 * at
    fit(model, (X, wanted), lambda p, y: (p[:, :1] + p[:, 1:] * at - y).square().mean())
    assert rmse(model) < 0.02
    assert (model(X)[:, 1] - 2).square().mean().sqrt() < 0.02


# -- classes ----------------------------------------------------------------------------------------

CLASS_LOSSES = {
    "module": nn.CrossEntropyLoss(),
    "weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0], dtype=D)),
    "function": functional.cross_entropy,
    "partial": partial(functional.cross_entropy, label_smoothing=0.01),
    "lambda": lambda p, y: functional.cross_entropy(p, y),
    "likelihood": lambda p, y: functional.nll_loss(p.log_softmax(1), y),
    "gathered": lambda p, y: -p.log_softmax(1).gather(1, y[:, None]).mean(),
}


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.parametrize("name", list(CLASS_LOSSES))
def test_classes_of_every_integer(name: str, kind: torch.dtype) -> None:
    model = fresh(3)
    fit(model, (X, CLASSES.to(kind)), CLASS_LOSSES[name])
    assert (model(X).argmax(1) == CLASSES).double().mean() > 0.9


def test_two_classes_may_be_bools_and_columns() -> None:
    truth = X[:, 0] > 0
    for labels in (truth, truth.numpy(), truth.long()[:, None]):
        model = fresh(2)
        fit(model, (X, labels), nn.CrossEntropyLoss())
        assert ((model(X).argmax(1) == 1) == truth).all()


def test_shares_of_classes() -> None:
    shares = functional.one_hot(CLASSES, 3)
    for labels in (shares, shares.to(D)):
        model = fresh(3)
        fit(model, (X, labels), nn.CrossEntropyLoss())
        assert (model(X).argmax(1) == CLASSES).double().mean() > 0.9


@pytest.mark.parametrize("labels", [CLASSES > 0, CLASSES, (CLASSES > 0).to(D), (CLASSES > 0).to(D)[:, None]],
                         ids=["bool", "int", "float", "column"])  # fmt: skip
@pytest.mark.parametrize("name", ["module", "function", "partial", "lambda", "likelihood"])
def test_a_loss_of_classes_needs_an_output_for_each(name: str, labels: Tensor) -> None:
    model = fresh()
    before = parameters_of(model)
    with pytest.raises(ValueError, match="needs an output for each class, but the network has one output"):
        fit(model, (X, labels), CLASS_LOSSES[name])
    unchanged(model, before)


@pytest.mark.parametrize("wrong", [3, -1, 100])
@pytest.mark.parametrize("name", ["module", "lambda", "likelihood"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_without_an_output_are_refused(name: str, part: str, wrong: int) -> None:
    model = fresh(3)
    before = parameters_of(model)
    given = {"train_input": X, "train_label": CLASSES, "test_input": X, "test_label": CLASSES}
    given[f"{part}_label"] = torch.cat([CLASSES[:-1], torch.tensor([wrong])])
    message = f"{part}_label must be classes from 0 to 2, as the network has 3 outputs; got {wrong}"
    with pytest.raises((ValueError, IndexError), match=message):
        fit(model, given, CLASS_LOSSES[name], opt="Adam", batch=20)
    unchanged(model, before)


def test_a_class_that_is_ignored() -> None:
    for loss, ignored in (
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=9), 9),
        (partial(functional.cross_entropy, ignore_index=9), 9),
        (lambda p, y: functional.cross_entropy(p, y, ignore_index=9), 9),
    ):
        labels = CLASSES.clone()
        labels[::7] = ignored
        model = fresh(3)
        fit(model, (X, labels), loss)
        assert (model(X).argmax(1) == CLASSES).double().mean() > 0.9


def test_a_later_batch_with_a_class_without_an_output() -> None:
    batches = [(X, CLASSES), (X, CLASSES + 1)]
    for loss in (nn.CrossEntropyLoss(), CLASS_LOSSES["lambda"]):
        with pytest.raises(ValueError, match="y of batch 1 must be classes from 0 to 2"):
            fit(fresh(3), batches, loss)


# -- losses that are none ---------------------------------------------------------------------------

NO_LOSSES: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("mse", TypeError, "loss_fn must be a function, got str"),
    "number": (lambda p, y: 1.0, TypeError, "loss_fn must return a tensor with one real number, got float"),
    "none": (lambda p, y: None, TypeError, "loss_fn must return a tensor with one real number, got NoneType"),
    "each row": (lambda p, y: (p - y) ** 2, TypeError, r"got torch.float64 of shape \[60, 1\]"),
    "not reduced": (nn.MSELoss(reduction="none"), TypeError, r"got torch.float64 of shape \[60, 1\]"),
    "integer": (lambda p, y: (p > y).sum(), TypeError, "got torch.int64 of shape"),
    "complex": (lambda p, y: ((p - y) * 1j).sum(), TypeError, "got torch.complex128"),
    "without gradient": (lambda p, y: (p.detach() - y).square().mean(), ValueError, "has no gradient"),
    "of the labels": (lambda p, y: y.square().mean(), ValueError, "has no gradient"),
    "one argument": (lambda p: p.mean(), TypeError, "positional argument"),
    "its own error": (lambda p, y: {}["a"], KeyError, "a"),
}


@pytest.mark.parametrize("labels", [Y, Y[:, None]], ids=["[N]", "[N, 1]"])
@pytest.mark.parametrize("name", list(NO_LOSSES))
def test_what_is_no_loss_is_refused_before_anything_changes(name: str, labels: Tensor) -> None:
    loss, error, words = NO_LOSSES[name]
    model = fresh()
    before, state = parameters_of(model), torch.get_rng_state()
    with pytest.raises(error, match=words):
        fit(model, (3 * X, labels), loss)
    unchanged(model, before)
    assert (model.history, model.sample) == ([], None)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_draws_is_called_as_if_for_the_first_time() -> None:
    drawn = []

    def loss(p: Tensor, y: Tensor) -> Tensor:
        drawn.append(torch.rand(()).item())
        return square(p, y)

    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    fit(fresh(), (X, Y), loss, opt="Adam", steps=1)
    assert drawn[-2:] == expected


# -- data as people have them -----------------------------------------------------------------------


def test_tables_in_every_form() -> None:
    pandas = pytest.importorskip("pandas")
    expected = read_data((X, Y), in_features=2, out_features=1)
    frame = pandas.DataFrame(X.numpy())
    for x, y in (
        (X.tolist(), Y.tolist()),
        (tuple(map(tuple, X.tolist())), Y[:, None].tolist()),
        (frame, pandas.Series(Y.numpy())),
        (frame.astype("Float64"), pandas.Series(Y.numpy()).astype("Float64")),
        (frame.astype(object), Y.numpy().astype(object)),
    ):
        for given in ((x, y), [x, y], {"train_input": x, "train_label": y}):
            found = read_data(given, in_features=2, out_features=1)
            assert torch.equal(found.train_input, expected.train_input)
            assert torch.equal(found.train_label, expected.train_label)
    gap = frame.astype("Float64")
    gap.iloc[3, 1] = pandas.NA
    with pytest.raises(TypeError, match="x must be of real numbers, got object"):
        read_data((gap, Y), in_features=2, out_features=1)


def test_datasets_of_samples_are_taken_whole() -> None:
    state = torch.get_rng_state()
    whole = TensorDataset(X, Y)
    found = read_data(whole, in_features=2, out_features=1)
    assert torch.equal(found.train_input, X.float())
    assert found.train_label.shape == (60, 1)
    part, _ = random_split(whole, [40, 20], torch.Generator().manual_seed(1))
    found = read_data(part, in_features=2, out_features=1)
    assert torch.equal(found.train_input, X[part.indices].float())
    assert torch.equal(found.train_label[:, 0], Y[part.indices].float())

    class Own(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            return X[number].numpy(), np.float64(Y[number].item())

    found = read_data(Own(), in_features=2, out_features=1)
    assert torch.equal(found.train_input, X.float())
    assert torch.equal(found.train_label[:, 0], Y.float())
    assert torch.equal(torch.get_rng_state(), state)
    results = fresh().fit(part, "Adam", 3, batch=1000, progress=False)
    assert len(results["train_loss"]) == 3


@pytest.mark.parametrize("labels", [Y, Y.numpy(), Y.tolist()], ids=["tensor", "array", "list"])
def test_two_arguments_are_one_pair(labels: Any) -> None:
    model = fresh()
    with pytest.raises(TypeError, match=r"as one argument, fit\(\(x, y\)\); its next one, opt, came as \w+"):
        model.fit(X, labels)
