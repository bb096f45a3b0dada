"""The fused kernel of the contraction G_d(x, g, v).

The contraction is a matrix product that sums over the rows. The factors of the product are the transposed features and
g. Each program computes one tile of the result for one spline, or for the base function, from one part of the rows. The
results of all parts are summed afterwards in a fixed order instead of by atomic additions, so that repeated runs give
identical bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import hardware
from ..config import Config
from ..launch import DTYPES, Launch, descriptor
from ..problem import Problem
from .spline import (
    base_function,
    cardinal,
    cardinal_coordinate,
    cardinal_scale,
    inv_spacing_of,
    middle,
    one_spline,
    scaled,
)
from .tiles import await_product, load_tile, multiply


@triton.jit
def contract_weight_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    g,  # upstream gradient [N, O], contiguous: a pointer, or a descriptor of blocks [INNER, COLUMNS]
    out_ptr,  # result of each part of the rows [parts, K, I, O]; K is 1 for the base function
    N,
    I,
    O,
    K,
    M,
    stride_x,
    stride_v,
    part_rows,  # number of rows in each part, a multiple of INNER
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"; "base" for the base function
    MULTIPLIED: tl.constexpr,  # whether features are multiplied by v
    PRODUCT: tl.constexpr,  # dtype of the factors of the matrix products
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WAIT: tl.constexpr,
    ROWS: tl.constexpr,  # number of inputs in a tile
    COLUMNS: tl.constexpr,  # number of outputs in a tile
    INNER: tl.constexpr,  # number of rows of x that are summed over in one step
):
    WORK: tl.constexpr = tl.float64 if tl.float64 == PRODUCT else tl.float32
    program, part = tl.program_id(0), tl.program_id(1)
    b, tile = program % K, program // K
    tile_row, tile_column = tile % tl.cdiv(I, ROWS), tile // tl.cdiv(I, ROWS)
    i = tile_row * ROWS + tl.arange(0, ROWS)
    o = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    own = knots_ptr + tl.where(i < I, i, 0) * M
    if FORM != "base":
        first = tl.load(own)
        inv_spacing = inv_spacing_of(first, tl.load(own + M - 1), M)
    if FORM == "local":
        knots = ()
        for m in tl.static_range(ORDER + 2):
            knots = knots + (tl.load(own + b + m)[:, None],)

    dw = tl.zeros((ROWS, COLUMNS), WORK)
    missing = tl.zeros((ROWS,), WORK)  # NaN for each input that is NaN in some row
    start = part * part_rows
    end = tl.minimum(N, start + part_rows)
    for n0 in tl.range(start, end, INNER):
        n = n0 + tl.arange(0, INNER)
        inside = (i[:, None] < I) & (n[None, :] < end)
        x = tl.load(x_ptr + n[None, :].to(tl.int64) * stride_x + i[:, None], mask=inside, other=0.0).to(WORK)
        if FORM == "base":
            a = base_function(x, BASE, D)
        else:
            missing += tl.sum(tl.where(x == x, 0.0, x), 1)
            if FORM == "cardinal":
                z = cardinal_coordinate(x, first[:, None], inv_spacing[:, None], ORDER)
                a = cardinal(z - middle(b, ORDER, WORK), ORDER, D)
            else:
                a = one_spline(x, knots, ORDER, D)
                if D > 0:  # derivatives are scaled by a power of the knot spacing until the sum is complete
                    a = scaled(a, (1.0 / inv_spacing)[:, None], D)
        if MULTIPLIED:
            v = tl.load(v_ptr + n[None, :].to(tl.int64) * stride_v + i[:, None], mask=inside, other=0.0)
            a = a * v.to(WORK)
        if DESCRIPTORS:
            right = g.load([n0, tile_column * COLUMNS])
        else:
            right = load_tile(g, n, o, end, O, O)
        dw = multiply(a.to(PRODUCT), right, dw, PRECISION)
        dw = await_product(dw, WAIT)

    if FORM == "cardinal":
        dw = dw * cardinal_scale(ORDER, D)
    if FORM != "base":
        dw = scaled(dw, inv_spacing[:, None], D) + missing[:, None]
    at = out_ptr + ((part * K + b).to(tl.int64) * I + i[:, None]) * O + o[None, :]
    tl.store(at, dw.to(out_ptr.dtype.element_ty), mask=(i[:, None] < I) & (o[None, :] < O))


MIN_STEPS = 8  # minimum number of steps, of INNER rows each, in a part


def parts_of(p: Problem, config: Config) -> tuple[int, int]:
    """Split the rows into parts, so that there are enough programs for the whole GPU.

    Returns:
        A tuple of the number of parts, and the number of rows in each part except the last.
    """
    tiles = p.spline_count * triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
    device = p.x.device
    wanted = triton.cdiv(2 * hardware.processors(device.index if device.type == "cuda" else None), tiles)
    steps = triton.cdiv(p.rows, config.inner)
    parts = max(1, min(wanted, steps // MIN_STEPS))
    rows = triton.cdiv(steps, parts) * config.inner
    return triton.cdiv(p.rows, rows), rows


def launch_weight(p: Problem, config: Config, out: Tensor, part_rows: int, base: bool) -> Launch:
    """Return the kernel launch that computes G for each part of the rows.

    The launch writes into ``out``, which has the shape ``[parts, K, I, O]`` for the splines or, if ``base``, the shape
    ``[parts, 1, I, O]`` for the base function.
    """
    assert p.g is not None
    arguments = {
        **p.x_and_knots(),
        **p.multiplier(),
        **p.sizes(base),
        "O": p.outputs,
        "g": descriptor(p.g, [config.inner, config.columns]) if config.descriptors else p.g,
        "out_ptr": out,
        "part_rows": part_rows,
    }
    constants = {
        **p.constants_of(base),
        "MULTIPLIED": p.v is not None,
        "PRODUCT": DTYPES[p.matmul_dtype],
        "PRECISION": p.precision,
        "DESCRIPTORS": config.descriptors,
        "WAIT": p.waits,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "INNER": config.inner,
    }
    del constants["SEARCH"]  # this kernel does not search for the cell of x
    tiles = triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
    grid = (arguments["K"] * tiles, triton.cdiv(p.rows, part_rows))
    return Launch(contract_weight_kernel, grid, arguments, constants, config.warps, config.stages)
