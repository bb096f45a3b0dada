"""The kernels of the banded implementation of F and H, for large grids and two-byte dtypes.

At most four splines of an input are active at a value of x if the spline order is at most 3. A first kernel writes the
index of the first active spline and the values of four splines for each row n and input i. The kernels of F and H
multiply only the weights of the four splines. A program copies the weights of one input and 32 outputs for all splines
to shared memory. From shared memory, eight rows at a time read the weights of their four splines. The reads are
ldmatrix instructions, in which each lane supplies the address of eight consecutive weights. One tensor-core product
(m16n8k16) multiplies the weights of four splines for each of four rows. Seven of eight multiplications in the product
are by zero or their results are not used. The products nevertheless take less time than the reads from shared memory,
which limit the speed.

Shared memory holds the weights in lines of 128 bytes. A line has the weights of four consecutive splines for an even
and an odd block of eight outputs, in the order

    [spline // 4, block // 2, block % 2, spline % 4, output % 8]

The weights of four consecutive splines therefore lie in different banks of shared memory. An ldmatrix instruction loads
the weights of several rows at the same time. Rows with an even index read one of two adjacent blocks of outputs while
rows with an odd index read the other block, so that the rows use different banks.

A warp handles its rows in groups of eight. All tensors except the addresses of copies have the shape ``[ROWS, 4]``, and
lane ``4 g + t`` of a warp holds column t of row g in each group. The tensor-core instructions distribute their operands
differently, so the value that a lane holds in column t of row g may belong to another row of x. Comments in the kernels
give the row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from ..config import Config, shared_limit
from ..launch import DTYPES, UNSPECIALIZED, Launch
from ..problem import Problem
from .spline import (
    base_function,
    cardinal,
    cardinal_coordinate,
    cardinal_scale,
    divide,
    half_width,
    inv_spacing_of,
    load_grid,
    local,
    middle,
    pick,
    scaled,
)
from .tiles import load_tile, store_tile

barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # the function waits for all warps of a program

TAPS = 4  # number of splines that are multiplied for each row and input
TILE = gl.constexpr(32)  # number of outputs in a tile of weights
QUAD_BYTES = gl.constexpr(256)  # bytes that a tile of weights takes for four splines
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}  # PTX names of the dtypes of weights


class Located(NamedTuple):
    """The results of :func:`locate_kernel`, as arguments of the kernels of F and H."""

    starts_ptr: Tensor
    values_ptr: Tensor
    PADDED: int  # number of rows, rounded up to a multiple of the rows of a program


@triton.jit(do_not_specialize=UNSPECIALIZED)
def locate_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    starts_ptr,  # index [I, PADDED] of the first of four consecutive splines that include all active splines
    # The d-th derivatives of the four splines. If PAIRED, the derivatives are multiplied by v and by the d-th power of
    # the first input's knot spacing, and stored as pairs [I, 2, PADDED] of the dtype PRODUCT. If not PAIRED, the tensor
    # is float32 [I, 5, PADDED], and the fifth number of each input and row is the product of ``base_ptr`` and the base
    # function.
    values_ptr,
    # If PAIRED, the memory [N, I] for the base function, multiplied by v and rounded to PRODUCT. If not PAIRED, a
    # float32 factor [N, I] of the base function. If BASE is "none", the pointer is x_ptr.
    base_ptr,
    N,
    I,
    K,
    M,
    PADDED,
    stride_x,
    stride_v,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"
    SEARCH: tl.constexpr,
    MULTIPLIED: tl.constexpr,  # whether the values are multiplied by v
    PAIRED: tl.constexpr,
    PRODUCT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = load_tile(x_ptr, rows, i, N, I, stride_x).to(tl.float32)
    factor = tl.where(x == x, 1.0, x)
    if MULTIPLIED:
        factor = factor * load_tile(v_ptr, rows, i, N, I, stride_v).to(tl.float32)
    if BASE != "none":
        base = base_function(x, BASE, D)
        if PAIRED:
            store_tile(base_ptr, rows, i, N, I, I, base * factor if MULTIPLIED else base)
    if D > 0 and PAIRED:
        unit = inv_spacing_of(tl.load(knots_ptr), tl.load(knots_ptr + M - 1), M)
    if FORM == "cardinal":
        first, inv_spacing = load_grid(knots_ptr, i[None, :], I, M, False)
        z = cardinal_coordinate(x, first, inv_spacing, ORDER)
        factor = factor * cardinal_scale(ORDER, D)
        if D > 0:
            if PAIRED:
                inv_spacing = divide(inv_spacing, 0.0 * inv_spacing + unit)
            factor = scaled(factor, inv_spacing, D)
        # A rounding error near a knot may give the neighbouring cell. The only active spline that is missed in that
        # case is nearly 0 at x.
        cell = (z + 1.0) * half_width(ORDER)
        cell = tl.where(cell > 0.0, tl.where(cell < M, cell, M), 0.0)
        start = tl.floor(cell).to(tl.int32) - ORDER
    else:
        j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
        start = j - ORDER
        if D > 0 and PAIRED:
            factor = scaled(factor, 1.0 / unit, D)
    start = tl.minimum(tl.maximum(start, 0), K - 4)

    values = ()
    for q in tl.static_range(4):
        if FORM == "cardinal":
            value = cardinal(z - middle(start + q, ORDER, tl.float32), ORDER, D)
        else:
            value = pick(active, j, start + q, ORDER)
        values = values + (value * factor,)
    inside = (rows[:, None] < PADDED) & (i[None, :] < I)
    input = i[None, :].to(tl.int64) * PADDED
    tl.store(starts_ptr + input + rows[:, None], start.to(tl.int16), mask=inside)
    if PAIRED:
        for pair in tl.static_range(2):
            low = values[2 * pair].to(PRODUCT).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
            high = values[2 * pair + 1].to(PRODUCT).to(tl.int16, bitcast=True).to(tl.int32) << 16
            tl.store(values_ptr + 2 * input + pair * PADDED + rows[:, None], low | high, mask=inside)
    else:
        for q in tl.static_range(4):
            tl.store(values_ptr + 5 * input + q * PADDED + rows[:, None], values[q], mask=inside)
        if BASE != "none":
            base = base * load_tile(base_ptr, rows, i, N, I, I)
            tl.store(values_ptr + 5 * input + 4 * PADDED + rows[:, None], base, mask=inside)


@triton.constexpr_function
def lane_layout(groups, warps):
    """Return the layout ``[ROWS, 4]``, in which lane 4 g + t of a warp holds rows ``g * groups``, ... in column t."""
    registers = [[1 << k, 0] for k in range(groups.bit_length() - 1)]
    lanes = [[0, 1], [0, 2], [groups, 0], [2 * groups, 0], [4 * groups, 0]]
    warp = [[8 * groups << k, 0] for k in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, lanes, warp, [], [8 * groups * warps, 4])


@triton.constexpr_function
def product_assembly(contraction, dtype):
    """Return the instructions that multiply the weights of eight rows and 32 outputs.

    The operands are the eight results, the addresses of the weights of four rows of x, the addresses of the weights of
    the other four rows, the four words of the other factors, and the eight sums to which the products are added. For F,
    the outputs are the 16 rows of a product, the splines are summed over, and each four rows of x have two factors. For
    H, the splines of four rows of x are the 16 rows of a product, the outputs are summed over, and each 16 outputs have
    two factors.
    """
    trans = ".trans" if contraction == "F" else ""
    weights = "{%gathered0, %gathered1, %gathered2, %gathered3}"
    lines, begun = [], set()
    for half in range(2):
        for block in range(2):
            first, other = (4 * block, 10 + 2 * half) if contraction == "F" else (4 * half, 10 + 2 * block)
            sums = first if first in begun else 14 + first
            begun.add(first)
            result, total = (", ".join(f"${k}" for k in range(at, at + 4)) for at in (first, sums))
            lines += [
                f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {weights}, [${8 + half} + {128 * block}];",
                f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
                f"{{{result}}}, {weights}, {{${other}, ${other + 1}}}, {{{total}}};",
            ]
    return "\n".join(["{", ".reg .b32 %gathered<4>;", *lines, "}"])


@gluon.jit
def add_products(sums, address, other_address, factors, CONTRACTION: gl.constexpr, PRODUCT: gl.constexpr):
    """Return ``sums`` plus the products of weights in shared memory and ``factors`` (see :func:`product_assembly`)."""
    return gl.inline_asm_elementwise(
        product_assembly(CONTRACTION, PRODUCT),
        "=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,r,r,r,r,r,r,f,f,f,f,f,f,f,f",
        [
            address, other_address, factors[0], factors[1], factors[2], factors[3],
            sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7],
        ],
        (gl.float32,) * 8, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def shared_address(zeros):
    """Return the address of a program's shared memory, added to ``zeros``."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 %start; mov.u32 %start, global_smem; add.u32 $0, %start, $1; }", "=r,r", [zeros], gl.int32,
        is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def allocate_slots(COUNT: gl.constexpr, BYTES: gl.constexpr, LAYOUT: gl.constexpr):
    """Allocate the shared memory of all slots, which starts at :func:`shared_address`.

    The kernels have no other tensor in shared memory, so the slots start at the beginning of the program's shared
    memory. Zeros are stored in the first line, because Triton defines the address of shared memory only in kernels
    that access it.
    """
    slots = gl.allocate_shared_memory(gl.int32, [COUNT * BYTES // 128, 32], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    slots.index(0).store(gl.full((32,), 0, gl.int32, LAYOUT))
    barrier()
    return slots


@gluon.jit
def copy_weights(w_ptr, slot, b, o, I, O, K, WIDTH: gl.constexpr, QUADS: gl.constexpr, THREADS: gl.constexpr):
    """Start to copy the weights of one input to shared memory, in ``WIDTH`` tiles of 32 outputs.

    A tile consists of pieces of 16 bytes, and thread n copies the pieces n, n + THREADS, and so on. ``b`` and ``o`` are
    the spline and the first output of piece n, and ``slot`` is the address of piece n in shared memory. Pieces of
    splines that do not exist are not copied. The weights of outputs that do not exist are filled with zeros, because a
    product may multiply them by zeros, and the result must not be NaN.
    """
    for tile in gl.static_range(WIDTH):
        for done in gl.static_range(0, QUADS * 16, THREADS):
            at = b + done // 4
            gl.inline_asm_elementwise(
                "{ .reg .pred wanted; setp.ne.b32 wanted, $3, 0; "
                "@wanted cp.async.cg.shared.global [$1], [$2], 16, $4; mov.b32 $0, $3; }",
                "=r,r,l,r,r",
                [
                    slot + (tile * QUADS * QUAD_BYTES + done * 16),
                    w_ptr + at * (I * O) + (o + tile * TILE),
                    (at < K).to(gl.int32),
                    gl.where(o + tile * TILE < O, 16, 0),
                ],
                gl.int32, is_pure=False, pack=1,
            )  # fmt: skip
    async_copy.commit_group()


@gluon.jit
def address_of(start, t):
    """Return the byte offset of the weights of spline ``start + t`` in a tile."""
    b = start.to(gl.int32) + t
    return ((b >> 2) << 8) | ((b & 3) << 4)


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def banded_out_kernel(
    starts_ptr,  # the results of locate_kernel
    values_ptr,
    w_ptr,  # spline weights [K, I, O], contiguous
    knots_ptr,  # knots [I, M]
    base_ptr,  # contribution of the base function [N, O], float32; y_ptr if BASED is False
    y_ptr,  # result [N, O]
    N,
    I,
    O,
    K,
    M,
    PADDED,
    D: gl.constexpr,
    BASED: gl.constexpr,
    PRODUCT: gl.constexpr,  # PTX name of the dtype of the weights
    ROWS: gl.constexpr,
    QUADS: gl.constexpr,  # a quarter of the number of splines, rounded up
    SLOTS: gl.constexpr,
):
    GROUPS: gl.constexpr = ROWS // (8 * gl.num_warps())
    THREADS: gl.constexpr = 32 * gl.num_warps()
    BYTES: gl.constexpr = QUADS * QUAD_BYTES
    threads: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    lanes: gl.constexpr = lane_layout(GROUPS, gl.num_warps())
    slots = allocate_slots(SLOTS, BYTES, threads)

    row, column = gl.program_id(0) * ROWS, gl.program_id(1) * TILE
    piece = gl.arange(0, THREADS, threads)
    slot = shared_address(piece * 16)
    b, o = piece // 16 * 4 + piece % 4, column + piece // 4 % 4 * 8
    for i in gl.static_range(SLOTS - 1):
        copy_weights(w_ptr + i * O, slot + i * BYTES, b, o, I, O, gl.where(i < I, K, 0), 1, QUADS, THREADS)

    n = gl.arange(0, ROWS, gl.SliceLayout(1, lanes))[:, None]
    t = gl.arange(0, 4, gl.SliceLayout(0, lanes))[None, :]
    g = n // GROUPS % 8
    # A lane supplies the addresses of the weights of row g & 5 for the first product and of row (g & 5) + 2 for the
    # second product, although the lane's own values belong to row g.
    starts_ptr += row + n // (4 * GROUPS) * (4 * GROUPS) + n % (2 * GROUPS)
    tile = shared_address((g // 2 ^ g) % 2 * 64 + 0 * t)
    # The second factor of a product has a column for each row of x. In each column, all numbers are 0 except those that
    # belong to the splines of the column's own row of x.
    own = gl.where(t // 2 == g % 2, -1, 0)
    masks = (
        gl.where(g // 2 == 0, own, 0), gl.where(g // 2 == 2, own, 0),
        gl.where(g // 2 == 1, own, 0), gl.where(g // 2 == 3, own, 0),
    )  # fmt: skip
    pairs = values_ptr + t % 2 * PADDED + row + n

    sums = ()
    for _ in gl.static_range(8):
        sums = sums + (gl.zeros((ROWS, 4), gl.float32, lanes),)
    start, other_start, pair = gl.load(starts_ptr), gl.load(starts_ptr + 2 * GROUPS), gl.load(pairs)
    for i in range(I):
        at, other_at, value = address_of(start, t), address_of(other_start, t), pair
        following = gl.minimum(i + 1, I - 1)
        start = gl.load(starts_ptr + following * PADDED)
        other_start = gl.load(starts_ptr + following * PADDED + 2 * GROUPS)
        pair = gl.load(pairs + 2 * following * PADDED)
        async_copy.wait_group(SLOTS - 2)
        # after the barrier, the copies of all threads have arrived, and all warps have read the previous slot
        barrier()
        ahead = i + SLOTS - 1
        to, splines = slot + ahead % SLOTS * BYTES, gl.where(ahead < I, K, 0)
        copy_weights(w_ptr + ahead * O, to, b, o, I, O, splines, 1, QUADS, THREADS)
        here = tile + i % SLOTS * BYTES
        factors = (value & masks[0], value & masks[1], value & masks[2], value & masks[3])
        sums = add_products(sums, here + at, here + other_at, factors, "F", PRODUCT)
    async_copy.wait_group(0)
    slots._keep_alive()

    unit = 1.0
    if D > 0:
        unit = inv_spacing_of(gl.load(knots_ptr), gl.load(knots_ptr + M - 1), M)
    for k in gl.static_range(8):
        # Each sum of a lane belongs to row 2 t or 2 t + 1 of x, and the output of the sum depends on g.
        rows = row + n // (8 * GROUPS) * (8 * GROUPS) + (2 * t + k % 2) * GROUPS + n % GROUPS
        columns = column + k // 4 * 16 + (k // 2 % 2 ^ k % 2) * 8 + g
        inside = (rows < N) & (columns < O)
        at = rows.to(gl.int64) * O + columns
        y = scaled(sums[k], unit, D)
        if BASED:
            y += gl.load(base_ptr + at, mask=inside, other=0.0)
        gl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def banded_in_kernel(
    starts_ptr,  # the results of locate_kernel
    values_ptr,
    w_ptr,  # spline weights [K, I, O], contiguous
    g_ptr,  # upstream gradient [N, O / 2], contiguous; each word holds two elements
    h_ptr,  # result of each part of the outputs [parts, N, I]
    N,
    I,
    O,
    K,
    PADDED,
    part_inputs,  # number of inputs that a program computes
    BASED: gl.constexpr,
    PRODUCT: gl.constexpr,  # PTX name of the dtype of the weights
    ROWS: gl.constexpr,
    TILES: gl.constexpr,  # number of tiles of outputs that a program sums over
    WIDTH: gl.constexpr,  # number of tiles in a slot
    QUADS: gl.constexpr,  # a quarter of the number of splines, rounded up
    SLOTS: gl.constexpr,
):
    GROUPS: gl.constexpr = ROWS // (8 * gl.num_warps())
    THREADS: gl.constexpr = 32 * gl.num_warps()
    BYTES: gl.constexpr = WIDTH * QUADS * QUAD_BYTES  # number of bytes in a slot
    STEPS: gl.constexpr = TILES // WIDTH  # number of steps for each input
    threads: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    lanes: gl.constexpr = lane_layout(GROUPS, gl.num_warps())
    slots = allocate_slots(SLOTS, BYTES, threads)

    row, column, begin = gl.program_id(0) * ROWS, gl.program_id(2) * (TILES * TILE), gl.program_id(1) * part_inputs
    end = gl.minimum(begin + part_inputs, I)
    piece = gl.arange(0, THREADS, threads)
    slot = shared_address(piece * 16)
    b, o = piece // 16 * 4 + piece % 4, column + piece // 4 % 4 * 8
    for turn in gl.static_range(SLOTS - 1):
        ahead = begin + turn // STEPS
        of, splines = o + turn % STEPS * (WIDTH * TILE), gl.where(ahead < end, K, 0)
        copy_weights(w_ptr + ahead * O, slot + turn * BYTES, b, of, I, O, splines, WIDTH, QUADS, THREADS)

    n = gl.arange(0, ROWS, gl.SliceLayout(1, lanes))[:, None]
    t = gl.arange(0, 4, gl.SliceLayout(0, lanes))[None, :]
    g = n // GROUPS % 8
    # A lane supplies the addresses of the weights of row g % 4 for the first product and of row g % 4 + 4 for the
    # second product, although the lane's own values belong to row g.
    starts_ptr += row + n // (8 * GROUPS) * (8 * GROUPS) + n % (4 * GROUPS)
    base_address = shared_address((g // 4 ^ g) % 2 * 64 + 0 * t)
    # In each column of the second factor, the outputs are ordered like the weights of the column's row of x.
    factors = ()
    for tile in gl.static_range(TILES):
        words = ()
        for half in gl.static_range(4):
            output = column + tile * TILE + half // 2 * 16 + (half % 2 ^ g % 2) * 8 + 2 * t
            word = g_ptr + (row + n).to(gl.int64) * (O // 2) + output // 2
            words = words + (gl.load(word, mask=(row + n < N) & (output < O), other=0),)
        factors = factors + (words,)

    # One of the sums of a lane belongs to spline g % 4 of row 2 t + g // 4.
    own = n // (8 * GROUPS) * (8 * GROUPS) + (2 * t + g // 4) * GROUPS + n % GROUPS
    rows = row + own
    values_ptr += g % 4 * PADDED + rows
    inside = (rows < N) & (g % 4 == 0)
    based = (g % 4 == 0) & (gl.program_id(2) == 0)  # one lane of each row adds the base function
    h_ptr += gl.program_id(2).to(gl.int64) * N * I
    start = gl.load(starts_ptr + begin * PADDED)
    other_start = gl.load(starts_ptr + begin * PADDED + 4 * GROUPS)
    for i in range(begin, end):
        at, other_at = address_of(start, t), address_of(other_start, t)
        following = gl.minimum(i + 1, I - 1)
        start = gl.load(starts_ptr + following * PADDED)
        other_start = gl.load(starts_ptr + following * PADDED + 4 * GROUPS)
        sums = ()
        for _ in gl.static_range(8):
            sums = sums + (gl.zeros((ROWS, 4), gl.float32, lanes),)
        for stage in gl.static_range(STEPS):
            step = (i - begin) * STEPS + stage
            async_copy.wait_group(SLOTS - 2)
            # after the barrier, the copies of all threads have arrived, and all warps have read the previous slot
            barrier()
            ahead = i + (stage + SLOTS - 1) // STEPS
            to, splines = slot + (step + SLOTS - 1) % SLOTS * BYTES, gl.where(ahead < end, K, 0)
            of = o + (stage + SLOTS - 1) % STEPS * (WIDTH * TILE)
            copy_weights(w_ptr + ahead * O, to, b, of, I, O, splines, WIDTH, QUADS, THREADS)
            if stage == STEPS - 1:
                psi = gl.load(values_ptr + i * 5 * PADDED)
                if BASED:
                    base = gl.load(values_ptr + (i * 5 + 4) * PADDED, mask=based, other=0.0)
            for tile in gl.static_range(WIDTH):
                here = base_address + (step % SLOTS * BYTES + tile * QUADS * QUAD_BYTES)
                sums = add_products(sums, here + at, here + other_at, factors[stage * WIDTH + tile], "H", PRODUCT)
        h = own_sum(sums, g, t) * psi
        if BASED:
            h += base
        h += exchanged(h, 4)
        h += exchanged(h, 8)
        gl.store(h_ptr + (rows * I + i), h.to(h_ptr.dtype.element_ty), mask=inside)
    async_copy.wait_group(0)
    slots._keep_alive()


@gluon.jit
def own_sum(sums, g, t):
    """Return the one of a lane's eight sums that belongs to spline g % 4 of row 2 t + g // 4."""
    even = gl.where(t < 2, gl.where(t == 0, sums[0], sums[2]), gl.where(t == 2, sums[4], sums[6]))
    odd = gl.where(t < 2, gl.where(t == 0, sums[1], sums[3]), gl.where(t == 2, sums[5], sums[7]))
    return gl.where(g < 4, even, odd)


@gluon.jit
def exchanged(x, LANES: gl.constexpr):
    """Return the value of ``x`` in the lane whose number differs by one bit, which is ``LANES``: 4 or 8."""
    if LANES == 4:
        return gl.inline_asm_elementwise("shfl.sync.bfly.b32 $0, $1, 4, 31, -1;", "=f,f", [x], gl.float32, False, 1)
    else:
        gl.static_assert(LANES == 8)
        return gl.inline_asm_elementwise("shfl.sync.bfly.b32 $0, $1, 8, 31, -1;", "=f,f", [x], gl.float32, False, 1)


def launch_locate(p: Problem, located: Located, base: Tensor | None) -> Launch:
    """Return the kernel launch that locates all elements of x and computes the base function.

    For F, the launch writes the base function into ``base [N, I]``. For H, ``base [N, I]`` is the factor of the base
    function in the working dtype.
    """
    tile = Config("banded", 32 if p.form == "local" else 64, 32)  # larger tiles would spill registers
    arguments = {
        **p.x_and_knots(),
        **p.multiplier(),
        **p.sizes("O"),
        **located._asdict(),
        "base_ptr": p.x if base is None else base,
    }
    constants = {
        **p.constants(tile),
        "BASE": "none" if base is None else p.base_rounded("banded"),
        "MULTIPLIED": p.v is not None,
        "PAIRED": p.name == "F",
        "PRODUCT": DTYPES[p.matmul_dtype],
    }
    del constants["SHARED"]  # this kernel reads the knots of each input
    grid = (triton.cdiv(located.PADDED, tile.rows), triton.cdiv(p.inputs, tile.columns))
    return Launch(locate_kernel, grid, arguments, constants, warps=4, stages=1)


def launch_out(p: Problem, config: Config, located: Located, base: Tensor | None, y: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction F into ``y [N, O]``.

    ``base [N, O]`` is the contribution of the base function in the working dtype.
    """
    arguments = {
        **_arguments(p, located),
        "base_ptr": y if base is None else base,
        "knots_ptr": p.knots,
        "y_ptr": y,
        "M": p.knot_count,
    }
    constants = {**_constants(p, config, base is not None), "D": p.derivative}
    grid = (triton.cdiv(p.rows, config.rows), triton.cdiv(p.outputs, TILE.value))
    return Launch(banded_out_kernel, grid, arguments, constants, config.warps, stages=1)


def launch_in(p: Problem, config: Config, located: Located, h: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction H of each part of the outputs into ``h [parts, N, I]``.

    A part has ``config.inner`` outputs.
    """
    assert p.g is not None
    arguments = {
        **_arguments(p, located),
        "g_ptr": p.g.view(-1).view(torch.int32),  # a single row may have any stride
        "h_ptr": h,
        "part_inputs": config.columns,
    }
    constants = _constants(p, config, p.base != "none")
    tiles = config.inner // TILE.value
    most = shared_limit(p.capability) // (config.stages * constants["QUADS"] * QUAD_BYTES.value)
    width = next(width for width in (4, 2, 1) if width == 1 or width <= min(tiles, most))
    constants = {**constants, "TILES": tiles, "WIDTH": width}
    grid = tuple(map(triton.cdiv, (p.rows, p.inputs, p.outputs), (config.rows, config.columns, config.inner)))
    return Launch(banded_in_kernel, grid, arguments, constants, config.warps, stages=1)


def _arguments(p: Problem, located: Located) -> dict:
    return {**located._asdict(), **p.sizes("M"), "w_ptr": p.weight}


def _constants(p: Problem, config: Config, based: bool) -> dict:
    return {
        "BASED": based,
        "PRODUCT": NAMES[p.matmul_dtype],
        "ROWS": config.rows,
        "QUADS": triton.cdiv(p.spline_count, 4),
        "SLOTS": config.stages,
    }
