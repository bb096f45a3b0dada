"""The two kernels of the chunked implementation.

The first kernel writes the features of some rows to memory. The second kernel, which is used for H, computes the
features of some rows again, multiplies them by a matrix product that is stored in memory, and sums over the features.
Both kernels support all knots, all spline orders k and all derivatives d <= k.
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
from .tiles import load_tile, store_tile


@triton.jit(do_not_specialize=UNSPECIALIZED)
def write_features_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    v_ptr,  # v [N, I]; consecutive rows are stride_v elements apart; if v is None, x_ptr
    knots_ptr,  # knots [I, M]
    # Splines [N, K, I]. The d-th derivatives of splines are multiplied by the d-th power of the first input's knot
    # spacing.
    psi_ptr,
    base_ptr,  # base function [N, I]; psi_ptr if BASE is "none"
    N,
    I,
    K,
    M,
    stride_x,
    stride_v,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"; "none" if no splines are written
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
    if BASE != "none":
        store_tile(base_ptr, rows, i, N, I, I, base_function(x, BASE, D) * factor)
    if FORM != "none":
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
            store_tile(psi_ptr + b * I, rows, i, N, I, K * I, psi * factor)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dot_features_kernel(
    x_ptr,  # x [N, I]; consecutive rows are stride_x elements apart
    knots_ptr,  # knots [I, M]
    products_ptr,  # matrix product for the splines [N, K, I]
    base_products_ptr,  # matrix product for the base function [N, I]; products_ptr if BASE is "none"
    h_ptr,  # result [N, I], the sum over all features of the products of feature and matrix product
    N,
    I,
    K,
    M,
    stride_x,
    ORDER: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    FORM: tl.constexpr,  # form of the splines, "cardinal" or "local"
    SHARED: tl.constexpr,  # whether FORM is "cardinal" and all inputs have the same knots
    SEARCH: tl.constexpr,
    WORK: tl.constexpr,  # working dtype
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = load_tile(x_ptr, rows, i, N, I, stride_x).to(WORK)
    if FORM == "cardinal":
        first, inv_spacing = load_grid(knots_ptr, i[None, :], I, M, SHARED)
        z = cardinal_coordinate(x, first, inv_spacing, ORDER)
    else:
        j, active = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
    h = tl.zeros((ROWS, COLUMNS), WORK)
    for b in tl.range(0, K):
        if FORM == "cardinal":
            psi = cardinal(z - middle(b, ORDER, WORK), ORDER, D)
        else:
            psi = pick(active, j, b, ORDER)
        h += psi * load_tile(products_ptr + b * I, rows, i, N, I, K * I).to(WORK)
    if FORM == "cardinal":
        h = scaled(h * cardinal_scale(ORDER, D), inv_spacing, D)
    if BASE != "none":
        h += base_function(x, BASE, D) * load_tile(base_products_ptr, rows, i, N, I, I).to(WORK)
    store_tile(h_ptr, rows, i, N, I, I, tl.where(x == x, h, x))


def launch_write(p: Problem, config: Config, rows: slice, psi: Tensor | None, base: Tensor | None) -> Launch:
    """Return the kernel launch that writes the features of some rows.

    Args:
        p: the problem.
        config: the tile sizes.
        rows: the rows of x.
        psi: memory for the splines ``[rows, K, I]``; None if only the base function is computed.
        base: memory for the base function ``[rows, I]``; None if only the splines are computed.
    """
    part = p.part(rows)
    memory = {"psi_ptr": base if psi is None else psi, "base_ptr": psi if base is None else base}
    arguments = {**part.x_and_knots(), **part.multiplier(), **part.sizes("O"), **memory}
    constants = {**_constants(part, config), "MULTIPLIED": part.v is not None}
    if base is None:
        constants["BASE"] = "none"
    return Launch(write_features_kernel, _grid(part, config), arguments, constants, config.warps, config.stages)


def launch_dot(
    p: Problem, config: Config, rows: slice, products: Tensor, base_products: Tensor | None, h: Tensor
) -> Launch:
    """Return the kernel launch that computes some rows of H: the sum over all features of a feature times its product.

    Args:
        p: the problem.
        config: the tile sizes.
        rows: the rows of x.
        products: the matrix product for the splines ``[rows, K, I]``.
        base_products: the matrix product for the base function ``[rows, I]``; None if there is no base function.
        h: memory for the result at all rows ``[N, I]``.
    """
    part = p.part(rows)
    memory = {"products_ptr": products, "base_products_ptr": products if base_products is None else base_products}
    arguments = {**part.x_and_knots(), **part.sizes("O"), **memory, "h_ptr": h[rows]}
    constants = _constants(part, config)
    return Launch(dot_features_kernel, _grid(part, config), arguments, constants, config.warps, config.stages)


def _constants(p: Problem, config: Config) -> dict:
    return {**p.constants(config), "WORK": DTYPES[p.work]}


def _grid(p: Problem, config: Config) -> tuple[int, int]:
    return triton.cdiv(p.rows, config.rows), triton.cdiv(p.inputs, config.columns)
