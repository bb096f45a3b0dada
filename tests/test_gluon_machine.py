"""The machine that runs Gluon kernels without a GPU: it runs a right one rightly, and no wrong one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")
import triton
from gluon_machine import POLICIES, MachineError, run
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

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


@gluon.jit
def fetch(a, b, row, column, t, T, bars, a_slots, b_slots, INNER: gl.constexpr, SLOTS: gl.constexpr, BUG: gl.constexpr):
    slot = t % SLOTS
    SIZE: gl.constexpr = a.block_type.nbytes + b.block_type.nbytes
    if BUG != "no expect":
        mbarrier.expect(bars.index(slot), SIZE + (16 if BUG == "bytes" else 0), pred=t < T)
    copy(a, [row, t * INNER], bars.index(slot), a_slots.index(slot), pred=t < T)
    copy(b, [t * INNER, column], bars.index(slot), b_slots.index(slot), pred=t < T)


@gluon.jit
def gemm(
    a,  # descriptor [M, T * INNER]
    b_ptr,
    c_ptr,
    M,
    N,
    R,
    stride_b,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    INNER: gl.constexpr,
    SLOTS: gl.constexpr,
    BUG: gl.constexpr = None,
):
    DTYPE: gl.constexpr = b_ptr.dtype.element_ty
    mma: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, 16])
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([INNER, COLUMNS], DTYPE)
    b = tma.make_tensor_descriptor(b_ptr, [R, N], [stride_b, 1], [INNER, COLUMNS], layout)
    a_slots = gl.allocate_shared_memory(DTYPE, [SLOTS, ROWS, INNER], a.layout)
    b_slots = gl.allocate_shared_memory(DTYPE, [SLOTS, INNER, COLUMNS], layout)
    bars = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(SLOTS):
        if BUG != "no init":
            mbarrier.init(bars.index(s), count=1)
    if BUG != "no fence":
        fence_async_shared()
    row, column = gl.program_id(0) * ROWS, gl.program_id(1) * COLUMNS
    T = gl.cdiv(R, INNER)
    AHEAD: gl.constexpr = SLOTS if BUG == "too early" else SLOTS - 1
    for t in gl.static_range(AHEAD):
        fetch(a, b, row, column, t, T, bars, a_slots, b_slots, INNER, SLOTS, BUG)
    total = gl.zeros((ROWS, COLUMNS), gl.float32, layout=mma)
    for t in range(T):
        slot = t % SLOTS
        phase = (t // SLOTS) & 1
        if BUG == "phase":
            phase = phase ^ 1
        if BUG != "no wait":
            mbarrier.wait(bars.index(slot), phase)
        if BUG != "no barrier":
            barrier()
        product = warpgroup_mma(a_slots.index(slot), b_slots.index(slot), total, is_async=True)
        fetch(a, b, row, column, t + AHEAD, T, bars, a_slots, b_slots, INNER, SLOTS, BUG)
        if BUG == "no product wait":
            total = product
        elif BUG == "one outstanding":
            total = warpgroup_mma_wait(1, deps=[product])
        else:
            total = warpgroup_mma_wait(0, deps=[product])
    for s in gl.static_range(SLOTS):
        mbarrier.invalidate(bars.index(s))
    rows = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, mma))
    columns = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, mma))
    at = c_ptr + rows[:, None] * N + columns[None, :]
    gl.store(at, total.to(c_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (columns[None, :] < N))


def padded(rows, columns, dtype):
    """A random matrix whose rows begin at whole 16 bytes, as TMA has it."""
    return torch.randn(rows, triton.cdiv(columns, 8) * 8).to(dtype)[:, :columns]


def multiply(M, N, R, dtype=torch.bfloat16, **options):
    """Our product and the right one."""
    a, b = padded(M, R, dtype), padded(R, N, dtype)
    c = torch.full((M, N), torch.nan)
    layout = gl.NVMMASharedLayout.get_default_for([64, 32], getattr(gl, str(dtype)[6:]))
    descriptor = TensorDescriptor.from_tensor(a, [64, 32], layout)
    grid = (triton.cdiv(M, 64), triton.cdiv(N, 32))
    run(gemm, grid, descriptor, b, c, M, N, R, b.stride(0), ROWS=64, COLUMNS=32, INNER=32, SLOTS=3, **options)
    return c, (a.double() @ b.double()).float()


def assert_right(policies, M, N, R, **options):
    for policy in policies:
        torch.testing.assert_close(*multiply(M, N, R, policy=policy, **options))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(64, 32, 32), (64, 32, 64), (67, 45, 203), (1, 7, 129)])
def test_right_pipeline(policy, sizes):
    assert_right([policy], *sizes)


BUGS = {
    "no init": "initialised",
    "no fence": "fence",
    "no expect": "ends this wait",
    "bytes": "ends this wait",
    "no wait": None,
    "phase": None,
    "no barrier": "other warps may wait",
    "too early": "in flight",
    "no product wait": "in flight",
    "one outstanding": None,
}


@pytest.mark.parametrize("bug", BUGS)
def test_wrong_pipeline(bug):
    with pytest.raises((MachineError, AssertionError), match=BUGS[bug]):
        assert_right(POLICIES, 67, 45, 203, BUG=bug)
