"""A matrix product in Gluon with a producer and a consumer, and faults that its pipeline may have."""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastkan_kernels.backends.triton.launch import DTYPES, Launch

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
copy_back = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def produce(a_ptr, b, a_tiles, b_tiles, empty, full, row, column, steps, stride, BUG: gl.constexpr):
    """Fill slots: B by copies of tiles, and A by threads."""
    SLOTS: gl.constexpr = a_tiles.shape[0]
    ROWS: gl.constexpr = a_tiles.shape[1]
    INNER: gl.constexpr = a_tiles.shape[2]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    rows = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    inner = gl.arange(0, INNER, layout=gl.SliceLayout(0, layout))
    for step in range(steps):
        slot = step % SLOTS
        if BUG != "no wait for the consumer":
            mbarrier.wait(empty.index(slot), (step // SLOTS & 1) ^ 1)
        if BUG != "no expect":
            mbarrier.expect(full.index(slot), b.block_type.nbytes)
        copy(b, [step * INNER, column], full.index(slot), b_tiles.index(slot))
        a_tiles.index(slot).store(gl.load(a_ptr + rows[:, None] * stride + inner[None, :] + step * INNER))
        if BUG != "no proxy fence":
            fence_async_shared()
        if BUG != "no barrier before arrival":
            barrier()
        mbarrier.arrive(full.index(slot), count=1)


@gluon.jit
def consume(c, a_tiles, b_tiles, c_tile, empty, full, row, column, steps, BUG: gl.constexpr):
    """Multiply what the slots hold, with one product in flight, and store the sum by a copy of the tile."""
    SLOTS: gl.constexpr = a_tiles.shape[0]
    ROWS: gl.constexpr = a_tiles.shape[1]
    COLUMNS: gl.constexpr = b_tiles.shape[2]
    LAG: gl.constexpr = 0 if BUG == "frees the slot of the product in flight" else 1
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    y = gl.zeros((ROWS, COLUMNS), gl.float32, total)
    for step in range(steps):
        slot = step % SLOTS
        if BUG != "no wait for the producer":
            mbarrier.wait(full.index(slot), step // SLOTS & 1)
        y = warpgroup_mma(a_tiles.index(slot), b_tiles.index(slot), y, is_async=True)
        y = warpgroup_mma_wait(1, deps=[y])
        mbarrier.arrive(empty.index((step - LAG) % SLOTS), count=1, pred=step >= LAG)
    y = warpgroup_mma_wait(1 if BUG == "no last wait" else 0, deps=[y])
    c_tile.store(y.to(c.dtype))
    if BUG != "no proxy fence before the store":
        fence_async_shared()
    barrier()
    copy_back(c, [row, column], c_tile)
    if BUG != "no wait for the store":
        tma.store_wait(0)


@gluon.jit
def gemm(
    a_ptr, b, c, M, R, stride,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, INNER: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr,
    LAYOUT: gl.constexpr, BUG: gl.constexpr,
):  # fmt: skip
    DTYPE: gl.constexpr = b.dtype
    a_tiles = gl.allocate_shared_memory(DTYPE, [SLOTS, ROWS, INNER], LAYOUT)
    b_tiles = gl.allocate_shared_memory(DTYPE, [SLOTS, INNER, COLUMNS], b.layout)
    c_tile = gl.allocate_shared_memory(DTYPE, [ROWS, COLUMNS], c.layout)
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(empty.index(slot), count=1)
        mbarrier.init(full.index(slot), count=1 if BUG == "one arrival too few" else 2)
    fence_async_shared()
    barrier()
    row, column = gl.program_id(0) * ROWS, gl.program_id(1) * COLUMNS
    steps = gl.cdiv(R, INNER)
    gl.warp_specialize(
        [
            (consume, (c, a_tiles, b_tiles, c_tile, empty, full, row, column, steps, BUG)),
            (produce, (a_ptr, b, a_tiles, b_tiles, empty, full, row, column, steps, stride, BUG)),
        ],
        [4],
        [128],
    )


BUGS = [
    "no wait for the consumer", "no expect", "no proxy fence", "no barrier before arrival", "no wait for the producer",
    "frees the slot of the product in flight", "no last wait", "no proxy fence before the store",
    "no wait for the store", "one arrival too few",
]  # fmt: skip


def launch(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, bug: str | None = None, warps: int = 4) -> Launch:
    """Return the launch that writes ``a @ b`` into ``c``, with a fault of :data:`BUGS` or none."""
    rows, columns, inner = 16 * warps, 64, 32
    dtype = DTYPES[a.dtype]

    def layout(shape: list[int]) -> gl.NVMMASharedLayout:
        return gl.NVMMASharedLayout.get_default_for(shape, dtype)

    b_map, c_map = (
        TensorDescriptor(t, list(t.shape), list(t.stride()), block, layout(block))
        for t, block in ((b, [inner, columns]), (c, [rows, columns]))
    )
    arguments = {"a_ptr": a, "b": b_map, "c": c_map, "M": a.shape[0], "R": a.shape[1], "stride": a.stride(0)}
    constants = {
        "ROWS": rows, "COLUMNS": columns, "INNER": inner, "SLOTS": 2, "WARPS": warps, "LAYOUT": layout([rows, inner]),
        "BUG": bug,
    }  # fmt: skip
    grid = (-(-a.shape[0] // rows), -(-b.shape[1] // columns))
    return Launch(gemm, grid, arguments, constants, warps, 2)
