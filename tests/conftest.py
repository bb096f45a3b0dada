"""What every test shares: one seed, a fresh compiler, reproducible examples."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

# read when torch is loaded: no run compiles by what another has left on disk
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

# read when Triton is loaded: without a GPU its kernels are interpreted
if os.environ.setdefault("FASTKAN_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

# of the extra "bench", which those tests need
if not all(map(find_spec, ("matplotlib", "pandas", "psutil", "rich", "scipy", "sklearn", "tabulate", "tqdm"))):
    collect_ignore = ["bench"]

# The same examples on every run: a suite that fails once a week teaches nobody anything.
settings.register_profile(
    "fastkan", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("fastkan")


# Tensors here are small, and on a busy machine threads mostly wait for each other. What threads could
# change is asked in test_contractions.py.
torch.set_num_threads(1)


if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    from triton.runtime import interpreter

    device_call = interpreter.InterpretedFunction.__call__

    def call(self, *args, **kwargs):
        """The interpreter makes Triton's language its own for a kernel, and again, for a third of its time,
        for each function that the kernel calls; only those of Triton's own modules need it."""
        if self.fn.__module__.startswith("fastkan_kernels"):
            return self.rewrite()(*args, **kwargs)
        return device_call(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No test runs what another has compiled."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
