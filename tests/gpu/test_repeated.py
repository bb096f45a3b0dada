"""Repeated contractions in the Triton backend: the launches of the first call are repeated with few Python calls.

Kernels are compiled for sm_90, and a stub driver lists their launches. ``pytest -s -k cost`` prints the time that a
layer takes in Python, in microseconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cases import no_triton

MAX_CALLS = 180  # Python calls of the forward and backward of a layer in addition to those of nn.Linear
pytestmark = pytest.mark.skipif(
    no_triton() is not None or not sys.platform.startswith("linux"), reason="needs Linux and triton"
)
if no_triton() is None:
    from stub_driver import run_compiling


SAME = """
import json
import torch, stub_driver
launched = stub_driver.install()
from fastkan_kernels import Basis, basis_of, uniform_knots
from fastkan_kernels.backends.triton import dispatch, selection
from fastkan_kernels.backends.triton.config import Config
from fastkan_kernels.backends.triton.launch import Launch, launched_by
from fastkan_kernels.trilinear import CONTRACTIONS, Operands

torch.set_grad_enabled(False)
knots = uniform_knots(16, 5, 3)
basis = basis_of(knots, 3)


def make(name, rows=48, dtype=torch.bfloat16, outputs=16, v=False, shift=0, wide=0, weights=None, share=False):
    # operands at new addresses, x shifted by some elements and with rows that are some elements apart
    x = torch.rand(shift + rows * (16 + wide)).to(dtype)[shift:].view(rows, 16 + wide)[:, :16]
    g = x if share else torch.randn(rows, outputs).to(dtype)
    weight, base = torch.randn(8, 16, outputs).to(weights or dtype), torch.randn(16, outputs).to(weights or dtype)
    return x, Operands(torch.rand(rows, 16).to(dtype) if v else None, weight, base, g).without(CONTRACTIONS[name].free)


def call(name, x, operands, basis=basis, d=0):
    launched.clear()
    results = dispatch.contract(name, x, knots, operands, basis, d)
    results = results if isinstance(results, tuple) else (results,)
    shapes = [None if r is None else [str(r.dtype), *r.shape, *r.stride()] for r in results]
    addresses = {t.data_ptr(): number for number, t in enumerate((x, knots, *operands)) if t is not None}

    def plain(value):
        if isinstance(value, tuple):  # a tensor map, which begins with an address
            return [value[0], addresses.get(value[1], "new"), *map(str, value[2:])]
        if isinstance(value, torch.Tensor):
            return [addresses.get(value.data_ptr(), "new"), str(value.dtype)]
        return value

    return [(name, [plain(value) for value in arguments], shapes) for name, arguments in launched]


half = basis._replace(matmul_dtype=torch.bfloat16)
variants = {
    "F": ("F", {}), "G": ("G", {}), "H": ("H", {}), "other rows": ("F", dict(rows=49)), "one row": ("F", dict(rows=1)),
    "pointers": ("F", dict(outputs=7)), "unaligned": ("F", dict(shift=3)), "apart": ("F", dict(wide=8)),
    "v": ("F", dict(v=True)), "single": ("F", dict(dtype=torch.float32)), "one output": ("H", dict(outputs=1)),
    "autocast": ("F", dict(dtype=torch.float32), half), "mixed": ("G", dict(dtype=torch.float32), half),
    "slope": ("H", {}, basis, 1), "no base": ("G", {}, basis._replace(base="none")),
    "split": ("G", dict(rows=4096)),
}
kinds = {}
started = []
for turn in range(3):
    for label, (name, changes, *rest) in variants.items():
        x, operands = make(name, **changes)
        with launched_by(lambda launch: started.append(label) or launch.start()):
            by_launch = call(name, x, operands, *rest)  # a replaced launch bypasses the records
        assert started.pop() == label and not started
        first = call(name, x, operands, *rest)
        again = call(name, x, operands, *rest)
        assert first == again == by_launch, (label, first, again, by_launch)
        kinds[label] = again
assert len(selection.records) == len(variants), selection.records.keys()

# Turning tuning on has records of its own, and keeps the others.
for turn in range(3):
    with selection.autotune():
        assert call("F", *make("F")) == kinds["F"]
assert len(selection.records) == len(variants) + 1

# The settings on which a choice depends
x, operands = make("F", dtype=torch.float32)
kinds["tf32x3"] = call("F", x, operands)
torch.set_float32_matmul_precision("high")
kinds["tf32"] = call("F", x, operands)
torch.set_float32_matmul_precision("highest")
assert call("F", x, operands) == kinds["tf32x3"]
x, operands = make("F")
wide = basis._replace(matmul_dtype=torch.float32)
first = call("F", x, operands, wide)
torch.set_float32_matmul_precision("high")
assert call("F", x, operands, wide) != first
torch.set_float32_matmul_precision("highest")
tiles = Config("pipelined", 64, 16, 64, 1, 4, 4, True)
pipelined = [(name, tiles) for name in "FG"] + [("H", tiles._replace(splines=8))]
for name, config in (*pipelined, ("F", Config("gather")), ("H", Config("gather"))):
    with selection.override(name, config):
        found = kinds[f"{name} {config.way}"] = call(name, *make(name))
        assert selection.records
        assert found == call(name, *make(name)) != kinds[name]
assert call("F", *make("F")) == kinds["F"]

# Operands that share memory are computed as usual, and do not disturb later calls.
selection._forget()
for share in (True, False, True):
    x, operands = make("H", share=share)
    found = call("H", x, operands)
    assert (len(selection.records) == 0) == (share and not selection.records)
    with launched_by(Launch.start):
        assert found == call("H", x, operands)

# Launch hooks see repeated launches.
from triton import knobs
hooked = []
knobs.runtime.launch_enter_hook = lambda about: hooked.append(about.get()["name"])
call("F", *make("F")), call("F", *make("F"))
assert len(hooked) == 2, hooked
print(json.dumps({label: [name for name, *_ in launches] for label, launches in kinds.items()}))
"""


def test_a_repeated_contraction_launches_what_the_first_did(tmp_path: Path) -> None:
    kinds = json.loads(run_compiling(SAME, cache=tmp_path))
    assert all(len(launches) == 1 for launches in kinds.values())
    assert kinds["tf32"] != kinds["tf32x3"] == kinds["single"]
    builds = {launches[0] for launches in kinds.values()}
    assert len(builds) >= 15  # the variants are useful only if most of them have different kernels


COST = """
import sys, time
from collections import deque
import torch, triton, stub_driver, fastkan
launched = stub_driver.install()
g, x = torch.randn(64, 5), torch.rand(64, 2, requires_grad=True)
layers = {"KANLinear": fastkan.KANLinear(2, 5), "nn.Linear": torch.nn.Linear(2, 5, bias=False)}


def step(layer):
    for tensor in (x, *layer.parameters()):
        tensor.grad = None
    layer(x).backward(g)


calls = 0


def note(frame, event, argument):
    global calls
    calls += event == "call"


with fastkan.backend("triton"):
    for _ in range(3):
        launched.clear()
        step(layers["KANLinear"])
    launches = len(launched)
    counts = []
    for layer in layers.values():
        calls = 0
        sys.setprofile(note)
        step(layer)
        sys.setprofile(None)
        counts.append(calls)
    triton.runtime.driver.active.launched = deque(maxlen=0)  # a list would keep the tensors in memory
    best = dict.fromkeys(layers, 1e9)
    for _ in range(20):
        for name, layer in layers.items():
            start = time.process_time()
            for _ in range(50):
                step(layer)
            best[name] = min(best[name], (time.process_time() - start) / 50)
print(launches, *counts, *(f"{1e6 * seconds:.0f}" for seconds in best.values()))
"""


def test_the_cost_of_a_layer_in_python_calls(tmp_path: Path) -> None:
    launches, calls, linear, microseconds, by_linear = map(int, run_compiling(COST, cache=tmp_path).split())
    print(
        f"forward and backward of KANLinear(2, 5): {calls} calls, {microseconds} us; "
        f"of nn.Linear: {linear} calls, {by_linear} us"
    )
    assert launches == 3
    assert linear < calls <= MAX_CALLS + linear
