"""The pipelined kernel of the contraction G_d(x, g, v) for Hopper GPUs.

Each step multiplies the transposed features of 64 rows, a tile ``[64, ROWS]`` in shared memory, by a tile of g
``[64, COLUMNS]``. The columns of the first tile are 8 splines for each of ROWS / 8 inputs, or the base function of ROWS
inputs. The module :mod:`.contract_out` describes the order of the operations in a step.
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
from ..launch import UNSPECIALIZED, Launch
from ..problem import Problem
from .pipeline import (
    await_tile,
    barrier,
    descriptor,
    end_barriers,
    expect_all,
    fetch,
    slot_count,
    start_barriers,
    store,
)
from .words import SPLINES, load_inputs, store_base, store_words


@gluon.jit
def fetch_step(
    inputs, g, x_tiles, g_tiles, ready, step, steps, start, column_x, column_g, DEPTH: gl.constexpr, SLOTS: gl.constexpr
):
    """Start the copies of the rows of x, v and g for a step, unless the step is beyond the last one."""
    row = start + step * DEPTH
    for n in gl.static_range(len(inputs)):
        fetch(inputs[n], [row, column_x], x_tiles[n], ready[1 + n], step, step < steps, SLOTS)
    fetch(g, [row, column_g], g_tiles, ready[0], step, step < steps, SLOTS)


@gluon.jit
def store_features(
    made, i, word, tile, knots_ptr, grid, I, M,
    ORDER: gl.constexpr, D: gl.constexpr, BASE: gl.constexpr, FORM: gl.constexpr, SEARCH: gl.constexpr,
    SHARED: gl.constexpr, WORDS: gl.constexpr,
):  # fmt: skip
    """Compute and store the features for a tile of x; the tuple ``made`` holds the tiles of x and, if used, of v."""
    if FORM == "base":
        store_base(made, tile, 1.0, BASE, D)
    else:  # a NaN in x makes all sums of that input NaN
        store_words(made, i, word, tile, knots_ptr, grid, I, M, ORDER, D, FORM, SEARCH, SHARED, WORDS, SPLINES)


@gluon.jit
def sums_over_rows(
    inputs, g, knots_ptr, grid, start, steps, column_x, column_g, word, I, M,
    ORDER: gl.constexpr, D: gl.constexpr, BASE: gl.constexpr, FORM: gl.constexpr, SEARCH: gl.constexpr,
    SHARED: gl.constexpr, WORDS: gl.constexpr, ROWS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Return the products of the features and g, summed over some rows, for a tile of the result.

    The sums of splines are divided by the d-th power of the first input's inverse knot spacing.

    Args:
        inputs: tuple of the descriptors of x and, if v is used, of v.
        start: first row.
        steps: number of steps.
        word: index of the word of splines.
    """
    PRODUCT: gl.constexpr = g.dtype
    DEPTH: gl.constexpr = g.block_shape[0]
    COLUMNS: gl.constexpr = g.block_shape[1]
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    # In this layout, a thread stores 16 bytes at once, and a warp stores into lines of 128 bytes.
    held: gl.constexpr = gl.BlockedLayout(
        [1, 8 if FORM == "base" else 4], [4, 8] if FORM == "base" else [16, 2], [4, ROWS // 64], [1, 0]
    )
    x_tiles, ready = (), (start_barriers(SLOTS),)
    for n in gl.static_range(len(inputs)):
        ready = ready + (start_barriers(SLOTS),)
        x_tiles = x_tiles + (
            gl.allocate_shared_memory(inputs[n].dtype, [SLOTS] + inputs[n].block_shape, inputs[n].layout),
        )
    g_tiles = gl.allocate_shared_memory(PRODUCT, [SLOTS, DEPTH, COLUMNS], g.layout)
    features = gl.allocate_shared_memory(PRODUCT, [2, DEPTH, ROWS], gl.NVMMASharedLayout(128, 16))
    fence_async_shared()
    barrier()
    for step in gl.static_range(SLOTS - 1):
        expect_all((g,) + inputs, ready, step, steps, SLOTS)
    barrier()
    for step in gl.static_range(SLOTS - 1):
        fetch_step(inputs, g, x_tiles, g_tiles, ready, step, steps, start, column_x, column_g, DEPTH, SLOTS)

    i = column_x + gl.arange(0, inputs[0].block_shape[1], layout=gl.SliceLayout(0, held))
    first = load_inputs(x_tiles, ready, 0, inputs, held, SLOTS)
    store_features(
        first, i, word, features.index(0), knots_ptr, grid, I, M, ORDER, D, BASE, FORM, SEARCH, SHARED, WORDS
    )
    fence_async_shared()
    barrier()
    sums = gl.zeros((ROWS, COLUMNS), gl.float32, total)
    for step in range(steps):
        await_tile(ready[0], step, SLOTS)
        a = features.index(step % 2).permute((1, 0))
        sums = warpgroup_mma(a, g_tiles.index(step % SLOTS), sums, is_async=True)
        sums = warpgroup_mma_wait(1, deps=[sums])
        turn = step + 1
        if turn < steps:
            made = load_inputs(x_tiles, ready, turn, inputs, held, SLOTS)
            barrier()  # after the barrier, all warps have finished the product of the previous step
            expect_all((g,) + inputs, ready, step + SLOTS - 1, steps, SLOTS)
            store_features(
                made, i, word, features.index(turn % 2), knots_ptr, grid, I, M, ORDER, D, BASE, FORM, SEARCH, SHARED,
                WORDS,
            )  # fmt: skip
        fence_async_shared()
        barrier()  # after the barrier, the features of the next step are complete
        fetch_step(inputs, g, x_tiles, g_tiles, ready, step + SLOTS - 1, steps, start, column_x, column_g, DEPTH, SLOTS)
    sums = warpgroup_mma_wait(0, deps=[sums])
    end_barriers(ready, SLOTS)
    return sums


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def contract_weight_kernel(
    x,  # descriptor of x [N, I] in blocks [64, ROWS / 8]
    base_x,  # descriptor of x [N, I] in blocks [64, ROWS]
    v,  # descriptor of v [N, I] in blocks [64, ROWS / 8]; if v is None, the descriptor of x
    base_v,  # descriptor of v [N, I] in blocks [64, ROWS]; if v is None, the descriptor of x
    knots_ptr,  # knots [I, M]
    g,  # descriptor of the upstream gradient [N, O] in blocks [64, COLUMNS]
    out,  # descriptor of the results for the splines [parts, I, K, O] in blocks [1, ROWS / 8, 8, COLUMNS]
    base_out,  # descriptor of the results for the base function [parts, I, O] in blocks [1, ROWS, COLUMNS]
    N,
    I,
    O,
    K,
    M,
    programs,  # number of programs for the splines; the other programs are for the base function
    part_rows,  # number of rows in each part for the splines, a multiple of 64
    base_part_rows,  # number of rows in each part for the base function, a multiple of 64
    ORDER: gl.constexpr,
    D: gl.constexpr,
    BASE: gl.constexpr,
    FORM: gl.constexpr,  # form of the splines, "cardinal", "local" or "none"
    SEARCH: gl.constexpr,
    SHARED: gl.constexpr,  # whether all inputs have the same uniform knots
    MULTIPLIED: gl.constexpr,  # whether features are multiplied by v
    WORDS: gl.constexpr,  # number of words of 8 splines for each input
    ROWS: gl.constexpr,  # number of features in a tile, 16 for each warp
    COLUMNS: gl.constexpr,  # number of outputs in a tile
    SLOTS: gl.constexpr,
):
    DEPTH: gl.constexpr = g.block_shape[0]
    WIDTH: gl.constexpr = ROWS // SPLINES
    inputs, base_inputs = (x,), (base_x,)
    if MULTIPLIED:
        inputs, base_inputs = (x, v), (base_x, base_v)
    grid = load_grid(knots_ptr, 0, I, M, True)
    program = gl.program_id(0)
    if FORM != "none" and program < programs:
        # Programs that run at the same time read the same columns of g.
        word, tile = program % WORDS, program // WORDS
        i, tile = tile % gl.cdiv(I, WIDTH) * WIDTH, tile // gl.cdiv(I, WIDTH)
        o, part = tile % gl.cdiv(O, COLUMNS) * COLUMNS, tile // gl.cdiv(O, COLUMNS)
        start = part * part_rows
        steps = gl.cdiv(gl.minimum(N - start, part_rows), DEPTH)
        sums = sums_over_rows(
            inputs, g, knots_ptr, grid, start, steps, i, o, word, I, M,
            ORDER, D, BASE, FORM, SEARCH, SHARED, WORDS, ROWS, SLOTS,
        )  # fmt: skip
        store(out, [part, i, word * SPLINES, o], scaled(sums, grid[1], D))
    elif BASE != "none":
        tile = program - programs
        i, tile = tile % gl.cdiv(I, ROWS) * ROWS, tile // gl.cdiv(I, ROWS)
        o, part = tile % gl.cdiv(O, COLUMNS) * COLUMNS, tile // gl.cdiv(O, COLUMNS)
        start = part * base_part_rows
        steps = gl.cdiv(gl.minimum(N - start, base_part_rows), DEPTH)
        base_sums = sums_over_rows(
            base_inputs, g, knots_ptr, grid, start, steps, i, o, 0, I, M,
            ORDER, D, BASE, "base", SEARCH, SHARED, WORDS, ROWS, SLOTS,
        )  # fmt: skip
        store(base_out, [part, i, o], base_sums)


DEPTH = 64  # number of rows in a step


def _tiles(p: Problem, config: Config) -> tuple[int, int]:
    """Return a tuple of the numbers of tiles in the results for the splines and for the base function."""
    words, across = triton.cdiv(p.spline_count, SPLINES.value), triton.cdiv(p.outputs, config.columns)
    tiles = words * triton.cdiv(p.inputs, config.rows // SPLINES.value) * across
    base_tiles = triton.cdiv(p.inputs, config.rows) * across
    return (0 if p.form == "none" else tiles), (0 if p.base == "none" else base_tiles)


def launch_weight(
    p: Problem, config: Config, out: Tensor | None, base_out: Tensor | None, part_rows: int, base_part_rows: int
) -> Launch:
    """Return the kernel launch that computes G, with the arguments of :func:`..kernels.contract_weight.launch_weight`.

    The rows of the splines and of the base function may be split into different numbers of parts.
    """
    assert p.g is not None
    width, words = config.rows // SPLINES.value, triton.cdiv(p.spline_count, SPLINES.value)
    block, base_block = [DEPTH, width], [DEPTH, config.rows]
    x, base_x = descriptor(p.x, block), descriptor(p.x, base_block)
    v, base_v = (x, base_x) if p.v is None else (descriptor(p.v, block), descriptor(p.v, base_block))
    g = descriptor(p.g, [DEPTH, config.columns])
    inputs = [x, v] if p.base == "none" else [base_x, base_v]
    held = [g, *inputs[: 1 + (p.v is not None)]]
    slots = slot_count(config.stages, held, 4 * DEPTH * config.rows, p.capability)
    if slots == 0:  # large tiles do not fit if x and v have a wider dtype than the matrix products
        smaller = config._replace(rows=64, warps=4)
        return launch_weight(p, smaller, out, base_out, part_rows, base_part_rows)
    tiles, base_tiles = _tiles(p, config)
    parts, base_parts = triton.cdiv(p.rows, part_rows), triton.cdiv(p.rows, base_part_rows)
    results = []
    if out is not None:
        results.append(descriptor(out.transpose(1, 2), [1, width, SPLINES.value, config.columns]))
    if base_out is not None:
        results.append(descriptor(base_out, [1, config.rows, config.columns]))
    arguments = {
        "x": x,
        "base_x": base_x,
        "v": v,
        "base_v": base_v,
        "knots_ptr": p.knots,
        "g": g,
        "out": results[0],
        "base_out": results[-1],
        **p.sizes(),
        "programs": tiles * parts,
        "part_rows": part_rows,
        "base_part_rows": base_part_rows,
    }
    constants = {
        **p.constants(config),
        "MULTIPLIED": p.v is not None,
        "WORDS": words,
        "SLOTS": slots,
    }
    grid = (tiles * parts + base_tiles * base_parts,)
    return Launch(contract_weight_kernel, grid, arguments, constants, config.warps, config.stages)
