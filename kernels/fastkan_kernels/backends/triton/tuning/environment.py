"""The environment for which a measured choice holds: the GPU, and the versions of Triton and ptxas."""

from __future__ import annotations

import functools
import re
import subprocess

import torch

from .. import hardware


def metadata(device: torch.device | None = None) -> dict[str, str]:
    """Name and compute capability of a GPU and versions of the compilers; without a GPU only the versions.

    Args:
        device: a device; by default PyTorch's current GPU if there is one.
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
    """Name of a GPU, such as ``NVIDIA H100 80GB HBM3``; None for another device."""
    if device.type != "cuda":
        return None
    return _gpu_name(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache  # called for each launch
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@functools.cache
def ptxas_version(capability: int = 90) -> str:
    """Version of the assembler that Triton uses for a compute capability, such as ``12.8.93``, or ``none``."""
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        text = subprocess.check_output([get_ptxas(capability).path, "--version"], text=True, timeout=60)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError):
        return "none"
    found = re.search(r"V(\d[\d.]*)", text)
    return found.group(1) if found else text.strip().splitlines()[-1]


def triton_minor(version: str) -> str:
    """The first two numbers of a version, ``3.7`` for ``3.7.1``."""
    return ".".join(version.split(".")[:2])


def slug(*words: str) -> str:
    """Words joined to a part of a file name, such as ``sm_90-h100-80gb-hbm3``."""
    plain = re.sub(r"[^a-z0-9._]+", "-", " ".join(words).lower().replace("nvidia", " "))
    return re.sub(r"-{2,}", "-", plain).strip("-")
