"""What both kernels share: tiles that the copy engine brings into slots of shared memory, by turns.

A slot's barrier counts the bytes that have come. Names that differ between Triton's versions are
settled here.
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
barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # of all warps of a program


@gluon.jit
def start_barriers(COUNT: gl.constexpr):
    """One barrier for each of COUNT slots."""
    ready = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(COUNT):
        mbarrier.init(ready.index(slot), count=1)
    fence_async_shared()
    barrier()
    return ready


@gluon.jit
def end_barriers(ready, COUNT: gl.constexpr):
    """Nobody may wait for them any more."""
    barrier()
    for slot in gl.static_range(COUNT):
        mbarrier.invalidate(ready.index(slot))


@gluon.jit
def expect(ready, turn, BYTES: gl.constexpr, happens, COUNT: gl.constexpr):
    """Say how many bytes a turn will bring, if it ``happens``."""
    mbarrier.expect(ready.index(turn % COUNT), BYTES, pred=happens)


@gluon.jit
def await_tile(ready, turn, COUNT: gl.constexpr):
    """Until the tile of a turn is there: it is in slot ``turn % COUNT``."""
    mbarrier.wait(ready.index(turn % COUNT), (turn // COUNT) & 1)


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """Of a tensor whose rows lie whole 16 bytes apart, for copies of ``block``; beyond its edges they give 0."""
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[tensor.dtype])
    return TensorDescriptor(tensor, list(tensor.shape), strides(tensor), block, layout)


MIN_SLOTS = 3  # two products' operands, and one that is on its way
_BARRIER_BYTES = 512  # of all slots, and what lies between


def tile_bytes(*tiles: TensorDescriptor) -> int:
    """Of shared memory that one tile of each takes."""
    return sum(math.prod(t.block_shape) * t.base.element_size() for t in tiles)


def slot_count(most: int, tiles: list[TensorDescriptor], beside: int, capability: int) -> int:
    """How many slots of one tile of each there is room for, at most ``most``.

    Args:
        beside: bytes of what else is in shared memory.
    """
    room = shared_limit(capability) - beside - _BARRIER_BYTES
    return max(MIN_SLOTS, min(most, room // tile_bytes(*tiles)))
