"""Compile side by side: a process each calls some of the kernels once, and Triton's cache on disk keeps them.

A stage needs hundreds of builds of a second or more, on a machine whose GPU time is dear.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

MAX_WORKERS = 14
PRELOADED = ("bench.gpu.stages",)


def workers(asked: int | None = None) -> int:
    """How many processes; each brings its own CUDA context."""
    return min(MAX_WORKERS, max(1, (os.cpu_count() or 2) - 2)) if asked is None else asked


def context() -> Any:
    """How processes are started: forked off one that has imported all and touched no GPU, in which no import costs
    seconds again. Where there is no such way, anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(PRELOADED))
    return found


def in_parallel(
    function: Callable[[Any], object],
    items: Sequence[Any],
    count: int,
    seconds: float,
    done: Callable[[Any], object] = lambda result: None,
) -> int:
    """Call ``function`` on every item in ``count`` processes, until all are done or time is up.

    Args:
        function: of a module, so that it can be sent; what it raises is met again where it is called in earnest.
        items: likewise.
        done: told what each call returned, None if it raised.

    Returns:
        How many calls ended.
    """
    if count < 1 or not items or seconds <= 0:
        return 0
    ended = 0
    latest = time.monotonic() + seconds
    with context().Pool(min(count, len(items)), _settle) as pool:
        calls = pool.imap_unordered(_Forgiving(function), items)
        for _ in items:
            try:
                result = calls.next(timeout=max(0.01, latest - time.monotonic()))
            except multiprocessing.TimeoutError:
                break  # leaving the pool ends its processes
            ended += 1
            done(result)
    return ended


class _Forgiving:
    """The function, whose exceptions are swallowed; a class, so that it can be sent."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function

    def __call__(self, item: Any) -> Any:
        try:
            return self._function(item)
        except Exception:  # a configuration that does not fit, say; asked again by the stage
            return None


def _settle() -> None:
    """One thread each: there are as many processes as cores. And none outlives the one that asked for it."""
    import torch

    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
