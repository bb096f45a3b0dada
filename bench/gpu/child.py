"""A command in a process group of its own, stopped with all that it started when its time is up."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a command ended; ``code`` is None if it was stopped."""

    code: int | None
    output: str


def run(command: list[str], seconds: float, **environment: str) -> Ended:
    """Run a command in the repository's root, with our packages on its path and ``environment`` besides."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, seconds))
        return Ended(process.returncode, output)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return Ended(None, output)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
