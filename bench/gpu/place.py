"""Where the stages run: a GPU, or the CPU for a rehearsal; and what that machine is."""

from __future__ import annotations

import os
import subprocess
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

import fastkan
from fastkan_kernels.autograd.dispatch import BACKEND_NAMES
from fastkan_kernels.backends.registry import BACKENDS
from fastkan_kernels.backends.triton.selection import ptxas_version

from ..records import describe
from . import sources

CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")


class Place(NamedTuple):
    """A device, and the backend that is proved and measured there."""

    device: torch.device
    backend: str = "triton"

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def ours(self) -> AbstractContextManager[None]:
        """Contractions by the backend."""
        return fastkan.backend(self.backend)

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def unable(self) -> str | None:
        """Why nothing can be run here, or None."""
        if self.is_gpu and not torch.cuda.is_available():
            return (
                "there is no GPU here (torch.cuda.is_available() is False). To rehearse the stages on the CPU, at "
                "tiny sizes: TRITON_INTERPRET=1 python -m bench --gpu OUT --device cpu"
            )
        if self.is_gpu and os.environ.get("TRITON_INTERPRET", "0") != "0":
            return "TRITON_INTERPRET is set: the kernels would be interpreted. It is for --device cpu"
        if self.backend not in BACKENDS:
            if self.backend not in BACKEND_NAMES:
                return f"there is no backend {self.backend!r}; there are {', '.join(BACKENDS)}"
            return f"backend {self.backend!r} is not part of this version"
        reason = BACKENDS[self.backend].unable(self.device)
        return None if reason is None else f"backend {self.backend!r} can't serve {self.device}: {reason}"


def about(place: Place) -> dict:
    """Machine, GPU, versions and commit, for JSON."""
    found = describe()
    found["backend"] = place.backend
    found["rehearsal"] = not place.is_gpu
    found["sources"] = sources.here()
    if place.is_gpu:
        properties = torch.cuda.get_device_properties(place.device)
        found["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": cache_bytes(place.device),
            "driver": _asked_of_smi("driver_version").get("driver_version"),
            "clocks": clocks(),
        }
    found["versions"]["cuda"] = torch.version.cuda
    found["versions"]["ptxas"] = ptxas_version()
    return found


def cache_bytes(device: torch.device) -> int:
    """Of a GPU's L2 cache."""
    return torch.cuda.get_device_properties(device).L2_cache_size


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks (MHz), temperature (C) and power (W) now; empty where it is not there."""
    return _asked_of_smi(*CLOCKS)


def in_words(about: dict) -> str:
    """Machine and versions in one line."""
    gpu = about.get("gpu")
    where = f"{gpu['name']}, driver {gpu['driver']}" if gpu else f"REHEARSAL on {about['machine']['processor']}"
    names = ("torch", "triton", "ptxas", "cuda", "inkan", "python")
    versions = ", ".join(f"{n} {about['versions'][n]}" for n in names if about["versions"].get(n))
    commit = f", commit {about['commit'][:10]}" if about["commit"] else ""
    return f"{where}; {versions}{commit}"


def _asked_of_smi(*fields: str) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.split(","))))
