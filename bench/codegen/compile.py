"""Compilation of kernels to machine code on a machine without a GPU."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from fastkan_kernels.backends.triton.builds import Build

CAPABILITIES = (80, 90)
WARP = 32  # threads
Result = TypeVar("Result")


class Compiled(NamedTuple):
    """The outputs of the compilers for a kernel."""

    # Triton's intermediate code, before it depends on a GPU; for a kernel in Gluon, which has no such code, a later
    # stage
    ttir: str
    ptx: str
    sass: str  # machine code as nvdisasm prints it
    log: str  # output of ptxas -v
    shared: int  # bytes of shared memory of a thread block


def warmed_up(build: Build) -> Any:
    """Return Triton's ``CompiledKernel`` of a build, from Triton's cache or from a new compilation.

    Triton's own just-in-time compiler specializes the kernel for the arguments, so that a launch on a GPU finds the
    kernel in the same cache.

    Raises:
        Exception: if Triton cannot compile the kernel. The exception is raised by Triton and can have any type.
    """
    from triton.runtime.driver import driver

    from tests.support.stub_driver import StubDriver

    driver.set_active(StubDriver(build.capability))
    launch = build.launch
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return launch.kernel.warmup(**launch.arguments, **launch.constants, **options, grid=(1,))


# The logs of ptxas by the hash of a kernel. The logs are stored because Triton compiles equal builds only once.
_logs: dict[str, str] = {}


def compiled(build: Build) -> Compiled:
    """Compile a build in a process that :func:`each` has started.

    Raises:
        RuntimeError: if nvdisasm fails, or Triton has not printed the log of ptxas.
        Exception: if Triton cannot compile the kernel. The exception is raised by Triton and can have any type.
    """
    log = io.StringIO()
    with redirect_stdout(log):
        kernel = warmed_up(build)
    text = _logs.setdefault(kernel.hash, log.getvalue())
    if "ptxas" not in text:
        raise RuntimeError("Triton did not print the log of ptxas")
    ttir = kernel.asm.get("ttir") or kernel.asm["ttgir"]
    return Compiled(ttir, kernel.asm["ptx"], disassembled(kernel.asm["cubin"]), text, kernel.metadata.shared)


def disassembled(cubin: bytes) -> str:
    """Return the code sections of a binary as the nvdisasm in Triton's package prints them.

    Raises:
        RuntimeError: if nvdisasm fails.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        run = subprocess.run([knobs.nvidia.nvdisasm.path, "-c", str(path)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"nvdisasm failed: {run.stderr.strip()[:200]}")
    return run.stdout


def listed(module: str, capabilities: Sequence[int] = CAPABILITIES, sample: bool = False) -> list[Build]:
    """Return the builds that a module lists with its function ``builds(capability)`` or ``sample()``.

    Raises:
        ValueError: if two builds have the same name.
    """
    source = importlib.import_module(module)
    found = source.sample() if sample else [build for each in capabilities for build in source.builds(each)]
    found = [build for build in found if build.capability in capabilities]
    names = [build.name for build in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two builds are named {sorted(twice)[0]!r}")
    return found


def each(
    work: Callable[[Build], Result],
    module: str,
    names: Sequence[str],
    cache: Path,
    jobs: int,
    *,
    sample: bool = False,
    anew: bool = False,
) -> Iterator[tuple[str, Result | None]]:
    """Call a function on each build in several processes, and yield a pair of name and result when each call finishes.

    The result of a build whose process crashed is None.

    Args:
        work: a function at the top level of a module, because only such a function can be sent to a process.
        module: the module that lists the builds (see :func:`listed`). Kernels cannot be sent to a process, so each
            process lists the builds itself and finds a build by its name.
        names: names of the builds.
        cache: folder for Triton's cache.
        jobs: number of processes.
        sample: whether the module's ``sample()`` lists the builds.
        anew: whether to compile even the kernels that are already in the cache, and to print the log of ptxas.
    """
    context = multiprocessing.get_context("spawn")  # forking a process that has threads may hang
    arguments = (module, sample, str(cache), anew)
    lost: list[str] = []
    with ProcessPoolExecutor(min(jobs, len(names)), context, _prepare, arguments) as pool:
        waiting = {pool.submit(_call, work, name): name for name in names}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except BrokenProcessPool:
                lost.append(waiting[future])
    if len(names) == 1:
        yield from ((name, None) for name in lost)
    # a crash of the compiler ends the whole pool of processes, so each unfinished build is tried again in a separate
    # pool
    else:
        for name in lost:
            yield from each(work, module, [name], cache, 1, sample=sample, anew=anew)


_builds: dict[str, Build] = {}  # the builds that the current process can compile, by name


def _prepare(module: str, sample: bool, cache: str, anew: bool) -> None:
    """Set the options of Triton, and list the builds that the process can compile."""
    import torch

    torch.set_num_threads(1)
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ.pop("TRITON_INTERPRET", None)
    from triton import knobs

    knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = anew
    knobs.compilation.store_binary_only = not anew  # storing only the binaries takes a tenth of the disk space
    _builds.update({build.name: build for build in listed(module, sample=sample)})


def _call(work: Callable[[Build], Result], name: str) -> Result:
    return work(_builds[name])
