"""Validation of the arguments of public functions before the functions do any work.

The decorator :func:`checked` declares which values each argument accepts:

    @checked(steps=Int(least=0), lr=Real(above=0), progress=Flag())
    def fit(model, steps=100, lr=1.0, progress=True): ...

NumPy scalars, and tensors or arrays without dimensions, are accepted as numbers and converted to Python numbers. Every
error message names the argument, states what was expected and shows what was given.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .basis import BASE_FUNCTIONS, MAX_SPLINE_ORDER, Basis, autocast_dtype
from .trilinear import Operands

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_INT = 2**31 - 1  # default upper limit of integer arguments; no larger number of rows or steps is practical
Fn = TypeVar("Fn", bound=Callable[..., Any])


class Kind:
    """The base class of argument kinds. Each subclass validates arguments of one kind, such as int or str."""

    def read(self, name: str, value: Any) -> Any:
        """Check an argument and return its value, converted to the type that the decorated function expects.

        Raises:
            TypeError, ValueError: if the kind does not accept the value.
        """
        raise NotImplementedError


def plain(value: Any) -> Any:
    """Convert NumPy scalars, and tensors or arrays without dimensions, to Python numbers; return other values as is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        try:
            return value.item()
        except (RuntimeError, TypeError, ValueError, NotImplementedError):  # meta and traced tensors have no value
            return value
    return value


def kind_of(value: object) -> str:
    """Return the name of a value's type, followed by the shape of a tensor or array, for use in error messages."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return f"{name} of shape {list(shape)}" if isinstance(shape, tuple) and shape else name


def repr_with_shapes(value: tuple[Any, ...]) -> str:
    """Return a named tuple as text, with the shapes of tensors in place of their values, which can be many."""

    def shown(entry: Any) -> str:
        if isinstance(entry, (list, tuple)):
            return f"[{', '.join(map(shown, entry))}]"
        return f"Tensor{list(entry.shape)}" if isinstance(entry, Tensor) else repr(entry)

    fields = value._fields  # type: ignore[attr-defined]
    return f"{type(value).__name__}({', '.join(f'{name}={shown(entry)}' for name, entry in zip(fields, value))})"


class Int(Kind):
    """An argument kind that accepts an int from ``least`` to ``most``."""

    def __init__(self, least: int | None = None, most: int | None = MAX_INT) -> None:
        self.least, self.most = least, most

    def read(self, name: str, value: Any) -> int:
        number = plain(value)
        if not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {kind_of(value)}")
        too_low = self.least is not None and number < self.least
        if too_low or (self.most is not None and number > self.most):
            if self.least is not None and self.most is not None and self.most < MAX_INT:
                bounds = f"from {self.least} to {self.most}"
            else:
                bounds = f"at least {self.least}" if too_low else f"at most {self.most}"
            raise ValueError(f"{name} must be {bounds}, got {number}")
        return int(number)


class Real(Kind):
    """An argument kind that accepts a number within bounds and converts the number to a float.

    The bounds ``least`` and ``most`` are inclusive; the bounds ``above`` and ``below`` are exclusive. NaN is rejected.
    Infinities are rejected unless ``finite`` is False.
    """

    def __init__(
        self,
        least: float | None = None,
        most: float | None = None,
        above: float | None = None,
        below: float | None = None,
        finite: bool = True,
    ) -> None:
        self.least, self.most, self.above, self.below, self.finite = least, most, above, below, finite

    def read(self, name: str, value: Any) -> float:
        number = plain(value)
        if not isinstance(number, numbers.Real):
            raise TypeError(f"{name} must be a number, got {kind_of(value)}")
        try:
            number = float(number)
        except OverflowError:
            raise ValueError(f"{name} must be finite, got a number above 1e308") from None
        two_ends = self.least is not None and self.most is not None
        if not two_ends and (math.isnan(number) or (self.finite and math.isinf(number))):
            raise ValueError(f"{name} must be finite, got {number}")
        below_least = self.least is not None and not number >= self.least  # ``not number >= least`` also rejects NaN
        above_most = self.most is not None and number > self.most
        not_above = self.above is not None and number <= self.above
        not_below = self.below is not None and number >= self.below
        if below_least or above_most or not_above or not_below:
            raise ValueError(f"{name} must be {self._bounds()}, got {value}")
        return number

    def _bounds(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)


class Flag(Kind):
    """An argument kind that accepts True, False, 0 or 1 and converts the value to a bool."""

    def read(self, name: str, value: Any) -> bool:
        answer = plain(value)
        if not isinstance(answer, int) or answer not in (0, 1):
            shown = repr(value) if isinstance(value, (str, int, float)) else kind_of(value)
            raise TypeError(f"{name} must be True or False, got {shown}")
        return bool(answer)


class Choice(Kind):
    """An argument kind that accepts one of the given strings."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            shown = repr(value) if isinstance(value, (str, int, float, type(None))) else kind_of(value)
            raise ValueError(f"{name} must be one of {', '.join(map(repr, self.names))}; got {shown}")
        return str(value)


class Bounds(Kind):
    """An argument kind that accepts a sequence of two increasing numbers and converts it to a tuple of floats.

    Infinite numbers are accepted only if ``finite`` is False.
    """

    def __init__(self, finite: bool = True) -> None:
        self.finite = finite

    def read(self, name: str, value: Any) -> tuple[float, float]:
        ends = [plain(end) for end in value] if is_sequence(value) else []
        if len(ends) != 2 or not all(isinstance(end, numbers.Real) for end in ends):
            raise TypeError(f"{name} must be two numbers, got {value!r}")
        try:
            low, high = map(float, ends)
        except OverflowError:
            low = high = math.inf
        if not low < high or (self.finite and not (math.isfinite(low) and math.isfinite(high))):
            raise ValueError(f"{name} must be {'finite and ' * self.finite}increasing, got {value!r}")
        return low, high


class Text(Kind):
    """An argument kind that accepts a string."""

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {kind_of(value)}")
        return value


class Path(Kind):
    """An argument kind that accepts a file system path, as str, bytes or os.PathLike, and converts it to a str."""

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, (str, bytes, os.PathLike)):
            raise TypeError(f"{name} must be a path, as a str, bytes or os.PathLike, got {kind_of(value)}")
        path = os.fsdecode(value)
        if "\0" in path:
            raise ValueError(f"{name} must be a path, got {value!r}, which has a zero byte in it")
        return path


class Callback(Kind):
    """An argument kind that accepts a function or another callable."""

    def read(self, name: str, value: Any) -> Any:
        if not callable(value):
            raise TypeError(f"{name} must be a function, got {kind_of(value)}")
        return value


class Dtype(Kind):
    """An argument kind that accepts a dtype supported by layers."""

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.dtype) or value not in FLOATS:
            raise TypeError(f"{name} must be torch.float16, bfloat16, float32 or float64, got {value!r}")
        return value


class Device(Kind):
    """An argument kind that accepts an available device, given as a torch.device, its name or its index."""

    def read(self, name: str, value: Any) -> torch.device:
        if isinstance(value, bool) or not isinstance(value, (str, int, torch.device)):
            raise TypeError(f"{name} must be a torch.device or its name, got {kind_of(value)}")
        try:
            device = torch.device(value)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError, OverflowError, ValueError) as error:
            because = str(error).strip().splitlines()[0]
            raise ValueError(f"{name}={str(value)!r} cannot be used here: {because}") from None
        return device


class Instance(Kind):
    """An argument kind that accepts an instance of one of the given classes."""

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.classes):
            expected = " or ".join(each.__name__ for each in self.classes)
            raise TypeError(f"{name} must be a {expected}, got {kind_of(value)}")
        return value


class Each(Kind):
    """An argument kind that accepts a sequence whose entries are all of one kind, and converts the sequence to a list.

    A set is rejected, because the order of its entries is undefined.
    """

    def __init__(self, kind: Kind, count: int | None = None) -> None:
        self.kind, self.count = kind, count

    def read(self, name: str, value: Any) -> list[Any]:
        if not is_sequence(value):
            raise TypeError(f"{name} must be a sequence, got {kind_of(value)}")
        if isinstance(self.kind, Int) and any(isinstance(plain(entry), bool) for entry in value):
            raise TypeError(f"{name} must hold ints, got bools: give the places of those that are True")
        found = [self.kind.read(f"{name}[{place}]", entry) for place, entry in enumerate(value)]
        if self.count is not None and len(found) != self.count:
            raise ValueError(f"{name} must have {self.count} entries, got {len(found)}")
        return found


class OneOrEach(Kind):
    """An argument kind that accepts either a single value of a given kind or a sequence of values of that kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.each = kind, Each(kind)

    def read(self, name: str, value: Any) -> Any:
        return self.each.read(name, value) if is_sequence(value) else self.kind.read(name, value)


class Optional(Kind):
    """An argument kind that accepts None or a value of a given kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, name: str, value: Any) -> Any:
        return None if value is None else self.kind.read(name, value)


def is_sequence(value: object) -> bool:
    """Check whether a value is a sequence other than a string, or an array or tensor with at least one dimension."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and not value.is_meta and value.layout == torch.strided
    if isinstance(value, Sequence):
        return not isinstance(value, (str, bytes, bytearray, memoryview))
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


FLAG = Flag()
REAL = Real()
INDEX = Int(least=0)
DEVICE, DTYPE = Optional(Device()), Optional(Dtype())  # None selects PyTorch's default device or dtype
SEED = Optional(Int(least=0, most=2**64 - 1))
SHARE = Real(least=0, most=1)


def checked(**table: Kind) -> Callable[[Fn], Fn]:
    """Return a decorator that checks and converts the named arguments of a function before the function runs.

    Default values are not checked. No argument is checked while ``torch.compile`` traces the function, because values
    cannot be read during tracing. If an argument is not of the declared kind, the decorated function raises a TypeError
    or a ValueError.

    Args:
        table: the kind of each argument that is checked, with the name of the argument as the key.

    Example:
        >>> @checked(count=Int(least=1))
        ... def twice(count):
        ...     return 2 * count
        >>> twice(torch.tensor(4))
        8
    """

    def decorate(function: Fn) -> Fn:
        parameters = inspect.signature(function).parameters
        unknown = set(table) - set(parameters)
        if unknown:
            raise TypeError(f"{function.__qualname__} has no parameters {sorted(unknown)}")
        defaults = {name: parameters[name].default for name in table}
        by_place = [name for name, one in parameters.items() if one.kind.name.startswith("POSITIONAL")]
        places = [(place, name) for place, name in enumerate(by_place) if name in table]

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*args, **options)
            given = list(args)
            for place, name in places:
                if place < len(given) and given[place] is not defaults[name]:
                    given[place] = table[name].read(name, given[place])
            for name, value in options.items():
                if name in table and value is not defaults[name]:
                    options[name] = table[name].read(name, value)
            return function(*given, **options)

        call.argument_table = table  # type: ignore[attr-defined]  # the tests of bad arguments read this attribute
        return cast(Fn, call)

    return decorate


ORDER = Int(least=1, most=MAX_SPLINE_ORDER)
BASE = Choice(BASE_FUNCTIONS)
# The location of a warning is the innermost stack frame outside of the packages in this tuple. The tuple contains torch
# because frames of PyTorch lie between the user's code and the forward method of a module.
PACKAGES = ("fastkan", "fastkan_kernels", "torch")


def check_int(name: str, value: object, least: int) -> int:
    """Check that ``value`` is an int of at least ``least``, and return it as an int."""
    return Int(least).read(name, value)


def check_dtype(dtype: object) -> None:
    """Raise a TypeError unless ``dtype`` is a dtype supported by layers."""
    Dtype().read("dtype", dtype)


def check_basis(basis: object) -> None:
    """Raise an error unless ``basis`` is a :class:`Basis` with a supported order, base function and dtype."""
    if not isinstance(basis, Basis):
        raise TypeError(f"basis must be a Basis, got {type(basis).__name__}")
    ORDER.read("spline_order", basis.order)
    BASE.read("base", basis.base)
    if basis.matmul_dtype is not None:
        check_dtype(basis.matmul_dtype)


def check_tensor(name: str, value: object, any_dtype: bool = False) -> None:
    """Raise a TypeError unless ``value`` is a dense tensor with a floating-point dtype.

    If ``any_dtype`` is True, the dtype of the tensor is not checked.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
    if value.dtype not in FLOATS and not any_dtype:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: tuple[int | str, ...]) -> None:
    """Raise a ValueError unless ``value`` has the shape ``expected``.

    An entry of ``expected`` that is a string names a dimension that may have any size.
    """
    if value.ndim == len(expected) and all(
        isinstance(want, str) or want == got for want, got in zip(expected, value.shape)
    ):
        return
    wanted = ", ".join(map(str, expected))
    raise ValueError(f"{name} must have the shape [{wanted}], got {list(value.shape)}")


def check_knots(knots: Tensor, order: int) -> None:
    """Raise an error unless ``knots`` are finite and non-decreasing, and the grid inside the outer knots has a width.

    The function reads the values of the knots, so it is called when knots are set and not in each forward pass.
    """
    check_tensor("knots", knots)
    least = 2 * order + 2  # the smallest allowed grid has one interval and k outer knots on each side
    if knots.ndim != 2 or knots.shape[1] < least:
        raise ValueError(
            f"knots must have the shape [in_features, grid_size + 2 * spline_order + 1] with at least "
            f"{least} columns for spline_order={order}, got {list(knots.shape)}"
        )
    if knots.is_meta:
        return
    wide = knots.detach().double()
    if not bool(wide.isfinite().all()):
        raise ValueError("knots must be finite, got NaN or infinity among them")
    falls = (wide.diff(dim=1) < 0).any(1)
    if bool(falls.any()):
        rows = falls.nonzero().flatten().tolist()
        raise ValueError(f"knots must be non-decreasing in each row; those of features {rows[:8]} are not")
    # The inverse spacing is computed in the dtype of the knots, in which the mean cell width must not underflow.
    finite = torch.finfo(knots.dtype)
    width = (wide[:, -order - 1] - wide[:, order]) / (knots.shape[1] - 2 * order - 1)
    flat = width < finite.tiny
    if bool(flat.any()):
        rows = flat.nonzero().flatten().tolist()
        raise ValueError(
            f"the grid must have a width: knots[:, {order}] < knots[:, {-order - 1}] does not hold for "
            f"features {rows[:8]} in {knots.dtype}"
        )
    if bool((wide[:, -1] - wide[:, 0] > finite.max).any()):
        raise ValueError(f"the knots' range must be finite in {knots.dtype}, got one that is wider than {finite.max:g}")


def check_weights(
    knots: Tensor, weight: Tensor, base_weight: Tensor | None, basis: Basis, name: str = "weight"
) -> None:
    """Raise an error unless the shapes of ``weight`` and ``base_weight`` match each other and the knots.

    ``base_weight`` must be None if the base function is ``"none"``, and must be a tensor otherwise.

    Args:
        name: the name of ``weight`` in error messages.
    """
    check_tensor(name, weight)
    check_shape(name, weight, (basis.splines_of(knots), knots.shape[0], "out_features"))
    if (base_weight is None) != (basis.base == "none"):
        given = "None" if base_weight is None else "a tensor"
        raise ValueError(f"base={basis.base!r}, but base_weight is {given}")
    if base_weight is not None:
        check_tensor("base_weight", base_weight)
        check_shape("base_weight", base_weight, tuple(weight.shape[1:]))


def check_operands(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, filled: Collection[str] = ()) -> None:
    """Raise an error unless the types, shapes, dtypes and devices of a contraction's tensors are consistent.

    Args:
        filled: the operands among ``"W"`` and ``"g"`` that the contraction takes. An operand that is not in ``filled``
            may be None.
    """
    check_basis(basis)
    check_tensor("x", x)
    check_tensor("knots", knots)
    check_shape("knots", knots, ("in_features", "grid_size + 2 * spline_order + 1"))
    least = 2 * basis.order + 2
    if knots.shape[1] < least:
        raise ValueError(
            f"knots must have at least {least} columns for spline_order={basis.order}, got {knots.shape[1]}"
        )
    check_shape("x", x, ("N", knots.shape[0]))
    outputs: int | str = "out_features"
    if "W" in filled:
        check_weights(knots, operands.weight, operands.base_weight, basis)
        outputs = operands.weight.shape[2]
    if "g" in filled:
        check_tensor("g", operands.g)
        check_shape("g", operands.g, (x.shape[0], outputs))
    if operands.v is not None:
        check_tensor("v", operands.v)
        check_shape("v", operands.v, tuple(x.shape))
    check_alike(x, knots=knots, **operands._asdict())


def check_alike(x: Tensor, **others: Tensor | None) -> None:
    """Raise an error unless all tensors have the device and the dtype of x.

    Under autocast the dtypes may differ. Knots may be float32 if x is float16 or bfloat16.
    """
    device, dtype = x.device, x.dtype
    for name, value in others.items():
        if value is None:
            continue
        if value.device != device:
            raise ValueError(f"{name} is on {value.device}, but x is on {device}")
        if value.dtype == dtype or autocast_dtype(x) is not None:
            continue
        if name == "knots" and value.dtype == torch.float32 and x.dtype.itemsize == 2:
            continue
        raise TypeError(
            f"{name} is {value.dtype}, but x is {x.dtype}; convert one of them (for a module: layer.to(x.dtype))"
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raise a ValueError if ``value`` contains NaN or infinity, or has no values because it is on the meta device.

    The function validates data that a model is fitted to.
    """
    if value.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on meta")
    bad = int((~value.detach().isfinite()).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite of {value.numel()} values")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning whose location is the line of the user's code that called into fastkan."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
