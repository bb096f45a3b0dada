"""G_d(x, g, v) for Hopper GPUs: the next features are computed while the tensor cores multiply the current ones.

A step is one block of rows: psi_b of x transposed, [ROWS, INNER] in registers, times its tile of g. It has the same
order as a step of :mod:`.contract_out`.
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

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
from ..launch import Launch
from ..problem import Problem
from ..tuning.config import Config
from .pipeline import await_tile, barrier, copy_tile, descriptor, end_barriers, expect, slot_count, start_barriers


@gluon.jit
def fetch_rows(
    x, v, g, x_tiles, v_tiles, g_tiles, ready, step, steps, start, column_x, column_g,
    MULTIPLIED: gl.constexpr, INNER: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Start the copies of the rows of a step, unless it is beyond the last one. :func:`expect` must have been called
    for them before."""
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
    """psi_b^(d), or the derivative of the base function, of a transposed tile of x. A NaN stays.

    ``made`` holds, for each input, the first knot and 1 / (half a support) in the cardinal form, or the spline's own
    knots in the local form.
    """
    x = x_tile.permute((1, 0)).load(LAYOUT).to(gl.float32)
    if FORM == "base":
        feature = base_function(x, BASE, D)
    elif FORM == "cardinal":
        z = (x - made[0]) * made[1] - (1.0 + middle(b, ORDER, gl.float32))
        feature = cardinal(z, ORDER, D, KEEPS_NAN=True)
    else:
        feature = one_spline(x, made, ORDER, D) + gl.where(x == x, 0.0, x)
        if D > 0:  # in units of a cell
            feature = scaled(feature, 1.0 / inv_spacing[:, None], D)
    if MULTIPLIED:
        feature = feature * v_tile.permute((1, 0)).load(LAYOUT).to(gl.float32)
    return feature


@gluon.jit
def contract_weight_kernel(
    x,  # descriptor of [N, I] in blocks [INNER, ROWS]
    v,  # likewise, or x
    knots_ptr,  # [I, M]
    g,  # descriptor of [N, O] in blocks [INNER, COLUMNS]
    out_ptr,  # [parts, K, I, O], K = 1 for the base function
    N,
    I,
    O,
    K,
    M,
    part_rows,  # a multiple of INNER
    ORDER: gl.constexpr,
    D: gl.constexpr,
    BASE: gl.constexpr,
    FORM: gl.constexpr,  # "cardinal", "local" or "base"
    MULTIPLIED: gl.constexpr,  # by v
    ROWS: gl.constexpr,  # inputs, 16 for each warp
    COLUMNS: gl.constexpr,  # outputs
    INNER: gl.constexpr,  # rows of x, which are summed over
    SLOTS: gl.constexpr,
):
    PRODUCT: gl.constexpr = g.dtype
    # One slot is read by this step's product, and one may still be read by the last product of a slower warp.
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
        # The tile is there already, but ptxas does not move the computation of features across the loop of this wait,
        # as it would across the barrier.
        await_tile(ready, step + 1, SLOTS)
        barrier()  # now all warps are past the product before this one
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
    """The launch that writes G of the splines, or of the base function, into ``out [parts, K or 1, I, O]``."""
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
    del constants["SEARCH"]  # this kernel does not search for cells
    programs = triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
    grid = (arguments["K"] * programs, triton.cdiv(p.rows, part_rows))
    return Launch(contract_weight_kernel, grid, arguments, constants, config.warps, config.stages)
