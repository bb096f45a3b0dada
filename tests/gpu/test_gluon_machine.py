"""The machine that runs Gluon kernels without a GPU: it runs a right one rightly, and no wrong one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")
import oracle
import triton
import triton.language as tl
from gluon_machine import POLICIES, Deadlock, MachineError, run
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

from fastkan_kernels.backends.triton.kernels.features import write_features_kernel
from fastkan_kernels.backends.triton.kernels.spline import cardinal, cardinal_scale

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
copy_back = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

# -- a pipeline of copies and products --------------------------------------------------------------


@gluon.jit
def fetch(a, b, row, column, t, T, bars, a_slots, b_slots, INNER: gl.constexpr, SLOTS: gl.constexpr, BUG: gl.constexpr):
    slot = t % SLOTS
    SIZE: gl.constexpr = a.block_type.nbytes + b.block_type.nbytes
    if BUG != "no expect":
        WRONG: gl.constexpr = 16 if BUG == "more bytes" else -b.block_type.nbytes if BUG == "fewer bytes" else 0
        mbarrier.expect(bars.index(slot), SIZE + WRONG, pred=t < T)
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


def padded(rows, columns, dtype, make=torch.randn):
    """A random matrix whose rows begin at whole 16 bytes, as TMA has it."""
    return make(rows, triton.cdiv(columns, 8) * 8).to(dtype)[:, :columns]


def described(matrix, *block):
    layout = gl.NVMMASharedLayout.get_default_for(list(block), getattr(gl, str(matrix.dtype)[6:]))
    return TensorDescriptor.from_tensor(matrix, list(block), layout)


def multiply(M, N, R, dtype=torch.bfloat16, **options):
    """A product as the kernel has it and the right one."""
    a, b = padded(M, R, dtype), padded(R, N, dtype)
    c = torch.full((M, N), torch.nan)
    grid = (triton.cdiv(M, 64), triton.cdiv(N, 32))
    run(gemm, grid, described(a, 64, 32), b, c, M, N, R, b.stride(0), 64, 32, INNER=32, SLOTS=3, **options)
    return c, (a.double() @ b.double()).float()


def assert_right(made, *sizes, policies=POLICIES, **options):
    for policy in policies:
        torch.testing.assert_close(*made(*sizes, policy=policy, **options))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(64, 32, 32), (64, 32, 64), (67, 45, 203), (1, 7, 129)])
def test_right_pipeline(policy, sizes):
    assert_right(multiply, *sizes, policies=[policy])
    assert_right(multiply, *sizes, dtype=torch.float16, policies=[policy])


@pytest.mark.parametrize(
    ("bug", "told"),
    {
        "no init": "isn't initialised",
        "no fence": "no fence has followed",
        "no expect": "nothing in flight ends this wait",
        "more bytes": "nothing in flight ends this wait",
        "fewer bytes": "copy in flight writes",
        "no wait": "copy in flight writes",
        "phase": "copy in flight writes",
        "no barrier": "other warps may wait",
        "too early": "in flight reads",
        "no product wait": "in flight reads",
        "one outstanding": "in flight reads",
    }.items(),
)
def test_wrong_pipeline(bug, told):
    with pytest.raises(MachineError, match=told):
        assert_right(multiply, 67, 45, 203, policies=["late"], BUG=bug)


def test_a_slot_filled_too_early_gives_wrong_numbers():
    """Where nothing is checked, the numbers still tell."""
    for policy in POLICIES[1:]:
        with pytest.raises(AssertionError, match="not close"):
            assert_right(multiply, 64, 32, 192, policies=[policy], BUG="too early", check=False)


def test_a_wrong_parity_passes_at_once_or_never():
    with pytest.raises(Deadlock):
        assert_right(multiply, 64, 32, 192, policies=["eager"], BUG="phase")


def test_one_barrier_too_few_shows_in_no_number():
    """All warps are one: without the check nothing is wrong."""
    assert_right(multiply, 67, 45, 203, BUG="no barrier", check=False)


def test_tf32_is_summed_along_rows():
    with pytest.raises(MachineError, match="contiguous along"):
        multiply(64, 32, 32, dtype=torch.float32)


# -- a left operand made in registers ---------------------------------------------------------------


@gluon.jit
def spline_product(
    x,  # descriptor [N, I]
    g,  # descriptor [N, O]
    out_ptr,  # [I, O]
    I,
    O,
    T,
    INNER: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    BUG: gl.constexpr = None,
):
    total: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, total, 2)
    x_tiles = gl.allocate_shared_memory(x.dtype, [2, INNER, ROWS], x.layout)
    g_tiles = gl.allocate_shared_memory(g.dtype, [2, INNER, COLUMNS], g.layout)
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(2):
        mbarrier.init(ready.index(s), count=1)
    fence_async_shared()
    y = gl.zeros((ROWS, COLUMNS), gl.float32, layout=total)
    for t in range(T):
        slot = t % 2
        if BUG != "no barrier" or t % 2 == 0:
            barrier()
        mbarrier.expect(ready.index(slot), x.block_type.nbytes + g.block_type.nbytes)
        copy(x, [t * INNER, 0], ready.index(slot), x_tiles.index(slot))
        copy(g, [t * INNER, 0], ready.index(slot), g_tiles.index(0 if BUG == "one slot" else slot))
        if BUG != "no wait":
            mbarrier.wait(ready.index(slot), (t // 2) & 1)
        z = x_tiles.index(slot).permute((1, 0)).load(left).to(gl.float32)
        following = cardinal(z, 3, 0).to(g.dtype)
        if t > 0:
            if BUG == "no deps":
                y = warpgroup_mma_wait(0, deps=[running])  # noqa: F821
            else:
                y, _, following = warpgroup_mma_wait(0, deps=[running, a, following])  # noqa: F821
        a = following
        running = warpgroup_mma(a, g_tiles.index(slot), y, is_async=True)
        if BUG == "used early":
            y = running * 1.0
    if BUG != "never waited":
        y, _ = warpgroup_mma_wait(0, deps=[running, a])
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, total))
    o = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, total))
    edge = I + 1 if BUG == "beyond" else I
    gl.store(
        out_ptr + i[:, None] * O + o[None, :], y * cardinal_scale(3, 0), mask=(i[:, None] < edge) & (o[None, :] < O)
    )


def sum_splines(N, I, O, **options):
    """Errors in units of what a bfloat16 may have, and what they ought to be."""
    x = padded(N, I, torch.bfloat16, lambda *shape: 2.4 * torch.rand(*shape) - 1.2)
    g = padded(N, O, torch.bfloat16)
    out = torch.full((I, O), torch.nan)
    run(spline_product, (1,), described(x, 32, 64), described(g, 32, 16), out, I, O, -(-N // 32), 32, 64, 16, **options)
    psi = oracle.splines(x.double().numpy(), np.tile(np.linspace(-1, 1, 5), (I, 1)), 3)[:, 0]
    bound = 2**-8 * psi.T @ g.double().abs().numpy() + 1e-3
    return torch.from_numpy((out.numpy() - psi.T @ g.double().numpy()) / bound).round(), torch.zeros(I, O).double()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(32, 64, 16), (65, 40, 9), (200, 7, 16)])
def test_splines_in_registers(policy, sizes):
    assert_right(sum_splines, *sizes, policies=[policy])


@pytest.mark.parametrize(
    ("bug", "told"),
    {
        "no deps": "none of its wait's deps",
        "no barrier": "other warps may wait|since the last barrier",
        "one slot": "in flight reads",
        "no wait": "copy in flight writes",
        "used early": "no warpgroup_mma_wait has returned",
        "never waited": "ends with copies or products",
        "beyond": "outside of a tensor's storage",
    }.items(),
)
def test_wrong_splines_in_registers(bug, told):
    with pytest.raises(MachineError, match=told):
        assert_right(sum_splines, 200, 40, 16, policies=["late"], BUG=bug)


# -- stores to shared memory ------------------------------------------------------------------------


@gluon.jit
def through_memory(
    a_ptr,  # [64, 32]
    b_ptr,  # [32, 32]
    c,  # descriptor [64, 32]
    BUG: gl.constexpr = None,
):
    total: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 32, 16])
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 32], a_ptr.dtype.element_ty)
    gl.static_assert(c.block_shape[0] == 64)
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, total))
    columns = gl.arange(0, 32, layout=gl.SliceLayout(0, total))
    a_tile = gl.allocate_shared_memory(a_ptr.dtype.element_ty, [64, 32], layout)
    b_tile = gl.allocate_shared_memory(b_ptr.dtype.element_ty, [2, 16, 32], layout)
    c_tile = gl.allocate_shared_memory(c.dtype, [1, 64, 32], c.layout)
    a_tile.store(gl.load(a_ptr + gl.expand_dims(rows, 1) * 32 + columns[None, :]))
    half = gl.arange(0, 16, layout=gl.SliceLayout(1, total))[:, None] * 32 + columns[None, :]
    b_tile.index(0).store(gl.load(b_ptr + half))
    if BUG != "half":
        b_tile.slice(1, 1).reshape([16, 32]).store(gl.load(b_ptr + 16 * 32 + half))
    if BUG != "no fence":
        fence_async_shared()
    if BUG != "no barrier":
        barrier()
    y = gl.zeros((64, 32), gl.float32, layout=total)
    y = warpgroup_mma(a_tile, b_tile._reinterpret(b_tile.dtype, [32, 32], layout), y, is_async=BUG == "in flight")
    if BUG == "in flight":
        a_tile.store(a_tile.load(total))
    c_tile.index(0).store(y)
    fence_async_shared()
    barrier()
    copy_back(c, [0, 0], c_tile.index(0))
    if BUG == "overwritten":
        c_tile.index(0).store(y * 2.0)
    if BUG != "no store wait":
        tma.store_wait(0)


def multiply_in_memory(**options):
    a, b = torch.randn(64, 32).bfloat16(), torch.randn(32, 32).bfloat16()
    c = torch.full((60, 28), torch.nan)  # the tile is larger
    run(through_memory, (1,), a, b, described(c, 64, 32), **options)
    return c, (a.double() @ b.double()).float()[:60, :28]


def test_stores_with_fence_and_barrier():
    assert_right(multiply_in_memory)


@pytest.mark.parametrize(
    ("bug", "told"),
    {
        "no fence": "without fence and barrier",
        "no barrier": "without fence and barrier",
        "half": "nothing has written",
        "in flight": "in flight reads",
        "overwritten": "in flight reads",
        "no store wait": "ends with copies",
    }.items(),
)
def test_stores_gone_wrong(bug, told):
    for policy in POLICIES:
        with pytest.raises(MachineError, match=told):
            multiply_in_memory(policy=policy, BUG=bug)


# -- the language -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["cardinal", "local", "base"])
@pytest.mark.parametrize("derivative", [0, 1, 2])
def test_device_functions_of_the_other_kernels(form, derivative):
    knots = torch.linspace(-1, 1, 12).expand(5, -1).contiguous()
    x = 2.4 * torch.rand(33, 5) - 1.2
    K = 1 if form == "base" else 8
    psi = torch.full((33, K, 5), torch.nan)
    tiles = {"ROWS": 16, "COLUMNS": 4, "WORK": tl.float32}
    constants = {"ORDER": 3, "D": derivative, "BASE": "silu", "FORM": form, "SEARCH": 4, "MULTIPLIED": False}
    run(write_features_kernel, (3, 2), x, x, knots, psi, 33, 5, K, 12, 5, 5, **constants, **tiles)
    right = oracle.silu(x.double().numpy(), derivative)[:, None]
    if form != "base":
        unit = (knots[0, -1] - knots[0, 0]).item() / 11
        right = oracle.splines(x.double().numpy(), knots.double().numpy(), 3, derivative) * unit**derivative
    torch.testing.assert_close(psi.double(), torch.from_numpy(right), rtol=0, atol=2e-5)


@triton.jit
def arithmetic(x_ptr, i_ptr, half_ptr, mixed_ptr, ints_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x, i = tl.load(x_ptr + at), tl.load(i_ptr + at)
    half = (x * 3).to(half_ptr.dtype.element_ty) * 1.5  # a literal goes by its tensor
    tl.store(half_ptr + at, half)
    tl.store(mixed_ptr + at, tl.where(x > 0, half + i, tl.fma(x, x, 1.0)) + tl.sum(x, 0))
    tl.store(ints_ptr + at, i // 7 * 1000 + i % 7 + ((i & 3) | 16) * tl.cdiv(N, 10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_arithmetic(dtype):
    x, i = torch.randn(64), torch.randint(-100, 100, (64,), dtype=torch.int32)
    half, mixed, ints = torch.empty(64, dtype=dtype), torch.empty(64), torch.empty(64, dtype=torch.int64)
    run(arithmetic, (1,), x, i, half, mixed, ints, 64)
    right = (x * 3).to(dtype) * 1.5
    assert torch.equal(half, right)
    whole = torch.where(x > 0, right + i, x * x + 1).float() + x.sum()
    torch.testing.assert_close(mixed, whole)
    quotient = torch.div(i, 7, rounding_mode="trunc")  # as the hardware rounds it
    assert torch.equal(ints, (quotient * 1000 + i - 7 * quotient + ((i & 3) | 16) * 7).long())


@triton.jit
def copy_numbers(from_ptr, to_ptr, offset, N: tl.constexpr, MASKED: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(to_ptr + at, tl.load(from_ptr + at + offset, mask=(at < 3) | (not MASKED)))


def test_global_memory_has_bounds():
    numbers, out = torch.arange(8.0)[2:], torch.zeros(4)
    run(copy_numbers, (1,), numbers, out, 1, N=4, MASKED=True)
    assert out[:3].tolist() == [3, 4, 5]
    assert out[3].isnan()
    for offset in (3, -3, 2**30):
        with pytest.raises(MachineError, match="outside of a tensor's storage"):
            run(copy_numbers, (1,), numbers, out, offset, N=4, MASKED=False)
