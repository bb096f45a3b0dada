"""The formula equals the forward: networks of formulas over the whole library, and of splines."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastkan import KAN, SYMBOLIC_LIB, add_symbolic, create_dataset
from fastkan.symbolic.library import remove_symbolic
from fastkan.symbolic.rounding import number, rounded

NAMES = sorted(SYMBOLIC_LIB)
ROWS = 64


def affine_for(name: str, nodes: torch.Tensor, choose: random.Random) -> list[float]:
    """a, b, c, d that take these values well into the function's domain."""
    branch = choose.choice(SYMBOLIC_LIB[name].branches())
    low = branch.low if math.isfinite(branch.low) else min(branch.high - 3, -1.5)
    high = branch.high if math.isfinite(branch.high) else max(branch.low + 3, 1.5)
    low, high = low + 0.2 * (high - low), high - 0.2 * (high - low)
    least, most = nodes.min().item(), nodes.max().item()
    a = (high - low) / max(most - least, 0.1) * choose.choice([0.5, 1])
    a *= choose.choice([1, -1])
    b = (low + high) / 2 + 0.05 * (high - low) - a * (least + most) / 2  # a constant is not where sgn jumps
    return [a, b, choose.choice([1, -1]) * choose.uniform(0.3, 1.5), choose.uniform(-1, 1)]


def randomized(model: KAN, x: torch.Tensor, choose: random.Random, formula: float, spline: float) -> KAN:
    """Affine maps and parameters at random; each edge a formula, a spline, both or off."""
    with torch.no_grad():
        for part in (model.subnode_scale, model.subnode_bias, model.node_scale, model.node_bias):
            for parameter in part:
                parameter.copy_(torch.tensor([choose.choice([0, 1, choose.uniform(-2, 2)]) for _ in parameter]))
        for layer in model.layers:
            layer.spline_weight.normal_()
            layer.base_weight.normal_()
            layer.spline_scale.normal_()
    nodes = model.inputs(x)
    for layer, symbolic in enumerate(model.symbolic):
        mask = torch.zeros(model.width_in[layer], model.width_out[layer + 1])
        for i in range(mask.shape[0]):
            for j in range(mask.shape[1]):
                if choose.random() < formula:
                    name = choose.choice(NAMES)
                    symbolic.fix(i, j, name, affine_for(name, nodes[:, i], choose))
                mask[i, j] = choose.random() < spline
        model.layers[layer].set_mask(mask)
        nodes = model.nodes_of(layer, model.subnodes_of(layer, nodes)).detach()
    return model


def network(choose: random.Random, width: list[Any], columns: int) -> KAN:
    arities = [
        [choose.choice([2, 3, 4]) for _ in range(entry[1])] if isinstance(entry, list) else [] for entry in width
    ]
    model = KAN(width=width, mult_arity=arities, grid=choose.choice([1, 3, 5]), k=choose.choice([1, 2, 3]), seed=0,
                dtype=torch.float64)  # fmt: skip
    model.in_features = columns
    model.input_id = torch.tensor(choose.sample(range(columns), width[0]))
    return model


WIDTHS = [[1, 1], [2, 3, 1], [3, [1, 2], 2], [2, [0, 3], [2, 1], 2], [2, [2, 1], [0, 2]]]


def of_formulas(formulas: list[Any], variables: list[Any], x: torch.Tensor) -> torch.Tensor:
    """By sympy's own way to NumPy."""
    function = sympy.lambdify(variables, formulas, "numpy")
    with np.errstate(all="ignore"):
        columns = function(*x.numpy().T)
    return torch.stack([torch.as_tensor(np.broadcast_to(column, len(x)).copy()) for column in columns], 1)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-9 of each output's size, where that is finite."""
    finite = expected.isfinite()
    assert finite.double().mean() > 0.9
    size = torch.where(finite, expected, 0).abs().amax(0).clamp(min=1e-3).expand_as(expected)
    assert ((found - expected).abs() / size)[finite].max() < 1e-9


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@given(seed=st.integers(0, 10**6))
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


@pytest.mark.parametrize("width", [*WIDTHS[:3], [1, [1, 1], 1]], ids=str)
@given(seed=st.integers(0, 10**6))
def test_pieces_equal_the_forward_inside_and_outside_the_grid(width: list[Any], seed: int) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    x = 3 * torch.randn(ROWS, width[0], dtype=torch.float64)
    model = network(choose, width, width[0])
    model.layers[0].update_grid(torch.randn(50, width[0], dtype=torch.float64), grid_eps=0.3)
    x[:8] = model.layers[0].knots[:, :8].t()[:, model.input_id.argsort()].repeat(8, 1)[:8]  # on knots themselves
    randomized(model, x, choose, formula=0.3, spline=0.6)
    expected = model(x).detach()
    assert_equal(torch.from_numpy(model.formula_numpy(numeric="piecewise")(x)), expected)
    if len(width) < 3:
        assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_function_of_the_library(name: str) -> None:
    choose = random.Random(0)
    x = torch.linspace(-1, 1, 101, dtype=torch.float64).unsqueeze(1)
    for _ in range(8):
        model = KAN(width=[1, 1], dtype=torch.float64)
        model.layers[0].set_mask(torch.zeros(1, 1))
        model.symbolic[0].fix(0, 0, name, affine_for(name, x[:, 0], choose))
        assert_equal(torch.from_numpy(model.formula_numpy()(x)), model(x).detach())
        assert_equal(of_formulas(*model.symbolic_formula(), x), model(x).detach())


def fixed(width: list[Any], *edges: tuple[Any, ...], **options: Any) -> KAN:
    """A network of these edges ``(l, i, j, name, affine)`` alone."""
    model = KAN(width=width, **{"dtype": torch.float64, **options})
    for layer in model.layers:
        layer.set_mask(torch.zeros_like(layer.spline_weight[0]))
    for layer, i, j, name, *affine in edges:
        model.symbolic[layer].fix(i, j, name, *affine)
    return model


# -- splines -------------------------------------------------------------------------------------------


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
    """Knots at which the spline jumps: the value is that of the cell to the right."""
    model = KAN(width=[1, 1], grid=4, k=1, base_fun="zero", noise_scale=5.0, dtype=torch.float64)
    knots = model.layers[0].knots.clone()
    knots[0, 3] = knots[0, 2]
    model.layers[0].set_knots(knots)
    x = torch.tensor([[knots[0, 2].item()]], dtype=torch.float64)
    below = torch.nextafter(x, x - 1)
    y = model(torch.cat([below, x])).detach()
    assert (y[1] - y[0]).abs() > 0.1
    assert_equal(of_formulas(*model.symbolic_formula(numeric="piecewise"), torch.cat([below, x])), y)


def test_pieces_far_from_zero_keep_their_digits() -> None:
    """Polynomials in x itself would lose nine of them."""
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
    assert set(variables) == {sympy.Symbol("x_1", real=True), sympy.Symbol("x_2", real=True)}
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
    monkeypatch.setattr(KAN, "samples", lambda self: pytest.fail("samples were asked for"))
    for ask in (model.symbolic_formula, model.formula_latex, model.formula_numpy):
        with pytest.raises(ValueError, match="numeric edges") as caught:
            ask(digits="auto")
        message = str(caught.value)
        assert re.findall(r"\(\d, \d, \d\)", message) == ["(0, 0, 0)", "(0, 1, 3)", "(1, 1, 0)"]
        for help in ("auto_symbolic", "fix_symbolic", "remove_edge", "numeric='piecewise'"):
            assert help in message


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
    """The root of a square is no x, and log |x| no log x."""
    model = fixed([1, 1, 1], (0, 0, 0, "x^2"), (1, 0, 0, "sqrt"))
    (formula,), (x,) = model.symbolic_formula()
    assert formula == sympy.Abs(x)
    model = fixed([1, 1, 1], (0, 0, 0, "sqrt"), (1, 0, 0, "x^2"))
    at = torch.linspace(0, 2, 20, dtype=torch.float64).unsqueeze(1)
    assert_equal(of_formulas(*model.symbolic_formula(), at), model(at).detach())


@pytest.mark.parametrize("name", ["exp", "sigmoid", "gaussian"])
@pytest.mark.parametrize("b", [900.0, -900.0])
def test_constants_that_would_overflow_aren_t_folded(name: str, b: float) -> None:
    """exp(900 + x) is not e^900 exp(x), which floats can't hold."""
    model = fixed([1, 1], (0, 0, 0, name, (1, b, 2, 1)))
    x = -b + torch.linspace(-2, 2, 50, dtype=torch.float64).unsqueeze(1)
    assert_equal(of_formulas(*model.symbolic_formula(), x), model(x).detach())
    assert_equal(torch.from_numpy(model.formula_numpy()(x)), model(x).detach())
    assert_equal(torch.from_numpy(model.formula_numpy(digits=12)(x)), model(x).detach())


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
    model(torch.rand(100, 1, dtype=torch.float64))
    for tolerance, text in ((0.2, "x_1"), (1e-2, "1.23*x_1"), (1e-3, "1.235*x_1"), (1e-7, "1.2345679*x_1")):
        assert str(model.symbolic_formula(digits="auto", tolerance=tolerance)[0][0]) == text


@pytest.mark.parametrize("kind", ["dictionary", "pair"])
def test_automatic_rounding_keeps_the_loss(kind: str) -> None:
    """A formula that is right to 1e-6 keeps more digits than one that is right to a tenth."""
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
    assert len(str(rough[0][0])) > lengths[1]  # of a loss that is 0, nothing may be lost


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
    (formula,), variables = model.symbolic_formula(["__import__('os')", "b"])
    assert formula.free_symbols == set(variables)
    assert [str(each) for each in variables] == ["__import__('os')", "b"]
    assert model.formula_latex(["alpha", "b"]) == [r"b + \sin{\left(\alpha \right)}"]


def test_columns_keep_their_numbers_after_prune_input() -> None:
    model = fixed([3, 1], (0, 0, 0, "sin"), (0, 2, 0, "x"))
    smaller = model.prune_input(active_inputs=[1, 2]).prune_input(active_inputs=[1])
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
    model = fixed([2, 2], (0, 0, 0, "1/x"), (0, 0, 1, "x^3"))
    f = model.formula_numpy()
    assert f(np.ones((4, 3, 2), dtype=np.float32)).shape == (4, 3, 2)
    assert f(np.ones((0, 2))).shape == (0, 2)
    assert f([2, 5]).tolist() == [0.5, 8]
    assert f([[2, 5]]).dtype == np.float64  # an int to a negative power would be an error
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
        ({"var": ["a", 3]}, TypeError, "var must hold names or sympy symbols, got 3"),
        ({"var": ["a", "a"]}, ValueError, "var must have different names, got a, a"),
        ({"numeric": "spline"}, ValueError, "numeric must be one of 'raise', 'piecewise'; got 'spline'"),
        ({"digits": 0}, ValueError, "digits must be at least 1, got 0"),
        ({"digits": 2.5}, TypeError, "digits must be an int, got float"),
        ({"digits": "all"}, ValueError, "digits must be None, an int, or 'auto'; got 'all'"),
        ({"tolerance": -1}, ValueError, "tolerance must be 0 or more, and finite, got -1"),
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
    model(torch.rand(10, 2, dtype=torch.float64))
    sample, before = model.sample, model.copy().state_dict()
    model.symbolic_formula(digits="auto")
    model.formula_numpy()
    assert model.sample is sample
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]
