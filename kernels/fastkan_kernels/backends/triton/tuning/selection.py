"""The choice of a configuration: what is forced, else what was measured, else the rules'."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .. import hardware
from ..problem import Problem
from . import cache, tables
from .autotune import autotune, is_on, seconds_each
from .config import Config, check
from .environment import gpu_name, metadata
from .key import Key, key
from .rules import candidates, default
from .tables import Table
from .tuner import Run, TuningEnv, tune

__all__ = ["Config", "Key", "autotune", "choose", "choose_for", "override", "use_table"]

_forced: dict[str, Config] = {}  # of the process: a backward on a GPU runs in a thread of its own
_loaded: dict[str, Table] = {}
_tuned: dict[str | None, dict[Key, Config]] = {}  # by the GPU's name
_settled: set[tuple[Key, str | None]] = set()  # keys that need no more tuning, or could not be tuned
_silent: Counter[tuple[Key, str | None]] = Counter()  # how often operands said nothing of what is right
_MAX_SILENT = 10  # times, after which it is not tried again
_remembered: dict[tuple[Key, int, torch.device | None, bool], Config] = {}  # asked at each launch
_tuning = threading.Lock()  # of one contraction at a time, or they would spoil each other's timing
_env = TuningEnv()
_log = logging.getLogger(__name__)


def choose(k: Key, capability: int, device: torch.device | None = None) -> Config:
    """The configuration of a contraction, the first that there is: the one forced by :func:`override`; that of the
    table of :func:`use_table`; where :func:`autotune` is on, what was tuned here; a shipped one for this GPU; a
    shipped one for another GPU of this capability; the rules'.

    Under PyTorch's deterministic algorithms it is the rules', so that nothing measured changes the order of a sum.

    Args:
        capability: of the GPU, 90 for 9.0.
        device: the GPU; without one nothing is asked that was tuned here or shipped.
    """
    forced = _forced.get(k.contraction)
    if forced is not None:
        return forced
    remembered, place = _remembered, (k, capability, device, is_on())
    found = remembered.get(place)
    if found is None:
        measured, _ = _measured(k, capability, device)
        found = remembered[place] = measured or default(k, capability)
    return found


def choose_for(p: Problem, run: Run) -> Config:
    """:func:`choose` for a problem, tuned before if :func:`autotune` is on and it can be.

    Args:
        run: computes the problem by a configuration.
    """
    k, device = key(p), p.x.device
    if is_on() and (k, gpu_name(device)) not in _settled and _may_tune(k, device) and _tuning.acquire(blocking=False):
        try:
            _tune(k, p, run)
        finally:
            _tuning.release()
    return choose(k, p.capability, device)


def _measured(k: Key, capability: int, device: torch.device | None) -> tuple[Config | None, bool]:
    """What was measured, and whether that was on this very GPU."""
    if k.deterministic:
        return None, False
    table = _table()
    of_it = device is None or table.metadata.get("gpu") == gpu_name(device)  # the other GPU here may be older
    found = table.entries.get(k) if of_it else None
    if found is None and device is not None and is_on():
        found = _tuned_on(device).get(k)
    if found is not None:
        return found, True
    gpu = None if device is None else gpu_name(device)
    return (None, False) if gpu is None else tables.shipped(k, capability, gpu)


def _tuned_on(device: torch.device) -> dict[Key, Config]:
    """By this process, and by others before it."""
    gpu = gpu_name(device)
    if gpu not in _tuned:
        _tuned[gpu] = cache.load(metadata(device))
    return _tuned[gpu]


def _may_tune(k: Key, device: torch.device) -> bool:
    """Whether this is a moment for it."""
    if device.type != _env.device_type or k.deterministic or k.contraction in _forced:
        return False
    if torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _tune(k: Key, p: Problem, run: Run) -> None:
    device, gpu = p.x.device, gpu_name(p.x.device)
    place = k, gpu
    if not _measured(k, p.capability, device)[1]:
        incumbent = choose(k, p.capability, device)
        configs = list(dict.fromkeys([default(k, p.capability), incumbent, *candidates(k, p.capability)]))
        try:
            found = tune(k, p, run, configs, _env, seconds_each(), incumbent)
        except torch.OutOfMemoryError as error:
            warnings.warn(f"{k.contraction} is not tuned: {error}", RuntimeWarning, stacklevel=2)
        else:
            if found is None:
                _silent[place] += 1
                if _silent[place] >= _MAX_SILENT:
                    _settled.add(place)
                return
            _log.info("%s: %d of %d candidates timed for %s", found.config, len(found.seconds), len(configs), k)
            _tuned[gpu] = {**_tuned_on(device), **cache.store(metadata(device), {k: found.config})}
            _forget()
    _settled.add(place)


def _forget() -> None:
    """The choices that were asked for; another thread that is about to remember one does it in the old place."""
    global _remembered
    _remembered = {}


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
        other = tables.differs(table.metadata, metadata())
        if other is not None:
            raise ValueError(f"{path} {other}")
        lost = table.entries.keys() - tables.that_exist(table.entries, int(table.metadata.get("capability", 90))).keys()
        if lost:
            k = lost.pop()
            raise ValueError(f"{path} takes a way that there is not here, {table.entries[k].way!r} for {k}")
    _loaded["table"] = table
    _settled.clear()
    _silent.clear()
    _forget()


def _table() -> Table:
    if "table" not in _loaded:
        try:
            use_table(hardware.table_from_environment())
        except (OSError, ValueError) as error:
            raise ValueError(f"FASTKAN_TUNING names a table that can't be taken: {error}") from error
    return _loaded["table"]
