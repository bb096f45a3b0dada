"""The environment for which a measured choice is valid: the GPU and the versions of Triton and ptxas."""

from __future__ import annotations

import functools
import re
import subprocess

import torch

from . import hardware


def metadata(device: torch.device | None = None) -> dict[str, str]:
    """Return the name and compute capability of a GPU, and the versions of Triton and ptxas.

    Without a GPU, only the versions are returned.

    Args:
        device: the GPU (default: PyTorch's current GPU, if the machine has one).
    """
    import triton

    found = {"triton": triton.__version__}
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda")
    if device is None or device.type != "cuda":
        return {**found, "ptxas": ptxas_version()}
    capability = hardware.capability(device)
    return {
        "gpu": gpu_name(device) or "",
        "capability": str(capability),
        **found,
        "ptxas": ptxas_version(capability),
    }


def gpu_name(device: torch.device) -> str | None:
    """Return the name of a GPU, such as ``NVIDIA H100 80GB HBM3``, or None if the device is not a GPU."""
    if device.type != "cuda":
        return None
    return _gpu_name(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache  # the function is called for each kernel launch
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@functools.cache
def ptxas_version(capability: int = 90) -> str:
    """Return the version of ptxas, the assembler that Triton uses for a compute capability.

    The version is a string such as ``12.8.93``, or ``none`` if ptxas cannot be run.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        text = subprocess.check_output([get_ptxas(capability).path, "--version"], text=True, timeout=60)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError):
        return "none"
    found = re.search(r"V(\d[\d.]*)", text)
    return found.group(1) if found else text.strip().splitlines()[-1]


def triton_minor(version: str) -> str:
    """Return the first two numbers of a version, for example ``3.7`` for ``3.7.1``."""
    return ".".join(version.split(".")[:2])


def slug(*words: str) -> str:
    """Join words into a part of a file name, such as ``sm_90-h100-80gb-hbm3``."""
    plain = re.sub(r"[^a-z0-9._]+", "-", " ".join(words).lower().replace("nvidia", " "))
    return re.sub(r"-{2,}", "-", plain).strip("-")
