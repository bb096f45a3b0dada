"""The constants of formulas, exact or rounded, and limits on the expressions that sympy may simplify."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cmp_to_key
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import Int, Kind, Real

# Number of significant digits that are enough to distinguish any two float64 numbers
MAX_DIGITS = 17

# Maximum number of parts of an expression that sympy may simplify
MAX_PARTS = 80

# Maximum of |b| for which sympy may replace exp(x + b) by e^b exp(x); for larger b, e^b can overflow
MAX_EXPONENT = 200.0

# Assumed rounding error of a formula evaluated in float64, relative to the standard deviation of the output
ROUNDING_ERROR = 1e-12


def number(value: float, digits: int = 15) -> Any:
    """Convert a float to a sympy number.

    0, 1 and -1 become integers, because sympy leaves out terms that are 0 and factors that are 1. All other values
    become sympy floats that are exact and are printed with ``digits`` digits.
    """
    import sympy

    return sympy.Integer(int(value)) if value in (0, 1, -1) else sympy.Float(value, digits)


def rounded(expression: Any, digits: int) -> Any:
    """Return an expression with its floating-point constants rounded to ``digits`` significant digits.

    Rounding to a number of decimals instead would round small constants to 0.
    """
    for _ in range(2):  # A factor rounded to 1 drops out, which can merge other constants, so rounding is repeated
        expression = transform(expression, lambda value: _significant(value, digits) if value.is_Float else value, {})
    return expression


def rounded_within(
    formulas: list[Any],
    function_of: Callable[[list[Any], list[Any]], Callable[..., Any]],
    x: Tensor,
    labels: Tensor | None,
    tolerance: float,
) -> list[Any]:
    """Round the constants of formulas to the fewest digits for which the error stays within a tolerance.

    Constants that can be replaced by 0 within the tolerance are replaced by 0.

    Args:
        formulas: sympy expressions to be rounded.
        function_of: function that compiles a list of symbols and a list of formulas into a NumPy function. The
            arguments of the NumPy function are the values of the symbols and the columns of x.
        x: rows ``[N, columns]`` at which the error is measured.
        labels: expected outputs ``[N, outputs]``. If given, the RMSE over all outputs may grow by the relative amount
            ``tolerance``. If None, the values of each formula may change by an RMS of ``tolerance`` times their
            standard deviation.
        tolerance: bound of the error, as described for ``labels``.
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
    """Apply ``change`` to each part of an expression, innermost parts first, and return the resulting expression.

    A part that occurs several times is changed only once.
    """
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
        # The constructor of Piecewise would rewrite nested conditions
        return sympy.Basic.__new__(expression.func, *parts)
    folds = isinstance(expression, sympy.exp) and abs(parts[0].as_coeff_Add()[0]) > MAX_EXPONENT
    if expression.is_Add or (can_simplify(*parts) and not folds):
        return expression.func(*parts)
    if expression.is_Mul:
        return scale_term(sympy.Integer(1), expression.func(*parts, evaluate=False))
    return expression.func(*parts, evaluate=False)


def product_of(factors: list[Any]) -> Any:
    """Return the product of factors, simplified if simplification is quick.

    If one of the factors is NaN, the product is NaN, because sympy cannot print or compile an unevaluated product with
    NaN.
    """
    import sympy

    if any(factor is sympy.nan for factor in factors):
        return sympy.nan
    return sympy.Mul(*factors, evaluate=can_simplify(*factors))


def scale_term(factor: Any, term: Any) -> Any:
    """Multiply a term that is not a sum by a number, without simplifying the term."""
    import sympy

    numbers = [part for part in sympy.Mul.make_args(term) if part.is_number]
    others = [part for part in sympy.Mul.make_args(term) if not part.is_number]
    coefficient = sympy.Mul(factor, *numbers)
    if not others or coefficient == 0 or coefficient is sympy.nan:
        return coefficient
    others.sort(key=cmp_to_key(sympy.Basic.compare))  # sympy sorts factors in this order, but not if evaluate=False
    return sympy.Mul(*([] if coefficient == 1 else [coefficient]), *others, evaluate=False)


def can_simplify(*expressions: Any) -> bool:
    """Whether sympy can simplify sums and products of the given expressions quickly.

    Simplification is quick if all expressions are short and are known to be real. For other expressions, sympy may take
    minutes to separate real and imaginary parts.
    """
    from sympy import preorder_traversal

    return all(
        place < MAX_PARTS and _is_surely_real(part)
        for expression in expressions
        for place, part in enumerate(islice(preorder_traversal(expression), MAX_PARTS + 1))
    )


def _is_surely_real(part: Any) -> bool:
    """Whether a part of an expression is known to be real if all of its own parts are real."""
    if part.is_Pow:
        return bool(part.exp.is_Integer and part.exp > 0)
    if part.is_Function:
        if part.func.__name__ == "exp":
            return not part.args[0].is_number and abs(part.args[0].as_coeff_Add()[0]) < MAX_EXPONENT
        return part.func.__name__ in ("sin", "cos", "tanh", "sinh", "cosh", "atan", "Abs", "sign")
    return bool(part.is_Add or part.is_Mul or ((part.is_Symbol or part.is_number) and part.is_real))


class Digits(Kind):
    """Argument kind: None, a positive int, or ``"auto"``."""

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
