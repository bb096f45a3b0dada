"""Spline edges in formulas as functions phi_l_i_j, which sympy evaluates, compiles and differentiates."""

from __future__ import annotations

import pickle
import random
import warnings
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from formula_cases import ROWS, WIDTHS, assert_equal, network, of_formulas, randomized
from spline_cases import shaped

from fastkan import KAN
from fastkan.symbolic.expressions import named_edge, taylor_pieces

D = torch.float64


def quiet(model: KAN, **options: Any) -> tuple[list[Any], list[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.symbolic_formula(**options)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_formulas_with_splines_equal_the_forward_inside_and_outside_the_grid(width: list[Any], seed: int) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    x = 3 * torch.randn(ROWS, width[0], dtype=D)
    model = network(choose, width, width[0])
    model.layers[0].update_grid(torch.randn(50, width[0], dtype=D), grid_eps=0.3)
    x[:8] = (
        model.layers[0].knots[:, :8].t()[:, model.input_id.argsort()].repeat(8, 1)[:8]
    )  # some samples are exactly on knots
    randomized(model, x, choose, formula=0.4, spline=0.6)
    expected = model(x).detach()
    assert_equal(of_formulas(*quiet(model), x), expected)
    assert_equal(torch.from_numpy(model.formula_numpy()(x)), expected)
    assert_equal(torch.from_numpy(model.formula_numpy(digits=15)(x)), expected)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("base", ["silu", "identity", "zero"])
def test_values_and_derivatives_of_one_edge(order: int, outside: str, base: str) -> None:
    model = KAN(width=[1, 1], grid=4, k=order, base_fun=base, noise_scale=5.0, dtype=D)
    model.layers[0].outside = outside
    knots = model.layers[0].knots[0]
    x = torch.cat([knots, torch.linspace(-2.5, 2.5, 301, dtype=D), torch.tensor([-1e3, 1e3], dtype=D)]).unsqueeze(1)
    (formula,), (symbol,) = quiet(model)
    assert formula == formula.func(symbol)
    assert_equal(of_formulas([formula], [symbol], x), model(x).detach())
    at = torch.linspace(-0.97, 0.94, 40, dtype=D).unsqueeze(1).requires_grad_()
    value = model(at)
    for _ in range(min(order, 3)):
        (value,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        formula = formula.diff(symbol)
        assert not formula.has(sympy.Derivative)
        assert_equal(of_formulas([formula], [symbol], at.detach()), value.detach())
    assert formula.func.__name__ == f"phi_0_0_0_d{min(order, 3)}"


def test_nan_and_infinities_are_the_forwards() -> None:
    for base, outside in (("silu", "zero"), ("identity", "zero"), ("zero", "zero"), ("silu", "linear")):
        model = KAN(width=[1, 1], base_fun=base, noise_scale=3.0, dtype=D)
        model.layers[0].outside = outside
        x = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [0.3]], dtype=D)
        found = model.formula_numpy()(x)
        np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("base", ["silu", "identity", "zero"])
@pytest.mark.parametrize("weight", ["drawn", "constant"])  # a constant spline has tangents of slope 0
def test_derivatives_at_nan_and_infinities_are_the_forwards(outside: str, base: str, weight: str) -> None:
    model = KAN(width=[1, 1], base_fun=base, noise_scale=3.0, dtype=D)
    layer = model.layers[0]
    layer.outside = outside
    if weight == "constant":
        with torch.no_grad():
            layer.spline_weight.fill_(0.5)
    x = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [0.3]], dtype=D, requires_grad=True)
    (formula,), (symbol,) = quiet(model)
    value = model(x)
    for power in range(3):
        if power:
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            formula = formula.diff(symbol)
        assert formula == formula.func(symbol)
        found = formula.func._imp_(x.detach().numpy())
        np.testing.assert_allclose(found, value.detach().numpy(), rtol=1e-9, atol=1e-12)
        if not power:
            for row, expected in zip(x[1:].tolist(), value[1:, 0].tolist()):
                constant = named_edge("phi", layer, taylor_pieces(layer), 0, 0, sympy.Float(row[0]))
                assert float(constant) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_sympy_evaluates_substitutes_and_compiles() -> None:
    model = KAN(width=[2, 2, 1], noise_scale=3.0, seed=3, dtype=D)
    x = torch.rand(20, 2, dtype=D) * 2 - 1
    (formula,), variables = quiet(model, var=["a", "b"])
    assert "phi_0_0_1(a)" in str(formula)
    assert "phi_1_1_0(" in str(formula)
    for row, y in zip(x[:5].tolist(), model(x[:5]).flatten().tolist()):
        assert float(formula.subs(dict(zip(("a", "b"), row))).evalf()) == pytest.approx(y, rel=1e-12)
        assert float(formula.evalf(subs=dict(zip(variables, row)))) == pytest.approx(y, rel=1e-12)
    function = sympy.lambdify(sympy.symbols("a b"), formula)
    np.testing.assert_allclose(function(*x.numpy().T), model(x).detach()[:, 0], rtol=1e-12)
    assert r"\phi_{0 0 0}" in sympy.latex(formula)
    again = pickle.loads(pickle.dumps(formula))
    np.testing.assert_allclose(sympy.lambdify(variables, again)(*x.numpy().T), model(x).detach()[:, 0], rtol=1e-12)
    gradient = torch.autograd.functional.jacobian(lambda rows: model(rows).sum(), x)
    for column, variable in enumerate(variables):
        slope = sympy.lambdify(variables, formula.diff(variable))
        np.testing.assert_allclose(slope(*x.numpy().T), gradient[:, column], rtol=1e-9, atol=1e-12)


def test_functions_of_one_name_are_told_apart_by_what_they_compute() -> None:
    """sympy caches results by equality of functions, so functions of two models must differ."""
    x = torch.rand(20, 1, dtype=D)
    models = [KAN(width=[1, 1], noise_scale=3.0, seed=seed, dtype=D) for seed in (0, 1)]
    formulas = [quiet(model)[0][0] for model in models]
    assert formulas[0] != formulas[1]
    assert str(formulas[0]) == str(formulas[1]) == "phi_0_0_0(x_1)"
    for model, formula in zip(models, formulas):
        assert_equal(of_formulas([formula], [sympy.Symbol("x_1")], x), model(x).detach())
        assert quiet(model)[0][0] == formula
    before = models[0](x).detach()
    with torch.no_grad():
        models[0].layers[0].spline_weight.mul_(2)
    assert quiet(models[0])[0][0] != formulas[0]
    # a formula doesn't follow later changes of the model
    assert_equal(of_formulas([formulas[0]], [sympy.Symbol("x_1")], x), before)


def test_a_warning_names_the_edges_and_what_fits_each_best() -> None:
    model = shaped(lambda x: torch.sin(3 * x), lambda x: torch.sin(20 * x**3) + 0.3 * x.abs().sqrt())
    model.fix_symbolic(0, 0, 0, "sin", verbose=False)
    with pytest.warns(UserWarning, match=r"phi_0_1_0 \(best is \w+, R2 0\.\d{4}\)") as caught:
        model.symbolic_formula()
    (warning,) = caught
    assert warning.filename == __file__
    assert "phi_0_0_0" not in str(warning.message)
    for help in ("auto_symbolic(force=True)", "fix_symbolic", "remove_edge", "numeric='piecewise'"):
        assert help in str(warning.message)
    many = KAN(width=[4, 3, 1])
    with pytest.warns(UserWarning, match=r"phi_0_3_0 .* and 5 more\. "):
        many.formula_latex()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.formula_numpy()
        model.symbolic_formula(numeric="piecewise")
        model.auto_symbolic(force=True, verbose=0)
        model.symbolic_formula()


def test_rounding_leaves_splines_as_they_are() -> None:
    model = KAN(width=[2, 1], noise_scale=3.0, dtype=D)
    x = torch.rand(30, 2, dtype=D)
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    with torch.no_grad():
        model.symbolic[0].affine.copy_(torch.tensor([[1.23456, 0, 1, 0]]))
    formulas, variables = quiet(model, digits=2)
    assert str(formulas[0]) == "phi_0_1_0(x_2) + sin(1.2*x_1)"
    spline = model(x)[:, 0] - (1.23456 * x[:, 0]).sin()
    found = of_formulas(formulas, variables, x)[:, 0] - (1.2 * x[:, 0]).sin()
    assert (found - spline).abs().max() < 1e-7  # the affine map is computed in float32 in the model
    quiet(model, digits="auto", simplify=True)
