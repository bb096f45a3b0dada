"""The order of hidden nodes: exchanged so that edges that matter are short."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def connection_cost(sizes: Sequence[Tensor]) -> float:
    """The sum of sizes of edges, ``[in, out]`` of each layer, each times how far apart its ends are.

    The nodes of every layer are spread evenly over a width of 1.

    Example:
        >>> connection_cost([torch.eye(2)]), connection_cost([1 - torch.eye(2)])
        (0.0, 1.0)
    """
    return float(sum((size * _distances(size)).sum() for size in sizes))


def _distances(size: Tensor) -> Tensor:
    ends = [(torch.arange(count, device=size.device) + 0.5) / count for count in size.shape]
    return (ends[0].unsqueeze(1) - ends[1]).abs()


def order_nodes(
    sizes: Sequence[Tensor],
    swap: Callable[[int, int, int], object],
    groups: Sequence[Sequence[Sequence[int]]] | None = None,
    layers: Sequence[int] | None = None,
) -> None:
    """Exchange nodes of hidden layers, one after another, where that makes :func:`connection_cost` less.

    Args:
        sizes: of the edges, ``[in, out]`` of each layer; they stay as they are.
        swap: exchanges the nodes i1 and i2 of layer l, called with ``(l, i1, i2)``.
        groups: of each layer of nodes the subnodes of each node; None is one each. Nodes are exchanged for such of the
            same number of subnodes.
        layers: which hidden layers; None is all.
    """
    now = [size.detach().clone() for size in sizes]
    for l in range(1, len(now)) if layers is None else layers:
        parts = [[node] for node in range(now[l].shape[0])] if groups is None else groups[l]

        def exchange(l: int, i: int, j: int, parts: Sequence[Sequence[int]] = parts) -> None:
            here, there = list(parts[i]), list(parts[j])
            now[l - 1][:, here + there] = now[l - 1][:, there + here]
            now[l][[i, j]] = now[l][[j, i]]

        for i in range(len(parts)):
            costs = {}
            for j in range(len(parts)):
                if len(parts[i]) == len(parts[j]):
                    exchange(l, i, j)
                    costs[j] = connection_cost(now[l - 1 : l + 1])
                    exchange(l, i, j)
            j = min(costs, key=lambda node: costs[node])
            if j != i and costs[j] < costs[i]:
                exchange(l, i, j)
                swap(l, i, j)
