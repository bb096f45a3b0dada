"""The oracle: F, G and H in float64 NumPy on features that scipy and sympy make, and the error budget.

Nothing here is computed by the code under test. The budget says how far a backend may be from the
oracle; it follows from the dtype and from how each way computes psi, never from what was seen to pass.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import sympy
import torch
from scipy.interpolate import BSpline

Array = np.ndarray

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


@functools.cache
def _silu(derivative: int):
    x = sympy.Symbol("x", real=True)
    return sympy.lambdify(x, sympy.diff(x / (1 + sympy.exp(-x)), x, derivative), modules="numpy", cse=True)


def silu(x: Array, derivative: int = 0) -> Array:
    """silu^(d) by sympy's derivative, evaluated in extended precision; at infinities its limits."""
    limits = {0: (0.0, np.inf), 1: (0.0, 1.0)}.get(derivative, (0.0, 0.0))
    with np.errstate(all="ignore"):
        # beyond 300 the value is the limit's, to far below a rounding
        value = _silu(derivative)(np.clip(x, -300, 300).astype(np.longdouble)).astype(np.float64)
    value = np.where(x < -300, limits[0], value)
    return np.where(x > 300, x if derivative == 0 else limits[1], value)


def base_function(x: Array, name: str, derivative: int = 0) -> Array:
    if name == "silu":
        return silu(x, derivative)
    if derivative == 0:
        return x
    return np.where(np.isnan(x), np.nan, float(derivative == 1))


# -- contractions -----------------------------------------------------------------------------------


class Example(NamedTuple):
    """Everything that F, G and H are made of; ``v`` and ``base_weight`` may be None."""

    x: Any
    knots: Any
    v: Any
    weight: Any
    base_weight: Any
    g: Any

    def array(self) -> Example:
        """In float64 NumPy, exactly the values that the tensors hold."""
        return Example(*(None if t is None else t.detach().double().numpy() for t in self))


def contract(name: str, o: Example, psi: Array, base: Array | None) -> tuple[Array, ...]:
    """F, G or H of NumPy operands on given features, as a tuple: G's two parts, else one."""
    inputs = o.x.shape[1]
    v = np.ones(o.x.shape) if o.v is None else o.v
    if name == "F":
        y = np.tensordot(psi * v[:, None], o.weight, ([1, 2], [0, 1]))
        return (y if base is None else y + (base * v) @ o.base_weight,)
    if name == "G":
        splines_ = np.tensordot(psi * v[:, None], o.g, (0, 0))
        return (splines_,) if base is None else (splines_, (base * v).T @ o.g)
    h = np.stack([(psi[:, :, i] * (o.g @ o.weight[:, i].T)).sum(1) for i in range(inputs)], 1) if inputs else o.x
    return (h if base is None else h + base * (o.g @ o.base_weight.T),)


def exact(name: str, o: Example, basis: Any, derivative: int = 0) -> tuple[Array, ...]:
    """F, G or H of these tensors, in float64."""
    a = o.array()
    with np.errstate(invalid="ignore"):  # inf - inf where the test is about infinities
        return contract(name, a, *_features(a, basis, derivative))


def _features(a: Example, basis: Any, derivative: int) -> tuple[Array, Array | None]:
    psi = splines(a.x, a.knots, basis.order, derivative)
    return psi, None if basis.base == "none" else base_function(a.x, basis.base, derivative)


# -- the error budget -------------------------------------------------------------------------------


def budget(name: str, o: Example, basis: Any, derivative: int, way: str, sums: bool) -> tuple[Array, ...]:
    """How far rounding may take each number of F, G or H from its exact value.

    1. Each feature costs about 5 roundings a degree, each of them of the size of what it is a sum or
       a difference of (:func:`magnitudes`), and its products 4 more.
    2. A way that counts cells, t = (x - first) * rate, moves every input and every knot by
       :func:`_shift`, and with them the features by their slope. Its truncated powers round once more.
    3. ``sums``: a sum of n products costs 2 sqrt(n) roundings of the sum of their sizes (Higham and
       Mary, 2019: the chance that it costs more is below a thousandth of a thousandth).
    4. The piecewise way adds up a cell's polynomials about its middle (:func:`polynomial_sizes`), for G after
       sums over the cell: k + 1 coefficients of a rounding each, powers up to k, h^-d and k sums.

    The oracle's own rounding, in float64, is counted as well.
    """
    a = o.array()
    eps = torch.finfo(torch.float64 if o.x.dtype == torch.float64 else torch.float32).eps
    sizes = Example(*(None if t is None else np.abs(t) for t in a))
    finite = np.where(np.isfinite(a.x), a.x, 0.0)
    psi = magnitudes(finite, a.knots, basis.order, derivative)
    base = None if basis.base == "none" else _base_magnitude(finite, basis.base, derivative)
    if way == "piecewise":
        psi = polynomial_sizes(finite, a.knots, basis.order, derivative)
    # what is added up for one number of the result
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
    """Cox-de Boor's recursion with every difference made a sum: the sizes of what psi^(d) is made of."""
    if derivative > order:
        return np.zeros((len(x), knots.shape[1] - order - 1, x.shape[1]))
    x, t = x[:, None], knots.T[None]
    values = ((x >= t[:, :-1]) & (x < t[:, 1:])).astype(float)
    for degree in range(1, order + 1):
        width, next_width = t[:, degree:-1] - t[:, : -degree - 1], t[:, degree + 1 :] - t[:, 1:-degree]
        here = np.divide(values[:, :-1], width, out=np.zeros_like(values[:, :-1]), where=width > 0)
        there = np.divide(values[:, 1:], next_width, out=np.zeros_like(values[:, 1:]), where=next_width > 0)
        if degree > order - derivative:
            values = degree * (here + there)
        else:
            values = np.abs(x - t[:, : -degree - 1]) * here + np.abs(t[:, degree + 1 :] - x) * there
    return values


def polynomial_sizes(x: Array, knots: Array, order: int, derivative: int) -> Array:
    """Sizes of what psi^(d) is a sum of as a polynomial about its cell's middle m: the splines' derivatives there, by
    Taylor, |psi^(d+j)(m)| |x - m|^j / j!."""
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
    """By how many cells counting moves an input, and a knot: ``([I], [I])``.

    (x - first) * rate has four roundings, half an eps each of at most all cells; uniform knots are
    allowed to be 4 eps of the largest off their places.
    """
    cells = knots.shape[1] - 1
    width = (knots[:, -1] - knots[:, 0]) / cells
    return 2 * eps * np.full(len(knots), cells), 4 * eps * np.abs(knots).max(1) / width


def _counting_error(x: Array, knots: Array, order: int, derivative: int, eps: float) -> Array:
    """Bound of the error of psi^(d) made from counted cells: slope times shift, and rounding, wherever
    the input is in a spline's support or not a cell away from it.

    In units of a cell |psi^(d)| <= 2^d, as d differences of numbers up to 1. Knots moved by s change
    each of the d differences' widths by up to 2 s. The truncated powers are folded: their sum of
    sizes is below 4 times the largest value (450/120 at k = 5), and they take 2 k roundings.
    """
    x_shift, knot_shift = _shift(knots, eps)
    width = (knots[:, -1] - knots[:, 0]) / (knots.shape[1] - 1)
    moved = 2.0 ** (derivative + 1) * (x_shift + knot_shift) + 2.0**derivative * derivative * 2 * knot_shift
    rounded = 2.0**derivative * 4 * 2 * order * eps
    first, last = knots[:, : -order - 1].T - width, knots[:, order + 1 :].T + width
    near = (x[:, None] >= first) & (x[:, None] <= last)
    return near * ((moved + rounded) / width**derivative)


def _base_magnitude(x: Array, name: str, derivative: int) -> Array:
    """Sizes of what the base function's closed form adds up, d s^(d-1) + x s^(d), with s^(d) of the
    logistic s in factors: s', s' (1 - 2s), s' (1 - 6s'), s' (1 - 2s)(1 - 12s'), and s' <= min(s, 1/4)."""
    if name == "identity":
        return np.abs(base_function(x, name, derivative))
    terms = (1, 1, 3, 3, 12)[derivative]
    return terms * (derivative + np.abs(x)) / (1 + np.exp(-np.clip(x, -80, 700)))
