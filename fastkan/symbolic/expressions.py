"""Sympy expressions of edges: the formulas of symbolic edges, and splines as piecewise polynomials or as named
functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import MAX_BASE_DERIVATIVE, base_function, splines

from ..layers.edge_functions import edge_weights
from ..layers.function_library import lookup
from .rounding import MAX_DIGITS, MAX_EXPONENT, can_simplify, number, scale_term

if TYPE_CHECKING:
    from ..layers.linear import KANLinear


def scaled(scale: float, value: Any, bias: float) -> Any:
    """Return the expression ``scale * value + bias``, multiplied out."""
    import sympy

    return sympy.Add(*(scale_term(number(scale), term) for term in sympy.Add.make_args(value)), number(bias))


def symbolic_edge(name: str, affine: Sequence[float], node: Any) -> Any:
    """Return the expression ``c f(a node + b) + d``, in which f is the library function with the given name."""
    import sympy

    entry = lookup(name)
    a, b, c, d = affine
    argument = scaled(a, node, b)
    # A number is passed to torch, because outside the domain of f the forward is NaN, while sympy would return a
    # complex number
    if argument.is_number:
        return number(c * float(entry.fun(torch.tensor([float(argument)], dtype=torch.float64))) + d)
    with sympy.evaluate(can_simplify(argument) and abs(argument.as_coeff_Add()[0]) < MAX_EXPONENT):
        value = entry.sympy_fun(argument)
    return scaled(c, value, d)


class Pieces(NamedTuple):
    """The splines of a layer as polynomials, with one polynomial for the interval to the right of each of the M knots
    t_m of each input."""

    knots: list[list[float]]
    coefficients: Tensor  # [k + 1, M, in, out], coefficients of the powers of x - t_m


def taylor_pieces(layer: KANLinear) -> Pieces:
    """Return the polynomials of the splines of a layer, computed by Taylor's formula at each knot."""
    knots = layer.knots.detach().cpu().double()
    weight = edge_weights(layer)[0].detach().cpu().double()
    powers = []
    for power in range(layer.spline_order + 1):
        basis = splines(knots.t(), knots, layer.spline_order, power) / math.factorial(power)
        powers.append(torch.einsum("mbi,bio->mio", basis, weight))
    return Pieces(knots.tolist(), torch.stack(powers))


class _Cell(NamedTuple):
    """A polynomial in ``x - origin`` for all x below ``end`` that are not in an earlier cell.

    The coefficients of the polynomial are in ascending order of the powers.
    """

    origin: float
    end: float
    coefficients: list[float]


def _cells(layer: KANLinear, pieces: Pieces, i: int, j: int) -> list[_Cell]:
    """Return the list of cells of the spline of an edge, in order from minus infinity to plus infinity."""
    knots, order = pieces.knots[i], layer.spline_order
    coefficients = pieces.coefficients[:, :, i, j].t().tolist()
    cells = [_Cell(start, end, each) for start, end, each in zip(knots, knots[1:], coefficients) if start < end]
    if layer.outside == "zero":
        return [_Cell(knots[0], knots[0], []), *cells, _Cell(knots[-1], math.inf, [])]
    low, high = knots[order], knots[-order - 1]
    cells = [cell for cell in cells if low <= cell.origin < high]
    first, last = cells[0], cells[-1]
    width = high - last.origin
    value = sum(c * width**power for power, c in enumerate(last.coefficients))
    slope = sum(power * c * width ** (power - 1) for power, c in enumerate(last.coefficients) if power)
    return [_Cell(low, low, first.coefficients[:2]), *cells, _Cell(high, math.inf, [value, slope])]


def numeric_edge(layer: KANLinear, pieces: Pieces, i: int, j: int, node: Any) -> Any:
    """Return a spline edge with the input ``node`` as a sympy expression, a Piecewise plus the base function."""
    import sympy
    from sympy.functions.elementary.piecewise import ExprCondPair

    cells, base = _cells(layer, pieces, i, j), _base_weight(layer, i, j)
    if node.is_number:
        return number(EdgeFunction(cells, layer.base, base)(float(node)))
    pairs = []
    for cell in cells:
        here = sympy.true if cell.end == math.inf else sympy.StrictLessThan(node, _all_digits(cell.end), evaluate=False)
        pairs.append(sympy.Basic.__new__(ExprCondPair, _polynomial(cell, node), here))
    # The constructor of Piecewise would rewrite conditions that contain another Piecewise, which can take minutes
    spline = sympy.Basic.__new__(sympy.Piecewise, *pairs)
    if not base:
        return spline
    if layer.base == "identity":
        return spline + number(base) * node
    # The factor is left unevaluated, because evaluation would first simplify the whole expression of the node
    if layer.base == "gelu":
        from sympy.functions.special.error_functions import erf

        root = sympy.Mul(node, number(math.sqrt(0.5)), evaluate=False)
        factor = sympy.Mul(sympy.Rational(1, 2), 1 + erf(root, evaluate=False), evaluate=False)
    else:
        factor = sympy.Pow(1 + sympy.exp(-node, evaluate=False), -1, evaluate=False)
    return spline + sympy.Mul(number(base), node, factor, evaluate=False)


class EdgeFunction:
    """A function of NumPy arrays that computes a spline edge or a derivative of a spline edge.

    Two ``EdgeFunction`` objects are equal if they compute the same function. The cache of sympy relies on this
    equality.
    """

    def __init__(self, cells: Sequence[_Cell], base: str, base_weight: float, derivative: int = 0) -> None:
        self.cells, self.base, self.base_weight = tuple(cells), base, base_weight
        self.derivative_order = derivative
        self._key = ([(c.origin, c.end, tuple(c.coefficients)) for c in cells], base, base_weight, derivative)

    def __call__(self, x: Any) -> Any:
        import numpy

        z = numpy.asarray(x, dtype=numpy.float64)
        place = numpy.searchsorted([cell.end for cell in self.cells[:-1]], z, side="right")
        length = max(1, *(len(cell.coefficients) for cell in self.cells))
        padded = numpy.array([[*cell.coefficients, *[0.0] * (length - len(cell.coefficients))] for cell in self.cells])
        with numpy.errstate(all="ignore"):
            step = z - numpy.array([cell.origin for cell in self.cells])[place]
            value = numpy.zeros_like(z)
            for coefficient in numpy.moveaxis(padded[place], -1, 0)[::-1]:
                value = value * step + coefficient
            at_infinity = numpy.array([_value_at_infinity(cell) for cell in self.cells])
            value = numpy.where(numpy.isinf(z), at_infinity[place], value)
            if self.base_weight:
                base = base_function(torch.as_tensor(z), self.base, self.derivative_order)
                value = value + self.base_weight * base.numpy()
        return value if value.ndim else float(value)

    def differentiated(self) -> EdgeFunction:
        """Return the derivative of the function."""
        slopes = [[power * c for power, c in enumerate(cell.coefficients)][1:] for cell in self.cells]
        cells = [cell._replace(coefficients=slope) for cell, slope in zip(self.cells, slopes)]
        return EdgeFunction(cells, self.base, self.base_weight, self.derivative_order + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EdgeFunction) and self._key == other._key

    def __hash__(self) -> int:
        return hash(repr(self._key))


def named_edge(name: str, layer: KANLinear, pieces: Pieces, i: int, j: int, node: Any) -> Any:
    """Return a spline edge as a named sympy function, which sympy can evaluate, compile and differentiate."""
    if node.is_number:
        return numeric_edge(layer, pieces, i, j, node)
    function = EdgeFunction(_cells(layer, pieces, i, j), layer.base, _base_weight(layer, i, j))
    return _named(name, function)(node)


def _named(name: str, function: EdgeFunction) -> Any:
    from sympy.core.function import UndefinedFunction

    # sympy caches functions under their name and keyword arguments. Because _imp_ is a keyword argument, two functions
    # with equal names are not confused.
    return UndefinedFunction(name, _imp_=function, fdiff=_derivative)


def _derivative(expression: Any, argindex: int = 1) -> Any:
    from sympy.core.function import ArgumentIndexError

    function = expression.func._imp_
    if function.base_weight and function.base in ("silu", "gelu") and function.derivative_order >= MAX_BASE_DERIVATIVE:
        raise ArgumentIndexError(expression, argindex)  # On this error sympy leaves the derivative unevaluated
    name, order = expression.func.__name__, function.derivative_order
    root = name.rsplit("_d", 1)[0] if order else name
    return _named(f"{root}_d{order + 1}", function.differentiated())(expression.args[0])


def _polynomial(cell: _Cell, node: Any) -> Any:
    """Return the polynomial of a cell in the form of Horner's scheme in ``x - origin``.

    A polynomial in x would be inaccurate far from 0, because large terms would cancel.
    """
    import sympy

    step, total = node - _all_digits(cell.origin), sympy.Integer(0)
    for coefficient in reversed(cell.coefficients):
        total = sympy.Mul(total, step, evaluate=False) if total != 0 else total
        total = total + _all_digits(coefficient)
    return total


def _value_at_infinity(cell: _Cell) -> float:
    """Return the value of a spline at an infinite x.

    As in the forward, the value is NaN if the spline continues linearly outside its grid, even if the slope is 0.
    """
    return math.nan if len(cell.coefficients) > 1 else sum(cell.coefficients)


def _all_digits(value: float) -> Any:
    """Convert a float to a sympy number with all its digits, so that cells begin exactly at their knots."""
    return number(value, MAX_DIGITS)


def _base_weight(layer: KANLinear, i: int, j: int) -> float:
    return 0.0 if layer.base_weight is None else float(layer.base_weight.detach()[i, j])
