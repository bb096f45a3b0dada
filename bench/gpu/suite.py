"""Stage ``tests``: the suite's tests of the kernels, on CUDA tensors."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
import time
from pathlib import Path

from . import child
from .place import Place
from .record import Record

TESTS = child.ROOT / "tests"
DEVICE = "FASTKAN_TEST_DEVICE"  # which the tests read
# a test file reads DEVICE itself, or by way of tests/support/cases.py or of the fixture each_backend
READS = re.compile(
    rf"{DEVICE}|^from cases import (\([^)]*|.*)\b(DEVICE|WITH_TRITON|FUSED|by_triton)\b|\beach_backend\b", re.MULTILINE
)
# which bench.gpu.deadline reads
DEADLINE, BEFORE, PASSED = "FASTKAN_TEST_DEADLINE", "FASTKAN_TEST_BEFORE", "FASTKAN_TEST_PASSED"
GRACE = 20.0  # seconds for the last test to end by itself
CLOSING = re.compile(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.]+s.*?)\s*=*$")
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?)")
OUT_OF_TIME = re.compile(r"^SKIPPED \[(\d+)\] .*out of time")
FAILURE_HEAD = re.compile(r"^_{3,} (.+?) _{3,}$")
NAME = "suite"
NOTHING_LEFT = 5  # pytest's code where no test was collected, or all were deselected
KEPT_FAILURES, KEPT_LINES = 40, 15
MAX_WORKERS = 14


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Run them in one pytest; with ``patterns`` only files named so."""
    files = [path for path in test_files() if not patterns or any(p in path.name for p in patterns)]
    if not files:
        record.fail("there is no test file that reads " + DEVICE)
        return
    command = [sys.executable, "-m", "pytest", *map(str, files)]
    command += ["-q", "-rfEs", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-p", "bench.gpu.deadline"]
    if importlib.util.find_spec("xdist") and workers > 1:  # a kernel is compiled for almost every test
        command += ["-n", str(min(workers, MAX_WORKERS))]
    end = time.time() + record.left() - GRACE
    with tempfile.TemporaryDirectory() as folder:
        before, passed = Path(folder) / "before", Path(folder) / "passed"
        before.write_text("\n".join(sorted(record.before)), encoding="utf-8")
        passed.touch()
        environment = {DEVICE: place.device.type, DEADLINE: str(end), BEFORE: str(before), PASSED: str(passed)}
        code, output = child.run(command, record.left() - 1, **environment)
        names = passed.read_text(encoding="utf-8").splitlines()
    found = read(output)
    left_out = found["out_of_time"]
    if left_out:
        record.leave_out(f"{left_out} tests")
    elif code is None:
        record.leave_out("tests that had not begun")
    result = {"name": NAME, "files": [path.name for path in files], "code": code, **found, "passed": names}
    record.add(result, found["closing"] or "no closing line", _verdict(code, found, bool(record.before)))


def test_files() -> list[Path]:
    """Files of the suite that run on any device, those of the kernels first."""
    reading = [path for path in sorted(TESTS.rglob("test_*.py")) if READS.search(path.read_text(encoding="utf-8"))]
    kernels = sorted(TESTS.rglob("test_triton*.py"))
    return list(dict.fromkeys([*kernels, *reading]))


def read(output: str) -> dict:
    """Counts, the closing line and the failures' ends of what pytest printed."""
    lines = output.splitlines()
    closing = next((m[1] for line in reversed(lines) if (m := CLOSING.match(line.strip()))), None)
    counts = {
        word.rstrip("s") if word.startswith("error") else word: int(n) for n, word in COUNT.findall(closing or "")
    }
    left_out = sum(int(m[1]) for line in lines if (m := OUT_OF_TIME.match(line)))
    return {
        "closing": closing,
        "counts": counts,
        "out_of_time": left_out,
        "failed": [line for line in lines if line.startswith(("FAILED ", "ERROR "))],
        "ends": _ends(lines),
        "tail": [] if closing else lines[-KEPT_LINES:],
    }


def _verdict(code: int | None, found: dict, resumed: bool) -> str | None:
    if code is None:
        return "tests: stopped, out of time"
    if resumed and code == NOTHING_LEFT:
        return None
    if code != 0:
        return f"tests: pytest returned {code}: {found['closing'] or (found['tail'] or ['no output'])[-1]}"
    if not found["counts"].get("passed") and not resumed:
        return "tests: none passed"
    return None


def _ends(lines: list[str]) -> dict[str, list[str]]:
    """The last lines of each failure's report."""
    ends: dict[str, list[str]] = {}
    name = None
    for line in lines:
        head = FAILURE_HEAD.match(line)
        if head:
            name = head[1]
            ends[name] = []
        elif line.startswith("====") and name is not None:
            break
        elif name is not None:
            ends[name] = [*ends[name], line][-KEPT_LINES:]
    return dict(list(ends.items())[:KEPT_FAILURES])
