"""Reordering of hidden nodes to make important edges short, for legible plots and for pykan's ``auto_swap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def connection_cost(sizes: Sequence[Tensor]) -> float:
    """Return the sum, over all edges, of the size of the edge times its length.

    The sizes of the edges are given as one tensor ``[in, out]`` for each layer. The length of an edge is the horizontal
    distance between its two nodes if the nodes of every layer are spaced evenly over a width of 1.
    """
    total = 0.0
    for size in sizes:
        starts, ends = ((torch.arange(count, device=size.device) + 0.5) / count for count in size.shape)
        total += float((size * (starts.unsqueeze(1) - ends).abs()).sum())
    return total


def order_nodes(
    sizes: Sequence[Tensor],
    swap: Callable[[int, int, int], object],
    groups: Sequence[Sequence[Sequence[int]]] | None = None,
    layers: Sequence[int] | None = None,
) -> None:
    """Exchange pairs of hidden nodes if the exchange reduces :func:`connection_cost`.

    Each node in turn is exchanged with the node whose exchange reduces the cost most, among the nodes of the same layer
    that have the same number of subnodes.

    Args:
        sizes: sizes ``[in, out]`` of the edges of each layer. The tensors are not changed.
        swap: function that is called as ``swap(l, i1, i2)`` and exchanges the nodes ``i1`` and ``i2`` of layer ``l``.
        groups: for each layer of nodes, the list of subnodes of each node. If None, every node has one subnode.
        layers: indices of the hidden layers to reorder (default: all hidden layers).
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
