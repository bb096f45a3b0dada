"""The choice of a configuration for each contraction, and the tuning of tiles.

The configuration of a contraction comes from the first of the following sources that has an entry for its key:

1. the configuration that :func:`override` forces;
2. the table that :func:`use_table` or the environment variable FASTKAN_TUNING names;
3. the configurations that were tuned on this machine, while :func:`autotune` is on;
4. a table that is installed with the package in the folder ``tables/``, for this GPU or else for another GPU of the
   same compute capability;
5. the default configuration of :mod:`.rules`.

Under PyTorch's deterministic algorithms, only :func:`override` and the rules are used, so that no measurement changes
the order of a sum. This module can be imported without Triton.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, _GeneratorContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch

from ...validation import FLAG, Real, checked
from . import hardware
from .config import Config, check
from .key import Key, key
from .problem import Problem
from .rules import candidates, default, ways_of

__all__ = ["Config", "Key", "autotune", "choose", "choose_for", "override", "tuned", "use_table", "write_table"]

SECONDS = 10.0  # default time limit for tuning one contraction
COMPILING = 0.6  # share of the time limit in which candidates are compiled in parallel
MAX_COMPILERS = 8  # maximum number of threads that compile; the compilers mostly run without Python's global lock
SCHEMA = 3  # version of the format of tables, to be incremented whenever the fields of a key or a configuration change
SHIPPED = Path(__file__).parent / "tables"

# All threads share the following variables, because PyTorch runs the backward on a GPU in a different thread than the
# forward.
_forced: dict[str, Config] = {}
_table: Table | None = None  # the table is None until FASTKAN_TUNING has been read
_tuned: dict[tuple[str | None, Key], Config] = {}  # the keys of the outer dict are the names of GPUs
_tuning = threading.Lock()  # only one thread tunes at a time, so that timings are not disturbed
_log = logging.getLogger(__name__)
# Results that depend on the choices. The module that stores a result defines its key. Whenever a choice may have
# changed, the dict is replaced instead of cleared, so that a thread that still uses outdated choices stores its result
# in the old dict.
records: dict[Any, Any] = {}


def _forget() -> None:
    global records
    records = {}


# -- the switch --------------------------------------------------------------------------------------


class State:
    """A state of the tuning switch.

    States are compared by identity, because threads may leave their ``with`` statements in any order.
    """

    def __init__(self, on: bool, seconds: float) -> None:
        self.on, self.seconds = on, seconds


def on_by_environment() -> bool:
    """Return whether the environment variable FASTKAN_AUTOTUNE turns tuning on for the whole process."""
    return os.environ.get("FASTKAN_AUTOTUNE", "0").lower() in ("1", "true", "yes", "on")


_states = [State(on_by_environment(), SECONDS)]  # the last state is the current one


@checked(enabled=FLAG, seconds=Real(above=0))
def autotune(enabled: bool = True, *, seconds: float = SECONDS) -> _GeneratorContextManager[None]:
    """Tune the Triton kernels for a GPU inside the ``with`` statement or inside the decorated function.

    When a contraction is first computed with sizes for which no configuration was measured, ``triton.autotune`` times
    candidate configurations on the given operands. The fastest configuration is used from then on while tuning is on,
    and Triton saves it for later processes in the folder of its cache (TRITON_CACHE_DIR, default ``~/.triton/cache``).
    Without tuning, results do not depend on earlier runs. Different configurations sum in different orders, so tuning
    may change the last bits of results.

    Nothing is tuned while a CUDA graph is captured, while ``torch.compile`` traces, on a CPU, or under
    ``torch.use_deterministic_algorithms``. FASTKAN_AUTOTUNE=1 in the environment turns tuning on for the whole process.

    Args:
        enabled: whether to tune. False turns tuning off if FASTKAN_AUTOTUNE has turned it on.
        seconds: approximate time limit for tuning one contraction, in seconds. Candidates that do not fit into the
            limit are never timed, in this process or in later processes.

    Raises:
        TypeError: if ``enabled`` is not a bool, or ``seconds`` is not a number.
        ValueError: if ``seconds`` is not above 0.

    Example:
        >>> with autotune(seconds=5):
        ...     y = KANLinear(2, 5)(torch.rand(10, 2))
    """
    return _within(enabled, seconds)


@contextmanager
def _within(enabled: bool, seconds: float) -> Iterator[None]:
    entered = State(enabled, seconds)
    _states.append(entered)
    try:
        yield
    finally:
        _states.remove(entered)


def state() -> State:
    """Return the current state of the tuning switch. Other threads may change the state at any time."""
    return _states[-1]


@contextmanager
def override(contraction: str, config: Config) -> Iterator[None]:
    """Use one configuration for all sizes of a contraction inside the ``with`` statement, in all threads.

    The function is meant for tests and timings.

    Raises:
        ValueError: if the contraction does not exist or does not support the configuration.
    """
    check(contraction, config)
    global _forced
    before, _forced = _forced, {**_forced, contraction: config}
    _forget()
    try:
        yield
    finally:
        _forced = before
        _forget()


# -- the choice --------------------------------------------------------------------------------------


def choose(k: Key, capability: int, device: torch.device | None = None, tuning: State | None = None) -> Config:
    """Return the configuration of a contraction.

    Args:
        k: the key of the contraction.
        capability: compute capability of the GPU, such as 90 for 9.0.
        device: the GPU. If None, configurations that were tuned or installed for a GPU are not used.
        tuning: state of the tuning switch (default: the current state).
    """
    if k.contraction in _forced:
        return _forced[k.contraction]
    return _measured(k, capability, device, tuning or state()) or _default(k, capability)


# The cost model takes about half a millisecond for a choice, and contractions without a record choose at each call.
_default = functools.lru_cache(maxsize=1024)(default)


def choose_for(p: Problem, run: Callable[[Problem, Config], Any], tuning: State) -> tuple[Config, bool]:
    """Return a tuple of the configuration of a problem and whether the choice is final.

    The problem is tuned first if tuning is on, possible, and no configuration has been measured yet. The choice is not
    final if a later call in the same state of the switch may still tune the problem.

    Args:
        p: the contraction with its operands.
        run: function that computes the contraction with a configuration.
        tuning: state of the tuning switch, which the caller reads once for each contraction.
    """
    k, device = key(p), p.x.device
    pending = tuning.on and device.type == _TUNED_TYPE and not k.deterministic and k.contraction not in _forced
    if pending:
        place = gpu_name(device), k
        if (
            place not in _tuned
            and k not in _table_for(device)
            and _may_tune(device)
            and _tuning.acquire(blocking=False)
        ):
            try:
                _tuned[place] = _tune(k, p, run, tuning.seconds)
                _forget()
            finally:
                _tuning.release()
        pending = place not in _tuned and k not in _table_for(device)
    return choose(k, p.capability, device, tuning), not pending


_TUNED_TYPE = "cuda"  # type of the devices on which problems are tuned


def _may_tune(device: torch.device) -> bool:
    """Return whether a problem on a device can be tuned at the moment."""
    if torch.compiler.is_compiling():
        return False
    with _on(device):
        return not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _measured(k: Key, capability: int, device: torch.device | None, tuning: State) -> Config | None:
    """Return the measured configuration, or None if there is none or measured configurations must not be used."""
    if k.deterministic:
        return None
    gpu = None if device is None else gpu_name(device)
    found = _table_for(device).get(k)
    if found is None and device is not None and tuning.on:
        found = _tuned.get((gpu, k))
    return found if found is not None or gpu is None else _shipped(capability, gpu).get(k)


# -- tuning ------------------------------------------------------------------------------------------


class _Contraction:
    """A contraction in the form in which ``triton.autotune`` expects a kernel.

    The whole contraction is timed instead of one kernel, so that implementations with several kernels can be compared,
    and so that tensor descriptors can be built for the tiles of each candidate. Triton saves the result under the name
    and the source code of the kernel ``fn`` and the argument ``problem``.
    """

    arg_names = ("problem",)

    def __init__(self, fn: Any, run: Callable[[Config], Any]) -> None:
        self.fn, self._run = fn, run

    def run(self, *, problem: str, num_warps: int, num_stages: int, **tiles: Any) -> Any:
        tiles = {name: value for name, value in tiles.items() if name in Config._fields}
        return self._run(Config(**tiles, warps=num_warps, stages=num_stages))


def _tune(k: Key, p: Problem, run: Callable[[Problem, Config], Any], seconds: float) -> Config:
    """Return the fastest candidate for a problem, or the fastest that an earlier process has saved."""
    import triton

    from .kernels.contract_out import contract_out_kernel

    end, configs = time.monotonic() + seconds, candidates(k, p.capability)
    bench = _bench or triton.runtime.driver.active.get_benchmarker()
    times: list[float] = []

    def timed(call: Callable[[], Any], quantiles: Sequence[float]) -> list[float]:
        if not times:
            _compile(p, run, configs[1:], COMPILING * seconds)
        elif time.monotonic() > end:
            return [math.inf] * len(quantiles)
        try:
            found = bench(call, quantiles=quantiles)
        except Exception as failure:  # Triton and the driver raise exceptions of many types
            _log.info("a candidate does not run: %s: %s", type(failure).__name__, failure)
            found = [math.inf] * len(quantiles)
        times.append(found[0])
        return found

    # Triton saves a result under the compute capability and the source code of one kernel. The name of the GPU and a
    # digest of all kernels are therefore added to the key.
    place = f"{k} on {gpu_name(p.x.device)} by {source_digest()}"
    make = triton.autotune([_to_triton(c) for c in configs], ["problem"], do_bench=timed, cache_results=True)
    with torch.no_grad(), _on(p.x.device):
        tuner = make(_Contraction(contract_out_kernel, lambda config: run(p, config)))
        tuner.run(problem=place)
    _log.info("%s: %d of %d candidates timed for %s", tuner.best_config, len(times), len(configs), k)
    best = tuner.best_config
    return Config(**best.kwargs, warps=best.num_warps, stages=best.num_stages)


_bench: Callable[..., list[float]] | None = None  # a function that times a call in place of Triton's own function


def _to_triton(config: Config) -> Any:
    import triton

    tiles = {name: value for name, value in config._asdict().items() if name not in ("warps", "stages")}
    return triton.Config(tiles, num_warps=config.warps, num_stages=config.stages)


def _compile(p: Problem, run: Callable[[Problem, Config], Any], configs: Sequence[Config], seconds: float) -> None:
    """Compile the kernels of several configurations in parallel threads, without launching them.

    A configuration whose compilation fails or is not finished in time is compiled again when it is timed.
    """
    from .launch import Launch, launched_by

    def build(config: Config) -> None:
        with torch.no_grad(), _on(p.x.device), launched_by(Launch.compile, every_thread=False):
            run(p, config)

    pool = ThreadPoolExecutor(min(MAX_COMPILERS, os.cpu_count() or 1))
    try:
        wait([pool.submit(build, config) for config in configs], timeout=seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@functools.cache
def source_digest() -> str:
    """Return a digest of the source files of the Triton backend. A measurement is valid only for unchanged files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def tuned(device: torch.device | None = None) -> dict[Key, Config]:
    """Return the configurations that this process has tuned on a GPU or has read from Triton's cache.

    Args:
        device: the GPU (default: PyTorch's current GPU, if the machine has one).
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {k: config for (gpu, k), config in _tuned.items() if gpu == gpu_name(device)}


# -- tables ------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table of measured configurations.

    ``metadata`` describes the GPU and the compiler versions of the measurement; see :func:`metadata`.
    """

    entries: dict[Key, Config]
    metadata: dict[str, str]


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
    global _table
    table = Table({}, {})
    if path is not None:
        table, here = read_table(path), metadata()
        for name in ("gpu", "capability", "triton", "ptxas"):
            if table.metadata.get(name) != here.get(name):
                raise ValueError(
                    f"{path} holds for {name} {table.metadata.get(name)!r}, and here it is {here.get(name)!r}"
                )
        for k, config in table.entries.items():
            if config.way not in ways_of(k, int(here.get("capability", 90))):
                raise ValueError(f"{path} has an implementation that is not supported here, {config.way!r} for {k}")
    _table = table
    _forget()


def _table_for(device: torch.device | None) -> dict[Key, Config]:
    """Return the user's table, or an empty table if the user's table was measured on a different model of GPU."""
    if _table is None:
        try:
            use_table(hardware.table_from_environment())
        except (OSError, ValueError) as error:
            raise ValueError(f"FASTKAN_TUNING names a table that cannot be used: {error}") from error
    assert _table is not None
    return _table.entries if device is None or _table.metadata.get("gpu") == gpu_name(device) else {}


def write_table(path: str | Path, entries: Mapping[Key, Config], about: Mapping[str, str] | None = None) -> None:
    """Write measured configurations to a JSON file that :func:`use_table` reads.

    The file is replaced atomically, so that other processes never read an incomplete table.

    Args:
        path: path of the file.
        entries: the configurations, for example :func:`tuned`.
        about: GPU and compiler versions of the measurement (default: those of this machine).
    """
    rows = ",\n".join("  " + json.dumps({"key": k._asdict(), "config": c._asdict()}) for k, c in entries.items())
    head = json.dumps({"schema": SCHEMA, "metadata": dict(metadata() if about is None else about)}, indent=1)[:-2]
    path = Path(path)
    half_written = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        half_written.write_text(f'{head},\n "entries": [\n{rows}\n ]\n}}\n', encoding="utf-8")
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)


def read_table(path: str | Path) -> Table:
    """Read a table of measured configurations from a file.

    Raises:
        ValueError: if the file has the wrong format or schema, or a configuration that no kernel supports.
        OSError: if the file cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"the schema is {data['schema']!r}, and this version reads {SCHEMA}. Tune again")
        entries = dict(_entry(**row) for row in data["entries"])
        return Table(entries, {str(name): str(value) for name, value in data["metadata"].items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of tuned choices: {error!r}") from error


def _entry(key: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Key, Config]:
    k, c = Key(**key), Config(**config)
    for name, kind in get_type_hints(Key).items():
        if type(getattr(k, name)) is not kind:
            raise TypeError(f"{name} of a key is {getattr(k, name)!r}")
    if k.deterministic:
        raise ValueError("a table has no choices for deterministic algorithms")
    check(k.contraction, c)
    if c.descriptors and not k.aligned:
        raise ValueError("descriptors cannot address operands that are not aligned")
    return k, c


@functools.cache
def _shipped(capability: int, gpu: str) -> dict[Key, Config]:
    """Return the entries of the installed tables for a compute capability and the installed minor version of Triton.

    A configuration that was measured on another GPU of the same compute capability is a better guess than the default
    of the rules, so it is included where no table for the GPU itself has a configuration.
    """
    import triton

    exact: dict[Key, Config] = {}
    others: dict[Key, Config] = {}
    for path in sorted(SHIPPED.glob(f"sm_{capability}-*.json")):
        entries, about = read_table(path)
        if about["triton"].split(".")[:2] == triton.__version__.split(".")[:2]:
            supported = {k: c for k, c in entries.items() if c.way in ways_of(k, capability)}
            (exact if about["gpu"] == gpu else others).update(supported)
    return {**others, **exact}


def metadata(device: torch.device | None = None) -> dict[str, str]:
    """Return the name and compute capability of a GPU, and the versions of Triton and ptxas.

    Without a GPU, only the versions are returned.

    Args:
        device: the GPU (default: PyTorch's current GPU, if the machine has one).
    """
    import triton

    if device is None and torch.cuda.is_available():
        device = torch.device("cuda")
    if device is None or device.type != "cuda":
        return {"triton": triton.__version__, "ptxas": ptxas_version()}
    capability = hardware.capability(device)
    gpu = {"gpu": gpu_name(device) or "", "capability": str(capability)}
    return {**gpu, "triton": triton.__version__, "ptxas": ptxas_version(capability)}


def gpu_name(device: torch.device) -> str | None:
    """Return the name of a GPU, such as ``NVIDIA H100 80GB HBM3``, or None if the device is not a GPU."""
    if device.type != "cuda":
        return None
    return _gpu_name(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def ptxas_version(capability: int = 90) -> str:
    """Return the version of ptxas, the assembler that Triton uses for a compute capability.

    The version is a string such as ``12.8.93``, or ``none`` if ptxas cannot be run.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas_version

        text = get_ptxas_version(capability)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError):
        return "none"
    found = re.search(r"V(\d[\d.]*)", text)
    return found.group(1) if found else text.strip().splitlines()[-1]
