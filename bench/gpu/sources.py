"""Which sources a figure is of: a hash of the files that decide it, here or in a commit.

A copy of a checkout may have no history, and a checkout may hold more than its commit.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Mapping

from .child import ROOT

FOLDERS = ("fastkan", "kernels", "bench")
ENDING = ".py"


def digest(files: Mapping[str, bytes]) -> str:
    """Of files by their paths."""
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(f"{path}\0{hashlib.sha256(files[path]).hexdigest()}\n".encode())
    return found.hexdigest()


def here() -> str:
    """Of this tree."""
    return digest(
        {
            str(path.relative_to(ROOT)): path.read_bytes()
            for folder in FOLDERS
            for path in (ROOT / folder).rglob(f"*{ENDING}")
        }
    )


def at(commit: str) -> str:
    """Of a commit of this checkout.

    Raises:
        ValueError: if there is no such commit.
    """
    archived = _git("archive", "--format=tar", commit, *FOLDERS)
    with tarfile.open(fileobj=io.BytesIO(archived)) as archive:
        files = {
            member.name: file.read()
            for member in archive.getmembers()
            if member.name.endswith(ENDING) and (file := archive.extractfile(member)) is not None
        }
    return digest(files)


def whole(commit: str) -> str:
    """Its full name.

    Raises:
        ValueError: if there is no such commit.
    """
    return _git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as failure:
        raise ValueError(f"there is no such commit here: git {' '.join(arguments)} failed") from failure
