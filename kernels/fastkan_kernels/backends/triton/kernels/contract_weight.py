"""The fused kernel of the contraction G_d(x, g, v).

The contraction is a matrix product that sums over the rows. The factors of the product are the transposed features and
g. Each program computes one tile of the result for one spline, or for the base function, from one part of the rows. The
results of all parts are summed afterwards in a fixed order. Atomic additions would sum in a random order, so that
repeated runs would differ in the last bits.
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
    load_grid,
    middle,
    one_spline,
    scaled,
)
from .tiles import await_product, load_tile, multiply, store_tile


@triton.jit(do_not_specialize=UNSPECIALIZED)
def contract_weight_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    g,  # upstream gradient [N, O], contiguous: a pointer, or a descriptor of blocks [INNER, COLUMNS]
    out_ptr,  # result for the splines, of each part of the rows [parts, K, I, O]
    base_out_ptr,  # result for the base function, of each part of the rows [parts, I, O]; out_ptr if BASE is "none"
    N,
    I,
    O,
    K,  # number of splines; 0 if FORM is "none"
    M,
    stride_x,
    stride_v,
    part_rows,  # number of rows in each part, a multiple of INNER
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"; "none" if their derivative is 0
    SHARED: tl.constexpr,  # whether FORM is "cardinal" and all inputs have the same knots
    MULTIPLIED: tl.constexpr,  # whether features are multiplied by v
    PRODUCT: tl.constexpr,  # dtype of the factors of the matrix products
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WAIT: tl.constexpr,
    ROWS: tl.constexpr,  # number of inputs in a tile
    COLUMNS: tl.constexpr,  # number of outputs in a tile
    INNER: tl.constexpr,  # number of rows of x that are summed over in one step
):
    program, part = tl.program_id(0), tl.program_id(1)
    features = K
    if BASE != "none":
        features = K + 1
    b, tile = program % features, program // features  # b is K for the base function
    tile_row, tile_column = tile % tl.cdiv(I, ROWS), tile // tl.cdiv(I, ROWS)
    start = part * part_rows
    end = tl.minimum(N, start + part_rows)
    if FORM != "none" and b < K:
        dw = sum_over_rows(
            x_ptr, v_ptr, knots_ptr, g, b, tile_row, tile_column, start, end, I, O, M, stride_x, stride_v,
            ORDER, D, BASE, FORM, SHARED, MULTIPLIED, PRODUCT, PRECISION, DESCRIPTORS, WAIT, ROWS, COLUMNS, INNER,
        )  # fmt: skip
        at = out_ptr + (part * K + b).to(tl.int64) * I * O
        store_weights(at, tile_row, tile_column, I, O, dw, ROWS, COLUMNS)
    if BASE != "none" and b == K:
        dw = sum_over_rows(
            x_ptr, v_ptr, knots_ptr, g, b, tile_row, tile_column, start, end, I, O, M, stride_x, stride_v,
            ORDER, D, BASE, "base", SHARED, MULTIPLIED, PRODUCT, PRECISION, DESCRIPTORS, WAIT, ROWS, COLUMNS, INNER,
        )  # fmt: skip
        store_weights(base_out_ptr + part.to(tl.int64) * I * O, tile_row, tile_column, I, O, dw, ROWS, COLUMNS)


@triton.jit
def sum_over_rows(
    x_ptr, v_ptr, knots_ptr, g, b, tile_row, tile_column, start, end, I, O, M, stride_x, stride_v,
    ORDER: tl.constexpr, D: tl.constexpr, BASE: tl.constexpr, FORM: tl.constexpr, SHARED: tl.constexpr,
    MULTIPLIED: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
    WAIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Return a tile of G for spline b (for the base function if ``FORM`` is "base"), summed over rows start to end."""
    WORK: tl.constexpr = tl.float64 if tl.float64 == PRODUCT else tl.float32
    i = tile_row * ROWS + tl.arange(0, ROWS)
    o = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    if FORM != "base":
        first, inv_spacing = load_grid(knots_ptr, i[:, None], I, M, SHARED)
    if FORM == "local":
        own = knots_ptr + tl.where(i < I, i, 0) * M
        knots = ()
        for m in tl.static_range(ORDER + 2):
            knots = knots + (tl.load(own + b + m)[:, None],)

    dw = tl.zeros((ROWS, COLUMNS), WORK)
    missing = tl.zeros((ROWS,), WORK)  # an element is NaN if the input is NaN in some row
    for n0 in tl.range(start, end, INNER):
        n = n0 + tl.arange(0, INNER)
        inside = (i[:, None] < I) & (n[None, :] < end)
        x = tl.load(x_ptr + n[None, :].to(tl.int64) * stride_x + i[:, None], mask=inside, other=0.0).to(WORK)
        if FORM == "base":
            a = base_function(x, BASE, D)
        else:
            missing += tl.sum(tl.where(x == x, 0.0, x), 1)
            if FORM == "cardinal":
                z = cardinal_coordinate(x, first, inv_spacing, ORDER)
                a = cardinal(z - middle(b, ORDER, WORK), ORDER, D)
            else:
                a = one_spline(x, knots, ORDER, D)
                if D > 0:  # derivatives stay multiplied by a power of the knot spacing until the sum is complete
                    a = scaled(a, 1.0 / inv_spacing, D)
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
        dw = scaled(dw, inv_spacing, D) + missing[:, None]
    return dw


@triton.jit
def store_weights(ptr, tile_row, tile_column, I, O, dw, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a tile of a matrix [I, O]."""
    store_tile(ptr, tile_row * ROWS + tl.arange(0, ROWS), tile_column * COLUMNS + tl.arange(0, COLUMNS), I, O, O, dw)


def launch_weight(
    p: Problem, config: Config, out: Tensor | None, base_out: Tensor | None, part_rows: int, base_part_rows: int
) -> Launch:
    """Return the kernel launch that computes G for each part of the rows, into the contiguous ``out`` and ``base_out``.

    Args:
        p: the problem.
        config: the configuration of the kernel.
        out: memory for the results for the splines, ``[parts, K, I, O]``; None if ``p.form`` is "none".
        base_out: memory for the results for the base function, ``[parts, I, O]``, in the dtype of ``out``; None if
            there is no base function.
        part_rows: number of rows in each part except the last, a multiple of ``config.inner``.
        base_part_rows: ``part_rows``, because the splines and the base function have the same parts.
    """
    assert p.g is not None
    sizes = p.sizes()
    if out is None:
        sizes["K"] = 0
    arguments = {
        **p.x_and_knots(),
        **p.multiplier(),
        **sizes,
        "g": descriptor(p.g, [config.inner, config.columns]) if config.descriptors else p.g,
        "out_ptr": base_out if out is None else out,
        "base_out_ptr": out if base_out is None else base_out,
        "part_rows": part_rows,
    }
    constants = {
        **p.fused_constants(config),
        "PRODUCT": DTYPES[p.matmul_dtype],
        "MULTIPLIED": p.v is not None,
        "WAIT": p.waits,
    }
    del constants["SEARCH"]  # this kernel does not search for the cell of x
    grid = (_tiles(p, config), triton.cdiv(p.rows, part_rows))
    return Launch(contract_weight_kernel, grid, arguments, constants, config.warps, config.stages)


def _tiles(p: Problem, config: Config) -> int:
    """Return the number of tiles of the result, for the splines and the base function together."""
    features = (0 if p.form == "none" else p.spline_count) + (p.base != "none")
    return features * triton.cdiv(p.inputs, config.rows) * triton.cdiv(p.outputs, config.columns)
