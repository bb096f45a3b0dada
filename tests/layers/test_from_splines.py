"""``KANLinear.from_splines``: the function that the tensors define, and arguments that do not fit together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from fastkan import KANLinear

D = torch.float64
KNOTS = torch.linspace(-2, 2, 11)
COEFFICIENTS = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("rows", [True, False], ids=["a row for each input", "one row"])
def test_the_values_are_scipy_s(order: int, rows: bool) -> None:
    draw = np.random.default_rng(order)
    count = 4 + order
    knots = np.sort(draw.uniform(-2, 2, (3, count + order + 1)), 1)
    knots = knots if rows else knots[0]
    coefficients, base, scale, bias = (draw.normal(size=s) for s in ((count, 3, 2), (3, 2), (3, 2), (2,)))
    layer = KANLinear.from_splines(knots, coefficients, base, scale, bias)
    assert (layer.grid_size, layer.spline_order, layer.spline_weight.dtype) == (4, order, D)
    x = draw.uniform(-1, 1, (20, 3))
    expected = np.zeros((20, 2)) + bias
    for i in range(3):
        t = knots[i] if rows else knots
        padded = np.concatenate([t[:1] - np.arange(order, 0, -1), t, t[-1:] + np.arange(1, order + 1)])
        for o in range(2):
            c = np.concatenate([np.zeros(order), coefficients[:, i, o], np.zeros(order)])
            z = x[:, i]
            expected[:, o] += scale[i, o] * BSpline(padded, c, order)(z) + base[i, o] * z / (1 + np.exp(-z))
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), expected, rtol=1e-10, atol=1e-10)


def test_nothing_is_shared_and_parts_may_be_left_out() -> None:
    state = torch.get_rng_state()
    layer = KANLinear.from_splines(KNOTS, COEFFICIENTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert (layer.base, layer.base_weight, layer.spline_scale, layer.bias) == ("none", None, None, None)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    with torch.no_grad():
        layer.spline_weight.zero_()
    assert COEFFICIENTS.any()
    lists = KANLinear.from_splines(KNOTS.tolist(), COEFFICIENTS.tolist(), EDGES.tolist(), base="gelu", outside="linear")
    assert (lists.base, lists.outside, lists.spline_weight.dtype) == ("gelu", "linear", torch.float32)
    half = KANLinear.from_splines(KNOTS, COEFFICIENTS.half(), EDGES)
    assert (half.base_weight.dtype, half.knots.dtype) == (torch.float16, torch.float32)
    assert KANLinear.from_splines(KNOTS, torch.ones(7, 2, 5, dtype=torch.int64)).spline_weight.dtype == torch.float32


class Own(KANLinear):
    pass


def test_a_subclass_makes_its_own() -> None:
    layer = Own.from_splines(KNOTS, COEFFICIENTS, EDGES)
    assert type(layer) is Own
    assert repr(layer) == "Own(2, 5, grid_size=4, spline_order=3)"
    assert layer.grid is layer.knots


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knots": KNOTS[:6]}, r"knots must have G \+ 2k \+ 1 columns for G \+ k coefficients.*got 6 columns for 7"),
        ({"knots": torch.linspace(0, 1, 14)}, "with k from 1 to 5; got 14 columns for 7 coefficients"),
        ({"knots": KNOTS.expand(3, -1)}, r"knots must have the shape \[2, G \+ 2k \+ 1\], got \[3, 11\]"),
        ({"knots": KNOTS.flip(0)}, "knots must be non-decreasing"),
        ({"knots": KNOTS * torch.nan}, "knots must be finite"),
        ({"knots": torch.zeros(11)}, "the grid must have a width"),
        ({"knots": None}, "knots must be a tensor, an array or lists of numbers, got NoneType"),
        ({"coefficients": COEFFICIENTS[0]}, r"coefficients must have the shape \[G \+ k, in, out\], got \[2, 5\]"),
        ({"coefficients": COEFFICIENTS.to("meta")}, "coefficients must have values, got a tensor on meta"),
        ({"coefficients": COEFFICIENTS > 0}, "coefficients must be a dense tensor of real numbers, got torch.bool"),
        ({"base_weight": EDGES.t()}, r"base_weight must have the shape \[2, 5\], got \[5, 2\]"),
        ({"scale": EDGES[0]}, r"scale must have the shape \[2, 5\], got \[5\]"),
        ({"bias": EDGES}, r"bias must have the shape \[5\], got \[2, 5\]"),
        ({"base": "relu"}, "base must be one of"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        KANLinear.from_splines(**{"knots": KNOTS, "coefficients": COEFFICIENTS, "base_weight": EDGES, **change})
