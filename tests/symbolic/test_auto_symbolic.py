"""``auto_symbolic``: all edges become formulas at once, and the report names those that don't fit."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from spline_cases import assert_same, network, shaped, state_of, through

from fastkan import KAN, SYMBOLIC_LIB, create_dataset
from fastkan.layers.edge_functions import edge_functions
from fastkan.symbolic import auto


def test_all_edges_become_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    model = KAN(width=[2, 1, 1], grid=5, seed=0, dtype=torch.float64)
    data = create_dataset(lambda x: torch.exp(x[:, [0]] + x[:, [1]] ** 2), 2, dtype=torch.float64)
    model.fit(data, steps=60, progress=False)
    report = model.auto_symbolic()
    assert [(edge.l, edge.i, edge.j, edge.name) for edge in report] == [
        (0, 0, 0, "x"), (0, 1, 0, "x^2"), (1, 0, 0, "exp")
    ]  # fmt: skip
    assert all(edge.r2 > 0.999 and edge.complexity == SYMBOLIC_LIB[edge.name].complexity for edge in report)
    assert report.numeric == []
    assert [model._has_numeric_edges(layer) for layer in range(2)] == [False, False]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["edge", "function", "R2", "complexity"]
    assert lines[1].split()[:4] == ["(0,", "0,", "0)", "x"]
    assert lines[-1] == "3 edges became formulas, 0 stay numeric"
    model.fit(data, steps=30, progress=False)
    assert model.evaluate(data)["test_loss"] < 1e-5


def test_what_does_not_fit_stays_numeric_and_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    model = shaped(lambda x: torch.sin(3 * x), lambda x: torch.sin(20 * x**3) + 0.3 * x.abs().sqrt())
    spline = model.layers[0].spline_weight.detach().clone()
    y = model(model.sample).detach()
    report = model.auto_symbolic(lib=["x", "sin", "exp", "tanh"])
    assert [edge.name for edge in report] == ["sin", None]
    (left,) = report.numeric
    assert left[:3] == (0, 1, 0)
    assert left.r2 < 0.99
    assert left.best in ("x", "sin", "exp", "tanh")
    assert model.layers[0].mask.tolist() == [[0], [1]]
    assert torch.equal(model.layers[0].spline_weight, spline)
    assert (model(model.sample) - y).abs().max() < 1e-4
    out = capsys.readouterr().out
    assert f"stays numeric, best is {left.best}" in out
    assert "1 edges became formulas, 1 stay numeric" in out
    assert "no R2 reaches r2_threshold=0.99" in out
    with pytest.raises(ValueError, match=r"numeric='raise' needs a network without spline edges.*: \(0, 1, 0\)\. "):
        model.symbolic_formula(numeric="raise")


def test_forced_every_edge_gets_its_best_function(capsys: pytest.CaptureFixture[str]) -> None:
    """force=True makes every edge a formula, as in pykan, without changing those that fit anyway."""
    lib = ["x", "sin", "exp", "tanh"]
    model = shaped(lambda x: torch.sin(3 * x), lambda x: torch.sin(20 * x**3) + 0.3 * x.abs().sqrt())
    left = model.copy().auto_symbolic(lib=lib, verbose=0)
    report = model.auto_symbolic(lib=lib, force=True)
    assert report.numeric == []
    assert report[0] == left[0]
    assert report[1].name == report[1].best == left[1].best
    assert report[1].r2 == left[1].r2 < 0.99
    assert "2 edges became formulas, 0 stay numeric" in capsys.readouterr().out
    assert not model._has_numeric_edges(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.symbolic_formula()


def test_the_threshold_decides() -> None:
    for threshold, expected in ((0.0, 0), (0.9, 0), (0.999, 1)):
        model = shaped(lambda x: x + 0.1 * torch.sin(9 * x))
        report = model.auto_symbolic(lib=["x", "tanh"], verbose=0, r2_threshold=threshold)
        assert len(report.numeric) == expected
        assert 0.9 < report[0].r2 < 0.999


def test_simplicity_counts_among_those_that_fit_only() -> None:
    """The constant "0" has complexity 0, so its loss is least if nothing fits, but it is not chosen for that."""
    model = shaped(lambda x: x + 0.3 * torch.sin(9 * x))
    report = model.auto_symbolic(lib=["0", "x"], verbose=0, r2_threshold=0.5, weight_simple=1.0)
    assert report[0].name == "x"
    assert model.copy().auto_symbolic(lib=["0"], verbose=0) == []


def test_edges_off_and_formulas_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.remove_edge(0, 0, 0)
    model.fix_symbolic(0, 1, 1, "sin", fit_params_bool=False)
    model.fix_symbolic(1, 0, 0, "x", fit_params_bool=False)
    model.set_mode(1, 0, 0, "sn")
    report = model.auto_symbolic(lib=["x"], r2_threshold=0)
    done = [edge[:3] for edge in report]
    assert done == [(0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 2), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    assert model.symbolic[0].name(0, 0) is None
    assert model.symbolic[0].name(1, 1) == "sin"
    assert report.kept == 1
    assert "7 edges became formulas, 0 stay numeric, 1 were before" in capsys.readouterr().out
    assert not any(model._has_numeric_edges(layer) for layer in range(2))


def test_formulas_are_fitted_to_what_really_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is fitted to the outputs of the formulas before it, not of the splines.

    c |x| + d in the place of x^2 is negative at 0, where a root fitted to the spline's outputs would be NaN.
    """
    model = KAN(width=[1, 1, 1], grid=40, base_fun="zero", dtype=torch.float64)
    through(model.layers[0], 0, torch.square)
    through(model.layers[1], 0, lambda z: z.clamp(min=0).sqrt())
    x = torch.linspace(-0.99, 0.99, 400, dtype=torch.float64).unsqueeze(1)
    model.get_act(x)
    monkeypatch.setattr(auto, "_absorb_arguments", lambda *_: None)  # The node keeps its scale.
    report = model.auto_symbolic(lib=["abs", "sqrt"], verbose=0, r2_threshold=0.5)
    assert [edge.name for edge in report] == ["abs", "sqrt"]
    assert model.trace()[0].out.min() < -0.1
    assert bool(model(x).isfinite().all())


def small_nodes() -> KAN:
    """A network of splines whose hidden node has a small range and an offset."""
    model = KAN(width=[2, 1, 2], grid=40, base_fun="zero", dtype=torch.float64, seed=0)
    through(model.layers[0], 0, lambda z: 0.07 * torch.sin(3 * z) + 0.5)
    through(model.layers[0], 1, lambda z: 0.07 * z**2 - 0.2)
    through(model.layers[1], 0, lambda z: torch.exp(10 * z - 4), 0)
    through(model.layers[1], 0, lambda z: torch.sin(8 * z), 1)
    model.get_act(torch.rand(500, 2, dtype=torch.float64) * 1.98 - 0.99)
    return model


def test_hidden_nodes_become_arguments_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function stays the same, and float32 rounds it less."""
    model = small_nodes()
    plain, x, lib = model.copy(), model.sample, ["sin", "exp", "x^2"]
    report = model.auto_symbolic(lib=lib, verbose=0)
    assert [edge.name for edge in report] == ["sin", "x^2", "exp", "sin"]
    with monkeypatch.context() as patch:
        patch.setattr(auto, "_absorb_arguments", lambda *_: None)
        plain.auto_symbolic(lib=lib, verbose=0)
    assert (model(x) - plain(x)).abs().max() < 1e-12
    exp, sin = model.symbolic[1].affine.tolist()
    assert exp[:2] == [1.0, 0.0]
    assert sin[0] == pytest.approx(0.8, rel=0.05)
    assert plain.symbolic[1].affine[0, 0].item() == pytest.approx(10, rel=0.05)
    first, second = model.symbolic[0].affine[:, 3].tolist()
    assert first == second

    def rounding(given: KAN) -> float:
        single = given.copy().float()
        return (single(x.float()).double() - single.double()(x.float().double())).square().mean().sqrt().item()

    assert rounding(model) < 0.7 * rounding(plain)


@pytest.mark.parametrize("case", ["bounds", "formula before", "formula behind", "affine map", "spline"])
def test_hidden_nodes_that_stay(case: str) -> None:
    model, options = small_nodes(), {}
    if case == "bounds":
        options = {"a_range": (5, 20)}
    elif case == "formula before":
        model.fix_symbolic(0, 1, 0, "x^2", fit_params_bool=False)
    elif case == "formula behind":
        model.fix_symbolic(1, 0, 1, "sin", fit_params_bool=False)
    elif case == "affine map":
        model.node_scale[0].fill_(2.0)
    before = [symbolic.affine.tolist() for symbolic in model.symbolic]
    lib = ["x^2", "exp"] if case == "spline" else ["sin", "exp", "x^2"]
    report = model.auto_symbolic(lib=lib, verbose=0, r2_threshold=0.99 if case == "spline" else 0.0, **options)
    assert any(edge.name is None for edge in report) == (case == "spline")
    values = [a for a, *_ in model.symbolic[1].affine.tolist()]
    assert 1.0 not in values[:1]
    for symbolic, rows in zip(model.symbolic, before):
        assert all(row in symbolic.affine.tolist() for row in rows)


def test_bad_samples_change_nothing() -> None:
    """An error in the second layer also undoes the first: its values are infinite."""
    model = network([1, 1, 1])
    model.node_scale[0].fill_(math.inf)
    before, first = state_of(model), model.symbolic[0]
    with pytest.raises(ValueError, match="x must be finite"):
        model.auto_symbolic(verbose=0, r2_threshold=0)
    assert_same(model, before)
    assert model.symbolic[0] is first


def test_an_interruption_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = state_of(model)
    search, calls = auto.search, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(*args, **options)

    monkeypatch.setattr(auto, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.auto_symbolic(verbose=0, r2_threshold=0)
    assert len(calls) == 2
    assert_same(model, before)


def test_bounds_and_products() -> None:
    """Multiplication nodes, with bounds on a and b."""
    model = network([2, [1, 2], 1], mult_arity=3)
    report = model.auto_symbolic(a_range=(-1, 1), b_range=(-2, 2), lib=["sin", "x"], verbose=0, r2_threshold=0)
    assert len(report) == 2 * 7 + 3
    for symbolic in model.symbolic:
        a, b = symbolic.affine[:, :2].detach().unbind(1)
        assert bool((a.abs() <= 1).all() & (b.abs() <= 2).all())
    (formula,), _ = model.symbolic_formula()
    assert formula.is_number is False


def test_same_bits_every_time() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(len(states))
        model = KAN(width=[2, 3, 1], seed=0, noise_scale=3.0)
        model.auto_symbolic(verbose=0, r2_threshold=0)
        states.append(state_of(model))
    assert_same(model, states[0])


def test_before_any_forward_and_in_single_precision() -> None:
    model = KAN(width=[2, 2, 1], seed=0, noise_scale=3.0)
    assert len(model.auto_symbolic(verbose=0, r2_threshold=0)) == 6
    assert model(torch.rand(5, 2)).dtype == torch.float32
    assert model.symbolic[0].affine.dtype == torch.float32


# -- edges of little variance -----------------------------------------------------------------------


def rough(size: float) -> KAN:
    """A network of x plus an edge that no function in the library fits, with a mean that is not 0."""
    return shaped(lambda x: x, lambda x: size * (torch.sin(20 * x**3) + 0.3 * x.abs().sqrt() + 2))


def test_an_edge_that_hardly_varies_becomes_a_constant(capsys: pytest.CaptureFixture[str]) -> None:
    model = rough(5e-3)
    x, y = model.sample, model(model.sample).detach()
    own = edge_functions(model.layers[0], model.symbolic[0], x)[:, 1, 0]
    report = model.auto_symbolic(lib=["x", "sin"])
    line, constant = report
    assert line.name == "x"
    assert constant[:4] == (0, 1, 0, "0")
    assert (constant.r2, constant.complexity) == (0, 0)
    assert report.numeric == []
    assert "(0, 1, 0)  0" in capsys.readouterr().out
    assert not model._has_numeric_edges(0)
    left = (model(x) - y).std() / y.std()
    assert 1e-3 < left < 1e-2
    (place,) = (n for n, edge in enumerate(model.symbolic[0].edges) if edge.i == 1)
    assert model.symbolic[0].affine[place].tolist() == pytest.approx([1, 0, 0, own.mean().item()])
    (formula,), names = model.symbolic_formula()
    assert formula.free_symbols == {names[0]}
    computed = sympy.lambdify(names, formula, "numpy")(*x.numpy().T)
    np.testing.assert_allclose(model(x).detach().numpy()[:, 0], computed, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "negligible", "name"),
    [(5e-3, 1e-2, "0"), (5e-3, 0, None), (5e-3, 1e-3, None), (5e-2, 1e-2, None), (5e-2, 0.1, "0"), (5e-2, 1, "0")],
)
def test_how_much_is_negligible(size: float, negligible: float, name: str | None) -> None:
    model = rough(size)
    before = model.layers[0].spline_weight.detach().clone()
    report = model.auto_symbolic(lib=["x", "sin"], negligible=negligible, verbose=0)
    assert [edge.name for edge in report] == ["x", name]
    if name is None:
        assert report[1].best in ("x", "sin")
        assert torch.equal(model.layers[0].spline_weight, before)
        assert model.layers[0].mask.tolist() == [[0], [1]]


def test_what_fits_a_function_gets_it_however_little_it_varies() -> None:
    report = shaped(lambda x: x, lambda x: 1e-4 * torch.sin(3 * x)).auto_symbolic(lib=["x", "sin"], verbose=0)
    assert [edge.name for edge in report] == ["x", "sin"]


def test_little_is_meant_beside_the_sum_with_formulas_in_it() -> None:
    """Two large edges cancel, so that a small third edge is not negligible in their sum."""
    model = shaped(lambda x: x, lambda x: 5e-3 * torch.sin(20 * x**3), lambda x: x)
    model.fix_symbolic(0, 0, 0, "x", fit_params_bool=False)
    with torch.no_grad():
        model.symbolic[0].affine[0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
        through(model.layers[0], 2, lambda x: -x)
    model.sample[:, 2] = model.sample[:, 0]
    copy = model.copy()
    copy.sample = torch.rand_like(model.sample) * 1.98 - 0.99
    assert [edge.name for edge in model.auto_symbolic(lib=["x"], verbose=0)] == [None, "x"]
    assert [edge.name for edge in copy.auto_symbolic(lib=["x"], verbose=0)] == ["0", "x"]


@pytest.mark.parametrize("name", ["weight_simple", "r2_threshold", "negligible"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.5, ValueError, "must be from 0 to 1, got 1.5"),
        (-0.1, ValueError, "must be from 0 to 1, got -0.1"),
        (math.nan, ValueError, "must be from 0 to 1, got nan"),
        ("0", TypeError, "must be a number, got str"),
        (None, TypeError, "must be a number, got NoneType"),
    ],
)
def test_shares_that_are_none(name: str, value: Any, error: type[Exception], message: str) -> None:
    model = network()
    before = state_of(model)
    with pytest.raises(error, match=f"{name} {message}"):
        model.auto_symbolic(**{name: value})
    assert_same(model, before)
