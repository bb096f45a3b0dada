"""Measurements as JSON: machine, versions, commit and settings, then a list of flat results, one a line.

A result of any command names its ``case`` and its ``contender``. Where something was timed, ``seconds`` holds
``[median, lower quartile, upper quartile, rounds]``, and ``ratios`` the same of the ratios to each anchor, by the
anchor's name. ``note`` says why there is no time.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SCHEMA = 2
PACKAGES = ("fastkan", "torch", "triton", "inkan", "flashkan", "efficient-kan", "pykan", "numpy")

Result = dict[str, Any]


class Record(NamedTuple):
    """The results of one run, the machine and versions as :func:`describe` gives them, and the run's settings."""

    results: list[Result]
    about: dict[str, Any]
    settings: dict[str, Any]


def write(path: Path, record: Record) -> None:
    """Write a JSON file."""
    head = json.dumps({"schema": SCHEMA, **record.about, "settings": record.settings}, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(result, default=str)}" for result in record.results)
    path.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read(path: Path, fields: Sequence[str] = ("case", "contender")) -> Record:
    """Read what :func:`write` has written.

    Args:
        fields: names that each result must have.

    Raises:
        ValueError: if the file can't be read, or has another form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise ValueError(f"{path} can't be read: {failure.strerror}") from failure
    except ValueError as failure:
        raise ValueError(f"{path} is not JSON: {failure}") from failure
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} holds no results of python -m bench: its schema is {schema!r}, expected {SCHEMA}")
    try:
        about = {name: found[name] for name in ("machine", "versions", "commit")}
        for result in found["results"]:
            for field in fields:
                result[field]
        return Record(found["results"], about, found["settings"])
    except (KeyError, TypeError) as failure:
        raise ValueError(f"{path} lacks a field of such results: {type(failure).__name__}: {failure}") from failure


def describe() -> dict[str, Any]:
    """Machine, versions and commit, for JSON."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **_installed()},
        "commit": _commit(),
    }


def place(about: dict[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    commit = f", commit {about['commit'][:10]}" if about["commit"] else ""
    return f"{machine['processor']}, {machine['threads']} threads, {machine['system']}; {versions}{commit}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # the system is not Linux
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checkout's commit, with ``+`` if files differ from it; None without a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

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
