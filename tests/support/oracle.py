"""The oracle: F, G and H in float64, from features that scipy and sympy define, and the error budget.

Nothing here is computed by the code under test. The tests' features are scipy's, in NumPy (:func:`exact`). For
operands on another device, and where PyTorch must differentiate, they are Cox-de Boor's recursion (:func:`recursion`),
which a test compares with scipy; :func:`exact_with_sizes` gives with each number the sum of the absolute values of its
terms. The budget bounds a backend's distance from the oracle. It follows from the dtype and from how each way computes
psi, never from what was seen to pass.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import sympy
import torch
from scipy import special
from scipy.interpolate import BSpline
from torch import Tensor

Array = np.ndarray

BLOCK_ELEMENTS = 1 << 25  # numbers in one block of float64 features of exact_with_sizes

# -- features ---------------------------------------------------------------------------------------


def splines(x: Array, knots: Array, order: int, derivative: int = 0) -> Array:
    """psi_b^(d)(x[n, i]) as ``[N, K, I]`` by scipy, right-continuous on every knot.

    scipy closes the last interval of a spline's range. With k + 1 knots more on both sides, whose
    coefficients are 0, that range ends beyond the last knot, where every spline is 0.
    """
    rows, inputs = x.shape
    count = knots.shape[1] - order - 1
    out = np.zeros((rows, count, inputs))
    beyond = np.arange(1, order + 2)
    coefficients = np.zeros((count + 2 * (order + 1), count))
    coefficients[order + 1 : -order - 1] = np.eye(count)
    same = (knots == knots[:1]).all()
    for i in range(1 if same and inputs else inputs):
        t = knots[i]
        padded = np.concatenate([t[0] - beyond[::-1], t, t[-1] + beyond])
        spline = BSpline(padded, coefficients, order, extrapolate=False)
        columns = slice(None) if same else slice(i, i + 1)
        inside = (x[:, columns] >= t[0]) & (x[:, columns] <= t[-1])
        n, i_ = np.nonzero(inside)
        out[n, :, i_ + (0 if same else i)] = spline(x[:, columns][inside], nu=derivative)
    return np.where(np.isnan(x)[:, None], np.nan, out)


def recursion(x: Any, knots: Any, order: int, derivative: int = 0, sizes: bool = False) -> Any:
    """psi_b^(d)(x[n, i]) as ``[N, K, I]`` by Cox-de Boor's recursion, of NumPy arrays or of tensors on any device.

    PyTorch differentiates it with respect to x, as often as wanted.

    Args:
        sizes: add where the recursion subtracts: the sums of the absolute values of what each psi^(d) is made of.
    """
    xp: Any = torch if isinstance(x, Tensor) else np
    x, t, sign = x[:, None], knots.T[None], 1 if sizes else -1
    values = xp.where((x >= t[:, :-1]) & (x < t[:, 1:]), xp.ones_like(x), xp.zeros_like(x))
    x = xp.clip(x, t[:, :1], t[:, -1:])  # since infinity times 0 would be NaN
    if derivative > order:
        values, order = xp.zeros_like(values[:, order:]), 0
    for degree in range(1, order + 1):
        width = t[:, degree:] - t[:, :-degree]
        inverse = xp.where(width > 0, 1 / xp.where(width > 0, width, xp.ones_like(width)), xp.zeros_like(width))
        here, there = values[:, :-1] * inverse[:, :-1], values[:, 1:] * inverse[:, 1:]
        if degree > order - derivative:
            values = degree * (here + sign * there)
        else:
            left, right = x - t[:, : -degree - 1], t[:, degree + 1 :] - x
            values = (xp.abs(left) * here + xp.abs(right) * there) if sizes else (left * here + right * there)
    return xp.where(xp.isnan(x), x, values)


@functools.cache
def _silu(derivative: int):
    """silu^(d) as a polynomial in x, the logistic s = 1 / (1 + exp(-x)) and r = 1 - s, for which s' = s r = -r'."""
    x, s, r = sympy.symbols("x s r")
    value = x * s
    for _ in range(derivative):
        value = sympy.diff(value, x) + (sympy.diff(value, s) - sympy.diff(value, r)) * s * r
    return sympy.lambdify((x, s, r), sympy.factor_terms(value), modules=[])


def silu(x: Any, derivative: int = 0) -> Any:
    """silu^(d) of an array or a tensor, by sympy's derivative; NumPy computes it in extended precision.

    The result is float64. At infinities it is the limit; beyond 300 the value equals its limit to far below a rounding.
    """
    xp: Any = torch if isinstance(x, Tensor) else np
    with np.errstate(all="ignore"):
        near = xp.clip(x, -300, 300)
        near = near.double() if xp is torch else near.astype(np.longdouble)
        value = _silu(derivative)(near, 1 / (1 + xp.exp(-near)), 1 / (1 + xp.exp(near)))
        value = value if xp is torch else value.astype(np.float64)
    beyond = x if derivative == 0 else xp.full_like(x, float(derivative == 1))
    return xp.where(x > 300, beyond, xp.where(x < -300, xp.zeros_like(x), value))


def gelu(x: Any, derivative: int = 0) -> Any:
    """x P(x), with P of scipy or torch, or a derivative: by Leibniz' rule d P^(d-1) + x P^(d), where P^(n + 1) is the
    density times (-1)^n He_n, a Hermite polynomial."""
    xp: Any = torch if isinstance(x, Tensor) else np
    near = xp.clip(x, -300, 300)
    with np.errstate(all="ignore"):
        density = xp.exp(-near * near / 2) / math.sqrt(2 * math.pi)
        hermite = [xp.ones_like(near), near]
        for n in range(1, 4):
            hermite.append(near * hermite[-1] - n * hermite[-2])
        normal: Any = torch.special.ndtr(near) if xp is torch else special.ndtr(near)
        of_order = [normal, *((-1) ** n * h * density for n, h in enumerate(hermite))]
        value = near * of_order[derivative] + (derivative * of_order[derivative - 1] if derivative else 0)
    beyond = x if derivative == 0 else xp.full_like(x, float(derivative == 1))
    return xp.where(x > 300, beyond, xp.where(x < -300, xp.zeros_like(x), value))


def base_function(x: Any, name: str, derivative: int = 0) -> Any:
    """b^(d) of an array or a tensor, of the base function ``"silu"``, ``"gelu"`` or ``"identity"``."""
    if name == "silu":
        return silu(x, derivative)
    if name == "gelu":
        return gelu(x, derivative)
    xp: Any = torch if isinstance(x, Tensor) else np
    return x if derivative == 0 else xp.where(xp.isnan(x), x, xp.full_like(x, float(derivative == 1)))


# -- contractions -----------------------------------------------------------------------------------


class Example(NamedTuple):
    """The operands of F, G and H; ``v`` and ``base_weight`` may be None."""

    x: Any
    knots: Any
    v: Any
    weight: Any
    base_weight: Any
    g: Any

    def map(self, function: Any) -> Example:
        """``function`` of each operand that is not None."""
        return Example(*(None if t is None else function(t) for t in self))

    def array(self) -> Example:
        """The tensors' values as float64 NumPy arrays, exactly."""
        return self.map(lambda t: t.detach().double().numpy())


def contract(name: str, o: Example, psi: Any, base: Any) -> tuple[Any, ...]:
    """F, G or H of given features, all NumPy arrays or all tensors: a tuple of G's two parts, or of one result.

    Args:
        psi: the splines, ``[N, K, I]``.
        base: the base function, ``[N, I]``, or None.
    """
    rows, count, inputs = psi.shape
    if name in "FG" and o.v is not None:
        psi, base = psi * o.v[:, None], None if base is None else base * o.v
    flat = psi.reshape(rows, count * inputs)
    if name == "F":
        y = flat @ o.weight.reshape(count * inputs, o.weight.shape[2])
        return (y if base is None else y + base @ o.base_weight,)
    if name == "G":
        by_spline = (flat.T @ o.g).reshape(count, inputs, o.g.shape[1])
        return (by_spline,) if base is None else (by_spline, base.T @ o.g)
    weight = o.weight.reshape(count * inputs, o.weight.shape[2])
    h = (psi * (o.g @ weight.T).reshape(rows, count, inputs)).sum(1)
    return (h if base is None else h + base * (o.g @ o.base_weight.T),)


def exact(name: str, o: Example, basis: Any, derivative: int = 0) -> tuple[Array, ...]:
    """F, G or H of these tensors, in float64 NumPy."""
    a = o.array()
    psi = splines(a.x, a.knots, basis.order, derivative)
    base = None if basis.base == "none" else base_function(a.x, basis.base, derivative)
    with np.errstate(invalid="ignore"):  # tests of infinities subtract inf from inf
        return contract(name, a, psi, base)


class Exact(NamedTuple):
    """A result in float64, ``value``, and what a bound of its error is made of.

    ``size`` is the sum of the absolute values of each number's terms; ``ones`` is that sum with 1 in place of |psi|.
    """

    value: Tensor
    size: Tensor
    ones: Tensor


def exact_with_sizes(name: str, o: Example, basis: Any, derivative: int = 0) -> tuple[Exact, ...]:
    """F, G or H of these tensors with the sizes of their sums, on their device, in blocks of rows."""
    wide = o.map(lambda t: t.detach().double())
    count = o.knots.shape[1] - basis.order - 1
    step = max(1, BLOCK_ELEMENTS // max(1, count * o.x.shape[1]))
    blocks = []
    for start in range(0, max(1, len(o.x)), step):
        rows = slice(start, start + step)
        part = wide._replace(x=wide.x[rows], g=wide.g[rows], v=None if wide.v is None else wide.v[rows])
        psi = recursion(part.x, part.knots, basis.order, derivative)
        has_base = basis.base != "none" and (name == "G" or o.base_weight is not None)
        base = base_function(part.x, basis.base, derivative) if has_base else None
        sizes = part.map(torch.abs)
        of_ones = torch.ones_like(psi), None if base is None else torch.ones_like(base)
        of_sizes = psi.abs(), None if base is None else base.abs()
        three = (contract(name, part, psi, base), contract(name, sizes, *of_sizes), contract(name, sizes, *of_ones))
        blocks.append([Exact(*each) for each in zip(*three, strict=True)])
    join = torch.cat if name != "G" else lambda parts: torch.stack(parts).sum(0)
    return tuple(Exact(*(join(list(kind)) for kind in zip(*parts))) for parts in zip(*blocks))


# -- the error budget -------------------------------------------------------------------------------


def budget(name: str, o: Example, basis: Any, derivative: int, way: str, sums: bool) -> tuple[Array, ...]:
    """Largest distance that rounding may cause between each number of F, G or H and its exact value.

    1. Each feature costs about 5 roundings per degree, relative to the absolute values of the terms that it is a sum or
       a difference of (:func:`magnitudes`), and its products cost 4 more.
    2. A way that counts cells, t = (x - first) * rate, shifts every input and every knot by
       :func:`_shift`, and thereby the features by their slope. Its truncated powers round once more.
    3. ``sums``: a sum of n products costs 2 sqrt(n) roundings of the sum of their absolute values (Higham and
       Mary, 2019: the probability of a larger error is below one in a million).
    4. The piecewise backend sums a cell's polynomials about its middle (:func:`polynomial_sizes`), for G after
       sums over the cell: k + 1 coefficients with one rounding each, powers up to k, h^-d and k sums.

    The oracle's own rounding, in float64, is included.
    """
    a = o.array()
    eps = torch.finfo(torch.float64 if o.x.dtype == torch.float64 else torch.float32).eps
    sizes = Example(*(None if t is None else np.abs(t) for t in a))
    finite = np.where(np.isfinite(a.x), a.x, 0.0)
    psi = magnitudes(finite, a.knots, basis.order, derivative)
    base = None if basis.base == "none" else _base_magnitude(finite, basis.base, derivative)
    if way == "piecewise":
        psi = polynomial_sizes(finite, a.knots, basis.order, derivative)
    # the number of terms in one number of the result
    terms = {"F": (basis.order + 2) * a.x.shape[1], "G": len(a.x), "H": (basis.order + 2) * (a.g.shape[1])}[name]
    made = 3 if way == "piecewise" else 2
    rounding = made * basis.order + derivative + 4 + (2 * np.sqrt(terms) if sums or way == "piecewise" else 0)
    total = [(rounding * eps + (rounding + 2 * np.sqrt(terms)) * np.finfo(float).eps) * s
             for s in contract(name, sizes, psi, base)]  # fmt: skip
    if basis.uniform and derivative < basis.order and way not in ("reference", "recursive", "piecewise"):
        moved = _counting_error(finite, a.knots, basis.order, derivative, eps)
        total[0] = total[0] + contract(name, sizes, moved, None)[0]
    return tuple(total)


def magnitudes(x: Array, knots: Array, order: int, derivative: int) -> Array:
    """The sums of the absolute values of what psi^(d) is made of by Cox-de Boor's recursion."""
    return recursion(x, knots, order, derivative, sizes=True)


def polynomial_sizes(x: Array, knots: Array, order: int, derivative: int) -> Array:
    """The sum of the absolute values of psi^(d)'s terms as a Taylor polynomial about the middle m of its cell:
    |psi^(d+j)(m)| |x - m|^j / j!."""
    middle = np.zeros_like(x)
    for i, t in enumerate(knots):
        cell = np.searchsorted(t, x[:, i], side="right") - 1
        inside = (cell >= 0) & (cell < len(t) - 1)
        cell = np.where(inside, cell, 0)
        middle[:, i] = np.where(inside, (t[cell] + t[cell + 1]) / 2, t[0] - 1)  # where all splines are 0
    return sum(
        np.abs(splines(middle, knots, order, derivative + j)) * (np.abs(x - middle) ** j / math.factorial(j))[:, None]
        for j in range(max(1, order + 1 - derivative))
    )


def _shift(knots: Array, eps: float) -> tuple[Array, Array]:
    """The shifts of an input and of a knot, in cells, that counting cells causes: ``([I], [I])``.

    (x - first) * rate has four roundings, each of half an eps of at most the number of cells. Uniform knots may lie
    4 eps of the largest knot off their places.
    """
    cells = knots.shape[1] - 1
    width = (knots[:, -1] - knots[:, 0]) / cells
    return 2 * eps * np.full(len(knots), cells), 4 * eps * np.abs(knots).max(1) / width


def _counting_error(x: Array, knots: Array, order: int, derivative: int, eps: float) -> Array:
    """Bound of the error of psi^(d) made from counted cells: slope times shift, and rounding, wherever
    the input is in a spline's support or less than a cell away from it.

    In units of a cell |psi^(d)| <= 2^d, as d differences of numbers up to 1. Knots shifted by s change
    each of the d differences' widths by up to 2 s. The truncated powers are folded: the sum of their absolute
    values is below 4 times the largest value (450/120 at k = 5), and they take 2 k roundings.
    """
    x_shift, knot_shift = _shift(knots, eps)
    width = (knots[:, -1] - knots[:, 0]) / (knots.shape[1] - 1)
    moved = 2.0 ** (derivative + 1) * (x_shift + knot_shift) + 2.0**derivative * derivative * 2 * knot_shift
    rounded = 2.0**derivative * 4 * 2 * order * eps
    first, last = knots[:, : -order - 1].T - width, knots[:, order + 1 :].T + width
    near = (x[:, None] >= first) & (x[:, None] <= last)
    return near * ((moved + rounded) / width**derivative)


def _base_magnitude(x: Array, name: str, derivative: int) -> Array:
    """The sum of the absolute values of the terms of the base function's closed form, d s^(d-1) + x s^(d), where the
    derivatives of the logistic s are s', s' (1 - 2s), s' (1 - 6s'), s' (1 - 2s)(1 - 12s'), and s' <= min(s, 1/4)."""
    if name == "identity":
        return np.abs(base_function(x, name, derivative))
    if name == "gelu":  # the density's error grows with the square of x, and that of 1 + erf is relative to 1
        r = np.minimum(np.abs(x), 300)
        density = (1 + r**2) * np.exp(-(r**2) / 2)
        return (np.abs(x), 1 + r * density, (2 + r**2) * density, r * (4 + r**2) * density,
                (4 + 7 * r**2 + r**4) * density)[derivative]  # fmt: skip
    terms = (1, 1, 3, 3, 12)[derivative]
    return terms * (derivative + np.abs(x)) / (1 + np.exp(-np.clip(x, -80, 700)))
