"""Tuned choices on disk, in one file for each GPU, version of the compilers and version of the kernels' code."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from .. import hardware
from . import tables
from .config import Config
from .environment import slug
from .key import Key

LOCK_TIMEOUT = 10.0  # seconds to wait for another process that writes the file


def folder() -> Path:
    """The folder of the files: FASTKAN_CACHE, or ``fastkan`` in the user's cache folder."""
    own = os.environ.get("FASTKAN_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastkan"


@functools.cache
def source_digest() -> str:
    """A digest of the sources of this backend, since a choice is right and fast for the code that it was measured
    with."""
    digest = hashlib.sha256()
    for path in sorted(Path(hardware.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def path_of(metadata: Mapping[str, str]) -> Path:
    """The file for a GPU and versions, given as :func:`.environment.metadata` returns them."""
    versions = [f"{name}-{metadata[name]}" for name in ("triton", "ptxas") if name in metadata]
    where = [f"sm_{metadata['capability']}", metadata["gpu"]] if "gpu" in metadata else ["cpu"]
    return folder() / f"{slug(*where, *versions, source_digest())}.json"


def load(metadata: Mapping[str, str]) -> dict[Key, Config]:
    """The choices in the file for a GPU and versions; none if the file does not exist.

    A damaged file is ignored with a warning.
    """
    try:
        path = path_of(metadata)
        table = tables.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, RuntimeError, ValueError) as error:  # a user without a home directory gives a RuntimeError
        warnings.warn(f"the cache of tuned choices is ignored: {error}", RuntimeWarning, stacklevel=2)
        return {}
    other = tables.differs(table.metadata, metadata)
    if other is not None:
        warnings.warn(f"the cache of tuned choices is ignored: {path} {other}", RuntimeWarning, stacklevel=2)
        return {}
    return tables.supported_entries(table.entries, int(metadata.get("capability", 90)))


def store(metadata: Mapping[str, str], entries: Mapping[Key, Config]) -> dict[Key, Config]:
    """Add choices to the file, and return all that it holds then, among them those of other processes.

    If the file cannot be written, a warning is issued and ``entries`` are returned.
    """
    try:
        path = path_of(metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT):
            merged = {**load(metadata), **entries}
            tables.write(path, merged, metadata)
    except (OSError, RuntimeError, Timeout) as error:
        warnings.warn(f"tuned choices are not kept: {error}", RuntimeWarning, stacklevel=2)
        return dict(entries)
    return merged
