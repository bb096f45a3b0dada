"""The fused kernel of the contraction F_d(x, W, v).

The contraction is the matrix product of the features with W. The features are computed in registers, and the tiles of
W are loaded through shared memory. Each program computes one tile of the result in a loop over blocks of inputs, which
contains a loop over the splines. Each block of x is therefore read once for all splines.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..config import Config
from ..launch import DTYPES, UNSPECIALIZED, Launch, descriptor
from ..problem import Problem
from .spline import (
    base_function,
    cardinal,
    cardinal_coordinate,
    cardinal_scale,
    divide,
    load_grid,
    local,
    middle,
    pick,
    scaled,
)
from .tiles import await_product, load_tile, multiply, store_tile, tile_of


@triton.jit(do_not_specialize=UNSPECIALIZED)
def contract_out_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    w,  # spline weights [K, I, O], contiguous: a pointer, or a descriptor of blocks [1, INNER, COLUMNS]
    base_w,  # base weights [I, O]: a pointer, or a descriptor of blocks [INNER, COLUMNS]; w if BASE is "none"
    y_ptr,  # result [N, O]
    N,
    I,
    O,
    K,
    M,
    stride_x,
    stride_v,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"
    SHARED: tl.constexpr,  # whether FORM is "cardinal" and all inputs have the same knots
    SEARCH: tl.constexpr,
    MULTIPLIED: tl.constexpr,  # whether features are multiplied by v
    PRODUCT: tl.constexpr,  # dtype of the factors of the matrix products
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WAIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    WORK: tl.constexpr = tl.float64 if tl.float64 == PRODUCT else tl.float32
    tile_row, tile_column = tile_of(tl.program_id(0), tl.cdiv(N, ROWS), tl.cdiv(O, COLUMNS), GROUP)
    rows = tile_row * ROWS + tl.arange(0, ROWS)
    columns = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.zeros((ROWS, COLUMNS), WORK)

    # While derivatives are summed, they are scaled by a power of the first input's knot spacing to avoid overflow.
    first, unit = load_grid(knots_ptr, 0, I, M, True)

    missing = tl.zeros((ROWS,), WORK)  # an element is NaN if the row of x has a NaN
    for i0 in tl.range(0, I, INNER, num_stages=1):
        i = i0 + tl.arange(0, INNER)
        x = load_tile(x_ptr, rows, i, N, I, stride_x).to(WORK)
        if BASE == "none":  # a base function propagates NaN, so that rows with NaN need no other treatment
            missing += tl.sum(tl.where(x == x, 0.0, x), 1)
        factor = tl.full((ROWS, INNER), 1.0, WORK)
        if MULTIPLIED:
            factor = load_tile(v_ptr, rows, i, N, I, stride_v).to(WORK)
        if FORM == "cardinal":
            if SHARED:
                z = cardinal_coordinate(x, first, unit, ORDER)
            else:
                own, inv_spacing = load_grid(knots_ptr, i[None, :], I, M, SHARED)
                z = cardinal_coordinate(x, own, inv_spacing, ORDER)
                if D > 0:
                    factor = scaled(factor, divide(inv_spacing, 0.0 * inv_spacing + unit), D)
        else:
            j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
            if D > 0:
                factor = scaled(factor, 1.0 / unit, D)
        for b in tl.range(0, K):
            if FORM == "cardinal":
                a = cardinal(z - middle(b, ORDER, WORK), ORDER, D)
            else:
                a = pick(active, j, b, ORDER)
            if MULTIPLIED or (D > 0 and not SHARED):
                a = a * factor
            if DESCRIPTORS:
                part = w.load([b, i0, tile_column * COLUMNS]).reshape(INNER, COLUMNS)
            else:
                part = load_tile(w + (tl.zeros((), tl.int64) + b) * I * O, i, columns, I, O, O)
            y = multiply(a.to(PRODUCT), part, y, PRECISION)
            y = await_product(y, WAIT)

    if FORM == "cardinal":
        y = y * cardinal_scale(ORDER, D)
    if D > 0:
        y = scaled(y, unit, D)
    if BASE != "none":
        for i0 in tl.range(0, I, INNER):
            i = i0 + tl.arange(0, INNER)
            a = base_function(load_tile(x_ptr, rows, i, N, I, stride_x).to(WORK), BASE, D)
            if MULTIPLIED:
                a = a * load_tile(v_ptr, rows, i, N, I, stride_v).to(WORK)
            if DESCRIPTORS:
                part = base_w.load([i0, tile_column * COLUMNS])
            else:
                part = load_tile(base_w, i, columns, I, O, O)
            y = multiply(a.to(PRODUCT), part, y, PRECISION)
            y = await_product(y, WAIT)
    else:
        y = y + missing[:, None]
    store_tile(y_ptr, rows, columns, N, O, O, y)


def launch_out(p: Problem, config: Config, y: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction F into ``y [N, O]``."""
    w, base_w = p.weights()
    based = config.descriptors and p.base != "none"
    arguments = {
        **p.x_and_knots(),
        **p.multiplier(),
        **p.sizes(),
        "w": descriptor(w, [1, config.inner, config.columns]) if config.descriptors else w,
        "base_w": descriptor(base_w, [config.inner, config.columns]) if based else base_w,
        "y_ptr": y,
    }
    constants = {
        **p.fused_constants(config),
        "PRODUCT": DTYPES[p.matmul_dtype],
        "MULTIPLIED": p.v is not None,
        "WAIT": p.waits,
        "GROUP": 8,
    }
    programs = triton.cdiv(p.rows, config.rows) * triton.cdiv(p.outputs, config.columns)
    return Launch(contract_out_kernel, (programs,), arguments, constants, config.warps, config.stages)
