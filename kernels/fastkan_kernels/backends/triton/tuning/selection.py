"""The choice of a configuration: the one that is forced, else one that was measured, else the one by rule."""

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

_forced: dict[str, Config] = {}  # of the process, since a backward on a GPU runs in another thread
_loaded: dict[str, Table] = {}
_tuned: dict[str | None, dict[Key, Config]] = {}  # by the GPU's name
_settled: set[tuple[Key, str | None]] = set()  # keys on GPUs that need no tuning any more, or could not be tuned
# Number of attempts in which the operands could not tell right results from wrong ones, and its limit.
_silent: Counter[tuple[Key, str | None]] = Counter()
_MAX_SILENT = 10
_remembered: dict[tuple[Key, int, torch.device | None, bool], Config] = {}  # read for each launch
_tuning = threading.Lock()  # one contraction is tuned at a time, so that timings are not disturbed
_env = TuningEnv()
_log = logging.getLogger(__name__)


def choose(k: Key, capability: int, device: torch.device | None = None) -> Config:
    """The configuration of a contraction. The first of these that exists is taken:

    1. the one forced by :func:`override`;
    2. that in the table of :func:`use_table`;
    3. one that was tuned on this machine, while :func:`autotune` is on;
    4. one in an installed table for this GPU, or else for another GPU of this compute capability;
    5. the one by rule.

    Under PyTorch's deterministic algorithms only the first and the last are used, so that no measurement changes the
    order of a sum.

    Args:
        k: the key of the contraction.
        capability: compute capability of the GPU, 90 for 9.0.
        device: the GPU; if None, choices that were tuned or installed for a GPU are not used.
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
    """:func:`choose` for a problem, which is tuned first if :func:`autotune` is on and tuning is possible now.

    Args:
        p: the contraction with its operands.
        run: function that computes the problem by a configuration.
    """
    k, device = key(p), p.x.device
    if is_on() and (k, gpu_name(device)) not in _settled and _may_tune(k, device) and _tuning.acquire(blocking=False):
        try:
            _tune(k, p, run)
        finally:
            _tuning.release()
    return choose(k, p.capability, device)


def _measured(k: Key, capability: int, device: torch.device | None) -> tuple[Config | None, bool]:
    """The measured configuration, or None, and whether it was measured on a GPU of this name."""
    if k.deterministic:
        return None, False
    table = _table()
    # A machine may have other GPUs than the one of the table.
    applies = device is None or table.metadata.get("gpu") == gpu_name(device)
    found = table.entries.get(k) if applies else None
    if found is None and device is not None and is_on():
        found = _tuned_on(device).get(k)
    if found is not None:
        return found, True
    gpu = None if device is None else gpu_name(device)
    return (None, False) if gpu is None else tables.shipped(k, capability, gpu)


def _tuned_on(device: torch.device) -> dict[Key, Config]:
    """The choices tuned on a device, by this process and by those before it."""
    gpu = gpu_name(device)
    if gpu not in _tuned:
        _tuned[gpu] = cache.load(metadata(device))
    return _tuned[gpu]


def _may_tune(k: Key, device: torch.device) -> bool:
    """Whether tuning is possible now."""
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
    """Forget the choices of :func:`choose`. The dict is replaced instead of cleared, so that a choice that another
    thread is making from outdated tables goes into the old dict."""
    global _remembered
    _remembered = {}


@contextmanager
def override(contraction: str, config: Config) -> Iterator[None]:
    """Use one configuration for a contraction of any sizes inside the ``with``, in all threads; for tests and timing.

    Raises:
        ValueError: if the contraction does not exist or does not support the configuration.
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
    """Use the choices of a table from now on in this process, or none for None.

    By default it is the one that the environment variable FASTKAN_TUNING names.

    Raises:
        ValueError: if the file is no table of choices, or was made with another GPU, Triton or ptxas.
        OSError: if the file cannot be read.
    """
    table = Table({}, {})
    if path is not None:
        table = tables.read(path)
        other = tables.differs(table.metadata, metadata())
        if other is not None:
            raise ValueError(f"{path} {other}")
        lost = (
            table.entries.keys()
            - tables.supported_entries(table.entries, int(table.metadata.get("capability", 90))).keys()
        )
        if lost:
            k = lost.pop()
            raise ValueError(f"{path} takes a way that is not supported here, {table.entries[k].way!r} for {k}")
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
