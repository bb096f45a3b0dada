"""Memory of the simulated GPU: tensors in global memory, shared memory, and tensor maps for copies of tiles."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GLOBAL_BASE = 0x7F0000000000  # address of the first byte of global memory
SHARED_BASE = 1024  # address of the first byte of shared memory; smaller addresses are invalid
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# for each mode, the bits in the number of a 16-byte chunk that a swizzle changes
SWIZZLE_MASKS = {0: 0, 1: 1, 2: 3, 3: 7}


class Fault(Exception):
    """An operation that PTX does not define, or that the interpreter does not support."""

    position: int | None = None  # position of the instruction that caused the fault


def swizzled(address: Array, mode: int) -> Array:
    """Return the addresses after a swizzle, which exchanges chunks of 16 bytes.

    The mode is 0 for no swizzle, or 1, 2 or 3 for a pattern of 32, 64 or 128 bytes.
    """
    return address ^ (((address >> 7) & SWIZZLE_MASKS[mode]) << 4)


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
    banks, conflicts = np.unique((key >> 32) * 32 + key % 32, return_counts=True)
    return int(sum(conflicts[banks // 32 == phase].max() for phase in np.unique(banks // 32)))


class Memory:
    """Bytes at consecutive addresses, with a view for elements of each size of 1, 2, 4 and 8 bytes.

    Args:
        base: address of the first byte.
        size: number of bytes.
        name: name of the memory in messages.
    """

    def __init__(self, base: int, size: int, name: str) -> None:
        self.base, self.limit, self.name = base, size, name
        self.size = -(-size // 16) * 16
        self.valid: Array | None = None  # whether a byte may be accessed; None if all may
        self.views: dict[int, Array] = {8: np.full(self.size // 8, 0xFFFFFFFFFFFFFFFF, np.uint64)}
        for width in (1, 2, 4):
            self.views[width] = self.views[8].view(UNSIGNED[width])

    def place(self, address: Array, size: int) -> Array:
        """Return the offsets of accesses of ``size`` bytes, given their addresses.

        Raises:
            Fault: if an access is misaligned or outside of the memory that may be accessed.
        """
        at = address.astype(np.int64) - self.base
        inside = (at >= 0) & (at + size <= self.limit)
        if self.valid is not None and inside.all():
            inside = self.valid[at] & self.valid[at + (size - 1)]
        if not inside.all():
            raise Fault(f"access of {size} bytes outside of {self.name}, at offset {at[~inside][:4]}")
        if (at & (size - 1)).any():
            raise Fault(f"misaligned access of {size} bytes of {self.name}")
        return at


def shared_memory(size: int) -> Memory:
    """Return the shared memory of a CTA."""
    return Memory(SHARED_BASE, size, f"the {size} bytes of shared memory")


class Global(Memory):
    """Global memory, which holds tensors with gaps between them."""

    def __init__(self, size: int) -> None:
        super().__init__(GLOBAL_BASE, size, "all tensors")
        self.used = 512
        self.valid = np.zeros(self.size, bool)

    def put(self, raw: Array) -> int:
        """Copy the bytes of a tensor to a new place that is aligned to 256 bytes, and return the address."""
        at = self.used
        self.views[1][at : at + raw.size] = raw
        self.valid[at : at + raw.size] = True
        self.used = (at + raw.size + 512 + 255) // 256 * 256
        return GLOBAL_BASE + at

    def get(self, address: int, size: int) -> Array:
        """Return a copy of the ``size`` bytes at an address."""
        at = address - GLOBAL_BASE
        return self.views[1][at : at + size].copy()


@dataclass
class TensorMap:
    """A tensor in global memory and the box that a copy moves, as ``cuTensorMapEncodeTiled`` describes them.

    The last dimension is contiguous. The field ``strides`` is counted in elements, and ``swizzle`` is a mode of
    :func:`swizzled`.
    """

    address: int
    shape: Sequence[int]
    strides: Sequence[int]
    box: Sequence[int]
    element: int  # number of bytes of an element
    swizzle: int

    def __post_init__(self) -> None:
        element = self.element
        inner = self.box[-1] * element
        for wrong, reason in (
            (self.address % 16, f"the address {self.address:#x} is not a multiple of 16"),
            (self.strides[-1] != 1, f"the last stride is {self.strides[-1]}"),
            (any(s * element % 16 or s <= 0 for s in self.strides[:-1]), f"strides {self.strides} of {element} bytes"),
            (any(not 0 < b <= 256 for b in self.box) or inner % 16, f"a box of {self.box} elements of {element} bytes"),
            (self.swizzle and inner > 16 << self.swizzle, f"a box {inner} bytes wide in swizzle mode {self.swizzle}"),
        ):
            if wrong:
                raise Fault(f"tensor map: {reason}")

    @functools.cached_property
    def bytes(self) -> int:
        return int(np.prod(self.box)) * self.element

    @functools.cached_property
    def _pattern(self) -> Array:
        return np.arange(int(np.prod(self.box)), dtype=np.int64) * self.element

    def shared_places(self, shared: Memory, address: int) -> Array:
        """Return the offsets in shared memory of the elements of a box that starts at an address.

        Raises:
            Fault: if the address is not aligned to the period of the swizzle, or the box exceeds shared memory.
        """
        alignment = 128 << self.swizzle if self.swizzle else 128
        if address % alignment:
            raise Fault(f"address {address} of a tile is not a multiple of {alignment}")
        if address < SHARED_BASE or address - SHARED_BASE + self.bytes > shared.limit:
            raise Fault(f"tile of {self.bytes} bytes at {address} exceeds shared memory")
        return swizzled(self._pattern + address, self.swizzle) - SHARED_BASE

    def _clip(self, start: Sequence[int]) -> tuple[tuple[slice, ...], int, list[int]]:
        """Return the part of a box that lies inside the tensor, its offset in global memory, and its shape."""
        low = [max(0, -s) for s in start]
        high = [max(a, min(b, n - s)) for a, b, n, s in zip(low, self.box, self.shape, start, strict=True)]
        offset = sum((s + a) * t for s, a, t in zip(start, low, self.strides, strict=True))
        inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        shape = [b - a for a, b in zip(low, high, strict=True)]
        return inside, self.address - GLOBAL_BASE + offset * self.element, shape

    def _view(self, memory: Global, offset: int, shape: list[int]) -> Array:
        ends = offset + sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True)) * self.element
        memory.place(np.array([offset, ends], np.int64) + GLOBAL_BASE, self.element)
        elements = memory.views[self.element][offset // self.element :]
        return np.lib.stride_tricks.as_strided(elements, shape, [s * self.element for s in self.strides])

    def inside_bytes(self, start: Sequence[int]) -> int:
        """Return the number of bytes of the box at ``start`` that are inside of the tensor."""
        return int(np.prod(self._clip(start)[2])) * self.element

    def load(self, memory: Global, start: Sequence[int]) -> Array:
        """Return the elements of the box at ``start`` as a flat array, with 0 for elements outside of the tensor."""
        inside, offset, shape = self._clip(start)
        box = np.zeros(self.box, UNSIGNED[self.element])
        if min(shape) > 0:
            box[inside] = self._view(memory, offset, shape)
        return box.reshape(-1)

    def store(self, memory: Global, start: Sequence[int], values: Array) -> None:
        """Write the elements of the box at ``start`` that are inside of the tensor."""
        inside, offset, shape = self._clip(start)
        if min(shape) > 0:
            self._view(memory, offset, shape)[...] = values.reshape(self.box)[inside]
