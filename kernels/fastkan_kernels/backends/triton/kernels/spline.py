"""Device functions that compute the features psi^(d) in registers, for all kernels.

Splines are computed in one of two forms:

- cardinal, on uniform knots and for d < k: a sum of truncated powers of the distance from the spline's centre, with
  about two operations for each power (:mod:`fastkan_kernels.bspline.cardinal` has the formula);
- local, on any knots and for d <= k: the k + 1 active splines in the cell of x by the Cox-de Boor recursion
  (de Boor, A Practical Guide to Splines, X (16)), or one spline alone from its own k + 2 knots.

The kernels multiply derivatives in units of a cell, in which they stay in the range of a narrow dtype. The splines of a
NaN are 0, since saturation and comparisons lose it. Each kernel adds the NaN afterwards, once for each input instead of
once for each feature.
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
    """The factor that :func:`cardinal` leaves out, besides the d-th power of the inverse spacing."""
    power = order - derivative
    return half_width(order) ** power / math.factorial(power)


@triton.constexpr_function
def truncated_size(order, derivative, j):
    """Factor of the j-th truncated power; for d = 0 only its sign, with :func:`truncated_factor` for the rest."""
    sign = -1.0 if j % 2 else 1.0
    return sign * (1.0 if derivative == 0 else math.comb(order + 1, j))


@triton.constexpr_function
def truncated_factor(order, derivative, j):
    """Factor inside the j-th truncated power. For d = 0 the binomial coefficient is moved into the power, whose base
    then stays at most 1 as saturation needs; for d > 0 it could exceed 1."""
    return math.comb(order + 1, j) ** (1 / order) if derivative == 0 else 1.0


@triton.jit
def saturate(x):
    """x clamped to [0, 1] (in float64 and in the interpreter only from below); a NaN becomes 0. On the GPU it is a
    modifier of the addition before it and takes no instruction of its own."""
    if INTERPRETED or x.dtype == tl.float64:
        return tl.where(x > 0.0, x, 0.0)
    else:
        return tl.inline_asm_elementwise("cvt.sat.f32.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def divide(a, b):
    """a / b, correctly rounded; Triton's own division of float32 has an error of two roundings."""
    if INTERPRETED or a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def inv_spacing_of(first, last, M):
    """Inverse spacing of M uniform knots."""
    return divide(0.0 * first + (M - 1), last - first)


@triton.jit
def scaled(x, inv_spacing, D: tl.constexpr):
    """x * inv_spacing^d, by d multiplications, since inv_spacing^d alone might overflow."""
    for _ in tl.static_range(D):
        x = x * inv_spacing
    return x


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    """x to a constant power from 0 to 5."""
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
    """The total plus the J-th truncated power."""
    SIZE: tl.constexpr = truncated_size(ORDER, D, J)
    FACTOR: tl.constexpr = truncated_factor(ORDER, D, J)
    END: tl.constexpr = FACTOR * J / half_width(ORDER)
    if edge.dtype == tl.float64:  # a Python number would become a float32 here
        inner = tl.fma(edge, tl.full((), FACTOR, edge.dtype), tl.full((), -END, edge.dtype))
    else:
        inner = tl.fma(edge, FACTOR, -END)
    term = saturate(inner)
    return tl.fma(power(term, ORDER - D - 1), term * SIZE, total)


@triton.jit
def cardinal(z, ORDER: tl.constexpr, D: tl.constexpr, KEEPS_NAN: tl.constexpr = False):
    """B_k^(d) on integer knots divided by :func:`cardinal_scale`, for d < k.

    ``z`` is the distance from the spline's centre, in units of half its support. A NaN becomes 0; with ``KEEPS_NAN``,
    which takes one more operation, it stays.
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
def cardinal_coordinate(x, first, inv_spacing, ORDER: tl.constexpr):
    """The argument of :func:`cardinal` for spline 0, from the first knot and the inverse spacing."""
    return ((x - first) * inv_spacing - half_width(ORDER)) * (1.0 / half_width(ORDER))


@triton.jit
def load_cardinal_coordinate(x, knots_ptr, i, inputs, M, ORDER: tl.constexpr):
    """:func:`cardinal_coordinate` of a tile x, and the inverse spacing of its inputs ``i``, which lie along its second
    dimension. For spline b, :func:`middle` is to be subtracted from the coordinate."""
    first = tl.load(knots_ptr + i * M, mask=i < inputs, other=0.0)
    last = tl.load(knots_ptr + i * M + M - 1, mask=i < inputs, other=1.0)
    inv_spacing = inv_spacing_of(first, last, M)
    return cardinal_coordinate(x, first[None, :], inv_spacing[None, :], ORDER), inv_spacing


@triton.jit
def middle(b, ORDER: tl.constexpr, DTYPE: tl.constexpr):
    """Distance of the centre of spline b from that of spline 0, in units of half a support. It has the dtype ``DTYPE``,
    since a float32 would lose precision in a float64 computation."""
    return tl.cast(b, DTYPE) * (1.0 / half_width(ORDER))


@triton.jit
def find_cell(x, rows, M, SEARCH: tl.constexpr):
    """Index of the last knot that is not above x, by bisection: -1 if all are above it or x is NaN, M - 1 if none is.

    ``rows`` holds a pointer to the row of M knots of each x; ``2^SEARCH`` must exceed M.
    """
    j = tl.where(x == x, -1, -1)  # a constant in the layout of x
    for s in tl.static_range(SEARCH):
        probe = j + (1 << (SEARCH - 1 - s))
        knot = tl.load(rows + probe, mask=probe < M, other=float("inf"))
        j = tl.where((knot <= x) & (probe < M), probe, j)
    return j


@triton.jit
def width(low, high):
    """high - low, or infinity where it is 0, so that a division by it gives 0."""
    return tl.where(high > low, high - low, float("inf"))


@triton.jit
def active_splines(x, j, rows, M, ORDER: tl.constexpr, D: tl.constexpr):
    """psi^(d) of the splines j - k, ..., j, as a tuple; values of splines that do not exist are arbitrary."""
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
    """The cell of each element of a tile x, and psi^(d) of its active splines. The inputs ``i`` lie along the second
    dimension of x."""
    rows = tl.broadcast_to(knots_ptr + tl.where(i < inputs, i, 0)[None, :] * M, x.shape)
    j = find_cell(x, rows, M, SEARCH)
    return j, active_splines(x, j, rows, M, ORDER, D)


@triton.jit
def pick(values, j, b, ORDER: tl.constexpr):
    """The value of spline ``b`` among those of :func:`active_splines` in cell ``j``; 0 if it is not active."""
    at = b - j + ORDER
    picked = tl.where(at == 0, values[0], 0.0)
    for q in tl.static_range(1, ORDER + 1):
        picked = tl.where(at == q, values[q], picked)
    return picked


@triton.jit
def one_spline(x, knots, ORDER: tl.constexpr, D: tl.constexpr):
    """psi_b^(d) from the spline's own k + 2 knots, a tuple of tensors that broadcast with x."""
    inside = (x >= knots[0]) & (x < knots[ORDER + 1])
    x = tl.where(inside, x, knots[0])  # inf * 0 would be NaN
    values = ()
    for m in tl.static_range(ORDER + 1):
        values = values + (tl.where(inside & (x >= knots[m]) & (x < knots[m + 1]), 1.0, 0.0).to(x.dtype),)
    for degree in tl.static_range(1, ORDER + 1):
        new = ()
        for r in tl.static_range(ORDER + 1 - degree):
            low, next_low = knots[r], knots[r + 1]
            high, next_high = knots[r + degree], knots[r + degree + 1]
            # The widths do not depend on the rows of x: there is one division for each input, not for each element.
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
    """The d-th derivative of the base function, d <= 4. A NaN stays, and an infinity gives the limit. With a ``BASE``
    that ends in "16" the values are rounded to float16; see :meth:`.problem.Problem.base_rounded`."""
    if BASE == "identity16" or BASE == "silu16":
        return unrounded_base(x, "identity" if BASE == "identity16" else "silu", D).to(tl.float16).to(x.dtype)
    else:
        return unrounded_base(x, BASE, D)


@triton.jit
def unrounded_base(x, BASE: tl.constexpr, D: tl.constexpr):
    """:func:`base_function` without rounding."""
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
            # s(-|x|) and s(|x|) with the logistic function s. Both are computed, since 1 - s would lose digits.
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
