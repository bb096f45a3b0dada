"""The pipelined kernel of the contraction F_d(x, W, v) for Hopper GPUs.

The next feature is computed while the tensor cores multiply the current feature. Each step of the kernel multiplies one
feature of one block of inputs, a tile ``[ROWS, INNER]`` in registers, by a tile of W. The operations of a step are:

1. Start the matrix product.
2. Start the copy of a later tile of W into the slot of shared memory that the previous product has read.
3. Compute the feature of the next step in other registers.
4. Wait for the matrix product.
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from ..config import Config
from ..kernels.spline import (
    base_function,
    cardinal,
    cardinal_coordinate,
    cardinal_scale,
    divide,
    inv_spacing_of,
    local,
    middle,
    pick,
    scaled,
)
from ..kernels.tiles import tile_of
from ..launch import UNSPECIALIZED, Launch
from ..problem import Problem
from .pipeline import (
    await_tile,
    barrier,
    copy_tile,
    descriptor,
    end_barriers,
    expect,
    slot_count,
    start_barriers,
    tile_bytes,
)

X_SLOTS = gl.constexpr(2)  # one slot for the current block of inputs and one for the next


@gluon.jit
def fetch_weights(
    w, base_w, tiles, ready, step, steps, K, column, BASED: gl.constexpr, INNER: gl.constexpr, SLOTS: gl.constexpr
):
    """Start the copy of the tile of W that a step multiplies, unless the step is beyond the last one.

    The caller must have called :func:`expect` for the tile.
    """
    b, i0, slot = step % (K + BASED), step // (K + BASED) * INNER, step % SLOTS
    if BASED and b == K:
        copy_tile(base_w, [0, i0, column], ready.index(slot), tiles.index(slot), pred=step < steps)
    else:
        copy_tile(w, [b, i0, column], ready.index(slot), tiles.index(slot), pred=step < steps)


@gluon.jit
def fetch_inputs(
    x, v, tiles, v_tiles, ready, block, blocks, row, MULTIPLIED: gl.constexpr, INNER: gl.constexpr, SLOTS: gl.constexpr
):
    """Start the copy of a block of x and v, unless the block is beyond the last one.

    The caller must have called :func:`expect` for the block.
    """
    here, slot = block < blocks, block % SLOTS
    copy_tile(x, [row, block * INNER], ready.index(slot), tiles.index(slot), pred=here)
    if MULTIPLIED:
        copy_tile(v, [row, block * INNER], ready.index(slot), v_tiles.index(slot), pred=here)


@gluon.jit
def enter_block(
    x_tiles, v_tiles, ready, block, knots_ptr, unit, I, M,
    ORDER: gl.constexpr, D: gl.constexpr, FORM: gl.constexpr, SEARCH: gl.constexpr, MULTIPLIED: gl.constexpr,
    INNER: gl.constexpr, SLOTS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Load a block of inputs and prepare the computation of its features.

    Returns:
        A tuple of x of the block, the arguments ``made`` of :func:`feature_of`, and the factor by which the splines of
        the block are multiplied.
    """
    await_tile(ready, block, SLOTS)
    x = x_tiles.index(block % SLOTS).load(LAYOUT).to(gl.float32)
    i = block * INNER + gl.arange(0, INNER, layout=gl.SliceLayout(0, LAYOUT))
    factor = x
    if MULTIPLIED:
        factor = v_tiles.index(block % SLOTS).load(LAYOUT).to(gl.float32)
    elif D > 0:
        factor = gl.full(x.shape, 1.0, gl.float32, LAYOUT)
    if FORM == "cardinal":
        first = gl.load(knots_ptr + i * M, mask=i < I, other=0.0)
        last = gl.load(knots_ptr + i * M + (M - 1), mask=i < I, other=1.0)
        inv_spacing = (M - 1) / (last - first)  # 16-bit products tolerate two float32 rounding errors
        if D > 0:
            factor = scaled(factor, divide(inv_spacing, 0.0 * inv_spacing + unit)[None, :], D)
        return x, (cardinal_coordinate(x, first[None, :], inv_spacing[None, :], ORDER),), factor
    else:
        if D > 0:
            factor = scaled(factor, 1.0 / unit, D)
        j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
        return x, (j, active), factor


@gluon.jit
def feature_of(
    made, factor, b,
    ORDER: gl.constexpr, D: gl.constexpr, FORM: gl.constexpr, MULTIPLIED: gl.constexpr,
):  # fmt: skip
    """Return the d-th derivative of spline b at a block of x, multiplied by ``factor``."""
    if FORM == "cardinal":
        feature = cardinal(made[0] - middle(b, ORDER, gl.float32), ORDER, D)
    else:
        feature = pick(made[1], made[0], b, ORDER)
    if MULTIPLIED or D > 0:
        feature = feature * factor
    return feature


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def contract_out_kernel(
    x,  # descriptor of x [N, I] in blocks [ROWS, INNER]
    v,  # descriptor of v [N, I] in blocks [ROWS, INNER]; if v is None, the descriptor of x
    knots_ptr,  # knots [I, M]
    w,  # descriptor of the spline weights [K, I, O] in blocks [1, INNER, COLUMNS]
    base_w,  # descriptor of the base weights [1, I, O] in blocks [1, INNER, COLUMNS]; w if BASE is "none"
    y_ptr,  # result [N, O]
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
    MULTIPLIED: gl.constexpr,  # whether features are multiplied by v
    ROWS: gl.constexpr,  # number of rows in a tile, 16 for each warp
    COLUMNS: gl.constexpr,
    INNER: gl.constexpr,
    SLOTS: gl.constexpr,
    GROUP: gl.constexpr,
):
    PRODUCT: gl.constexpr = w.dtype
    BASED: gl.constexpr = BASE != "none"
    # The matrix product of the current step reads one slot, and the previous product of a slower warp may still read
    # another slot.
    AHEAD: gl.constexpr = SLOTS - 2
    X_BYTES: gl.constexpr = x.block_type.nbytes + (v.block_type.nbytes if MULTIPLIED else 0)
    SCALE: gl.constexpr = cardinal_scale(ORDER, D) if FORM == "cardinal" else 1.0
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, total, 2)
    tile_row, tile_column = tile_of(gl.program_id(0), gl.cdiv(N, ROWS), gl.cdiv(O, COLUMNS), GROUP)
    row, column = tile_row * ROWS, tile_column * COLUMNS

    w_tiles = gl.allocate_shared_memory(PRODUCT, [SLOTS, 1, INNER, COLUMNS], w.layout)
    x_tiles = gl.allocate_shared_memory(x.dtype, [X_SLOTS, ROWS, INNER], x.layout)
    v_tiles = x_tiles
    if MULTIPLIED:
        v_tiles = gl.allocate_shared_memory(v.dtype, [X_SLOTS, ROWS, INNER], v.layout)
    w_ready, x_ready = start_barriers(SLOTS), start_barriers(X_SLOTS)

    features, blocks = K + BASED, gl.cdiv(I, INNER)
    steps = blocks * features
    for block in gl.static_range(X_SLOTS):
        expect(x_ready, block, X_BYTES, block < blocks, X_SLOTS)
    for step in gl.static_range(AHEAD):
        expect(w_ready, step, w.block_type.nbytes, step < steps, SLOTS)
    barrier()
    fetch_inputs(x, v, x_tiles, v_tiles, x_ready, 0, blocks, row, MULTIPLIED, INNER, X_SLOTS)
    for step in gl.static_range(AHEAD):
        fetch_weights(w, base_w, w_tiles, w_ready, step, steps, K, column, BASED, INNER, SLOTS)

    # Sums, and therefore also the values of the base function, are divided by the scale of the cardinal form and by
    # the d-th power of the first input's inverse knot spacing.
    unit = 1.0
    if D > 0:
        unit = inv_spacing_of(gl.load(knots_ptr), gl.load(knots_ptr + M - 1), M)
    here, made, factor = enter_block(
        x_tiles, v_tiles, x_ready, 0, knots_ptr, unit, I, M, ORDER, D, FORM, SEARCH, MULTIPLIED, INNER, X_SLOTS, left
    )
    missing = gl.zeros((ROWS,), gl.float32, gl.SliceLayout(1, left))  # NaN for each row that has a NaN
    if not BASED:  # if there is a base function, it propagates NaN
        missing += gl.sum(gl.where(here == here, 0.0, here), 1)
    a = feature_of(made, factor, 0, ORDER, D, FORM, MULTIPLIED).to(PRODUCT)

    await_tile(w_ready, 0, SLOTS)
    barrier()
    expect(w_ready, AHEAD, w.block_type.nbytes, steps > AHEAD, SLOTS)
    y = gl.zeros((ROWS, COLUMNS), gl.float32, total)
    b, block = 0, 0
    for step in range(steps - 1):
        running = warpgroup_mma(a, w_tiles.index(step % SLOTS).reshape((INNER, COLUMNS)), y, is_async=True)
        fetch_weights(w, base_w, w_tiles, w_ready, step + AHEAD, steps, K, column, BASED, INNER, SLOTS)
        if b == 0:
            fetch_inputs(x, v, x_tiles, v_tiles, x_ready, block + 1, blocks, row, MULTIPLIED, INNER, X_SLOTS)
        b += 1
        if b == features:
            b, block = 0, block + 1
            here, made, factor = enter_block(
                x_tiles, v_tiles, x_ready, block, knots_ptr, unit, I, M, ORDER, D, FORM, SEARCH, MULTIPLIED, INNER,
                X_SLOTS, left,
            )  # fmt: skip
            if not BASED:
                missing += gl.sum(gl.where(here == here, 0.0, here), 1)
        if BASED and b == K:
            here = x_tiles.index(block % X_SLOTS).load(left).to(gl.float32)
            feature = scaled(base_function(here, BASE, D) * (1.0 / SCALE), 1.0 / unit, D)
            if MULTIPLIED:
                feature = feature * v_tiles.index(block % X_SLOTS).load(left).to(gl.float32)
        else:
            feature = feature_of(made, factor, b, ORDER, D, FORM, MULTIPLIED)
        following = feature.to(PRODUCT)
        await_tile(w_ready, step + 1, SLOTS)
        # After the barrier, all warps have finished the product of the previous step and have read the previous block
        # of x.
        barrier()
        expect(w_ready, step + 1 + AHEAD, w.block_type.nbytes, step + 1 + AHEAD < steps, SLOTS)
        if b == 0:
            expect(x_ready, block + 1, X_BYTES, block + 1 < blocks, X_SLOTS)
        y, _, a = warpgroup_mma_wait(0, deps=[running, a, following])
    last = w_tiles.index((steps - 1) % SLOTS).reshape((INNER, COLUMNS))
    running = warpgroup_mma(a, last, y, is_async=True)
    y, _ = warpgroup_mma_wait(0, deps=[running, a])
    end_barriers(w_ready, SLOTS)
    end_barriers(x_ready, X_SLOTS)

    y = scaled(y * SCALE, unit, D)
    if not BASED:
        y += gl.convert_layout(missing, gl.SliceLayout(1, total))[:, None]
    rows = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, total))
    columns = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, total))
    at = y_ptr + rows[:, None].to(gl.int64) * O + columns[None, :]
    gl.store(at, y.to(y_ptr.dtype.element_ty), mask=(rows[:, None] < N) & (columns[None, :] < O))


def launch_out(p: Problem, config: Config, y: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction F into ``y [N, O]``."""
    w, base_w = p.weights()
    tile = [1, config.inner, config.columns]
    w = descriptor(w, tile)
    block = [config.rows, config.inner]
    x = descriptor(p.x, block)
    v = x if p.v is None else descriptor(p.v, block)
    beside = X_SLOTS.value * (tile_bytes(x) if p.v is None else tile_bytes(x, v))
    arguments = {
        "x": x,
        "v": v,
        "knots_ptr": p.knots,
        **p.sizes(),
        "O": p.outputs,
        "w": w,
        "base_w": w if p.base == "none" else descriptor(base_w.unsqueeze(0), tile),
        "y_ptr": y,
    }
    constants = {
        **p.constants(),
        "MULTIPLIED": p.v is not None,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "INNER": config.inner,
        "SLOTS": slot_count(config.stages, [w], beside, p.capability),
        "GROUP": 8,
    }
    programs = triton.cdiv(p.rows, config.rows) * triton.cdiv(p.outputs, config.columns)
    return Launch(contract_out_kernel, (programs,), arguments, constants, config.warps, config.stages)
