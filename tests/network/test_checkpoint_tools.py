"""Networks with formulas in the checkpoints of other packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import same
from torch import nn

from fastkan import KAN

WIDTH = [2, [2, 1], 1]
X = torch.linspace(-0.9, 0.9, 20).view(10, 2)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def with_formulas(*names: str) -> KAN:
    """A network whose first edges are formulas, and whose first layer has an adapted grid."""
    model = KAN(WIDTH, seed=0)
    model.update_grid(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    for i, name in enumerate(names):
        model.fix_symbolic(0, i, 1, name, fit_params_bool=False)
        with torch.no_grad():
            model.symbolic[0].affine[i].copy_(torch.tensor([1.5, 0.1, 0.7, -0.2]))
    return model


def check(model: Any, expected: KAN) -> None:
    assert [each.edges for each in model.symbolic] == [each.edges for each in expected.symbolic]
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))
    same(model(X), expected(X), digits=1e-7)
    same(model.copy()(X), expected(X), digits=1e-7)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        name: p.requires_grad for name, p in expected.named_parameters()
    }


OTHERS: dict[str, Callable[[], KAN]] = {
    "without formulas": with_formulas,
    "with as many others": lambda: with_formulas("cos", "log"),
    "with fewer others": lambda: with_formulas("tanh"),
    "with the same": lambda: with_formulas("sin", "exp"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_safetensors(other: str, assign: bool, tmp_path: Path) -> None:
    model, into = with_formulas("sin", "exp"), OTHERS[other]()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "state")
    into.load_state_dict(safetensors.torch.load_file(tmp_path / "state"), assign=assign)
    check(into, model)
    safetensors.torch.save_model(model, str(tmp_path / "model"))
    again = OTHERS[other]()
    safetensors.torch.load_model(again, str(tmp_path / "model"))
    check(again, model)


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_assigned_to_a_module_on_meta_leaves_nothing_there(other: str) -> None:
    model, into = with_formulas("sin", "exp"), OTHERS[other]().to("meta")
    into.load_state_dict(model.copy().state_dict(), assign=True)
    check(into, model)
    nested = nn.Sequential(OTHERS[other]()).to("meta")
    nested.load_state_dict(nn.Sequential(model.copy()).state_dict(), assign=True)
    check(nested[0], model)


def test_the_mixin_of_the_hub(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Mine(nn.Module, hub.PyTorchModelHubMixin):  # type: ignore[misc, name-defined]
        def __init__(self, width: list[Any]) -> None:
            super().__init__()
            self.kan = KAN(width, seed=0)

    mine = Mine(width=WIDTH)
    mine.kan = with_formulas("sin", "exp")
    mine.save_pretrained(tmp_path)
    check(Mine.from_pretrained(tmp_path).kan, mine.kan)

    class Direct(KAN, hub.PyTorchModelHubMixin):  # type: ignore[misc, name-defined]
        pass

    direct = Direct(WIDTH, seed=0)
    direct.load_state_dict(mine.kan.state_dict())
    direct.save_pretrained(tmp_path / "direct")
    check(Direct.from_pretrained(tmp_path / "direct"), mine.kan)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_states_of_accelerate(other: str, safe: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, into = with_formulas("sin", "exp"), OTHERS[other]()
    saver = accelerate.Accelerator(cpu=True)
    saver.prepare(model)
    saver.save_state(str(tmp_path), safe_serialization=safe)
    loader = accelerate.Accelerator(cpu=True)
    loader._models = []
    loader.prepare(into)
    loader.load_state(str(tmp_path))
    check(into, model)


# On meta, accelerate needs a device map for torch's own layers too.
WAYS = [(None, False), ({"": "cpu"}, False), ({"": "cpu"}, True), ("sequential", True)]


@pytest.mark.parametrize(("device_map", "empty"), WAYS, ids=str)
@pytest.mark.parametrize("other", ["with the same", "with as many others"])
def test_checkpoints_dispatched_by_accelerate(other: str, device_map: Any, empty: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = with_formulas("sin", "exp")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    into = OTHERS[other]()
    if empty:
        into.to("meta")
    into(X.to(into.device))
    into = accelerate.load_checkpoint_and_dispatch(into, str(tmp_path / "model.safetensors"), device_map=device_map)
    check(into, model)


def test_init_empty_weights(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = with_formulas()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    for buffers in (False, True):
        with accelerate.init_empty_weights(include_buffers=buffers):
            empty = KAN(WIDTH, seed=0)
        assert empty.layers[0].spline_weight.is_meta
        check(accelerate.load_checkpoint_and_dispatch(empty, str(tmp_path / "model.safetensors"), {"": "cpu"}), model)
        with accelerate.init_empty_weights(include_buffers=buffers):
            empty = KAN(WIDTH, seed=0)
        empty.to_empty(device="cpu").reset_parameters()
        check(empty, KAN(WIDTH, seed=0))


def test_skorch_with_safetensors(tmp_path: Path) -> None:
    skorch = pytest.importorskip("skorch")
    options: dict[str, Any] = {"module__width": WIDTH, "module__seed": 0, "max_epochs": 1, "verbose": 0}
    net = skorch.NeuralNetRegressor(KAN, **options).initialize()
    net.module_.fix_symbolic(0, 0, 1, "sin", fit_params_bool=False)
    net.save_params(f_params=tmp_path / "model.safetensors", use_safetensors=True)
    for names in ([], ["cos"]):
        again = skorch.NeuralNetRegressor(KAN, **options).initialize()
        for name in names:
            again.module_.fix_symbolic(0, 0, 1, name, fit_params_bool=False)
        again.load_params(f_params=tmp_path / "model.safetensors", use_safetensors=True)
        check(again.module_, net.module_)
        again.partial_fit(X.numpy(), X[:, :1].numpy())


def test_a_functional_call_computes_with_the_formulas_of_its_state() -> None:
    model, other = with_formulas("sin", "exp"), with_formulas("cos", "log")
    with torch.no_grad():
        other.symbolic[0].affine[:, 1] += 2  # where log is defined
    before, expected = model(X), other(X)
    for _ in range(2):
        same(torch.func.functional_call(model, dict(other.state_dict()), (X,)), expected, digits=1e-7)
        same(model(X), before, digits=1e-7)
    check(model, with_formulas("sin", "exp"))


def test_text_that_describes_no_formulas_is_refused() -> None:
    model = with_formulas("sin", "exp")
    right = model.symbolic[0].formulas
    model.symbolic[0].formulas = torch.full_like(right, 77)
    with pytest.raises(ValueError, match="formulas must hold a JSON text"):
        model(X)
    model.symbolic[0].formulas = with_formulas("sin").symbolic[0].formulas
    with pytest.raises(ValueError, match="formulas describes 1 edges, but affine has 2 rows"):
        model(X)
    assert "0-1 sin, 1-1 exp" in repr(model.symbolic)
    model.symbolic[0].formulas = right
    check(model, with_formulas("sin", "exp"))
