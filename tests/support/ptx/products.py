"""Matrix products: fragments of matrices in registers, tiles in shared memory, and conversions of their elements."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .memory import SHARED_BASE, Fault, swizzled

Array = npt.NDArray[Any]


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(values == values, rounded, np.uint16(0x7FFF))


def from_f16(bits: Array) -> Array:
    return bits.view(np.float16).astype(np.float32)


def to_f16(values: Array) -> Array:
    return values.astype(np.float16).view(np.uint16)


def round_to_tf32(bits: Array) -> Array:
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(bits.view(np.float32)), rounded, bits)


def values(bits: Array, kind: str) -> Array:
    """Return the elements of a matrix as float64."""
    if kind == "bf16":
        return from_bf16(bits).astype(np.float64)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    raise Fault(f"matrix products of {kind}")


def run_of(registers: list[int]) -> slice | list[int]:
    """Return the registers as a slice if they are adjacent, because indexing by a slice is faster."""
    first, count = registers[0], len(registers)
    return slice(first, first + count) if registers == list(range(first, first + count)) else registers


# Each fragment is an array [registers, warps, 32]. The number of a lane is 4 * g + t, where g < 8 and t < 4.


def _left16(bits: Array, kind: str) -> Array:
    """Return the left factor A ``[warps, 16, 16]`` of 16-bit elements, which 4 registers of each thread hold."""
    warps = bits.shape[1]
    # axes: k half, row half, warp, g, t, pair
    halves = np.ascontiguousarray(bits).view(np.uint16).reshape(2, 2, warps, 8, 4, 2)
    return values(halves.transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, 16), kind)


def _rows(bits: Array, row_halves: int) -> Array:
    """Return a matrix ``[warps, 8 or 16, columns]`` from registers with one element each.

    The columns are ordered by the register, and then by t.
    """
    warps = bits.shape[1]
    parts = bits.reshape(-1, row_halves, warps, 8, 4)  # axes: k part, row half, warp, g, t
    return parts.transpose(2, 1, 3, 0, 4).reshape(warps, 8 * row_halves, -1)


def left_from_registers(bits: Array, kind: str) -> Array:
    """Return the left factor A ``[warps, 16, k]`` of a product whose left factor is in registers."""
    return values(_rows(bits, 2), kind) if kind == "tf32" else _left16(bits, kind)


def left_from_tile(bits: Array, kind: str, warps: range) -> Array:
    """Return the left factor A ``[warps, 16, k]`` from shared memory, which holds 64 rows: a quarter for each warp."""
    tile = values(bits, kind)
    return np.stack([tile[16 * (w % 4) : 16 * (w % 4) + 16] for w in warps])


def _right16(bits: Array, kind: str) -> Array:
    """Return the right factor B ``[warps, k, 8]`` from registers of two 16-bit elements each."""
    registers, warps = bits.shape[:2]
    # axes: k part, warp, g, t, pair
    halves = np.ascontiguousarray(bits).view(np.uint16).reshape(registers, warps, 8, 4, 2)
    return values(halves.transpose(1, 0, 3, 4, 2).reshape(warps, 8 * registers, 8), kind)


def _right(bits: Array) -> Array:
    """Return the right factor B ``[warps, k, 8]`` from registers of one element each."""
    registers, warps = bits.shape[:2]
    return bits.reshape(registers, warps, 8, 4).transpose(1, 0, 3, 2).reshape(warps, 4 * registers, 8)


def _sums(fragment: Array) -> Array:
    """Return the matrix of sums ``[warps, rows, columns]`` from the registers that hold the sums."""
    registers, warps = fragment.shape[:2]
    if registers == 2:
        return fragment.reshape(2, warps, 8, 4).transpose(1, 2, 3, 0).reshape(warps, 8, 8)
    parts = fragment.reshape(-1, 2, 2, warps, 8, 4)  # axes: column part, row half, pair, warp, g, t
    return parts.transpose(3, 1, 4, 0, 5, 2).reshape(warps, 16, -1)


def _fragment(sums: Array, registers: int) -> Array:
    """Return the registers that hold a matrix of sums. The function is the inverse of :func:`_sums`."""
    warps = sums.shape[0]
    if registers == 2:
        return sums.reshape(warps, 8, 4, 2).transpose(3, 0, 1, 2).reshape(2, warps, 32)
    parts = sums.reshape(warps, 2, 8, -1, 4, 2)  # axes: warp, row half, g, column part, t, pair
    return parts.transpose(3, 1, 5, 0, 2, 4).reshape(registers, warps, 32)


def mma(kind: str, m: int, n: int, k: int) -> Callable[[Array, Array, Array], Array]:
    """Return the function that computes the bits of ``A B + C`` from the bits of three fragments."""
    if n != 8 or m not in (8, 16):
        raise Fault(f"matrix products of {m} x {n} x {k}")

    def double(a: Array, b: Array, c: Array) -> Array:
        left, right, add = (x.view(np.float64) for x in (a, b, c))
        total = _rows(left, m // 8) @ _right(right) + _sums(add)
        return _fragment(total, len(c)).view(np.uint64)

    def single(a: Array, b: Array, c: Array) -> Array:
        left = values(_rows(a, 2), kind) if kind == "tf32" else _left16(a, kind)
        right = values(_right(b), kind) if kind == "tf32" else _right16(b, kind)
        total = left @ right + _sums(c.view(np.float32))
        return _fragment(total.astype(np.float32), len(c)).view(np.uint32)

    return double if kind == "f64" else single


def accumulate(sums: Array, left: Array, right: Array, keep: Array) -> Array:
    """Return the bits of the sums after a matrix product (wgmma) on Hopper.

    Args:
        sums: bits of the sums before the product, ``[n / 2, warps, 32]``.
        left: A, ``[warps, 16, k]``.
        right: B transposed, ``[n, k]``.
        keep: for each warp, whether the product is added to ``sums``.
    """
    total = left @ right.T
    if keep.any():
        before = _sums(sums.view(np.float32))
        total += before if keep.all() else np.where(keep[:, None, None], before, 0.0)
    return _fragment(total.astype(np.float32), len(sums)).view(np.uint32)


@functools.lru_cache(1024)
def tile_places(descriptor: int, rows: int, k: int, element: int, transposed: bool) -> Array:
    """Return the offsets in shared memory of the elements ``[rows, k]`` of a matrix that a descriptor describes.

    Args:
        descriptor: matrix descriptor of a product on Hopper.
        rows: number of rows if the matrix is A, or of columns if the matrix is B.
        k: number of elements that are summed over.
        element: number of bytes of an element.
        transposed: whether the elements are contiguous along the rows instead of along k.
    """
    start, lead, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = (0, 3, 2, 1)[descriptor >> 62 & 3]
    if descriptor >> 49 & 7:
        raise Fault("a matrix descriptor with a base offset")
    r, c = np.arange(rows)[:, None], np.arange(k)[None, :]
    wide = 16 << mode  # number of bytes in a row of the pattern, which has 8 rows
    per = wide // element
    if transposed:
        if mode == 0:
            raise Fault("a transposed matrix without swizzle")
        at = start + (r // per) * lead + (c // 8) * stride + (c % 8) * wide + (r % per) * element
    elif mode == 0:
        at = start + (r // 8) * stride + (r % 8) * 16 + (c // per) * lead + (c % per) * element
    else:
        at = start + (r // 8) * stride + (r % 8) * wide + c * element
    places: Array = swizzled(at, mode) - SHARED_BASE
    if places.min() < 0:
        raise Fault("a matrix product reads before shared memory")
    return places
