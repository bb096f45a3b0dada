"""KANLinear as a module: its numbers, options and masks, fresh parameters, and PyTorch's optimizers."""

from __future__ import annotations

import copy

import numpy as np
import oracle
import pytest
import torch
from cases import make_knots
from scipy.interpolate import BSpline
from torch.nn import functional

from fastkan import KANLinear
from fastkan.functional import kan_linear
from fastkan_kernels.autograd import dispatch


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "none"])
@pytest.mark.parametrize("order", range(1, 6))
def test_each_edge_is_a_scipy_spline_and_a_base_function(order: int, base: str) -> None:
    layer = KANLinear(3, 4, grid_size=6, spline_order=order, grid_range=(-2, 1), base=base, dtype=torch.float64)
    x = 3 * torch.rand(50, 3, dtype=torch.float64) - 2
    expected = np.zeros((50, 4))
    knots = np.linspace(-2 - order / 2, 1 + order / 2, 6 + 2 * order + 1)
    np.testing.assert_allclose(layer.knots.numpy(), np.tile(knots, (3, 1)), rtol=1e-14)
    for i in range(3):
        for o in range(4):
            spline = BSpline(knots, layer.spline_weight[:, i, o].detach().numpy(), order)
            expected[:, o] += spline(x[:, i].numpy())
            if base != "none":
                value = getattr(functional, base)(x[:, i]) if base != "identity" else x[:, i]
                expected[:, o] += layer.base_weight[i, o].item() * value.numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 5, 2), (1, 2, 3, 2), (0, 2), (4, 0, 2)], ids=str)
def test_leading_dimensions_are_those_of_nn_linear(shape: tuple[int, ...]) -> None:
    layer, like = KANLinear(2, 7), torch.nn.Linear(2, 7)
    x = (2 * torch.rand(shape) - 1).requires_grad_()
    y = layer(x)
    assert y.shape == like(x).shape
    torch.testing.assert_close(y, layer(x.reshape(-1, 2)).reshape(y.shape), rtol=0, atol=0)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.spline_weight.grad.isfinite().all()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("shape", [(3, 0), (2, 3, 0), (0,), (0, 0)], ids=str)
def test_no_inputs_are_a_sum_over_nothing_and_no_outputs_nothing(shape: tuple[int, ...]) -> None:
    assert torch.equal(KANLinear(0, 4, bias=True)(torch.zeros(shape)), torch.zeros(*shape[:-1], 4))
    assert KANLinear(3, 0)(torch.zeros(*shape[:-1], 3)).shape == (*shape[:-1], 0)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("shape", [(40, 3), (3, 13, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_with_an_identity_and_no_splines_it_is_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = KANLinear(3, 5, base="identity", bias=bias)
    linear = torch.nn.Linear(3, 5, bias=bias)
    with torch.no_grad():
        layer.spline_weight.zero_()
        linear.weight.copy_(layer.base_weight.t())
        if bias:
            linear.bias.copy_(layer.bias.uniform_())
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-5, atol=1e-6)


def test_scale_and_bias_are_what_their_names_say(each_backend: list[str]) -> None:
    layer = KANLinear(3, 5, bias=True, spline_scale=True, dtype=torch.float64)
    x = torch.rand(9, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.spline_scale.normal_()
        layer.bias.normal_()
    y = layer(x)
    edges = np.einsum(
        "nbi,bio->nio", oracle.splines(x.numpy(), layer.knots.numpy(), 3), layer.spline_weight.detach().numpy()
    )
    base = oracle.silu(x.numpy()) @ layer.base_weight.detach().numpy()
    expected = (edges * layer.spline_scale.detach().numpy()).sum(1) + base + layer.bias.detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-13)
    parameters = dict(layer.named_parameters())
    assert set(parameters) == {"spline_weight", "base_weight", "spline_scale", "bias"}

    def function(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values)), x)

    leaves = tuple(p.detach().clone().requires_grad_() for p in parameters.values())
    assert torch.autograd.gradcheck(function, leaves, fast_mode=bool(each_backend))  # launches are interpreted slowly


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("outside", ["zero", "linear"])
def test_the_function_is_the_module(outside: str) -> None:
    layer = KANLinear(3, 5, 7, 2, bias=True, spline_scale=True, outside=outside, base="identity")
    layer.set_mask(torch.rand(3, 5) > 0.4)
    x = 3 * torch.randn(2, 8, 3)
    named = {name: getattr(layer, name) for name in ("knots", "bias", "spline_scale", "mask", "outside", "base")}
    for uniform in (None, True):
        y = kan_linear(x, layer.spline_weight, layer.base_weight, spline_order=2, uniform=uniform, **named)
        assert torch.equal(y, layer(x))
    y = kan_linear(x, layer.spline_weight, layer.base_weight, spline_order=2, uniform=False, **named)
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)


# -- masks ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("each_backend")
def test_an_edge_that_is_off_adds_nothing_and_gets_no_gradient() -> None:
    layer = KANLinear(3, 4, spline_scale=True, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0]], dtype=torch.bool)
    layer.set_mask(mask)
    x = torch.rand(9, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert torch.equal(y[:, 1], torch.zeros(9, dtype=torch.float64))
    y.square().sum().backward()
    for parameter in (layer.spline_weight, layer.base_weight, layer.spline_scale):
        assert (parameter.grad[..., ~mask] == 0).all()
        assert (parameter.grad[..., mask][..., :1] != 0).any()
    assert not layer.mask.requires_grad
    assert "masked=True" in repr(layer)
    zeroed = copy.deepcopy(layer)
    zeroed.set_mask(None)
    with torch.no_grad():
        zeroed.spline_weight.mul_(mask)
        zeroed.base_weight.mul_(mask)
    torch.testing.assert_close(zeroed(x), y, rtol=1e-14, atol=1e-14)
    assert "masked" not in repr(zeroed)
    mask.fill_(True)
    assert not layer.mask.all(), "the layer kept the caller's tensor"


# -- initial parameters, counting, training ---------------------------------------------------------


def splines_of(layer: KANLinear, points: np.ndarray) -> np.ndarray:
    """Every edge's spline at points ``[P, I]``."""
    psi = oracle.splines(points, layer.knots.double().numpy(), layer.spline_order)
    return np.einsum("nbi,bio->nio", psi, layer.spline_weight.detach().double().numpy())


@pytest.mark.parametrize("order", range(1, 6))
def test_fresh_parameters(order: int) -> None:
    layer = KANLinear(40, 30, 8, order, bias=True, spline_scale=True)
    torch.manual_seed(5)
    layer.reset_parameters()
    first = copy.deepcopy(layer.state_dict())
    assert (layer.spline_scale == 1).all()
    assert (layer.bias == 0).all()
    bound = 40**-0.5  # of nn.Linear(40, 30)
    assert 0.99 * bound < layer.base_weight.abs().max() <= bound
    # the splines at G + 1 even points: noise of 0.1 / G, centred
    values = splines_of(layer, np.tile(np.linspace(-1, 1 - 1e-7, 9)[:, None], 40))
    assert 0.99 * 0.05 / 8 < np.abs(values).max() < 1.01 * 0.05 / 8
    assert abs(values.mean()) < 4 * 0.03 / 8 / np.sqrt(values.size)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(value, first[name]) for name, value in layer.state_dict().items())
    layer.reset_parameters()
    assert not torch.equal(layer.spline_weight, first["spline_weight"])


@pytest.mark.parametrize("kind", ["uniform", "adapted", "repeated"])
@pytest.mark.parametrize("order", range(1, 6))
def test_fresh_splines_are_small_on_any_knots(order: int, kind: str) -> None:
    """Even points may fall so on uneven knots that they nearly don't determine a coefficient."""
    layer = KANLinear(200, 3, 8, order)
    layer.set_knots(make_knots(kind, 200, 8, order, torch.float32))
    layer.reset_parameters()
    grid = layer.knots[:, order:-order].double().numpy()
    points = grid[:, 0] + (grid[:, -1] - grid[:, 0]) * np.random.default_rng(0).random((300, 1))
    assert np.abs(splines_of(layer, points)).max() < 10 * 0.05 / 8


@pytest.mark.usefixtures("each_backend")
def test_inputs_outside_are_counted_when_asked() -> None:
    layer = KANLinear(2, 3, grid_range=(0, 2))
    with pytest.raises(RuntimeError, match="count_outside"):
        layer.outside_share()
    layer(torch.full((5, 2), 9.0))  # before anyone asked
    layer.count_outside()
    layer(torch.tensor([[0.0, -0.1], [2.0, 1.0]]))
    layer(torch.tensor([[[2.1, torch.nan], [1.0, -3.0]]]))
    assert torch.equal(layer.outside_share(), torch.tensor([0.25, 0.75]))
    assert not any("count" in name for name in layer.state_dict())
    layer.count_outside()
    layer(torch.ones(1, 2))
    assert torch.equal(layer.outside_share(), torch.zeros(2))
    layer.count_outside(False)
    with pytest.raises(RuntimeError, match="count_outside"):
        layer.outside_share()


@pytest.mark.parametrize("change", [lambda layer: layer.double(), copy.deepcopy, lambda layer: layer.to("cpu")])
def test_counts_survive_changes_of_the_layer(change) -> None:
    layer = KANLinear(2, 3, grid_range=(0, 2))
    layer.count_outside()
    layer(torch.tensor([[0.0, -0.1], [2.0, 1.0]]))
    assert torch.equal(change(layer).outside_share(), torch.tensor([0.0, 0.5]))
    assert list(dict(layer.named_buffers())) == ["knots"]
    assert layer.to("meta")._outside_count.is_meta


def test_it_says_what_it_is() -> None:
    for layer, words in (
        (KANLinear(2, 3), "2, 3, grid_size=5, spline_order=3"),
        (KANLinear(2, 3, 7, 2, base="none"), "2, 3, grid_size=7, spline_order=2, base='none'"),
        (KANLinear(2, 3, bias=True, spline_scale=True), "grid_size=5, spline_order=3, bias=True, spline_scale=True"),
        (KANLinear(2, 3, outside="linear"), "2, 3, grid_size=5, spline_order=3, outside='linear'"),
    ):
        assert words in repr(layer)


def test_lbfgs_steps() -> None:
    """It views gradients flat, and calls the closure many times."""
    network = torch.nn.Sequential(KANLinear(2, 5, bias=True, spline_scale=True), KANLinear(5, 1)).double()
    network[0].set_mask(torch.ones(2, 5))
    x = torch.rand(200, 2, dtype=torch.float64)
    target = torch.sin(3 * x[:, :1]) * x[:, 1:]
    optimizer = torch.optim.LBFGS(network.parameters(), line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (network(x) - target).square().mean()
        value.backward()
        return value

    before = loss().item()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in network.parameters())
    optimizer.step(loss)
    assert loss().item() < before / 20


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("inputs", [2, 40], ids=["small", "large"])
@pytest.mark.parametrize("low", [10.0, 1000.0])
def test_a_grid_far_from_0_loses_no_more_than_its_knots_have(low: float, inputs: int) -> None:
    """Splines add up to 1 wherever they are counted from; a float32 near 1000 is off by 6e-5 itself."""
    layer = KANLinear(inputs, 1, 5, grid_range=(low, low + 1), base="none")
    torch.nn.init.ones_(layer.spline_weight)
    x = low + torch.rand(1000, inputs)
    assert (layer(x) / inputs - 1).abs().max() < 1e-6


def test_a_step_by_triton_is_made_of_launches(each_backend: list[str]) -> None:
    """F, G and H: else no test that runs on both backends would prove much."""
    layer, x = KANLinear(3, 4), torch.rand(5, 3, requires_grad=True)
    layer(x).sum().backward()
    assert len(each_backend) in (0, 3)
    assert (len(each_backend) == 3) == (dispatch._AUTO["cpu"] == "triton" or x.is_cuda)


def test_a_fresh_layer_takes_one_small_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all edges, not one for each: KANs that take minutes to make are on record."""
    solves: list[torch.Size] = []
    for name in ("pinv", "lstsq", "solve"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda a, *r, f=real, **k: (solves.append(a.shape), f(a, *r, **k))[1])
    KANLinear(256, 16, 100)
    assert set(solves) == {(1, 101, 103)}
    assert len(solves) <= 2
