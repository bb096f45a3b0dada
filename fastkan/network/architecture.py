"""The architecture of a network: the numbers of sum nodes and multiplication nodes in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastkan_kernels import Int, is_sequence, kind_of


class Architecture(NamedTuple):
    """The numbers of nodes and subnodes of each layer, from the inputs to the outputs.

    A sum node is the sum of the edges that end in it. A multiplication node is the product of several factors, each of
    which is a sum of edges. Edges end in subnodes: a sum node has one subnode, and a multiplication node has one
    subnode for each factor.

    Args:
        sums: number of sum nodes in each layer.
        arities: for each layer, the number of factors of every multiplication node. In a layer, multiplication nodes
            come after sum nodes.
    """

    sums: tuple[int, ...]  # number of sum nodes of each layer
    arities: tuple[tuple[int, ...], ...]  # numbers of factors of its multiplication nodes, which follow its sum nodes

    @property
    def depth(self) -> int:
        """The number of layers of edges."""
        return len(self.sums) - 1

    @property
    def width(self) -> list[list[int]]:
        """The numbers ``[sums, multiplications]`` of sum nodes and of multiplication nodes in each layer."""
        return [[added, len(arity)] for added, arity in zip(self.sums, self.arities)]

    @property
    def nodes(self) -> list[int]:
        """The number of nodes in each layer."""
        return [added + len(arity) for added, arity in zip(self.sums, self.arities)]

    @property
    def subnodes(self) -> list[int]:
        """The number of subnodes in each layer."""
        return [added + sum(arity) for added, arity in zip(self.sums, self.arities)]

    def factors(self, layer: int) -> list[list[int]]:
        """Return the list of subnodes of each node of a layer. The list has one entry for a sum node and one entry for
        each factor of a multiplication node."""
        groups = [[subnode] for subnode in range(self.sums[layer])]
        first = self.sums[layer]
        for arity in self.arities[layer]:
            groups.append(list(range(first, first + arity)))
            first += arity
        return groups

    def keep(self, layer: int, nodes: Sequence[int]) -> tuple[Architecture, list[int]]:
        """Return a tuple of the architecture in which one layer has only the given nodes, in ascending order, and the
        indices of the subnodes that remain in the layer."""
        kept = sorted(nodes)
        added = self.sums[layer]
        sums, arities = list(self.sums), list(self.arities)
        sums[layer] = sum(node < added for node in kept)
        arities[layer] = tuple(self.arities[layer][node - added] for node in kept if node >= added)
        groups = self.factors(layer)
        return Architecture(tuple(sums), tuple(arities)), [subnode for node in kept for subnode in groups[node]]


def architecture(width: Any, mult_arity: object = 2) -> Architecture:
    """Construct an :class:`Architecture` from the arguments of :class:`KAN`.

    Args:
        width: for each layer, the number of sum nodes, or a pair ``[sums, multiplications]`` of numbers of nodes.
        mult_arity: number of factors of every multiplication node, or for each layer a list with the number of factors
            of every multiplication node.

    Raises:
        TypeError, ValueError: if an argument has the wrong form, if the arguments contradict each other, or if a layer
            has no nodes.

    Example:
        >>> architecture([2, [5, 2], 1], 3)
        Architecture(sums=(2, 5, 1), arities=((), (3, 3), ()))
    """
    if not is_sequence(width):
        raise TypeError(f"width must be a list, one entry for each layer, got {kind_of(width)}")
    entries = list(width)
    if len(entries) < 2:
        raise ValueError(f"width must name at least inputs and outputs, got {entries}")
    pairs = [_pair(f"width[{layer}]", entry) for layer, entry in enumerate(entries)]
    if pairs[0][1]:
        raise ValueError(f"width[0] must be inputs alone, without multiplication nodes; got {entries[0]}")
    for layer, pair in enumerate(pairs):
        if sum(pair) == 0:
            raise ValueError(f"width[{layer}] must have at least one node, got {entries[layer]}")
    counts = [multiplied for _, multiplied in pairs]
    factors = Int(least=2)
    if is_sequence(mult_arity):
        given: list[Any] = list(mult_arity)  # type: ignore[call-overload]
        if len(given) != len(pairs):
            raise ValueError(
                f"mult_arity must be a number or a list for each of the {len(pairs)} layers of width, got {mult_arity}"
            )
        arities = []
        for layer, (each, count) in enumerate(zip(given, counts)):
            if not is_sequence(each):
                raise TypeError(f"mult_arity[{layer}] must be a list of its nodes' arities, got {each!r}")
            if len(each) != count:
                raise ValueError(f"mult_arity[{layer}] must have {count} entries, as width[{layer}], got {list(each)}")
            arities.append(tuple(factors.read(f"mult_arity[{layer}]", value) for value in each))
    else:
        arity = factors.read("mult_arity", mult_arity)
        arities = [(arity,) * count for count in counts]
    return Architecture(tuple(added for added, _ in pairs), tuple(arities))


def _pair(name: str, entry: object) -> tuple[int, int]:
    pair: Any = entry if is_sequence(entry) else (entry, 0)
    if len(pair) != 2:
        raise ValueError(f"{name} must be a number or [sums, multiplications], got {list(pair)}")
    added, multiplied = (Int(least=0).read(name, count) for count in pair)
    return added, multiplied


def for_each_layer(name: str, value: Any, depth: int) -> list[Any]:
    """Return a list with one value for each layer of edges. ``value`` is either a list with one entry for each layer of
    edges, or a single value for all layers of edges."""
    if not isinstance(value, list):
        return [value] * depth
    if len(value) != depth:
        raise ValueError(f"{name} must be a number or a list for each of the {depth} layers, got {list(value)}")
    return list(value)


def single_if_equal(values: list[int]) -> int | list[int]:
    """Return a single number if all numbers of a list are equal, else the list."""
    return values[0] if len(set(values)) == 1 else values
