"""``python -m bench.gpu.publish OUT [OUT ...]``: one or more runs on one GPU as ``bench/results/<gpu>.json``.

What is refused: a rehearsal, runs that differ in GPU, driver, versions or sources, and sources that are not those of
the commit. ``python -m bench.report`` makes the page's block and the pictures from that file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import bars, join, sources
from .child import ROOT

RESULTS = ROOT / "bench" / "results"
SCHEMA = 1
WORD = re.compile(r"\b[A-Z]+\d+\w*\b")  # H100, A100, L40S, B200


def slug(name: str) -> str:
    """A file's name for a GPU: ``NVIDIA H100 80GB HBM3`` is ``h100``."""
    found = WORD.search(name)
    words = found[0] if found else name.removeprefix("NVIDIA ")
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def joined(runs: Sequence[join.Run], commit: str | None = None) -> dict[str, Any]:
    """All that is kept of them.

    Args:
        commit: whose sources they ran; the first run's if it knows it.

    Raises:
        ValueError: if they can't stand in one file, or their sources are not the commit's.
    """
    stages = [stage for run in runs for stage in run.values()]
    if any(stage.get("rehearsal", True) for stage in stages):
        raise ValueError("a rehearsal's figures mean nothing, and none is published")
    problem = join.mismatch(stages)
    if problem is not None:
        raise ValueError(problem)
    first = stages[0]
    commit = _commit(commit or first["commit"], first["sources"])
    found = join.joined(runs)
    return {
        "schema": SCHEMA,
        "gpu": {name: value for name, value in first["gpu"].items() if name != "clocks"},
        "machine": first["machine"],
        "versions": first["versions"],
        "backend": first["backend"],
        "commit": commit,
        "sources": first["sources"],
        "runs": [_run(run) for run in runs],
        "bars": bars.as_json(bars.judged(found.get("speed", {}).get("results", []))),
        "stages": {name: _stage(name, stage) for name, stage in found.items()},
    }


def _commit(commit: str | None, digest: str) -> str:
    if commit is None:
        raise ValueError("the runs don't know their commit (their copy had no history): name it by --commit")
    commit = commit.rstrip("+")
    if sources.at(commit) != digest:
        raise ValueError(f"the runs' sources are not those of commit {commit}")
    return sources.whole(commit)


def _run(run: join.Run) -> dict[str, Any]:
    """When the GPU was what, of one slice of time."""
    return {
        name: {
            "seconds": stage["seconds"],
            "settings": stage["settings"],
            "clocks_before": stage.get("clocks_before") or stage["gpu"].get("clocks"),
            "clocks_after": stage.get("clocks_after"),
            "left_out": len(stage["left_out"]),
        }
        for name, stage in run.items()
    }


def _stage(name: str, stage: dict[str, Any]) -> dict[str, Any]:
    results = stage["results"]
    if name == "hazard":
        results = _hazards(results)
    elif name == "tests":
        results = [{key: result[key] for key in ("files", "code", "closing", "counts", "failed")} for result in results]
    return {
        "seconds": stage["seconds"],
        "failures": stage["failures"],
        "left_out": stage["left_out"],
        "notes": stage["notes"],
        "results": results,
    }


def _hazards(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials and repeats by contraction and dtype: thousands of lines say no more."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        if "repeats" not in result:
            continue
        of = f"{result['contraction']}_{result['derivative']}", result["setting"]
        group = groups.setdefault(of, {"contraction": of[0], "dtype": of[1], "trials": 0, "repeats": 0, "wrong": 0})
        group["trials"] += 1
        group["repeats"] += result["repeats"]
        group["wrong"] += result["failure"] is not None
    return [groups[of] for of in sorted(groups)]


def main(argv: list[str] | None = None) -> int:
    """Write the file; 2 if it is refused."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.publish", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("out", type=Path, nargs="+", metavar="OUT", help="folders of python -m bench --gpu")
    arguments.add_argument("--commit", help="whose sources ran, where the runs don't know it")
    arguments.add_argument("--folder", type=Path, default=RESULTS, help="for the file (default bench/results)")
    options = arguments.parse_args(argv)
    try:
        found = joined([join.read(folder) for folder in options.out], options.commit)
    except ValueError as problem:
        arguments.error(str(problem))
    path = options.folder / f"{slug(found['gpu']['name'])}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    verdicts = [one["verdict"] for one in found["bars"]]
    told = ", ".join(f"{verdicts.count(word)} {word}" for word in bars.VERDICTS if word in verdicts)
    print(f"{path}: {told}. Now: python -m bench.report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
