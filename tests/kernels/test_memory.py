"""The memory of a training step: no tensor of all features, forward or backward."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastkan import KANConv1d, KANConv2d, KANConv3d, KANLinear
from fastkan_kernels.backends import convolution

ROWS, WIDTH, GRID, ORDER = 65536, 64, 64, 3
PSI = 4 * ROWS * WIDTH * (GRID + ORDER)  # bytes: 1.1 GB
BORDER = 4 * ROWS * WIDTH  # x, y, and the gradient of each


def peak_of(step) -> int:
    """Most bytes that PyTorch's allocator held at once during a step, above what it held before.

    The profiler sees every allocation, those inside an operator too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    held = peak = 0
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler recorded no memory"
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_the_measure_sees_what_it_should() -> None:
    def step() -> None:
        one = torch.empty(1_000_000)
        del one
        two = torch.empty(3_000_000)
        torch.mm(two[:1000].view(1000, 1), two[:500].view(1, 500))  # and inside an operator

    assert 12_000_000 + 2_000_000 <= peak_of(step) < 12_000_000 + 2_500_000


@pytest.mark.parametrize("knots", ["equal", "adapted"])
def test_a_training_step_stays_under_a_quarter_of_the_features(knots: str) -> None:
    layer = KANLinear(WIDTH, WIDTH, GRID, ORDER)
    x = 2 * torch.rand(ROWS, WIDTH) - 1
    if knots == "adapted":
        layer.update_grid(x[:2000])
    x.requires_grad_()
    layer(x[:100]).sum().backward()  # whatever is made once and kept
    layer.zero_grad(set_to_none=True)
    x.grad = None
    g = torch.ones(ROWS, WIDTH)

    peak = peak_of(lambda: layer(x).backward(g))
    gradients = sum(p.grad.nbytes for p in layer.parameters())
    above = peak - gradients - 2 * BORDER  # y, and the gradient of x
    assert above < PSI / 4, f"{above / 2**20:.0f} MiB of {PSI / 2**20:.0f}"


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_step_of_a_convolution_stores_a_few_blocks(dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step stores a few blocks of features, whatever the number of images."""
    monkeypatch.setattr(convolution, "BLOCK_ELEMENTS", 1 << 18)
    size = {1: (2048,), 2: (64, 32), 3: (32, 16, 4)}[dimensions]
    x = (2 * torch.rand(64, 8, *size) - 1).requires_grad_()
    layer = (KANConv1d, KANConv2d, KANConv3d)[dimensions - 1](8, 8, 3, padding=1)
    y = layer(x)
    g = torch.ones_like(y)
    y.backward(g)
    peak = peak_of(lambda: layer(x).backward(g))
    assert peak > 2 * x.nbytes  # y and the gradient of x
    features = 9 * x.nbytes
    assert peak - 2 * x.nbytes < features / 4, f"{peak / 2**20:.1f} MiB of {features / 2**20:.1f}"


def fresh_process(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{root}:{root / 'kernels'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


STEP = """
import resource
import torch
from fastkan import KANLinear

layer = KANLinear({width}, {width}, {grid}, {order})
x = (2 * torch.rand({rows}, {width}) - 1).requires_grad_()
g = torch.ones({rows}, {width})
layer(x[:100]).backward(g[:100])
x.grad = torch.zeros_like(x)  # there before the measurement, as are the layer's gradients
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y = layer(x)
y.backward(g)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_the_process_does_not_grow_by_more_either() -> None:
    """What the allocator keeps for itself included; a new process, since a peak is never forgotten."""
    done = fresh_process(STEP.format(width=WIDTH, grid=GRID, order=ORDER, rows=ROWS))
    assert done.returncode == 0, done.stderr
    grown = 1024 * int(done.stdout)
    above = grown - 2 * BORDER  # y, and a gradient of x that is added to the one there is
    assert above < PSI / 4, f"{above / 2**20:.0f} MiB of {PSI / 2**20:.0f}"


def test_evaluation_holds_less_than_a_step() -> None:
    """Blocks of features of some MiB, whatever the rows."""
    layer = KANLinear(WIDTH, WIDTH, GRID, ORDER)
    x = torch.rand(ROWS, WIDTH)
    with torch.no_grad():
        layer(x[:100])
        above = peak_of(lambda: layer(x)) - BORDER
    assert above < PSI / 16, f"{above / 2**20:.0f} MiB of {PSI / 2**20:.0f}"


FAULTS = """
import resource, torch
from fastkan import KAN
torch.set_num_threads(1)
model, x = KAN(width=[2, 5, 1], grid=5, k=3, seed=0), torch.rand(5000, 2)
def step():
    model.zero_grad()
    model(x).sum().backward()
for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_steps_use_the_memory_of_the_step_before() -> None:
    """Page faults of a step; some 1,000 where the allocator gives a step's memory back to the system each time."""
    done = fresh_process(FAULTS)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50
