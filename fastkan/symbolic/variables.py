"""Functions for sympy expressions of input variables: rounding, evaluation on tensors, and lookup in the library."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import Each, Int, Kind, check_tensor, checked, kind_of

from ..layers.function_library import SYMBOLIC_LIB

MAX_DECIMALS = 1000  # Maximum number of decimals; rounding to more decimals would not change any float

# Library names of the functions whose names in sympy are different
LIBRARY_NAMES = {"Abs": "abs", "sign": "sgn", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "atanh": "arctanh"}


class Expression(Kind):
    """Argument kind: a sympy expression, or a number or string that ``sympy.sympify`` converts to an expression."""

    def read(self, name: str, value: Any) -> Any:
        import sympy

        try:
            expression = sympy.sympify(value)
        except Exception as error:  # sympify evaluates strings as code, which can raise any exception
            raise TypeError(f"{name} must be a sympy expression, got {kind_of(value)}: {error}") from None
        if not isinstance(expression, sympy.Expr):
            raise TypeError(f"{name} must be a sympy expression, got {kind_of(value)}")
        return expression


class Variable(Expression):
    """Argument kind: a sympy symbol, or an expression that is the name of a column of x; numbers are rejected."""

    def read(self, name: str, value: Any) -> Any:
        variable = super().read(name, value)
        if variable.is_number:
            raise ValueError(f"{name} must be a symbol, got {value!r}")
        return variable


EXPRESSION = Expression()
VARIABLES = Each(Variable())


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Prefix the message of each TypeError or ValueError of the ``with`` block with the name of an argument."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from None


@checked(ex1=EXPRESSION, n_digit=Int(least=0, most=MAX_DECIMALS))
def ex_round(ex1: Any, n_digit: int) -> Any:
    """Return an expression with every floating-point number in it rounded to ``n_digit`` decimals.

    Args:
        ex1: sympy expression. Integers, fractions and constants such as pi are not changed.
        n_digit: number of decimals.

    Example:
        >>> import sympy
        >>> x = sympy.Symbol("x")
        >>> ex_round(3.14159 * x**2 - 2.71828, 2)
        3.14*x**2 - 2.72
    """
    import sympy

    # round() of a sympy number also lowers the precision of the number: 2.7 would be evaluated as 2.6992. The rounded
    # number is therefore printed and parsed again.
    return ex1.xreplace({v: sympy.Float(str(round(v, n_digit))) for v in ex1.atoms(sympy.Float)})


@checked(orig_vars=VARIABLES, aux_vars=Each(EXPRESSION))
def augment_input(orig_vars: Sequence[Any], aux_vars: Sequence[Any], x: Any) -> Any:
    """Prepend columns with the values of auxiliary variables to the columns of x.

    Args:
        orig_vars: symbols, one for each column of x.
        aux_vars: sympy expressions in ``orig_vars``.
        x: inputs ``[N, n_var]``, or a dataset with ``train_input`` and ``test_input``.

    Returns:
        The extended inputs ``[N, len(aux_vars) + n_var]``, or a new dataset with extended inputs; ``x`` is not changed.

    Raises:
        TypeError, ValueError: if x has the wrong number of columns, or an expression contains symbols that are not
            among ``orig_vars`` or functions that torch does not have.

    Example:
        >>> import sympy
        >>> v, c = sympy.symbols("v c")
        >>> augment_input([v, c], [v / c], torch.tensor([[1.0, 2.0]]))
        tensor([[0.5000, 1.0000, 2.0000]])
    """
    if isinstance(x, Mapping):
        if "train_input" not in x:
            raise ValueError(f"x must be a tensor or a dataset with train_input, got a dictionary with {list(x)}")
        inputs = {name: value for name, value in x.items() if name in ("train_input", "test_input")}
        return {**x, **{name: augment_input(orig_vars, aux_vars, value) for name, value in inputs.items()}}
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor or a dataset, got {type(x).__name__}")
    check_tensor("x", x)
    if x.ndim != 2 or x.shape[1] != len(orig_vars):
        raise ValueError(f"x must have the shape [N, {len(orig_vars)}], a column for each of orig_vars; "
                         f"got {list(x.shape)}")  # fmt: skip
    with naming("aux_vars"):
        return torch.cat([*(values_of(variable, orig_vars, x) for variable in aux_vars), x], 1)


def values_of(expression: Any, variables: Sequence[Any], x: Tensor) -> Tensor:
    """Compute the values ``[N, 1]`` of an expression, given the values ``x [N, n_var]`` of the variables.

    The result can be differentiated with respect to ``x``.
    """
    import sympy

    expression = sympy.sympify(expression)
    columns = {variable: x[:, [place]] for place, variable in enumerate(variables)}
    value = _value(expression, columns)
    return value if isinstance(value, Tensor) else x.new_full((len(x), 1), value)


def library_name(expression: Any) -> str:
    """Return the library name of the outermost function of an expression.

    The function must be in the library and have one argument.
    """
    own = expression.func.__name__
    name = LIBRARY_NAMES.get(own, own)
    if name not in SYMBOLIC_LIB or len(expression.args) != 1:
        raise ValueError(f"{expression} has the function {own}, which is not in the library: add_symbolic({own!r}, "
                         f"fun) adds one of one argument; known are {', '.join(SYMBOLIC_LIB)}")  # fmt: skip
    return name


def in_library(function: Any) -> Any:
    """Return a sympy function if the library contains it; otherwise rewrite it in terms of functions such as cos, exp
    and log."""
    import sympy

    try:
        library_name(function)
    except ValueError:
        for target in (sympy.cos, sympy.tan, sympy.tanh, sympy.cosh, sympy.atan, sympy.exp, sympy.log):
            other = function.rewrite(target)
            if other != function and not other.has(sympy.I) and not other.has(function.func):
                return other
        raise
    return function


def _value(expression: Any, columns: Mapping[Any, Tensor]) -> Any:
    """Return the value of an expression as a tensor, or as a float if the expression contains no variable."""
    import sympy

    if expression in columns:
        return columns[expression]
    if expression.is_number:
        return real_number(expression)
    if expression.is_Symbol:
        known = ", ".join(map(str, columns))
        raise ValueError(f"{expression} is none of the variables {known}")
    parts = [_value(part, columns) for part in expression.args]
    if expression.is_Add or expression.is_Mul:
        return reduce(operator.add if expression.is_Add else operator.mul, parts)
    if expression.is_Pow:
        base, exponent = parts
        whole = expression.exp.is_Integer
        return torch.pow(base, int(exponent) if whole else exponent)
    if isinstance(expression, (sympy.Max, sympy.Min)):
        like = next(part for part in parts if isinstance(part, Tensor))
        tensors = [torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in parts]
        return reduce(torch.maximum if isinstance(expression, sympy.Max) else torch.minimum, tensors)
    known = in_library(expression)
    return SYMBOLIC_LIB[library_name(known)].fun(parts[0]) if known == expression else _value(known, columns)


def real_number(expression: Any) -> float:
    """Convert a sympy number to a float, or raise a ValueError if the number is not real and finite."""
    value = complex(expression)
    if value.imag or not math.isfinite(value.real):
        raise ValueError(f"{expression} is not a finite real number")
    return value.real
