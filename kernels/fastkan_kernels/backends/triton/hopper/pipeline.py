"""Asynchronous copies of tiles into slots of shared memory, for both Hopper kernels.

The kernels reuse a fixed number of slots in turn. Each slot has a barrier that counts the bytes that have
arrived in the slot. Functions whose names differ between versions of Triton get one name in this module.
"""

from __future__ import annotations

import math

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..config import shared_limit
from ..launch import DTYPES, strides

copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # the function waits for all warps of a program


@gluon.jit
def start_barriers(COUNT: gl.constexpr):
    """Create one barrier for each of COUNT slots."""
    ready = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(COUNT):
        mbarrier.init(ready.index(slot), count=1)
    fence_async_shared()
    barrier()
    return ready


@gluon.jit
def end_barriers(ready, COUNT: gl.constexpr):
    """Invalidate the barriers of all slots. No warp may wait for a barrier afterwards."""
    barrier()
    for slot in gl.static_range(COUNT):
        mbarrier.invalidate(ready.index(slot))


@gluon.jit
def expect(ready, turn, BYTES: gl.constexpr, happens, COUNT: gl.constexpr):
    """If ``happens``, announce to the slot's barrier that BYTES bytes of the tile with index ``turn`` will arrive."""
    mbarrier.expect(ready.index(turn % COUNT), BYTES, pred=happens)


@gluon.jit
def await_tile(ready, turn, COUNT: gl.constexpr):
    """Wait until the tile with index ``turn`` has arrived in slot ``turn % COUNT``."""
    mbarrier.wait(ready.index(turn % COUNT), (turn // COUNT) & 1)


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """Return a descriptor of a tensor, for copying tiles of the shape ``block`` to shared memory.

    Elements of a tile that lie beyond the edges of the tensor are 0. The distance between the rows of the tensor must
    be a multiple of 16 bytes.
    """
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[tensor.dtype])
    return TensorDescriptor(tensor, list(tensor.shape), strides(tensor), block, layout)


# One slot is being filled, and two matrix products may each read a slot at the same time.
MIN_SLOTS = 3
_BARRIER_BYTES = 512  # upper bound on the bytes of the barriers of all slots and of the padding between them


def tile_bytes(*tiles: TensorDescriptor) -> int:
    """Return the total number of bytes of shared memory that one tile of each descriptor takes."""
    return sum(math.prod(t.block_shape) * t.base.element_size() for t in tiles)


def slot_count(most: int, tiles: list[TensorDescriptor], beside: int, capability: int) -> int:
    """Return the number of slots that fit into shared memory, clamped to the range from ``MIN_SLOTS`` to ``most``.

    Args:
        most: maximum number of slots.
        tiles: descriptors of the tiles that each slot holds.
        beside: number of bytes of shared memory that are used for other purposes.
        capability: compute capability of the GPU, such as 90 for 9.0.
    """
    room = shared_limit(capability) - beside - _BARRIER_BYTES
    return max(MIN_SLOTS, min(most, room // tile_bytes(*tiles)))
