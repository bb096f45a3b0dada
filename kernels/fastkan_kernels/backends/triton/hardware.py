"""What the machine and PyTorch's settings say: capability, precision, and Triton's own limits."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

import torch

SMALLEST_CAPABILITY = 80  # tensor cores with bfloat16 and tf32
WGMMA_WAIT_UNNEEDED_SINCE = (3, 9)  # Triton, with its own ptxas; see tiles.await_product


# found out once: torch.compile can't trace how
try:
    INSTALLED = find_spec("triton") is not None
except (ImportError, ValueError):
    INSTALLED = False
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")  # as Triton reads it


def missing() -> str | None:
    """Why there are no kernels here at all, or None."""
    return None if INSTALLED else "the package triton is not installed"


def unable(device: torch.device) -> str | None:
    """Why the kernels can't serve tensors of a device, or None; of several GPUs it is asked about that one."""
    reason = missing()
    if reason is not None:
        return reason
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "its kernels are for NVIDIA GPUs"
        if torch.compiler.is_compiling():
            return None  # it has run before, or says so when it does
        found = capability(device)
        if found < SMALLEST_CAPABILITY:
            return f"its kernels need compute capability 8.0, and this GPU has {found / 10}"
        return None
    if device.type == "cpu":
        if INTERPRETED:
            return None
        return "x is on the CPU, where its kernels run in Triton's interpreter only (set TRITON_INTERPRET=1)"
    return f"its kernels are for CUDA tensors, and x is on {device.type!r}"


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Of a GPU, 80 for 8.0; a CPU, where kernels are interpreted, passes for a 9.0."""
    if device.type != "cuda":
        return 90
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def processors(index: int | None) -> int:
    """Streaming multiprocessors of a GPU; without one, an H100's."""
    return 132 if index is None else torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache  # asked at each launch
def needs_wgmma_wait(capability: int) -> bool:
    """Whether products must be made to end within their iteration."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    foreign = bool(os.environ.get("TRITON_PTXAS_PATH"))  # it takes both, and this one may be older
    return capability >= 90 and (foreign or version < WGMMA_WAIT_UNNEEDED_SINCE)


def precision(product: torch.dtype) -> str:
    """Of float32 products, from PyTorch's own settings: ``"tf32x3"``, accurate to float32, or ``"tf32"``."""
    if product != torch.float32:
        return "ieee"
    return "tf32" if _tf32_allowed() else "tf32x3"


def _tf32_allowed() -> bool:
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if newer == "none":
        newer = getattr(torch.backends, "fp32_precision", "none")
    if newer != "none":
        return newer == "tf32"
    # this one raises where both were used, and then the newer one has answered
    return torch.get_float32_matmul_precision() != "highest"


def table_from_environment() -> str | None:
    """Path of a table of tuned choices, from FASTKAN_TUNING."""
    return os.environ.get("FASTKAN_TUNING") or None
