"""Files on disk that cache tuned choices.

There is one file for each combination of GPU, compiler versions and version of the kernels' source code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from . import hardware, tables
from .config import Config
from .environment import slug
from .key import Key

LOCK_TIMEOUT = 10.0  # maximum number of seconds to wait until another process has written the file


def folder() -> Path:
    """Return the folder of the cache files.

    The folder is named by the environment variable FASTKAN_CACHE (default: ``fastkan`` in the user's cache folder).
    """
    own = os.environ.get("FASTKAN_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastkan"


@functools.cache
def source_digest() -> str:
    """Return a digest of the source files of the Triton backend.

    The digest is part of the file name, because a tuned choice is valid only for the code with which it was measured.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(hardware.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def path_of(metadata: Mapping[str, str]) -> Path:
    """Return the path of the file for a GPU and compiler versions.

    Args:
        metadata: GPU and compiler versions, as returned by :func:`.environment.metadata`.
    """
    versions = [f"{name}-{metadata[name]}" for name in ("triton", "ptxas") if name in metadata]
    where = [f"sm_{metadata['capability']}", metadata["gpu"]] if "gpu" in metadata else ["cpu"]
    return folder() / f"{slug(*where, *versions, source_digest())}.json"


def load(metadata: Mapping[str, str]) -> dict[Key, Config]:
    """Return the tuned choices for a GPU and compiler versions from the cache file.

    If the file does not exist, the result is empty. A damaged file is ignored with a warning.
    """
    try:
        path = path_of(metadata)
        table = tables.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, RuntimeError, ValueError) as error:  # Path.home raises RuntimeError if it finds no home folder
        warnings.warn(f"the cache of tuned choices is ignored: {error}", RuntimeWarning, stacklevel=2)
        return {}
    other = tables.differs(table.metadata, metadata)
    if other is not None:
        warnings.warn(f"the cache of tuned choices is ignored: {path} {other}", RuntimeWarning, stacklevel=2)
        return {}
    return tables.supported_entries(table.entries, int(metadata.get("capability", 90)))


def store(metadata: Mapping[str, str], entries: Mapping[Key, Config]) -> dict[Key, Config]:
    """Add tuned choices to the cache file, and return all choices that are in the file afterwards.

    The returned choices include choices that other processes have saved.


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
