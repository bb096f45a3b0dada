"""The marker ``gpu``: on a simulated GPU, tests with the marker run without mixing devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import no_triton

import fastkan

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/layers/test_layer.py", "tests/network/test_state.py", "tests/kernels/test_features.py")


@pytest.mark.gpu
def test_tests_that_are_marked_can_not_use_the_cpu_backend() -> None:
    layer, x = fastkan.KANLinear(2, 3), torch.rand(4, 2)
    with fastkan.backend("cpu"), pytest.raises(RuntimeError, match="marked gpu"):
        layer(x)


@pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
def test_the_simulated_gpu_refuses_what_a_gpu_refuses() -> None:
    from fake_gpu import fake_gpu

    with fake_gpu() as gpu:
        there = gpu.put(torch.ones(3))
        with pytest.raises(RuntimeError, match="on the same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator on the GPU"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert (there + torch.tensor(1.0)).device.type == "cuda"
        assert there.copy_(torch.zeros(3)).cpu().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.skipif(no_triton() is not None or torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_marked_tests_pass_on_the_simulated_gpu() -> None:
    command = [sys.executable, "-m", "pytest", *TESTS, "-m", "gpu", "-p", "on_fake_gpu", "-q", "-n", "0"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests" / "support")))
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout.splitlines()[-1]
