"""The pipelined kernel of the contraction F_d(x, W, v) for Hopper GPUs.

Each step multiplies the features of 8 inputs and 8 splines, a tile ``[ROWS, 64]`` in shared memory, by a tile of W
``[64, COLUMNS]``. After the steps for the splines, each step multiplies the base function of 64 inputs by a tile of the
base weights. The operations of a step are:

1. Start the matrix product.
2. Wait for the matrix product of the previous step, which has been running.
3. Compute the features of the next step while the product of the current step runs.
4. Start the copies of a later step into the slots of shared memory that the previous product has read.
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

from ..config import Config
from ..kernels.spline import load_grid, scaled
from ..kernels.tiles import tile_of
from ..launch import UNSPECIALIZED, Launch
from ..problem import Problem
from .pipeline import (
    await_tile,
    barrier,
    descriptor,
    end_barriers,
    expect,
    fetch,
    slot_count,
    start_barriers,
    store,
)
from .words import SPLINES, load_inputs, store_base, store_words

DEPTH = gl.constexpr(64)  # number of features in a step


@gluon.jit
def expect_step(inputs, base_inputs, w, ready, step, spline_steps, steps, BASED: gl.constexpr, SLOTS: gl.constexpr):
    """Announce the copies that :func:`fetch_step` will start for a step to the barriers of the slots."""
    expect(ready[0], step, w, step < steps, SLOTS)  # tiles of W and of the base weights have the same size
    if step < spline_steps:
        for n in gl.static_range(len(inputs)):
            expect(ready[1 + n], step, inputs[n], True, SLOTS)
    elif BASED and step < steps:
        for n in gl.static_range(len(inputs)):
            expect(ready[1 + n], step, base_inputs[n], True, SLOTS)


@gluon.jit
def fetch_step(
    inputs, base_inputs, w, base_w, x_tiles, w_tiles, ready, step, spline_steps, steps, row, column,
    BASED: gl.constexpr, WORDS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Start the copies of x, v and W for a step, unless the step is beyond the last one.

    The copies of x start first, because x is needed before W.

    ``inputs``, ``base_inputs`` and ``x_tiles`` are tuples, with one element for x and, if v is used, one for v.
    """
    if step < spline_steps:
        i = step // WORDS * SPLINES
        for n in gl.static_range(len(inputs)):
            fetch(inputs[n], [row, i], x_tiles[n], ready[1 + n], step, True, SLOTS)
        fetch(w, [i, step % WORDS * SPLINES, column], w_tiles, ready[0], step, True, SLOTS)
    elif BASED and step < steps:
        i = (step - spline_steps) * DEPTH
        for n in gl.static_range(len(inputs)):
            fetch(base_inputs[n], [row, i], x_tiles[n], ready[1 + n], step, True, SLOTS)
        fetch(base_w, [i, column], w_tiles, ready[0], step, True, SLOTS)


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def contract_out_kernel(
    x,  # descriptor of x [N, I] in blocks [ROWS, 8]
    base_x,  # descriptor of x [N, I] in blocks [ROWS, 64]
    v,  # descriptor of v [N, I] in blocks [ROWS, 8]; if v is None, the descriptor of x
    base_v,  # descriptor of v [N, I] in blocks [ROWS, 64]; if v is None, the descriptor of x
    knots_ptr,  # knots [I, M]
    w,  # descriptor of the spline weights [I, K, O] in blocks [8, 8, COLUMNS]
    base_w,  # descriptor of the base weights [I, O] in blocks [64, COLUMNS]; w if BASE is "none"
    y,  # descriptor of the result [N, O] in blocks [ROWS, COLUMNS]
    N,
    I,
    O,
    K,
    M,
    ORDER: gl.constexpr,
    D: gl.constexpr,
    BASE: gl.constexpr,
    FORM: gl.constexpr,  # form of the splines, "cardinal" or "local"
    SEARCH: gl.constexpr,
    SHARED: gl.constexpr,  # whether all inputs have the same uniform knots
    MULTIPLIED: gl.constexpr,  # whether features are multiplied by v
    WORDS: gl.constexpr,  # number of words of 8 splines for each input
    ROWS: gl.constexpr,  # number of rows in a tile, 16 for each warp
    COLUMNS: gl.constexpr,
    SLOTS: gl.constexpr,
    GROUP: gl.constexpr,
):
    PRODUCT: gl.constexpr = w.dtype
    BASED: gl.constexpr = BASE != "none"
    NANS: gl.constexpr = 0 if BASED and not MULTIPLIED else 1  # the base function is NaN where x is NaN
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    # Layouts in which a thread stores 16 bytes at once to shared memory.
    narrow: gl.constexpr = gl.BlockedLayout([1, 4], [16, 2], [gl.num_warps(), 1], [1, 0])
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    lines: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    tile_row, tile_column = tile_of(gl.program_id(0), gl.cdiv(N, ROWS), gl.cdiv(O, COLUMNS), GROUP)
    row, column = tile_row * ROWS, tile_column * COLUMNS

    inputs, base_inputs = (x,), (base_x,)
    if MULTIPLIED:
        inputs, base_inputs = (x, v), (base_x, base_v)
    x_tiles = ()
    for n in gl.static_range(1 + MULTIPLIED):
        largest = base_inputs[n] if BASED else inputs[n]
        x_tiles = x_tiles + (gl.allocate_shared_memory(largest.dtype, [SLOTS] + largest.block_shape, largest.layout),)
    w_tiles = gl.allocate_shared_memory(
        PRODUCT, [SLOTS, DEPTH, COLUMNS], gl.NVMMASharedLayout(w.layout.swizzle_byte_width, 16)
    )
    features = gl.allocate_shared_memory(PRODUCT, [2, ROWS, DEPTH], lines)
    ready = (start_barriers(SLOTS), start_barriers(SLOTS)) + ((start_barriers(SLOTS),) if MULTIPLIED else ())
    spline_steps = gl.cdiv(I, SPLINES) * WORDS
    steps = spline_steps + (gl.cdiv(I, DEPTH) if BASED else 0)
    fence_async_shared()
    barrier()
    for step in gl.static_range(SLOTS - 1):
        expect_step(inputs, base_inputs, w, ready, step, spline_steps, steps, BASED, SLOTS)
    barrier()
    for step in gl.static_range(SLOTS - 1):
        fetch_step(
            inputs, base_inputs, w, base_w, x_tiles, w_tiles, ready, step, spline_steps, steps, row, column,
            BASED, WORDS, SLOTS,
        )  # fmt: skip

    # All sums are scaled by unit^d at the end, so the values of the base function are divided by unit^d first.
    grid = load_grid(knots_ptr, 0, I, M, True)
    factor = scaled(1.0, 1.0 / grid[1], D)
    i = gl.arange(0, SPLINES, layout=gl.SliceLayout(0, narrow))
    made = load_inputs(x_tiles, ready, 0, inputs, narrow, SLOTS)
    store_words(
        made, i, 0, features.index(0), knots_ptr, grid, I, M, ORDER, D, FORM, SEARCH, SHARED, WORDS, NANS,
    )  # fmt: skip
    sums = gl.zeros((ROWS, COLUMNS), gl.float32, total)
    fence_async_shared()
    barrier()
    for step in range(steps):
        await_tile(ready[0], step, SLOTS)
        sums = warpgroup_mma(features.index(step % 2), w_tiles.index(step % SLOTS), sums, is_async=True)
        sums = warpgroup_mma_wait(1, deps=[sums])
        turn = step + 1
        tile = features.index(turn % 2)
        if turn < spline_steps:
            next_made = load_inputs(x_tiles, ready, turn, inputs, narrow, SLOTS)
            # After the barrier, all warps have finished the product of the previous step.
            barrier()
            expect_step(inputs, base_inputs, w, ready, step + SLOTS - 1, spline_steps, steps, BASED, SLOTS)
            store_words(
                next_made, i + turn // WORDS * SPLINES, turn % WORDS, tile, knots_ptr, grid, I, M,
                ORDER, D, FORM, SEARCH, SHARED, WORDS, NANS,
            )  # fmt: skip
        elif BASED and turn < steps:
            base_made = load_inputs(x_tiles, ready, turn, base_inputs, wide, SLOTS)
            barrier()
            expect_step(inputs, base_inputs, w, ready, step + SLOTS - 1, spline_steps, steps, BASED, SLOTS)
            store_base(base_made, tile, factor, BASE, D)
        fence_async_shared()
        barrier()  # after the barrier, the features of the next step are complete
        fetch_step(
            inputs, base_inputs, w, base_w, x_tiles, w_tiles, ready, step + SLOTS - 1, spline_steps, steps, row,
            column, BASED, WORDS, SLOTS,
        )  # fmt: skip
    sums = warpgroup_mma_wait(0, deps=[sums])
    end_barriers(ready, SLOTS)
    store(y, [row, column], scaled(sums, grid[1], D))


def launch_out(p: Problem, config: Config, y: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction F into ``y [N, O]``."""
    w, base_w = p.weights()
    w = descriptor(w.transpose(0, 1), [SPLINES.value, SPLINES.value, config.columns])
    based = p.base != "none"
    base_w = descriptor(base_w, [DEPTH.value, config.columns]) if based else w
    block, base_block = [config.rows, SPLINES.value], [config.rows, DEPTH.value]
    x, base_x = descriptor(p.x, block), descriptor(p.x, base_block)
    v, base_v = (x, base_x) if p.v is None else (descriptor(p.v, block), descriptor(p.v, base_block))
    inputs = [base_x, base_v] if based else [x, v]
    tiles = [w, *inputs[: 1 + (p.v is not None)]]
    slots = slot_count(config.stages, tiles, 4 * config.rows * DEPTH.value, p.capability)
    if slots == 0:  # large tiles do not fit if x and v have a wider dtype than the matrix products
        return launch_out(p, config._replace(rows=64, columns=min(64, config.columns), warps=4), y)
    arguments = {
        "x": x,
        "base_x": base_x,
        "v": v,
        "base_v": base_v,
        "knots_ptr": p.knots,
        "w": w,
        "base_w": base_w,
        "y": descriptor(y, [config.rows, config.columns]),
        **p.sizes(),
    }
    constants = {
        **p.constants(config),
        "MULTIPLIED": p.v is not None,
        "WORDS": triton.cdiv(p.spline_count, SPLINES.value),
        "SLOTS": slots,
        "GROUP": 8,
    }
    programs = triton.cdiv(p.rows, config.rows) * triton.cdiv(p.outputs, config.columns)
    return Launch(contract_out_kernel, (programs,), arguments, constants, config.warps, config.stages)
