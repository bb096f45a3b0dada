"""Search for methods that read an attribute of a submodule, such as ``self.wo.weight.dtype``.

The methods are not called. Their bytecode is searched for chains of attributes that begin at the first argument.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from .references import own_methods

# Parts of the names of methods that initialise, reset or tie weights, which a call of the model does not run.
_SETUP = ("init", "reset", "tie")
# Bytecode instructions that have no effect on a chain of attributes.
_SKIPPED = ("CACHE", "EXTENDED_ARG", "NOP")


class Read(NamedTuple):
    """A method that reads an attribute of a submodule.

    Args:
        module: the submodule.
        attribute: the name of the attribute.
        method: the qualified name of the method, such as ``"T5DenseActDense.forward"``.
    """

    module: nn.Module
    attribute: str
    method: str


def attribute_reads(tree: Mapping[str, nn.Module], attributes: Collection[str]) -> Iterator[Read]:
    """Yield the places where a method of a module reads one of the attributes of a submodule.

    Reads through local variables, subscripts or functions, as in ``self.layers[0].weight``, are not found. Methods of
    PyTorch's own classes, and methods that initialise, reset or tie weights, are not searched.

    Args:
        tree: the modules whose methods are searched, with their names as keys.
        attributes: the names of the attributes.
    """
    wanted = frozenset(attributes)
    known: dict[type, list[tuple[str, tuple[str, ...]]]] = {}
    for module in tree.values():
        cls = type(module)
        if cls not in known:
            known[cls] = _reads_of_class(cls, wanted)
        for method, chain in known[cls]:
            held: nn.Module | None = module
            for name in chain[:-1]:
                held = None if held is None else held._modules.get(name)
            if held is not None:
                yield Read(held, chain[-1], method)


def _reads_of_class(cls: type, attributes: frozenset[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return a list of pairs: the qualified name of a method, and a chain of names such as ``("wo", "weight")``."""
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for method in own_methods(cls):
        if not any(word in method.__name__ for word in _SETUP):
            code = inspect.unwrap(method).__code__
            if code.co_argcount:
                for chain in _chains(code, code.co_varnames[0], attributes):
                    found[f"{cls.__name__}.{method.__name__}", chain] = None
    return list(found)


def _chains(code: types.CodeType, first: str, attributes: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield the chains of at least two attributes that a code object reads from its variable ``first`` and that end
    with one of ``attributes``."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    if not attributes.isdisjoint(code.co_names):
        chain: list[str] | None = None
        for each in dis.get_instructions(code):
            if each.opname in _SKIPPED:
                continue
            if "LOAD_FAST" in each.opname or each.opname == "LOAD_DEREF":
                # Instructions that load or store two variables have a tuple of names, the last of which is on top.
                name = each.argval[-1] if isinstance(each.argval, tuple) else each.argval
                chain = [] if name == first else None
            elif each.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
                chain.append(each.argval)
                if len(chain) > 1 and each.argval in attributes:
                    yield tuple(chain)
            else:
                chain = None
    for part in inner:
        yield from _chains(part, first, attributes)
