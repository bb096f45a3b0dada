"""The formula equals the forward: networks of formulas and of splines, and the formula in sympy's hands."""

from __future__ import annotations

import math
import pickle
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from formula_cases import NAMES, ROWS, WIDTHS, affine_for, assert_equal, fixed, network, of_formulas, randomized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from spline_cases import shaped

from fastkan import KAN, add_symbolic, create_dataset
from fastkan.layers.function_library import remove_symbolic
from fastkan.symbolic.expressions import named_edge, taylor_pieces
from fastkan.symbolic.formula import compile_numpy
from fastkan.symbolic.rounding import number, rounded


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=12)
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
    for _ in range(4):
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


@pytest.mark.parametrize(
    ("width", "edges"),
    [
        ([1, 1, 1], [(1, 0, 0, "log", (1, -1, 1, 0))]),
        ([1, [0, 1], 1], [(0, 0, 0, "sin"), (0, 0, 1, "log", (0, -1, 1, 0)), (1, 0, 0, "x", (1, 0, 2, 1))]),
    ],
    ids=["constant", "product"],
)
def test_an_output_that_is_nan_everywhere_is_nan(width: list[Any], edges: list[Any]) -> None:
    model = fixed(width, *edges)
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


# -- splines as exact polynomials on their cells -----------------------------------------------------


def with_splines(width: list[Any], seed: int, formula: float) -> tuple[KAN, torch.Tensor, torch.Tensor]:
    """A random network of splines and formulas on adapted knots, inputs in, around and on the knots, and outputs."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    x = 3 * torch.randn(ROWS, width[0], dtype=torch.float64)
    model = network(choose, width, width[0])
    model.layers[0].update_grid(torch.randn(50, width[0], dtype=torch.float64), grid_eps=0.3)
    x[:8] = model.layers[0].knots[:, :8].t()[:, model.input_id.argsort()].repeat(8, 1)[:8]
    randomized(model, x, choose, formula=formula, spline=0.6)
    return model, x, model(x).detach()


@pytest.mark.parametrize("width", [*WIDTHS[:3], [1, [1, 1], 1]], ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=12)
def test_pieces_equal_the_forward_inside_and_outside_the_grid(width: list[Any], seed: int) -> None:
    model, x, expected = with_splines(width, seed, formula=0.3)
    assert_equal(torch.from_numpy(model.formula_numpy(numeric="piecewise")(x)), expected)
    if len(width) < 3:
        assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), x), expected)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "zero"])
def test_pieces_of_one_edge(order: int, outside: str, base: str) -> None:
    model = KAN(width=[1, 1], grid=4, k=order, base_fun=base, noise_scale=5.0, dtype=torch.float64)
    model.layers[0].outside = outside
    knots = model.layers[0].knots[0]
    ends = torch.tensor([-1e3, -5.0, 5.0, 1e3], dtype=torch.float64)
    x = torch.cat([knots, torch.linspace(-2.5, 2.5, 301, dtype=torch.float64), ends]).unsqueeze(1)
    assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), x), model(x).detach())
    if base == "gelu":
        assert_equal(torch.from_numpy(model.formula_numpy(numeric="piecewise")(x)), model(x).detach())


@pytest.mark.parametrize("has_scipy", [True, False])
def test_erf_is_compiled_without_scipy_too(has_scipy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkan.symbolic.formula.find_spec", lambda name: has_scipy or None)
    z = sympy.Symbol("z")
    function = compile_numpy([[z]], [z * sympy.erf(z)])
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(function([x])[0], x * special.erf(x), rtol=1e-14)


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


# -- splines as functions phi_l_i_j ------------------------------------------------------------------

D = torch.float64


def quiet(model: KAN, **options: Any) -> tuple[list[Any], list[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.symbolic_formula(**options)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_formulas_with_splines_equal_the_forward_inside_and_outside_the_grid(width: list[Any], seed: int) -> None:
    model, x, expected = with_splines(width, seed, formula=0.4)
    assert_equal(of_formulas(*quiet(model), x), expected)
    assert_equal(torch.from_numpy(model.formula_numpy()(x)), expected)
    if seed == 0:
        assert_equal(torch.from_numpy(model.formula_numpy(digits=15)(x)), expected)


@pytest.mark.parametrize(
    ("order", "outside", "base"),
    [(1, "zero", "silu"), (1, "linear", "identity"), (2, "zero", "zero"), (2, "linear", "silu"),
     (3, "zero", "identity"), (3, "linear", "silu"), (3, "linear", "zero"), (5, "zero", "silu"),
     (5, "linear", "identity")],
)  # fmt: skip
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


@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "zero"])
@pytest.mark.parametrize("weight", ["drawn", "constant"])  # a constant spline has tangents of slope 0
def test_values_and_derivatives_at_nan_and_infinities_are_the_forwards(outside: str, base: str, weight: str) -> None:
    model = KAN(width=[1, 1], base_fun=base, noise_scale=3.0, dtype=D)
    layer = model.layers[0]
    layer.outside = outside
    if weight == "constant":
        with torch.no_grad():
            layer.spline_weight.fill_(0.5)
    x = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [0.3]], dtype=D, requires_grad=True)
    (formula,), (symbol,) = quiet(model)
    value = model(x)
    np.testing.assert_allclose(model.formula_numpy()(x.detach()), value.detach().numpy(), rtol=1e-12)
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


# -- formulas in sympy's hands -----------------------------------------------------------------------

X1, X2 = sympy.symbols("x_1 x_2")


def article() -> KAN:
    """exp(sin(3 x_1) + x_2^2 / 2)."""
    return fixed([2, 1, 1], (0, 0, 0, "sin", (3, 0, 1, 0)), (0, 1, 0, "x^2", (1, 0, 0.5, 0)), (1, 0, 0, "exp"))


def test_sympy_meets_the_variables_by_name() -> None:
    model, x = article(), torch.tensor([[0.3, -0.4]], dtype=torch.float64, requires_grad=True)
    y = model(x)
    (slopes,) = torch.autograd.grad(y.sum(), x)
    (formula,), _ = model.symbolic_formula()
    for put in ({"x_1": 0.3, "x_2": -0.4}, {X1: 0.3, X2: -0.4}, [("x_1", 0.3), ("x_2", -0.4)]):
        assert float(formula.subs(put)) == pytest.approx(y.item(), rel=1e-12)
    assert sympy.lambdify(sympy.symbols("x_1 x_2"), formula)(0.3, -0.4) == pytest.approx(y.item(), rel=1e-12)
    for name, slope in zip(("x_1", "x_2"), slopes[0].tolist()):
        found = sympy.diff(formula, sympy.Symbol(name)).subs({"x_1": 0.3, "x_2": -0.4})
        assert float(found) == pytest.approx(slope, rel=1e-12)
    (formula,), variables = model.symbolic_formula(var=["Age", "BMI"])
    assert variables == list(sympy.symbols("Age BMI"))
    assert float(formula.subs({"Age": 0.3, "BMI": -0.4})) == pytest.approx(y.item(), rel=1e-12)
    positive = sympy.Symbol("t", positive=True)
    (formula,), _ = model.symbolic_formula(var=[positive, "u"])
    assert formula.free_symbols == {positive, sympy.Symbol("u")}


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


@pytest.mark.parametrize("options", [{}, {"digits": 5}, {"digits": "auto"}, {"simplify": True}, {"var": ["a", "b"]},
                                     {"normalizer": [[1, 2], [3, 4]]}], ids=str)  # fmt: skip
def test_symbols_are_plain_in_every_case(options: dict[str, Any]) -> None:
    model = article()
    model.get_act(torch.randn(50, 2, dtype=torch.float64))
    (formula,), variables = model.symbolic_formula(**options)
    assert formula.free_symbols == set(variables)
    assert variables == list(sympy.symbols(options.get("var", ["x_1", "x_2"])))


@pytest.mark.parametrize("seed", range(9))
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


@pytest.mark.parametrize("seed", range(9))
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
