"""Constants of formulas, exact or rounded, and limits on what sympy may simplify."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cmp_to_key
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import Int, Kind, Real

MAX_DIGITS = 17  # significant digits that distinguish any two float64
MAX_PARTS = 80  # largest number of parts of an expression that sympy may simplify
MAX_EXPONENT = 200.0  # largest |b| for which sympy may turn exp(x + b) into e^b exp(x); beyond, e^b can overflow
ROUNDING_ERROR = 1e-12  # rounding error of float64 in a formula, relative to an output's standard deviation


def number(value: float, digits: int = 15) -> Any:
    """Return a sympy number: 0, 1 and -1 as integers, which sympy drops from formulas, all others as exact floats,
    which are printed with so many digits."""
    import sympy

    return sympy.Integer(int(value)) if value in (0, 1, -1) else sympy.Float(value, digits)


def rounded(expression: Any, digits: int) -> Any:
    """Return an expression with its floating-point constants rounded to so many significant digits (rather than decimal
    ones, so that small constants don't become 0)."""
    for _ in range(2):  # a constant rounded to 1 vanishes, so that others combine and have to be rounded again
        expression = transform(expression, lambda value: _significant(value, digits) if value.is_Float else value, {})
    return expression


def rounded_within(
    formulas: list[Any],
    function_of: Callable[[list[Any], list[Any]], Callable[..., Any]],
    x: Tensor,
    labels: Tensor | None,
    tolerance: float,
) -> list[Any]:
    """Round constants to the fewest digits within a tolerance, and replace by 0 those that it allows to be dropped.

    Args:
        formulas: the expressions.
        function_of: compiles ``(symbols, formulas)`` into a function of the values of the symbols and of x's columns.
        x: ``[N, columns]``.
        labels: ``[N, outputs]``, if the RMSE of all outputs may grow by the share ``tolerance``; None if instead the
            values of each formula may change, as root mean square, by ``tolerance`` of their standard deviation.
    """
    import numpy
    import sympy

    found: dict[Any, Any] = {}

    def parameter(value: Any) -> Any:
        return found.setdefault(value, sympy.Dummy(real=True)) if value.is_Float else value

    memo: dict[Any, Any] = {}
    general = [transform(formula, parameter, memo) for formula in formulas]
    constants = list(found)
    if not constants:
        return formulas
    function = function_of([list(found.values())], general)
    columns = list(x.double().cpu().numpy().T)

    def values(numbers: Sequence[Any]) -> Tensor:
        with numpy.errstate(all="ignore"):
            made = function([float(each) for each in numbers], columns)
        return torch.stack([torch.from_numpy(numpy.array(numpy.broadcast_to(one, len(x)), float)) for one in made], 1)

    exact = values(constants)
    rows = exact.isfinite().all(1)
    if not rows.any():
        return formulas
    exact = exact[rows]
    std, size = exact.std(0, correction=0), exact.abs().amax(0)
    std = torch.where(std > ROUNDING_ERROR * size, std, size)
    target = exact if labels is None else labels.double().cpu()[rows]
    loss = (exact - target).square().mean(0)

    def is_close_enough(numbers: Sequence[Any]) -> bool:
        now = (values(numbers)[rows] - target).square().mean(0)
        if labels is None:
            return bool((now.sqrt() <= tolerance * std).all())
        limit = (1 + tolerance) * loss.sum().sqrt() + ROUNDING_ERROR * std.square().sum().sqrt()
        return bool(now.sum().sqrt() <= limit)

    for digits in range(1, MAX_DIGITS + 1):
        chosen = [_significant(each, digits) for each in constants]
        if is_close_enough(chosen):
            break
    for place in sorted(range(len(chosen)), key=lambda place: abs(chosen[place])):
        without = [*chosen[:place], sympy.Integer(0), *chosen[place + 1 :]]
        if is_close_enough(without):
            chosen = without
    mapped = dict(zip(constants, chosen))
    memo = {}
    return [transform(formula, lambda value: mapped.get(value, value), memo) for formula in formulas]


def transform(expression: Any, change: Callable[[Any], Any], memo: dict[Any, Any]) -> Any:
    """Return the expression with ``change`` applied to each of its parts, innermost first, and to shared parts once."""
    if expression in memo:
        return memo[expression]
    parts = [transform(part, change, memo) for part in expression.args]
    made = expression
    if any(new is not old and new != old for new, old in zip(parts, expression.args)):
        made = _with_parts(expression, parts)
    memo[expression] = change(made)
    return memo[expression]


def _with_parts(expression: Any, parts: list[Any]) -> Any:
    import sympy
    from sympy.functions.elementary.piecewise import ExprCondPair

    if isinstance(expression, (sympy.Piecewise, ExprCondPair)):
        return sympy.Basic.__new__(expression.func, *parts)  # its constructor would rewrite nested conditions
    folds = isinstance(expression, sympy.exp) and abs(parts[0].as_coeff_Add()[0]) > MAX_EXPONENT
    if expression.is_Add or (can_simplify(*parts) and not folds):
        return expression.func(*parts)
    if expression.is_Mul:
        return scale_term(sympy.Integer(1), expression.func(*parts, evaluate=False))
    return expression.func(*parts, evaluate=False)


def product_of(factors: list[Any]) -> Any:
    """Return a product, simplified where that is quick, or NaN if a factor is: sympy can't print or compile that."""
    import sympy

    if any(factor is sympy.nan for factor in factors):
        return sympy.nan
    return sympy.Mul(*factors, evaluate=can_simplify(*factors))


def scale_term(factor: Any, term: Any) -> Any:
    """Multiply a number and a term that is not a sum, without simplifying the term."""
    import sympy

    numbers = [part for part in sympy.Mul.make_args(term) if part.is_number]
    others = [part for part in sympy.Mul.make_args(term) if not part.is_number]
    coefficient = sympy.Mul(factor, *numbers)
    if not others or coefficient == 0 or coefficient is sympy.nan:
        return coefficient
    others.sort(key=cmp_to_key(sympy.Basic.compare))  # sympy's own order, which evaluate=False skips
    return sympy.Mul(*([] if coefficient == 1 else [coefficient]), *others, evaluate=False)


def can_simplify(*expressions: Any) -> bool:
    """Whether sympy can simplify combinations of these expressions quickly: they are short and surely real. Otherwise
    it may take minutes to separate real and imaginary parts."""
    from sympy import preorder_traversal

    return all(
        place < MAX_PARTS and _is_surely_real(part)
        for expression in expressions
        for place, part in enumerate(islice(preorder_traversal(expression), MAX_PARTS + 1))
    )


def _is_surely_real(part: Any) -> bool:
    """Whether a part is surely real, provided that its own parts are."""
    if part.is_Pow:
        return bool(part.exp.is_Integer and part.exp > 0)
    if part.is_Function:
        if part.func.__name__ == "exp":
            return not part.args[0].is_number and abs(part.args[0].as_coeff_Add()[0]) < MAX_EXPONENT
        return part.func.__name__ in ("sin", "cos", "tanh", "sinh", "cosh", "atan", "Abs", "sign")
    return bool(part.is_Add or part.is_Mul or ((part.is_Symbol or part.is_number) and part.is_real))


class Digits(Kind):
    """Kind of an argument that is None, a positive int, or ``"auto"``."""

    def read(self, name: str, value: Any) -> int | str | None:
        if isinstance(value, str):
            if value != "auto":
                raise ValueError(f"{name} must be None, an int, or 'auto'; got {value!r}")
            return value
        return None if value is None else Int(least=1).read(name, value)


TOLERANCE = Real(least=0)


def _significant(value: Any, digits: int) -> Any:
    as_float = float(value)
    if digits >= MAX_DIGITS or not math.isfinite(as_float):
        return value
    return number(float(f"{as_float:.{digits - 1}e}"))
