"""Device functions that compute the features in registers, for all kernels.

The features are the d-th derivatives of the splines of order k and of the base function. A kernel computes the splines
in one of two forms.

- The cardinal form is used on uniform knots and for d < k. Each spline is a sum of truncated powers of the distance
  from the spline's centre, and each power takes about two operations. The formula is given in
  :mod:`fastkan_kernels.bspline.cardinal`.
- The local form is used on any knots and for d <= k. The Cox-de Boor recursion computes the k + 1 active splines in
  the cell of x (de Boor, A Practical Guide to Splines, chapter X, equation 16), or a single spline from its own k + 2
  knots.

The kernels multiply the d-th derivatives of splines by the d-th power of a knot spacing, so that the derivatives stay
in the range of a narrow dtype during the matrix product. At x = NaN the computed splines are 0, because saturation and
comparisons do not propagate NaN. Each kernel sets its result to NaN afterwards, which is done once for each input
instead of once for each feature.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.constexpr_function
def half_width(order):
    """Return half the width of a spline's support, in cells."""
    return (order + 1) / 2


@triton.constexpr_function
def cardinal_scale(order, derivative):
    """Return the factor that turns the result of :func:`cardinal` into the derivative of a spline on integer knots.

    On other uniform knots, the derivative must also be multiplied by the d-th power of the inverse knot spacing.
    """
    power = order - derivative
    return half_width(order) ** power / math.factorial(power)


@triton.constexpr_function
def truncated_size(order, derivative, j):
    """Return the factor by which the j-th truncated power is multiplied.

    For d = 0, the factor is only a sign, and :func:`truncated_factor` contributes the absolute value.
    """
    sign = -1.0 if j % 2 else 1.0
    return sign * (1.0 if derivative == 0 else math.comb(order + 1, j))


@triton.constexpr_function
def truncated_factor(order, derivative, j):
    """Return the factor by which the argument of the j-th truncated power is multiplied.

    For d = 0, the factor contains the binomial coefficient, and the argument of the power still does not exceed 1, as
    saturation requires. For d > 0, an argument with such a factor could exceed 1, so the factor is 1.
    """
    return math.comb(order + 1, j) ** (1 / order) if derivative == 0 else 1.0


@triton.jit
def saturate(x):
    """Return x clamped to the range [0, 1], with 0 in place of NaN.

    In float64 and in Triton's interpreter, x is clamped only from below. On a GPU, clamping is a modifier of the
    preceding addition, so it takes no instruction of its own.
    """
    if INTERPRETED or x.dtype == tl.float64:
        return tl.where(x > 0.0, x, 0.0)
    else:
        return tl.inline_asm_elementwise("cvt.sat.f32.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def divide(a, b):
    """Return the correctly rounded quotient a / b.

    Triton's division operator for float32 numbers may be wrong by two units in the last place.
    """
    if INTERPRETED or a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def inv_spacing_of(first, last, M):
    """Return the inverse spacing of M uniform knots, given the first and the last knot."""
    return divide(0.0 * first + (M - 1), last - first)


@triton.jit
def scaled(x, inv_spacing, D: tl.constexpr):
    """Return x * inv_spacing^d.

    The product is computed by d multiplications, because inv_spacing^d alone might overflow.
    """
    for _ in tl.static_range(D):
        x = x * inv_spacing
    return x


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    """Return x raised to a constant power from 0 to 5."""
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
    """Return ``total`` plus the J-th truncated power."""
    SIZE: tl.constexpr = truncated_size(ORDER, D, J)
    FACTOR: tl.constexpr = truncated_factor(ORDER, D, J)
    END: tl.constexpr = FACTOR * J / half_width(ORDER)
    if edge.dtype == tl.float64:  # Triton would convert a Python number to float32
        inner = tl.fma(edge, tl.full((), FACTOR, edge.dtype), tl.full((), -END, edge.dtype))
    else:
        inner = tl.fma(edge, FACTOR, -END)
    term = saturate(inner)
    return tl.fma(power(term, ORDER - D - 1), term * SIZE, total)


@triton.jit
def cardinal(z, ORDER: tl.constexpr, D: tl.constexpr, KEEPS_NAN: tl.constexpr = False):
    """Return the d-th derivative of the cardinal spline on integer knots, divided by :func:`cardinal_scale`, for d < k.

    ``z`` is the distance from the spline's centre, in units of half the width of its support. At z = NaN the result is
    0. With ``KEEPS_NAN``, the result at z = NaN is NaN, which takes one more operation.
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
    """Return the argument of :func:`cardinal` for spline 0, given the first knot and the inverse knot spacing.

    For spline b, ``middle(b, ...)`` must be subtracted from the result.
    """
    return ((x - first) * inv_spacing - half_width(ORDER)) * (1.0 / half_width(ORDER))


@triton.jit
def load_grid(knots_ptr, i, inputs, M, SHARED: tl.constexpr):
    """Return a tuple of the first knot and the inverse knot spacing of the inputs ``i``, on uniform knots.

    If ``SHARED``, all inputs have the same knots, and the results are numbers instead of tensors of the shape of ``i``.
    A kernel can then load the knots once instead of once for each block of inputs.
    """
    if SHARED:
        own = knots_ptr
    else:
        own = knots_ptr + tl.where(i < inputs, i, 0) * M
    first = tl.load(own)
    return first, inv_spacing_of(first, tl.load(own + M - 1), M)


@triton.jit
def middle(b, ORDER: tl.constexpr, DTYPE: tl.constexpr):
    """Return the distance between the centres of splines b and 0, in units of half the width of a spline's support.

    The result has the dtype ``DTYPE``, because float32 would be too imprecise in a float64 computation.
    """
    return tl.cast(b, DTYPE) * (1.0 / half_width(ORDER))


@triton.jit
def find_cell(x, rows, M, SEARCH: tl.constexpr):
    """Find the index of the last knot that is not above x, by bisection.

    If all knots are above x or if x is NaN, the index is -1. If no knot is above x, the index is M - 1. For each
    element of x, the argument ``rows`` holds a pointer to a row of M knots. The number of steps ``SEARCH`` must satisfy
    ``2^SEARCH > M``.
    """
    j = tl.where(x == x, -1, -1)  # the result is a tensor of -1 with the layout of x
    for s in tl.static_range(SEARCH):
        probe = j + (1 << (SEARCH - 1 - s))
        knot = tl.load(rows + probe, mask=probe < M, other=float("inf"))
        j = tl.where((knot <= x) & (probe < M), probe, j)
    return j


@triton.jit
def width(low, high):
    """Return ``high - low`` where the difference is positive, and otherwise infinity, by which a division gives 0."""
    return tl.where(high > low, high - low, float("inf"))


@triton.jit
def active_splines(x, j, rows, M, ORDER: tl.constexpr, D: tl.constexpr):
    """Return a tuple of the d-th derivatives of the splines j - k, ..., j at x.

    The values of nonexistent splines are arbitrary.
    """
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
    """Return a tuple of the cell of each element of a tile of x, and the d-th derivatives of the active splines.

    The inputs ``i`` lie along the second dimension of the tile.
    """
    rows = tl.broadcast_to(knots_ptr + tl.where(i < inputs, i, 0)[None, :] * M, x.shape)
    j = find_cell(x, rows, M, SEARCH)
    return j, active_splines(x, j, rows, M, ORDER, D)


@triton.jit
def pick(values, j, b, ORDER: tl.constexpr):
    """Select the value of spline ``b`` from the result of :func:`active_splines` in cell ``j``.

    If the spline is not active in the cell, the value is 0.
    """
    at = b - j + ORDER
    picked = tl.where(at == 0, values[0], 0.0)
    for q in tl.static_range(1, ORDER + 1):
        picked = tl.where(at == q, values[q], picked)
    return picked


@triton.jit
def one_spline(x, knots, ORDER: tl.constexpr, D: tl.constexpr):
    """Return the d-th derivative of one spline at x, computed from the spline's own k + 2 knots.

    The knots are a tuple of tensors that broadcast with x.
    """
    inside = (x >= knots[0]) & (x < knots[ORDER + 1])
    x = tl.where(inside, x, knots[0])  # x is clamped because an infinite x would give inf * 0 = NaN
    values = ()
    for m in tl.static_range(ORDER + 1):
        values = values + (tl.where(inside & (x >= knots[m]) & (x < knots[m + 1]), 1.0, 0.0).to(x.dtype),)
    for degree in tl.static_range(1, ORDER + 1):
        new = ()
        for r in tl.static_range(ORDER + 1 - degree):
            low, next_low = knots[r], knots[r + 1]
            high, next_high = knots[r + degree], knots[r + degree + 1]
            # The widths do not depend on the row of x, so the kernel divides once for each input instead of once for
            # each element.
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
    """Return the d-th derivative of the base function at x, for d <= 4.

    At x = NaN the result is NaN. At an infinite x the result is the limit. If ``BASE`` ends in "16", the values are
    rounded to float16, for the reason given in :meth:`.problem.Problem.base_rounded`.
    """
    if BASE == "identity16":
        return unrounded_base(x, "identity", D).to(tl.float16).to(x.dtype)
    elif BASE == "gelu16":
        return unrounded_base(x, "gelu", D).to(tl.float16).to(x.dtype)
    elif BASE == "silu16":
        return unrounded_base(x, "silu", D).to(tl.float16).to(x.dtype)
    else:
        return unrounded_base(x, BASE, D)


@triton.jit
def unrounded_base(x, BASE: tl.constexpr, D: tl.constexpr):
    """Return the d-th derivative of the base function without rounding to float16."""
    if BASE == "identity":
        if D == 0:
            return x
        return tl.where(x == x, 1.0 if D == 1 else 0.0, x)
    elif BASE == "gelu":
        bounded = tl.where(x > 1e3, 1e3, tl.where(x < -1e3, -1e3, x))
        if D <= 1:
            normal = 0.5 + 0.5 * tl.erf(bounded * 0.7071067811865476)
            if D == 0:
                return tl.where(x > 1e3, x, bounded * normal)
            else:
                return normal + bounded * (tl.exp(-0.5 * bounded * bounded) * 0.3989422804014327)
        else:
            square = bounded * bounded
            density = tl.exp(-0.5 * square) * 0.3989422804014327
            if D == 2:
                return (2.0 - square) * density
            elif D == 3:
                return bounded * (square - 4.0) * density
            else:
                tl.static_assert(D == 4)
                return ((7.0 - square) * square - 4.0) * density
    else:
        if D <= 1:
            s = 1.0 / (1.0 + tl.exp(-x))
            # x is clamped because an infinite x would give inf * 0 = NaN
            bounded = tl.where(x > 1e3, 1e3, tl.where(x < -1e3, -1e3, x))
            if D == 0:
                return tl.where(x > 1e3, x, bounded * s)
            else:
                return s * (1.0 + bounded * (1.0 - s))
        else:
            bounded = tl.where(x > 1e3, 1e3, tl.where(x < -1e3, -1e3, x))
            # The variables ``small`` and ``large`` are s(-|x|) and s(|x|), where s is the logistic function. Both
            # values are computed directly, because computing one of them as 1 minus the other would be inaccurate.
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
