"""Asynchronous copies of tiles into and out of shared memory, for all Hopper kernels.

The kernels use a fixed number of slots in shared memory in rotation. Each slot has a barrier that counts the bytes that
have arrived in the slot. Functions whose names differ between versions of Triton get one name in this module.
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
write_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret
barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # the function waits for all warps of a program


@gluon.jit
def start_barriers(SLOTS: gl.constexpr):
    """Create one barrier for each of SLOTS slots. The function :func:`barrier` must be called before a copy starts."""
    ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(ready.index(slot), count=1)
    return ready


@gluon.jit
def end_barriers(ready, SLOTS: gl.constexpr):
    """Invalidate the barriers of all slots, which are given as a tuple, once all warps have stopped using them."""
    barrier()
    for n in gl.static_range(len(ready)):
        for slot in gl.static_range(SLOTS):
            mbarrier.invalidate(ready[n].index(slot))


@gluon.jit
def expect(ready, turn, descriptor, happens, SLOTS: gl.constexpr):
    """Announce to a slot's barrier the copy of the block with index ``turn``, if ``happens`` is true."""
    mbarrier.expect(ready.index(turn % SLOTS), descriptor.block_type.nbytes, pred=happens)


@gluon.jit
def expect_all(descriptors, ready, turn, turns, SLOTS: gl.constexpr):
    """Announce the copies of all tensors of a step, unless the step is beyond the last one."""
    for n in gl.static_range(len(descriptors)):
        expect(ready[n], turn, descriptors[n], turn < turns, SLOTS)


@gluon.jit
def fetch(descriptor, coordinates, tiles, ready, turn, happens, SLOTS: gl.constexpr):
    """Start to copy a block of a tensor to a slot if ``happens`` is true. Call :func:`expect` before the copy."""
    copy_tile(descriptor, coordinates, ready.index(turn % SLOTS), block_of(tiles, turn % SLOTS, descriptor), happens)


@gluon.jit
def await_tile(ready, turn, SLOTS: gl.constexpr):
    """Wait until the block with index ``turn`` has arrived in slot ``turn % SLOTS``."""
    mbarrier.wait(ready.index(turn % SLOTS), (turn // SLOTS) & 1)


@gluon.jit
def block_of(tiles, slot, like):
    """Return the beginning of a slot as a tile of the shape, dtype and layout of a descriptor's block."""
    return reinterpret(tiles.index(slot), like.dtype, like.block_shape, like.layout)


@gluon.jit
def store(descriptor, coordinates, values):
    """Write a tile of a result to memory, except for the elements that lie beyond the edges of the tensor.

    All copies and products must have finished, because the tile is first written to the shared memory of the slots.
    """
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(
        descriptor.layout.swizzle_byte_width, descriptor.dtype.primitive_bitwidth
    )
    tile = gl.allocate_shared_memory(descriptor.dtype, values.shape, LAYOUT)
    tile.store(values.to(descriptor.dtype))
    fence_async_shared()
    barrier()
    write_tile(descriptor, coordinates, reinterpret(tile, descriptor.dtype, descriptor.block_shape, descriptor.layout))
    tma.store_wait(0)


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """Return a descriptor of a tensor, for copying tiles of the shape ``block`` to or from shared memory.

    Elements of a tile that lie beyond the edges of the tensor are read as 0 and not written. The distance between the
    rows of the tensor must be a multiple of 16 bytes.
    """
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[tensor.dtype])
    return TensorDescriptor(tensor, list(tensor.shape), strides(tensor), block, layout)


# One slot is read by the current product, one has the operands of the next features, and one is being filled.
MIN_SLOTS = 3
_BARRIER_BYTES = 1024  # upper bound on the bytes of the barriers of all slots and of the padding between them


def slot_count(most: int, tiles: list[TensorDescriptor], beside: int, capability: int) -> int:
    """Return the number of slots that fit into shared memory, at most ``most``, or 0 if fewer than MIN_SLOTS fit.

    Args:
        most: maximum number of slots.
        tiles: descriptors of the tiles that each slot holds.
        beside: number of bytes of shared memory that are used for other purposes.
        capability: compute capability of the GPU, such as 90 for 9.0.
    """
    slot_bytes = sum(math.prod(t.block_shape) * t.base.element_size() for t in tiles)
    found = min(max(most, MIN_SLOTS), (shared_limit(capability) - beside - _BARRIER_BYTES) // slot_bytes)
    return found if found >= MIN_SLOTS else 0
