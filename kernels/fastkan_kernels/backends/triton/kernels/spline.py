"""psi^(d) in registers: the device functions that every kernel makes its features with.

Two forms, each in units of a cell, so that no derivative leaves a narrow dtype's range:

- cardinal, on uniform knots and for d < k: truncated powers of the distance from the spline's
  middle (:mod:`..cpu.cardinal` has the formula). About two operations for each power.
- local, on any knots and for d <= k: the k + 1 splines that are not zero in x's cell, by Cox-de Boor
  (de Boor, A Practical Guide to Splines, X (16)), or one spline alone from its own k + 2 knots.

A NaN makes no spline (saturation and comparisons eat it): each kernel puts it back, once for each
input instead of once for each feature.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.constexpr_function
def half_width(order):
    """Half of a spline's support, in cells."""
    return (order + 1) / 2


@triton.constexpr_function
def cardinal_scale(order, derivative):
    """What :func:`cardinal` must be multiplied by, beside (cells per unit length)^d."""
    power = order - derivative
    return half_width(order) ** power / math.factorial(power)


@triton.constexpr_function
def truncated_size(order, derivative, j):
    """Factor of the j-th truncated power, of which :func:`truncated_factor` may have taken all but the sign."""
    sign = -1.0 if j % 2 else 1.0
    return sign * (1.0 if derivative == 0 else math.comb(order + 1, j))


@triton.constexpr_function
def truncated_factor(order, derivative, j):
    """What goes into the j-th power; only for d = 0 does it leave it at 1 or less, which saturation needs."""
    return math.comb(order + 1, j) ** (1 / order) if derivative == 0 else 1.0


@triton.jit
def saturate(x):
    """x, at most 1, or 0 if it is below; a NaN becomes 0. One modifier of an addition on the hardware."""
    if INTERPRETED or x.dtype == tl.float64:
        return tl.where(x > 0.0, x, 0.0)
    else:
        return tl.inline_asm_elementwise("cvt.sat.f32.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def divide(a, b):
    """a / b rounded once; Triton's own division of float32 is off by two roundings."""
    if INTERPRETED or a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def inv_spacing_of(first, last, M):
    """Of M uniform knots."""
    return divide(0.0 * first + (M - 1), last - first)


@triton.jit
def scaled(x, inv_spacing, D: tl.constexpr):
    """x inv_spacing^d, where inv_spacing^d alone might overflow."""
    for _ in tl.static_range(D):
        x = x * inv_spacing
    return x


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    """x to a static power of 0 to 5."""
    if EXPONENT == 0:
        return x * 0.0 + 1.0
    elif EXPONENT == 1:
        return x
    elif EXPONENT == 2:
        return x * x
    elif EXPONENT == 3:
        return x * x * x
    elif EXPONENT == 4:
        return (x * x) * (x * x)
    else:
        return (x * x) * (x * x) * x


@triton.jit
def add_truncated(total, edge, ORDER: tl.constexpr, D: tl.constexpr, J: tl.constexpr):
    """The total with the J-th truncated power."""
    SIZE: tl.constexpr = truncated_size(ORDER, D, J)
    FACTOR: tl.constexpr = truncated_factor(ORDER, D, J)
    END: tl.constexpr = FACTOR * J / half_width(ORDER)
    if edge.dtype == tl.float64:  # of which a number alone would be a float32
        inner = tl.fma(edge, tl.full((), FACTOR, edge.dtype), tl.full((), -END, edge.dtype))
    else:
        inner = tl.fma(edge, FACTOR, -END)
    term = saturate(inner)
    return tl.fma(power(term, ORDER - D - 1), term * SIZE, total)


@triton.jit
def cardinal(z, ORDER: tl.constexpr, D: tl.constexpr, KEEPS_NAN: tl.constexpr = False):
    """B_k^(d) on integer knots divided by :func:`cardinal_scale`, for d < k.

    ``z`` is the distance from the spline's middle, in halves of its support. A NaN becomes 0, unless one more
    operation is spent on it.
    """
    EXPONENT: tl.constexpr = ORDER - D
    edge = 1.0 - tl.abs(z)
    if KEEPS_NAN:
        edge = tl.maximum(edge, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        edge = saturate(edge)
    total = power(edge, EXPONENT)
    for j in tl.static_range(1, ORDER // 2 + 1):
        total = add_truncated(total, edge, ORDER, D, j)
    if D % 2 == 1:
        total = tl.where(z > 0.0, -total, total)
    return total


@triton.jit
def centred(x, first, inv_spacing, ORDER: tl.constexpr):
    """x as :func:`cardinal` takes it for spline 0, from the first knot and cells per unit length."""
    return ((x - first) * inv_spacing - half_width(ORDER)) * (1.0 / half_width(ORDER))


@triton.jit
def cells(x, knots_ptr, i, inputs, M, ORDER: tl.constexpr):
    """On uniform knots, x of the inputs ``i`` as :func:`cardinal` takes it, for spline 0 (spline b's is
    ``2 b / (k + 1)`` less), and cells per unit length. ``i`` lies along x's second dimension."""
    first = tl.load(knots_ptr + i * M, mask=i < inputs, other=0.0)
    last = tl.load(knots_ptr + i * M + M - 1, mask=i < inputs, other=1.0)
    inv_spacing = inv_spacing_of(first, last, M)
    return centred(x, first[None, :], inv_spacing[None, :], ORDER), inv_spacing


@triton.jit
def middle(b, ORDER: tl.constexpr, DTYPE: tl.constexpr):
    """Of spline b beside spline 0's, in halves of a support. A number of its own dtype: of float32 it would
    spoil float64."""
    return tl.cast(b, DTYPE) * (1.0 / half_width(ORDER))


@triton.jit
def find_cell(x, rows, M, SEARCH: tl.constexpr):
    """The last knot that is not above x: -1 below all of them, M - 1 above, -1 for a NaN.

    ``rows`` points to each x's own row of M knots; ``2^SEARCH`` is above M.
    """
    j = tl.where(x == x, -1, -1)  # of x's layout, too
    for s in tl.static_range(SEARCH):
        probe = j + (1 << (SEARCH - 1 - s))
        knot = tl.load(rows + probe, mask=probe < M, other=float("inf"))
        j = tl.where((knot <= x) & (probe < M), probe, j)
    return j


@triton.jit
def width(low, high):
    """Of a spline's support; infinite for one of none, since 0/0 counts as 0."""
    return tl.where(high > low, high - low, float("inf"))


@triton.jit
def active_splines(x, j, rows, M, ORDER: tl.constexpr, D: tl.constexpr):
    """psi^(d) of splines j - k, ..., j, a tuple; what is beyond the first or last spline is arbitrary."""
    knots = ()
    for m in tl.static_range(2 * ORDER):
        at = tl.minimum(tl.maximum(j + (m + 1 - ORDER), 0), M - 1)
        knots = knots + (tl.load(rows + at),)
    values = (x * 0.0 + 1.0,)
    for degree in tl.static_range(1, ORDER + 1):
        new = ()
        left = tl.where(x == x, 0.0, 0.0).to(x.dtype)
        for r in tl.static_range(degree):
            low, high = knots[ORDER - degree + r], knots[ORDER + r]
            part = divide(values[r], width(low, high))
            if degree > ORDER - D:
                new = new + (degree * (left - part),)
                left = part
            else:
                new = new + (left + (high - x) * part,)
                left = (x - low) * part
        values = new + (left * degree if degree > ORDER - D else left,)
    return values


@triton.jit
def local(x, knots_ptr, i, inputs, M, ORDER: tl.constexpr, D: tl.constexpr, SEARCH: tl.constexpr):
    """The cell of each x of the inputs ``i``, which lie along x's second dimension, and psi^(d) of its active
    splines."""
    rows = tl.broadcast_to(knots_ptr + tl.where(i < inputs, i, 0)[None, :] * M, x.shape)
    j = find_cell(x, rows, M, SEARCH)
    return j, active_splines(x, j, rows, M, ORDER, D)


@triton.jit
def pick(values, j, b, ORDER: tl.constexpr):
    """Of :func:`active_splines`' values in cell ``j``, spline ``b``'s; 0 if it is none of them."""
    at = b - j + ORDER
    picked = tl.where(at == 0, values[0], 0.0)
    for q in tl.static_range(1, ORDER + 1):
        picked = tl.where(at == q, values[q], picked)
    return picked


@triton.jit
def one_spline(x, knots, ORDER: tl.constexpr, D: tl.constexpr):
    """psi_b^(d) from the spline's own k + 2 knots, a tuple of tensors that go with x's shape."""
    inside = (x >= knots[0]) & (x < knots[ORDER + 1])
    x = tl.where(inside, x, knots[0])  # an infinity times 0 would be NaN
    values = ()
    for m in tl.static_range(ORDER + 1):
        values = values + (tl.where(inside & (x >= knots[m]) & (x < knots[m + 1]), 1.0, 0.0).to(x.dtype),)
    for degree in tl.static_range(1, ORDER + 1):
        new = ()
        for r in tl.static_range(ORDER + 1 - degree):
            low, next_low = knots[r], knots[r + 1]
            high, next_high = knots[r + degree], knots[r + degree + 1]
            # widths don't depend on x: they are divided by once
            here = values[r] * divide(1.0 + 0.0 * low, width(low, high))
            there = values[r + 1] * divide(1.0 + 0.0 * low, width(next_low, next_high))
            if degree > ORDER - D:
                new = new + (degree * (here - there),)
            else:
                new = new + ((x - low) * here + (next_high - x) * there,)
        values = new
    return values[0]


@triton.jit
def base_function(x, BASE: tl.constexpr, D: tl.constexpr):
    """The base function's derivative of order d <= 4; NaN stays, at infinities it takes its limit. Of a ``BASE``
    that ends in "16" the values are rounded to float16; see :meth:`.problem.Problem.base_rounded`."""
    if BASE == "identity16" or BASE == "silu16":
        return unrounded_base(x, "identity" if BASE == "identity16" else "silu", D).to(tl.float16).to(x.dtype)
    else:
        return unrounded_base(x, BASE, D)


@triton.jit
def unrounded_base(x, BASE: tl.constexpr, D: tl.constexpr):
    """:func:`base_function` as it comes."""
    if BASE == "identity":
        if D == 0:
            return x
        return tl.where(x == x, 1.0 if D == 1 else 0.0, x)
    else:
        if D <= 1:
            s = 1.0 / (1.0 + tl.exp(-x))
            bounded = tl.where(x > 1e3, 1e3, tl.where(x < -1e3, -1e3, x))  # inf * 0 would be NaN
            if D == 0:
                return tl.where(x > 1e3, x, bounded * s)
            else:
                return s * (1.0 + bounded * (1.0 - s))
        else:
            bounded = tl.where(x > 1e3, 1e3, tl.where(x < -1e3, -1e3, x))
            # of the logistic s at -|x| and at |x|, neither of which is lost beside 1
            small = tl.exp(-tl.abs(x))
            large = 1.0 / (1.0 + small)
            small = small * large
            slope = small * large  # s (1 - s)
            odd = tl.where(x > 0.0, small - large, large - small)  # 1 - 2 s
            if D == 2:
                return slope * (2.0 + bounded * odd)
            elif D == 3:
                return slope * (3.0 * odd + bounded * (1.0 - 6.0 * slope))
            else:
                tl.static_assert(D == 4)
                return slope * (4.0 * (1.0 - 6.0 * slope) + bounded * odd * (1.0 - 12.0 * slope))
