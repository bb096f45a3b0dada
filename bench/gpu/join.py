"""Several runs as one: time on a GPU comes in slices, and a later run does what an earlier one left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("tests", "hazard", "speed", "tune", "parts", "sanitizer")
# of all runs that are joined, beside GPU and versions; commits may differ in what is no source
SAME = ("sources", "backend", "rehearsal")
TESTS = "tests"

Run = dict[str, dict[str, Any]]  # stages by name


def read(folder: Path) -> Run:
    """A run's files.

    Raises:
        ValueError: if there are none.
    """
    found = {name: json.loads(path.read_text()) for name in NAMES if (path := folder / f"{name}.json").is_file()}
    if not found:
        raise ValueError(f"{folder} has no results of python -m bench --gpu ({', '.join(NAMES)})")
    return found


def identity(stage: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for figures to stand in one table."""
    gpu = stage.get("gpu") or {}
    return {
        **{name: stage.get(name) for name in SAME},
        "GPU": gpu.get("name"),
        "driver": gpu.get("driver"),
        "versions": stage.get("versions"),
    }


def mismatch(stages: Sequence[dict[str, Any]]) -> str | None:
    """What differs among stages, in words, or None."""
    first = identity(stages[0])
    for stage in stages[1:]:
        for name, value in identity(stage).items():
            if value != first[name]:
                return f"{name} differs: {first[name]!r} in {stages[0]['stage']}, {value!r} in {stage['stage']}"
    return None


def done(run: Run) -> dict[str, list[str]]:
    """Names of the results of each stage; of the tests, of those that passed."""
    found = {name: [r["name"] for r in stage["results"] if "name" in r] for name, stage in run.items()}
    if TESTS in run:
        found[TESTS] = [name for result in run[TESTS]["results"] for name in result.get("passed", ())]
    return found


def joined(runs: Sequence[Run]) -> Run:
    """All stages of all runs: results that an earlier run has are not taken again, and are left out no more."""
    found: Run = {}
    for name in NAMES:
        stages = [run[name] for run in runs if name in run]
        if not stages:
            continue
        results: dict[str, dict] = {}
        for number, stage in enumerate(stages):
            for result in stage["results"]:
                key = f"{number}" if name == TESTS else result.get("name", str(len(results)))
                results.setdefault(key, result)
        last = stages[-1]
        left_out = [entry for stage in (stages if name != TESTS else [last]) for entry in stage["left_out"]]
        left = [entry for entry in dict.fromkeys(left_out) if entry.split(": ")[0] not in results]
        found[name] = {
            **last,
            "results": list(results.values()),
            "failures": [failure for stage in stages for failure in stage["failures"]],
            "notes": list(dict.fromkeys(note for stage in stages for note in stage["notes"])),
            "left_out": left,
            "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        }
    return found
