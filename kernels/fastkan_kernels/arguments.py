"""Tables of what a public function's arguments may be.

A table is written once, above the function, and read before its first line runs:

    @checked(steps=Int(least=0), lr=Real(above=0), progress=Flag())
    def fit(model, steps=100, lr=1.0, progress=True): ...

Numbers come as people have them (NumPy's, tensors without dimensions, bools) and reach the function as Python's own.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_INT = 2**31 - 1  # more of anything neither fits into memory nor ends
Fn = TypeVar("Fn", bound=Callable[..., Any])


class Kind:
    """One kind of argument."""

    def read(self, name: str, value: Any) -> Any:
        """The value as the function takes it.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        raise NotImplementedError


def plain(value: Any) -> Any:
    """Python's own number for NumPy's, or for a tensor or array without dimensions; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        try:
            return value.item()
        except (RuntimeError, TypeError, ValueError, NotImplementedError):  # without values: meta, fake, traced
            return value
    return value


def kind_of(value: object) -> str:
    """The type of a value in words, with the shape of a tensor or array."""
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
    """A finite number within bounds; ``above`` and ``below`` exclude their ends."""

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
        below_least = self.least is not None and not number >= self.least  # as NaN is
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
    """True or False; 0 and 1 are taken for them."""

    def read(self, name: str, value: Any) -> bool:
        answer = plain(value)
        if not isinstance(answer, int) or answer not in (0, 1):
            shown = repr(value) if isinstance(value, (str, int, float)) else kind_of(value)
            raise TypeError(f"{name} must be True or False, got {shown}")
        return bool(answer)


class Choice(Kind):
    """One of some names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            shown = repr(value) if isinstance(value, (str, int, float, type(None))) else kind_of(value)
            raise ValueError(f"{name} must be one of {', '.join(map(repr, self.names))}; got {shown}")
        return str(value)


class Bounds(Kind):
    """Two increasing numbers, as a tuple of floats; infinite ones where they may be."""

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
    """A path of the file system, as a str."""

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, (str, bytes, os.PathLike)):
            raise TypeError(f"{name} must be a path, as a str, bytes or os.PathLike, got {kind_of(value)}")
        path = os.fsdecode(value)
        if "\0" in path:
            raise ValueError(f"{name} must be a path, got {value!r}, which has a zero byte in it")
        return path


class Callback(Kind):
    """A function, or whatever else can be called."""

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
    """A device that is there."""

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
    """An instance of some classes."""

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.classes):
            expected = " or ".join(each.__name__ for each in self.classes)
            raise TypeError(f"{name} must be a {expected}, got {kind_of(value)}")
        return value


class Each(Kind):
    """A sequence of arguments of one kind, as a list; a set has no order and is none."""

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
    """One argument, or a sequence of such arguments."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.each = kind, Each(kind)

    def read(self, name: str, value: Any) -> Any:
        return self.each.read(name, value) if is_sequence(value) else self.kind.read(name, value)


class Optional(Kind):
    """An argument of a kind, or None."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, name: str, value: Any) -> Any:
        return None if value is None else self.kind.read(name, value)


def is_sequence(value: object) -> bool:
    """Whether a value has entries in an order, as lists and arrays with dimensions have; text counts as one value."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and not value.is_meta and value.layout == torch.strided
    if isinstance(value, Sequence):
        return not isinstance(value, (str, bytes, bytearray, memoryview))
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


FLAG = Flag()
REAL = Real()
INDEX = Int(least=0)
DEVICE, DTYPE = Optional(Device()), Optional(Dtype())  # None is the default one
SEED = Optional(Int(least=0, most=2**64 - 1))
SHARE = Real(least=0, most=1)


def checked(**table: Kind) -> Callable[[Fn], Fn]:
    """Check a function's arguments by a table of their kinds before it runs; defaults are taken as they are.

    While ``torch.compile`` traces, arguments are taken as they are: it can't read values.

    Raises:
        TypeError, ValueError: from the function, for an argument of another kind, before anything has been done.

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

        call.argument_table = table  # type: ignore[attr-defined]  # for the tests that try bad arguments
        return cast(Fn, call)

    return decorate
