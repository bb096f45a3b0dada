"""The layer's dtypes: what stays float32 in a half layer, and what autocast rounds."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from cases import assert_within, make_knots
from oracle import Example
from torch import nn

from fastkan import KANLinear
from fastkan_kernels import Basis

HALVES = [torch.float16, torch.bfloat16]


def operands(layer: KANLinear, x: torch.Tensor, g: torch.Tensor | None = None) -> tuple[Example, Basis]:
    """Compare a layer without scale, mask and bias with the oracle."""
    g = torch.zeros(len(x), layer.out_features) if g is None else g
    o = Example(x, layer.knots, None, layer.spline_weight, layer.base_weight, g)
    return o, Basis(layer.spline_order, layer.base, "adapted" not in repr(layer))


def assert_layer(layer: KANLinear, x: torch.Tensor, y: torch.Tensor) -> None:
    """Within the budget of whatever way there is, and the rounding of a half result."""
    o, basis = operands(layer, x)
    (exact,) = oracle.exact("F", o, basis)
    (bound,) = oracle.budget("F", o, basis, 0, "any", sums=True)
    once = torch.finfo(y.dtype).eps / 2 * np.abs(exact) * 1.001 if y.dtype in HALVES else 0.0
    assert_within(y, exact, bound + once)


@pytest.mark.parametrize("moved", [False, True], ids=["made", "moved"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype, moved: bool) -> None:
    layer = KANLinear(3, 5, 30).to(dtype) if moved else KANLinear(3, 5, 30, dtype=dtype)
    assert layer.knots.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = (2.4 * torch.rand(60, 3, dtype=torch.float64) - 1.2).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    assert_layer(layer, x, y)
    y.sum().backward()
    assert {x.grad.dtype, layer.spline_weight.grad.dtype, layer.base_weight.grad.dtype} == {dtype}


def test_knots_stay_float32_through_half_precision() -> None:
    layer = KANLinear(2, 3, 100)
    before = layer.knots.clone()
    for dtype in (*HALVES, torch.float32):
        layer.to(dtype)
        assert layer.spline_weight.dtype == dtype
        assert layer.knots.dtype == torch.float32
        assert torch.equal(layer.knots, before)
    assert "adapted" not in repr(layer)


def test_a_widened_layer_is_not_taken_for_uniform() -> None:
    """float32 knots are off by 1e-8 in float64, and a closed form on equal ones would be as well."""
    layer = KANLinear(2, 3, 7).double()
    x = (2 * torch.rand(50, 2, dtype=torch.float64) - 1).requires_grad_()
    assert "adapted" in repr(layer)
    y = layer(x)
    assert_layer(layer, x, y)
    layer.float()
    assert "adapted" not in repr(layer)


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("grid", [5, 64])
def test_autocast_rounds_features_and_weights_and_not_x(grid: int, dtype: torch.dtype) -> None:
    """Each feature is off by half an ulp, below 1.8e-3 in bfloat16, then the output; of a rounded x it is 3.5e-2."""
    layer = KANLinear(1, grid + 3, grid, base="none")
    with torch.no_grad():
        layer.spline_weight.copy_(torch.eye(grid + 3).unsqueeze(1))  # each output is one feature
    x = 2 * torch.rand(4000, 1) - 1
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    exact = oracle.splines(x.double().numpy(), layer.knots.double().numpy(), 3)[..., 0]
    half_ulp = torch.finfo(dtype).eps / 2
    assert_within(y, exact, (2 + half_ulp) * half_ulp * exact + 1e-4 * half_ulp + 3e-5)
    assert np.abs(y.detach().float().numpy() - exact).max() > half_ulp / 8, "nothing was rounded"


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)],
                         ids=["eager", "compiled"])  # fmt: skip
@pytest.mark.parametrize("knots", ["shared", "adapted"])
@pytest.mark.parametrize("outside", ["zero", "linear"])
def test_autocast_forward_and_gradients(outside: str, knots: str, wrap) -> None:
    """Each product has two roundings of half an ulp, forward and backward, and the output has a third one."""
    layer = KANLinear(4, 6, 9, outside=outside)
    layer.set_knots(make_knots(knots, 4, 9, 3, torch.float32))
    with torch.no_grad():
        layer.spline_weight.normal_()
    grid = layer.knots[:, 3:-3]
    x = torch.lerp(grid[:, 0], grid[:, -1], torch.rand(50, 4) * 0.98 + 0.01).requires_grad_()
    g = torch.randn(50, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = wrap(layer)(x)
    assert y.dtype == torch.bfloat16
    found = {"F": (y,)}
    y.backward(g)
    found |= {"G": (layer.spline_weight.grad, layer.base_weight.grad), "H": (x.grad,)}
    o, basis = operands(layer, x, g.float())
    for name, derivative in (("F", 0), ("G", 0), ("H", 1)):
        truth = oracle.exact(name, o, basis, derivative)
        a = o.array()
        psi, base = oracle.splines(a.x, a.knots, basis.order, derivative), oracle.base_function(a.x, "silu", derivative)
        sizes = oracle.contract(name, a.map(np.abs), np.abs(psi), np.abs(base))
        rounding = oracle.budget(name, o, basis, derivative, "any", sums=True)
        for value, exact, size, bound in zip(found[name], truth, sizes, rounding, strict=True):
            output = 2**-9 * np.abs(exact) if name == "F" else 0.0
            assert_within(value, exact, 2.1 * 2**-9 * size + output + bound, name)


@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=["half", "bfloat16", "single", "double"])
def test_autocast_returns_what_a_linear_layer_returns(outside: str, dtype: torch.dtype) -> None:
    """The dtype of autocast, except for float64, which autocast leaves alone."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    layer = KANLinear(3, 4, outside=outside, bias=True, dtype=parameters)
    linear = nn.Linear(3, 4, dtype=parameters)
    x = torch.rand(5, 3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == linear(x).dtype == (dtype if dtype == torch.float64 else torch.bfloat16)
        assert layer(x[:0]).dtype == layer(x[0]).dtype == linear(x).dtype
    assert layer(x.to(parameters)).dtype == parameters
