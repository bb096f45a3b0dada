"""Asynchronous copies of tiles into slots of shared memory, which both Hopper kernels use in turn.

Each slot has a barrier that counts the bytes that have arrived. This module also hides the names that differ between
versions of Triton.
"""

from __future__ import annotations

import math

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..launch import DTYPES, strides
from ..tuning.config import shared_limit

copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # waits for all warps of a program


@gluon.jit
def start_barriers(COUNT: gl.constexpr):
    """Make one barrier for each of COUNT slots."""
    ready = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(COUNT):
        mbarrier.init(ready.index(slot), count=1)
    fence_async_shared()
    barrier()
    return ready


@gluon.jit
def end_barriers(ready, COUNT: gl.constexpr):
    """Invalidate the barriers, for which no warp may wait any more."""
    barrier()
    for slot in gl.static_range(COUNT):
        mbarrier.invalidate(ready.index(slot))


@gluon.jit
def expect(ready, turn, BYTES: gl.constexpr, happens, COUNT: gl.constexpr):
    """Announce the number of bytes that the tile with index ``turn`` has, if ``happens``."""
    mbarrier.expect(ready.index(turn % COUNT), BYTES, pred=happens)


@gluon.jit
def await_tile(ready, turn, COUNT: gl.constexpr):
    """Wait until the tile with index ``turn`` has arrived, in slot ``turn % COUNT``."""
    mbarrier.wait(ready.index(turn % COUNT), (turn // COUNT) & 1)


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """Descriptor of a tensor for copies of tiles of the shape ``block``, which have 0 beyond the edges of the tensor.
    Its rows must start a multiple of 16 bytes apart."""
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[tensor.dtype])
    return TensorDescriptor(tensor, list(tensor.shape), strides(tensor), block, layout)


MIN_SLOTS = 3  # the operands of two products, and a tile that is being copied
_BARRIER_BYTES = 512  # upper bound of the barriers of all slots and the alignment between


def tile_bytes(*tiles: TensorDescriptor) -> int:
    """Bytes of shared memory that one tile of each descriptor takes."""
    return sum(math.prod(t.block_shape) * t.base.element_size() for t in tiles)


def slot_count(most: int, tiles: list[TensorDescriptor], beside: int, capability: int) -> int:
    """Number of slots for which shared memory has room, at most ``most`` and at least ``MIN_SLOTS``.

    Args:
        tiles: descriptors of the tiles that each slot holds.
        beside: bytes of shared memory that are used otherwise.
    """
    room = shared_limit(capability) - beside - _BARRIER_BYTES
    return max(MIN_SLOTS, min(most, room // tile_bytes(*tiles)))
