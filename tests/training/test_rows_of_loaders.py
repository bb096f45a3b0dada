"""Decisions about a network go by all rows that it was trained on, however they came; and what shares a layer's tensors
stays one function with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastkan import KAN, KANLinear

D = torch.float64


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
