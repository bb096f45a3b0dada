"""The choice of a configuration: what is forced, else what was measured, else the rules'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import hardware, tables
from .config import Config, check
from .key import Key, key
from .problem import Problem
from .rules import default
from .stamp import about, gpu_name
from .tables import Table

__all__ = ["Config", "Key", "choose", "choose_for", "override", "use_table"]

_forced: dict[str, Config] = {}  # of the process: a backward on a GPU runs in a thread of its own
_loaded: dict[str, Table] = {}
_remembered: dict[tuple[Key, int, str | None], Config] = {}  # asked at each launch


def choose(k: Key, capability: int, gpu: str | None = None) -> Config:
    """The configuration of a contraction: the one forced by :func:`override`; else the one that was measured, in
    the table of :func:`use_table` or in a shipped one for this GPU; else that of a shipped one for another GPU of this
    capability; else the rules'.

    Under PyTorch's deterministic algorithms it is the rules', so that no table changes the order of a sum.

    Args:
        capability: of the GPU, 90 for 9.0.
        gpu: its name; None where none is there, and then no shipped table is asked.
    """
    forced = _forced.get(k.contraction)
    if forced is not None:
        return forced
    place = k, capability, gpu
    found = _remembered.get(place)
    if found is None:
        found = _remembered[place] = _measured(k, capability, gpu) or default(k, capability)
    return found


def _measured(k: Key, capability: int, gpu: str | None) -> Config | None:
    if k.deterministic:
        return None
    found = _table().entries.get(k)
    if found is None and gpu is not None:
        found, _ = tables.shipped(k, capability, gpu)
    return found


def choose_for(p: Problem) -> Config:
    """:func:`choose` for a problem, on the GPU that it is on."""
    return choose(key(p), p.capability, gpu_name(p.x.device))


@contextmanager
def override(contraction: str, config: Config) -> Iterator[None]:
    """Take one configuration for a contraction whatever the sizes, in this process: for tuning and tests.

    Raises:
        ValueError: for what is no contraction or no way.
    """
    check(contraction, config)
    global _forced
    before = _forced
    _forced = {**before, contraction: config}
    try:
        yield
    finally:
        _forced = before


def use_table(path: str | Path | None) -> None:
    """Take the choices of a table from now on, in this process; None forgets it.

    The environment variable FASTKAN_TUNING names one to begin with.

    Raises:
        ValueError: if it is not such a table, or was made on another GPU, Triton or ptxas.
        OSError: if there is no such file.
    """
    table = Table({}, {})
    if path is not None:
        table = tables.read(path)
        other = tables.differs(table.about, about())
        if other is not None:
            raise ValueError(f"{path} {other}")
    _loaded["table"] = table
    _remembered.clear()


def _table() -> Table:
    if "table" not in _loaded:
        use_table(hardware.table_from_environment())
    return _loaded["table"]
