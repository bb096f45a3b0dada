"""The pipelined kernel of the contraction H_d(x, W, g) for Hopper GPUs.

Each step multiplies a tile of g ``[ROWS, 64]`` by a tile of W ``[64, 8 COLUMNS]``, whose columns are sorted by spline b
and, for each of 8 splines, by input i. Each thread therefore holds the sums over o for all splines of its inputs, and
multiplies the sums for the k + 1 active splines by the features. A program computes several tiles one after another, so
that the copies for the next tile can start before the features of the current tile are computed.
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .. import hardware
from ..config import Config
from ..kernels.spline import base_function, load_grid, scaled
from ..kernels.tiles import tile_of
from ..launch import UNSPECIALIZED, Launch
from ..problem import Problem
from .pipeline import await_tile, barrier, descriptor, end_barriers, expect_all, fetch, slot_count, start_barriers
from .words import SPLINES, active


@gluon.jit
def shifted(values, bit, SHIFT: gl.constexpr, COUNT: gl.constexpr):
    """Return the first COUNT values or, where ``bit`` is not 0, COUNT values beginning with number SHIFT."""
    chosen = ()
    for n in gl.static_range(COUNT):
        chosen = chosen + (gl.where(bit != 0, values[n + SHIFT], values[n]),)
    return chosen


@gluon.jit
def contribution(
    sums, x, word, knots_ptr, i, grid, I, M,
    ORDER: gl.constexpr, D: gl.constexpr, FORM: gl.constexpr, SEARCH: gl.constexpr, SHARED: gl.constexpr,
    WORDS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Return what the splines of a word contribute to a tile of H: the sum over the splines of value times ``sums``.

    Args:
        sums: sums over o for the 8 splines of a word ``[ROWS, 8 COLUMNS]``, in columns that are sorted by spline.
        x: tile of x ``[ROWS, COLUMNS]``.
        word: index of the word.
        i: inputs of the columns of x.
    """
    ROWS: gl.constexpr = x.shape[0]
    COLUMNS: gl.constexpr = x.shape[1]
    j, values = active(x, knots_ptr, i, grid, I, M, ORDER, D, FORM, SEARCH, SHARED, WORDS)
    by_spline = sums.reshape((ROWS, 2, 2, 2, COLUMNS)).permute((0, 4, 1, 2, 3))
    a, b = gl.split(by_spline)
    ac, bd = gl.split(a), gl.split(b)
    zero = gl.full((ROWS, COLUMNS), 0.0, gl.float32, LAYOUT)
    places = (zero,) * ORDER
    for n in gl.static_range(8):
        pair = gl.split((ac if n % 2 == 0 else bd)[n // 2 % 2])
        places = places + (gl.convert_layout(pair[n // 4], LAYOUT),)
    places = places + (zero,) * 16
    place = j - SPLINES * word
    place = gl.where((place >= 0) & (place < SPLINES + ORDER), place, SPLINES + ORDER)
    places = shifted(places, place & 8, 8, ORDER + 8)
    places = shifted(places, place & 4, 4, ORDER + 4)
    places = shifted(places, place & 2, 2, ORDER + 2)
    places = shifted(places, place & 1, 1, ORDER + 1)
    total = places[0] * values[0]
    for r in gl.static_range(1, ORDER + 1):
        total += places[r] * values[r]
    return scaled(total, grid[1], D)


@gluon.jit
def fetch_step(
    sources, slots, ready, turn, turns, depth_steps, program, programs, down, across,
    WORDS: gl.constexpr, GROUP: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Start the copies of g and W for a step, unless the step is beyond the last one.

    ``turn`` is the index of the step among all steps of the program. ``sources`` is a tuple of the descriptors of g, of
    W and, if there is a base function, of the base weights.
    """
    if turn < turns:
        visit, o = turn // depth_steps, turn % depth_steps * sources[0].block_shape[1]
        tile_row, tile_column = tile_of(program + visit // WORDS * programs, down, across, GROUP)
        i = tile_column * sources[1].block_shape[1]
        fetch(sources[0], [tile_row * sources[0].block_shape[0], o], slots[0], ready[0], turn, True, SLOTS)
        fetch(sources[1], [visit % WORDS * SPLINES, i, o], slots[1], ready[1], turn, True, SLOTS)
        if len(sources) == 3:
            fetch(sources[2], [i, o], slots[2], ready[2], turn, True, SLOTS)


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def contract_in_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    knots_ptr,  # knots [I, M]
    w,  # descriptor of the spline weights [K, I, O] in blocks [8, COLUMNS, 64]
    base_w,  # descriptor of the base weights [I, O] in blocks [COLUMNS, 64]; w if BASE is "none"
    g,  # descriptor of the upstream gradient [N, O] in blocks [ROWS, 64]
    h_ptr,  # result [N, I]
    N,
    I,
    O,
    K,
    M,
    stride_x,
    tiles,  # number of tiles of the result
    programs,  # number of programs
    ORDER: gl.constexpr,
    D: gl.constexpr,
    BASE: gl.constexpr,
    FORM: gl.constexpr,  # form of the splines, "cardinal" or "local"
    SEARCH: gl.constexpr,
    SHARED: gl.constexpr,  # whether all inputs have the same uniform knots
    WORDS: gl.constexpr,  # number of words of 8 splines for each input
    ROWS: gl.constexpr,  # number of rows in a tile, 16 for each warp
    COLUMNS: gl.constexpr,  # number of inputs in a tile
    SLOTS: gl.constexpr,
    GROUP: gl.constexpr,
):
    PRODUCT: gl.constexpr = w.dtype
    BASED: gl.constexpr = BASE != "none"
    DEPTH: gl.constexpr = w.block_shape[2]
    lines: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, SPLINES * COLUMNS, 16])
    held: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    down, across = gl.cdiv(N, ROWS), gl.cdiv(I, COLUMNS)
    program = gl.program_id(0)

    sources = (g, w, base_w) if BASED else (g, w)
    slots = (
        gl.allocate_shared_memory(PRODUCT, [SLOTS, ROWS, DEPTH], lines),
        gl.allocate_shared_memory(PRODUCT, [SLOTS, SPLINES * COLUMNS, DEPTH], lines),
    )
    ready = (start_barriers(SLOTS), start_barriers(SLOTS))
    if BASED:
        slots = slots + (gl.allocate_shared_memory(PRODUCT, [SLOTS, COLUMNS, DEPTH], lines),)
        ready = ready + (start_barriers(SLOTS),)
    fence_async_shared()
    barrier()
    depth_steps = gl.cdiv(O, DEPTH)
    visits = gl.cdiv(tiles - program, programs) * WORDS
    turns = visits * depth_steps
    for turn in gl.static_range(SLOTS - 1):
        expect_all(sources, ready, turn, turns, SLOTS)
    barrier()
    for turn in gl.static_range(SLOTS - 1):
        fetch_step(
            sources, slots, ready, turn, turns, depth_steps, program, programs, down, across, WORDS, GROUP, SLOTS
        )

    grid = load_grid(knots_ptr, 0, I, M, True)
    h = gl.zeros((ROWS, COLUMNS), gl.float32, held)
    for visit in range(visits):  # an iteration computes the contribution of one word of splines to one tile
        word = visit % WORDS
        tile_row, tile_column = tile_of(program + visit // WORDS * programs, down, across, GROUP)
        rows = tile_row * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, held))
        i = tile_column * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, held))
        inside = (rows[:, None] < N) & (i[None, :] < I)
        x = gl.load(x_ptr + rows[:, None].to(gl.int64) * stride_x + i[None, :], mask=inside, other=0.0).to(gl.float32)
        sums = gl.zeros((ROWS, SPLINES * COLUMNS), gl.float32, total)
        base_sums = gl.zeros((ROWS, COLUMNS), gl.float32, held)
        for step in range(visit * depth_steps, (visit + 1) * depth_steps):
            for s in gl.static_range(len(sources)):
                await_tile(ready[s], step, SLOTS)
            left = slots[0].index(step % SLOTS)
            if BASED:
                base_right = slots[2].index(step % SLOTS).permute((1, 0))
                base_sums = warpgroup_mma(left, base_right, base_sums, is_async=True)
            sums = warpgroup_mma(left, slots[1].index(step % SLOTS).permute((1, 0)), sums, is_async=True)
            # The products of this step may still run, and the products of the previous step have finished.
            sums, base_sums = warpgroup_mma_wait(1 + BASED, deps=[sums, base_sums])
            barrier()  # after the barrier, all warps have finished the products of the previous step
            following = step + SLOTS - 1
            expect_all(sources, ready, following, turns, SLOTS)
            barrier()
            fetch_step(
                sources, slots, ready, following, turns, depth_steps, program, programs, down, across,
                WORDS, GROUP, SLOTS,
            )  # fmt: skip
        sums, base_sums = warpgroup_mma_wait(0, deps=[sums, base_sums])
        part = contribution(sums, x, word, knots_ptr, i, grid, I, M, ORDER, D, FORM, SEARCH, SHARED, WORDS, held)
        if BASED:  # every iteration also multiplies the base weights, because a branch would make the products wait
            part += gl.where(word == 0, base_function(x, BASE, D) * base_sums, 0.0)
        h = gl.where(word == 0, part, h + part)
        if word == WORDS - 1:
            to = h_ptr + rows[:, None].to(gl.int64) * I + i[None, :]
            gl.store(to, gl.where(x == x, h, x).to(h_ptr.dtype.element_ty), mask=inside)
    end_barriers(ready, SLOTS)


DEPTH = 64  # number of outputs in a step


def launch_in(p: Problem, config: Config, h: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction H into ``h [N, I]``."""
    assert p.g is not None
    w, base_w = p.weights()
    w = descriptor(w, [SPLINES.value, config.columns, DEPTH])
    base_w = w if p.base == "none" else descriptor(base_w, [config.columns, DEPTH])
    g = descriptor(p.g, [config.rows, DEPTH])
    tiles = triton.cdiv(p.rows, config.rows) * triton.cdiv(p.inputs, config.columns)
    programs = min(tiles, hardware.processors(p.x.device))
    arguments = {
        **p.x_and_knots(),
        "w": w,
        "base_w": base_w,
        "g": g,
        "h_ptr": h,
        **p.sizes(),
        "tiles": tiles,
        "programs": programs,
    }
    constants = {
        **p.constants(config),
        "WORDS": triton.cdiv(p.spline_count, SPLINES.value),
        "SLOTS": slot_count(config.stages, [g, w] if p.base == "none" else [g, w, base_w], 0, p.capability),
        "GROUP": 8,
    }
    return Launch(contract_in_kernel, (programs,), arguments, constants, config.warps, config.stages)
