"""The gather kernels of the contractions F and H, which read only the weights of the active splines.

The k + 1 active splines of an input are the splines that are not zero in the cell of x. The kernels do not use tensor
cores, but they need fewer multiplications than a matrix product by a factor of K / (k + 1), and are therefore faster on
large grids. Sums are computed in float32, or in float64 if x has the dtype float64.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..config import Config
from ..launch import DTYPES, UNSPECIALIZED, Launch
from ..problem import Problem
from .spline import active_splines, base_function, find_cell
from .tiles import load_tile, store_tile


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gather_out_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    w_ptr,  # spline weights [K, I, O], contiguous
    base_w_ptr,  # base weights [I, O]; w_ptr if BASE is "none"
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
    SEARCH: tl.constexpr,
    MULTIPLIED: tl.constexpr,  # whether features are multiplied by v
    WORK: tl.constexpr,  # working dtype
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < O
    y = tl.zeros((ROWS, COLUMNS), WORK)
    for i in tl.range(0, I):
        x = tl.load(x_ptr + rows.to(tl.int64) * stride_x + i, mask=rows < N, other=0.0).to(WORK)
        v = tl.full((ROWS,), 1.0, WORK)
        if MULTIPLIED:
            v = tl.load(v_ptr + rows.to(tl.int64) * stride_v + i, mask=rows < N, other=0.0).to(WORK)
        own = knots_ptr + i * M + tl.zeros((ROWS,), tl.int32)
        j = find_cell(x, own, M, SEARCH)
        active = active_splines(x, j, own, M, ORDER, D)
        for q in tl.static_range(ORDER + 1):
            b = j + (q - ORDER)
            exists = (b >= 0) & (b < K)
            psi = tl.where(exists, active[q], tl.where(x == x, 0.0, x)) * v
            at = w_ptr + (tl.where(exists, b, 0).to(tl.int64) * I + i)[:, None] * O + columns[None, :]
            part = tl.load(at, mask=inside[None, :] & exists[:, None], other=0.0).to(WORK)
            y += psi[:, None] * part
        if BASE != "none":
            part = tl.load(base_w_ptr + (tl.zeros((), tl.int64) + i) * O + columns, mask=inside, other=0.0).to(WORK)
            y += (base_function(x, BASE, D) * v)[:, None] * part[None, :]
    store_tile(y_ptr, rows, columns, N, O, O, y)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gather_in_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    knots_ptr,  # knots [I, M]
    w_ptr,  # spline weights [K, I, O], contiguous
    base_w_ptr,  # base weights [I, O]; w_ptr if BASE is "none"
    g_ptr,  # upstream gradient [N, O], contiguous
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
    SEARCH: tl.constexpr,
    WORK: tl.constexpr,  # working dtype
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i = tl.program_id(0) % I  # successive programs have successive values of i, so that they read the same rows of g
    rows = (tl.program_id(0) // I) * ROWS + tl.arange(0, ROWS)
    x = tl.load(x_ptr + rows.to(tl.int64) * stride_x + i, mask=rows < N, other=0.0).to(WORK)
    own = knots_ptr + i * M + tl.zeros((ROWS,), tl.int32)
    j = find_cell(x, own, M, SEARCH)
    active = active_splines(x, j, own, M, ORDER, D)
    h = tl.zeros((ROWS,), WORK)
    base_product = tl.zeros((ROWS,), WORK)  # the sum over o of base_w[i, o] * g[n, o]
    for o0 in tl.range(0, O, COLUMNS):
        columns = o0 + tl.arange(0, COLUMNS)
        inside = columns < O
        g = load_tile(g_ptr, rows, columns, N, O, O).to(WORK)
        edge = tl.zeros((ROWS, COLUMNS), WORK)  # d-th derivative of each edge function at x, without the base function
        for q in tl.static_range(ORDER + 1):
            b = j + (q - ORDER)
            exists = (b >= 0) & (b < K)
            at = w_ptr + (tl.where(exists, b, 0).to(tl.int64) * I + i)[:, None] * O + columns[None, :]
            part = tl.load(at, mask=inside[None, :] & exists[:, None], other=0.0).to(WORK)
            edge += tl.where(exists, active[q], 0.0)[:, None] * part
        if BASE != "none":
            part = tl.load(base_w_ptr + (tl.zeros((), tl.int64) + i) * O + columns, mask=inside, other=0.0).to(WORK)
            base_product += tl.sum(g * part[None, :], 1)
        h += tl.sum(edge * g, 1)
    if BASE != "none":
        h += base_function(x, BASE, D) * base_product
    h = tl.where(x == x, h, x)
    tl.store(h_ptr + rows.to(tl.int64) * I + i, h.to(h_ptr.dtype.element_ty), mask=rows < N)


def launch_gather_out(p: Problem, config: Config, y: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction F into ``y [N, O]``."""
    arguments = {**_arguments(p), **p.multiplier(), "y_ptr": y}
    constants = {**_constants(p, config), "MULTIPLIED": p.v is not None}
    grid = (triton.cdiv(p.rows, config.rows), triton.cdiv(p.outputs, config.columns))
    return Launch(gather_out_kernel, grid, arguments, constants, config.warps, config.stages)


def launch_gather_in(p: Problem, config: Config, h: Tensor) -> Launch:
    """Return the kernel launch that writes the contraction H into ``h [N, I]``."""
    arguments = {**_arguments(p), "g_ptr": p.g, "h_ptr": h}
    grid = (p.inputs * triton.cdiv(p.rows, config.rows),)
    return Launch(gather_in_kernel, grid, arguments, _constants(p, config), config.warps, config.stages)


def _arguments(p: Problem) -> dict:
    w, base_w = p.weights()
    return {**p.x_and_knots(), **p.sizes(), "w_ptr": w, "base_w_ptr": base_w}


def _constants(p: Problem, config: Config) -> dict:
    """Return the compile-time constants of both gather kernels.

    Even on uniform knots, the kernels find the cell of x by bisection.
    """
    return {
        "ORDER": p.basis.order,
        "D": p.derivative,
        "BASE": p.base_rounded("gather"),
        "SEARCH": p.search,
        "WORK": DTYPES[p.work],
        "ROWS": config.rows,
        "COLUMNS": config.columns,
    }
