"""The choice of a configuration: a forced one, otherwise a measured one, otherwise the default of the rules."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from . import cache, hardware, tables
from .autotune import autotune, is_on, seconds_each
from .config import Config, check
from .environment import gpu_name, metadata
from .key import Key, key
from .problem import Problem
from .rules import candidates, default
from .tables import Table
from .tuner import Run, TuningEnv, tune

__all__ = ["Config", "Key", "autotune", "choose", "choose_for", "override", "use_table"]

# All threads share this dict, because PyTorch runs the backward on a GPU in a different thread than the forward.
_forced: dict[str, Config] = {}
_loaded: dict[str, Table] = {}
_tuned: dict[str | None, dict[Key, Config]] = {}  # the outer keys are the names of GPUs
# Pairs of a key and the name of a GPU for which tuning is finished or was not possible.
_settled: set[tuple[Key, str | None]] = set()
# _silent counts the attempts to tune in which the reference result had no finite number other than 0, so that no other
# result could be checked. _MAX_SILENT is the maximum number of such attempts.
_silent: Counter[tuple[Key, str | None]] = Counter()
_MAX_SILENT = 10
# Results of the function ``choose``, which is called for each kernel launch.
_remembered: dict[tuple[Key, int, torch.device | None, bool], Config] = {}
_tuning = threading.Lock()  # only one thread tunes at a time, so that timings are not disturbed
_env = TuningEnv()
_log = logging.getLogger(__name__)


def choose(k: Key, capability: int, device: torch.device | None = None) -> Config:
    """Return the configuration of a contraction.

    The configuration comes from the first of the following sources that has an entry for the contraction:

    1. the configuration that :func:`override` forces;
    2. the table that :func:`use_table` has loaded;
    3. the configurations that were tuned on this machine, while :func:`autotune` is on;
    4. a table that is installed with the package, for this GPU or else for another GPU of this compute capability;
    5. the default configuration of the rules.

    Under PyTorch's deterministic algorithms, only :func:`override` and the rules are used, so that no measurement
    changes the order of a sum.

    Args:
        k: the key of the contraction.
        capability: compute capability of the GPU, such as 90 for 9.0.
        device: the GPU. If None, configurations that were tuned or installed for a GPU are not used.
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
    """Return the configuration of a problem as :func:`choose` does, after tuning the problem if necessary.

    The problem is tuned if :func:`autotune` is on, tuning is possible and no configuration has been measured yet.

    Args:
        p: the contraction with its operands.
        run: function that computes the contraction with a configuration.
    """
    k, device = key(p), p.x.device
    if is_on() and (k, gpu_name(device)) not in _settled and _may_tune(k, device) and _tuning.acquire(blocking=False):
        try:
            _tune(k, p, run)
        finally:
            _tuning.release()
    return choose(k, p.capability, device)


def _measured(k: Key, capability: int, device: torch.device | None) -> tuple[Config | None, bool]:
    """Return a tuple of the measured configuration and whether it was measured on a GPU with the device's name.

    If no configuration was measured, the tuple is (None, False).
    """
    if k.deterministic:
        return None, False
    table = _table()
    # A machine may also have GPUs of a different model than the one for which the table was measured.
    applies = device is None or table.metadata.get("gpu") == gpu_name(device)
    found = table.entries.get(k) if applies else None
    if found is None and device is not None and is_on():
        found = _tuned_on(device).get(k)
    if found is not None:
        return found, True
    gpu = None if device is None else gpu_name(device)
    return (None, False) if gpu is None else tables.shipped(k, capability, gpu)


def _tuned_on(device: torch.device) -> dict[Key, Config]:
    """Return the configurations that this process and earlier processes have tuned on a device."""
    gpu = gpu_name(device)
    if gpu not in _tuned:
        _tuned[gpu] = cache.load(metadata(device))
    return _tuned[gpu]


def _may_tune(k: Key, device: torch.device) -> bool:
    """Return whether a contraction can be tuned at the moment."""
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
    """Discard the remembered results of :func:`choose`.

    The dict is replaced instead of cleared. If another thread is choosing a configuration from outdated tables at the
    same time, its result is stored in the old dict.
    """
    global _remembered
    _remembered = {}


@contextmanager
def override(contraction: str, config: Config) -> Iterator[None]:
    """Use one configuration for all sizes of a contraction inside the ``with`` statement, in all threads.

    Tests and timings use this function.


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
    """Use the configurations of a table from now on in this process.

    If this function is not called, the table that the environment variable FASTKAN_TUNING names is used.

    Args:
        path: path of the table. If None, no table is used.

    Raises:
        ValueError: if the file is not a table of configurations, if it was written for a different GPU or with a
            different version of Triton or ptxas, or if an implementation in it is not supported.
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
