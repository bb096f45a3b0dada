"""The fused kernel of the contraction H_d(x, W, g).

The kernel computes tiles of the matrix product g W^T, multiplies each tile by the features, and sums over the splines.
The columns of the product are sorted by spline b and, for each spline, by input i, so that each thread sums over b
within its registers. Computing the features takes little time compared with the product, because each feature is
computed once for O multiplications.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..config import Config
from ..launch import DTYPES, UNSPECIALIZED, Launch, descriptor
from ..problem import Problem
from .spline import base_function, cardinal, cardinal_coordinate, cardinal_scale, load_grid, local, middle, scaled
from .tiles import load_tile, multiply, store_tile, tile_of


@triton.jit(do_not_specialize=UNSPECIALIZED)
def contract_in_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    knots_ptr,  # knots [I, M]
    w,  # spline weights [K, I, O], contiguous: a pointer, or a descriptor of blocks [SPLINES, COLUMNS, INNER]
    base_w,  # base weights [I, O]: a pointer, or a descriptor of blocks [COLUMNS, INNER]; w if BASE is "none"
    g,  # upstream gradient [N, O], contiguous: a pointer, or a descriptor of blocks [ROWS, INNER]
    h_ptr,  # result [N, I]
    N,
    I,
    O,
    K,
    M,
    stride_x,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"
    SHARED: tl.constexpr,  # whether FORM is "cardinal" and all inputs have the same knots
    SEARCH: tl.constexpr,
    PRODUCT: tl.constexpr,  # dtype of the factors of the matrix products
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # number of inputs in a tile
    INNER: tl.constexpr,  # number of outputs in a block
    SPLINES: tl.constexpr,
    GROUP: tl.constexpr,
):
    WORK: tl.constexpr = tl.float64 if tl.float64 == PRODUCT else tl.float32
    tile_row, tile_column = tile_of(tl.program_id(0), tl.cdiv(N, ROWS), tl.cdiv(I, COLUMNS), GROUP)
    rows = tile_row * ROWS + tl.arange(0, ROWS)
    i = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    x = load_tile(x_ptr, rows, i, N, I, stride_x).to(WORK)

    h = tl.zeros((ROWS, COLUMNS), WORK)
    if BASE != "none":
        for o0 in tl.range(0, O, INNER):
            o = o0 + tl.arange(0, INNER)
            if DESCRIPTORS:
                left, right = g.load([tile_row * ROWS, o0]), base_w.load([tile_column * COLUMNS, o0])
            else:
                left, right = load_tile(g, rows, o, N, O, O), load_tile(base_w, i, o, I, O, O)
            h = multiply(left, right.T, h, PRECISION)
        h = h * base_function(x, BASE, D)

    if FORM == "cardinal":
        first, inv_spacing = load_grid(knots_ptr, i[None, :], I, M, SHARED)
        z = cardinal_coordinate(x, first, inv_spacing, ORDER)
    else:
        j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
    total = tl.zeros((ROWS, COLUMNS), WORK)
    pair = tl.arange(0, SPLINES * COLUMNS)  # index of each pair of a spline b and an input i
    for b0 in tl.range(0, K, SPLINES, num_stages=1):
        products = tl.zeros((ROWS, SPLINES * COLUMNS), WORK)
        for o0 in tl.range(0, O, INNER):
            o = o0 + tl.arange(0, INNER)
            if DESCRIPTORS:
                left = g.load([tile_row * ROWS, o0])
                right = w.load([b0, tile_column * COLUMNS, o0]).reshape(SPLINES * COLUMNS, INNER)
            else:
                left = load_tile(g, rows, o, N, O, O)
                b, of = b0 + pair // COLUMNS, tile_column * COLUMNS + pair % COLUMNS
                inside = ((b < K) & (of < I))[:, None] & (o < O)[None, :]
                at = w + (b.to(tl.int64) * I + of)[:, None] * O + o[None, :]
                right = tl.load(at, mask=inside, other=0.0)
            products = multiply(left, right.T, products, PRECISION)
        numbers = b0 + tl.arange(0, SPLINES)
        if FORM == "cardinal":
            psi = cardinal(z[:, None, :] - middle(numbers, ORDER, WORK)[None, :, None], ORDER, D)
        else:
            at = numbers[None, :, None] - j[:, None, :] + ORDER
            at = tl.where(numbers[None, :, None] < K, at, -1)  # the value of a nonexistent spline may be infinite
            psi = tl.where(at == 0, active[0][:, None, :], 0.0)
            for q in tl.static_range(1, ORDER + 1):
                psi = tl.where(at == q, active[q][:, None, :], psi)
        total += tl.sum(tl.reshape(products, (ROWS, SPLINES, COLUMNS)) * psi, 1)

    if FORM == "cardinal":
        total = scaled(total * cardinal_scale(ORDER, D), inv_spacing, D)
    h = tl.where(x == x, h + total, x)
    store_tile(h_ptr, rows, i, N, I, I, h)


def launch_in(p: Problem, config: Config, h: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction H into ``h [N, I]``."""
    assert p.g is not None
    (w, base_w), g, described = p.weights(), p.g, config.descriptors
    arguments = {
        **p.x_and_knots(),
        **p.sizes(),
        "w": descriptor(w, [config.splines, config.columns, config.inner]) if described else w,
        "base_w": descriptor(base_w, [config.columns, config.inner]) if described and p.base != "none" else base_w,
        "g": descriptor(g, [config.rows, config.inner]) if described else g,
        "h_ptr": h,
    }
    constants = {
        **p.fused_constants(config),
        "PRODUCT": DTYPES[p.matmul_dtype],
        "SPLINES": config.splines,
        "GROUP": 8,
    }
    programs = triton.cdiv(p.rows, config.rows) * triton.cdiv(p.inputs, config.columns)
    return Launch(contract_in_kernel, (programs,), arguments, constants, config.warps, config.stages)
