"""Properties of the machine and settings of PyTorch and Triton on which the kernels depend."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

import torch

MIN_CAPABILITY = 80  # the first with tensor cores for bfloat16 and tf32
WGMMA_WAIT_UNNEEDED_SINCE = (3, 9)  # version of Triton, with the ptxas that it ships; see tiles.await_product


# Computed at import, since torch.compile cannot trace find_spec.
try:
    INSTALLED = find_spec("triton") is not None
except (ImportError, ValueError):
    INSTALLED = False
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")  # as Triton reads it


def missing() -> str | None:
    """The reason why no kernel can run on this machine, or None."""
    return None if INSTALLED else "the package triton is not installed"


def unable(device: torch.device) -> str | None:
    """The reason why the kernels cannot run on tensors of a device, or None."""
    reason = missing()
    if reason is not None:
        return reason
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "its kernels are for NVIDIA GPUs"
        if torch.compiler.is_compiling():
            return None  # this was checked before tracing, or will be when the graph runs
        found = capability(device)
        if found < MIN_CAPABILITY:
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
    """Compute capability of a GPU, 80 for 8.0; 90 for a CPU, on which kernels are interpreted."""
    if device.type != "cuda":
        return 90
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def processors(index: int | None) -> int:
    """Number of streaming multiprocessors of a GPU, or that of an H100 if there is no GPU."""
    return 132 if index is None else torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache  # called for each launch
def needs_wgmma_wait(capability: int) -> bool:
    """Whether kernels must wait for an asynchronous product within its iteration; see tiles.await_product."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    foreign = bool(os.environ.get("TRITON_PTXAS_PATH"))  # the fix needs ptxas too, and this one may be older
    return capability >= 90 and (foreign or version < WGMMA_WAIT_UNNEEDED_SINCE)


def precision(matmul_dtype: torch.dtype) -> str:
    """The precision of ``tl.dot`` for a dtype. For float32 it is ``"tf32"`` if PyTorch's settings allow it, else
    ``"tf32x3"``, which is as accurate as float32."""
    if matmul_dtype != torch.float32:
        return "ieee"
    return "tf32" if _tf32_allowed() else "tf32x3"


def _tf32_allowed() -> bool:
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if newer == "none":
        newer = getattr(torch.backends, "fp32_precision", "none")
    if newer != "none":
        return newer == "tf32"
    # This call raises if a program has used both settings, but then the newer one was not "none".
    return torch.get_float32_matmul_precision() != "highest"


def table_from_environment() -> str | None:
    """Path of a table of tuned choices, from the environment variable FASTKAN_TUNING, or None."""
    return os.environ.get("FASTKAN_TUNING") or None
