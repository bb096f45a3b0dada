"""Counts of the warp instructions of a launch by name, and of its bytes through shared and global memory.

The cost of one step of a loop is the difference between the counts of two runs, one of which has one more step.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import Instruction

Array = npt.NDArray[Any]
BANKS = 32
SECTOR = 32  # number of bytes of global memory that are moved together


def shared_wavefronts(places: Array, size: int, warp: Array) -> int:
    """Return the number of cycles in which shared memory serves accesses without conflicts of banks.

    Args:
        places: offset of each access.
        size: number of bytes of each access.
        warp: warp of each access. Accesses of 8 bytes are served for half a warp at a time, and accesses of 16 bytes
            for a quarter of a warp.
    """
    if not places.size:
        return 0
    words = max(1, size // 4)
    warp = warp.reshape(-1).astype(np.int64)
    _, first = np.unique(warp, return_index=True)
    # number of the access within its warp
    order = np.arange(len(warp)) - first[np.searchsorted(warp[np.sort(first)], warp)]
    phase = warp * words + order * words // 32
    word = (places.reshape(-1, 1) // 4 + np.arange(words)).reshape(-1)
    key = np.unique(np.repeat(phase, words) << 32 | word)  # threads that read the same word are served together
    _, conflicts = np.unique((key >> 32) * BANKS + key % BANKS, return_counts=True)
    phases = np.unique((key >> 32) * BANKS + key % BANKS) // BANKS
    return int(sum(conflicts[phases == one].max() for one in np.unique(phases)))


def sector_bytes(places: Array, size: int, warp: Array) -> int:
    """Return the number of bytes in the sectors of global memory that the accesses of each warp touch."""
    ends = np.stack([places.reshape(-1), places.reshape(-1) + size - 1])
    keys = np.unique(warp.reshape(-1).astype(np.int64) << 40 | ends // SECTOR)
    return SECTOR * len(keys)


class Traffic:
    """Bytes and cycles of memory that a launch has used, by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def shared(self, name: str, places: Array, size: int, warp: Array) -> None:
        """Count an access of shared memory by threads."""
        self.counts[f"{name} bytes"] += places.size * size
        self.counts["shared wavefronts"] += shared_wavefronts(places, size, warp)

    def moved(self, name: str, places: Array, size: int, warp: Array) -> None:
        """Count an access of global memory by threads."""
        self.counts[f"{name} bytes"] += places.size * size
        self.counts[f"{name} bytes in sectors"] += sector_bytes(places, size, warp)

    def add(self, name: str, number: int) -> None:
        self.counts[name] += number


def counts_of(instructions: list[Instruction], executions: list[int], traffic: Traffic) -> Counter[str]:
    """Return the warp instructions by name, such as ``"add.f32"``, and the traffic of a launch."""
    found: Counter[str] = Counter()
    for instruction, number in zip(instructions, executions, strict=True):
        found[instruction.name] += number
    return found + traffic.counts
