"""A network in a file: everything comes back, or the write fails and nothing has changed."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from fastkan.kan.model import KAN
from fastkan.layers.function_library import add_symbolic, remove_symbolic
from fastkan.network.checkpoint import BLANK, KEY, save

load = KAN.load

NOTES = [{"train_loss": [0.5, 0.25], "test_loss": [], "reg": [1e-300, 0.1]}, {"note": "second"}]


def tiny() -> KAN:
    return KAN(width=[1, 1], grid=1, k=1, seed=0)


def full(dtype: torch.dtype = torch.float32) -> KAN:
    """A network with everything that a network can have."""
    model: Any = KAN(
        width=[3, [4, 2], [1, 1], 2], mult_arity=[[], [2, 4], [3], []], grid=[5, 3, 4], k=[3, 2, 1], seed=1,
        grid_eps=0.3, grid_margin=0.2, grid_range=(-2, 2), sb_trainable=False, affine_trainable=True,
        base_fun="identity", dtype=dtype,
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
    for name in ("width", "mult_arity", "grid", "k", "in_features", "grid_eps", "grid_margin", "training",
                 "history", "dtype"):  # fmt: skip
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


NETWORKS: dict[str, Callable[[], KAN]] = {
    "tiny": tiny,
    "full": full,
    **{str(dtype)[6:]: partial(full, dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
    **{fun: partial(KAN, width=[2, 3, 1], base_fun=fun, seed=0) for fun in ("silu", "gelu", "identity", "zero")},
    "a grid that only float64 can hold": partial(KAN, [1, 2], grid_range=(0, 1e-60), dtype=torch.float64, seed=0),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_what_is_saved_is_loaded(path: Path, make: Callable[[], KAN], kind: Callable) -> None:
    model = make()
    assert model.layers[0].knots.dtype == (torch.float64 if model.dtype == torch.float64 else torch.float32)
    before = copy.deepcopy(model)
    model.save(kind(path))
    other = load(kind(path), device="cpu")
    check_same(model, other)
    check_same(before, model)
    assert other.sample is None or other.sample is not model.sample


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
    with pytest.raises(ValueError, match="device='abacus' cannot be used here: Expected one of cpu"):
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
    for same in (model, other):
        save(same, path)
        assert path.read_bytes() == content
    check_same(model, copy.deepcopy(other))
    check_same(model, pickle.loads(pickle.dumps(other)))
    check_same(model.double(), other.double())


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


SPOILED: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda m: m.add_module("more", torch.nn.Linear(2, 2)), ValueError, "(?s)could not be loaded again: .*more.weight"),
    (lambda m: parametrize.register_parametrization(m.layers[0], "spline_weight", torch.nn.Identity()), ValueError,
     "(?s)model could not be loaded again: .*spline_weight"),
    (lambda m: m.layers.pop(0), ValueError, "model could not be loaded again"),
    (lambda m: m.layers[0].register_parameter("base_weight", torch.nn.Parameter(torch.empty(1, 1, device="meta"))),
     ValueError, "model must have values, but layers.0.base_weight is on meta"),
    (lambda m: m.history.append({"figure": object()}), TypeError,
     "model.history must hold numbers, strings, lists and dictionaries, got object"),
    (lambda m: m.history.append("x" * 100_000_001), ValueError,
     "model and its history, 100,000,.* characters, do not fit into a file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), SPOILED)
def test_what_could_not_be_loaded_is_not_saved(path: Path, change: Callable, error: Any, words: str) -> None:
    model = tiny()
    change(model)
    with pytest.raises(error, match=words):
        save(model, path)
    assert list(path.parent.iterdir()) == []


# -- damaged and foreign files -----------------------------------------------------------------------


def refused(path: Path, content: bytes) -> str:
    """That it can't be loaded, and what is said."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))) as raised:
        load(path)
    assert raised.type is ValueError
    return str(raised.value)


def signed(content: bytes, change: Callable[[dict, dict], Any]) -> bytes:
    """The file with another header or other tensors, and a digest that is right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
    tensors = safetensors.torch.load(content)
    change(header, tensors)
    if "sha256" not in header:
        return safetensors.torch.save(tensors, {KEY: json.dumps(header)})
    content = safetensors.torch.save(tensors, {KEY: json.dumps({**header, "sha256": BLANK})})
    return content.replace(BLANK.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("make", [tiny, full])
def test_flipped_bits_are_found(path: Path, make: Callable[[], KAN]) -> None:
    """In every byte of a small file, and at random in one with all that a file can hold."""
    save(make(), path)
    content = path.read_bytes()
    bits = range(8 * len(content))
    for bit in bits[::5] if make is tiny else random.Random(0).sample(bits, 1000):
        refused(path, flipped(content, bit))
    assert "it is damaged: its SHA-256" in refused(path, flipped(content, bits[-1]))


def test_a_file_that_ends_early_or_late_is_found(path: Path) -> None:
    save(tiny(), path)
    content = path.read_bytes()
    for length in range(len(content)):
        refused(path, content[:length])
    for more in (b" ", b"\0", content):
        refused(path, content + more)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_other_files_are_none_of_ours_and_nothing_runs(path: Path) -> None:
    bomb = path.with_name("ran")
    zipped, arrays = io.BytesIO(), io.BytesIO()
    torch.save({"bomb": Bomb(bomb)}, zipped)
    np.savez(arrays, x=np.ones(3))
    deep = b'{"__metadata__":' + b"[" * 100_000
    files = [
        b"", b"\0" * 8, b"\0" * 100, b"\xff" * 100, b"{}", b"\2" + b"\0" * 7 + b"{}", b"\2" + b"\0" * 7 + b"[]",
        pickle.dumps(Bomb(bomb)), zipped.getvalue(), arrays.getvalue(), len(deep).to_bytes(8, "little") + deep,
        safetensors.torch.save({"weight": torch.ones(3)}),
        safetensors.torch.save({"weight": torch.ones(3)}, {"format": "pt"}),
        safetensors.torch.save({"weight": torch.ones(3)}, {KEY: "no JSON"}),
        safetensors.torch.save({"weight": torch.ones(3)}, {KEY: "[" * 100_000}),
        safetensors.torch.save({"weight": torch.ones(3)}, {KEY: '{"format": 1}'}),
        *(random.Random(seed).randbytes(200) for seed in range(50)),
    ]  # fmt: skip
    for content in files:
        assert "this is no network that KAN.save has written, or it is damaged" in refused(path, content)
    assert not bomb.exists()
    pickle.loads(pickle.dumps(Bomb(bomb)))
    assert bomb.exists()  # it does go off


def test_a_newer_format_is_named(path: Path) -> None:
    save(tiny(), path)
    content = signed(path.read_bytes(), lambda header, _: header.update(format=3))
    assert "written by a newer fastkan: its format is 3, this one reads up to 2" in refused(path, content)


def test_functions_that_are_not_in_the_library_are_named(path: Path) -> None:
    add_symbolic("mine", torch.special.bessel_j0)
    try:
        model = tiny()
        model.symbolic[0].fix(0, 0, "mine")
        save(model, path)
        check_same(model, load(path))
    finally:
        remove_symbolic("mine")
    content = path.read_bytes()
    assert "functions that are not in the library, ['mine']: add_symbolic them first" in refused(path, content)
    with pytest.raises(ValueError, match=r"could not be loaded again: .*\['mine'\]"):
        save(model, path)


def put(*keys: Any, **value: Any) -> Callable[[dict, dict], None]:
    """Set the entry at ``keys`` to ``to``, or delete it without one."""

    def change(header: dict, tensors: dict) -> None:
        place: Any = {"header": header, "tensors": tensors}
        for key in keys[:-1]:
            place = place[key]
        if value:
            place[keys[-1]] = value["to"]
        else:
            del place[keys[-1]]

    return change


HEADER = ("sums", "arities", "in_features", "grid_eps", "layers", "symbolic", "trained", "prune_mask", "training",
          "history", "format", "sha256")  # fmt: skip
LAYERS = ("grid_size", "spline_order", "grid_range", "base", "bias", "spline_scale", "outside")
MISFITS: dict[str, Callable[[dict, dict], None]] = {
    **{f"no {name}": put("header", name) for name in HEADER},
    **{f"no layer's {name}": put("header", "layers", 1, name) for name in LAYERS},
    "format 0": put("header", "format", to=0),
    "format text": put("header", "format", to="1"),
    "sums": put("header", "sums", 1, to=5),
    "sums huge": put("header", "sums", 1, to=10**12),
    "sums text": put("header", "sums", to="3421"),
    "arities": put("header", "arities", 1, to=[2, 5]),
    "arity huge": put("header", "arities", 1, to=[2, 10**12]),
    "arity below 2": put("header", "arities", 1, to=[1, 5]),
    "grid huge": put("header", "layers", 0, "grid_size", to=10**12),
    "grid and order": lambda header, _: header["layers"][0].update(grid_size=6, spline_order=2),
    "order": put("header", "layers", 0, "spline_order", to=9),
    "base": put("header", "layers", 0, "base", to="print"),
    "no base": put("header", "layers", 0, "base", to="none"),
    "bias": put("header", "layers", 0, "bias", to=True),
    "scale": put("header", "layers", 0, "spline_scale", to=False),
    "outside": put("header", "layers", 0, "outside", to="up"),
    "range": put("header", "layers", 0, "grid_range", to=[1, 1]),
    "fewer layers": put("header", "layers", 2),
    "more layers": lambda header, _: header["layers"].append(header["layers"][0]),
    "fewer formulas": put("header", "symbolic", 2),
    "more formulas": lambda header, _: header["symbolic"].append([]),
    "edge outside": put("header", "symbolic", 0, 0, to=[3, 0, "sin"]),
    "edge twice": put("header", "symbolic", 0, 0, to=[2, 1, "sin"]),
    "edge short": put("header", "symbolic", 0, 0, to=[2, 1]),
    "edge's name a list": put("header", "symbolic", 0, 0, 2, to=["sin"]),
    "trained": put("header", "trained", to=3),
    "in_features": put("header", "in_features", to="5"),
    "columns": put("header", "in_features", to=4),
    "no column": put("tensors", "input_id", to=torch.tensor([-1, 0, 3])),
    "columns not integer": put("tensors", "input_id", to=torch.tensor([0.5, 1.0, 3.0])),
    "grid_eps": put("header", "grid_eps", to=2),
    "grid_margin": put("header", "grid_margin", to=-1),
    "missing tensor": put("tensors", "layers.1.base_weight"),
    "missing splines": put("tensors", "layers.1.spline_weight"),
    "missing knots": put("tensors", "layers.1.knots"),
    "missing prune mask": put("tensors", "prune_mask.1"),
    "other tensor": put("tensors", "layers.3.knots", to=torch.ones(3)),
    "shape": put("tensors", "layers.1.base_weight", to=torch.ones(3, 3)),
    "affine": put("tensors", "symbolic.0.affine", to=torch.ones(1, 4)),
    "integers": put("tensors", "layers.1.base_weight", to=torch.ones(6, 4, dtype=torch.int64)),
    "knots fall": lambda _, tensors: tensors.update({"layers.1.knots": tensors["layers.1.knots"].flip(1).contiguous()}),
    "mask": put("tensors", "layers.0.mask", to=torch.ones(1, 10)),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_file_that_contradicts_itself(path: Path, case: str) -> None:
    save(full(), path)
    check_same(load(path), load(path))
    assert refused(path, signed(path.read_bytes(), MISFITS[case]))


def test_signing_by_hand_is_what_the_file_does(path: Path) -> None:
    """So that the test above is refused for what it changes."""
    model = full()
    save(model, path)
    path.write_bytes(signed(path.read_bytes(), put("header", "grid_eps", to=0.5)))
    model.grid_eps = 0.5
    check_same(model, load(path))
