"""The way from a layer to arithmetic: few frames and few Python calls, which is what a small forward costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAX_FRAMES = 6  # from KANLinear.forward to the function that computes splines, both counted
MAX_CALLS = 60  # Python calls within the two packages

COUNT = """
import sys, torch, fastkan, fastkan_kernels
roots = tuple(str(package.__path__[0]) for package in (fastkan, fastkan_kernels))
layer, x, calls = fastkan.KANLinear({inputs}, {outputs}, {grid}), torch.randn({rows}, {inputs}), []
layer(x)

def note(frame, event, argument):
    if event != "call" or not frame.f_code.co_filename.startswith(roots):
        return
    name, depth = frame.f_code.co_name, 0
    while frame is not None:
        depth += frame.f_code.co_filename.startswith(roots)
        frame = frame.f_back
    calls.append((name, depth))

sys.setprofile(note)
layer(x)
sys.setprofile(None)
print(len(calls), *(depth for name, depth in calls if name == {arithmetic!r}))
"""


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "grid", "arithmetic"),
    [(4096, 64, 64, 5, "splines_at"), (4096, 64, 64, 64, "local_features"), (1000, 2, 5, 5, "edges")],
    ids=["dense", "banded", "piecewise"],
)
def test_a_forward_reaches_its_arithmetic_in_few_frames_and_calls(
    rows: int, inputs: int, outputs: int, grid: int, arithmetic: str
) -> None:
    """In a process of its own: a test runner's tracer would replace the profiler or be counted by it."""
    root = Path(__file__).resolve().parents[2]
    code = COUNT.format(rows=rows, inputs=inputs, outputs=outputs, grid=grid, arithmetic=arithmetic)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{root}:{root / 'kernels'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    calls, *depths = map(int, done.stdout.split())
    assert depths, f"{arithmetic} was not called"
    assert max(depths) <= MAX_FRAMES
    assert calls <= MAX_CALLS
