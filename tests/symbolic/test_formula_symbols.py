"""Formulas in sympy: substitution by name, and correct results of sympy's operations."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from formula_cases import ROWS, assert_equal, fixed, network, of_formulas, randomized

from fastkan import KAN

X1, X2 = sympy.symbols("x_1 x_2")


def article() -> KAN:
    """exp(sin(3 x_1) + x_2^2 / 2)."""
    return fixed([2, 1, 1], (0, 0, 0, "sin", (3, 0, 1, 0)), (0, 1, 0, "x^2", (1, 0, 0.5, 0)), (1, 0, 0, "exp"))


@pytest.mark.parametrize(
    "put",
    [
        {"x_1": 0.3, "x_2": -0.4},
        {X1: 0.3, X2: -0.4},
        [("x_1", 0.3), ("x_2", -0.4)],
    ],
    ids=["names", "symbols", "pairs"],
)
def test_subs(put: Any) -> None:
    (formula,), _ = article().symbolic_formula()
    assert float(formula.subs(put)) == pytest.approx(math.exp(math.sin(0.9) + 0.08), rel=1e-12)


def test_names_that_are_given_are_met_too() -> None:
    (formula,), variables = article().symbolic_formula(var=["Age", "BMI"])
    assert variables == list(sympy.symbols("Age BMI"))
    assert float(formula.subs({"Age": 0.3, "BMI": -0.4})) == pytest.approx(math.exp(math.sin(0.9) + 0.08), rel=1e-12)
    positive = sympy.Symbol("t", positive=True)
    (formula,), _ = article().symbolic_formula(var=[positive, "u"])
    assert formula.free_symbols == {positive, sympy.Symbol("u")}


def test_diff() -> None:
    model = article()
    x = torch.tensor([[0.3, -0.4]], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(model(x).sum(), x)
    (formula,), _ = model.symbolic_formula()
    for name, slope in zip(("x_1", "x_2"), slopes[0].tolist()):
        found = sympy.diff(formula, sympy.Symbol(name)).subs({"x_1": 0.3, "x_2": -0.4})
        assert float(found) == pytest.approx(slope, rel=1e-12)


def test_solve() -> None:
    model = fixed([1, 1], (0, 0, 0, "x^2", (1, 0.5, 2, -8)))
    (formula,), _ = model.symbolic_formula()
    assert sorted(map(float, sympy.solve(formula, sympy.Symbol("x_1")))) == [-2.5, 1.5]


def test_sympify_of_the_text_is_the_formula() -> None:
    (formula,), _ = article().symbolic_formula()
    assert sympy.sympify(str(formula)) == formula
    for seed in range(10):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        x = torch.randn(ROWS, 2, dtype=torch.float64)
        model = randomized(network(choose, [2, 2], 2), x, choose, formula=1, spline=0)
        for formula in model.symbolic_formula(digits=4)[0]:
            assert sympy.sympify(str(formula)) == formula
            assert sympy.sympify(str(formula)) - formula == 0


def test_lambdify_by_new_symbols_of_the_same_names() -> None:
    model = article()
    x = torch.randn(20, 2, dtype=torch.float64)
    function = sympy.lambdify(sympy.symbols("x_1 x_2"), model.symbolic_formula()[0][0])
    np.testing.assert_allclose(function(*x.numpy().T), model(x).detach()[:, 0], rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"digits": 5}, {"digits": "auto"}, {"simplify": True}, {"var": ["a", "b"]},
                                     {"normalizer": [[1, 2], [3, 4]]}], ids=str)  # fmt: skip
def test_symbols_are_plain_in_every_case(options: dict[str, Any]) -> None:
    model = article()
    model.get_act(torch.randn(50, 2, dtype=torch.float64))
    (formula,), variables = model.symbolic_formula(**options)
    assert formula.free_symbols == set(variables)
    assert variables == list(sympy.symbols(options.get("var", ["x_1", "x_2"])))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("width", [[1, 1, 1], [2, 1], [1, [0, 1]]], ids=str)
def test_simplified_formulas_equal_the_forward(width: list[Any], seed: int) -> None:
    """Also for roots, logarithms and absolute values, which sympy simplifies by assumptions about their arguments."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    x = 3 * torch.randn(ROWS, width[0], dtype=torch.float64)
    model = randomized(network(choose, width, width[0]), x, choose, formula=1, spline=0)
    assert_equal(of_formulas(*model.symbolic_formula(simplify=True), x), model(x).detach())


@pytest.mark.parametrize(
    ("inner", "outer", "text"),
    [("x^2", "sqrt", "Abs(x_1)"), ("abs", "x^2", "x_1**2"), ("x^2", "log", "log(x_1**2)"), ("exp", "log", "x_1")],
)
def test_what_is_simplified_is_right_for_real_numbers(inner: str, outer: str, text: str) -> None:
    model = fixed([1, 1, 1], (0, 0, 0, inner), (1, 0, 0, outer))
    x = torch.tensor([[-2.0], [-0.5], [0.75], [3.0]], dtype=torch.float64)
    (formula,), variables = model.symbolic_formula(simplify=True)
    assert_equal(of_formulas([formula], variables, x), model(x).detach())
    assert sympy.simplify(formula.subs("x_1", sympy.Symbol("t", real=True))) == sympy.sympify(
        text, {"x_1": sympy.Symbol("t", real=True)}
    )


@pytest.mark.parametrize("seed", range(40))
def test_products_that_are_nan_everywhere(seed: int) -> None:
    """Factors that are constants outside a domain: sympy can neither print nor compile such products."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    x = 3 * torch.randn(ROWS, 2, dtype=torch.float64)
    model = randomized(network(choose, [2, [0, 3], [2, 1], 2], 2), x, choose, formula=1, spline=0)
    with torch.no_grad():
        for symbolic in model.symbolic:
            symbolic.affine.normal_().mul_(2)
    finite = model(x).detach().isfinite().numpy()
    assert np.isfinite(model.formula_numpy()(x)[finite]).all()
    model.symbolic_formula(digits="auto")
    model.formula_latex(digits=3)


def test_a_product_with_a_nan_is_nan() -> None:
    model = fixed([1, [0, 1], 1], (0, 0, 0, "sin"), (0, 0, 1, "log", (0, -1, 1, 0)), (1, 0, 0, "x", (1, 0, 2, 1)))
    assert model.symbolic_formula()[0] == [sympy.nan]
    assert np.isnan(model.formula_numpy()([[0.5]])).all()
