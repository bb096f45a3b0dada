"""What the kernels share besides splines: which tile a program has, and loads at its edges."""

from __future__ import annotations

import triton
import triton.language as tl

from .spline import INTERPRETED


@triton.jit
def tile_of(program, across, down, GROUP: tl.constexpr):
    """Row and column of a program's tile, GROUP rows of tiles at a time, so that they share what they read."""
    width = GROUP * down
    group = program // width
    height = tl.minimum(across - group * GROUP, GROUP)
    return group * GROUP + (program % width) % height, (program % width) // height


@triton.jit
def load_tile(ptr, rows, columns, height, width, stride):
    """A tile of a matrix; 0 beyond its edges."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(ptr, rows, columns, height, width, stride, values):
    """A tile into a matrix, in its dtype."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    at = ptr + rows[:, None].to(tl.int64) * stride + columns[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b."""
    if INTERPRETED:  # which takes the bits of a bfloat16 for an integer
        a, b = a.to(total.dtype), b.to(total.dtype)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def settle(accumulator, WAIT: tl.constexpr):
    """Where ``WAIT``, make the product end here.

    Triton before 3.9 lets a wgmma run on while the next iteration overwrites the registers that it
    reads (Triton's issue 9433); what uses its result has to wait for it.
    """
    if WAIT and not INTERPRETED:
        accumulator = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=f,f", [accumulator], dtype=tl.float32, is_pure=True, pack=1
        )
    return accumulator
