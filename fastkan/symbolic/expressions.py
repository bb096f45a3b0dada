"""Edges as expressions: formulas, and splines as polynomials on their cells."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import MAX_BASE_DERIVATIVE, base_function, splines

from ..layers.edge_functions import edge_weights
from ..layers.function_library import lookup
from .rounding import MAX_EXPONENT, can_simplify, number, scale_term

if TYPE_CHECKING:
    from ..layers.linear import KANLinear

EXACT = 17  # digits that tell any two float64 apart; cells begin where knots are, not near it


def scaled(scale: float, value: Any, bias: float) -> Any:
    """scale * value + bias, multiplied out."""
    import sympy

    return sympy.Add(*(scale_term(number(scale), term) for term in sympy.Add.make_args(value)), number(bias))


def symbolic_edge(name: str, affine: Sequence[float], node: Any) -> Any:
    """c f(a x + b) + d, of an expression."""
    import sympy

    entry = lookup(name)
    a, b, c, d = affine
    argument = scaled(a, node, b)
    if argument.is_number:  # sympy would go on in complex numbers where the forward is NaN
        return number(c * float(entry.fun(torch.tensor([float(argument)], dtype=torch.float64))) + d)
    with sympy.evaluate(can_simplify(argument) and abs(argument.as_coeff_Add()[0]) < MAX_EXPONENT):
        value = entry.sympy_fun(argument)
    return scaled(c, value, d)


class Pieces(NamedTuple):
    """A layer's splines as polynomials to the right of each knot."""

    knots: list[list[float]]  # of each input
    coefficients: Tensor  # [k + 1, M, in, out], of the powers of x - t_m


def taylor_pieces(layer: KANLinear) -> Pieces:
    """By Taylor's formula at each knot, where the recursion is as stable as anywhere."""
    knots = layer.knots.detach().cpu().double()
    weight = edge_weights(layer)[0].detach().cpu().double()
    powers = [
        torch.einsum("mbi,bio->mio", splines(knots.t(), knots, layer.spline_order, power), weight)
        / math.factorial(power)
        for power in range(layer.spline_order + 1)
    ]
    return Pieces(knots.tolist(), torch.stack(powers))


class _Cell(NamedTuple):
    origin: float
    end: float  # not in it
    coefficients: list[float]  # of the powers of x - origin


def _cells(layer: KANLinear, pieces: Pieces, i: int, j: int) -> list[_Cell]:
    """From minus to plus infinity."""
    knots, order = pieces.knots[i], layer.spline_order
    coefficients = pieces.coefficients[:, :, i, j].t().tolist()
    cells = [_Cell(start, end, taken) for start, end, taken in zip(knots, knots[1:], coefficients) if start < end]
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
    """A spline and its base function, of an expression."""
    import sympy
    from sympy.functions.elementary.piecewise import ExprCondPair

    cells = _cells(layer, pieces, i, j)
    if node.is_number:
        return number(_value_at(layer, cells, i, j, float(node)))
    parts = []
    for cell in cells:
        here = sympy.true if cell.end == math.inf else sympy.StrictLessThan(node, _all_digits(cell.end), evaluate=False)
        parts.append((_polynomial(cell, node), here))
    # Piecewise() itself would rewrite conditions that hold a Piecewise, and take minutes over it
    pairs = [sympy.Basic.__new__(ExprCondPair, *part) for part in parts]
    spline = sympy.Basic.__new__(sympy.Piecewise, *pairs)
    base = _base_weight(layer, i, j)
    if not base:
        return spline
    if layer.base == "identity":
        return spline + number(base) * node
    # silu; evaluated, this would first simplify all of the node
    logistic = sympy.Pow(1 + sympy.exp(-node, evaluate=False), -1, evaluate=False)
    return spline + sympy.Mul(number(base), node, logistic, evaluate=False)


class EdgeFunction:
    """A numeric edge, or a derivative of it, as a function of NumPy arrays; edges that compute the same are equal."""

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
        """Its derivative."""
        cells = [
            cell._replace(coefficients=[power * c for power, c in enumerate(cell.coefficients)][1:])
            for cell in self.cells
        ]
        return EdgeFunction(cells, self.base, self.base_weight, self.derivative_order + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EdgeFunction) and self._key == other._key

    def __hash__(self) -> int:
        return hash(repr(self._key))


def named_edge(name: str, layer: KANLinear, pieces: Pieces, i: int, j: int, node: Any) -> Any:
    """A spline and its base function as a function with a name, which sympy evaluates, compiles and differentiates."""
    if node.is_number:
        return numeric_edge(layer, pieces, i, j, node)
    cells, base = _cells(layer, pieces, i, j), _base_weight(layer, i, j)
    return _named(name, EdgeFunction(cells, layer.base, base))(node)


def _named(name: str, function: EdgeFunction) -> Any:
    from sympy.core.function import UndefinedFunction

    # what the function computes is among what tells it from others of its name: sympy caches by that
    return UndefinedFunction(name, _imp_=function, fdiff=_derivative)


def _derivative(expression: Any, argindex: int = 1) -> Any:
    from sympy.core.function import ArgumentIndexError

    function = expression.func._imp_
    if function.base_weight and function.base == "silu" and function.derivative_order >= MAX_BASE_DERIVATIVE:
        raise ArgumentIndexError(expression, argindex)  # it stays a Derivative
    name, order = expression.func.__name__, function.derivative_order
    root = name.rsplit("_d", 1)[0] if order else name
    return _named(f"{root}_d{order + 1}", function.differentiated())(expression.args[0])


def _polynomial(cell: _Cell, node: Any) -> Any:
    """By Horner's scheme in x - origin; multiplied out it would lose digits far from 0."""
    import sympy

    step, total = node - _all_digits(cell.origin), sympy.Integer(0)
    for coefficient in reversed(cell.coefficients):
        total = sympy.Mul(total, step, evaluate=False) if total != 0 else total
        total = total + _all_digits(coefficient)
    return total


def _value_at(layer: KANLinear, cells: list[_Cell], i: int, j: int, x: float) -> float:
    if math.isnan(x):
        return x
    cell = cells[bisect_right([cell.end for cell in cells[:-1]], x)]
    base = _base_weight(layer, i, j)
    spline = sum(c * (x - cell.origin) ** power for power, c in enumerate(cell.coefficients))
    if math.isinf(x):
        spline = _value_at_infinity(cell)
    if not base:
        return spline
    return spline + base * float(base_function(torch.tensor([x], dtype=torch.float64), layer.base))


def _value_at_infinity(cell: _Cell) -> float:
    """A spline's value at an infinite x: NaN on a tangent, whatever its slope, as in the forward."""
    return math.nan if len(cell.coefficients) > 1 else sum(cell.coefficients)


def _all_digits(value: float) -> Any:
    return number(value, EXACT)


def _base_weight(layer: KANLinear, i: int, j: int) -> float:
    return 0.0 if layer.base_weight is None else float(layer.base_weight.detach()[i, j])
