"""The way from a layer to arithmetic: few frames and few Python calls, which is what a small forward costs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FRAMES = 6  # from KANLinear.forward to the function that computes splines, or sums polynomials, both counted
MAX_CALLS = 60  # Python calls within the two packages

COUNT = """
import sys, torch, fastkan, fastkan_kernels
from pathlib import Path
roots = tuple(str(package.__path__[0]) for package in (fastkan, fastkan_kernels))
layer, x, calls = fastkan.KANLinear({inputs}, {outputs}, {grid}), torch.randn({rows}, {inputs}), []
layer(x)

def note(frame, event, argument):
    if event != "call" or not frame.f_code.co_filename.startswith(roots):
        return
    name, depth = Path(frame.f_code.co_filename).stem + "." + frame.f_code.co_name, 0
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
    [
        (4096, 64, 64, 5, "cardinal.splines_at"),
        (4096, 64, 64, 64, "banded.splines_out"),
        (1000, 2, 5, 5, "piecewise.contract"),
    ],
    ids=["dense", "banded", "piecewise"],
)
def test_a_forward_reaches_its_arithmetic_in_few_frames_and_calls(
    rows: int, inputs: int, outputs: int, grid: int, arithmetic: str
) -> None:
    """Counted in a process of its own, since a test runner may have a profiler too."""
    code = COUNT.format(rows=rows, inputs=inputs, outputs=outputs, grid=grid, arithmetic=arithmetic)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    calls, *depths = map(int, done.stdout.split())
    assert depths, f"{arithmetic} was not called"
    assert max(depths) <= MAX_FRAMES
    assert calls <= MAX_CALLS


def test_each_private_name_of_torch_stands_on_one_line() -> None:
    """A version of PyTorch that changes one is then a change in one place."""
    found: Counter[str] = Counter()
    for folder in (ROOT / "fastkan", ROOT / "kernels"):
        for file in folder.rglob("*.py"):
            for name in re.findall(r"\b(?:torch|forward_ad|aten)(?:\.\w+)+", file.read_text()):
                if re.search(r"\._[a-zA-Z]", name):
                    found[name] += 1
    assert found["torch._C._are_functorch_transforms_active"] == 1
    assert {name: count for name, count in found.items() if count > 1} == {}
