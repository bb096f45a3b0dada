"""Data for training: the forms that ``fit`` takes, batches, labels with every loss, and ``create_dataset``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
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
from fastkan.network.samples import MAX_SAMPLES
from fastkan.training.data import Data, create_dataset, create_dataset_from_data, read_data

X, Y = torch.rand(20, 2), torch.rand(20, 1)


def nothing(p: Tensor, y: Tensor) -> Tensor:
    return p.sum()


def read(dataset: object, inputs: int = 2, outputs: int = 1, **options) -> Data:
    return read_data(dataset, in_features=inputs, out_features=outputs, **options)


def test_a_dictionary_a_pair_and_a_loader_are_the_same_data() -> None:
    full = read({"train_input": X, "train_label": Y, "test_input": X[:3], "test_label": Y[:3], "note": "mine"})
    assert full.test is not None
    assert torch.equal(full.test[0], X[:3])
    assert torch.equal(full.test[1], Y[:3])
    pair = read((X, Y))
    for data in (full, pair, read([X, Y]), read({"train_input": X, "train_label": Y}), read([(X, Y)])):
        assert torch.equal(data.train[0], X)
        assert torch.equal(data.train[1], Y)
        assert data is full or data.test is None
        x, y = next(data.batches())
        assert torch.equal(x, X)
        assert torch.equal(y, Y)


ARRAYS = {
    "float32": X.numpy(),
    "float64": X.double().numpy(),
    "big endian": X.numpy().astype(">f4"),
    "backwards": X.numpy()[::-1].copy()[::-1],
    "columns first": np.asfortranarray(X.numpy()),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("frozen", [False, True])
def test_arrays_of_every_layout(kind: str, frozen: bool) -> None:
    array = ARRAYS[kind].view()
    array.flags.writeable = not frozen
    data = read((array, Y.numpy()))
    assert data.train_input.dtype == torch.float32
    assert torch.equal(data.train_input, X)


def test_numbers_become_the_networks() -> None:
    x, y = X.double().requires_grad_(), Y.half()
    data = read((x, y), dtype=torch.bfloat16)
    assert data.train_input.dtype == data.train_label.dtype == torch.bfloat16
    assert not data.train_input.requires_grad
    assert x.dtype == torch.float64
    whole = read((torch.arange(40).view(20, 2), np.arange(20, dtype=np.uint8)))
    assert whole.train_input.dtype == whole.train_label.dtype == torch.float32


def test_classes_stay_integers_where_a_loss_takes_them() -> None:
    classes = torch.arange(20) % 3
    data = read((X, classes), outputs=3, loss_fn=nothing)
    assert data.train_label.dtype == torch.int64
    assert data.train_label.shape == (20,)
    assert read((X, Y.double()), loss_fn=nothing).train_label.dtype == torch.float32
    with pytest.raises(ValueError, match=r"y must have the shape \[20, 3\], got \[20\]"):
        read((X, classes), outputs=3)


def test_labels_of_one_dimension_never_spread() -> None:
    """A loss of [N, 1] and [N] would compare all with all."""
    assert read((X, Y[:, 0])).train_label.shape == (20, 1)
    found = read({"train_input": X, "train_label": Y[:, 0], "test_input": X, "test_label": Y[:, 0]}, dtype=X.dtype)
    assert found.test is not None
    assert found.test[1].shape == (20, 1)
    with pytest.raises(ValueError, match=r"y must have the shape \[20, 2\], got \[20\]"):
        read((X, Y[:, 0]), outputs=2)
    with pytest.raises(ValueError, match=r"y must have the shape \[20, 1\], got \[20, 2\]"):
        read((X, X))
    with pytest.raises(ValueError, match=r"y must have the shape \[20, 1\], got \[20, 1, 1\]"):
        read((X, Y[None].transpose(0, 1)))


def nan(value: Tensor, *places: tuple[int, ...]) -> Tensor:
    value = value.clone()
    for place in places:
        value[place] = math.nan
    return value


FULL = {"train_input": X, "train_label": Y, "test_input": X, "test_label": Y}
BAD_DATA: dict[str, tuple[object, type[Exception], str]] = {
    "none": (None, TypeError, "dataset must be a dictionary with train_input .* got NoneType"),
    "tensor": (X, TypeError, "dataset must be a dictionary with .* got Tensor"),
    "array": (X.numpy(), TypeError, "dataset must be a dictionary with .* got ndarray"),
    "number": (3, TypeError, "dataset must be a dictionary with .* got int"),
    "text": ("data.csv", TypeError, r"batch 0 of dataset must be a pair \(x, y\), got str"),
    "generator": (((X, Y) for _ in range(3)), TypeError, "more than once, got generator: .* list"),
    "no labels": ({"train_input": X}, ValueError, r"must have train_input and train_label, got only \['train_input'\]"),
    "no inputs": ({"train_label": Y}, ValueError, r"must have train_input and train_label, got only \['train_label'\]"),
    "half a test": (
        {"train_input": X, "train_label": Y, "test_input": X}, ValueError,
        "both of test_input and test_label or neither",
    ),
    "list": (([1.0, 2.0], [1.0, 2.0]), ValueError, r"x must have the shape \[N, 2\], got \[2\]"),
    "list of texts": ((["a", "b"], Y), TypeError, "x must be of real numbers, got text"),
    "ragged list": (([[1.0, 2.0], [1.0]], [1.0, 2.0]), ValueError, "x must have rows of the same length"),
    "numbers": ((1.0, 2.0), TypeError, r"batch 0 of dataset must be a pair \(x, y\), got float"),
    "three": ((X, Y, Y), TypeError, r"batch 0 of dataset must be a pair \(x, y\), got Tensor"),
    "batch of three": ([(X, Y, Y)], TypeError, r"batch 0 of dataset must be a pair \(x, y\), got tuple of length 3"),
    "columns of samples": (TensorDataset(X[:, :1], Y), ValueError, r"x must have the shape \[N, 2\], got \[20, 1\]"),
    "samples of three": (TensorDataset(X, Y, Y), TypeError, r"must be a pair \(x, y\), got tuple of length 3"),
    "no batches": ([], ValueError, "dataset must have at least one batch, got none"),
    "no rows": ((X[:0], Y[:0]), ValueError, "x must have at least one row"),
    "no training rows": (FULL | {"train_input": X[:0], "train_label": Y[:0]}, ValueError, "train_input must have at"),
    "text inside": (FULL | {"train_label": "y"}, TypeError, "train_label must be a torch.Tensor or .*, got str"),
    "objects": ((X, np.array([None] * 20)), TypeError, "y must be of real numbers, got object"),
    "complex": ((X + 1j, Y), TypeError, "x must be of real numbers, got torch.complex64"),
    "complex array": ((X, Y.numpy() + 1j), TypeError, "y must be of real numbers, got complex"),
    "sparse": ((X.to_sparse(), Y), TypeError, "x must be a dense tensor with values, got torch.sparse_coo"),
    "meta": ((X.to("meta"), Y), TypeError, "x must be a dense tensor with values, got meta"),
    "columns": ((torch.rand(20, 3), Y), ValueError, r"x must have the shape \[N, 2\], got \[20, 3\]"),
    "one dimension": ((X[:, 0], Y), ValueError, r"x must have the shape \[N, 2\], got \[20\]"),
    "rows": ((X, Y[:19]), ValueError, r"y must have as many rows as x, got the shapes \[19, 1\] and \[20, 2\]"),
    "test rows": (FULL | {"test_label": Y[:2]}, ValueError, "test_label must have as many rows as test_input"),
    "label of none": ((X, Y[0, 0]), ValueError, r"y must have as many rows as x, got the shapes \[\]"),
    "nan inputs": ((nan(X, (3, 0), (4, 1)), Y), ValueError, "x must be finite, got 2 NaN or infinite of 40 values"),
    "nan train_label": (
        FULL | {"train_label": nan(Y, (5,))}, ValueError, "train_label must be finite, got 1 NaN or infinite of 20",
    ),
    "nan test_input": (FULL | {"test_input": nan(X, (5,))}, ValueError, "test_input must be finite, got 2 NaN or"),
    "infinite": ((X, Y / 0), ValueError, "y must be finite, got 20 NaN or infinite of 20 values"),
    "overflow": ((X, Y.double() + 1e300), ValueError, "y in torch.float32 must be finite, got 20 NaN or"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_what_fit_can_not_read(case: str) -> None:
    dataset, error, words = BAD_DATA[case]
    with pytest.raises(error, match=words):
        read(dataset)


# -- batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [-1, 20, 21, 10**9])
def test_all_rows_are_not_copied(batch: int) -> None:
    data = read((X, Y))
    for x, y in itertools.islice(data.batches(batch), 3):
        assert x.data_ptr() == X.data_ptr()
        assert y.data_ptr() == Y.data_ptr()
        assert len(x) == len(y) == 20


@pytest.mark.parametrize("batch", [1, 4, 10])
def test_every_row_comes_once_before_any_comes_again(batch: int) -> None:
    x = torch.arange(40.0).view(20, 2)
    batches = read((x, x.sum(1))).batches(batch, seed=1)
    orders = []
    for _ in range(3):
        taken = list(itertools.islice(batches, 20 // batch))
        assert all(len(rows) == batch and torch.equal(rows.sum(1, keepdim=True), y) for rows, y in taken)
        rows = torch.cat([rows for rows, _ in taken])
        assert torch.equal(rows[rows[:, 0].argsort()], x)
        orders.append(rows)
    assert not torch.equal(orders[0], orders[1])


def test_every_batch_is_full() -> None:
    data = read((X, Y))
    assert {len(x) for x, _ in itertools.islice(data.batches(7), 20)} == {7}
    # and rows that were too few for one more batch are others each time
    seen = torch.cat([x[:, 0] for x, _ in itertools.islice(data.batches(13), 20)])
    assert len(seen.unique()) == 20


def test_a_seed_gives_the_same_batches() -> None:
    data = read((X, Y))

    def first(seed: int | None) -> Tensor:
        return torch.cat([x for x, _ in itertools.islice(data.batches(5, seed), 8)])

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    torch.manual_seed(0)
    free = first(None)
    assert not torch.equal(free, first(None))


def test_a_loader_starts_again_when_it_ends() -> None:
    loader = DataLoader(TensorDataset(X, Y.double()), batch_size=8)
    data = read(loader)
    assert torch.equal(data.train[0], X[:8])
    taken = list(itertools.islice(data.batches(), 7))
    assert [len(x) for x, _ in taken] == [8, 8, 4, 8, 8, 4, 8]
    assert torch.equal(torch.cat([x for x, _ in taken[3:6]]), X)
    assert all(y.dtype == torch.float32 for _, y in taken)
    with pytest.raises(ValueError, match="batch must be -1 where a loader makes the batches, got 4"):
        data.batches(4)


class Once:
    """Batches without a length, and from the second time on without any."""

    def __init__(self) -> None:
        self.times = 0

    def __iter__(self):
        self.times += 1
        return iter([(X, Y)] if self.times < 3 else [])


def test_a_loader_that_has_no_more_ends_with_an_error() -> None:
    batches = read(Once()).batches()
    next(batches)
    with pytest.raises(ValueError, match="dataset must have at least one batch, got none"):
        next(batches)


def test_a_later_batch_is_refused_when_it_comes() -> None:
    many = [(X, Y)] * (MAX_SAMPLES // len(X) + 1)  # of which the first ones are looked at before
    batches = read([*many, (X, nan(Y, (2,))), (X, Y)]).batches()
    for _ in many:
        next(batches)
    with pytest.raises(ValueError, match=f"y of batch {len(many)} must be finite, got 1 NaN or infinite of 20 values"):
        next(batches)
    with pytest.raises(ValueError, match="y of batch 1 must be finite, got 1 NaN or infinite of 20 values"):
        read([(X, Y), (X, nan(Y, (2,))), (X, Y)])
    with pytest.raises(ValueError, match=r"y of batch 1 has the shape \[60, 2\], but the output has \[60, 1\]"):
        fit(fresh(), [(INPUTS, VALUES[:, None]), (INPUTS, torch.stack([VALUES, VALUES], 1))], square)
    for loss in (nn.CrossEntropyLoss(), CLASS_LOSSES["lambda"]):
        with pytest.raises(ValueError, match="y of batch 1 must be classes from 0 to 2"):
            fit(fresh(3), [(INPUTS, CLASSES), (INPUTS, CLASSES + 1)], loss)


# -- inputs far from the grid -----------------------------------------------------------------------


def scaled(*scales: float) -> tuple[Tensor, Tensor]:
    return (2 * X - 1) * torch.tensor(scales), Y


FAR: dict[str, tuple[tuple[float, float], dict, str]] = {
    "raw, updates": ((1.0, 35000.0), {}, r"columns \[1\] hold numbers beyond 50 .*; normalise them, as by .*\)$"),
    "raw": ((35000.0, 1.0), {"update_grid": False}, r"columns \[0\] lie outside of the grid .*update_grid=True$"),
    "both": ((9.0, 9.0), {"update_grid": False}, r"columns \[0, 1\] lie outside"),
    "splines alone": ((9.0, 9.0), {"train": ("spline",)}, r"columns \[0, 1\] lie outside"),
    "too late": ((9.0, 1.0), {"start_grid_update_step": 40}, r"columns \[0\] lie outside"),
}
NEAR: dict[str, tuple[tuple[float, float], dict]] = {
    "as it should be": ((1.0, 1.0), {"update_grid": False}),
    "updates": ((9.0, 30.0), {}),
    "a grid of their range": ((9.0, 9.0), {"update_grid": False, "grid_range": (-10, 10)}),
    "no base": ((1.0, 35000.0), {"base_fun": "zero"}),
}


def fitted(scales: tuple[float, float], grid_range=(-1, 1), base_fun="silu", **options) -> KAN:
    model = KAN([2, 1], grid=3, seed=0, grid_range=grid_range, base_fun=base_fun)
    model.fit(scaled(*scales), "Adam", 1, progress=False, **options)
    return model


@pytest.mark.parametrize("name", FAR)
def test_columns_far_from_the_grid_are_named(name: str) -> None:
    scales, options, words = FAR[name]
    with pytest.warns(UserWarning, match=words) as caught:
        fitted(scales, **options)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NEAR)
def test_other_columns_bring_no_warning(name: str) -> None:
    scales, options = NEAR[name]
    model = fitted(scales, **options)
    if name == "updates":  # and then they lie on it
        model.fit(scaled(*scales), "Adam", 1, update_grid=False, progress=False)


# -- labels and losses -------------------------------------------------------------------------------

INPUTS = 2 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=D) - 1
VALUES = torch.sin(3 * INPUTS[:, 0]) + INPUTS[:, 1] ** 2  # [N]
CLASSES = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0).long()


def fresh(outputs: int = 1) -> KAN:
    return KAN([2, outputs], grid=4, seed=0, dtype=D)


def fit(model: KAN, data: Any, loss: Any, **options: Any) -> dict[str, list[float]]:
    return model.fit(data, loss_fn=loss, progress=False, **{"steps": 8, **options})


def rmse(model: KAN) -> float:
    return (model(INPUTS)[:, 0] - VALUES).square().mean().sqrt().item()


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
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "pair") for name in LOSSES),
        *(("lambda", form) for form in ("loader", "dictionary", "arrays", "dataset")),
    ],
)
def test_labels_of_one_dimension_are_learned_row_by_row(name: str, form: str) -> None:
    given: dict[str, Any] = {
        "pair": (INPUTS, VALUES),
        "loader": DataLoader(TensorDataset(INPUTS, VALUES), batch_size=60),
        "dictionary": {"train_input": INPUTS, "train_label": VALUES, "test_input": INPUTS, "test_label": VALUES},
        "arrays": (INPUTS.numpy(), VALUES.numpy()),
        "dataset": TensorDataset(INPUTS, VALUES),
    }
    model = fresh()
    results = fit(model, given[form], LOSSES[name])
    assert rmse(model) < 0.01
    if form == "dictionary":
        assert results["test_loss"][-1] == pytest.approx(results["train_loss"][-1], rel=1e-12)


def test_a_loss_that_pairs_all_rows_with_all_says_so() -> None:
    with pytest.warns(UserWarning, match="same value whichever row a label belongs to") as caught:
        fit(fresh(), (INPUTS, VALUES[:, None]), lambda p, y: (p[:, 0] - y).square().mean())
    assert caught[0].filename == __file__


SPREAD: dict[str, tuple[int, Tensor, list[int]]] = {
    "a column for two outputs": (2, VALUES[:, None], [60, 1]),
    "one dimension for two outputs": (2, VALUES, [60]),
    "two columns for one output": (1, torch.stack([VALUES, VALUES], 1), [60, 2]),
    "three dimensions": (1, VALUES.view(60, 1, 1), [60, 1, 1]),
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
        "pair": ((INPUTS, labels), "y"),
        "loader": (DataLoader(TensorDataset(INPUTS, labels), batch_size=60), "y of batch 0"),
        "dictionary": ({"train_input": INPUTS, "train_label": labels}, "train_label"),
        "test": (
            {"train_input": INPUTS, "train_label": right, "test_input": INPUTS, "test_label": labels},
            "test_label",
        ),
    }[form]
    message = f"{label} has the shape {shape}, but the output has {[60, outputs]}"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(model, given, square)
    unchanged(model, before)
    assert (model.history, model.sample) == ([], None)


def test_labels_that_can_not_be_spread_are_the_losss_own() -> None:
    """Such as a curve that a few numbers describe."""
    at = torch.linspace(0, 1, 9, dtype=D)
    model = fresh(2)
    wanted = VALUES[:, None] + 2 * at
    fit(model, (INPUTS, wanted), lambda p, y: (p[:, :1] + p[:, 1:] * at - y).square().mean())
    assert rmse(model) < 0.02
    assert (model(INPUTS)[:, 1] - 2).square().mean().sqrt() < 0.02


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


def ignoring(index: int) -> Tensor:
    labels = CLASSES.clone()
    labels[::7] = index
    return labels


TRUTH, POSITIVE, SHARES = INPUTS[:, 0] > 0, VALUES > 0.3, functional.one_hot(CLASSES, 3)


KINDS = (torch.int64, torch.int32, torch.int8, torch.uint8)


LABELS: dict[str, tuple[Any, Any, Tensor]] = {  # a loss, its labels, and the classes that they stand for
    **{f"{name}, {k}": (loss, CLASSES.to(k), CLASSES) for name, loss in CLASS_LOSSES.items() for k in KINDS},
    "bool": (nn.CrossEntropyLoss(), TRUTH, TRUTH),
    "bool array": (nn.CrossEntropyLoss(), TRUTH.numpy(), TRUTH),
    "column": (nn.CrossEntropyLoss(), TRUTH.long()[:, None], TRUTH),
    "integer shares": (nn.CrossEntropyLoss(), SHARES, CLASSES),
    "shares": (nn.CrossEntropyLoss(), SHARES.to(D), CLASSES),
    "ignored": (nn.CrossEntropyLoss(), ignoring(-100), CLASSES),
    "ignored by the module": (nn.CrossEntropyLoss(ignore_index=9), ignoring(9), CLASSES),
    "ignored by a partial": (partial(functional.cross_entropy, ignore_index=9), ignoring(9), CLASSES),
    "ignored by a lambda": (lambda p, y: functional.cross_entropy(p, y, ignore_index=9), ignoring(9), CLASSES),
    **{f"one output, {k}": (nn.BCEWithLogitsLoss(), POSITIVE.to(k), POSITIVE) for k in (*KINDS, torch.bool)},
    "two logits": (nn.BCEWithLogitsLoss(), torch.stack([~POSITIVE, POSITIVE], 1), POSITIVE),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_classes_are_learned_from_labels_of_every_form(name: str) -> None:
    loss, labels, classes = LABELS[name]
    model = fresh(1 if name.startswith("one output") else int(classes.max()) + 1)
    fit(model, (INPUTS, labels), loss)
    y = model(INPUTS)
    right = ((y.argmax(1) if y.shape[1] > 1 else y[:, 0] > 0) == classes).double().mean()
    assert right == 1 if classes is TRUTH else right > (0.95 if classes is POSITIVE else 0.9)


@pytest.mark.parametrize("labels", [CLASSES > 0, CLASSES, (CLASSES > 0).to(D), (CLASSES > 0).to(D)[:, None]],
                         ids=["bool", "int", "float", "column"])  # fmt: skip
@pytest.mark.parametrize("name", ["module", "function", "partial", "lambda", "likelihood"])
def test_a_loss_of_classes_needs_an_output_for_each(name: str, labels: Tensor) -> None:
    model = fresh()
    before = parameters_of(model)
    with pytest.raises(ValueError, match="needs an output for each class, but the network has one output"):
        fit(model, (INPUTS, labels), CLASS_LOSSES[name])
    unchanged(model, before)


@pytest.mark.parametrize("wrong", [3, -1, 100])
@pytest.mark.parametrize("name", ["module", "lambda", "likelihood"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_without_an_output_are_refused(name: str, part: str, wrong: int) -> None:
    model = fresh(3)
    before = parameters_of(model)
    given = {"train_input": INPUTS, "train_label": CLASSES, "test_input": INPUTS, "test_label": CLASSES}
    given[f"{part}_label"] = torch.cat([CLASSES[:-1], torch.tensor([wrong])])
    message = f"{part}_label must be classes from 0 to 2, as the network has 3 outputs; got {wrong}"
    with pytest.raises((ValueError, IndexError), match=message):
        fit(model, given, CLASS_LOSSES[name], opt="Adam", batch=20)
    unchanged(model, before)


# -- losses that are none ---------------------------------------------------------------------------

NO_LOSSES: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("mse", TypeError, "loss_fn must be a function, got str"),
    "number": (lambda p, y: 1.0, TypeError, "loss_fn must return a tensor with one real number, got float"),
    "none": (lambda p, y: None, TypeError, "loss_fn must return a tensor with one real number, got NoneType"),
    "each row": (lambda p, y: (p - y) ** 2, TypeError, r"got torch.float64 of shape \[60, 1\]"),
    "not reduced": (nn.MSELoss(reduction="none"), TypeError, r"got torch.float64 of shape \[60, 1\]"),
    "integer": (lambda p, y: (p > y).sum(), TypeError, "got torch.int64 of shape"),
    "complex": (lambda p, y: ((p - y) * 1j).sum(), TypeError, "got torch.complex128"),
    "without gradient": (lambda p, y: (p.detach() - y).square().mean(), ValueError, "got one without a gradient"),
    "of the labels": (lambda p, y: y.square().mean(), ValueError, "got one without a gradient"),
    "one argument": (lambda p: p.mean(), TypeError, "positional argument"),
    "its own error": (lambda p, y: {}["a"], KeyError, "a"),
}


@pytest.mark.parametrize("labels", [VALUES, VALUES[:, None]], ids=["[N]", "[N, 1]"])
@pytest.mark.parametrize("name", list(NO_LOSSES))
def test_what_is_no_loss_is_refused_before_anything_changes(name: str, labels: Tensor) -> None:
    loss, error, words = NO_LOSSES[name]
    model = fresh()
    before, state = parameters_of(model), torch.get_rng_state()
    with pytest.raises(error, match=words):
        fit(model, (3 * INPUTS, labels), loss)
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
    fit(fresh(), (INPUTS, VALUES), loss, opt="Adam", steps=1)
    assert drawn[-2:] == expected


# -- data as people have them -----------------------------------------------------------------------


def test_tables_in_every_form() -> None:
    pandas = pytest.importorskip("pandas")
    expected = read_data((INPUTS, VALUES), in_features=2, out_features=1)
    frame = pandas.DataFrame(INPUTS.numpy())
    for x, y in (
        (INPUTS.tolist(), VALUES.tolist()),
        (tuple(map(tuple, INPUTS.tolist())), VALUES[:, None].tolist()),
        (frame, pandas.Series(VALUES.numpy())),
        (frame.astype("Float64"), pandas.Series(VALUES.numpy()).astype("Float64")),
        (frame.astype(object), VALUES.numpy().astype(object)),
    ):
        for given in ((x, y), [x, y], {"train_input": x, "train_label": y}):
            found = read_data(given, in_features=2, out_features=1)
            assert torch.equal(found.train_input, expected.train_input)
            assert torch.equal(found.train_label, expected.train_label)
    gap = frame.astype("Float64")
    gap.iloc[3, 1] = pandas.NA
    with pytest.raises(TypeError, match="x must be of real numbers, got object"):
        read_data((gap, VALUES), in_features=2, out_features=1)


def test_datasets_of_samples_are_taken_whole() -> None:
    state = torch.get_rng_state()
    whole = TensorDataset(INPUTS, VALUES)
    found = read_data(whole, in_features=2, out_features=1)
    assert torch.equal(found.train_input, INPUTS.float())
    assert found.train_label.shape == (60, 1)
    part, _ = random_split(whole, [40, 20], torch.Generator().manual_seed(1))
    found = read_data(part, in_features=2, out_features=1)
    assert torch.equal(found.train_input, INPUTS[part.indices].float())
    assert torch.equal(found.train_label[:, 0], VALUES[part.indices].float())

    class Own(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            return INPUTS[number].numpy(), np.float64(VALUES[number].item())

    found = read_data(Own(), in_features=2, out_features=1)
    assert torch.equal(found.train_input, INPUTS.float())
    assert torch.equal(found.train_label[:, 0], VALUES.float())
    assert torch.equal(torch.get_rng_state(), state)
    results = fresh().fit(part, "Adam", 3, batch=1000, progress=False)
    assert len(results["train_loss"]) == 3


@pytest.mark.parametrize("labels", [VALUES, VALUES.numpy(), VALUES.tolist()], ids=["tensor", "array", "list"])
def test_two_arguments_are_one_pair(labels: Any) -> None:
    pair, two = fresh(), fresh()
    expected = pair.fit((INPUTS, labels), "LBFGS", 2, progress=False)
    assert two.fit(INPUTS, labels, opt="LBFGS", steps=2, progress=False) == expected
    assert fresh().fit(INPUTS, labels, "LBFGS", 2, progress=False) == expected
    for name, value in pair.state_dict().items():
        assert torch.equal(two.state_dict()[name], value)


@pytest.mark.parametrize("dataset", [(INPUTS, VALUES), {"train_input": INPUTS, "train_label": VALUES}])
def test_a_dataset_with_labels_is_refused(dataset: Any) -> None:
    with pytest.raises(TypeError, match=r"fit takes inputs and labels as two arrays, or one dataset; got (tuple|dict)"):
        fresh().fit(dataset, VALUES)


@pytest.mark.parametrize("labels", [np.array(["a", "b"] * 2), ["a", "b", "a", "b"], np.array(["a", "b"] * 2, object)])
def test_labels_that_are_names_are_refused(labels: Any) -> None:
    for given in ((INPUTS[:4], labels), (INPUTS[:4].tolist(), labels)):
        with pytest.raises(TypeError, match=r"y must be of real numbers, got text: fastkan\.sklearn\.KANClassifier"):
            fresh().fit(given, loss_fn=torch.nn.CrossEntropyLoss())


# -- datasets of functions and of tables --------------------------------------------------------------

PARTS = ("train_input", "train_label", "test_input", "test_label")


def article(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)


def total(x: Tensor) -> Tensor:
    return x.sum(1)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_gives_what_torchs_own_generator_would(seed: int, dtype: torch.dtype) -> None:
    """Column by column, each for training and then for testing."""
    found = create_dataset(article, 2, ranges=[(-1, 1), (0.5, 3)], train_num=30, test_num=7, seed=seed, dtype=dtype)
    torch.manual_seed(seed)
    train, test = [], []
    for low, high in ((-1, 1), (0.5, 3)):
        train.append(torch.rand(30, dtype=dtype) * (high - low) + low)
        test.append(torch.rand(7, dtype=dtype) * (high - low) + low)
    x, x_test = torch.stack(train, 1), torch.stack(test, 1)
    expected = {"train_input": x, "train_label": article(x), "test_input": x_test, "test_label": article(x_test)}
    assert same(found, expected)
    assert all(value.dtype == dtype for value in found.values())


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("ranges", [[-1, 1], [0.1, 0.7], [[-1, 1], [0, 2.5]]], ids=str)
def test_the_numbers_are_pykans(seed: int, normalized: bool, ranges: list) -> None:
    pykan = pytest.importorskip("kan")
    arguments = {"n_var": 2, "ranges": ranges, "train_num": 100, "test_num": 40, "seed": seed}
    arguments |= {"normalize_input": normalized, "normalize_label": normalized}
    theirs, ours = pykan.create_dataset(article, **arguments), create_dataset(article, **arguments)
    assert same(theirs, {name: ours[name] for name in theirs})
    assert set(theirs) == set(PARTS)


def test_nothing_global_is_drawn_from_or_seeded() -> None:
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = create_dataset(article, seed=3)
    create_dataset_from_data(torch.rand(4, 2, generator=torch.Generator()), torch.zeros(4, 1), seed=3)
    next(read_data(first, in_features=2, out_features=1).batches(10, 3))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002
    assert same(first, create_dataset(article, seed=3))
    assert not torch.equal(first["train_input"], create_dataset(article, seed=4)["train_input"])


def test_without_a_seed_torchs_generator_is_drawn_from() -> None:
    torch.manual_seed(5)
    first, second = create_dataset(article, seed=None), create_dataset(article, seed=None)
    assert same(first, create_dataset(article, seed=5))
    assert not torch.equal(first["train_input"], second["train_input"])


def test_nothing_but_the_four_parts_unless_it_is_normalized() -> None:
    assert set(create_dataset(article)) == set(PARTS)
    found = create_dataset(article, normalize_input=True)
    assert set(found) == {*PARTS, "input_mean", "input_std"}
    found = create_dataset(article, normalize_label=True)
    assert set(found) == {*PARTS, "label_mean", "label_std"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalized_data_and_the_way_back(dtype: torch.dtype) -> None:
    raw = create_dataset(article, 2, ranges=[[0, 5], [-1, 1]], dtype=dtype)
    found = create_dataset(
        article, 2, ranges=[[0, 5], [-1, 1]], normalize_input=True, normalize_label=True, dtype=dtype
    )
    exact = 1e-5 if dtype == torch.float32 else 1e-13
    for what, columns in (("input", 2), ("label", 1)):
        mean, std = found[f"{what}_mean"], found[f"{what}_std"]
        assert mean.shape == std.shape == (columns,)
        for part in (f"train_{what}", f"test_{what}"):
            torch.testing.assert_close(found[part] * std + mean, raw[part], rtol=exact, atol=exact)
        torch.testing.assert_close(
            found[f"train_{what}"].mean(0), torch.zeros(columns, dtype=dtype), rtol=0, atol=exact
        )
        torch.testing.assert_close(found[f"train_{what}"].std(0), torch.ones(columns, dtype=dtype), rtol=exact, atol=0)
        assert abs(found[f"test_{what}"].mean()) > 1e-4  # by the training rows' numbers, not by their own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gets_labels_of_the_rounded_inputs(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return article(x)

    found = create_dataset(f, dtype=dtype, normalize_input=False)
    assert seen == [torch.float32] * 2
    for part in ("train", "test"):
        assert found[f"{part}_input"].dtype == found[f"{part}_label"].dtype == dtype
        assert torch.equal(found[f"{part}_label"], article(found[f"{part}_input"].float()).to(dtype))
    scaled = create_dataset(article, dtype=dtype, normalize_label=True)
    assert scaled["train_label"].dtype == dtype
    assert scaled["label_mean"].dtype == torch.float32
    assert abs(scaled["train_label"].float().std() - 1) < 0.01


def test_rows_give_the_same_as_columns() -> None:
    columns = create_dataset(lambda x: x[:, 0] * x[:, 1] + x[:, 2], 3)
    rows = create_dataset(lambda x: x[0] * x[1] + x[2], 3, "row")
    assert same(columns, rows)
    assert rows["train_label"].shape == (1000, 1)


def test_f_can_do_no_harm_to_the_inputs() -> None:
    def f(x: Tensor) -> Tensor:
        labels = x[:, :1].clone()
        x.zero_()
        return labels

    found = create_dataset(f)
    assert torch.equal(found["train_input"][:, :1], found["train_label"])
    view = create_dataset(lambda x: x)
    view["train_label"].zero_()
    assert view["train_input"].abs().sum() > 0


def test_labels_of_a_network_bring_no_history_and_integers_stay() -> None:
    network = torch.nn.Linear(2, 3)
    found = create_dataset(network, train_num=5, test_num=2)
    assert not found["train_label"].requires_grad
    assert found["train_label"].shape == (5, 3)
    classes = create_dataset(lambda x: (x[:, 0] > 0).long(), train_num=5, test_num=2)
    assert classes["train_label"].dtype == torch.int64
    assert classes["train_label"].shape == (5, 1)
    scaled = create_dataset(lambda x: (x[:, 0] > 0).long(), normalize_label=True)
    assert scaled["train_label"].dtype == torch.float32


def test_a_test_set_may_be_left_out() -> None:
    found = create_dataset(article, train_num=5, test_num=0)
    assert found["test_input"].shape == (0, 2)
    assert read_data(found, in_features=2, out_features=1).test is None


@pytest.mark.parametrize(
    "ranges", [(0, 2), [0, 2], np.array([0, 2]), torch.tensor([0, 2]), [[0, 2], [0, 2]], np.array([[0, 2.0]] * 2)]
)
def test_ranges_in_every_form(ranges: object) -> None:
    assert same(create_dataset(article, ranges=ranges), create_dataset(article, ranges=(0.0, 2.0)))


def split(*arguments: Any) -> Callable:
    return lambda: create_dataset_from_data(*arguments)


ROWS = torch.ones(3, 1), torch.ones(3)
BAD_CALLS: dict[str, tuple[Callable, type[Exception], str]] = {
    **{f"batch {batch}": (lambda batch=batch: read((X, Y)).batches(batch), error, words) for batch, error, words in (
        (0, ValueError, "batch must be at least 1, got 0"), (-2, ValueError, "batch must be at least 1, got -2"),
        (2.0, TypeError, "batch must be an int, got float"), (None, TypeError, "batch must be an int, got NoneType"),
    )},
    "split list": (split(["a"], ROWS[1]), TypeError, "inputs must be of real numbers, got text"),
    "split one dimension": (split(ROWS[1], ROWS[1]), ValueError, r"inputs must have the shape \[N, n_var\], got \[3\]"),
    "split rows": (split(ROWS[0], torch.ones(4)), ValueError, r"labels must have as many rows as inputs, .*\[4\] and"),
    "split scalar": (split(ROWS[0], torch.tensor(1.0)), ValueError, r"labels must have as many rows as inputs, .*\[\]"),
    "split 0": (split(*ROWS, 0), ValueError, "train_ratio must be above 0 and at most 1, got 0"),
    "split 80": (split(*ROWS, 80), ValueError, "train_ratio must be above 0 and at most 1, got 80"),
    "split nan": (split(*ROWS, math.nan), ValueError, "train_ratio must be finite, got nan"),
    "split text": (split(*ROWS, "0.8"), TypeError, "train_ratio must be a number, got str"),
    "split too little": (split(*ROWS, 0.3), ValueError, "train_ratio=0.3 of 3 rows leaves none for training"),
    "f": (lambda: create_dataset("x"), TypeError, "f must be a function, got str"),
    "n_var": (lambda: create_dataset(article, 0), ValueError, "n_var must be at least 1, got 0"),
    "n_var float": (lambda: create_dataset(article, 2.0), TypeError, "n_var must be an int, got float"),
    "f_mode": (lambda: create_dataset(article, f_mode="both"), ValueError, "f_mode must be one of 'col', 'row'; got"),
    "train_num": (lambda: create_dataset(article, train_num=0), ValueError, "train_num must be at least 1"),
    "test_num": (lambda: create_dataset(article, test_num=-1), ValueError, "test_num must be at least 0"),
    "dtype": (lambda: create_dataset(article, dtype=torch.int64), TypeError, "dtype must be .*got torch.int64"),
    "seed": (lambda: create_dataset(article, seed=1.5), TypeError, "seed must be an int, got float"),
    "seed negative": (lambda: create_dataset(article, seed=-1), ValueError, "seed must be at least 0, got -1"),
    "seed large": (lambda: create_dataset(article, seed=2**64), ValueError, f"seed must be at most {2**64 - 1}"),
    "ranges number": (lambda: create_dataset(article, ranges=1), TypeError, "ranges must be two numbers, or two for"),
    "ranges three": (lambda: create_dataset(article, ranges=(0, 1, 2)), TypeError, "two for each variable, got"),
    "ranges text": (lambda: create_dataset(article, ranges="01"), TypeError, "must be two numbers"),
    "ranges falling": (lambda: create_dataset(article, ranges=(1, -1)), ValueError, "finite and increasing"),
    "ranges infinite": (lambda: create_dataset(article, ranges=(0, math.inf)), ValueError, "finite and increasing"),
    "ranges fewer": (
        lambda: create_dataset(article, 3, ranges=[[0, 1], [0, 1]]), ValueError,
        r"ranges must be two numbers, or two for each of n_var=3 variables, got \[\[0, 1\], \[0, 1\]\]",
    ),
    "ranges one bad": (lambda: create_dataset(article, ranges=[[0, 1], [2, 2]]), ValueError, r"ranges\[1\] must be"),
    "ranges mixed": (lambda: create_dataset(article, ranges=[[0, 1], 2]), TypeError, r"ranges\[1\] must be two"),
    "range of half": (
        lambda: create_dataset(article, ranges=(0, 1e6), dtype=torch.float16), ValueError,
        "train_input in torch.float16 must be finite",
    ),
    "label scalar": (lambda: create_dataset(torch.sum), ValueError, r"the shape \[1000, out\] or .* \[\]"),
    "label 3-D": (lambda: create_dataset(lambda x: x[None]), ValueError, r"got \[1, 1000, 2\]"),
    "label rows": (lambda: create_dataset(lambda x: x[:9]), ValueError, r"\[1000, out\] or \[1000\], got \[9, 2\]"),
    "label columns": (lambda: create_dataset(lambda x: x[:, :0]), ValueError, r"got \[1000, 0\]"),
    "label row mode": (lambda: create_dataset(lambda x: x[[0]], 2, "row"), ValueError, r"got \[1, 1000\]"),
    "label number": (lambda: create_dataset(lambda x: 1.0), TypeError, "f must return a torch.Tensor or a NumPy array"),
    "label complex": (lambda: create_dataset(lambda x: x + 1j), TypeError, "f must return real numbers, got torch"),
    "constant": (
        lambda: create_dataset(lambda x: x * torch.tensor([1.0, 0.0]), normalize_label=True), ValueError,
        r"normalize_label needs columns that vary, but those of train_label at \[1\] do not",
    ),
    "one row": (
        lambda: create_dataset(total, train_num=1, normalize_input=True), ValueError,
        r"normalize_input needs columns that vary, but those of train_input at \[0, 1\] do not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_refused(case: str) -> None:
    call, error, words = BAD_CALLS[case]
    with pytest.raises(error, match=words):
        call()


def test_labels_that_are_not_finite_are_counted_and_placed() -> None:
    x = create_dataset(total, train_num=50)["train_input"]
    negative = x[:, 0] <= 0
    place = ", ".join(str(round(value, 6)) for value in x[negative][0].tolist())
    with pytest.raises(ValueError, match="f must be finite everywhere on ranges") as raised:
        create_dataset(lambda x: torch.log(x[:, [0]]), train_num=50)
    assert f"{int(negative.sum())} of 50 rows of train_label are NaN or infinite, the first at [{place}]" in str(
        raised.value
    )


@pytest.mark.parametrize(("share", "count"), [(0.8, 40), (0.5, 25), (1.0, 50), (1, 50), (0.99, 49)])
def test_a_split_has_every_row_once(share: float, count: int) -> None:
    x = torch.arange(100.0).view(50, 2)
    found = create_dataset_from_data(x, x.sum(1, keepdim=True), share, seed=2)
    assert set(found) == set(PARTS)
    assert len(found["train_input"]) == len(found["train_label"]) == count
    rows = torch.cat([found["train_input"], found["test_input"]])
    assert torch.equal(rows[rows[:, 0].argsort()], x)
    for part in ("train", "test"):
        assert torch.equal(found[f"{part}_input"].sum(1, keepdim=True), found[f"{part}_label"])
    assert same(found, create_dataset_from_data(x, x.sum(1, keepdim=True), share, seed=2))
    other = create_dataset_from_data(x, x.sum(1, keepdim=True), share, seed=3)
    assert not torch.equal(other["train_input"], found["train_input"])


def test_a_split_of_arrays_is_a_copy() -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    found = create_dataset_from_data(x, y, 0.5)
    assert found["train_input"].dtype == torch.float64
    assert found["train_label"].dtype == torch.int64
    assert found["train_label"].shape == (3,)
    x[:] = -1
    assert (found["train_input"] >= 0).all()
    tensor = torch.ones(6, 2, requires_grad=True)
    found = create_dataset_from_data(tensor, y, 1.0)
    assert not found["train_input"].requires_grad
    found["train_input"].zero_()
    assert tensor.sum() == 12
