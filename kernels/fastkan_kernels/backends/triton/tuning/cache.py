"""What was tuned here before, kept on disk: a file for each GPU, versions and state of the kernels."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from . import tables
from .config import Config
from .environment import slug
from .key import Key

PATIENCE = 10.0  # seconds to wait for another process that writes


def folder() -> Path:
    """FASTKAN_CACHE, else ``fastkan`` in the user's folder of caches."""
    own = os.environ.get("FASTKAN_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastkan"


@functools.cache
def kernels() -> str:
    """A digest of the kernels' sources, which says more than a version: a choice is right and quick for the code
    that it was tried with."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def path_of(metadata: Mapping[str, str]) -> Path:
    """The file for a GPU and versions, see :func:`.environment.metadata`."""
    versions = [f"{name}-{metadata[name]}" for name in ("triton", "ptxas") if name in metadata]
    where = [f"sm_{metadata['capability']}", metadata["gpu"]] if "gpu" in metadata else ["cpu"]
    return folder() / f"{slug(*where, *versions, kernels())}.json"


def load(metadata: Mapping[str, str]) -> dict[Key, Config]:
    """What the file for a GPU and versions holds, nothing if there is none.

    A damaged one is ignored, with a warning.
    """
    try:
        path = path_of(metadata)
        table = tables.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a user without a home, too
        warnings.warn(f"the cache of tuned choices is ignored: {error}", RuntimeWarning, stacklevel=2)
        return {}
    other = tables.differs(table.metadata, metadata)
    if other is not None:
        warnings.warn(f"the cache of tuned choices is ignored: {path} {other}", RuntimeWarning, stacklevel=2)
        return {}
    return tables.that_exist(table.entries, int(metadata.get("capability", 90)))


def store(metadata: Mapping[str, str], entries: Mapping[Key, Config]) -> dict[Key, Config]:
    """Add choices to the file, and give all that it holds then: other processes may have added theirs.

    What can't be written is kept in memory alone, with a warning.
    """
    try:
        path = path_of(metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=PATIENCE):
            merged = {**load(metadata), **entries}
            tables.write(path, merged, metadata)
    except (OSError, RuntimeError, Timeout) as error:
        warnings.warn(f"tuned choices are not kept: {error}", RuntimeWarning, stacklevel=2)
        return dict(entries)
    return merged
