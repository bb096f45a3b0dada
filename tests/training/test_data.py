"""What ``fit`` may be given, and the batches that become of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastkan.kan.model import KAN
from fastkan.network.samples import MAX_SAMPLES
from fastkan.training.data import Data, read_data

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
    "generator": (((X, Y) for _ in range(3)), TypeError, "again and again, got generator.* list"),
    "no labels": ({"train_input": X}, ValueError, r"must have train_input and train_label, got only \['train_input'\]"),
    "no inputs": ({"train_label": Y}, ValueError, r"must have train_input and train_label, got only \['train_label'\]"),
    "half a test": (
        {"train_input": X, "train_label": Y, "test_input": X}, ValueError,
        "both of test_input and test_label or neither",
    ),
    "list": (([1.0, 2.0], [1.0, 2.0]), ValueError, r"x must have the shape \[N, 2\], got \[2\]"),
    "list of texts": ((["a", "b"], Y), TypeError, "x of batch 0 must be a torch.Tensor or a NumPy array, got str"),
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


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [(0, ValueError, "batch must be at least 1, got 0"), (-2, ValueError, "batch must be at least 1, got -2"),
     (2.0, TypeError, "batch must be an int, got float"), (None, TypeError, "batch must be an int, got NoneType")],
)  # fmt: skip
def test_batches_of_no_size(batch: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read((X, Y)).batches(batch)


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


def test_a_loaders_later_batches_are_checked_as_they_come() -> None:
    many = [(X, Y)] * (MAX_SAMPLES // len(X) + 1)  # of which the first ones are looked at before
    batches = read([*many, (X, nan(Y, (2,))), (X, Y)]).batches()
    for _ in many:
        next(batches)
    with pytest.raises(ValueError, match=f"y of batch {len(many)} must be finite, got 1 NaN or infinite of 20 values"):
        next(batches)
    with pytest.raises(ValueError, match="y of batch 1 must be finite, got 1 NaN or infinite of 20 values"):
        read([(X, Y), (X, nan(Y, (2,))), (X, Y)])


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
