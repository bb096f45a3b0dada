"""Compile and judge many builds, in several processes."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from .compile import Compiled, compile_build, prepare
from .judge import Verdict, broken, judge

if TYPE_CHECKING:
    from fastkan_kernels.backends.triton.builds import Build

CAPABILITIES = (80, 90)


def listed(module: str, capabilities: Sequence[int] = CAPABILITIES, sample: bool = False) -> list[Build]:
    """The builds that a module lists with its ``builds(capability)`` or ``sample()``.

    Raises:
        ValueError: if two have one name.
    """
    source = importlib.import_module(module)
    found = source.sample() if sample else [build for each in capabilities for build in source.builds(each)]
    found = [build for build in found if build.capability in capabilities]
    names = [build.name for build in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two builds are named {sorted(twice)[0]!r}")
    return found


def run(
    module: str,
    names: Sequence[str],
    cache: str,
    jobs: int,
    keep: Path | None = None,
    sample: bool = False,
    done: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Judge the builds of those names, in their order.

    Args:
        module: that lists them, see :func:`listed`; a kernel can't be sent to another process, a name can.
        cache: a folder for Triton's files.
        keep: a folder for each build's PTX, SASS and log.
        done: told each verdict as it comes.
    """
    verdicts: dict[str, Verdict] = {}
    lost: list[str] = []
    for name, verdict in _judged(module, names, cache, jobs, keep, sample):
        if verdict is None:
            lost.append(name)
            continue
        verdicts[name] = verdict
        done(verdict)
    builds = {build.name: build for build in listed(module, sample=sample)} if lost else {}
    for name in lost:  # a compiler that crashes takes the others of its pool along: each again, alone
        [(_, verdict)] = _judged(module, [name], cache, 1, keep, sample)
        verdicts[name] = broken(builds[name], "compile", "it crashed") if verdict is None else verdict
        done(verdicts[name])
    return [verdicts[name] for name in names]


def _judged(
    module: str, names: Sequence[str], cache: str, jobs: int, keep: Path | None, sample: bool
) -> Iterator[tuple[str, Verdict | None]]:
    """As they come; None for those whose process died."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(
        min(jobs, len(names)), context, _prepare_worker, (module, cache, sample, keep)
    ) as pool:  # fmt: skip
        waiting = {pool.submit(_work, name): name for name in names}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except BrokenProcessPool:
                yield waiting[future], None


_builds: dict[str, Build] = {}  # of this worker
_keep: Path | None = None


def _prepare_worker(module: str, cache: str, sample: bool, keep: Path | None) -> None:
    global _keep
    prepare(cache)
    _builds.update({build.name: build for build in listed(module, sample=sample)})
    _keep = keep


def _work(name: str) -> Verdict:
    build = _builds[name]
    try:
        compiled = compile_build(build)
        if _keep is not None:
            _write(_keep, name, compiled)
    except Exception as failure:  # whatever Triton or a tool raises, the other builds are still judged
        return broken(build, "compile", _reason(failure))
    try:
        return judge(build, compiled)
    except ValueError as unclear:
        return broken(build, "unclear", str(unclear))


def _reason(failure: BaseException) -> str:
    """What went wrong first; Triton wraps it in the code around, line after line."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[-1][:200] if lines else ''}"


def _write(folder: Path, name: str, compiled: Compiled) -> None:
    stem = "".join(letter if letter.isalnum() else "_" for letter in name)
    for ending in ("ttir", "ptx", "sass", "log"):
        (folder / f"{stem}.{ending}").write_text(getattr(compiled, ending))
