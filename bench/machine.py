"""Where and with what something was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("fastkan", "torch", "triton", "inkan", "flashkan", "efficient-kan", "pykan", "numpy")


def describe() -> dict:
    """Machine, versions and commit, for JSON."""
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **_installed()},
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


class OtherWork:
    """What share of the processor others take, from when this is made: nothing spoils a timing as much.
    Linux tells it; elsewhere the share is None."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._start = self._now()

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._began

    def share(self) -> float | None:
        """0 to 1."""
        now = self._now()
        if now is None or self._start is None:
            return None
        busy, everything, own = (end - start for start, end in zip(self._start, now))
        return max(0.0, busy - own) / max(everything, 1e-9)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            ticks = [float(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        except (OSError, ValueError):
            return None
        idle = ticks[3] + ticks[4]  # of which the second waits for a disk
        return sum(ticks) - idle, sum(ticks), time.process_time()


def commit() -> str | None:
    """The checkout's commit, with ``+`` if files differ from it; None outside of a checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
