"""Stage ``sanitizer``: compute-sanitizer watches each kernel run once."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from . import child
from .place import Place
from .record import Record

TOOLS = ("memcheck", "racecheck")
# of both tools: "ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
CLOSING = re.compile(r"(?:ERROR|RACECHECK) SUMMARY:\s*(\d+) (?:errors?|hazards?)")
FINDING = re.compile(r"^=========\s+(?!COMPUTE-SANITIZER)\S", re.MULTILINE)  # before the end there is no other line
KEPT_LINES = 60
EXPECTED_SECONDS = 60.0  # of a tool; it is slow
MIN_SECONDS = 10.0  # in which a tool may get somewhere


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Both tools in turn, on what has been compiled before."""
    found = executable()
    if not place.is_gpu or found is None:
        reason = "it is not installed" if place.is_gpu else "it needs a GPU"
        for tool in TOOLS:
            record.leave_out(tool)
        record.note(f"compute-sanitizer left out: {reason}")
        return
    script = [sys.executable, "-m", "bench.gpu.touch", "--device", str(place.device), "--backend", place.backend]
    _watched(record, "none", script, record.left() / 3)  # compiles, and is wrong or not by itself
    tools = [tool for tool in TOOLS if tool not in record.before and (not patterns or any(p in tool for p in patterns))]
    for number, tool in enumerate(tools):
        if record.left() < MIN_SECONDS:
            record.leave_out(tool)
            continue
        _watched(record, tool, [found, "--tool", tool, *script], record.left() / (len(tools) - number))


def executable() -> str | None:
    """Where compute-sanitizer is, if anywhere."""
    return next((str(path) for path in _places() if path.is_file()), None)


def verdict(tool: str, code: int | None, output: str) -> str | None:
    """What is wrong with a run, or None.

    Args:
        code: what the script returned; None if it was stopped.
        output: of both.
    """
    if code is None:
        return f"{tool}: stopped, out of time"
    if tool != "none":
        closing = CLOSING.findall(output)
        if not closing:
            return f"{tool}: no closing line, code {code}"
        if any(int(count) > 0 for count in closing):
            return f"{tool}: {sum(map(int, closing))} errors"
    return None if code == 0 else f"{tool}: the script returned {code}"


def _watched(record: Record, tool: str, command: list[str], seconds: float) -> None:
    # each tensor an allocation of its own, or reading beyond one would be legal
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
    code, output = child.run(command, seconds, **environment)
    failure = verdict(tool, code, output)
    if code is None and not FINDING.search(output):
        record.leave_out(tool, "stopped, out of time")
        return
    result = {"name": tool, "tool": tool, "code": code, "failure": failure, "output": output.splitlines()[-KEPT_LINES:]}
    record.add(result, f"{tool}: nothing found", failure)


def _places() -> Iterator[Path]:
    on_path = shutil.which("compute-sanitizer")
    if on_path:
        yield Path(on_path)
    for home in filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda")):
        yield Path(home) / "bin" / "compute-sanitizer"
        yield Path(home) / "compute-sanitizer" / "compute-sanitizer"
