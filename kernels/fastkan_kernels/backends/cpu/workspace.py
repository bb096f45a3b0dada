"""Scratch memory that one contraction leaves to the next: fresh memory costs a page fault each 4 KiB,
which here is as much as the work."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}


_kept = _Kept()


def scratch(like: Tensor, numbers: int, use: str) -> Tensor:
    """Uninitialised memory of ``numbers`` numbers like ``like``'s, this thread's own.

    Args:
        use: what for; memory for one use is overwritten by the next request for the same.
    """
    memory = _kept.memory.get((use, like.dtype))
    if memory is None or memory.numel() < numbers:
        with torch.inference_mode(False):  # what is made in that mode can't be written outside of it
            memory = torch.empty(numbers, dtype=like.dtype, device=like.device)
        if type(memory) is Tensor:  # not a fake one
            _kept.memory[use, like.dtype] = memory
    return memory[:numbers]
