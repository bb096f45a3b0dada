"""Device functions for the tiles of a matrix: their order, loads, stores and products."""

from __future__ import annotations

import triton
import triton.language as tl

from .spline import INTERPRETED


@triton.jit
def tile_of(program, across, down, GROUP: tl.constexpr):
    """Row and column of a program's tile. GROUP rows of tiles are taken at a time, so that programs that run at the
    same time read the same data. ``across`` and ``down`` are the numbers of rows and of columns of tiles."""
    width = GROUP * down
    group = program // width
    height = tl.minimum(across - group * GROUP, GROUP)
    return group * GROUP + (program % width) % height, (program % width) // height


@triton.jit
def load_tile(ptr, rows, columns, height, width, stride):
    """A tile of a matrix, with 0 beyond the edges of the matrix."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(ptr, rows, columns, height, width, stride, values):
    """Store a tile of a matrix, converted to its dtype."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    at = ptr + rows[:, None].to(tl.int64) * stride + columns[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b."""
    if INTERPRETED:  # the interpreter treats the bits of a bfloat16 as an integer
        a, b = a.to(total.dtype), b.to(total.dtype)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def await_product(accumulator, WAIT: tl.constexpr):
    """Return the accumulator; if ``WAIT``, the product that writes it ends here.

    Triton before 3.9 may let an asynchronous product (wgmma) run on while the next iteration overwrites the registers
    that it reads (issue 9433 of Triton). An instruction that reads the accumulator makes it wait for the product.
    """
    if WAIT and not INTERPRETED:
        accumulator = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=f,f", [accumulator], dtype=tl.float32, is_pure=True, pack=1
        )
    return accumulator
