"""A network in a file: everything comes back, or the write fails and nothing has changed."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from fastkan.kan.model import KAN
from fastkan.network.checkpoint import BLANK, save

load = KAN.load

NOTES = [{"train_loss": [0.5, 0.25], "test_loss": [], "reg": [1e-300, 0.1]}, {"note": "second"}]


def tiny() -> KAN:
    return KAN(width=[1, 1], grid=1, k=1, seed=0)


def full(dtype: torch.dtype = torch.float32) -> KAN:
    """With everything that a network can have."""
    model: Any = KAN(
        width=[3, [4, 2], [1, 1], 2], mult_arity=[[], [2, 4], [3], []], grid=[5, 3, 4], k=[3, 2, 1], seed=1,
        grid_eps=0.3, grid_range=(-2, 2), sb_trainable=False, affine_trainable=True, base_fun="identity", dtype=dtype,
    )  # fmt: skip
    model.in_features, model.input_id = 5, torch.tensor([4, 0, 3])
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for layer in model.layers:
        layer.to(exact).update_grid(torch.randn(200, layer.in_features, dtype=exact))
        layer.to(dtype)
    model.layers[0].set_mask(torch.arange(30).view(3, 10) % 4 > 0)
    model.layers[2].outside = "linear"
    with torch.no_grad():
        for parameters in (model.node_scale, model.node_bias, model.subnode_scale, model.subnode_bias):
            for parameter in parameters:
                parameter.normal_()
    model.symbolic[0].fix(2, 1, "sin", (1.5, -0.25, 2, 0.125))
    model.symbolic[0].fix(0, 3, "x^2")
    model.symbolic[2].fix(1, 0, "exp", (0.5, 0, 1, 0))
    model.symbolic[2].affine.requires_grad_(False)
    model.history = copy.deepcopy(NOTES)
    model.prune_mask = [torch.rand(3, 10) > 0.5, torch.rand(6, 4) > 0.5, torch.rand(2, 2) > 0.5]
    return model.eval()


def check_same(model: Any, other: Any) -> None:
    state, found = model.state_dict(), other.state_dict()
    assert state.keys() == found.keys()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            assert value == found[name]
            continue
        assert (value.dtype, value.shape) == (found[name].dtype, found[name].shape), name
        assert value.contiguous().view(-1).view(torch.uint8).equal(found[name].view(-1).view(torch.uint8)), name
    trained = {name: value.requires_grad for name, value in model.named_parameters(remove_duplicate=False)}
    assert trained == {name: value.requires_grad for name, value in other.named_parameters(remove_duplicate=False)}
    for name in ("width", "mult_arity", "grid", "k", "in_features", "grid_eps", "training", "history", "dtype"):
        assert getattr(model, name) == getattr(other, name), name
    assert repr(model) == repr(other)
    assert (model.prune_mask is None) == (other.prune_mask is None)
    for mask, their in zip(model.prune_mask or (), other.prune_mask or (), strict=True):
        assert mask.dtype == their.dtype == torch.bool
        assert torch.equal(mask, their)
    x = 2 * torch.randn(50, model.in_features, dtype=model.dtype)
    y = model(x)
    assert y.isfinite().all()
    assert torch.equal(y, other(x))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# -- everything comes back --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny, full])
@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_what_is_saved_is_loaded(path: Path, make: Callable[[], KAN], kind: Callable) -> None:
    model = make()
    before = copy.deepcopy(model)
    save(model, kind(path))
    other = load(kind(path))
    check_same(model, other)
    check_same(before, model)
    assert other.sample is None or other.sample is not model.sample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(path: Path, dtype: torch.dtype) -> None:
    model = full(dtype)
    assert model.layers[0].knots.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    save(model, path)
    check_same(model, load(path))


def test_a_grid_that_only_double_precision_has(path: Path) -> None:
    model = KAN(width=[1, 2], grid_range=(0, 1e-60), dtype=torch.float64, seed=0)
    save(model, path)
    check_same(model, load(path))


@pytest.mark.parametrize("fun", ["silu", "identity", "zero"])
def test_every_base_function(path: Path, fun: str) -> None:
    model = KAN(width=[2, 3, 1], base_fun=fun, seed=0)
    save(model, path)
    check_same(model, load(path))


def test_the_methods_are_these(path: Path) -> None:
    model = full()
    model.save(path)
    check_same(model, KAN.load(path))
    check_same(model, KAN.load(path, device="cpu"))


def test_pruned_networks_and_what_they_were_pruned_from(path: Path) -> None:
    model: Any = KAN(width=[4, [3, 2], 1], mult_arity=[[], [2, 3], []], seed=3)
    with torch.no_grad():  # two inputs and the first node don't matter
        for weight in (model.layers[0].spline_weight, model.layers[0].base_weight):
            weight[..., [0, 2], :] = 0
            weight[..., :, 0] = 0
    model.get_act(torch.rand(100, 4))
    pruned = model.prune()
    fewer = pruned.prune_input()
    assert model.prune_mask is not None
    assert fewer.in_features == 4
    assert fewer.input_id.tolist() == [1, 3]
    assert pruned.width != model.width
    for each in (model, pruned, fewer, fewer.refine(10)):
        save(each, path)
        check_same(each, load(path))


def test_a_device_is_that_of_all_parts(path: Path) -> None:
    save(full(), path)
    model: Any = load(path, device="meta")
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"meta"}
    with pytest.raises(ValueError, match="device='abacus' can't be used here: Expected one of cpu"):
        load(path, device="abacus")


def test_a_loaded_network_trains_as_the_saved_one_would(path: Path) -> None:
    model = full()
    save(model, path)
    other = load(path)
    x, y = torch.randn(30, 5), torch.randn(30, 2)
    for network in (model, other):
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (network(x) - y).square().mean().backward()
            optimizer.step()
    check_same(model, other)
    with torch.no_grad():  # and what is saved is a snapshot
        assert not torch.equal(load(path)(x), other(x))


def test_a_loaded_network_can_be_copied_pickled_and_saved_again(path: Path) -> None:
    model = full()
    save(model, path)
    content = path.read_bytes()
    other = load(path)
    save(other, path)
    assert path.read_bytes() == content
    check_same(model, copy.deepcopy(other))
    check_same(model, pickle.loads(pickle.dumps(other)))
    check_same(model.double(), other.double())


def test_the_same_network_gives_the_same_bytes(path: Path) -> None:
    model, contents = full(), set()
    for _ in range(8):
        save(model, path)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_shared_and_strided_parameters(path: Path) -> None:
    model: Any = KAN(width=[3, 3, 3], seed=0)
    model.layers[1].spline_weight = model.layers[0].spline_weight
    wide = torch.rand(6, 3)
    model.layers[0].base_weight = torch.nn.Parameter(wide[::2])
    model.layers[1].base_weight = torch.nn.Parameter(wide[:3].t())
    model.node_scale[0] = torch.nn.Parameter(torch.tensor(2.0).expand(3), requires_grad=False)
    assert not model.layers[0].base_weight.is_contiguous()
    save(model, path)
    other = load(path)
    check_same(model, other)
    assert all(parameter.is_contiguous() for parameter in other.parameters())
    assert other.layers[0].spline_weight is not other.layers[1].spline_weight


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([math.nan, math.inf, -math.inf, 0.1, -0.0], None),
        ({"$float": [1.0]}, None),
        ([1, True, None, "nan", {"a": [[]]}], None),
        ((1.5, 2), [1.5, 2]),
        (torch.tensor([1.5, math.nan]), [1.5, math.nan]),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ({3: np.float64("nan")}, {"3": math.nan}),
        (BLANK, None),
    ],
    ids=str,
)
def test_the_history_comes_back_whatever_it_holds(path: Path, said: object, heard: object) -> None:
    model = tiny()
    model.history = [{"loss": said}]
    save(model, path)
    assert repr(load(path).history) == repr([{"loss": said if heard is None else heard}])  # NaN equals NaN here


def test_loading_asks_for_no_random_number_and_no_state_around(path: Path) -> None:
    model = full()
    before = torch.get_rng_state()
    save(model, path)
    load(path)
    assert torch.equal(before, torch.get_rng_state())
    with torch.inference_mode():
        save(model, path)
        other = load(path)
    assert not any(parameter.is_inference() for parameter in other.parameters())
    check_same(model, other)
    torch.set_default_dtype(torch.float64)
    try:
        other = load(path)
    finally:
        torch.set_default_dtype(torch.float32)
    check_same(model, other)


# -- writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny(), path)
    content = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="no space left"):
        save(full(), path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_overwriting_keeps_links_and_permissions(path: Path) -> None:
    model, link = full(), path.with_name("link")
    save(tiny(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()
    path.chmod(0o640)
    link.symlink_to(path)
    save(model, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    check_same(model, load(path))
    assert sorted(path.parent.iterdir()) == sorted([path, link])


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_places_that_can_not_be_written_or_read(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(path)
    with pytest.raises(FileNotFoundError):
        save(tiny(), path / "model")
    for call in (lambda: load(path.parent), lambda: save(tiny(), path.parent)):
        with pytest.raises(OSError, match=str(path.parent)):
            call()
    for call in (lambda: load(3), lambda: save(tiny(), 3), lambda: load(io.BytesIO())):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="str, bytes or os"):
            call()
    assert list(path.parent.iterdir()) == []


def added_module(model: Any) -> None:
    model.more = torch.nn.Linear(2, 2)


def added_parametrization(model: Any) -> None:
    parametrize.register_parametrization(model.layers[0], "spline_weight", torch.nn.Identity())


def no_values(model: Any) -> None:
    model.layers[0].base_weight = torch.nn.Parameter(torch.empty(1, 1, device="meta"))


def odd_history(model: Any) -> None:
    model.history = [{"figure": object()}]


def long_history(model: Any) -> None:
    model.history = ["x" * 100_000_001]


def missing_layer(model: Any) -> None:
    del model.layers[0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (added_module, ValueError, "(?s)model couldn't be loaded again: .*more.weight"),
        (added_parametrization, ValueError, "(?s)model couldn't be loaded again: .*spline_weight"),
        (missing_layer, ValueError, "model couldn't be loaded again"),
        (no_values, ValueError, "model must have values, but layers.0.base_weight is on meta"),
        (odd_history, TypeError, "model.history must hold numbers, strings, lists and dictionaries, got object"),
        (long_history, ValueError, "model and its history, 100,000,.* characters, don't fit into a file"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    path: Path, change: Callable, error: type[Exception], words: str
) -> None:
    model = tiny()
    change(model)
    with pytest.raises(error, match=words):
        save(model, path)
    assert list(path.parent.iterdir()) == []
