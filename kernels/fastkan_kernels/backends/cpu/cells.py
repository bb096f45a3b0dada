"""Polynomials of the cells, at rows: what the ways of small layers share. In NumPy, whose calls cost a third of
PyTorch's, and which is quicker at comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from ...bspline.piecewise import Pieces

# multiplications in one product, above which OpenBLAS takes several threads: of two matrices, and with a vector
MAX_OWN_PRODUCTS, MAX_OWN_VECTOR_PRODUCTS = 3 << 18, 1 << 13
BEYOND = 1e18  # outside of every grid, and times 0 it is 0
Array = Any  # numpy.ndarray, which is imported where it is used
Room = Callable[[str, tuple[int, ...], Any], Array] | None  # None: each array gets memory of its own


class Arena:
    """Memory for one pass after another: each use gets the same again, so that the system is not asked for it anew,
    which costs a page fault each 4 KiB."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, Any], Array] = {}

    def __call__(self, use: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory whose last content, of the same use, is overwritten."""
        import numpy as np

        size, key = math.prod(shape), (use, dtype)
        memory = self.memory.get(key)
        if memory is None or memory.size < size:
            memory = self.memory[key] = np.empty(size, dtype)
        return memory[:size].reshape(shape)


class Rows(NamedTuple):
    """Where rows lie, and the polynomials they meet; C cells, k the order, R polynomials on each cell."""

    inside: Array  # [I, C, N], 1 in a row's cell
    rate: Array  # [I, N], 1 over the width of the row's cell
    powers: Array  # [k + 1, I, N], of where in its cell a row lies, u from -1/2 to 1/2
    own: Array  # [I, R, k + 1, N], the coefficients in the row's cell; None before polynomials are met
    within: Array  # [I, N], x, held within +-BEYOND
    finite: bool


def product(one: Array, other: Array, out: Array | None = None) -> Array:
    """A matrix product, or a batch of them, by NumPy where that takes one thread, and else by PyTorch, which takes as
    many as it has been told: NumPy's own for a large product cost ten times its time where another process computes."""
    import numpy as np

    by_vector = one.shape[-2] == 1 or other.shape[-1] == 1
    most = MAX_OWN_VECTOR_PRODUCTS if by_vector else MAX_OWN_PRODUCTS
    if one.shape[-2] * one.shape[-1] * other.shape[-1] <= most:
        return np.matmul(one, other, out=out)
    room = None if out is None else torch.from_numpy(out)
    return torch.matmul(torch.from_numpy(one), torch.from_numpy(other), out=room).numpy()


def look_up(x: Array, tables: Pieces, polynomials: Array | None, order: int, room: Room = None) -> Rows:
    """A product with indicators of the rows' cells picks what each row needs.

    Args:
        x: ``[I, N]``.
        polynomials: ``[I or 1, R (k + 1), C]``, or None where only the places are asked for.
        room: where the result's largest arrays get their memory.
    """
    import numpy as np

    inputs, rows = x.shape
    finite = bool(np.isfinite(np.add.reduce(x, None)))
    within = x if finite else np.clip(x, -BEYOND, BEYOND)
    if room is None:
        beyond = within[:, None] >= tables.knots
        inside = (beyond[:, :-1] != beyond[:, 1:]).astype(x.dtype)
    else:
        knots = tables.knots.shape[1]
        beyond = np.greater_equal(within[:, None], tables.knots, out=room("beyond", (inputs, knots, rows), bool))
        inside = room("inside", (inputs, knots - 1, rows), x.dtype)
        np.not_equal(beyond[:, :-1], beyond[:, 1:], out=inside)
    picks = tables.cells
    if polynomials is not None:
        picks = np.empty((max(len(picks), len(polynomials)), 2 + polynomials.shape[1], inside.shape[1]), x.dtype)
        picks[:, :2] = tables.cells
        picks[:, 2:] = polynomials
    picked = product(picks, inside, room and room("picked", (inputs, picks.shape[1], rows), x.dtype))
    rate = picked[:, 1] if finite else np.where(np.isnan(x), x, picked[:, 1])  # a slope at NaN is NaN
    powers = (room or _fresh)("powers", (order + 1, inputs, rows), x.dtype)
    powers[0] = 1
    u = np.subtract(within, picked[:, 0], out=powers[1])
    u *= rate
    for power in range(2, order + 1):
        np.multiply(powers[power - 1], u, out=powers[power])
    own = None if polynomials is None else picked[:, 2:].reshape(inputs, -1, order + 1, rows)
    return Rows(inside, rate, powers, own, within, finite)


def _fresh(use: str, shape: tuple[int, ...], dtype: Any) -> Array:
    import numpy as np

    return np.empty(shape, dtype)


def meet(rows: Rows, polynomials: Array) -> Rows:
    """The same rows, and other polynomials."""
    terms, inputs, count = rows.powers.shape
    return rows._replace(own=product(polynomials, rows.inside).reshape(inputs, -1, terms, count))


@cache
def _falling(order: int, derivative: int, dtype: str) -> Array:
    """What differentiation puts before the powers d to k, ``[k + 1 - d, 1, 1]``."""
    import numpy as np

    powers = range(derivative, order + 1)
    return np.array([math.perm(power, derivative) for power in powers], dtype)[:, None, None]


def steps_at(rows: Rows, derivative: int) -> Array:
    """``[k + 1 - d, I, N]``, by which the coefficients of u^d and above are multiplied in a derivative by u, d <= k."""
    order = len(rows.powers) - 1
    return rows.powers[: order + 1 - derivative] * _falling(order, derivative, rows.powers.dtype.char)


def terms_at(rows: Rows, derivative: int) -> Array:
    """The same of a derivative by x."""
    if derivative == 0:
        return rows.powers
    terms = steps_at(rows, derivative)
    for _ in range(derivative):
        terms *= rows.rate  # a power of NumPy's costs ten times as much
    return terms


def values_at(rows: Rows, terms: Array | None = None, room: Room = None, use: str = "values") -> Array:
    """Of the polynomials, or of the derivative that has these ``terms``: ``[I, R, N]``."""
    import numpy as np

    inputs, polynomials, _, count = rows.own.shape
    out = room and room(use, (inputs, polynomials, count), rows.own.dtype)
    if terms is None:
        return np.einsum("irpn,pin->irn", rows.own, rows.powers, out=out)
    return np.einsum("irpn,pin->irn", rows.own[:, :, len(rows.powers) - len(terms) :], terms, out=out)


def slopes_at(rows: Rows, room: Room = None) -> Array:
    """Of the polynomials, ``[I, R, N]``."""
    slopes = values_at(rows, steps_at(rows, 1), room, "slopes")
    slopes *= rows.rate[:, None]
    return slopes


def base_at(x: Array, rows: Rows, base: str, sloped: bool) -> tuple[Array | None, Array | None]:
    """The base function and, if wanted and not 1, its slope, ``[I, N]``."""
    import numpy as np

    if base == "none":
        return None, None
    if base == "identity":
        return (rows.within if rows.finite else x), None
    logistic = torch.from_numpy(rows.within).sigmoid().numpy()
    value = rows.within * logistic
    slope = None
    if sloped:
        slope = value * (1 - logistic)
        slope += logistic
    return value if rows.finite else np.where(x > BEYOND, x, value), slope


def deviation(values: Array) -> tuple[Array, Array]:
    """Standard deviation over the last dimension, in which ``values`` are centred in place; and these.

    Less the first one before less the mean: of what does not vary exactly 0 is left.
    """
    import numpy as np

    rows = values.shape[-1]
    values -= values[..., :1].copy()
    values -= np.add.reduce(values, -1, keepdims=True) / values.dtype.type(rows)
    squares = np.einsum("...n,...n->...", values, values)
    squares /= rows - 1
    return np.sqrt(squares, out=squares), values


def over(share: Array, spread: Array) -> Array:
    """Over a standard deviation, as its gradient is: 0 where that is 0."""
    import numpy as np

    return share / spread if spread.all() else np.divide(share, spread, out=np.zeros_like(share), where=spread != 0)
