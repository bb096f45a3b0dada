"""``python -m bench.gpu OUT``: tune the kernels for this machine's GPU, measure them, and write OUT/results.json.

The file is written after each result, so that a run that is stopped leaves all results up to then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..report import console, show
from . import bars, report, speed
from .ahead import applies
from .clock import Clock
from .machine import CLOCKS, Place, about, smi

STAGES = {"tune": 0.4, "speed": 1.0}  # share of the time that is left when the stage begins
TOTAL = 540.0
TABLE = "tuned.json"  # the file of tuned choices, to which FASTKAN_TUNING can point
GRACE = 10.0  # seconds until a stage that exceeds its time limit is stopped


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    arguments.add_argument("out", type=Path, metavar="OUT", help="folder of the results and of the tuned choices")
    arguments.add_argument(
        "--total", type=float, default=TOTAL, metavar="SECONDS", help="for all (default %(default)g)"
    )
    arguments.add_argument("--only", choices=STAGES, help="one stage, beside earlier results of the other in OUT")
    arguments.add_argument("--cases", nargs="+", metavar="PART", help="only rows whose names contain a part")
    words = "cpu rehearses tiny rows in Triton's interpreter; the times mean nothing (set TRITON_INTERPRET=1)"
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=words)
    return arguments


class Results:
    """The file OUT/results.json, which holds the results of both stages."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / report.FILE
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {"failures": []}

    def save(self) -> None:
        """Write the file atomically, so that the file is complete even if the process is stopped."""
        half_written = self.path.with_suffix(".part")
        half_written.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(half_written, self.path)


def main(argv: list[str] | None = None) -> int:
    """Run each stage in a separate process, and print tables of the results.

    Return 1 if a stage or a contestant of fastkan has failed, else 0.
    """
    arguments = parser()
    options = arguments.parse_args(argv)
    place = Place(torch.device(options.device))
    if options.total <= 0:
        arguments.error(f"--total must be above 0, got {options.total}")
    if reason := place.unable():
        arguments.error(reason)
    ends = time.monotonic() + options.total
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out)
    if not options.only:
        results.data = {"failures": []}
    print(applies(os.environ.get("TRITON_CACHE_DIR")), flush=True)
    # A stage that runs in a separate process can be stopped if it hangs, and an error of the GPU does not affect the
    # other stage.
    for name in [options.only] if options.only else STAGES:
        results.data |= {"about": about(place), name: []}
        results.save()
        seconds = max(1.0, STAGES[name] * (ends - time.monotonic()))
        why = _apart(options, name, seconds)
        results = Results(options.out)
        if why is not None:
            results.data["failures"].append(f"{name}: {why}")
            results.save()
    view = console()
    for words, frame in (
        ("Measured", report.times_table(results.data.get("speed", ()))),
        ("Bars", report.bars_table(results.data.get("speed", ()))),
    ):
        show(view, frame, words)
    failures = report.failures(results.data)
    for failure in failures:
        view.print(failure, style="red", highlight=False, markup=False)
    return int(bool(failures))


def _apart(options: argparse.Namespace, name: str, seconds: float) -> str | None:
    """Run a stage in another process, and return the reason why it did not end by itself, or None."""
    call = f"from bench.gpu.__main__ import run; run({name!r}, {str(options.out)!r}, {options.device!r}, {seconds})"
    table = options.out.resolve() / TABLE
    environment = {**os.environ, "BENCH_GPU_CASES": json.dumps(options.cases)}
    if name == "speed" and table.exists():
        environment["FASTKAN_TUNING"] = str(table)
    process = subprocess.Popen([sys.executable, "-c", call], env=environment)
    try:
        code = process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"stopped {GRACE:g} s after its time"
    return None if code == 0 else f"its process ended with {code}"


def run(name: str, out: str, device: str, seconds: float) -> None:
    """Run a stage in this process until its time is over.

    Args:
        name: "tune" or "speed".
        out: folder of the results.
        device: "cuda" or "cpu".
        seconds: time limit of the stage.
    """
    ends, place, results = time.monotonic() + seconds, Place(torch.device(device)), Results(Path(out))
    patterns = json.loads(os.environ.get("BENCH_GPU_CASES", "null"))
    work: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if name == "tune":
        layers = bars.LAYERS if place.is_gpu else bars.REHEARSED[1:2]
        work = [(row.name, lambda row=row: speed.tuned(row, place, Path(out) / TABLE)) for row in layers]  # type: ignore[misc]
    else:
        clock = Clock(place)
        items = bars.MEASURED if place.is_gpu else bars.REHEARSED
        work = [("copy", lambda: speed.bandwidth(place, clock))]
        work += [(item.name, lambda item=item: speed.measured(item, place, clock)) for item in items]  # type: ignore[misc]
    for number, (words, measure) in enumerate(work):
        if patterns and not any(part in words for part in patterns):
            continue
        if time.monotonic() > ends:
            print(f"[{name}] no time for {', '.join(words for words, _ in work[number:])}", flush=True)
            break
        started = time.monotonic()
        results.data[name].append({**measure(), "clocks": smi(*CLOCKS) if place.is_gpu else {}})
        results.save()
        print(f"[{name}] {words}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
