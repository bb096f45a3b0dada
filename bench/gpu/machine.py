"""The device on which the stages run, PyTorch's settings there, and a description of the machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

import fastkan

from ..records import describe

# The dtype of all operands by the name of a precision. In the precision "highest", matrix products of float32 numbers
# are as accurate as float32.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "highest": torch.float32}
# Relative error in the Euclidean norm above which the results of a contestant are wrong.
BOUNDS = {"bfloat16": 1e-2, "float16": 2e-3, "tf32": 2e-3, "highest": 1e-4}
CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")  # units: MHz, MHz, degrees Celsius, W


class Place(NamedTuple):
    """A device, and the backend that computes fastkan's contractions on the device."""

    device: torch.device
    backend: str = "triton"

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def ours(self) -> AbstractContextManager[None]:
        """Return a context in which the backend computes all contractions."""
        return fastkan.backend(self.backend)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def unable(self) -> str | None:
        """Return the reason why nothing can be measured on the device, or None if the device can be used."""
        if not self.is_gpu:
            return None
        if not torch.cuda.is_available():
            return (
                "there is no GPU here. To rehearse on the CPU: TRITON_INTERPRET=1 python -m bench.gpu OUT --device cpu"
            )
        if os.environ.get("TRITON_INTERPRET", "0") != "0":
            return "TRITON_INTERPRET is set, so the kernels would be interpreted; unset it"
        return None


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Set PyTorch's precision of float32 products inside the ``with`` statement.

    Args:
        name: a key of ``DTYPES``.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def about(place: Place) -> dict[str, Any]:
    """Return the descriptions of machine, GPU, versions and commit that are written to JSON files."""
    found = describe()
    found["rehearsal"] = not place.is_gpu
    if place.is_gpu:
        properties = torch.cuda.get_device_properties(place.device)
        found["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            **smi("driver_version"),
        }
        found["versions"]["cuda"] = torch.version.cuda
    return found


def smi(*fields: str) -> dict[str, str]:
    """Return fields that nvidia-smi reports for the first GPU, or nothing if nvidia-smi cannot be run."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.split(","))))
