"""The rows that decide about a network: those given, else those of the last fit, never those of a forward."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from networks import D, network, parameters_of, points, same, unchanged
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastkan import KAN, KANLinear, create_dataset
from fastkan.network.samples import MAX_SAMPLES
from fastkan.network.trace import default_rows, rows_for

matplotlib.use("Agg")

DECIDING: dict[str, tuple[Callable[..., Any], int]] = {  # and how many different rows it takes
    "auto_symbolic": (lambda model, **rows: model.auto_symbolic(verbose=0, lib=["x", "sin"], **rows), 8),
    "suggest_symbolic": (lambda model, **rows: model.suggest_symbolic(0, 0, 0, verbose=False, lib=["x"], **rows), 8),
    "fix_symbolic": (lambda model, **rows: model.fix_symbolic(0, 0, 0, "sin", verbose=False, **rows), 8),
    "prune": (lambda model, **rows: model.prune(0.0, 0.0, **rows), 2),
    "prune_node": (lambda model, **rows: model.prune_node(0.0, **rows), 2),
    "prune_edge": (lambda model, **rows: model.prune_edge(0.0, **rows), 2),
    "prune_input": (lambda model, **rows: model.prune_input(0.0, **rows), 2),
    "attribute": (lambda model, **rows: model.attribute(**rows), 2),
    "update_grid_from_samples": (lambda model, **rows: model.update_grid_from_samples(**rows), 1),
    "refine": (lambda model, **rows: model.refine(7, **rows), 1),
}
SHOWING: dict[str, Callable[[KAN], Any]] = {
    "plot": lambda model: model.plot(),
    "plot_edge": lambda model: model.plot_edge(0, 0, 0),
    "trace": lambda model: model.trace(),
    "get_act": lambda model: model.get_act(),
    "get_fun": lambda model: model.get_fun(0, 0, 0),
    "get_range": lambda model: model.get_range(0, 0, 0, verbose=False),
    "default_rows": default_rows,
}


def fitted() -> tuple[KAN, dict[str, Tensor]]:
    model = KAN(width=[2, 1, 1], grid=5, seed=0, dtype=D)
    data = create_dataset(lambda x: torch.exp(x[:, [0]] + x[:, [1]] ** 2), 2, train_num=300, test_num=50, dtype=D)
    model.fit(data, steps=20, progress=False)
    return model, data


# -- a forward records nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_keeps_no_tensor_alive(training: bool) -> None:
    model = network([2, 3, 1], formulas=[(0, 0, 0, "sin")]).train(training)
    x = points(model)
    with torch.no_grad():
        model(x)
    assert model.sample is None
    seen = weakref.ref(x)
    del x
    gc.collect()
    assert seen() is None


def test_predictions_decide_nothing() -> None:
    """One row made every edge "0" with an R2 of 1, three rows NaN."""
    model, data = fitted()
    expected = {name: decide(model.copy()) for name, (decide, _) in DECIDING.items()}
    for count in (1, 2, 3, 8):
        model(data["test_input"][:count])
    model(torch.zeros(500, 2, dtype=D))
    assert torch.equal(model.sample, data["train_input"])
    report = DECIDING["auto_symbolic"][0](model.copy())
    assert report == expected["auto_symbolic"]
    for name in ("prune", "refine", "prune_edge"):
        assert torch.equal(DECIDING[name][0](model)(data["test_input"]), expected[name](data["test_input"])), name
    for ours, theirs in zip(model.attribute(), expected["attribute"]):
        assert all(map(torch.equal, ours, theirs))


def test_a_loop_of_ones_own_gives_the_rows_itself() -> None:
    """The last batch of 301 rows in batches of 100 is one row."""
    torch.manual_seed(0)
    data = create_dataset(lambda x: 2 * x[:, [0]] + x[:, [1]] ** 2, 2, train_num=301, test_num=100, dtype=D)
    x, y = data["train_input"], data["train_label"]
    model = KAN(width=[2, 1], grid=5, seed=0, dtype=D)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        for rows in torch.arange(301).split(100):
            optimizer.zero_grad()
            (model(x[rows]) - y[rows]).square().mean().backward()
            optimizer.step()
    before = model.evaluate(data)["test_loss"]
    other = model.copy()
    report = model.auto_symbolic(verbose=0, x=x, r2_threshold=0.9)
    assert [edge.name for edge in report] == ["x", "x^2"]
    assert model.evaluate(data)["test_loss"] < 3 * before
    other.get_act(x)
    assert other.auto_symbolic(verbose=0, r2_threshold=0.9) == report


def test_a_pair_is_evaluated_as_the_test_rows_of_a_dictionary() -> None:
    model, x = KAN([2, 1], seed=0), torch.rand(20, 2)
    y = model.predict(x)
    y[:5] += 2.0
    found = model.evaluate({"test_input": x, "test_label": y})
    assert found["test_loss"] == pytest.approx(1.0, rel=1e-6)
    singles = torch.utils.data.TensorDataset(x, y)
    for dataset in ((x, y), [x.numpy(), y.numpy()], (x.tolist(), y.tolist()), singles):
        assert model.evaluate(dataset) == pytest.approx(found, rel=1e-6)
    for got in (x, ["a", "list", "of 3"], {"train_input": x}):
        with pytest.raises(ValueError, match=r"dataset must be a dictionary with test_input and test_label, or a pair"):
            model.evaluate(got)
    with pytest.raises(ValueError, match=r"dataset must be .*, got list"):
        model.evaluate([(x, y), (x, y)])
    with pytest.raises(ValueError, match=r"y must have as many rows as x, got the shapes \[19, 1\] and \[20, 2\]"):
        model.evaluate((x, y[1:]))


# -- what is remembered -----------------------------------------------------------------------------


def test_what_is_remembered_is_a_copy() -> None:
    model, data = fitted()
    assert torch.equal(model.sample, data["train_input"])
    score = model.feature_score
    data["train_input"].fill_(0.5)
    assert torch.equal(model.feature_score, score)
    buffer = torch.rand(50, 2, dtype=D)
    model.get_act(buffer)
    score = model.feature_score
    buffer.fill_(0.5)
    assert torch.equal(model.feature_score, score)


def test_a_large_table_is_remembered_in_part() -> None:
    """Also where values come in turns, so that every n-th row has the same one."""
    model = KAN(width=[2, 1], dtype=D)
    turns = torch.cartesian_prod(torch.linspace(-1, 1, 4 * MAX_SAMPLES // 10, dtype=D), torch.arange(10.0, dtype=D))
    model.sample = turns
    kept = model.sample
    assert kept.shape == (MAX_SAMPLES, 2)
    assert torch.equal(kept[:, 1].unique(), torch.arange(10.0, dtype=D))
    assert torch.equal(kept.amin(0), turns.amin(0))
    assert torch.equal(kept.amax(0), turns.amax(0))
    same(kept.mean(0), turns.mean(0), digits=0.03)
    assert len(kept.unique(dim=0)) == MAX_SAMPLES
    assert kept.untyped_storage().nbytes() == kept.numel() * 8
    model.sample = turns
    assert torch.equal(model.sample, kept)


def test_copies_remember_and_pickles_do_not() -> None:
    model, data = fitted()
    x = data["test_input"]
    for other in (model.copy(), copy.deepcopy(model), model.prune(), model.refine(10)):
        assert torch.equal(other.sample, model.sample)
        assert other.sample.data_ptr() != model.sample.data_ptr()
    size = len(pickle.dumps(model))
    model.get_act(torch.rand(5000, 2, dtype=D))
    assert len(pickle.dumps(model)) <= size + 100
    assert all(value.numpy().tobytes() not in pickle.dumps(model) for value in model.sample[:100])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert other.sample is None
        assert torch.equal(other(x), model(x))
    assert model.sample is not None


def test_an_assigned_sample_is_copied() -> None:
    model = KAN(width=[2, 1])
    rows = torch.rand(20, 2, requires_grad=True)
    model.sample = rows
    assert torch.equal(model.sample, rows)
    assert not model.sample.requires_grad
    assert model.sample.data_ptr() != rows.data_ptr()
    model.sample = None
    assert model.sample is None


# -- which rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DECIDING))
def test_rows_that_are_given_count(name: str) -> None:
    decide = DECIDING[name][0]
    model = network([2, 3, 1], "own")
    model.get_act(points(model, seed=7))
    x = points(model, 200)
    forms: list[dict[str, Any]] = [
        {"x": x}, {"x": x.view(10, 20, 2)}, {"x": x.numpy()}, {"x": x.tolist()}, {"dataset": {"train_input": x}},
        {"dataset": {"train_input": x.numpy(), "train_label": x[:, :1].numpy()}}, {"dataset": (x, x[:, :1])},
        {"dataset": [(x, x[:, 0])]},
    ]  # fmt: skip
    found = []
    for rows in forms:
        other = model.copy()
        made = decide(other, **rows)
        assert torch.equal(other.sample, model.sample)
        found.append((repr(made), parameters_of(made if isinstance(made, KAN) else other)))
    for answer, state in found[1:]:
        assert answer == found[0][0]
        assert all(torch.equal(value, found[0][1][key]) for key, value in state.items() if isinstance(value, Tensor))


@pytest.mark.parametrize("name", list(DECIDING))
@pytest.mark.parametrize("remembered", [True, False])
def test_too_few_different_rows_are_refused(name: str, remembered: bool) -> None:
    decide, least = DECIDING[name]
    model = network([2, 3, 1], "own")
    few = points(model, least).repeat(1 if least == 1 else 50, 1)
    decide(model.copy(), x=few)
    x = few[:0] if least == 1 else torch.cat([few[: least - 1]] * 50)
    what = "at least one sample, got none" if least == 1 else f"at least {least} different rows, got {least - 1} among"
    before = parameters_of(model)
    if remembered and len(x):
        model.get_act(x)
        with pytest.raises(ValueError, match=rf"model\.sample must have {what}"):
            decide(model)
    with pytest.raises(ValueError, match=f"x must have {what}"):
        decide(model, x=x)
    unchanged(model, before)


@pytest.mark.parametrize("name", list(DECIDING))
def test_a_constant_column_is_no_reason_to_refuse(name: str) -> None:
    model = network([2, 3, 1], "own")
    x = points(model, 100)
    x[:, 1] = 0.25
    DECIDING[name][0](model, x=x)


@pytest.mark.parametrize("name", list(DECIDING))
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"x": torch.rand(20, 3, dtype=D)}, ValueError, r"x must have the shape \[\.\.\., in_features=2\]"),
        ({"x": torch.full((20, 2), np.nan)}, ValueError, "x must be finite"),
        ({"x": "rows"}, TypeError, "x must be"),
        ({"x": [["a", "b"]]}, TypeError, "x must be a torch.Tensor, an array or rows of numbers"),
        ({"dataset": {"test_input": 1}}, ValueError, "dataset must have train_input, got only"),
        ({"dataset": {"train_input": torch.rand(20, 3)}}, ValueError, "x must have the shape"),
        ({"dataset": 3}, TypeError, "dataset must be a dictionary"),
        ({"dataset": (torch.rand(9, 2), torch.rand(9)), "x": torch.rand(9, 2)}, ValueError, "give one of them"),
    ],
)
def test_rows_that_are_none_are_refused(name: str, rows: dict, error: type[Exception], message: str) -> None:
    model = network([2, 3, 1], "own")
    before = parameters_of(model)
    with pytest.raises(error, match=message):
        DECIDING[name][0](model, **rows)
    unchanged(model, before)


@pytest.mark.parametrize("name", list(DECIDING))
def test_without_a_fit_one_warning_says_what_stands_for_data(name: str) -> None:
    model = network([2, 3, 1], "own")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DECIDING[name][0](model)
    (warning,) = caught
    assert warning.category is UserWarning
    assert "there has been no fit" in str(warning.message)
    assert "x=" in str(warning.message)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DECIDING[name][0](model, x=points(model))


@pytest.mark.parametrize("name", list(SHOWING))
@pytest.mark.filterwarnings("error")
def test_pictures_need_no_fit_and_no_warning(name: str) -> None:
    model = network([2, 3, 1], "own")
    model(points(model))
    SHOWING[name](model)
    assert model.sample is None
    matplotlib.pyplot.close("all")


def test_nodes_that_are_chosen_by_hand_need_no_rows() -> None:
    model = network([2, 3, 1], "own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.prune_node(mode="manual", active_neurons_id=[[0, 2]]).width_in == [2, 2, 1]
        assert model.prune_input(active_inputs=[1]).width_in[0] == 1
        model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)


def test_columns_that_are_not_read_do_not_count() -> None:
    model = network([3, 2, 1], "own").prune_input(active_inputs=[0, 2])
    x = points(model, 50)
    x[:, 1] = torch.nan
    model.attribute(x=x)
    x[:, [0, 2]] = 1.0
    with pytest.raises(ValueError, match="got 1 among 50"):
        model.attribute(x=torch.where(x.isnan(), torch.arange(50.0, dtype=D).unsqueeze(1), x))


def test_rows_come_in_the_networks_dtype() -> None:
    model = KAN(width=[2, 1])
    assert rows_for(model, np.linspace(0, 1, 18).reshape(9, 2)).dtype == torch.float32
    assert rows_for(model, torch.arange(18).view(9, 2)).dtype == torch.float32
    assert rows_for(model, dataset=(np.linspace(0, 1, 18).reshape(9, 2), np.arange(9))).dtype == torch.float32
    model.fit((torch.rand(20, 2), torch.rand(20, 1)), steps=1, progress=False)
    assert rows_for(model.double()).dtype == D


# -- rows of all batches -----------------------------------------------------------------------------


def sorted_rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(400, 2) * 2 - 1
    x = x[x[:, 0].argsort()]
    return x, torch.sin(3 * x[:, [0]]) + x[:, [1]] ** 2


@pytest.mark.parametrize("how", ["loader", "list", "batch"])
@pytest.mark.parametrize("opt", ["Adam", "LBFGS"])
def test_grids_hold_the_rows_of_all_batches(opt: str, how: str) -> None:
    x, y = sorted_rows()
    model = KAN([2, 3, 1], grid=5, seed=0)
    batches = list(zip(x.split(50), y.split(50)))
    data = {"loader": DataLoader(TensorDataset(x, y), 50), "list": batches, "batch": (x, y)}[how]
    options = {"batch": 2} if how == "batch" else {}
    model.fit(data, opt=opt, lr=0.02 if opt == "Adam" else 1.0, steps=12, progress=False, **options)
    limits = model.layers[0].knots[:, 3], model.layers[0].knots[:, -4]
    assert ((x >= limits[0]) & (x <= limits[1])).all()
    assert torch.equal(model.sample.sort(0).values, x.sort(0).values)


def test_a_loader_given_as_dataset_counts_with_all_its_batches() -> None:
    x, y = sorted_rows()
    model = KAN([2, 1], grid=4, seed=0)
    loader = DataLoader(TensorDataset(x, y), 50)
    for one, other in zip(model.attribute(dataset=loader).nodes, model.attribute(x=x).nodes, strict=True):
        torch.testing.assert_close(one, other)
    model.update_grid(dataset=loader)
    assert model.layers[0].knots[0, 3] <= x[:, 0].min()
    assert model.layers[0].knots[0, -4] >= x[:, 0].max()


@pytest.mark.parametrize(
    "mask", [[True, False, True], np.array([True, False, True]), torch.tensor([True, False, True])]
)
def test_a_mask_is_not_taken_for_places(mask: object) -> None:
    model = KAN([3, 3, 1], seed=0)
    x = torch.rand(50, 3)
    with pytest.raises(TypeError, match="active_inputs must hold ints, got bools: give the places"):
        model.prune_input(active_inputs=mask, x=x)
    with pytest.raises(TypeError, match="must hold ints, got bools"):
        model.prune_node(mode="manual", active_neurons_id=[mask], x=x)


def test_what_shares_a_layers_tensors_stays_one_function_with_it() -> None:
    torch.manual_seed(0)
    layer, x = KANLinear(2, 3, dtype=D), torch.randn(200, 2, dtype=D)
    traced = torch.jit.trace(layer, x)
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    layer.update_grid(x)
    y = layer(x)
    torch.testing.assert_close(traced(x), y, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.func.functional_call(layer, tensors, (x,)), y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("opt", ["Adam", "LBFGS"])
def test_parameters_that_a_callback_has_replaced_are_trained(opt: str) -> None:
    x, y = sorted_rows()
    model = KAN([2, 3, 1], grid=4, seed=0)

    def widen(model: KAN, step: int, record: object) -> None:
        if step == 1:
            model.expand_width(1, 1)

    options = {"opt": opt, "lr": 0.05 if opt == "Adam" else 1.0, "update_grid": False, "progress": False}
    losses = model.fit((x, y), steps=8, callbacks=[widen], **options)["train_loss"]
    assert losses[-1] < 0.95 * losses[2] < 0.95 * losses[0]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_rounded_once_with_a_scale_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = KANLinear(20, 10, spline_scale=True, dtype=dtype)
    with torch.no_grad():
        layer.spline_weight.normal_()
        layer.spline_scale.normal_()
    x = (torch.rand(50, 20) * 2 - 1).to(dtype)
    wide = KANLinear(20, 10, spline_scale=True, dtype=D)
    wide.load_state_dict(layer.state_dict())
    exact = wide(x.double())
    error = (layer(x).double() - exact).abs().max() / exact.abs().max()
    assert error <= 0.51 * torch.finfo(dtype).eps


def test_residuals_of_one_sign_are_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    x = torch.rand(60, 2)
    KAN([2, 1], seed=0).fit((x, x.sum(1) + 5), loss_fn=torch.nn.functional.l1_loss, steps=1, progress=False)
    assert not [w for w in recwarn if "whichever row" in str(w.message)]
