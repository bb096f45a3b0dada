"""Validation of the arguments of public functions, before any work is done.

The decorator :func:`checked` declares what the arguments may be:

    @checked(steps=Int(least=0), lr=Real(above=0), progress=Flag())
    def fit(model, steps=100, lr=1.0, progress=True): ...

NumPy scalars and tensors or arrays without dimensions are accepted as numbers and reach the function as Python's own.
Every error names the argument, what was expected and what was given.
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
MAX_INT = 2**31 - 1  # default limit of counts: more rows, steps or nodes neither fit into memory nor ever finish
Fn = TypeVar("Fn", bound=Callable[..., Any])


class Kind:
    """What an argument may be. Subclasses check one argument and convert it."""

    def read(self, name: str, value: Any) -> Any:
        """The value converted to the type that the function takes.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what was given.
        """
        raise NotImplementedError


def plain(value: Any) -> Any:
    """A Python number for a NumPy scalar, or for a tensor or array without dimensions; any other value unchanged."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        try:
            return value.item()
        except (RuntimeError, TypeError, ValueError, NotImplementedError):  # a meta, fake or traced tensor has no value
            return value
    return value


def kind_of(value: object) -> str:
    """Name of a value's type, with the shape of a tensor or array; for error messages."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return f"{name} of shape {list(shape)}" if isinstance(shape, tuple) and shape else name


class Int(Kind):
    """An int from ``least`` to ``most``."""

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
    """A number within bounds, as a float. ``least`` and ``most`` are allowed values, ``above`` and ``below`` are not.
    NaN is refused, and infinities too unless ``finite`` is False."""

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
        below_least = self.least is not None and not number >= self.least  # written so that NaN is refused too
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
    """True or False, or 0 or 1, as a bool."""

    def read(self, name: str, value: Any) -> bool:
        answer = plain(value)
        if not isinstance(answer, int) or answer not in (0, 1):
            shown = repr(value) if isinstance(value, (str, int, float)) else kind_of(value)
            raise TypeError(f"{name} must be True or False, got {shown}")
        return bool(answer)


class Choice(Kind):
    """One of the given names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            shown = repr(value) if isinstance(value, (str, int, float, type(None))) else kind_of(value)
            raise ValueError(f"{name} must be one of {', '.join(map(repr, self.names))}; got {shown}")
        return str(value)


class Bounds(Kind):
    """Two increasing numbers, as a tuple of floats; infinite ones only with ``finite=False``."""

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
    """A string."""

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {kind_of(value)}")
        return value


class Path(Kind):
    """A path in the file system, given as str, bytes or os.PathLike, as a str."""

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, (str, bytes, os.PathLike)):
            raise TypeError(f"{name} must be a path, as a str, bytes or os.PathLike, got {kind_of(value)}")
        path = os.fsdecode(value)
        if "\0" in path:
            raise ValueError(f"{name} must be a path, got {value!r}, which has a zero byte in it")
        return path


class Callback(Kind):
    """A function or another callable."""

    def read(self, name: str, value: Any) -> Any:
        if not callable(value):
            raise TypeError(f"{name} must be a function, got {kind_of(value)}")
        return value


class Dtype(Kind):
    """A dtype that a layer can have."""

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.dtype) or value not in FLOATS:
            raise TypeError(f"{name} must be torch.float16, bfloat16, float32 or float64, got {value!r}")
        return value


class Device(Kind):
    """A device on which a tensor can be made, given as a torch.device, its name or its index."""

    def read(self, name: str, value: Any) -> torch.device:
        if isinstance(value, bool) or not isinstance(value, (str, int, torch.device)):
            raise TypeError(f"{name} must be a torch.device or its name, got {kind_of(value)}")
        try:
            device = torch.device(value)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError, OverflowError, ValueError) as error:
            because = str(error).strip().splitlines()[0]
            raise ValueError(f"{name}={str(value)!r} can't be used here: {because}") from None
        return device


class Instance(Kind):
    """An instance of one of the given classes."""

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.classes):
            expected = " or ".join(each.__name__ for each in self.classes)
            raise TypeError(f"{name} must be a {expected}, got {kind_of(value)}")
        return value


class Each(Kind):
    """A sequence of arguments of one kind, as a list. A set is refused, since it has no order."""

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
    """One argument of a kind, or a sequence of them."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.each = kind, Each(kind)

    def read(self, name: str, value: Any) -> Any:
        return self.each.read(name, value) if is_sequence(value) else self.kind.read(name, value)


class Optional(Kind):
    """None, or an argument of a kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, name: str, value: Any) -> Any:
        return None if value is None else self.kind.read(name, value)


def is_sequence(value: object) -> bool:
    """Whether a value is a sequence, such as a list, or an array or tensor with dimensions. Text is not."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and not value.is_meta and value.layout == torch.strided
    if isinstance(value, Sequence):
        return not isinstance(value, (str, bytes, bytearray, memoryview))
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


FLAG = Flag()
REAL = Real()
INDEX = Int(least=0)
DEVICE, DTYPE = Optional(Device()), Optional(Dtype())  # None stands for PyTorch's default
SEED = Optional(Int(least=0, most=2**64 - 1))
SHARE = Real(least=0, most=1)


def checked(**table: Kind) -> Callable[[Fn], Fn]:
    """Decorator that checks and converts the named arguments of a function before it runs.

    Default values are not checked. While ``torch.compile`` traces, nothing is checked, since it cannot read values.

    Args:
        table: the kind of each argument, by its name.

    Raises:
        TypeError, ValueError: by the decorated function, for an argument of another kind.

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

        call.argument_table = table  # type: ignore[attr-defined]  # read by the tests that try bad arguments
        return cast(Fn, call)

    return decorate


ORDER = Int(least=1, most=MAX_SPLINE_ORDER)
BASE = Choice(BASE_FUNCTIONS)
PACKAGES = ("fastkan", "fastkan_kernels", "torch")  # modules and decorated functions are called by torch's code


def check_int(name: str, value: object, least: int) -> int:
    """Return ``value`` as an int, or raise unless it is an int of at least ``least``."""
    return Int(least).read(name, value)


def check_dtype(dtype: object) -> None:
    """Raise unless ``dtype`` is one that a layer can have."""
    Dtype().read("dtype", dtype)


def check_basis(basis: object) -> None:
    """Raise unless ``basis`` is a :class:`Basis` with a supported order, base function and dtype."""
    if not isinstance(basis, Basis):
        raise TypeError(f"basis must be a Basis, got {type(basis).__name__}")
    ORDER.read("spline_order", basis.order)
    BASE.read("base", basis.base)
    if basis.matmul_dtype is not None:
        check_dtype(basis.matmul_dtype)


def check_tensor(name: str, value: object, any_dtype: bool = False) -> None:
    """Raise unless ``value`` is a dense tensor, of a floating-point dtype unless ``any_dtype``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
    if value.dtype not in FLOATS and not any_dtype:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: tuple[int | str, ...]) -> None:
    """Raise unless ``value`` has the shape ``expected``, in which a str stands for a dimension of any size."""
    if value.ndim == len(expected) and all(
        isinstance(want, str) or want == got for want, got in zip(expected, value.shape)
    ):
        return
    wanted = ", ".join(map(str, expected))
    raise ValueError(f"{name} must have the shape [{wanted}], got {list(value.shape)}")


def check_knots(knots: Tensor, order: int) -> None:
    """Raise unless ``knots`` are finite, non-decreasing, and their grid (without the extension) has a width.

    The values are read, so this is called when knots are set and not in each forward.
    """
    check_tensor("knots", knots)
    least = 2 * order + 2  # one interval, extended by k on both sides
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
    # The inverse spacing is computed in the knots' own dtype, in which the mean width must not underflow.
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
    """Raise unless both parts of W fit the knots and each other, and ``base_weight`` is None only for ``base="none"``.

    Args:
        name: name of ``weight`` in error messages.
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
    """Raise unless the types, shapes, dtypes and devices of a contraction's tensors fit together.

    Args:
        filled: which of ``"W"`` and ``"g"`` the contraction takes; the other may be None.
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
    """Raise unless all tensors are on x's device and have its dtype.

    Under autocast dtypes may differ, and knots may be float32 beside an x of a narrower dtype.
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
    """Raise if ``value`` has a NaN or an infinity, or no values at all; for data that a model is fitted to."""
    if value.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on meta")
    bad = int((~value.detach().isfinite()).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite of {value.numel()} values")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning whose location is the user's line that called into these packages."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
