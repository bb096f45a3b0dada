"""Data for training: the numbers of a seed, and splits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkan.training.data import create_dataset, create_dataset_from_data, read_data

PARTS = ("train_input", "train_label", "test_input", "test_label")


def article(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)


def total(x: Tensor) -> Tensor:
    return x.sum(1)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- from a function --------------------------------------------------------------------------------


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


BAD_DATASETS: dict[str, tuple[Callable, type[Exception], str]] = {
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
    "label number": (lambda: create_dataset(lambda x: 1.0), TypeError, "f must return a torch.Tensor, got float"),
    "label complex": (lambda: create_dataset(lambda x: x + 1j), TypeError, "f must return real numbers, got torch"),
    "constant": (
        lambda: create_dataset(lambda x: x * torch.tensor([1.0, 0.0]), normalize_label=True), ValueError,
        r"normalize_label needs columns that vary, but those of train_label at \[1\] don't",
    ),
    "one row": (
        lambda: create_dataset(total, train_num=1, normalize_input=True), ValueError,
        r"normalize_input needs columns that vary, but those of train_input at \[0, 1\] don't",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATASETS)
def test_what_can_be_no_dataset(case: str) -> None:
    call, error, words = BAD_DATASETS[case]
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


# -- from a table -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((["a"], torch.ones(1)), TypeError, "inputs must be a torch.Tensor or a NumPy array, got list"),
        ((torch.ones(3), torch.ones(3)), ValueError, r"inputs must have the shape \[N, n_var\], got \[3\]"),
        (
            (torch.ones(3, 1), torch.ones(4)),
            ValueError,
            r"labels must have as many rows as inputs, .*\[4\] and \[3, 1\]",
        ),
        ((torch.ones(3, 1), torch.tensor(1.0)), ValueError, r"labels must have as many rows as inputs, .*\[\] and"),
        ((torch.ones(3, 1), torch.ones(3), 0), ValueError, "train_ratio must be above 0 and at most 1, got 0"),
        ((torch.ones(3, 1), torch.ones(3), 80), ValueError, "train_ratio must be above 0 and at most 1, got 80"),
        ((torch.ones(3, 1), torch.ones(3), math.nan), ValueError, "train_ratio must be finite, got nan"),
        ((torch.ones(3, 1), torch.ones(3), "0.8"), TypeError, "train_ratio must be a number, got str"),
        ((torch.ones(3, 1), torch.ones(3), 0.3), ValueError, "train_ratio=0.3 of 3 rows leaves none for training"),
    ],
)
def test_what_can_not_be_split(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        create_dataset_from_data(*arguments)
