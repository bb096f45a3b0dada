"""G_d(x, g, v): a matrix product that sums over the rows, with the transposed features as its left operand.

A program computes one tile of dW for one spline, or for the base function, from one part of the rows. The parts are
summed afterwards in a fixed order instead of by atomics, so that results are the same bits each time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import hardware
from ..launch import DTYPES, Launch, descriptor
from ..problem import Problem
from ..tuning.config import Config
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
    x_ptr,  # [N, I], rows stride_x apart
    v_ptr,  # [N, I], rows stride_v apart, or x_ptr
    knots_ptr,  # [I, M]
    g,  # [N, O], contiguous: a pointer, or a descriptor of blocks [INNER, COLUMNS]
    out_ptr,  # [parts, K, I, O], K = 1 for the base function
    N,
    I,
    O,
    K,
    M,
    stride_x,
    stride_v,
    part_rows,  # a multiple of INNER
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # "cardinal", "local", or "base"
    MULTIPLIED: tl.constexpr,  # by v
    PRODUCT: tl.constexpr,  # dtype
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WAIT: tl.constexpr,
    ROWS: tl.constexpr,  # inputs
    COLUMNS: tl.constexpr,  # outputs
    INNER: tl.constexpr,  # rows of x, which are summed over
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
    missing = tl.zeros((ROWS,), WORK)  # NaN for inputs that have a NaN
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
                if D > 0:  # in units of a cell
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


MIN_STEPS = 8  # of INNER rows each that a part has at least


def parts_of(p: Problem, config: Config) -> tuple[int, int]:
    """Number of parts into which the rows are split, so that the whole GPU has work, and number of rows in each."""
    tiles = p.spline_count * triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
    device = p.x.device
    wanted = triton.cdiv(2 * hardware.processors(device.index if device.type == "cuda" else None), tiles)
    steps = triton.cdiv(p.rows, config.inner)
    parts = max(1, min(wanted, steps // MIN_STEPS))
    rows = triton.cdiv(steps, parts) * config.inner
    return triton.cdiv(p.rows, rows), rows


def launch_weight(p: Problem, config: Config, out: Tensor, part_rows: int, base: bool) -> Launch:
    """The launch that writes G of the splines, or of the base function, into ``out [parts, K or 1, I, O]``."""
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
    del constants["SEARCH"]  # this kernel does not search for cells
    tiles = triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
    grid = (arguments["K"] * tiles, triton.cdiv(p.rows, part_rows))
    return Launch(contract_weight_kernel, grid, arguments, constants, config.warps, config.stages)
