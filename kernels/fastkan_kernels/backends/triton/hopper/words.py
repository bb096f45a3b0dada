"""Device functions that compute the features of an input as 128-bit words, for all Hopper kernels.

A word holds the 16-bit features of eight consecutive splines at one element of x. At most k + 1 consecutive splines are
not 0. The values of these k + 1 active splines are therefore rounded, packed into 64 bits and shifted to their place in
the word, which depends on the cell of the element. A kernel needs about 4 operations for each feature, and each word is
one store to shared memory.

The d-th derivatives are multiplied by the d-th power of a knot spacing, as described in :mod:`..kernels.spline`.
"""

from __future__ import annotations

import fractions
import math

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..config import WORD
from ..kernels.spline import base_function, divide, inv_spacing_of, local, scaled
from .pipeline import await_tile, block_of, reinterpret

SPLINES = gl.constexpr(WORD)  # number of splines in a word


@triton.constexpr_function
def coefficient(order, derivative, position, power, mirrored):
    """Return a coefficient of the polynomial by which an active spline is computed in its cell.

    Args:
        order: order k of the splines.
        derivative: order d of the derivative.
        position: position r of the spline among the active splines, 0 to k.
        power: power of u, the distance from the left knot of the cell as a fraction of the cell's width.
        mirrored: whether the polynomial is in 1 - u instead of u.
    """
    # a spline is symmetric about its centre, so that derivatives of odd order change sign under reflection
    if mirrored:
        return (-1) ** derivative * coefficient(order, derivative, order - position, power, False)
    power += derivative
    # The spline is the sum over m of (-1)^m binom(k + 1, m) (t - m)^k / k! for all m <= t, where t = k - r + u.
    terms = (
        (-1) ** m * math.comb(order + 1, m) * fractions.Fraction(order - position - m) ** (order - power)
        for m in range(order - position + 1)
    )
    scale = fractions.Fraction(math.comb(order, power) * math.perm(power, derivative), math.perm(order, order))
    return float(scale * sum(terms))


@gluon.jit
def add_term(value, z, TERM: gl.constexpr):
    """Return the fused multiply-add ``value * z + TERM``."""
    if TERM == 0.0:
        return value * z
    else:
        return gl.fma(value, z, gl.full(z.shape, TERM, gl.float32, z.type.layout))


@gluon.jit
def polynomial(z, ORDER: gl.constexpr, D: gl.constexpr, POSITION: gl.constexpr, MIRRORED: gl.constexpr):
    """Return the d-th derivative of one active spline by the polynomial of :func:`coefficient`."""
    DEGREE: gl.constexpr = ORDER - D
    value = gl.full(z.shape, coefficient(ORDER, D, POSITION, DEGREE, MIRRORED), gl.float32, z.type.layout)
    for step in gl.static_range(1, DEGREE + 1):
        value = add_term(value, z, coefficient(ORDER, D, POSITION, DEGREE - step, MIRRORED))
    return value


@gluon.jit
def active_polynomials(u, ORDER: gl.constexpr, D: gl.constexpr):
    """Return a tuple of the d-th derivatives of the k + 1 active splines on knots with distance 1, for d < k.

    ``u`` is the distance from the left knot of the cell.
    """
    values = ()
    for r in gl.static_range(ORDER + 1):
        if 2 * r <= ORDER:  # polynomials in the distance from the nearer end of the support have fewer terms
            values = values + (polynomial(1.0 - u, ORDER, D, r, True),)
        else:
            values = values + (polynomial(u, ORDER, D, r, False),)
    return values


@gluon.jit
def cell_of(t, LAST: gl.constexpr):
    """Return a tuple of the integer part and the fraction of ``t``, which is first clamped to [-1, LAST]."""
    t = gl.minimum(gl.maximum(t, -1.0), LAST)
    cell = gl.floor(t)
    return cell.to(gl.int32), t - cell


@gluon.jit
def active(
    x, knots_ptr, i, grid, I, M,
    ORDER: gl.constexpr, D: gl.constexpr, FORM: gl.constexpr, SEARCH: gl.constexpr, SHARED: gl.constexpr,
    WORDS: gl.constexpr,
):  # fmt: skip
    """Return a tuple of the cell j of each element of a tile of x, and the d-th derivatives of splines j - k to j.

    The derivatives are divided by the d-th power of the first input's inverse knot spacing.

    Args:
        i: inputs of the columns of the tile.
        grid: tuple of the first knot and the inverse knot spacing of the first input.
        SHARED: whether all inputs have the same uniform knots.
    """
    if FORM == "cardinal":
        if SHARED:
            j, u = cell_of((x - grid[0]) * grid[1], SPLINES * WORDS + ORDER)
            return j, active_polynomials(u, ORDER, D)
        else:
            first = gl.load(knots_ptr + i * M, mask=i < I, other=0.0)
            inv_spacing = inv_spacing_of(first, gl.load(knots_ptr + i * M + M - 1, mask=i < I, other=1.0), M)
            j, u = cell_of((x - first[None, :]) * inv_spacing[None, :], SPLINES * WORDS + ORDER)
            made = active_polynomials(u, ORDER, D)
            values = ()
            for r in gl.static_range(ORDER + 1):
                values = values + (scaled(made[r], divide(inv_spacing, 0.0 * inv_spacing + grid[1])[None, :], D),)
            return j, values
    else:
        j, made = local(x, knots_ptr, i, I, M, ORDER, D, SEARCH)
        values = ()
        for r in gl.static_range(ORDER + 1):  # a spline that does not exist may be infinite
            exists = (j + r >= ORDER) & (j + r < M - 1)
            values = values + (scaled(gl.where(exists, made[r], 0.0), 1.0 / grid[1], D),)
        return j, values


@triton.constexpr_function
def placing(dtype):
    """Return PTX code that packs four numbers and shifts them to their place in a word of 128 bits.

    PTX defines that a 64-bit shift by 64 bits or more gives 0. A negative shift is treated as a large unsigned number
    and therefore also gives 0.
    """
    kind = "bf16x2" if dtype == gl.bfloat16 else "f16x2"
    return f"""{{
    .reg .b32 %lo, %hi, %right, %up, %down;
    .reg .b64 %packed, %a, %b;
    cvt.rn.{kind}.f32 %lo, $5, $4;
    cvt.rn.{kind}.f32 %hi, $7, $6;
    mov.b64 %packed, {{%lo, %hi}};
    neg.s32 %right, $8;
    sub.s32 %down, 64, $8;
    add.s32 %up, $8, -64;
    shl.b64 %a, %packed, $8;
    shr.u64 %b, %packed, %right;
    or.b64 %a, %a, %b;
    mov.b64 {{$0, $1}}, %a;
    shr.u64 %a, %packed, %down;
    shl.b64 %b, %packed, %up;
    or.b64 %a, %a, %b;
    mov.b64 {{$2, $3}}, %a;
    }}"""


@gluon.jit
def store_words(
    inputs, i, word, tile, knots_ptr, grid, I, M,
    ORDER: gl.constexpr, D: gl.constexpr, FORM: gl.constexpr, SEARCH: gl.constexpr, SHARED: gl.constexpr,
    WORDS: gl.constexpr, NANS: gl.constexpr,
):  # fmt: skip
    """Store one word of features for each element of a tile of x.

    Args:
        inputs: tuple of the tiles of x and, if features are multiplied by v, of v.
        i: inputs of the columns of the tile.
        word: index of the word among the words of an element.
        tile: tile of shared memory with eight 16-bit columns for each column of x, in lines of 128 bytes.
        NANS: number of features at the beginning of the word that are set to NaN where x is NaN.
    """
    x = inputs[0]
    j, values = active(x, knots_ptr, i, grid, I, M, ORDER, D, FORM, SEARCH, SHARED, WORDS)
    nan = x != x
    if len(inputs) > 1:
        nan = nan | (inputs[1] * 0.0 != 0.0)
    packed = ()
    for r in gl.static_range(4):
        if r > ORDER:
            packed = packed + (gl.full(x.shape, 0.0, gl.float32, x.type.layout),)
        elif len(inputs) > 1:
            packed = packed + (values[r] * inputs[1],)
        else:
            packed = packed + (values[r],)
    shift = (j - (ORDER + SPLINES * word)) * 16
    a, b, c, d = gl.inline_asm_elementwise(
        placing(tile.dtype), "=r,=r,=r,=r,f,f,f,f,r", [packed[0], packed[1], packed[2], packed[3], shift],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    if NANS > 0:
        a = gl.where(nan, 0x7FFF7FFF, a)
    if NANS > 2:
        b, c, d = gl.where(nan, 0x7FFF7FFF, b), gl.where(nan, 0x7FFF7FFF, c), gl.where(nan, 0x7FFF7FFF, d)
    lines = gl.join(gl.join(a, c), gl.join(b, d)).reshape((x.shape[0], 4 * x.shape[1]))
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 32)
    reinterpret(tile, gl.int32, [tile.shape[0], tile.shape[1] // 2], LAYOUT).store(lines)


@gluon.jit
def quick_silu(x):
    """Return silu(x) with the relative error of the approximate reciprocal, which 16-bit products tolerate."""
    below = 1.0 + gl.exp2(x * -1.4426950408889634)
    reciprocal = gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [below], dtype=gl.float32, is_pure=True, pack=1
    )
    return gl.maximum(x, -1e3) * reciprocal  # at x = -infinity, the product would be NaN


@gluon.jit
def store_base(inputs, tile, factor, BASE: gl.constexpr, D: gl.constexpr):
    """Store the base function, or its d-th derivative, at a tile of x, multiplied by a factor and v."""
    if BASE == "silu" and D == 0:
        value = quick_silu(inputs[0])
    else:
        value = base_function(inputs[0], BASE, D)
    if D > 0:
        value = value * factor
    if len(inputs) > 1:
        value = value * inputs[1]
    tile.store(value.to(tile.dtype))


@gluon.jit
def load_inputs(tiles, ready, turn, descriptors, LAYOUT: gl.constexpr, SLOTS: gl.constexpr):
    """Return a tuple of the block of x and, if there is a second descriptor, the block of v that arrive in a slot."""
    loaded = ()
    for n in gl.static_range(len(descriptors)):
        await_tile(ready[1 + n], turn, SLOTS)
        loaded = loaded + (block_of(tiles[n], turn % SLOTS, descriptors[n]).load(LAYOUT).to(gl.float32),)
    return loaded
