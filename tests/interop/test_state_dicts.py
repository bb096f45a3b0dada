"""Conversion of other packages' checkpoints, and export to these packages."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import peers
import pytest
import torch
from peers import SOURCES, D, close, columns, formula, inkan, points, pykan, value, with_formulas
from torch import Tensor, nn

from fastkan import (
    KAN,
    KANConv1d,
    KANConv2d,
    KANLinear,
    convert,
    convert_state_dict,
    to_efficient_kan_state_dict,
    to_pykan,
)


@pytest.mark.parametrize("name", [name for name in SOURCES if "formulas" not in name and "some inputs" not in name])
def test_a_state_dict_is_that_of_the_converted_model(name: str) -> None:
    source = SOURCES[name](dtype=D)
    ours, found = convert(source), convert_state_dict(source.state_dict())
    state = ours.state_dict()
    alone = {"node_scale", "node_bias", "subnode_scale", "subnode_bias", "symbolic", "input_id"}
    if "pykan" not in name:
        state = {key: value for key, value in state.items() if key.split(".")[0] not in alone}
    if "zero" in name:  # a state_dict doesn't contain the base function
        found = {key: value for key, value in found.items() if "base_weight" not in key}
    assert found.keys() == state.keys()
    for key, each in state.items():
        if isinstance(each, Tensor):
            torch.testing.assert_close(found[key], each, rtol=1e-12, atol=1e-12)
        else:
            assert found[key] == each


def test_it_loads_into_a_model_made_alike() -> None:
    source = pykan((2, (2, 1), 1), grid=6, affine=True)
    ours = KAN([2, [2, 1], 1], grid=6, dtype=D)
    ours.load_state_dict(convert_state_dict(source.state_dict()))
    x = points(2)
    close(ours(x).detach(), source(x).detach())


def test_layers_in_a_checkpoint_of_a_larger_model() -> None:
    source = nn.Sequential(nn.Linear(2, 3), nn.Sequential(inkan(3, 4), peers.KANLinear(4, 2)))
    state = {f"model.{name}": tensor for name, tensor in source.double().state_dict().items()}
    found = convert_state_dict(state)
    ours = nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 3), nn.Sequential(
        KANLinear(3, 4, 7), KANLinear(4, 2, spline_scale=True)))}).double()  # fmt: skip
    ours.load_state_dict(found)
    assert found["model.0.weight"] is state["model.0.weight"]
    x = points(2)
    close(ours["model"](x).detach(), source(x).detach())


def test_entries_that_are_no_tensors_and_parts_of_a_network() -> None:
    layer = {**inkan(3, 2).state_dict(), "epoch": 3, "norm.weight": None}
    found = convert_state_dict(layer)
    assert set(found) == {"spline_weight", "base_weight", "knots", "epoch", "norm.weight"}
    part = {f"net.{name}": value for name, value in pykan().state_dict().items() if "act_fun.0" not in name}
    found = convert_state_dict(part)
    assert {"net.layers.1.knots", "net.node_bias.0"} <= set(found)
    assert not any("act_fun" in name or "input_id" in name for name in found)


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


def coincident(knots: Tensor) -> Tensor:
    knots = knots.clone()
    knots[0, 5] = knots[0, 4]
    return knots


def misfit() -> dict[str, Any]:
    return {**peers.KANLinear(2, 3).state_dict(), "base_weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: [1], "state_dict must be a dictionary with strings as keys, got list"),
        (lambda: {}, r"state_dict must hold layers of efficient-kan \(grid, spline_weight\)"),
        (lambda: nn.Linear(2, 2).state_dict(), "it has none"),
        (lambda: with_formulas().state_dict(), "symbolic_fun.0: it has formulas, whose names.*convert the model"),
        (lambda: inkan(2, 1, dim=2).state_dict(), "belongs to inkan's dim=2, a surface"),
        (lambda: {"model": inkan(3, 2).state_dict()}, "it has none, but a dictionary under 'model'"),
        (
            lambda: {**peers.KANLinear(2, 3).state_dict(), "gain": torch.ones(3)},
            "gain, which efficient-kan's layer does not have",
        ),
        (lambda: inkan(3, 2).to("meta").state_dict(), "weight is on the meta device"),
        (lambda: without(pykan().state_dict(), "symbolic_fun.0.mask"), "symbolic_fun.0: it lacks mask"),
        (
            lambda: (s := peers.KANLinear(2, 3).state_dict()) | {"grid": coincident(s["grid"])},
            r"knots of the inputs \[0\] coincide, where efficient-kan",
        ),
        (misfit, r"base_weight must have the shape \[2, 3\] in fastkan's layout, got \[2, 2\]"),
    ],
    ids=["list", "empty", "linear", "formulas", "surface", "nested", "gain", "meta", "no mask", "knots", "misfit"],
)
def test_other_state_dicts_are_refused(state: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        convert_state_dict(state())


# -- export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standalone", [True, False])
@pytest.mark.parametrize("options", [{}, {"spline_scale": True}, {"base": "none"}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_to_efficient_kan(masked: bool, options: dict[str, Any], standalone: bool) -> None:
    layer = KANLinear(3, 4, 6, 2, dtype=D, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    if masked:
        layer.set_mask(torch.tensor([[1, 0, 1, 1]] * 3))
    theirs = peers.KANLinear(3, 4, 6, 2, scaled=standalone)
    theirs.load_state_dict(to_efficient_kan_state_dict(layer, standalone_scale=standalone))
    x = points(3)
    close(theirs(x).detach(), layer(x).detach())
    assert all(t.is_contiguous() for t in to_efficient_kan_state_dict(layer).values())


def test_there_and_back_is_the_same_state_dict() -> None:
    for source in (peers.KAN([3, 4, 2]), nn.Sequential(nn.Linear(2, 3), peers.KANLinear(3, 2))):
        state, found = source.state_dict(), to_efficient_kan_state_dict(convert(source))
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(found[name], tensor)


def network(**change: Any) -> KAN:
    model = KAN([2, 3, 1], dtype=D)
    if "formula" in change:
        model.fix_symbolic(0, 0, 0, change["formula"], fit_params_bool=False)
    if "affine" in change:
        model.node_scale[0].data[0] = 2
    return model


def adapted(layer: KANLinear) -> KANLinear:
    layer.set_knots(coincident(layer.knots))
    return layer


def test_hooks_are_no_reason_to_refuse() -> None:
    model = KAN([2, 3, 1])
    expected = to_efficient_kan_state_dict(model)
    model.layers[0].register_forward_hook(lambda *of: None)
    assert to_efficient_kan_state_dict(model).keys() == expected.keys()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: 3, "module must be a Module, got int"),
        (lambda: KANLinear(2, 3, bias=True), "module has a bias"),
        (lambda: nn.Sequential(KANLinear(2, 3, base="identity")), "0 has the base function identity"),
        (lambda: KANLinear(2, 3, outside="linear"), "outside='linear', which efficient-kan does not support"),
        (lambda: network(formula="sin"), "module must have only spline layers"),
        (lambda: network(affine=True), "module must have only spline layers"),
        (lambda: KAN([2, [1, 1], 1]), "module must have only spline layers"),
        (lambda: KAN([2, 2, 1]).prune_input(active_inputs=[1]), "module must have only spline layers"),
        (lambda: KAN([4, 2, 1]).prune_input(active_inputs=[1, 3]), "module must have only spline layers"),
        (lambda: adapted(KANLinear(2, 3)), "module has coincident knots"),
        (lambda: nn.Sequential(KANConv1d(2, 3, 3)), "0 has the windows of a convolution"),
    ],
    ids=["number", "bias", "identity", "linear", "formula", "affine", "products", "column", "columns", "knots", "conv"],
)
def test_what_efficient_kan_has_not_is_refused(module: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        to_efficient_kan_state_dict(module())


@pytest.mark.parametrize("name", [name for name in SOURCES if "some inputs" not in name])
def test_to_pykan_and_back(name: str) -> None:
    pytest.importorskip("kan")
    ours = convert(SOURCES[name](dtype=D))
    theirs = to_pykan(ours)
    x = points(columns(SOURCES[name](dtype=D)))
    close(value(theirs, x).detach(), ours(x).detach())
    again = convert(theirs)
    close(again(x).detach(), ours(x).detach())


def test_to_pykan_keeps_what_is_trained_and_disturbs_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("kan")
    source = with_formulas(sp_trainable=False, affine_trainable=True)
    formula(source, 1, 0, 0, "sin", (1, 0, 1, 0))
    ours = convert(source)
    ours.input_id, ours.in_features = torch.tensor([2, 0]), 3

    def generators() -> list[bytes]:
        numpys = np.random.get_state()  # noqa: NPY002 - the one that pykan seeds
        return [repr(random.getstate()).encode(), numpys[1].tobytes(), bytes(torch.get_rng_state().tolist())]

    before = generators()
    theirs = to_pykan(ours)
    assert generators() == before
    assert capsys.readouterr().out == ""
    x = points(3)
    close(theirs(x).detach(), ours(x).detach())
    for l in range(2):
        assert theirs.act_fun[l].coef.requires_grad
        assert not theirs.act_fun[l].scale_sp.requires_grad
        assert theirs.node_bias[l].requires_grad
        assert theirs.symbolic_fun[l].funs_name == source.symbolic_fun[l].funs_name


def test_to_pykan_in_half_precision() -> None:
    pytest.importorskip("kan")
    ours = KAN([2, 3, 1]).half()
    x = points(2, dtype=torch.float16)
    torch.testing.assert_close(to_pykan(ours)(x), ours(x), rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(2, 2), "model must be a KAN or KANLinear, got Linear"),
        (lambda: KANLinear(2, 2, bias=True), "layer 0 has a bias"),
        (lambda: KANLinear(2, 2, outside="linear"), "layer 0 has outside='linear'"),
        (lambda: adapted(KANLinear(2, 2)), "layer 0 has coincident knots"),
        (lambda: KANConv2d(2, 2, 1), "layer 0 has the windows of a convolution"),
        (lambda: network(formula="cosh"), r"edge \(0, 0, 0\) has the formula 'cosh', which pykan does not have"),
    ],
    ids=["linear", "bias", "outside", "knots", "conv", "formula"],
)
def test_what_pykan_has_not_is_refused(model: Any, message: str) -> None:
    pytest.importorskip("kan")
    with pytest.raises((TypeError, ValueError), match=message):
        to_pykan(model())
