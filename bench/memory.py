"""Memory: the peak of a call, and an allocator that has settled before anything is timed."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that ``call`` held at once of what it allocated itself; its result included.

    By PyTorch's own record, so what compiled code and operators inside allocate counts as well; NumPy's arrays by
    Python's. Where a call uses both, the two peaks are added, though they may not fall together.
    """
    with profile(profile_memory=True) as record:
        tracemalloc.start()
        try:
            result = call()
            _, arrays = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    del result
    allocations = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in allocations:
        held += event.nbytes()
        peak = max(peak, held)
    return peak + arrays


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, malloc.h
_MAX_MMAP_THRESHOLD = 32 << 20  # glibc's own limit on 64 bits
_NEVER = 2**31 - 1
_ROOM = 512 << 20
_kept: list[torch.Tensor] = []


def settle_allocator() -> bool:
    """Put glibc's malloc where a long run ends up; False where there is none.

    It begins by taking each block above 128 KiB fresh from the system, a page fault for each 4 KiB;
    as larger blocks are freed it moves that threshold to 32 MiB, and leaves holes for later ones. So a
    rival's time would depend on what those before it had freed: by half, for tensors of a few MiB.
    Here there is one large hole from the start, and blocks to 32 MiB come from it.
    """
    if _kept:
        return True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    if not (mallopt(_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _NEVER)):
        return False
    size = _MAX_MMAP_THRESHOLD // 2
    hole = [torch.zeros(size, dtype=torch.uint8) for _ in range(_ROOM // size)]
    _kept.append(torch.zeros(1))  # above the hole
    hole.clear()
    return True
