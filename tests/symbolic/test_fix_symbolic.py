"""``fix_symbolic``, ``unfix_symbolic``, ``set_mode`` and ``suggest_symbolic`` for single edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spline_cases import assert_same, network, shaped, state_of

from fastkan import SYMBOLIC_LIB
from fastkan.symbolic.fix import MODES, suggest_symbolic

# -- fix_symbolic --------------------------------------------------------------------------------------


def test_a_fit_finds_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    model = shaped(lambda x: 2 * torch.sin(3 * x + 1) - 0.5, torch.square)
    y = model(model.sample).detach()
    r2 = model.fix_symbolic(0, 0, 0, "sin")
    assert isinstance(r2, float)
    assert r2 > 1 - 1e-9
    assert model.symbolic[0].affine[0].tolist() == pytest.approx([3, 1, 2, -0.5], abs=1e-4)
    assert model.layers[0].mask.tolist() == [[0], [1]]
    assert (model(model.sample) - y).abs().max() < 1e-4
    assert capsys.readouterr().out == "edge (0, 0, 0): sin, R2 1.000000\n"


def test_a_poor_fit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = shaped(lambda x: torch.sin(9 * x))
    r2 = model.fix_symbolic(0, 0, 0, "exp")
    assert r2 is not None
    assert r2 < 0.5
    assert "suggest_symbolic(0, 0, 0) ranks others" in capsys.readouterr().out


def test_a_fit_is_to_the_function_that_the_edge_is_now() -> None:
    """The fit is to the edge's present function, also if that is a formula or the sum of both."""
    model = network([1, 1])
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    assert model.fix_symbolic(0, 0, 0, "cos", verbose=False) == pytest.approx(1)
    assert (model(model.sample) - model.sample.sin()).abs().max() < 1e-6
    assert [edge.name for edge in model.symbolic[0].edges] == ["cos"]


def test_ranges_bound_a_and_b() -> None:
    model = shaped(lambda x: torch.sin(3 * x + 1))
    model.fix_symbolic(0, 0, 0, "sin", a_range=(-2, 2), b_range=(-0.5, 0.5), verbose=False)
    a, b, _, _ = model.symbolic[0].affine[0].tolist()
    assert -2 <= a <= 2
    assert -0.5 <= b <= 0.5


def test_without_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    assert model.fix_symbolic(1, 2, 0, "tanh", fit_params_bool=False) is None
    assert model.symbolic[1].affine.tolist() == [[1, 0, 1, 0]]
    model.fix_symbolic(1, 1, 0, "tanh", fit_params_bool=False, random=True)
    drawn = model.symbolic[1].affine[0]
    assert drawn.abs().max() <= 1
    assert len(set(drawn.tolist())) == 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verbose", [False, 0])
def test_silence(verbose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.fix_symbolic(0, 0, 0, "x", verbose=verbose)
    model.suggest_symbolic(0, 1, 0, lib=["x"], verbose=verbose)
    model.auto_symbolic(lib=["x"], verbose=verbose)
    assert capsys.readouterr() == ("", "")


def test_the_function_0_is_a_constant_and_always_allowed() -> None:
    model = network([1, 1])
    mean = model(model.sample).mean().item()
    assert model.fix_symbolic(0, 0, 0, "0", verbose=False) == pytest.approx(0, abs=1e-9)
    assert (model(model.sample) - mean).abs().max() < 1e-12
    model.set_mode(0, 0, 0, "off")
    model.fix_symbolic(0, 0, 0, "0", verbose=False)
    assert model(model.sample).abs().max() == 0


def test_a_dead_edge_has_nothing_to_fit() -> None:
    model = network()
    model.remove_edge(0, 1, 2)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"edge \(0, 1, 2\) is off, so 'sin' cannot be fitted to it"):
        model.fix_symbolic(0, 1, 2, "sin")
    assert_same(model, before)
    model.fix_symbolic(0, 1, 2, "sin", fit_params_bool=False)
    assert model.symbolic[0].name(1, 2) == "sin"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((2, 0, 0, "sin"), {}, ValueError, "l must be below 2, the number of layers; got 2"),
        ((0, 2, 0, "sin"), {}, ValueError, "i must be below 2, the inputs of layer 0; got 2"),
        ((0, 0, 3, "sin"), {}, ValueError, "j must be below 3, the outputs of layer 0; got 3"),
        ((0, -1, 0, "sin"), {}, ValueError, "i must be at least 0, got -1"),
        ((0, 0.0, 0, "sin"), {}, TypeError, "i must be an int, got float"),
        ((0, 0, 0, torch.sin), {}, TypeError, r"fun_name must be a name: .* by add_symbolic\(name, fun\)"),
        ((0, 0, 0, 3), {}, TypeError, "must be a str, got int"),
        ((0, 0, 0, "Sine"), {}, ValueError, r"fun_name must be in the library, got 'Sine'; did you mean 'sin'"),
        ((0, 0, 0, "zeta"), {}, ValueError, "add_symbolic adds new functions"),
        ((0, 0, 0, "sin"), {"a_range": (1, -1)}, ValueError, r"a_range must be finite and increasing, got \(1, -1\)"),
        ((0, 0, 0, "sin"), {"b_range": 3}, TypeError, "b_range must be two numbers, got 3"),
    ],
)
def test_what_fix_symbolic_refuses(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = network()
    before = state_of(model)
    with pytest.raises(error, match=message):
        model.fix_symbolic(*arguments, **options)
    assert_same(model, before)


def test_log_history_has_no_meaning() -> None:
    with pytest.warns(UserWarning, match="log_history has no meaning here"):
        network().fix_symbolic(0, 0, 0, "x", verbose=False, log_history=True)


# -- unfix_symbolic, set_mode --------------------------------------------------------------------------


def test_unfix_brings_the_spline_back() -> None:
    model = network()
    y = model(model.sample).detach()
    model.fix_symbolic(0, 1, 2, "exp", verbose=False)
    model.fix_symbolic(1, 0, 0, "x", verbose=False)
    assert not torch.equal(model(model.sample), y)
    model.unfix_symbolic(0, 1, 2)
    assert model.symbolic[0].edges == ()
    assert bool(model.layers[0].mask.all())
    assert model.symbolic[1].name(0, 0) == "x"
    model.unfix_symbolic(1, 0, 0)
    assert torch.equal(model(model.sample), y)


def test_unfix_all() -> None:
    model = network()
    y = model(model.sample).detach()
    model.auto_symbolic(verbose=0, r2_threshold=0, lib=["x", "sin"])
    assert [len(symbolic.edges) for symbolic in model.symbolic] == [6, 3]
    model.unfix_symbolic_all()
    assert [len(symbolic.edges) for symbolic in model.symbolic] == [0, 0]
    assert torch.equal(model(model.sample), y)
    model.unfix_symbolic_all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.unfix_symbolic(0, 1, 2), r"edge \(0, 1, 2\) must be symbolic to be unfixed"),
        (lambda m: m.unfix_symbolic(2, 0, 0), "l must be below 2"),
        (lambda m: m.set_mode(0, 1, 2, "s"), r"a formula, but edge \(0, 1, 2\) has none: give it one by fix_symbol"),
        (lambda m: m.set_mode(0, 1, 2, "sn"), r"a formula, but edge \(0, 1, 2\) has none: give it one by fix_symbol"),
        (lambda m: m.set_mode(0, 0, 0, "x"), "mode must be one of 'n', 's', 'sn', 'ns', 'off'; got 'x'"),
    ],
)
def test_what_unfix_and_set_mode_refuse(call: Any, message: str) -> None:
    model = network()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        call(model)
    assert_same(model, before)


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    model = network([1, 1])
    x = model.sample
    spline = model(x).detach()
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    model.set_mode(0, 0, 0, mode)
    expected = {"n": spline, "s": x.sin(), "sn": spline + x.sin(), "ns": spline + x.sin(), "off": 0 * x}[mode]
    assert torch.allclose(model(x), expected, rtol=1e-12, atol=1e-12)


# -- suggest_symbolic ----------------------------------------------------------------------------------


def test_suggestions_leave_the_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The model is not changed, as it is in pykan."""
    model = shaped(lambda x: torch.exp(2 * x))
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    model.set_mode(0, 0, 0, "sn")
    before, sample, affine = state_of(model), model.sample, model.symbolic[0].affine
    model.suggest_symbolic(0, 0, 0)
    assert_same(model, before)
    assert model.sample is sample
    assert model.symbolic[0].affine is affine


def test_suggestions_are_a_ranked_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = shaped(lambda x: torch.exp(2 * x))
    name, entry, r2, complexity = model.suggest_symbolic(0, 0, 0, topk=3)
    assert (name, entry, complexity) == ("exp", SYMBOLIC_LIB["exp"], 2)
    assert r2 > 1 - 1e-7
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["function", "R2", "complexity", "loss"]
    assert len(lines) == 4
    assert lines[1].split()[:3] == ["exp", "1.000000", "2"]
    assert len({len(line) for line in lines}) == 1
    losses = [float(line.split()[3]) for line in lines[1:]]
    assert losses == sorted(losses)


def test_weights_decide_what_is_best() -> None:
    model = shaped(lambda x: x + 0.05 * torch.sin(4 * x))
    lib = ["x", "sin", "tanh"]
    names = {w: model.suggest_symbolic(0, 0, 0, lib=lib, weight_simple=w, verbose=False)[0] for w in (0.0, 1.0)}
    assert names[1.0] == "x"
    assert names[0.0] != "x"
    found = suggest_symbolic(model, 0, 0, 0, lib=lib, verbose=False, weight_simple=1.0, c_loss_fun=lambda c: -c)
    assert found[0] == "tanh"
    found = suggest_symbolic(model, 0, 0, 0, lib=lib, verbose=False, weight_simple=0.0, r2_loss_fun=lambda r2: 100 * r2)
    assert found[2] == min(model.suggest_symbolic(0, 0, 0, lib=[name], verbose=False)[2] for name in lib)


@pytest.mark.parametrize("ask", ["suggest_symbolic", "auto_symbolic"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lib": ["sin", "sinus"]}, ValueError, "lib must be in the library, got 'sinus'; did you mean 'sin'"),
        ({"lib": [torch.sin]}, TypeError, "lib must be a name: give the function one by add_symbolic"),
        ({"lib": "sin"}, TypeError, "lib must be names of functions in a list, got 'sin'"),
        ({"lib": []}, ValueError, "lib must name a function, got none"),
        ({"a_range": (3, 3)}, ValueError, "a_range must be finite and increasing"),
        ({"weight_simple": 2}, ValueError, "weight_simple must be from 0 to 1, got 2"),
        ({"weight_simple": "1"}, TypeError, "weight_simple must be a number, got str"),
    ],
)
def test_what_is_refused(ask: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    before = state_of(model)
    edge = (0, 0, 0) if ask == "suggest_symbolic" else ()
    with pytest.raises(error, match=message):
        getattr(model, ask)(*edge, **options)
    assert_same(model, before)
