"""Pruning: the removal of nodes, edges and inputs that are unimportant for every output."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import INDEX, REAL, Choice, Each, Optional, checked

from ..layers.edge_functions import mask_of
from .attribution import Scores, attribution_scores
from .edit import subnetwork
from .trace import check_edge, edges_on, rows_for, trace

if TYPE_CHECKING:
    from .core import Network, NetworkT


@checked(node_th=REAL, edge_th=REAL)
def prune(
    model: NetworkT, node_th: float = 1e-2, edge_th: float = 3e-2, *, x: Any = None, dataset: Any = None
) -> NetworkT:
    """Return a new network without the hidden nodes and edges that are unimportant for every output.

    The importance of nodes and edges is computed as in :meth:`KAN.attribute`. After each removal the importance is
    computed again, until all remaining nodes and edges are above the thresholds. Pruning the new network again
    therefore changes nothing. The original model still computes the same function. The attribute ``prune_mask`` of the
    original model marks the edges that were kept, and ``plot(mask=True)`` hides the removed edges.

    Args:
        node_th: importance threshold of hidden nodes. A hidden node is kept if its importance for at least one output
            is above the threshold.
        edge_th: importance threshold of edges. An edge is kept if its importance for at least one output is above the
            threshold.
        x: rows ``[..., in_features]`` on which the network is evaluated (default: the rows of the last fit).
        dataset: dataset in a form that :meth:`fit` accepts, whose inputs are used as rows instead of ``x``.

    Returns:
        A network that shares no tensors with the model. The remaining edges have the same functions as in the model.

    Raises:
        TypeError, ValueError: if all nodes or edges of a layer would be removed, or if there are fewer than two
            different rows.
        RuntimeError: if ``torch.distributed`` runs several processes, whose rows and therefore networks would differ,
            or if the parameters are distributed over processes.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> x = torch.rand(100, 2)
        >>> _ = model.fit((x, x[:, :1] ** 2), lamb=0.01, steps=10, progress=False)
        >>> model.prune().width_in[1] < 5
        True
    """
    return _pruned(model, "prune", node_th, edge_th, x, dataset)


@checked(threshold=REAL, mode=Choice(("auto", "manual")), active_neurons_id=Optional(Each(Each(INDEX))))
def prune_node(
    model: NetworkT,
    threshold: float = 1e-2,
    mode: str = "auto",
    active_neurons_id: Sequence[Sequence[int]] | None = None,
    *,
    x: Any = None,
    dataset: Any = None,
) -> NetworkT:
    """Return a new network without the hidden nodes that are unimportant for every output.

    Args:
        threshold: importance threshold. A hidden node is kept if its importance for at least one output is above the
            threshold.
        mode: ``"auto"`` or ``"manual"``. The mode ``"manual"`` requires the argument ``active_neurons_id``.
        active_neurons_id: for each hidden layer, the list of the nodes to keep (default: all nodes whose importance is
            above the threshold).
        x, dataset: rows on which the network is evaluated, see :meth:`prune`.

    Raises:
        TypeError, ValueError, RuntimeError: in the same cases as :meth:`prune`, and if a node does not exist. With
            ``active_neurons_id``, which is the same for all rows, several processes are no error.
    """
    if active_neurons_id is None:
        if mode == "manual":
            raise ValueError("mode='manual' needs active_neurons_id")
        return _pruned(model, "prune_node", threshold, None, x, dataset)
    if len(active_neurons_id) != model.depth - 1:
        raise ValueError(f"active_neurons_id must have a list for each of the {model.depth - 1} hidden layers, "
                         f"got {len(active_neurons_id)}")  # fmt: skip
    nodes = [list(range(model.width_in[0]))]
    for layer, kept in enumerate(active_neurons_id, start=1):
        _check_nodes(f"active_neurons_id[{layer - 1}]", kept, model.width_in[layer])
        nodes.append(sorted(set(kept)))
    nodes.append(list(range(model.width_in[-1])))
    return subnetwork(model, nodes)


@checked(threshold=REAL)
def prune_edge(model: NetworkT, threshold: float = 3e-2, *, x: Any = None, dataset: Any = None) -> NetworkT:
    """Return a new network in which the edges that are unimportant for every output are switched off.

    Args:
        threshold: importance threshold. An edge is kept if its importance for at least one output is above the
            threshold.
        x, dataset: rows on which the network is evaluated, see :meth:`prune`.

    Raises:
        TypeError, ValueError: if all edges of a layer would be switched off, or if there are fewer than two different
            rows.
        RuntimeError: in the same cases as :meth:`prune`.
    """
    return _pruned(model, "prune_edge", None, threshold, x, dataset)


@checked(threshold=REAL, active_inputs=Optional(Each(INDEX)))
def prune_input(
    model: NetworkT,
    threshold: float = 1e-2,
    active_inputs: Sequence[int] | None = None,
    *,
    x: Any = None,
    dataset: Any = None,
) -> NetworkT:
    """Return a new network that ignores unimportant inputs. The new network is called with the same columns of inputs
    as the model, including the ignored columns.

    Args:
        threshold: importance threshold. An input is kept if its importance for at least one output is above the
            threshold.
        active_inputs: columns of the inputs to keep (default: all columns whose importance is above the threshold).
        x, dataset: rows on which the network is evaluated, see :meth:`prune`.

    Raises:
        TypeError, ValueError: if no input would be left, if ``active_inputs`` contains a column that the network does
            not read, or if there are fewer than two different rows.
        RuntimeError: in the same cases as :meth:`prune`, unless ``active_inputs`` is given.
    """
    columns = model.input_id.tolist()
    if active_inputs is None:
        worth = _scores(model, rows_for(model, x, dataset, changing="prune_input")).nodes[0].amax(0)
        kept = [node for node, score in enumerate(worth.tolist()) if score > threshold]
        if not kept:
            most = f"{worth.max():.2g}"
            raise ValueError(f"threshold={threshold} would leave no input; the most important one is worth {most}")
    else:
        for column in active_inputs:
            if column not in columns:
                raise ValueError(f"active_inputs must be of the columns that the network reads, {columns}; "
                                 f"got {column}")  # fmt: skip
        kept = sorted(columns.index(column) for column in set(active_inputs))
        if not kept:
            raise ValueError("active_inputs must keep at least one input")
    return subnetwork(model, [kept, *(list(range(count)) for count in model.width_in[1:])])


@checked(l=INDEX, i=INDEX, j=INDEX)
@torch.inference_mode(False)
@torch.no_grad()
def remove_edge(model: Network, l: int, i: int, j: int) -> None:
    """Switch off an edge in place, both its spline and its formula.

    Args:
        l: index of the layer of edges, counted from the inputs.
        i, j: index of the node where the edge starts, and index of the subnode where the edge ends.

    Raises:
        TypeError, ValueError: if the edge does not exist.
    """
    check_edge(model, l, i, j)
    on = mask_of(model.layers[l])
    on[i, j] = False
    model.layers[l].set_mask(on.float())
    if model.symbolic[l].name(i, j) is not None:
        model.symbolic[l].unfix(i, j)
    model.layers[l]._freeze_if_idle()


@checked(l=INDEX, i=INDEX, mode=Choice(("all", "up", "down")))
@torch.inference_mode(False)
@torch.no_grad()
def remove_node(model: Network, l: int, i: int, mode: str = "all") -> None:
    """Switch off the edges of a node in place.

    Args:
        l: index of the layer of nodes, counted from the inputs.
        i: index of the node in the layer.
        mode: the edges to switch off: ``"down"`` for the edges that end in the node, ``"up"`` for the edges that start
            in the node, or ``"all"`` for all edges of the node.

    Raises:
        TypeError, ValueError: if the node does not exist.
    """
    if l > model.depth:
        raise ValueError(f"l must be at most {model.depth}, the last layer of nodes; got {l}")
    _check_nodes("i", [i], model.width_in[l])
    if mode != "down" and l < model.depth:
        for j in range(model.width_out[l + 1]):
            remove_edge(model, l, i, j)
    if mode != "up" and l > 0:
        for subnode in model.architecture.factors(l)[i]:
            for node in range(model.width_in[l - 1]):
                remove_edge(model, l - 1, node, subnode)


@torch.inference_mode(False)
@torch.no_grad()
def _pruned(model: NetworkT, what: str, node_th: float | None, edge_th: float | None, x: Any, dataset: Any) -> NetworkT:
    """Prune nodes, edges, or both, for the calling method ``what``. If ``node_th`` is None, all nodes are kept. If
    ``edge_th`` is None, all edges between the remaining nodes are kept."""
    rows = rows_for(model, x, dataset, changing=what)
    work = copy.deepcopy(model)
    hidden = range(1, model.depth)
    alive = [torch.ones(count, dtype=torch.bool, device="cpu") for count in model.width_in]
    while True:
        before = [on.clone() for on in alive], [edges_on(work, layer) for layer in range(model.depth)]
        scores = _scores(work, rows)
        if node_th is not None:
            for layer in hidden:
                worth = scores.nodes[layer].amax(0).cpu()
                alive[layer] &= worth > node_th
                if not alive[layer].any():
                    raise ValueError(
                        f"node_th={node_th} would leave no node in layer {layer}; the most important one is worth "
                        f"{worth.max():.2g} of 1. Choose a lower threshold, or train before pruning"
                    )
        for layer in range(model.depth):
            keep = _between(model, layer, alive)
            if edge_th is not None:
                worth = scores.edges[layer].amax(0).cpu()
                keep &= worth > edge_th
            on = edges_on(work, layer) & keep
            if not on.any():
                raise ValueError(
                    f"edge_th={edge_th} would leave no edge in layer {layer}. Choose a lower threshold, or train "
                    "before pruning"
                )
            _keep_only(work, layer, on)
        after = alive, [edges_on(work, layer) for layer in range(model.depth)]
        if all(torch.equal(a, b) for old, new in zip(before, after) for a, b in zip(old, new)):
            break
    model.prune_mask = after[1]
    if node_th is None:
        work.prune_mask = None
        return work
    return subnetwork(work, [on.nonzero().flatten().tolist() for on in alive])


def _scores(model: Network, rows: Tensor) -> Scores:
    return attribution_scores(model, [each.nodes for each in trace(model, rows)])


def _between(model: Network, layer: int, alive: list[Tensor]) -> Tensor:
    """Return a mask ``[in, out]`` of the edges of a layer that start in an alive node and end in an alive node."""
    subnodes = torch.zeros(model.width_out[layer + 1], dtype=torch.bool, device="cpu")
    for node, group in enumerate(model.architecture.factors(layer + 1)):
        subnodes[group] = alive[layer + 1][node]
    return alive[layer].unsqueeze(1) & subnodes


def _keep_only(model: Network, layer: int, on: Tensor) -> None:
    """Switch off the splines and formulas of a layer in place, for all edges at which ``on [in, out]`` is False."""
    before = mask_of(model.layers[layer]).cpu()
    if not torch.equal(before & on, before):
        model.layers[layer].set_mask((before & on).float())
    for edge in model.symbolic[layer].edges:
        if not on[edge.i, edge.j]:
            model.symbolic[layer].unfix(edge.i, edge.j)
    model.layers[layer]._freeze_if_idle()


def _check_nodes(name: str, nodes: Sequence[int], count: int) -> None:
    if not len(nodes):
        raise ValueError(f"{name} must keep at least one node")
    for node in nodes:
        if node >= count:
            raise ValueError(f"{name} must be below {count}, the nodes of the layer; got {node}")
