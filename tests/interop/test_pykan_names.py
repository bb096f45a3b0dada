"""Functions with pykan's names return the same values as pykan's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from peers import points
from pykan_cases import float64, kan, quiet, rows  # noqa: F401
from torch import Tensor

import fastkan
from fastkan import KAN, MLP, create_dataset, kanpiler
from fastkan.symbolic.variables import values_of

x, y, z = sympy.symbols("x y z")


def test_every_name_is_public() -> None:
    names: dict[str, Any] = {}
    exec("from fastkan import *", names)
    assert set(fastkan.pykan.__all__) <= set(names)
    assert names["MultKAN"] is KAN
    assert not any(getattr(names[name], "__test__", True) for name in names if name.startswith("test_"))


# -- splines and derivatives ----------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_splines(k: int) -> None:
    theirs = kan("spline")
    grid = torch.linspace(-1, 1, 6)[None, :] + torch.tensor([[0.0], [0.3]])
    knots = fastkan.extend_grid(grid, k)
    assert torch.allclose(knots, theirs.extend_grid(grid, k_extend=k), atol=1e-15)
    at = points(2, 200)
    basis = fastkan.B_batch(at, knots, k)
    assert torch.allclose(basis, theirs.B_batch(at, knots, k=k) * 1.0, atol=1e-14)
    row = torch.linspace(-1, 1, 11)[None, :]  # one grid for all columns, as in pykan's tutorial on grids
    assert torch.allclose(fastkan.B_batch(row, knots[:1], k), theirs.B_batch(row, knots[:1], k=k) * 1.0, atol=1e-14)
    if k:
        coef = torch.randn(2, 3, basis.shape[2])
        curve = fastkan.coef2curve(at, knots, coef, k)
        assert torch.allclose(curve, theirs.coef2curve(at, knots, coef, k), atol=1e-14)
        assert torch.allclose(fastkan.curve2coef(at, curve, knots, k), coef, atol=1e-9)


def test_row_wise_derivatives() -> None:
    theirs = kan("utils")
    f = lambda r: torch.sin(r[:, [0]]) * r[:, [1]] ** 2  # noqa: E731
    two = lambda r: torch.cat([f(r), r[:, [0]] * r[:, [1]]], 1)  # noqa: E731
    at = rows(2)
    assert torch.equal(fastkan.batch_jacobian(f, at), theirs.batch_jacobian(f, at))
    assert torch.equal(fastkan.batch_jacobian(two, at, mode="vector"), theirs.batch_jacobian(two, at, mode="vector"))
    assert torch.equal(fastkan.batch_hessian(f, at), theirs.batch_hessian(f, at))
    expected = torch.stack([at[:, 0].cos() * at[:, 1] ** 2, 2 * at[:, 0].sin() * at[:, 1]], 1)
    assert torch.allclose(fastkan.batch_jacobian(lambda r: f(r)[:, 0], at), expected)  # func may return [N]
    model = KAN([2, 3, 1], seed=0)
    fastkan.batch_jacobian(model, at, create_graph=True).square().sum().backward()
    assert model.layers[0].spline_weight.grad is not None


def test_derivatives_with_respect_to_parameters() -> None:
    theirs = kan("utils")
    model, at = MLP([1, 4, 1], seed=2), rows(1)
    for derivative in ("jacobian", "hessian"):
        other = kan("MLP").MLP([1, 4, 1], seed=2)
        other.copy = lambda other=other: other
        assert torch.equal(fastkan.model2param(model), theirs.model2param(other))
        ours = fastkan.get_derivative(model, at, at**2, derivative)
        assert torch.allclose(ours, quiet(theirs.get_derivative, other, at, at**2, derivative), atol=1e-12)
    for metric in ("w", "act", "fa"):
        other = kan("MLP").MLP([1, 4, 1], seed=2)
        other(at)
        other.attribute()
        reg = model.get_reg(metric, 1.0, 2.0, at)
        assert torch.allclose(reg, other.get_reg(metric, 1.0, 2.0), atol=1e-12), metric
        slope = fastkan.get_derivative(model, at, at**2, "jacobian", "reg", metric, lamb_entropy=2.0)
        expected = torch.autograd.grad(reg, list(model.parameters()), allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(expected, model.parameters())]
        assert torch.allclose(slope[0], torch.cat([part.flatten() for part in parts]), atol=1e-12)
    network = KAN([1, 2, 1], seed=0)
    hessian = fastkan.get_derivative(network, at, at**2)[0]
    start, moved = fastkan.model2param(network).detach(), KAN([1, 2, 1], seed=0)
    trained = [parameter for parameter in moved.parameters() if parameter.requires_grad]

    def slope_at(place: int, step: float) -> Tensor:
        torch.nn.utils.vector_to_parameters(start + step * torch.eye(len(start))[place], trained)
        return fastkan.get_derivative(moved, at, at**2, "jacobian")[0]

    for place in (0, 7, len(start) - 1):
        assert torch.allclose((slope_at(place, 1e-5) - slope_at(place, -1e-5)) / 2e-5, hessian[place], atol=1e-7)


def test_lbfgs_takes_the_same_steps_and_goes_on_below_torchs_threshold() -> None:
    def losses(optimizer_of: Callable, scale: float = 1.0, **options: Any) -> list[float]:
        model = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
        with torch.no_grad():
            for n, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.linspace(-1, 1 + n, parameter.numel()).view_as(parameter))
        tolerances = {"tolerance_grad": 1e-32, "tolerance_change": 1e-32}
        optimizer = optimizer_of(model.parameters(), **{"lr": 1, "history_size": 5, **tolerances, **options})
        at, found = torch.linspace(-1, 1, 50).unsqueeze(1), []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = scale * (model(at) - torch.sin(3 * at)).square().mean()
            loss.backward()
            return loss

        for _ in range(8):
            found.append(optimizer.step(closure).item())
        return found

    for search in ("strong_wolfe", None):
        ours = losses(fastkan.LBFGS, line_search_fn=search, tolerance_ys=1e-32)
        theirs = losses(kan("LBFGS").LBFGS, line_search_fn=search, tolerance_ys=1e-32)
        assert ours == pytest.approx(theirs, rel=1e-6)
        assert ours == pytest.approx(losses(torch.optim.LBFGS, line_search_fn=search), rel=1e-6)
    tiny = losses(fastkan.LBFGS, 1e-12, line_search_fn="strong_wolfe")
    stuck = losses(torch.optim.LBFGS, 1e-12, line_search_fn="strong_wolfe")
    assert tiny[-1] < 0.1 * stuck[-1]
    for wrong in ({"line_search_fn": "wolfe"}, {"lr": -1.0}, {"tolerance_ys": -1.0}, {"history_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            losses(fastkan.LBFGS, **wrong)


def test_fit_params(capsys: pytest.CaptureFixture[str]) -> None:
    at = torch.linspace(-1, 1, 100)
    params, r2 = fastkan.fit_params(at, 5 * torch.sin(3 * at + 2) + 0.7, torch.sin)
    assert "r2 is 1.000000" in capsys.readouterr().out
    theirs, their_r2 = quiet(kan("utils").fit_params, at, 5 * torch.sin(3 * at + 2) + 0.7, torch.sin)
    assert torch.allclose(
        5 * torch.sin(3 * at + 2) + 0.7, params[2] * torch.sin(params[0] * at + params[1]) + params[3]
    )
    assert r2 >= their_r2 - 1e-6
    assert params.shape == theirs.shape
    fastkan.fit_params(at, torch.randn(100), torch.exp)
    assert "another function" in capsys.readouterr().out
    assert fastkan.fit_params(at, at, "x", verbose=False)[1] == pytest.approx(1)


# -- expressions ----------------------------------------------------------------------------------


def test_ex_round() -> None:
    theirs = kan("utils").ex_round
    for formula in (
        3.14534242 * sympy.exp(sympy.sin(sympy.pi * x) + 1.23456 * y**2) - 2.32345402,
        sympy.Rational(1, 3) * x + 0.1239 * y**2.00001,
        1.0 * x + 0.00049,
    ):
        for digits in (1, 2, 4):
            assert str(fastkan.ex_round(formula, digits)) == str(theirs(formula, digits))
    assert float(fastkan.ex_round(2.71828, 1)) == 2.7


def test_augment_input() -> None:
    variables, extra = [x, y, z], [x / y, 1 / sympy.sqrt(1 + z**2), sympy.Integer(2), sympy.sec(x), sympy.Max(x, 1)]
    at = rows(3)
    ours = fastkan.augment_input(variables, extra, at)
    theirs = kan("utils").augment_input(variables, extra[:2], at)
    assert torch.allclose(ours[:, [0, 1, 5, 6, 7]], theirs, atol=1e-15)
    expected = torch.stack([torch.full_like(at[:, 0], 2), 1 / at[:, 0].cos(), at[:, 0].clamp(min=1)], 1)
    assert torch.allclose(ours[:, 2:5], expected)
    dataset = create_dataset(lambda r: r[:, [0]], n_var=3, train_num=5, test_num=4)
    augmented = fastkan.augment_input(variables, extra, dataset)
    assert augmented["train_input"].shape == (5, 8)
    assert augmented["test_input"].shape == (4, 8)
    assert dataset["train_input"].shape == (5, 3)
    assert augmented["train_label"] is dataset["train_label"]
    for wrong, message in (
        (lambda: fastkan.augment_input([x], [x], at), r"x must have the shape \[N, 1\]"),
        (lambda: fastkan.augment_input(variables, [sympy.Symbol("w")], at), "w is none of the variables"),
        (lambda: fastkan.augment_input(variables, [sympy.gamma(x)], at), "gamma, which is not in the library"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


FORMULAS = [
    sympy.exp(sympy.sin(sympy.pi * x) + y**2), x, -x, 2 * x + 1, x * y, 3 * x * y + 2, sympy.Integer(3),
    sympy.sin(x) + x**2, sympy.sin(x) + sympy.cos(x) * x**2 + x, (x + 1) * (x + sympy.sin(x)), x**6, x**-7,
    x**12 * y, x**-6 + x**11, 2**x, x**y, x ** sympy.Rational(1, 3), x**1.7, sympy.sqrt(x + y * z),
    (x + y) * (z + 1) * (x - 2), 1 / (1 + sympy.exp(-x)), (x + y) ** 2 * z + (x + y) ** 3, 5 * (x + 3 * y) + 2,
    sympy.log(x) * sympy.Abs(y - 1) + sympy.sign(z - 0.7), sympy.sec(x) + sympy.cot(y) + sympy.acot(z),
    sympy.asin(x / 3) + sympy.acos(y / 3) + sympy.atan(z) + sympy.atanh(x / 4), x * (y + x * (z + x * y)),
    sympy.acosh(x + 1) - sympy.sech(x) * sympy.coth(y), x / (y * z**2) + sympy.sin(x) / y,
]  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_a_formula_becomes_a_network(formula: Any) -> None:
    at = rows(3)
    expected = torch.as_tensor(sympy.lambdify([x, y, z], formula, "numpy")(*at.T.numpy())).to(at).expand(len(at))
    assert torch.allclose(values_of(formula, [x, y, z], at)[:, 0], expected, rtol=1e-13)
    model = kanpiler([x, y, z], formula, grid=3, k=2)
    assert torch.allclose(model(at)[:, 0], expected, rtol=1e-12, atol=1e-12)
    assert (model.grid[0], model.k[0], model.n_edge) == (3, 2, 0)
    back = model.symbolic_formula([x, y, z])[0][0]
    assert torch.allclose(values_of(back, [x, y, z], at)[:, 0], expected, rtol=1e-9)


def test_compiled_networks_are_shaped_as_pykans() -> None:
    for formula, width in (
        (sympy.exp(sympy.sin(sympy.pi * x) + y**2), [[2, 0], [1, 0], [1, 0]]),
        ((x + y) * sympy.sin(sympy.exp(2 * y)), None),
    ):
        theirs = quiet(kan("compiler").kanpiler, [x, y], formula)
        ours = kanpiler([x, y], formula)
        assert ours.width[-1] == theirs.width[-1]
        assert ours.depth == theirs.depth
        assert width is None or ours.width == theirs.width == width
        at = rows(2)
        assert torch.allclose(ours(at), quiet(theirs, at), atol=1e-6)
    options = kanpiler([x], x**2, base_fun="identity", auto_save=True)
    assert options.layers[0].base == "identity"
    assert options.auto_save


def test_formulas_that_are_no_network_are_refused() -> None:
    for formula, message in (
        (sympy.gamma(x), "gamma, which is not in the library"),
        (sympy.I * x, "not a finite real number"),
        (sympy.Symbol("w") * x, "contain only the input_variables x, y, but has w"),
        ((-2) ** x, "its base must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            kanpiler([x, y], formula)
    fastkan.add_symbolic("gamma", lambda t: torch.lgamma(t).exp(), sympy_fun=sympy.gamma, domain=(0, 100))
    try:
        at = rows(2)
        assert torch.allclose(kanpiler([x, y], 2 * sympy.gamma(x + 1))(at), 2 * torch.lgamma(at[:, :1] + 1).exp())
    finally:
        from fastkan.symbolic import remove_symbolic

        remove_symbolic("gamma")


WRONG_IN_PYKAN = {
    20: "v for u twice",
    113: "x for omega",
    114: "a tensor as an index",
}  # errors in pykan's functions f; its formulas are right


def test_feynmans_equations() -> None:
    theirs = kan("feynman").get_feynman_dataset
    for number in ("test", *range(1, 121)):
        symbols, _, f, ranges = fastkan.get_feynman_dataset(number)
        their_symbols, their_formula, their_f, their_ranges = theirs(number)
        assert list(map(str, symbols)) == list(map(str, their_symbols))
        their_ranges = their_ranges if isinstance(their_ranges[0], list) else [their_ranges] * len(symbols)
        limits = torch.tensor(ranges)
        expected = [[float(end) for end in each] for each in their_ranges]
        assert torch.allclose(limits, torch.tensor(expected), atol=1e-6), number
        draw = torch.rand(40, len(symbols), generator=torch.Generator().manual_seed(1))
        at = limits[:, 0] + draw * (limits[:, 1] - limits[:, 0])
        own = f(at)
        by_formula = torch.as_tensor(sympy.lambdify(their_symbols, their_formula, "numpy")(*at.T.numpy()))
        assert torch.allclose(own[:, 0], by_formula, rtol=1e-9, equal_nan=True), number
        if number not in WRONG_IN_PYKAN:
            assert torch.allclose(own, their_f(at), rtol=1e-9, equal_nan=True), number
    assert fastkan.get_feynman_dataset("I.12.11")[1] == fastkan.get_feynman_dataset(12)[1]
    assert fastkan.get_feynman_dataset("I.18.4")[0] != fastkan.get_feynman_dataset("I.18.12")[0]
    for wrong, error in (("I.12.1x", ValueError), (0, ValueError), (121, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="name must be"):
            fastkan.get_feynman_dataset(wrong)


@pytest.mark.parametrize("number", range(3, 121, 13))
def test_feynmans_equations_become_networks(number: int) -> None:
    symbols, formula, f, ranges = fastkan.get_feynman_dataset(number)
    limits = torch.tensor(ranges)
    at = limits[:, 0] + torch.rand(30, len(symbols)) * (limits[:, 1] - limits[:, 0])
    assert torch.allclose(kanpiler(symbols, formula)(at), f(at), rtol=1e-8, equal_nan=True)


def test_an_auxiliary_input_is_named_by_its_expression() -> None:
    ratio, own = sympy.symbols("ratio own")
    model = kanpiler([ratio, own], 2 * ratio * own)
    assert sympy.simplify(model.symbolic_formula([x / y, y])[0][0] - 2 * x) == 0


def test_arguments_that_do_not_fit_together() -> None:
    f, x = (lambda x: x[:, [0]] * (x[:, [1]] + x[:, [2]])), torch.rand(20, 3)
    a, b, c = symbols = sympy.symbols("a b c")
    network, y = fastkan.MLP([3, 1]), torch.rand(20, 1)
    nan = torch.full_like(x, torch.nan)
    for call, message in (
        (lambda: fastkan.get_tree_node(f, x, [[[0], [1]], [[0, 1]]]), "moleculess must have each of 3 inputs once"),
        (lambda: fastkan.get_tree_node(f, x, [[[0, 1], [2]], [[0], [1, 2]]]), "moleculess must join whole groups"),
        (lambda: fastkan.detect_separability(f, x, n_clusters=[1, 2, 3]), "n_clusters must be one number, or the"),
        (lambda: fastkan.detect_separability(f, x, n_clusters=4), "n_clusters must be from 1 to 3"),
        (lambda: fastkan.detect_separability(f, nan), "x must be finite, got 60 NaN"),
        (lambda: fastkan.test_separability(f, x, [[0], [0, 1]]), "groups must name inputs from 0 to 2, each once"),
        (lambda: fastkan.test_symmetry(f, x, [3]), "group must name inputs from 0 to 2"),
        (lambda: fastkan.get_dependence(f, x, []), "group must name at least one input"),
        (lambda: fastkan.test_symmetry(f, x[:1], [0]), "x must have at least 2 rows, got 1"),
        (lambda: fastkan.test_symmetry_var(f, x, [a, b], a), "input_vars must be 3 symbols"),
        (lambda: fastkan.test_symmetry_var(f, x, symbols, sympy.Symbol("w")), "symmetry_var must contain some of the"),
        (lambda: fastkan.test_symmetry_var(f, x, symbols, a / sympy.Symbol("w")), "symmetry_var: w is none of"),
        (lambda: fastkan.augment_input(symbols, ["a +"], x), r"aux_vars\[0\] must be a sympy expression"),
        (lambda: fastkan.augment_input([1, b, c], [b], x), r"orig_vars\[0\] must be a symbol, got 1"),
        (lambda: fastkan.augment_input(symbols, [b], {"test_input": x}), "a dataset with train_input"),
        (lambda: fastkan.kanpiler([a, b], a / 0), "expr: .* is not a finite real number"),
        (lambda: fastkan.get_derivative(torch.nn.Linear(3, 1), x, y), "model must be a KAN or an MLP, got Linear"),
        (lambda: fastkan.get_derivative(network, x, y[:5]), r"labels must have the shape \[20, 1\], got \[5, 1\]"),
        (lambda: fastkan.LBFGS([]), "params must be the parameters to train"),
        (lambda: network(x[:, :2]), r"x must have the shape \[\.\.\., 3\], got \[20, 2\]"),
        (lambda: network(x.half()), "weight is torch.float64, but x is torch.float16"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_texts_are_read_as_sympy_reads_them() -> None:
    x = torch.rand(20, 2)
    got = fastkan.augment_input(["a", "b"], ["a / b"], x)
    torch.testing.assert_close(got, torch.cat([x[:, :1] / x[:, 1:], x], 1))
    model = fastkan.kanpiler(["a", "b"], "sin(a) + b**2")
    torch.testing.assert_close(model(x), x[:, :1].sin() + x[:, 1:] ** 2)
