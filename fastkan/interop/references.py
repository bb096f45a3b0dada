"""References to modules from outside the tree of submodules, which a copy or a replacement would not reach."""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "ShardedDataParallel", "FSDPModule",
             "DeepSpeedEngine")  # fmt: skip
_REPLICATE = ("torch.distributed._composable.replicate", "DDP")
_REGISTRIES = ("_modules", "_parameters", "_buffers")
_LIBRARIES = ("builtins", "collections", "functools", "torch", "numpy", "fastkan")
_CACHED_FUNCTION = type(functools.lru_cache(len))
_LEAF_TYPES = (type, types.ModuleType, Tensor, str, bytes, bytearray, int, float, complex, type(None))


class Reference(NamedTuple):
    """A module or parameter that is held elsewhere than in the tree of submodules.

    Args:
        attribute: where it is held, as "mlp.act".
        held: the module or parameter.
        shared: whether a deep copy goes on with the same object: one inside of a function or behind a weak reference.
        method: whether it is held as the object of a bound method.
        place: the attributes, list or dictionary that hold it, with its key there, or None where none can be assigned.
    """

    attribute: str
    held: Any
    shared: bool
    method: bool
    place: tuple[Any, Any] | None


def references(
    owners: Mapping[str, nn.Module], tree: Iterable[nn.Module], wanted: Iterable[Any], copied: bool
) -> Iterator[Reference]:
    """References to ``wanted`` in attributes, hooks, containers, functions, partials, methods and objects.

    Args:
        owners: the modules whose attributes are searched, by their names.
        tree: all modules that are submodules, which are not searched for their attributes again.
        wanted: modules, and parameters, to look for; parameters count inside of functions alone, since optimizers
            hold them too.
        copied: whether to look at the state that ``copy.deepcopy`` takes instead of at all attributes.
    """
    wanted_ids = {id(each) for each in wanted}
    inside = {id(module) for module in tree}
    seen: dict[tuple[int, bool], Any] = {}  # holds what it knows, so that no id is used again
    for name, owner in owners.items():
        state = _copied_state(owner) if copied else owner.__dict__
        for key, value in state.items():
            if key not in _REGISTRIES:
                place = owner.__dict__, key
                yield from _search(value, False, f"{name}.{key}".lstrip("."), place, wanted_ids, inside, seen, copied)
        for function in _own_methods(type(owner)):
            attribute = f"{name}.{function.__name__}".lstrip(".")
            yield from _search(function, True, attribute, None, wanted_ids, inside, seen, copied)


def _search(
    first: Any,
    first_shared: bool,
    attribute: str,
    place: tuple[Any, Any] | None,
    wanted: set[int],
    inside: set[int],
    seen: dict[tuple[int, bool], Any],
    copied: bool,
) -> Iterator[Reference]:
    waiting: deque[tuple[Any, bool, bool, tuple[Any, Any] | None]] = deque([(first, first_shared, False, place)])
    while waiting:
        value, shared, method, place_of = waiting.popleft()
        if id(value) in wanted and (shared or not isinstance(value, Tensor)):
            yield Reference(attribute, value, shared, method, place_of)
        if isinstance(value, _LEAF_TYPES) or id(value) in inside or (id(value), shared) in seen:
            continue
        seen[id(value), shared] = value
        settable = place_of is not None
        if isinstance(value, dict):
            waiting.extend((v, shared, False, (value, k) if settable else None) for k, v in value.items())
        elif isinstance(value, (list, deque)):
            waiting.extend((v, shared, False, (value, k) if settable else None) for k, v in enumerate(value))
        elif isinstance(value, (tuple, set, frozenset)):
            waiting.extend((v, shared, False, None) for v in value)
        elif isinstance(value, functools.partial):
            waiting.extend((v, shared, False, None) for v in (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            waiting.append((value.__self__, shared, True, None))
            waiting.append((value.__func__, shared, False, None))
        elif isinstance(value, types.FunctionType):
            waiting.extend((v, True, False, None) for v in _reachable_from(value))
        elif isinstance(value, weakref.ref):
            waiting.append((value(), True, False, None))
        elif isinstance(value, _CACHED_FUNCTION):
            waiting.append((value.__wrapped__, True, False, None))
        else:
            waiting.extend((v, shared, False, None) for v in _attributes(value, copied))
            waiting.extend((v, True, False, None) for v in _own_methods(type(value)))


def _reachable_from(function: types.FunctionType) -> list[Any]:
    """What a function's code can reach: its closure, defaults, attributes, and the globals that it names."""
    found: list[Any] = [function.__defaults__, function.__kwdefaults__, function.__dict__]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a cell that nothing was assigned to yet
            continue
    return found + _global_values(function.__code__, function.__globals__)


def _global_values(code: types.CodeType, space: dict[str, Any]) -> list[Any]:
    """Values of the global variables that a code object reads, of the kinds that may hold a module."""

    def may_hold(value: Any) -> bool:
        if isinstance(value, types.FunctionType):
            return value.__globals__ is space  # a library's functions hold no model
        return isinstance(value, (nn.Module, types.MethodType, functools.partial, list, tuple, dict, set))

    found = {name: space[name] for name in code.co_names if name in space and may_hold(space[name])}
    if found:  # some of these names may be attributes, which takes longer to find out
        read = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        found = {name: value for name, value in found.items() if name in read}
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return [*found.values(), *(value for const in inner for value in _global_values(const, space))]


def _own_methods(cls: type) -> list[types.FunctionType]:
    """The functions that an instance and its copies share, but for the constructor and those of libraries."""
    found = []
    for each in cls.__mro__:
        if each.__module__.partition(".")[0] not in _LIBRARIES:
            for name, value in vars(each).items():
                value = getattr(value, "fget", getattr(value, "__func__", value))
                if isinstance(value, types.FunctionType) and name not in ("__new__", "__init__"):
                    found.append(value)
    return found


def _attributes(value: Any, copied: bool) -> list[Any]:
    """The values in an object's attributes, or, of an object that is copied by its own method, those in its state."""
    cls = type(value)
    if copied and (hasattr(cls, "__deepcopy__") or _overrides(cls, "__reduce_ex__") or _overrides(cls, "__reduce__")):
        return []
    state = _copied_state(value) if copied else getattr(value, "__dict__", None)
    slots = [name for each in cls.__mro__ for name in _slots(each)]
    found = [getattr(value, name, None) for name in slots if not name.startswith("__")]
    return found + (list(state.values()) if isinstance(state, dict) else [state])


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _copied_state(value: Any) -> Any:
    """What a deep copy takes of an object that has attributes."""
    if _overrides(type(value), "__getstate__"):
        try:
            return value.__getstate__()
        except Exception:  # which is what a copy will raise, with its own words
            return {}
    return getattr(value, "__dict__", {})


def _overrides(cls: type, name: str) -> bool:
    """Whether a class has a method that ``object`` has not, or has another one."""
    return getattr(cls, name, None) is not getattr(object, name, None)


def check_unwrapped(module: nn.Module, changed: Iterable[nn.Module], doing: str) -> None:
    """No wrapper of distributed training holds what is changed: it goes on watching the parameters that were there.

    Raises:
        ValueError: with the wrapper's name.
    """
    parts = {part for each in changed for part in each.modules()}
    for name, each in module.named_modules():
        if _is_wrapper(each) and any(part in parts for part in each.modules()):
            raise ValueError(
                f"{name or 'module'}, a {type(each).__name__}, watches the parameters of what it wraps, and would not "
                f"those of new layers: {doing} what it wraps, then wrap"
            )
    for part in parts:
        for parameter in part._parameters.values():
            if type(parameter).__name__ == "DTensor":
                raise ValueError(
                    f"module holds a {type(part).__name__} whose parameters are sharded: {doing} it before"
                )


def _is_wrapper(module: nn.Module) -> bool:
    return any(
        cls.__name__ in _WRAPPERS or (cls.__module__, cls.__name__) == _REPLICATE for cls in type(module).__mro__
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what ``torch.compile`` returns, which keeps calling the module that it was given."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules
