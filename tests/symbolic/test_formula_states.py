"""Formulas in state_dicts and files, and the parameters of formulas that require a gradient."""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import D, mixed, network, parameters_of, points, same, unchanged
from spline_cases import assert_same, state_of
from torch import Tensor, nn

from fastkan import KAN
from fastkan.symbolic import SymbolicEdges, fix


def some_formulas() -> KAN:
    model = network([2, 3, 1], "own", dtype=torch.float32)
    model.fix_symbolic(0, 1, 2, "sin", fit_params_bool=False)
    model.fix_symbolic(1, 0, 0, "1/sqrt(x)", fit_params_bool=False)
    model.unfix_symbolic(1, 0, 0)
    return model


def formulas_alone() -> KAN:
    model = network([2, 2, 1], "own", dtype=torch.float32)
    for i in range(2):
        for j in range(2):
            model.fix_symbolic(0, i, j, "sin", fit_params_bool=False)
    return model


MODELS: dict[str, Callable[[], KAN]] = {
    "no formulas": lambda: network([2, 3, 1], "own", dtype=torch.float32),
    "some formulas": some_formulas,
    "a layer of formulas": formulas_alone,
    "everything": lambda: mixed(dtype=torch.float32),
}


# -- gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_that_asks_for_a_gradient_gets_one(name: str) -> None:
    model = MODELS[name]()
    asking = [p for p in model.parameters() if p.requires_grad]
    assert all(p.numel() for p in model.parameters())
    gradients = torch.autograd.grad(model(points(model)).square().sum(), asking)
    assert all(g.shape == p.shape for g, p in zip(gradients, asking))
    model(points(model)).square().sum().backward()
    assert all(p.grad is not None for p in asking)


@pytest.mark.parametrize("name", list(MODELS))
def test_distributed_data_parallel(name: str) -> None:
    model = MODELS[name]()
    alone = model.copy()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        states = []
        for each, module in ((alone, alone), (model, nn.parallel.DistributedDataParallel(model))):
            optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=1e-3)
            for _ in range(3):
                optimizer.zero_grad()
                module(points(each)).square().mean().backward()
                optimizer.step()
            states.append(parameters_of(each))
        for key, value in states[0].items():
            same(states[1][key].double(), value.double(), digits=1e-6)
    finally:
        torch.distributed.destroy_process_group()


def test_splines_rest_while_their_layer_is_formulas_alone() -> None:
    """Parameters that were frozen before stay frozen, also in copies and files."""
    model = network([2, 2, 1], "own", sb_trainable=False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for i in range(2):
        assert model.layers[1].spline_weight.requires_grad
        model.fix_symbolic(1, i, 0, "sin", fit_params_bool=False)
    assert not any(p.requires_grad for p in model.layers[1].parameters())
    assert model.symbolic[1].affine.requires_grad
    assert model.layers[0].spline_weight.requires_grad
    for way in (lambda m: m, KAN.copy, lambda m: m.prune_node(mode="manual", active_neurons_id=[[0, 1]]), reloaded):
        other = way(model.copy())
        assert not any(p.requires_grad for p in other.layers[1].parameters())
        other.unfix_symbolic_all()
        assert {name: p.requires_grad for name, p in other.named_parameters()} == before
    fresh = network([2, 2, 1], "own", sb_trainable=False)
    fresh.load_state_dict(model.state_dict())
    assert not any(p.requires_grad for p in fresh.layers[1].parameters())
    fresh.set_mode(1, 0, 0, "n")
    assert fresh.layers[1].spline_weight.requires_grad
    for copied in (lambda m: m, KAN.copy, lambda m: pickle.loads(pickle.dumps(m))):
        outer = nn.Sequential(copied(network([2, 2, 1], "own", sb_trainable=False)))
        outer.load_state_dict(nn.Sequential(model).state_dict())
        assert not any(p.requires_grad for p in outer[0].layers[1].parameters())
        assert outer[0].layers[0].spline_weight.requires_grad
    for mask in (None, torch.eye(2)[:, :1]):
        again = model.copy()
        again.layers[1].set_mask(mask)
        assert {name: p.requires_grad for name, p in again.layers[1].named_parameters()} == {
            name: before[f"layers.1.{name}"] for name, _ in again.layers[1].named_parameters()
        }
    nested = nn.Sequential(model.copy())
    nested.load_state_dict(nn.Sequential(network([2, 2, 1], "own")).state_dict())
    assert nested[0].layers[1].spline_weight.requires_grad
    wider = model.copy().expand_width(1, 1)
    assert wider.layers[1].spline_weight.requires_grad
    assert not wider.layers[1].base_weight.requires_grad
    deeper = model.copy().expand_depth()
    assert not any(p.requires_grad for p in deeper.layers[2].parameters())
    deeper.unfix_symbolic_all()
    assert deeper.layers[2].spline_weight.requires_grad
    assert not deeper.layers[2].base_weight.requires_grad


def reloaded(model: KAN) -> KAN:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        return KAN.load(Path(folder) / "model")


# -- states -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_a_state_is_tensors_and_goes_through_safetensors(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    state = model.state_dict()
    assert all(isinstance(value, Tensor) and value.numel() for value in state.values())
    safetensors.torch.save_file(state, tmp_path / "state")
    safetensors.torch.save_model(nn.Sequential(model), str(tmp_path / "model"))
    loaded = safetensors.torch.load_file(tmp_path / "state")
    x = points(model)
    for source in MODELS["some formulas"], MODELS["a layer of formulas"], MODELS[name]:
        other = source()
        if other.width == model.width:
            other.load_state_dict(loaded)
            assert torch.equal(other(x), model(x))
            assert [each.edges for each in other.symbolic] == [each.edges for each in model.symbolic]
    whole = nn.Sequential(MODELS[name]())
    safetensors.torch.load_model(whole, str(tmp_path / "model"))
    assert torch.equal(whole(x), model(x))


@pytest.mark.parametrize("strict", [True, False])
def test_states_with_and_without_formulas_go_into_each_other(strict: bool) -> None:
    plain, formulas = MODELS["no formulas"](), some_formulas()
    x = points(plain)
    for source in (plain, formulas):
        for target in (MODELS["no formulas"](), some_formulas()):
            target.load_state_dict(source.state_dict(), strict=strict)
            assert torch.equal(target(x), source(x))
            assert [each.edges for each in target.symbolic] == [each.edges for each in source.symbolic]


def test_parts_of_a_state_leave_formulas_alone() -> None:
    model = some_formulas()
    edges = model.symbolic[0].edges
    model.load_state_dict({"layers.0.base_weight": torch.ones(2, 3)}, strict=False)
    assert model.symbolic[0].edges == edges
    model.load_state_dict({name: value + 1 for name, value in model.named_parameters()}, strict=False)
    assert model.symbolic[0].edges == edges
    assert model.symbolic[0].affine.tolist() == [[2, 1, 2, 1]]


def test_states_can_be_averaged() -> None:
    one, other = some_formulas(), some_formulas()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    a, b = one.state_dict(), other.state_dict()
    floats = {key: (a[key] + b[key]) / 2 if a[key].is_floating_point() else a[key] for key in a}
    stacked = {key: torch.stack([state[key].float() for state in (a, b)]).mean(0) for key in a}
    for average in (floats, stacked):
        mean = some_formulas()
        mean.load_state_dict(average)
        assert mean.symbolic[0].edges == one.symbolic[0].edges
        torch.testing.assert_close(mean.symbolic[0].affine, 1.25 * one.symbolic[0].affine)
        torch.testing.assert_close(mean.layers[0].spline_weight, 1.25 * one.layers[0].spline_weight)


@pytest.mark.parametrize("text", [b"[[0, 0", b"\xff\xfe", b"{}x"])
def test_a_text_that_is_none_is_refused(text: bytes) -> None:
    state = {"affine": torch.zeros(1, 4), "formulas": torch.tensor(list(text), dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="formulas must hold a JSON text as uint8"):
        SymbolicEdges(1, 1).load_state_dict(state)


# -- files of version 0.1 -----------------------------------------------------------------------------


def of_version_0_1(model: KAN) -> dict[str, Any]:
    """State of version 0.1: a list of edges for each layer, and a parameter even for a layer without edges."""
    state: dict[str, Any] = {k: v for k, v in model.state_dict().items() if not k.endswith(".formulas")}
    for layer, symbolic in enumerate(model.symbolic):
        state[f"symbolic.{layer}._extra_state"] = [list(edge) for edge in symbolic.edges]
        state.setdefault(f"symbolic.{layer}.affine", torch.empty(0, 4))
    return state


@pytest.mark.parametrize("name", list(MODELS))
def test_a_state_of_version_0_1(name: str) -> None:
    model = MODELS[name]()
    x = points(model)
    for target in (MODELS[name](), KAN(width=model.width, mult_arity=model.mult_arity, grid=6)):
        target.load_state_dict(of_version_0_1(model))
        assert torch.equal(target(x), model(x))
        assert [each.edges for each in target.symbolic] == [each.edges for each in model.symbolic]


@pytest.mark.parametrize("name", list(MODELS))
def test_a_file_of_version_0_1(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    state = of_version_0_1(model)
    tensors = {key: value.contiguous() for key, value in state.items() if isinstance(value, Tensor)}
    header = {
        "sha256": "0" * 64,
        "format": 1,
        "fastkan": "0.1.0",
        "sums": model.architecture.sums,
        "arities": model.architecture.arities,
        "in_features": model.in_features,
        "grid_eps": model.grid_eps,
        "layers": [
            {"grid_size": layer.grid_size, "spline_order": layer.spline_order, "grid_range": [-1.0, 1.0],
             "base": layer.base, "bias": False, "spline_scale": True, "outside": "zero"}
            for layer in model.layers
        ],
        "symbolic": [[list(edge) for edge in symbolic.edges] for symbolic in model.symbolic],
        "trained": [key for key in tensors if key.startswith(("layers", "symbolic")) and "knots" not in key],
        "prune_mask": False,
        "training": True,
        "history": [],
    }  # fmt: skip
    content = safetensors.torch.save(tensors, {"fastkan.KAN": json.dumps(header)})
    digest = hashlib.sha256(content).hexdigest().encode()
    (tmp_path / "model").write_bytes(content.replace(b"0" * 64, digest, 1))
    loaded = KAN.load(tmp_path / "model")
    x = points(model)
    assert torch.equal(loaded(x), model(x))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == flags
    loaded.save(tmp_path / "again")
    assert torch.equal(KAN.load(tmp_path / "again")(x), model(x))


# -- export and errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_an_exported_program_takes_any_batch(name: str) -> None:
    model = MODELS[name]()
    program = torch.export.export(
        model, (points(model, 7),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}}
    )
    for rows in (7, 33, 200):
        x = points(model, rows, seed=rows)
        torch.testing.assert_close(program.module()(x), model(x))


class Broken:
    def __bool__(self) -> bool:
        raise KeyboardInterrupt


@pytest.mark.parametrize("verbose", [torch.ones(2), Broken()], ids=["a tensor", "an interruption"])
@pytest.mark.parametrize("ask", ["fix_symbolic", "auto_symbolic"])
def test_what_cannot_be_said_changes_nothing(ask: str, verbose: Any) -> None:
    model = network([2, 3, 1], "own")
    model.get_act(points(model))
    model.fix_symbolic(1, 2, 0, "x", fit_params_bool=False)
    before, parameters, modules = state_of(model), list(model.parameters()), list(model.modules())
    edge, options = ((0, 0, 0, "sin"), {}) if ask == "fix_symbolic" else ((), {"lib": ["x"], "r2_threshold": 0})
    with pytest.raises((RuntimeError, KeyboardInterrupt, TypeError)):
        getattr(model, ask)(*edge, verbose=verbose, **options)
    assert_same(model, before)
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert all(old is new for old, new in zip(modules, model.modules(), strict=True))


@pytest.mark.parametrize("ask", [
    lambda m: m.fix_symbolic(1, 0, 0, "sin", fit_params_bool=False),
    lambda m: m.unfix_symbolic(1, 1, 0),
    lambda m: m.unfix_symbolic_all(),
    lambda m: m.set_mode(1, 1, 0, "off"),
    lambda m: m.auto_symbolic(lib=["x"], verbose=0, r2_threshold=0),
])  # fmt: skip
def test_an_interruption_between_formula_and_mask_changes_nothing(
    ask: Callable[[KAN], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network([2, 2, 1], "own")
    model.get_act(points(model))
    for i in range(2):
        model.fix_symbolic(1, i, 0, "x", fit_params_bool=False)
    model.set_mode(1, 0, 0, "off")
    before, flags = state_of(model), [p.requires_grad for p in model.parameters()]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fix, "set_numeric", interrupted)
    monkeypatch.setattr("fastkan.symbolic.auto.set_numeric", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(model)
    monkeypatch.undo()
    unchanged(model, before)
    assert [p.requires_grad for p in model.parameters()] == flags
    same(model(points(model)).to(D), model.copy()(points(model)).to(D))


def test_an_optimizer_goes_on_where_nothing_was_fixed() -> None:
    """Formulas of other layers keep their parameters."""
    model = network([2, 2, 1], "own")
    model.fix_symbolic(1, 0, 0, "sin", fit_params_bool=False)
    kept = model.symbolic[1].affine
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    assert model.symbolic[1].affine is kept
