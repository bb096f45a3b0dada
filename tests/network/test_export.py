"""Layers and networks as programs of other runtimes: torch.export, ONNX, AOTInductor, torch.jit and torch.fx."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import same
from torch import nn
from torch.export import Dim

from fastkan import KAN, KANLinear


def make_layer(outside: str = "zero") -> KANLinear:
    layer = KANLinear(2, 3, bias=True, spline_scale=True, outside=outside)
    layer.set_mask(torch.tensor([[1, 0, 1], [1, 1, 1]]))
    return layer


def make_network(outside: str = "zero") -> KAN:
    """A network with splines on adapted knots, formulas, an edge that is both, a multiplication node, affine maps, and
    a second layer that is all formulas."""
    model = KAN([2, [2, 1], 1], grid=[5, 3], seed=0, outside=outside, affine_trainable=True)
    model.update_grid(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
    edges = [(0, 0, 0, "sin"), (0, 1, 2, "exp"), (0, 0, 3, "x^2"), (1, 0, 0, "tanh"), (1, 1, 0, "x"), (1, 2, 0, "sin")]
    for l, i, j, name in edges:
        model.fix_symbolic(l, i, j, name, fit_params_bool=False)
    model.set_mode(0, 0, 3, "sn")
    with torch.no_grad():
        model.node_scale[0].copy_(torch.tensor([0.5, 2.0, 1.5]))
        model.subnode_bias[0].copy_(torch.tensor([0.1, 0.2, -0.3, 0.4]))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layer": make_layer,
    "linear layer": lambda: make_layer("linear"),
    "network": make_network,
    "linear network": lambda: make_network("linear"),
}


def rows(count: int) -> torch.Tensor:
    return 1.5 * torch.randn(count, 2, generator=torch.Generator().manual_seed(count))


def check(program: Any, model: nn.Module, *counts: int) -> None:
    for count in counts:
        x = rows(count)
        same(program(x), model(x), digits=3e-6)  # of the largest value, since exp and products enlarge roundings


@pytest.mark.parametrize("name", MODELS)
def test_exported_programs_take_any_batch(name: str) -> None:
    model = MODELS[name]()
    program = torch.export.export(model, (rows(7),), dynamic_shapes=({0: Dim("batch")},))
    check(program.module(), model, 0, 1, 2, 33)


@pytest.mark.parametrize("name", ["layer", "linear network"])
def test_onnx_programs_take_any_batch(name: str, tmp_path: Path) -> None:
    """Each case takes about ten seconds, nearly all of them in the exporter."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = MODELS[name]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (rows(7),), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False
        )
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (given,) = session.get_inputs()
    check(lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0]), model, 1, 7, 33)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    """A C++ compiler takes most of the time, 14 seconds of processor time for the smallest layer."""
    model = KAN([2, 1], grid=2, k=1, seed=0).eval()
    model.fix_symbolic(0, 1, 0, "sin", fit_params_bool=False)
    program = torch.export.export(model, (rows(7),), dynamic_shapes=({0: Dim("batch", min=2)},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    check(torch._inductor.aoti_load_package(package), model, 2, 7, 33)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_traced_by_jit(name: str) -> None:
    model = MODELS[name]()
    check(torch.jit.trace(model, (rows(7),)), model, 1, 7, 33)


class Nested(nn.Module):
    """A module of a user, whose own operations are traced around the network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):  # torch cannot pickle a traced module whose annotations are strings
        return torch.sin(self.inner(x * 0.9)) + 1


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_traced_by_fx(name: str, nested: bool) -> None:
    """The traced module is the model, also after knots, masks, affine maps and columns have changed."""
    model = MODELS[name]()
    if nested:
        model = Nested(model)
    traced = torch.fx.symbolic_trace(model)
    assert {id(p) for p in traced.parameters()} <= {id(p) for p in model.parameters()}
    check(traced, model, 0, 1, 7)
    x = rows(12).view(3, 4, 2)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-6)
    if nested:
        check(pickle.loads(pickle.dumps(traced)), model, 7)
    check(copy.deepcopy(traced), model, 7)
    x = rows(9)
    names = [each for each, p in model.named_parameters() if p.requires_grad]
    by_source = torch.autograd.grad(model(x).square().sum(), [model.get_parameter(each) for each in names])
    by_traced = torch.autograd.grad(traced(x).square().sum(), [traced.get_parameter(each) for each in names])
    for one, other in zip(by_source, by_traced):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    before = model(x)
    for module in model.modules():
        if isinstance(module, KANLinear):
            with torch.no_grad():
                module.knots.copy_(module.knots + 0.1 * torch.linspace(-1, 1, module.knots.shape[1]).square())
                module.mask[-1] = 1.0
        elif isinstance(module, KAN):
            with torch.no_grad():
                module.node_bias[0].fill_(0.3)
                module.input_id.copy_(torch.tensor([1, 0]))
    assert (model(x) - before).abs().max() > 1e-4
    check(traced, model, 7)


def test_a_layer_in_a_sequence_is_one_node_of_the_graph() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), KANLinear(2, 3)))
    assert [(node.op, node.target) for node in traced.graph.nodes][1:3] == [("call_module", "0"), ("call_module", "1")]


def test_formulas_that_are_fixed_after_the_trace_are_followed() -> None:
    model = KAN([2, 2, 1], seed=0)
    traced, nested = torch.fx.symbolic_trace(model), torch.fx.symbolic_trace(Nested(model))
    x = rows(7)
    for change in (
        lambda: model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False),
        lambda: model.fix_symbolic(1, 1, 0, "exp", fit_params_bool=False),
        lambda: model.unfix_symbolic(0, 0, 0),
    ):
        before = model(x)
        change()
        assert (model(x) - before).abs().max() > 1e-2
        check(traced, model, 7)
        torch.testing.assert_close(nested(x), Nested(model)(x), rtol=1e-5, atol=1e-6)


class Adapting(Nested):
    def forward(self, x):
        return self.inner(x, update_grid=True)


def test_grid_updates_are_not_recorded() -> None:
    model = KAN([2, 1], seed=0)
    with pytest.raises(ValueError, match="update_grid=True cannot be recorded"):
        torch.fx.symbolic_trace(Adapting(model))
    traced = torch.fx.symbolic_trace(model)
    with pytest.raises(ValueError, match="update_grid=True cannot be recorded"):
        traced(rows(7), update_grid=True)
    check(traced, model, 7)
