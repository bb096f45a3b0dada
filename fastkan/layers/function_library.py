"""The library of functions f that can be used in formulas ``c f(a x + b) + d`` on edges.

The library contains the functions of pykan's library and the functions that users add. An entry contains the PyTorch
form, the sympy form and the domain of a function. An entry may also state symmetries of the function. The symbolic
search uses the symmetries to skip equivalent parameters (a, b, c, d) and to write formulas in their simplest form.
Functions without stated symmetries can be searched and fixed too.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import FLAG, Bounds, Callback, Kind, Optional, Real, Text, checked, kind_of

INF = math.inf
IDENTITY = (1.0, 0.0, 1.0, 0.0)
BOUNDS = Optional(Bounds())


class Interval(NamedTuple):
    """An interval from ``low`` to ``high``, with two flags for whether the ends belong to the interval.

    Example:
        >>> SYMBOLIC_LIB["sqrt"].domain
        Interval(low=0.0, high=inf, low_closed=True, high_closed=False)
    """

    low: float = -INF
    high: float = INF
    low_closed: bool = False
    high_closed: bool = False

    @property
    def interior_point(self) -> float:
        """A point inside the interval."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return (self.low + self.high) / 2
        if math.isfinite(self.low):
            return self.low + 1
        return min(0.0, self.high - 1)

    def contains(self, low: float, high: float) -> bool:
        """Check whether all numbers from ``low`` to ``high``, ends included, lie in the interval."""
        above = low >= self.low if self.low_closed else low > self.low
        return bool(above and (high <= self.high if self.high_closed else high < self.high))


# -- guards ------------------------------------------------------------------------------------------------
#
# A guard is a function that moves z to the nearest point of the domain of f where |f(z)| <= y_th. If the derivative of
# f is infinite at an end of the domain, the guard keeps z at least one rounding step away from the end.

Guard = Callable[[Tensor, float], Tensor]


def _guard_zero(power: float) -> Guard:
    """Return the guard for the function ``z**-power``."""

    def guard(z: Tensor, y_th: float) -> Tensor:
        least = y_th ** (-1 / power)
        return torch.where(z.abs() < least, torch.copysign(torch.full_like(z, least), z), z)

    return guard


def _guard_positive(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(min=torch.finfo(z.dtype).eps)


def _guard_inverse_root(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(min=y_th**-2)


def _guard_log(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(min=max(math.exp(-y_th), torch.finfo(z.dtype).tiny))


def _guard_exp(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(max=math.log(y_th))


def _guard_tan(z: Tensor, y_th: float) -> Tensor:
    limit = math.atan(y_th)
    reduced = z - math.pi * torch.round(z / math.pi)
    return z + (reduced.clamp(-limit, limit) - reduced)


def _guard_within(limit_of: Callable[[float, float], float]) -> Guard:
    """Return the guard that keeps z within ``limit_of(y_th, eps)`` on both sides of 0."""

    def guard(z: Tensor, y_th: float) -> Tensor:
        limit = limit_of(y_th, torch.finfo(z.dtype).eps)
        return z.clamp(-limit, limit)

    return guard


_guard_unit = _guard_within(lambda y_th, eps: 1 - eps)
_guard_arctanh = _guard_within(lambda y_th, eps: min(math.tanh(y_th), 1 - eps))
_guard_cosh = _guard_within(lambda y_th, eps: math.acosh(max(y_th, 1.0)))
_guard_sinh = _guard_within(lambda y_th, eps: math.asinh(y_th))


class SymbolicFunction(NamedTuple):
    """An entry of the library, which describes a function f. The first four fields are the same as in pykan's library.

    Attributes:
        fun: f as an elementwise function of a tensor that autograd can differentiate.
        sympy_fun: f as a function of a sympy expression.
        complexity: the complexity of f, which :func:`rank` weighs against R2.
        guard: a function ``(z, y_th) -> z'`` that moves z to the nearest point of the domain where ``|f| <= y_th``, or
            None if f has no singularities.
        name: the name of f in the library.
        domain: the interval in which f is real and finite, except at the poles.
        poles: the points inside the domain where f is not finite. For a periodic f, only the poles of one period are
            listed.
        period: the period of f, or None.
        antiperiodic: whether f changes its sign after half a period.
        symmetry: ``"even"`` or ``"odd"``, the parity of f, or None.
        scale: the parameter, ``"c"`` or ``"d"``, that can absorb a positive common factor of a and b, or None.
        shift: the parameter, ``"c"`` or ``"d"``, that can absorb b, or None.
        same_as: the name of another function and a tuple ``(a, b, c, d)`` with ``f(z) = c other(a z + b) + d``, or
            None.
        fun_singularity: a guard in the form of pykan, which is a function ``(z, y_th) -> (..., value)``, or None. The
            field is None for all built-in functions.

    Example:
        >>> SYMBOLIC_LIB["exp"].fun(torch.zeros(1)), SYMBOLIC_LIB["exp"].complexity
        (tensor([1.]), 2)
    """

    fun: Callable[[Tensor], Tensor]
    sympy_fun: Callable[[Any], Any]
    complexity: float
    guard: Guard | None = None
    name: str = ""
    domain: Interval = Interval()
    poles: tuple[float, ...] = ()
    period: float | None = None
    antiperiodic: bool = False
    symmetry: str | None = None
    scale: str | None = None
    shift: str | None = None
    same_as: tuple[str, tuple[float, float, float, float]] | None = None
    fun_singularity: Callable[[Tensor, float], Any] | None = None

    def __repr__(self) -> str:
        return f"SymbolicFunction({self.name!r}, complexity={self.complexity})"

    @property
    def alias(self) -> bool:
        """Whether the entry is only an alternative name for another entry."""
        return self.same_as is not None and self.same_as[1] == IDENTITY

    def guarded(self, z: Tensor, y_th: float) -> Tensor:
        """Apply the guard to z and evaluate f, so that ``|f|`` is at most about ``y_th`` near a singularity."""
        if self.fun_singularity is not None:
            value = self.fun_singularity(z, y_th)
            return value[-1] if isinstance(value, tuple) else value
        return self.fun(z if self.guard is None else self.guard(z, y_th))

    def branches(self) -> tuple[Interval, ...]:
        """Return the intervals between the poles. If f is periodic, return only the interval that contains 0."""
        if not self.poles:
            return (self.domain,)
        if self.period is not None:
            high = min(self.poles) % self.period
            return (Interval(high - self.period, high),)
        cuts = sorted(self.poles)
        low, high, low_closed, high_closed = self.domain
        ends = [(low, low_closed), *((cut, False) for cut in cuts), (high, high_closed)]
        return tuple(Interval(a, b, ac, bc) for (a, ac), (b, bc) in pairwise(ends))

    def defined_on(self, low: float, high: float) -> bool:
        """Check whether f is real and finite at every z from ``low`` to ``high``.

        Example:
            >>> SYMBOLIC_LIB["1/x"].defined_on(0.5, 3), SYMBOLIC_LIB["1/x"].defined_on(-1, 3)
            (True, False)
        """
        if self.poles and self.period is not None:
            turns = math.floor((low - self.branches()[0].low) / self.period) * self.period
            low, high = low - turns, high - turns
        return any(branch.contains(low, high) for branch in self.branches())


# -- the functions -------------------------------------------------------------------------------------


def _sympy(name: str) -> Callable[[Any], Any]:
    """Return a function of sympy by its name; sympy is imported at the first call."""

    def call(z: Any) -> Any:
        import sympy

        return getattr(sympy, name)(z)

    return call


def _sympy_power(numerator: int, denominator: int = 1) -> Callable[[Any], Any]:
    def call(z: Any) -> Any:
        import sympy

        return z ** sympy.Rational(numerator, denominator)

    return call


def _undefined(name: str) -> Callable[[Any], Any]:
    """Return an undefined sympy function, which has a name and no further properties."""
    return lambda z: _sympy("Function")(name)(z)


_POSITIVE = Interval(0.0, INF)
_FROM_ZERO = Interval(0.0, INF, True)
_UNIT = Interval(-1.0, 1.0, True, True)
_ROOT = SymbolicFunction(torch.sqrt, _sympy_power(1, 2), 2, _guard_positive, domain=_FROM_ZERO, scale="c")
_INVERSE_ROOT = _ROOT._replace(
    fun=torch.rsqrt, sympy_fun=_sympy_power(-1, 2), guard=_guard_inverse_root, domain=_POSITIVE
)


def _power(n: int, fun: Callable[[Tensor], Tensor], complexity: int) -> SymbolicFunction:
    parity = "odd" if n % 2 else "even"
    return SymbolicFunction(fun, _sympy_power(n), complexity, symmetry=parity, scale="c")


def _inverse_power(n: int) -> SymbolicFunction:
    parity = "odd" if n % 2 else "even"
    fun = torch.reciprocal if n == 1 else lambda z: z.pow(-n)
    guard = _guard_zero(n)
    return SymbolicFunction(fun, _sympy_power(-n), max(n, 2), guard, poles=(0.0,), symmetry=parity, scale="c")


_FUNCTIONS: dict[str, SymbolicFunction] = {
    "x": SymbolicFunction(lambda z: z, lambda z: z, 1, symmetry="odd", scale="c", shift="d"),
    "x^2": _power(2, torch.square, 2),
    "x^3": _power(3, lambda z: z.pow(3), 3),
    "x^4": _power(4, lambda z: z.square().square(), 3),
    "x^5": _power(5, lambda z: z.square().square() * z, 3),
    "1/x": _inverse_power(1),
    "1/x^2": _inverse_power(2),
    "1/x^3": _inverse_power(3),
    "1/x^4": _inverse_power(4),
    "1/x^5": _inverse_power(5),
    "sqrt": _ROOT,
    "x^0.5": _ROOT._replace(same_as=("sqrt", IDENTITY)),
    "x^1.5": SymbolicFunction(
        lambda z: z.pow(1.5), _sympy_power(3, 2), 4, _guard_positive, domain=_FROM_ZERO, scale="c"
    ),
    "1/sqrt(x)": _INVERSE_ROOT,
    "1/x^0.5": _INVERSE_ROOT._replace(same_as=("1/sqrt(x)", IDENTITY)),
    "exp": SymbolicFunction(torch.exp, _sympy("exp"), 2, _guard_exp, shift="c"),
    "log": SymbolicFunction(torch.log, _sympy("log"), 2, _guard_log, domain=_POSITIVE, scale="d"),
    "abs": SymbolicFunction(torch.abs, _sympy("Abs"), 3, symmetry="even", scale="c"),
    "sin": SymbolicFunction(
        torch.sin, _sympy("sin"), 2, period=2 * math.pi, antiperiodic=True, symmetry="odd"
    ),
    "cos": SymbolicFunction(
        torch.cos, _sympy("cos"), 2, period=2 * math.pi, antiperiodic=True, symmetry="even",
        same_as=("sin", (1.0, math.pi / 2, 1.0, 0.0)),
    ),
    "tan": SymbolicFunction(
        torch.tan, _sympy("tan"), 3, _guard_tan, poles=(math.pi / 2,), period=math.pi, symmetry="odd"
    ),
    "tanh": SymbolicFunction(torch.tanh, _sympy("tanh"), 3, symmetry="odd"),
    "sgn": SymbolicFunction(torch.sign, _sympy("sign"), 3, symmetry="odd", scale="c"),
    "arcsin": SymbolicFunction(torch.arcsin, _sympy("asin"), 4, _guard_unit, domain=_UNIT, symmetry="odd"),
    "arccos": SymbolicFunction(
        torch.arccos, _sympy("acos"), 4, _guard_unit, domain=_UNIT, same_as=("arcsin", (1.0, 0.0, -1.0, math.pi / 2))
    ),
    "arctan": SymbolicFunction(torch.arctan, _sympy("atan"), 4, symmetry="odd"),
    "arctanh": SymbolicFunction(
        torch.arctanh, _sympy("atanh"), 4, _guard_arctanh, domain=Interval(-1.0, 1.0), symmetry="odd"
    ),
    "0": SymbolicFunction(lambda z: z * 0, lambda z: z * 0, 0, symmetry="even", scale="c", shift="c"),
    "gaussian": SymbolicFunction(
        lambda z: torch.exp(-z.square()), lambda z: _sympy("exp")(-(z**2)), 3, symmetry="even"
    ),
    "cosh": SymbolicFunction(torch.cosh, _sympy("cosh"), 5, _guard_cosh, symmetry="even"),
    "sinh": SymbolicFunction(torch.sinh, _sympy("sinh"), 5, _guard_sinh, symmetry="odd"),
    "sigmoid": SymbolicFunction(
        torch.sigmoid, lambda z: 1 / (1 + _sympy("exp")(-z)), 4, same_as=("tanh", (0.5, 0.0, 0.5, 0.5))
    ),
}  # fmt: skip
_FUNCTIONS.update({name: entry._replace(name=name) for name, entry in _FUNCTIONS.items()})
_BUILT_IN = frozenset(_FUNCTIONS)

SYMBOLIC_LIB: Mapping[str, SymbolicFunction] = MappingProxyType(_FUNCTIONS)


def lookup(name: str) -> SymbolicFunction:
    """Return the library entry with a given name.

    Raises:
        TypeError, ValueError: if ``name`` is not a str, or is not in the library.

    Example:
        >>> lookup("sin").symmetry
        'odd'
    """
    entry = _FUNCTIONS.get(name) if isinstance(name, str) else None
    if entry is not None:
        return entry
    if not isinstance(name, str):
        raise TypeError(f"the name of a symbolic function must be a str, got {type(name).__name__}")
    known = ", ".join(_FUNCTIONS)
    raise ValueError(f"no symbolic function has the name {name!r}: add it by add_symbolic, or take one of {known}")


def names_of(lib: Iterable[str] | None = None) -> list[str]:
    """Return the names in ``lib`` without repetitions. If ``lib`` is None, return all library names except aliases.

    Raises:
        TypeError, ValueError: if a name is not in the library, or ``lib`` is empty.

    Example:
        >>> names_of(["sin", "exp", "sin"])
        ['sin', 'exp']
    """
    return Library().read("lib", lib)


class FunctionName(Kind):
    """An argument kind that accepts the name of a function in the library."""

    def read(self, name: str, value: Any) -> str:
        if callable(value):
            raise TypeError(f"{name} must be a name: give the function one by add_symbolic(name, fun), and pass that")
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, got {kind_of(value)}")
        if value not in _FUNCTIONS:
            near = difflib.get_close_matches(value.lower(), _FUNCTIONS, cutoff=0.5)
            meant = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(_FUNCTIONS)}."
            raise ValueError(f"{name} must be in the library, got {value!r}; {meant} add_symbolic adds new functions")
        return value


class Library(Kind):
    """An argument kind that accepts a list of names of library functions, or None for all names except aliases."""

    def read(self, name: str, value: Any) -> list[str]:
        if value is None:
            return [each for each, entry in _FUNCTIONS.items() if not entry.alias]
        if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be names of functions in a list, got {value!r}")
        names = list(dict.fromkeys(FunctionName().read(name, each) for each in value))
        if not names:
            raise ValueError(f"{name} must name a function, got none")
        return names


@checked(
    name=Text(), fun=Callback(), c=Real(least=0), fun_singularity=Optional(Callback()), sympy_fun=Optional(Callback()),
    domain=Bounds(finite=False), overwrite=FLAG,
)  # fmt: skip
def add_symbolic(
    name: str,
    fun: Callable[[Tensor], Tensor],
    c: float = 1,
    fun_singularity: Callable[[Tensor, float], Any] | None = None,
    *,
    sympy_fun: Callable[[Any], Any] | None = None,
    domain: tuple[float, float] = (-INF, INF),
    overwrite: bool = False,
) -> None:
    """Add a function to the library of the current process.

    Args:
        name: the name of the function. A built-in function cannot be replaced.
        fun: an elementwise function of a tensor that autograd can differentiate.
        c: the complexity of the function, which :func:`rank` weighs against R2.
        fun_singularity: a function ``(z, y_th)`` that is called instead of ``fun`` if ``singularity_avoiding`` is set.
            ``fun_singularity`` returns either the function value or a tuple whose last entry is the function value.
        sympy_fun: the function in a form that accepts a sympy expression. If ``sympy_fun`` is None, formulas contain an
            undefined sympy function with the given name.
        domain: the interval in which ``fun`` is real and finite. An end of the interval belongs to the domain if
            ``fun`` is finite there.
        overwrite: whether to replace a function that was previously added under the same name.

    Raises:
        TypeError, ValueError: if the name is already in use, the domain has no width, or ``fun`` does not map a
            floating-point tensor to a floating-point tensor of equal shape. If an error is raised, nothing is changed.

    Example:
        >>> add_symbolic("j0", torch.special.bessel_j0, c=4)
        >>> SYMBOLIC_LIB["j0"].fun(torch.zeros(1))
        tensor([1.])
        >>> remove_symbolic("j0")
    """
    if not name:
        raise ValueError("name must not be empty")
    if name in _BUILT_IN:
        raise ValueError(f"name must be a new one, got {name!r}, which is built in")
    if name in _FUNCTIONS and not overwrite:
        raise ValueError(f"name must be a new one, got {name!r}, which you have added: pass overwrite=True")
    interval = _interval_of(fun, domain)
    _FUNCTIONS[name] = SymbolicFunction(
        fun, sympy_fun or _undefined(name), c, name=name, domain=interval, fun_singularity=fun_singularity
    )


@checked(name=FunctionName())
def remove_symbolic(name: str) -> None:
    """Remove a function that was added by :func:`add_symbolic`.

    Edges whose formulas use the removed function can no longer be evaluated.

    Args:
        name: the name of the function.

    Raises:
        TypeError, ValueError: if the function is built in, or the name is unknown.

    Example:
        >>> add_symbolic("cube", lambda z: z**3)
        >>> remove_symbolic("cube")
    """
    if name in _BUILT_IN:
        raise ValueError(f"name must be that of a function you have added, got {name!r}, which is built in")
    del _FUNCTIONS[name]


def _interval_of(fun: Callable[[Tensor], Tensor], domain: tuple[float, float]) -> Interval:
    low, high = domain
    inside = Interval(low, high).interior_point
    ends = torch.tensor([end if math.isfinite(end) else inside for end in domain], dtype=torch.float64)
    low_finite, high_finite = check_function(fun, ends).isfinite().tolist()
    return Interval(low, high, low_finite and low > -INF, high_finite and high < INF)


def check_function(fun: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Evaluate ``fun`` at the float64 tensor ``at [2]``, check the result and return it.

    Raises:
        TypeError: if ``fun`` raises an error, or does not return a floating-point tensor with the shape of ``at``.
    """
    try:
        value = fun(at.clone())
    except Exception as error:
        raise TypeError(f"fun must map a tensor to one of its shape and kind, but raised {error!r}") from error
    if not isinstance(value, Tensor) or value.shape != at.shape or not value.is_floating_point():
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"fun must map a tensor to one of its shape and kind, but float64 [2] became {got}")
    return value
