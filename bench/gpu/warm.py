"""Compile side by side: a process each calls some of the kernels once, and Triton's cache on disk keeps them.

A stage needs hundreds of builds of a second or more, on a machine whose GPU time is dear.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

MOST_WORKERS = 12


def workers(asked: int | None = None) -> int:
    """How many processes; each brings its own CUDA context."""
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 2) - 2)) if asked is None else asked


def in_parallel(function: Callable[[Any], object], items: Sequence[Any], count: int, seconds: float) -> int:
    """Call ``function`` on every item in ``count`` processes, until all are done or time is up.

    Args:
        function: of a module, so that it can be sent; what it raises is met again where it is called in earnest.
        items: likewise.

    Returns:
        How many calls ended.
    """
    if count < 1 or not items:
        return 0
    ended = 0
    latest = time.monotonic() + seconds
    with multiprocessing.get_context("spawn").Pool(min(count, len(items)), _settle) as pool:
        calls = pool.imap_unordered(_Forgiving(function), items)
        for _ in items:
            try:
                calls.next(timeout=max(0.01, latest - time.monotonic()))
            except multiprocessing.TimeoutError:
                break  # leaving the pool ends its processes
            ended += 1
    return ended


class _Forgiving:
    """The function, whose exceptions are swallowed; a class, so that it can be sent."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function

    def __call__(self, item: Any) -> None:
        try:
            self._function(item)
        except Exception:  # a configuration that does not fit, say; asked again by the stage
            return


def _settle() -> None:
    """One thread each: there are as many processes as cores."""
    import torch

    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
