"""The two kernels of the chunked implementation.

The first kernel writes the features of some rows to memory. The second kernel multiplies the features of some rows by a
matrix product that is stored in memory, and sums over the splines. Both kernels support all knots, all spline orders k
and all derivatives d <= k. The number of rows is small enough for the features to stay in the L2 cache between the
kernel and the matrix product.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..config import Config
from ..launch import DTYPES, UNSPECIALIZED, Launch
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
from .tiles import load_tile


@triton.jit(do_not_specialize=UNSPECIALIZED)
def write_features_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    # Features [N, K, I]. K is 1 for the base function. The d-th derivatives of splines are multiplied by the d-th power
    # of the first input's knot spacing.
    psi_ptr,
    N,
    I,
    K,
    M,
    stride_x,
    stride_v,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"; "base" for the base function
    SHARED: tl.constexpr,  # whether FORM is "cardinal" and all inputs have the same knots
    SEARCH: tl.constexpr,
    MULTIPLIED: tl.constexpr,  # whether features are multiplied by v
    WORK: tl.constexpr,  # working dtype
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = load_tile(x_ptr, rows, i, N, I, stride_x).to(WORK)
    factor = tl.where(x == x, 1.0, x)
    if MULTIPLIED:
        factor = factor * load_tile(v_ptr, rows, i, N, I, stride_v).to(WORK)
    inside = (rows[:, None] < N) & (i[None, :] < I)
    at = psi_ptr + rows[:, None].to(tl.int64) * K * I + i[None, :]
    if FORM == "base":
        psi = base_function(x, BASE, D) * factor
        tl.store(at, psi.to(psi_ptr.dtype.element_ty), mask=inside)
    else:
        _, unit = load_grid(knots_ptr, 0, I, M, True)
        if FORM == "cardinal":
            first, inv_spacing = load_grid(knots_ptr, i[None, :], I, M, SHARED)
            z = cardinal_coordinate(x, first, inv_spacing, ORDER)
            factor = factor * cardinal_scale(ORDER, D)
            if D > 0 and not SHARED:
                factor = scaled(factor, divide(inv_spacing, 0.0 * inv_spacing + unit), D)
        else:
            j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
            if D > 0:
                factor = scaled(factor, 1.0 / unit, D)
        for b in tl.range(0, K):
            if FORM == "cardinal":
                psi = cardinal(z - middle(b, ORDER, WORK), ORDER, D)
            else:
                psi = pick(active, j, b, ORDER)
            tl.store(at + b * I, (psi * factor).to(psi_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dot_features_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    knots_ptr,  # knots [I, M]
    products_ptr,  # matrix product [N, K, I]
    h_ptr,  # result [N, I], to which the sum over b of psi_b * products_b is added
    N,
    I,
    K,
    M,
    stride_x,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"; "base" for the base function
    SHARED: tl.constexpr,  # whether FORM is "cardinal" and all inputs have the same knots
    SEARCH: tl.constexpr,
    WORK: tl.constexpr,  # working dtype
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = load_tile(x_ptr, rows, i, N, I, stride_x).to(WORK)
    inside = (rows[:, None] < N) & (i[None, :] < I)
    at = products_ptr + rows[:, None].to(tl.int64) * K * I + i[None, :]
    if FORM == "base":
        h = base_function(x, BASE, D) * tl.load(at, mask=inside, other=0.0).to(WORK)
    else:
        h = tl.zeros((ROWS, COLUMNS), WORK)
        if FORM == "cardinal":
            first, inv_spacing = load_grid(knots_ptr, i[None, :], I, M, SHARED)
            z = cardinal_coordinate(x, first, inv_spacing, ORDER)
        else:
            j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
        for b in tl.range(0, K):
            if FORM == "cardinal":
                psi = cardinal(z - middle(b, ORDER, WORK), ORDER, D)
            else:
                psi = pick(active, j, b, ORDER)
            h += psi * tl.load(at + b * I, mask=inside, other=0.0).to(WORK)
        if FORM == "cardinal":
            h = scaled(h * cardinal_scale(ORDER, D), inv_spacing, D)
        h = tl.where(x == x, h, x)
    into = h_ptr + rows[:, None].to(tl.int64) * I + i[None, :]
    tl.store(into, tl.load(into, mask=inside, other=0.0) + h, mask=inside)


def launch_write(p: Problem, config: Config, rows: slice, psi: Tensor, base: bool) -> Launch:
    """Return the kernel launch that writes the features of some rows into ``psi``.

    ``psi`` has the shape ``[rows, K, I]`` for the splines or, if ``base``, the shape ``[rows, 1, I]`` for the base
    function.
    """
    part = p.part(rows)
    arguments = {**part.x_and_knots(), **part.multiplier(), **part.sizes(base), "psi_ptr": psi}
    constants = {**_constants(part, config, base), "MULTIPLIED": part.v is not None}
    return Launch(write_features_kernel, _grid(part, config), arguments, constants, config.warps, config.stages)


def launch_dot(p: Problem, config: Config, rows: slice, products: Tensor, h: Tensor, base: bool) -> Launch:
    """Return the kernel launch that computes ``h[rows] += (products * psi).sum(1)``.

    ``products`` has the shape ``[rows, K, I]`` for the splines or, if ``base``, the shape ``[rows, 1, I]`` for the base
    function.
    """
    part = p.part(rows)
    arguments = {**part.x_and_knots(), **part.sizes(base), "products_ptr": products, "h_ptr": h[rows]}
    constants = _constants(part, config, base)
    return Launch(dot_features_kernel, _grid(part, config), arguments, constants, config.warps, config.stages)


def _constants(p: Problem, config: Config, base: bool) -> dict:
    tile = {"ROWS": config.rows, "COLUMNS": config.columns}
    return {**p.constants_of(base), "SHARED": p.shared_grid, "WORK": DTYPES[p.work], **tile}


def _grid(p: Problem, config: Config) -> tuple[int, int]:
    return triton.cdiv(p.rows, config.rows), triton.cdiv(p.inputs, config.columns)
