"""Files of ``python -m bench --gpu`` like those of a GPU, made from a rehearsal's. For tests only: nothing is written
into ``bench/results``."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

from bench import __main__ as bench_command
from bench.gpu import bars, contest, join, sources
from bench.gpu.rows import CEILINGS, GRAPHED, ROWS

COMMIT = "0123456789" * 4
CLOCKS = {"clocks.sm": "1980", "clocks.mem": "2619", "clocks.max.sm": "1980", "temperature.gpu": "40"}
GPU = {
    "name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "multiprocessors": 132, "memory_bytes": 1 << 36,
    "l2_bytes": 50 << 20, "driver": "580.1", "clocks": CLOCKS,
}  # fmt: skip


def rehearse(out: Path, *arguments: str) -> int:
    """Run the command on the CPU by the reference, in this process."""
    return bench_command.main(["--gpu", str(out), "--device", "cpu", "--backend", "reference", *arguments])


def as_of_a_gpu(run: join.Run) -> join.Run:
    """The rehearsal's rows under the names of the rows that the bars need."""
    found = copy.deepcopy(run)
    for stage in found.values():
        stage |= {"rehearsal": False, "gpu": copy.deepcopy(GPU), "commit": COMMIT, "sources": sources.here()}
    speed = found["speed"]
    of_mode = {r["row"]["mode"]: r for r in speed["results"] if r["kind"] == "row"}
    by_kind = {r["kind"]: r for r in speed["results"]}
    results = [by_kind["ceilings"] | {"name": CEILINGS.name}, by_kind["graphed"] | {"name": GRAPHED.name}]
    for row in ROWS:
        result = copy.deepcopy(of_mode[row.mode]) | {"name": row.name, "row": row._asdict()}
        results.append(result | {"operations": row.operations})
    speed["results"], speed["left_out"] = results, []
    return found


def write(run: join.Run, folder: Path) -> Path:
    """Write a run's files."""
    folder.mkdir()
    for name, stage in run.items():
        (folder / f"{name}.json").write_text(json.dumps(stage))
    return folder


def entry(run: join.Run, row: str, name: str = contest.AUTO) -> dict[str, Any]:
    """A contestant's entry in a row, which the caller may change."""
    (result,) = (r for r in run["speed"]["results"] if r["name"] == row)
    return next(c for c in result["contestants"] if c["name"] == name)


def set_ratio(run: join.Run, row: str, anchor: str, ratio: float, name: str = contest.AUTO) -> None:
    """Set the ratio of our time to the anchor's."""
    spread = {"median": ratio, "low": ratio * 0.99, "high": ratio * 1.01, "rounds": 9}
    entry(run, row, name)["cold"]["ratios"][anchor] = spread


def bar(anchor: str, row: str = bars.FIRST) -> bars.Bar:
    """The bar of a row and an anchor."""
    return next(b for b in bars.BARS if (b.row, b.anchor) == (row, anchor))


def hold(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)
