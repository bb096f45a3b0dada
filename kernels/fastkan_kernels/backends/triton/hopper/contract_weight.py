"""The pipelined kernel of the contraction G_d(x, g, v) for Hopper GPUs.

The next features are computed while the tensor cores multiply the current features. Each step of the kernel multiplies
the transposed features of one block of rows, ``[ROWS, INNER]`` in registers, by a tile of g. The order of operations in
a step is described in :mod:`.contract_out`.
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
    cardinal_scale,
    half_width,
    inv_spacing_of,
    middle,
    one_spline,
    scaled,
)
from ..launch import UNSPECIALIZED, Launch
from ..problem import Problem
from .pipeline import await_tile, barrier, copy_tile, descriptor, end_barriers, expect, slot_count, start_barriers


@gluon.jit
def fetch_rows(
    x, v, g, x_tiles, v_tiles, g_tiles, ready, step, steps, start, column_x, column_g,
    MULTIPLIED: gl.constexpr, INNER: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Start the copies of the rows of x, v and g that a step multiplies, unless the step is beyond the last one.

    The caller must have called :func:`expect` for the step.
    """
    here, slot, row = step < steps, step % SLOTS, start + step * INNER
    copy_tile(x, [row, column_x], ready.index(slot), x_tiles.index(slot), pred=here)
    if MULTIPLIED:
        copy_tile(v, [row, column_x], ready.index(slot), v_tiles.index(slot), pred=here)
    copy_tile(g, [row, column_g], ready.index(slot), g_tiles.index(slot), pred=here)


@gluon.jit
def features_of(
    x_tile, v_tile, made, inv_spacing, b,
    ORDER: gl.constexpr, D: gl.constexpr, BASE: gl.constexpr, FORM: gl.constexpr, MULTIPLIED: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """Return the d-th derivative of spline b, or of the base function, at a transposed tile of x.

    The result is NaN where x is NaN. In the cardinal form, ``made`` holds the first knot and the inverse of half the
    width of a spline's support for each input. In the local form, ``made`` holds the spline's own knots for each input.
    """
    x = x_tile.permute((1, 0)).load(LAYOUT).to(gl.float32)
    if FORM == "base":
        feature = base_function(x, BASE, D)
    elif FORM == "cardinal":
        z = (x - made[0]) * made[1] - (1.0 + middle(b, ORDER, gl.float32))
        feature = cardinal(z, ORDER, D, KEEPS_NAN=True)
    else:
        feature = one_spline(x, made, ORDER, D) + gl.where(x == x, 0.0, x)
        if D > 0:  # derivatives are scaled by a power of the knot spacing until the sum is complete
            feature = scaled(feature, 1.0 / inv_spacing[:, None], D)
    if MULTIPLIED:
        feature = feature * v_tile.permute((1, 0)).load(LAYOUT).to(gl.float32)
    return feature


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def contract_weight_kernel(
    x,  # descriptor of x [N, I] in blocks [INNER, ROWS]
    v,  # descriptor of v [N, I] in blocks [INNER, ROWS]; if v is None, the descriptor of x
    knots_ptr,  # knots [I, M]
    g,  # descriptor of the upstream gradient [N, O] in blocks [INNER, COLUMNS]
    out_ptr,  # result of each part of the rows [parts, K, I, O]; K is 1 for the base function
    N,
    I,
    O,
    K,
    M,
    part_rows,  # number of rows in each part, a multiple of INNER
    ORDER: gl.constexpr,
    D: gl.constexpr,
    BASE: gl.constexpr,
    FORM: gl.constexpr,  # form of the splines, "cardinal" or "local"; "base" for the base function
    MULTIPLIED: gl.constexpr,  # whether features are multiplied by v
    ROWS: gl.constexpr,  # number of inputs in a tile, 16 for each warp
    COLUMNS: gl.constexpr,  # number of outputs in a tile
    INNER: gl.constexpr,  # number of rows of x that are summed over in one step
    SLOTS: gl.constexpr,
):
    PRODUCT: gl.constexpr = g.dtype
    # The matrix product of the current step reads one slot, and the previous product of a slower warp may still read
    # another slot.
    AHEAD: gl.constexpr = SLOTS - 2
    BYTES: gl.constexpr = x.block_type.nbytes + g.block_type.nbytes + (v.block_type.nbytes if MULTIPLIED else 0)
    total: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, total, 2)
    program, part = gl.program_id(0), gl.program_id(1)
    b, tile = program % K, program // K
    column_x = tile % gl.cdiv(I, ROWS) * ROWS
    column_g = tile // gl.cdiv(I, ROWS) * COLUMNS
    start = part * part_rows
    steps = gl.cdiv(gl.minimum(N - start, part_rows), INNER)

    x_tiles = gl.allocate_shared_memory(x.dtype, [SLOTS, INNER, ROWS], x.layout)
    g_tiles = gl.allocate_shared_memory(PRODUCT, [SLOTS, INNER, COLUMNS], g.layout)
    v_tiles = x_tiles
    if MULTIPLIED:
        v_tiles = gl.allocate_shared_memory(v.dtype, [SLOTS, INNER, ROWS], v.layout)
    ready = start_barriers(SLOTS)
    for step in gl.static_range(AHEAD + 1):
        expect(ready, step, BYTES, step < steps, SLOTS)
    barrier()
    for step in gl.static_range(AHEAD):
        fetch_rows(
            x, v, g, x_tiles, v_tiles, g_tiles, ready, step, steps, start, column_x, column_g, MULTIPLIED, INNER, SLOTS
        )

    i = column_x + gl.arange(0, ROWS, layout=gl.SliceLayout(1, left))
    own = knots_ptr + gl.where(i < I, i, 0) * M
    first = gl.load(own)
    inv_spacing = inv_spacing_of(first, gl.load(own + M - 1), M)
    made = (first[:, None], (inv_spacing * (1.0 / half_width(ORDER)))[:, None])
    if FORM == "local":
        made = ()
        for m in gl.static_range(ORDER + 2):
            made = made + (gl.load(own + b + m)[:, None],)

    await_tile(ready, 0, SLOTS)
    a = features_of(
        x_tiles.index(0), v_tiles.index(0), made, inv_spacing, b, ORDER, D, BASE, FORM, MULTIPLIED, left
    ).to(PRODUCT)
    dw = gl.zeros((ROWS, COLUMNS), gl.float32, total)
    for step in range(steps - 1):
        running = warpgroup_mma(a, g_tiles.index(step % SLOTS), dw, is_async=True)
        fetch_rows(
            x, v, g, x_tiles, v_tiles, g_tiles, ready, step + AHEAD, steps, start, column_x, column_g,
            MULTIPLIED, INNER, SLOTS,
        )  # fmt: skip
        await_tile(ready, step + 1, SLOTS)
        slot = (step + 1) % SLOTS
        following = features_of(
            x_tiles.index(slot), v_tiles.index(slot), made, inv_spacing, b, ORDER, D, BASE, FORM, MULTIPLIED, left
        ).to(PRODUCT)
        # The tile has already arrived. The second call of await_tile prevents ptxas from moving the computation of
        # features below the barrier, because ptxas does not move code across the loop of a wait.
        await_tile(ready, step + 1, SLOTS)
        barrier()  # after the barrier, all warps have finished the product of the previous step
        expect(ready, step + 1 + AHEAD, BYTES, step + 1 + AHEAD < steps, SLOTS)
        dw, _, a = warpgroup_mma_wait(0, deps=[running, a, following])
    running = warpgroup_mma(a, g_tiles.index((steps - 1) % SLOTS), dw, is_async=True)
    dw, _ = warpgroup_mma_wait(0, deps=[running, a])
    end_barriers(ready, SLOTS)

    if FORM == "cardinal":
        dw = dw * cardinal_scale(ORDER, D)
    if FORM != "base":
        dw = scaled(dw, gl.convert_layout(inv_spacing, gl.SliceLayout(1, total))[:, None], D)
    i = column_x + gl.arange(0, ROWS, layout=gl.SliceLayout(1, total))
    o = column_g + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, total))
    at = out_ptr + ((part * K + b).to(gl.int64) * I + i[:, None]) * O + o[None, :]
    gl.store(at, dw.to(out_ptr.dtype.element_ty), mask=(i[:, None] < I) & (o[None, :] < O))


def launch_weight(p: Problem, config: Config, out: Tensor, part_rows: int, base: bool) -> Launch:
    """Return the kernel launch that computes G for each part of the rows.

    The launch writes into ``out``, which has the shape ``[parts, K, I, O]`` for the splines or, if ``base``, the shape
    ``[parts, 1, I, O]`` for the base function.
    """
    assert p.g is not None
    block = [config.inner, config.rows]
    x = descriptor(p.x, block)
    v = x if p.v is None else descriptor(p.v, block)
    g = descriptor(p.g, [config.inner, config.columns])
    tiles = [x, g] if p.v is None else [x, v, g]
    arguments = {
        "x": x,
        "v": v,
        "knots_ptr": p.knots,
        **p.sizes(base),
        "O": p.outputs,
        "g": g,
        "out_ptr": out,
        "part_rows": part_rows,
    }
    constants = {
        **p.constants_of(base),
        "MULTIPLIED": p.v is not None,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "INNER": config.inner,
        "SLOTS": slot_count(config.stages, tiles, 0, p.capability),
    }
    del constants["SEARCH"]  # this kernel does not search for the cell of x
    programs = triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
    grid = (arguments["K"] * programs, triton.cdiv(p.rows, part_rows))
    return Launch(contract_weight_kernel, grid, arguments, constants, config.warps, config.stages)
