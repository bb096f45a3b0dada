"""Files that are damaged, foreign, or contradict themselves: a ``ValueError`` each, and nothing in them runs."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from test_serialization import check_same, full, tiny

from fastkan import KAN
from fastkan.layers.function_library import add_symbolic, remove_symbolic
from fastkan.network.checkpoint import BLANK, KEY, save

load = KAN.load


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# -- damage ----------------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_is_found_in_every_byte(path: Path) -> None:
    save(tiny(), path)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 5):
        refused(path, flipped(content, bit))


def test_flipped_bits_are_found_in_all_that_a_file_can_hold(path: Path) -> None:
    save(full(), path)
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 1000):
        refused(path, flipped(content, bit))
    assert "it is damaged: its SHA-256" in refused(path, flipped(content, 8 * len(content) - 1))


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
    assert "functions that aren't in the library, ['mine']: add_symbolic them first" in refused(path, content)
    with pytest.raises(ValueError, match=r"couldn't be loaded again: .*\['mine'\]"):
        save(model, path)


def put(*keys: Any, to: Any) -> Callable[[dict, dict], None]:
    def change(header: dict, tensors: dict) -> None:
        place: Any = {"header": header, "tensors": tensors}
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def without(*keys: Any) -> Callable[[dict, dict], None]:
    def change(header: dict, tensors: dict) -> None:
        place: Any = {"header": header, "tensors": tensors}
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


HEADER = ("sums", "arities", "in_features", "grid_eps", "layers", "symbolic", "trained", "prune_mask", "training",
          "history", "format", "sha256")  # fmt: skip
LAYERS = ("grid_size", "spline_order", "grid_range", "base", "bias", "spline_scale", "outside")
MISFITS: dict[str, Callable[[dict, dict], None]] = {
    **{f"no {name}": without("header", name) for name in HEADER},
    **{f"no layer's {name}": without("header", "layers", 1, name) for name in LAYERS},
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
    "fewer layers": without("header", "layers", 2),
    "more layers": lambda header, _: header["layers"].append(header["layers"][0]),
    "fewer formulas": without("header", "symbolic", 2),
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
    "missing tensor": without("tensors", "layers.1.base_weight"),
    "missing splines": without("tensors", "layers.1.spline_weight"),
    "missing knots": without("tensors", "layers.1.knots"),
    "missing prune mask": without("tensors", "prune_mask.1"),
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
