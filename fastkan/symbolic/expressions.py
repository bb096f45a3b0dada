"""Sympy expressions of edges: symbolic edges, and splines as piecewise polynomials or as named functions."""

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
    """``scale * value + bias``, multiplied out."""
    import sympy

    return sympy.Add(*(scale_term(number(scale), term) for term in sympy.Add.make_args(value)), number(bias))


def symbolic_edge(name: str, affine: Sequence[float], node: Any) -> Any:
    """``c f(a node + b) + d``, with f from the library."""
    import sympy

    entry = lookup(name)
    a, b, c, d = affine
    argument = scaled(a, node, b)
    if argument.is_number:  # outside f's domain the forward is NaN, but sympy would return a complex number
        return number(c * float(entry.fun(torch.tensor([float(argument)], dtype=torch.float64))) + d)
    with sympy.evaluate(can_simplify(argument) and abs(argument.as_coeff_Add()[0]) < MAX_EXPONENT):
        value = entry.sympy_fun(argument)
    return scaled(c, value, d)


class Pieces(NamedTuple):
    """A layer's splines as polynomials to the right of each of the M knots t_m of each input."""

    knots: list[list[float]]
    coefficients: Tensor  # [k + 1, M, in, out], of the powers of x - t_m


def taylor_pieces(layer: KANLinear) -> Pieces:
    """Polynomials of a layer's splines, from their derivatives at each knot by Taylor's formula."""
    knots = layer.knots.detach().cpu().double()
    weight = edge_weights(layer)[0].detach().cpu().double()
    powers = []
    for power in range(layer.spline_order + 1):
        basis = splines(knots.t(), knots, layer.spline_order, power) / math.factorial(power)
        powers.append(torch.einsum("mbi,bio->mio", basis, weight))
    return Pieces(knots.tolist(), torch.stack(powers))


class _Cell(NamedTuple):
    """A polynomial in x - origin on a cell that ends before ``end``; coefficients are in ascending order."""

    origin: float
    end: float
    coefficients: list[float]


def _cells(layer: KANLinear, pieces: Pieces, i: int, j: int) -> list[_Cell]:
    """Cells of an edge's spline, in order, from minus to plus infinity."""
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
    """A spline edge, with its base function, as a Piecewise of an expression."""
    import sympy
    from sympy.functions.elementary.piecewise import ExprCondPair

    cells, base = _cells(layer, pieces, i, j), _base_weight(layer, i, j)
    if node.is_number:
        return number(EdgeFunction(cells, layer.base, base)(float(node)))
    pairs = []
    for cell in cells:
        here = sympy.true if cell.end == math.inf else sympy.StrictLessThan(node, _all_digits(cell.end), evaluate=False)
        pairs.append(sympy.Basic.__new__(ExprCondPair, _polynomial(cell, node), here))
    # Piecewise() itself would rewrite conditions that contain a Piecewise, which takes minutes
    spline = sympy.Basic.__new__(sympy.Piecewise, *pairs)
    if not base:
        return spline
    if layer.base == "identity":
        return spline + number(base) * node
    # silu, unevaluated, since evaluation would first simplify the whole node
    logistic = sympy.Pow(1 + sympy.exp(-node, evaluate=False), -1, evaluate=False)
    return spline + sympy.Mul(number(base), node, logistic, evaluate=False)


class EdgeFunction:
    """A spline edge, or a derivative of it, as a function of NumPy arrays.

    Two of them are equal if they compute the same, which sympy's cache relies on.
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
        """Derivative of the function."""
        slopes = [[power * c for power, c in enumerate(cell.coefficients)][1:] for cell in self.cells]
        cells = [cell._replace(coefficients=slope) for cell, slope in zip(self.cells, slopes)]
        return EdgeFunction(cells, self.base, self.base_weight, self.derivative_order + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EdgeFunction) and self._key == other._key

    def __hash__(self) -> int:
        return hash(repr(self._key))


def named_edge(name: str, layer: KANLinear, pieces: Pieces, i: int, j: int, node: Any) -> Any:
    """A spline edge as a named sympy function, which sympy can evaluate, compile and differentiate."""
    if node.is_number:
        return numeric_edge(layer, pieces, i, j, node)
    function = EdgeFunction(_cells(layer, pieces, i, j), layer.base, _base_weight(layer, i, j))
    return _named(name, function)(node)


def _named(name: str, function: EdgeFunction) -> Any:
    from sympy.core.function import UndefinedFunction

    # sympy caches functions by name and keywords; with _imp_ among these, equal names don't confuse two functions
    return UndefinedFunction(name, _imp_=function, fdiff=_derivative)


def _derivative(expression: Any, argindex: int = 1) -> Any:
    from sympy.core.function import ArgumentIndexError

    function = expression.func._imp_
    if function.base_weight and function.base == "silu" and function.derivative_order >= MAX_BASE_DERIVATIVE:
        raise ArgumentIndexError(expression, argindex)  # sympy then leaves a Derivative unevaluated
    name, order = expression.func.__name__, function.derivative_order
    root = name.rsplit("_d", 1)[0] if order else name
    return _named(f"{root}_d{order + 1}", function.differentiated())(expression.args[0])


def _polynomial(cell: _Cell, node: Any) -> Any:
    """A cell's polynomial by Horner's scheme in x - origin; multiplied out, it would lose digits far from 0."""
    import sympy

    step, total = node - _all_digits(cell.origin), sympy.Integer(0)
    for coefficient in reversed(cell.coefficients):
        total = sympy.Mul(total, step, evaluate=False) if total != 0 else total
        total = total + _all_digits(coefficient)
    return total


def _value_at_infinity(cell: _Cell) -> float:
    """Value of a spline at an infinite x: NaN on a linear continuation, even of slope 0, as in the forward."""
    return math.nan if len(cell.coefficients) > 1 else sum(cell.coefficients)


def _all_digits(value: float) -> Any:
    """A sympy number with all digits, so that cells begin exactly at their knots."""
    return number(value, MAX_DIGITS)


def _base_weight(layer: KANLinear, i: int, j: int) -> float:
    return 0.0 if layer.base_weight is None else float(layer.base_weight.detach()[i, j])
