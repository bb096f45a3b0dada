"""Tables of measured configurations, which are stored in files.

Some tables may be installed with the package, in the folder ``tables/``.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from .config import Config, check
from .environment import triton_minor
from .key import Key
from .rules import ways_of

SCHEMA = 3  # version of the file format, to be incremented whenever the fields of a key or a configuration change
SHIPPED = Path(__file__).parent / "tables"
_TYPES = get_type_hints(Key)


class Table(NamedTuple):
    """A table of measured configurations.

    ``metadata`` describes the GPU and the compiler versions of the measurement, see :func:`.environment.metadata`.
    """

    entries: dict[Key, Config]
    metadata: dict[str, str]


def write(path: str | Path, entries: Mapping[Key, Config], metadata: Mapping[str, str]) -> None:
    """Write a table of measured configurations to a JSON file.

    The file is replaced atomically, so that other processes never read an incomplete table.
    """
    rows = [{"key": k._asdict(), "config": c._asdict()} for k, c in entries.items()]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    head = json.dumps({"schema": SCHEMA, "metadata": dict(metadata)}, indent=1)[:-2]
    path = Path(path)
    half_written = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        half_written.write_text(f'{head},\n "entries": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)


def read(path: str | Path) -> Table:
    """Read a table of measured configurations from a file.

    Raises:
        ValueError: if the file has the wrong format or schema, or a configuration that no kernel supports.
        OSError: if the file cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        schema = data["schema"]
        if schema == SCHEMA:
            metadata = {str(name): str(value) for name, value in data["metadata"].items()}
            return Table(dict(_entry(row) for row in data["entries"]), metadata)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a table of tuned choices: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path} is a table of schema {schema!r}, and this version reads {SCHEMA}: its choices depend on other things. "
        "Tune again"
    )


def differs(metadata: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Return a description of the first difference between two descriptions of a machine, or None if they agree.

    Args:
        metadata: GPU and compiler versions of a table.
        here: GPU and compiler versions of this machine.
    """
    for name in ("gpu", "capability", "triton", "ptxas"):
        if metadata.get(name) != here.get(name):
            return f"holds for {name} {metadata.get(name)!r}, and here it is {here.get(name)!r}"
    return None


def supported_entries(entries: Mapping[Key, Config], capability: int) -> dict[Key, Config]:
    """Return the entries of a table whose implementation can run with the installed Triton on a compute capability.

    An older version of Triton may lack functions that an implementation needs.
    """
    return {k: config for k, config in entries.items() if config.way in ways_of(k, capability)}


def shipped(k: Key, capability: int, gpu: str | None) -> tuple[Config | None, bool]:
    """Return a tuple of a configuration from the installed tables, and whether it was measured on the same GPU model.

    A configuration that was measured on another GPU of the same compute capability is a better guess than the default
    of the rules, so it is returned if no table for the GPU itself has a configuration. If no table at all has a
    configuration, the tuple is (None, False).
    """
    exact, others = _shipped(capability, gpu)
    return (exact[k], True) if k in exact else (others.get(k), False)


@functools.cache
def _shipped(capability: int, gpu: str | None) -> tuple[dict[Key, Config], dict[Key, Config]]:
    import triton

    exact: dict[Key, Config] = {}
    others: dict[Key, Config] = {}
    # The order is reversed so that, if tables of several other GPUs have an entry, the alphabetically first table wins.
    for path in sorted(SHIPPED.glob(f"sm_{capability}-*.json"), reverse=True):
        table = read(path)
        if triton_minor(table.metadata["triton"]) == triton_minor(triton.__version__):
            (exact if table.metadata["gpu"] == gpu else others).update(supported_entries(table.entries, capability))
    return exact, others


def _entry(row: Any) -> tuple[Key, Config]:
    k, config = Key(**row["key"]), Config(**row["config"])
    for name, value in k._asdict().items():
        if type(value) is not _TYPES[name]:
            raise TypeError(f"{name} of a key is {value!r}")
    if k.deterministic:
        raise ValueError("a choice for deterministic algorithms is the rules', and no table's")
    check(k.contraction, config)
    if config.descriptors and not k.aligned:
        raise ValueError("descriptors can't address what is not aligned")
    return k, config
