"""Formulas of networks with spline edges, as exact polynomials on their cells."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import sympy
import torch
from formula_cases import ROWS, WIDTHS, assert_equal, fixed, network, of_formulas, randomized
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkan import KAN


@pytest.mark.parametrize("width", [*WIDTHS[:3], [1, [1, 1], 1]], ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_pieces_equal_the_forward_inside_and_outside_the_grid(width: list[Any], seed: int) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    x = 3 * torch.randn(ROWS, width[0], dtype=torch.float64)
    model = network(choose, width, width[0])
    model.layers[0].update_grid(torch.randn(50, width[0], dtype=torch.float64), grid_eps=0.3)
    x[:8] = (
        model.layers[0].knots[:, :8].t()[:, model.input_id.argsort()].repeat(8, 1)[:8]
    )  # some samples are exactly on knots
    randomized(model, x, choose, formula=0.3, spline=0.6)
    expected = model(x).detach()
    assert_equal(torch.from_numpy(model.formula_numpy(numeric="piecewise")(x)), expected)
    if len(width) < 3:
        assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), x), expected)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("base", ["silu", "identity", "zero"])
def test_pieces_of_one_edge(order: int, outside: str, base: str) -> None:
    model = KAN(width=[1, 1], grid=4, k=order, base_fun=base, noise_scale=5.0, dtype=torch.float64)
    model.layers[0].outside = outside
    knots = model.layers[0].knots[0]
    ends = torch.tensor([-1e3, -5.0, 5.0, 1e3], dtype=torch.float64)
    x = torch.cat([knots, torch.linspace(-2.5, 2.5, 301, dtype=torch.float64), ends]).unsqueeze(1)
    assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), x), model(x).detach())


def test_pieces_are_right_continuous() -> None:
    """At a knot where the spline jumps, the formula has the value of the cell to the right."""
    for _ in range(5):
        model = KAN(width=[1, 1], grid=4, k=1, base_fun="zero", noise_scale=5.0, dtype=torch.float64)
        knots = model.layers[0].knots + torch.rand(1, dtype=torch.float64)
        knots[0, 3] = knots[0, 2]
        model.layers[0].set_knots(knots)
        on = knots[:1, 2:3]
        x = torch.cat([torch.nextafter(on, on - 1), on, torch.nextafter(on, on + 1)])
        y = model(x).detach()
        assert (y[1] - y[0]).abs() > 0.01
        assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), x), y)


def test_pieces_far_from_zero_keep_their_digits() -> None:
    """Far from 0 the formula keeps its digits; polynomials in x itself would lose nine of them."""
    model = KAN(width=[1, 1], grid=5, k=3, grid_range=(1000, 1001), noise_scale=5.0, dtype=torch.float64)
    x = torch.linspace(999, 1002, 500, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        model.layers[0].base_weight.zero_()
    error = of_formulas(*model.symbolic_formula(numeric="piecewise"), x) - model(x).detach()
    assert error.abs().max() < 1e-11 * model(x).abs().max()


def test_pieces_of_pieces_take_no_minutes() -> None:
    model = KAN(width=[2, 5, 5, 1], noise_scale=3.0, dtype=torch.float64)
    x = torch.randn(50, 2, dtype=torch.float64)
    (formula,), variables = model.symbolic_formula(numeric="piecewise")
    assert formula.has(sympy.Piecewise)
    assert variables == [sympy.Symbol("x_1"), sympy.Symbol("x_2")]
    assert_equal(torch.from_numpy(model.formula_numpy(numeric="piecewise")(x)), model(x).detach())


def test_a_formula_of_pieces_can_be_used_in_sympy() -> None:
    model = KAN(width=[1, 2, 1], grid=2, k=2, noise_scale=3.0, dtype=torch.float64)
    (formula,), (x,) = model.symbolic_formula(numeric="piecewise")
    for at in (-3.0, -0.4, 0.5):
        expected = model(torch.tensor([[at]], dtype=torch.float64)).item()
        assert float(formula.xreplace({x: sympy.Float(at)})) == pytest.approx(expected, rel=1e-10)
    single = KAN(width=[1, 1], grid=2, k=2, base_fun="zero", noise_scale=3.0, dtype=torch.float64)
    (formula,), (x,) = single.symbolic_formula(numeric="piecewise")
    at = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(single(at).sum(), at)
    assert float(formula.diff(x).subs(x, 0.3)) == pytest.approx(slope.item(), rel=1e-10)


def test_an_edge_that_is_both_is_the_sum() -> None:
    model = KAN(width=[1, 1], noise_scale=3.0, dtype=torch.float64)
    x = torch.randn(50, 1, dtype=torch.float64)
    spline = model(x).detach()
    model.symbolic[0].fix(0, 0, "sin")
    found = torch.from_numpy(model.formula_numpy(numeric="piecewise")(x))
    assert_equal(found, spline + x.sin())


def test_numeric_edges_are_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fixed([2, [1, 1], 1], (0, 0, 0, "sin"), mult_arity=3)
    for layer, i, j in ((0, 0, 0), (0, 1, 3), (1, 1, 0)):
        mask = model.layers[layer].mask.clone()
        mask[i, j] = 1
        model.layers[layer].set_mask(mask)
    monkeypatch.setattr("fastkan.symbolic.formula.default_rows", lambda model: pytest.fail("rows were read"))
    for ask in (model.symbolic_formula, model.formula_latex, model.formula_numpy):
        with pytest.raises(ValueError, match="without spline edges") as caught:
            ask(digits="auto", numeric="raise")
        message = str(caught.value)
        assert re.findall(r"\(\d, \d, \d\)", message) == ["(0, 0, 0)", "(0, 1, 3)", "(1, 1, 0)"]
        for help in ("auto_symbolic", "fix_symbolic", "remove_edge", "numeric='functions'", "numeric='piecewise'"):
            assert help in message
