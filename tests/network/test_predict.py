"""``KAN.predict``: the forward pass for arrays, without gradients and in bounded memory; arrays in all other places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastkan import KAN, create_dataset
from fastkan.network import trace as tracing

X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(dtype: torch.dtype = torch.float32) -> KAN:
    return KAN([2, 3, 1], seed=0, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("given", ["tensor", "array", "float64", "list", "frame", "integers"])
def test_outputs_are_those_of_the_forward_pass(given: str, dtype: torch.dtype) -> None:
    model, x = network(dtype), X.round() if given == "integers" else X
    makers: dict[str, Any] = {
        "tensor": lambda: x, "array": x.numpy, "float64": x.double().numpy, "list": x.tolist,
        "frame": lambda: pytest.importorskip("pandas").DataFrame(x.numpy()), "integers": x.int().numpy,
    }  # fmt: skip
    found = model.predict(makers[given]())
    expected = model(x.to(dtype)).detach()
    assert isinstance(found, Tensor if given == "tensor" else np.ndarray)
    if given != "tensor":
        assert found.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        found = torch.from_numpy(found)
    assert torch.equal(found.to(dtype), expected)
    assert not found.requires_grad


def test_leading_dimensions_empty_inputs_and_nan() -> None:
    model = network()
    assert model.predict(X.view(5, 10, 2).numpy()).shape == (5, 10, 1)
    assert model.predict([0.1, 0.2]).shape == (1,)
    assert model.predict(np.zeros((0, 2))).shape == (0, 1)
    assert np.isnan(model.predict([[0.1, np.nan], [0.1, 0.2]])[:, 0]).tolist() == [True, False]


def test_rows_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = network(), []
    expected = model.predict(X)
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(tracing, "PREDICTED_VALUES", 24)
    torch.testing.assert_close(model.predict(X), expected)
    assert sizes == [8] * 6 + [2]


def test_evaluation_mode_is_used_and_the_mode_of_each_module_is_restored() -> None:
    model = network()
    model.extra = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    model.extra[1].eval()
    model.register_forward_hook(lambda module, _, y: module.extra(y))
    assert np.array_equal(model.predict(X.numpy()), model.predict(X.numpy()))
    assert [module.training for module in (model, *model.extra)] == [True, True, False]
    with pytest.raises(ValueError, match=r"x must have the shape \[..., in_features=2\], got \[3\]"):
        model.predict([1.0, 2.0, 3.0])
    assert model.training


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([["a", "b"]], TypeError, "x must be a torch.Tensor, an array or rows of numbers"),
        (np.array([["a", "b"]]), TypeError, "x must be of real numbers, got text$"),
        (np.zeros((2, 3)), ValueError, r"x must have the shape \[..., in_features=2\], got \[2, 3\]"),
        (None, TypeError, "x must be a torch.Tensor or a NumPy array, got NoneType"),
    ],
)
def test_bad_inputs_are_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        network().predict(x)


@pytest.mark.parametrize("kind", ["array", "frame", "list"])
def test_methods_take_data_in_every_form(kind: str) -> None:
    """Each method gives the same for an array, a DataFrame and a list as for a tensor."""
    pandas = pytest.importorskip("pandas")
    x: Any = {"array": X.numpy(), "frame": pandas.DataFrame(X.numpy()), "list": X.tolist()}[kind]
    calls: dict[str, Any] = {
        "trace": lambda m, x: m.trace(x)[-1].out,
        "get_act": lambda m, x: m.get_act(x)[-1].out,
        "attribute": lambda m, x: m.attribute(x=x).nodes[0],
        "get_reg": lambda m, x: m.get_reg(x=x),
        "prune": lambda m, x: m.prune(x=x)(X),
        "refine": lambda m, x: m.refine(6, x=x)(X),
        "update_grid": lambda m, x: (m.update_grid(x), m(X))[1],
        "fix_symbolic": lambda m, x: (m.fix_symbolic(0, 0, 0, "sin", x=x, verbose=False), m(X))[1],
    }
    for name, call in calls.items():
        assert torch.equal(call(network(), x), call(network(), X)), name


def test_a_module_names_what_to_call_with_an_array() -> None:
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got ndarray: use model\.predict\(x\)"):
        network()(X.numpy())
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got ndarray: torch\.from_numpy\(array\) makes one"):
        network().layers[0](X.numpy())


def test_a_dataset_of_a_function_that_returns_an_array() -> None:
    found = create_dataset(lambda x: np.sin(x.numpy()).sum(1), n_var=2, train_num=20)
    expected = create_dataset(lambda x: torch.sin(x).sum(1), n_var=2, train_num=20)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
