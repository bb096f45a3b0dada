"""Device functions for the tiles of a matrix: their order, loads, stores and products."""

from __future__ import annotations

import triton
import triton.language as tl

from .spline import INTERPRETED


@triton.jit
def tile_of(program, across, down, GROUP: tl.constexpr):
    """Return a tuple of the row and the column of a program's tile.

    The tiles are numbered in groups of GROUP rows of tiles, so that programs that run at the same time read the same
    data. ``across`` is the number of rows of tiles, and ``down`` is the number of columns of tiles.
    """
    width = GROUP * down
    group = program // width
    height = tl.minimum(across - group * GROUP, GROUP)
    return group * GROUP + (program % width) % height, (program % width) // height


@triton.jit
def load_tile(ptr, rows, columns, height, width, stride):
    """Load a tile of a matrix, with 0 beyond the edges of the matrix."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(ptr, rows, columns, height, width, stride, values):
    """Store a tile of a matrix, converted to the dtype of the matrix."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    at = ptr + rows[:, None].to(tl.int64) * stride + columns[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """Return total + a @ b."""
    if INTERPRETED:  # Triton's interpreter would multiply the bits of bfloat16 numbers as integers
        a, b = a.to(total.dtype), b.to(total.dtype)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def await_product(accumulator, WAIT: tl.constexpr):
    """Return the accumulator of a matrix product; if ``WAIT``, wait for the product first.

    In Triton before 3.9, an asynchronous matrix product (wgmma) may still run while the next loop iteration overwrites
    the registers that hold its left operand (Triton issue 9433). An instruction that reads the accumulator forces the
    program to wait for the product.
    """
    if WAIT and not INTERPRETED:
        accumulator = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=f,f", [accumulator], dtype=tl.float32, is_pure=True, pack=1
        )
    return accumulator
