"""Formulas equal the forward, for networks of all functions in the library and of splines."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from formula_cases import NAMES, ROWS, WIDTHS, affine_for, assert_equal, fixed, network, of_formulas, randomized
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkan import KAN, add_symbolic, create_dataset
from fastkan.layers.function_library import remove_symbolic
from fastkan.symbolic.rounding import number, rounded


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_formulas_equal_the_forward(width: list[Any], seed: int) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    columns = width[0] + choose.choice([0, 2])
    x = torch.randn(ROWS, columns, dtype=torch.float64)
    model = randomized(network(choose, width, columns), x, choose, formula=0.75, spline=0)
    expected = model(x).detach()
    formulas, variables = model.symbolic_formula()
    assert [str(v) for v in variables] == [f"x_{n + 1}" for n in range(columns)]
    assert_equal(of_formulas(formulas, variables, x), expected)
    assert_equal(torch.from_numpy(model.formula_numpy()(x)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_function_of_the_library(name: str) -> None:
    choose = random.Random(0)
    x = torch.rand(101, 1, dtype=torch.float64) * 2 - 1
    for _ in range(8):
        model = KAN(width=[1, 1], dtype=torch.float64)
        model.layers[0].set_mask(torch.zeros(1, 1))
        model.symbolic[0].fix(0, 0, name, affine_for(name, x[:, 0], choose))
        assert_equal(torch.from_numpy(model.formula_numpy()(x)), model(x).detach())
        assert_equal(of_formulas(*model.symbolic_formula(), x), model(x).detach())


# -- constants -----------------------------------------------------------------------------------------


def test_constants_are_the_parameters_exactly() -> None:
    model = fixed([1, 1], (0, 0, 0, "sin", (0.1, 0.7, 1 / 3, 0.2)), dtype=torch.float32)
    (formula,), _ = model.symbolic_formula()
    found = {float(value) for value in formula.atoms(sympy.Float)}
    assert found == {float(np.float32(value)) for value in (0.1, 0.7, 1 / 3, 0.2)}


def test_ones_and_zeros_leave_no_trace() -> None:
    model = fixed([2, 1, 1], (0, 0, 0, "sin"), (0, 1, 0, "x^2"), (1, 0, 0, "exp", (-1, 0, 1, 0)))
    (formula,), (x, y) = model.symbolic_formula()
    assert formula == sympy.exp(-sympy.sin(x) - y**2)


def test_domains_survive_folding() -> None:
    """sqrt(x^2) must not become x, nor log |x| log x."""
    model = fixed([1, 1, 1], (0, 0, 0, "x^2"), (1, 0, 0, "sqrt"))
    (formula,), (x,) = model.symbolic_formula()
    assert formula == sympy.Abs(x)
    model = fixed([1, 1, 1], (0, 0, 0, "sqrt"), (1, 0, 0, "x^2"))
    at = torch.linspace(0, 2, 20, dtype=torch.float64).unsqueeze(1)
    assert_equal(of_formulas(*model.symbolic_formula(), at), model(at).detach())


@pytest.mark.parametrize("name", ["exp", "sigmoid", "gaussian"])
@pytest.mark.parametrize("b", [900.123456789, -900.123456789])
def test_constants_that_would_overflow_aren_t_folded(name: str, b: float) -> None:
    """exp(900 + x) must not become e^900 exp(x), which overflows."""
    model = fixed([1, 1], (0, 0, 0, name, (1, b, 2, 1)))
    x = -b + torch.linspace(-2, 2, 50, dtype=torch.float64).unsqueeze(1)
    assert_equal(of_formulas(*model.symbolic_formula(), x), model(x).detach())
    assert_equal(torch.from_numpy(model.formula_numpy()(x)), model(x).detach())
    off = torch.from_numpy(model.formula_numpy(digits=8)(x)) - model(x).detach()
    assert off.abs().max() < 1e-3 * model(x).abs().max()


def test_a_node_without_edges_is_a_constant() -> None:
    model = fixed([1, 2, 2], (0, 0, 0, "sin"), (1, 0, 0, "x"), (1, 1, 0, "cos", (1, 0.3, 1, 0)))
    x = torch.randn(5, 1, dtype=torch.float64)
    assert_equal(of_formulas(*model.symbolic_formula(), x), model(x).detach())
    assert model.symbolic_formula()[0][1] == 0
    assert model.formula_numpy()(x).shape == (5, 2)
    splines = KAN(width=[1, 1, 1], noise_scale=3.0, dtype=torch.float64)
    splines.layers[0].set_mask(torch.zeros(1, 1))
    assert splines.symbolic_formula(numeric="piecewise")[0][0] == pytest.approx(splines(x)[0].item(), rel=1e-12)


def test_a_constant_outside_the_domain_is_nan_and_not_complex() -> None:
    model = fixed([1, 1, 1], (1, 0, 0, "log", (1, -1, 1, 0)))
    assert model.symbolic_formula()[0] == [sympy.nan]
    assert np.isnan(model.formula_numpy()([[1.0]])).all()


def test_rounding_to_significant_digits_keeps_small_constants() -> None:
    model = fixed([1, 1], (0, 0, 0, "sin", (3.14159, 0.000123456, 1, 12345.6)))
    (formula,), _ = model.symbolic_formula(digits=3)
    assert str(formula) == "sin(3.14*x_1 + 0.000123) + 12300.0"
    assert model.formula_latex(digits=2) == [r"\sin{\left(3.1 x_{1} + 0.00012 \right)} + 12000.0"]
    x = sympy.Symbol("x")
    assert rounded(0.99996 * (x + 1.23456) + 0.5, 4) == x + rounded(sympy.Float(1.73451), 4)
    log = sympy.log(x)
    assert str(rounded(sympy.Mul(0.99996, log + 1.23456, evaluate=False) + 0.50126, 4)) == "log(x) + 1.736"
    assert float(number(0.1) - sympy.Rational(1, 10)) == 0


def near_the_article(scale: float = 1.0) -> KAN:
    affine = (1.0003 * math.pi, 1e-7, 1.0001, -2e-6)
    return fixed([2, 1, 1], (0, 0, 0, "sin", affine), (0, 1, 0, "x^2", (1, 1e-6, 0.99987, 0)),
                 (1, 0, 0, "exp", (1.00002, 0, scale, 3e-6)))  # fmt: skip


def test_automatic_rounding_keeps_close_to_the_forward() -> None:
    model = near_the_article()
    x = torch.rand(500, 2, dtype=torch.float64) * 2 - 1
    y = model(x).detach()
    lengths = []
    for tolerance in (1e-2, 1e-3, 1e-5, 1e-9):
        formulas, variables = model.symbolic_formula(digits="auto", tolerance=tolerance)
        off = (of_formulas(formulas, variables, x) - y).square().mean().sqrt() / y.std()
        assert off <= 1.01 * tolerance
        lengths.append(len(str(formulas[0])))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    (formula,), (a, b) = model.symbolic_formula(digits="auto", tolerance=2e-3)
    assert formula == sympy.exp(b**2 + sympy.sin(number(3.14) * a))


def test_automatic_rounding_takes_the_fewest_digits() -> None:
    model = fixed([1, 1], (0, 0, 0, "x", (1.23456789, 0, 1, 0)))
    model.get_act(torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1))
    for tolerance, text in ((0.2, "x_1"), (1e-2, "1.23*x_1"), (1e-3, "1.235*x_1"), (1e-8, "1.2345679*x_1")):
        assert str(model.symbolic_formula(digits="auto", tolerance=tolerance)[0][0]) == text


@pytest.mark.parametrize("kind", ["dictionary", "pair"])
def test_automatic_rounding_keeps_the_loss(kind: str) -> None:
    """A formula that fits to 1e-6 keeps more digits than one that fits to 0.1."""
    data = create_dataset(lambda x: torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2), 2, dtype=torch.float64)
    dataset = data if kind == "dictionary" else (data["train_input"], data["train_label"])
    x, y = data["train_input"], data["train_label"]
    lengths = []
    for model in (near_the_article(), near_the_article(1.3)):
        before = (model(x) - y).square().mean().sqrt()
        formulas, variables = model.symbolic_formula(digits="auto", dataset=dataset, tolerance=0.05)
        after = (of_formulas(formulas, variables, x) - y).square().mean().sqrt()
        assert after <= 1.06 * before
        lengths.append(len(str(formulas[0])))
    assert lengths[0] > lengths[1]
    rough = model.symbolic_formula(digits="auto", dataset=(x, model(x).detach()), tolerance=0.05)
    assert len(str(rough[0][0])) > lengths[1]  # a loss of 0 may not grow


def test_simplify() -> None:
    model = fixed([1, [0, 1], 1], (0, 0, 0, "sin"), (0, 0, 1, "sin"), (1, 0, 0, "x"))
    model.symbolic[0].fix(0, 0, "cosh")
    model.symbolic[0].fix(0, 1, "sinh")
    (plain,), (x,) = model.symbolic_formula()
    assert plain == sympy.sinh(x) * sympy.cosh(x)
    assert model.symbolic_formula(simplify=True)[0][0] == sympy.sinh(2 * x) / 2


# -- variables, units, arrays --------------------------------------------------------------------------


def test_variables() -> None:
    model = fixed([2, 1], (0, 0, 0, "sin"), (0, 1, 0, "x"))
    t, u = sympy.symbols("t u")
    assert model.symbolic_formula([t, u]) == ([sympy.sin(t) + u], [t, u])
    product = fixed([2, [0, 1]], (0, 0, 0, "exp"), (0, 1, 1, "sin", (2, 0, 3, 0)))
    for names in ([t, u], [u, t]):
        assert product.symbolic_formula(names)[0] == [3.0 * sympy.exp(names[0]) * sympy.sin(2.0 * names[1])]
    x, y = sympy.symbols("x_2 x_1", real=True)  # names in the other order
    assert model.symbolic_formula([x, y])[0] == [sympy.sin(x) + y]
    (formula,), variables = model.symbolic_formula(["__import__('os')", "b"])
    assert formula.free_symbols == set(variables)
    assert [str(each) for each in variables] == ["__import__('os')", "b"]
    (formula,), (own, _) = model.symbolic_formula(["sin", "__import__('os')"], digits="auto")
    assert formula.has(sympy.sin(own))
    assert model.formula_latex(["alpha", "b"]) == [r"b + \sin{\left(\alpha \right)}"]


def test_columns_keep_their_numbers_after_prune_input() -> None:
    model = fixed([3, 1], (0, 0, 0, "sin"), (0, 2, 0, "x"))
    smaller = model.prune_input(active_inputs=[1, 2]).prune_input(active_inputs=[2])
    (formula,), variables = smaller.symbolic_formula()
    assert len(variables) == 3
    assert formula == variables[2]
    assert_equal(torch.from_numpy(smaller.formula_numpy()(torch.eye(3))), torch.eye(3).double()[:, 2:])


def test_normalizers() -> None:
    mean, std = [1.0, -2.0], torch.tensor([2.0, 0.5])
    model = randomized(KAN(width=[2, 2], dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64),
                       random.Random(1), formula=1, spline=0)  # fmt: skip
    x = torch.randn(50, 2, dtype=torch.float64)
    raw = x * std + torch.tensor(mean)
    expected = model(x).detach() * torch.tensor([3.0, 0.1]) + torch.tensor([0.5, 7])
    both = [mean, std], [np.array([[0.5, 7.0]]), (3.0, 0.1)]
    assert_equal(of_formulas(*model.symbolic_formula(None, *both), raw), expected)
    assert_equal(torch.from_numpy(model.formula_numpy(*both)(raw)), expected)
    wide = 1e-3 * expected.std(0)
    found = of_formulas(*model.symbolic_formula(None, *both, digits="auto"), raw)
    assert ((found - expected).square().mean(0).sqrt() <= 1.01 * wide).all()


def test_the_numpy_function_takes_what_arrays_there_are() -> None:
    model = fixed([2, 2], (0, 0, 0, "1/x^2"), (0, 0, 1, "x^3"))
    f = model.formula_numpy()
    assert f(np.ones((4, 3, 2), dtype=np.float32)).shape == (4, 3, 2)
    assert f(np.ones((0, 2))).shape == (0, 2)
    assert f([2, 5]).tolist() == [0.25, 8]
    assert f([[2, 5]]).dtype == np.float64  # NumPy raises for an int to a negative power
    with pytest.raises(ValueError, match=r"x must have the shape \[..., in_features=2\], got \[4, 3\]"):
        f(np.ones((4, 3)))


def test_functions_that_numpy_does_not_know_go_through_torch() -> None:
    add_symbolic("my f; import os", lambda z: torch.special.bessel_j0(z) + z, c=3)
    add_symbolic("own", torch.square, sympy_fun=lambda z: z**2)
    try:
        model = fixed([1, 1, 1], (0, 0, 0, "my f; import os", (2, 1, 1, 0)), (1, 0, 0, "own"))
        x = torch.randn(20, 1, dtype=torch.float64)
        assert_equal(torch.from_numpy(model.formula_numpy()(x)), model(x).detach())
        assert_equal(
            torch.from_numpy(model.formula_numpy(digits=12)(x)),
            model(x).detach(),
        )
        (formula,), _ = model.symbolic_formula()
        assert str(formula) == "my f; import os(2.0*x_1 + 1)**2"
    finally:
        remove_symbolic("my f; import os")
        remove_symbolic("own")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"var": ["a"]}, ValueError, "var must have one entry for each of the 2 columns of x, got 1"),
        ({"var": "ab"}, TypeError, "var must be a list of names or symbols, got 'ab'"),
        ({"var": ["a", 3]}, TypeError, "var must hold names, or symbols or expressions of sympy, got 3"),
        ({"var": ["a", "a"]}, ValueError, "var must have different names, got a, a"),
        ({"numeric": "spline"}, ValueError, "numeric must be one of 'functions', 'piecewise', 'raise'; got 'spline'"),
        ({"digits": 0}, ValueError, "digits must be at least 1, got 0"),
        ({"digits": 2.5}, TypeError, "digits must be an int, got float"),
        ({"digits": "all"}, ValueError, "digits must be None, an int, or 'auto'; got 'all'"),
        ({"tolerance": -1}, ValueError, "tolerance must be at least 0, got -1"),
        ({"tolerance": "1"}, TypeError, "tolerance must be a number, got str"),
        ({"normalizer": 3}, TypeError, r"normalizer must be \[mean, std\], got 3"),
        ({"normalizer": [[0, 0, 0], [1, 1]]}, ValueError, r"normalizer must be \[mean, std\] of 2 columns, got 3"),
        ({"normalizer": [[0, 0], [1, 0]]}, ValueError, "normalizer must be finite, and its std not 0"),
        ({"output_normalizer": [math.nan, 1]}, ValueError, "output_normalizer must be finite, and its std not 0"),
        ({"digits": "auto", "dataset": (torch.ones(3, 1), torch.ones(3, 1))}, ValueError, "x must have the shape"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = fixed([2, 1], (0, 0, 0, "sin"), (0, 1, 0, "x"))
    with pytest.raises(error, match=message):
        model.symbolic_formula(**options)
    with pytest.raises(error, match=message):
        model.formula_latex(**options)
    if "var" not in options:
        ask: Callable[..., Any] = model.formula_numpy
        if "tolerance" in options:
            options = {**options, "digits": 3}
        with pytest.raises(error, match=message):
            ask(**options)


def test_a_formula_leaves_the_model_alone() -> None:
    model = near_the_article()
    model.get_act(torch.rand(10, 2, dtype=torch.float64))
    sample, before = model.sample, model.copy().state_dict()
    model.symbolic_formula(digits="auto")
    model.formula_numpy()
    assert model.sample is sample
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]
