"""Reordering of hidden nodes so that important edges are short, for legible plots and pykan's ``auto_swap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def connection_cost(sizes: Sequence[Tensor]) -> float:
    """Return the sum of size times length over the edges of all layers, whose sizes are ``[in, out]``. The length of an
    edge is the distance between its two nodes, with the nodes of every layer spaced evenly over a width of 1."""
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
    """Exchange pairs of hidden nodes wherever that reduces :func:`connection_cost`.

    For each node in turn, the best partner among the nodes of its layer with as many subnodes is taken.

    Args:
        sizes: as for :func:`connection_cost`; not changed.
        swap: a function ``(l, i1, i2)`` that exchanges the nodes i1 and i2 of layer l.
        groups: for each layer of nodes, the list of subnodes of each node; None stands for one subnode each.
        layers: the hidden layers to reorder; None stands for all.
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
