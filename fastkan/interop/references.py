"""Search for references to modules from outside the tree of submodules, which are not updated when a submodule is
replaced.

The references are held by attributes, hooks, containers, closures, partial functions and objects. Wrappers of
distributed training and of ``torch.compile`` also hold modules, and are recognised by functions of this file.
"""

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
    """A reference to a module or parameter from outside the tree of submodules.

    Args:
        attribute: qualified name of the attribute through which the module or parameter is reached, such as
            ``"mlp.act"``.
        held: the module or parameter.
        shared: whether a deep copy of the owner would refer to the same module or parameter, because the reference goes
            through a function or a weak reference.
        method: whether ``held`` is the object of a bound method.
        place: a tuple of the dictionary or list that contains the reference, and the key of the reference in the
            dictionary or list. If the reference cannot be reassigned, ``place`` is None.
    """

    attribute: str
    held: Any
    shared: bool
    method: bool
    place: tuple[Any, Any] | None


def references(
    owners: Mapping[str, nn.Module], tree: Iterable[nn.Module], wanted: Iterable[Any], copied: bool
) -> Iterator[Reference]:
    """Yield the references to ``wanted`` in attributes, hooks, containers, functions, partials, methods and objects.

    Args:
        owners: dictionary of the modules whose attributes are searched, with their names as keys.
        tree: all submodules. The search does not continue inside a submodule that is found in an attribute.
        wanted: modules and parameters to find. References to a parameter are reported only if a function holds the
            parameter; an optimizer, for example, may hold the parameter too.
        copied: whether to search the state that ``copy.deepcopy`` copies instead of all attributes.
    """
    wanted_ids = {id(each) for each in wanted}
    inside = {id(module) for module in tree}
    seen: dict[tuple[int, bool], Any] = {}  # the values keep the objects alive, so that each id stays unique
    for name, owner in owners.items():
        state = _copied_state(owner) if copied else owner.__dict__
        attributes = [(key, value) for key, value in state.items() if key not in _REGISTRIES]
        starts: list[Any] = [(key, value, False, (owner.__dict__, key)) for key, value in attributes]
        starts += [(function.__name__, function, True, None) for function in own_methods(type(owner))]
        for key, value, shared, place in starts:
            for held, *how in _search(value, shared, place, inside, seen, copied):
                if id(held) in wanted_ids and (how[0] or not isinstance(held, Tensor)):
                    yield Reference(f"{name}.{key}".lstrip("."), held, *how)


def _search(
    first: Any, first_shared: bool, place: Any, inside: set[int], seen: dict[tuple[int, bool], Any], copied: bool
) -> Iterator[tuple[Any, bool, bool, Any]]:
    """Yield a tuple for each object that can be reached from ``first``: the object, followed by the fields ``shared``,
    ``method`` and ``place`` of its :class:`Reference`."""
    waiting: deque[tuple[Any, bool, bool, Any]] = deque([(first, first_shared, False, place)])
    while waiting:
        value, shared, method, place_of = waiting.popleft()
        yield value, shared, method, place_of
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
            waiting.extend((v, True, False, None) for v in own_methods(type(value)))


def _reachable_from(function: types.FunctionType) -> list[Any]:
    """Return the objects that the code of a function can reach: the values of its closure, defaults, attributes and
    global variables."""
    found: list[Any] = [function.__defaults__, function.__kwdefaults__, function.__dict__]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # the cell is still empty
            continue
    return found + _global_values(function.__code__, function.__globals__)


def _global_values(code: types.CodeType, space: dict[str, Any]) -> list[Any]:
    """Return the values of the global variables that a code object reads, if their type can hold a module."""

    def may_hold(value: Any) -> bool:
        if isinstance(value, types.FunctionType):
            return value.__globals__ is space  # functions from other Python modules are assumed to hold no model
        return isinstance(value, (nn.Module, types.MethodType, functools.partial, list, tuple, dict, set))

    found = {name: space[name] for name in code.co_names if name in space and may_hold(space[name])}
    # The tuple ``co_names`` also has names of attributes, so global variables are identified by a slower disassembly.
    if found:
        read = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        found = {name: value for name, value in found.items() if name in read}
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return [*found.values(), *(value for const in inner for value in _global_values(const, space))]


def own_methods(cls: type) -> list[types.FunctionType]:
    """Return the methods of a class, because an instance and its copies share the methods of their class. Constructors,
    and methods that are inherited from libraries, are left out."""
    found = []
    for each in cls.__mro__:
        if each.__module__.partition(".")[0] not in _LIBRARIES:
            for name, value in vars(each).items():
                value = getattr(value, "fget", getattr(value, "__func__", value))
                if isinstance(value, types.FunctionType) and name not in ("__new__", "__init__"):
                    found.append(value)
    return found


def _attributes(value: Any, copied: bool) -> list[Any]:
    """Return the values of an object's attributes. If ``copied`` is True, return only the values that a deep copy of
    the object copies. If ``copied`` is True and the class of the object defines its own deep copy, return an empty
    list."""
    cls = type(value)
    if copied and (hasattr(cls, "__deepcopy__") or _overrides(cls, "__reduce_ex__") or _overrides(cls, "__reduce__")):
        return []
    state = _copied_state(value) if copied else getattr(value, "__dict__", None)
    slots = [each.__dict__.get("__slots__", ()) for each in cls.__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    found = [getattr(value, name, None) for name in names if not name.startswith("__")]
    return found + (list(state.values()) if isinstance(state, dict) else [state])


def _copied_state(value: Any) -> Any:
    """Return the state of an object that ``copy.deepcopy`` copies."""
    if _overrides(type(value), "__getstate__"):
        try:
            return value.__getstate__()
        except Exception:  # ``copy.deepcopy`` will raise the same error later
            return {}
    return getattr(value, "__dict__", {})


def _overrides(cls: type, name: str) -> bool:
    """Whether a class, or a class from which it inherits, overrides the method ``name`` of ``object``."""
    return getattr(cls, name, None) is not getattr(object, name, None)


def check_unwrapped(module: nn.Module, changed: Iterable[nn.Module], doing: str) -> None:
    """Check that no wrapper of distributed training contains a module that will be replaced. The hooks of a wrapper are
    registered on the existing parameters, so new parameters would not be synchronised. ``doing`` is a verb that names
    the operation in the error message."""
    parts = {part for each in changed for part in each.modules()}
    for name, each in module.named_modules():
        if _is_wrapper(each) and any(part in parts for part in each.modules()):
            raise ValueError(
                f"{name or 'module'}, a {type(each).__name__}, synchronises the parameters of the model that it wraps, "
                f"but would not synchronise those of new layers: {doing} the model first, then wrap it"
            )
    for part in parts:
        for parameter in part._parameters.values():
            if type(parameter).__name__ == "DTensor":
                raise ValueError(
                    f"module contains a {type(part).__name__} whose parameters are sharded: {doing} the model before "
                    "sharding it"
                )


def _is_wrapper(module: nn.Module) -> bool:
    return any(
        cls.__name__ in _WRAPPERS or (cls.__module__, cls.__name__) == _REPLICATE for cls in type(module).__mro__
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is a wrapper made by ``torch.compile``. The wrapper always calls the module from which the
    wrapper was made."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules
