"""A matrix product in Gluon with a producer and a consumer, and variants of its pipeline with faults."""

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

from .launches import emulated
from .machine import LATE, Policy

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
copy_back = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def produce(a_ptr, b, a_tiles, b_tiles, empty, full, row, column, steps, stride, BUG: gl.constexpr):
    """Fill the slots: copies write the tiles of B, and threads write the tiles of A."""
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
        barrier()
        mbarrier.arrive(full.index(slot), count=1)


@gluon.jit
def consume(c, a_tiles, b_tiles, c_tile, empty, full, row, column, steps, BUG: gl.constexpr):
    """Multiply the tiles in the slots, with one unfinished product at a time, and store the sum by a tile copy."""
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
    fence_async_shared()
    barrier()
    copy_back(c, [row, column], c_tile)
    tma.store_wait(0)


@gluon.jit
def gemm(
    a_ptr, b, c, R, stride,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, INNER: gl.constexpr, SLOTS: gl.constexpr,
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


@gluon.jit
def gemm_of_transposed(
    a, b, c_ptr, R, O,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, INNER: gl.constexpr,
):  # fmt: skip
    """Write the product of A transposed and B. The tiles of A are not transposed in shared memory."""
    a_tile = gl.allocate_shared_memory(a.dtype, [INNER, ROWS], a.layout)
    b_tile = gl.allocate_shared_memory(b.dtype, [INNER, COLUMNS], b.layout)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    fence_async_shared()
    barrier()
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    y = gl.zeros((ROWS, COLUMNS), gl.float32, total)
    row, column = gl.program_id(0) * ROWS, gl.program_id(1) * COLUMNS
    for step in range(gl.cdiv(R, INNER)):
        mbarrier.expect(ready, a.block_type.nbytes + b.block_type.nbytes)
        copy(a, [step * INNER, row], ready, a_tile)
        copy(b, [step * INNER, column], ready, b_tile)
        mbarrier.wait(ready, step & 1)
        y = warpgroup_mma(a_tile.permute((1, 0)), b_tile, y, is_async=True)
        y = warpgroup_mma_wait(0, deps=[y])
        barrier()
    rows = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, total))
    columns = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, total))
    gl.store(c_ptr + rows[:, None] * O + columns[None, :], y)


BUGS = (
    "no wait for the consumer", "no expect", "no proxy fence", "no wait for the producer",
    "frees the slot of the product in flight", "no last wait", "one arrival too few",
)  # fmt: skip


def _layout(shape: list[int], dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(shape, DTYPES[dtype])


def _descriptor(tensor: torch.Tensor, block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block, _layout(block, tensor.dtype))


def launch(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, bug: str | None = None) -> Launch:
    """Return the launch that writes ``a @ b`` into ``c``, optionally with one of the faults :data:`BUGS`."""
    rows, columns, inner, warps = 64, 64, 32, 4
    arguments = {
        "a_ptr": a,
        "b": _descriptor(b, [inner, columns]),
        "c": _descriptor(c, [rows, columns]),
        "R": a.shape[1],
        "stride": a.stride(0),
    }
    tiles = {"ROWS": rows, "COLUMNS": columns, "INNER": inner, "SLOTS": 2}
    constants = {**tiles, "LAYOUT": _layout([rows, inner], a.dtype), "BUG": bug}
    return Launch(gemm, (a.shape[0] // rows, b.shape[1] // columns), arguments, constants, warps, 2)


def launch_transposed(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Launch:
    """Return the launch that writes ``a.T @ b`` into ``c``, for float32 matrices."""
    rows, columns, inner = 128, 64, 32
    arguments = {
        "a": _descriptor(a, [inner, rows]),
        "b": _descriptor(b, [inner, columns]),
        "c_ptr": c,
        "R": len(a),
        "O": b.shape[1],
    }
    tiles = {"ROWS": rows, "COLUMNS": columns, "INNER": inner}
    return Launch(gemm_of_transposed, (a.shape[1] // rows, b.shape[1] // columns), arguments, tiles, 8, 2)


def error(bug: str | None = None, policy: Policy = LATE, transposed: bool = False) -> float:
    """Run a product, and return the largest error relative to the largest number.

    Raises:
        Fault: if the interpreter finds a fault.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((128, 160), (160, 64)))
    c = torch.full((128, 64), torch.nan, dtype=torch.float32 if transposed else torch.bfloat16)
    with emulated(policy, races=policy == LATE):
        (launch_transposed(a.T.contiguous(), b, c) if transposed else launch(a, b, c, bug)).run()
    want = a.double() @ b.double()
    return float((c.double() - want).abs().max() / want.abs().max())
