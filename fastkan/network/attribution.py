"""Attribution: the importance of edges, nodes and inputs, measured as shares of the variation of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import INDEX, Int, Optional, check_shape, check_tensor, checked, column_std

from ..layers.edge_functions import all_edge_std
from .trace import check_not_sharded, rows_for, trace

if TYPE_CHECKING:
    from .core import Network

TINY = 1e-4  # added to the standard deviation of a subnode, because the sum is a divisor and must not be 0


class Scores(NamedTuple):
    """The importance scores of nodes, edges and subnodes for O target nodes. Each field is a list over the layers from
    the inputs to the target nodes.

    Args:
        nodes: scores ``[O, nodes]`` of each layer of nodes.
        edges: scores ``[O, in, out]`` of each layer of edges.
        subnodes: scores ``[O, subnodes]`` of the subnodes in which the edges of each layer end.
    """

    nodes: list[Tensor]
    edges: list[Tensor]
    subnodes: list[Tensor]

    def mean(self) -> Scores:
        """Return the mean over the target nodes. The first dimension of every score is removed."""
        return Scores(*([each.mean(0) for each in part] for part in self))


def attribution_scores(
    model: Network,
    nodes: Sequence[Tensor],
    layer: int | None = None,
    out_score: Tensor | None = None,
    singularity_avoiding: bool = False,
    y_th: float = 10.0,
) -> Scores:
    """Compute the importance of every edge and node for each node of a target layer. The result is differentiable.

    Importance scores are computed backwards, from the target layer to the inputs (Liu et al., KAN 2.0, 2024, section
    4.1). A subnode has the same score as its node. The score of an edge is the score of the edge's subnode, times the
    standard deviation of the edge, divided by the standard deviation of the subnode. The score of a node is the sum of
    the scores of the edges that start in the node.

    Args:
        nodes: values ``[N, nodes]`` that enter each layer.
        layer: index of the target layer of nodes, counted from the inputs (default: the last layer).
        out_score: weights ``[nodes]`` of the nodes of the target layer; all 1 if None.
    """
    last = model.depth if layer is None else layer
    guarded = singularity_avoiding, y_th
    score = torch.eye(model.width_in[last], device=nodes[0].device, dtype=nodes[0].dtype)
    if out_score is not None:
        score = score * out_score
    found = Scores([score], [], [])
    for below in range(last - 1, -1, -1):
        subnodes = _subnode_scores(score, model.architecture.sums[below + 1], model.architecture.arities[below + 1])
        std = all_edge_std(model.layers[below], model.symbolic[below], nodes[below], *guarded)
        total = column_std(model._subnode_values(below, nodes[below], *guarded)) + TINY
        edges = (subnodes / total).unsqueeze(1) * std
        score = edges.sum(2)
        found.nodes.insert(0, score)
        found.edges.insert(0, edges)
        found.subnodes.insert(0, subnodes)
    return found


def _subnode_scores(score: Tensor, sums: int, arities: Sequence[int]) -> Tensor:
    """Return the scores ``[O, subnodes]`` of subnodes, given the scores ``[O, nodes]`` of nodes. Every factor of a
    multiplication node has the score of the node."""
    if not arities:
        return score
    factors = [score[:, node : node + 1].expand(-1, arity) for node, arity in enumerate(arities, sums)]
    return torch.cat([score[:, :sums], *factors], 1)


@checked(l=Optional(Int(least=1)), i=Optional(INDEX))
@torch.no_grad()
def attribute(
    model: Network,
    l: int | None = None,
    i: int | None = None,
    out_score: Tensor | None = None,
    x: Any = None,
    *,
    dataset: Any = None,
) -> Scores | Tensor:
    """Compute the importance of every edge, node and input for the outputs, or for the nodes of a hidden layer.

    Args:
        l: index of the target layer of nodes, counted from the inputs (default: the last layer).
        i: index of a single target node in layer ``l`` (default: all nodes of layer ``l``).
        out_score: weights ``[nodes]`` of the target nodes; all 1 if None.
        x: rows ``[..., in_features]`` on which the network is evaluated (default: the rows of the last fit).
        dataset: dataset in a form that :meth:`fit` accepts, whose inputs are used as rows instead of ``x``.

    Returns:
        If ``l`` is None, the :class:`Scores`, averaged over the outputs. If ``l`` is given, a tensor
        ``[nodes, inputs]`` with the scores of the inputs for each target node. If ``l`` and ``i`` are given, a tensor
        ``[inputs]`` with the scores of the inputs for node ``i``.

    Raises:
        TypeError, ValueError: if the layer or node does not exist, if ``out_score`` has the wrong shape, or if there
            are fewer than two different rows.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.attribute(x=torch.rand(100, 2)).edges[0].shape
        torch.Size([2, 5])
    """
    check_not_sharded(model, "attribute")
    last = model.depth if l is None else l
    if last > model.depth:
        raise ValueError(f"l must be at most {model.depth}, the last layer of nodes; got {l}")
    if i is not None:
        if l is None:
            raise ValueError(f"l must be given together with i, got i={i} without l")
        if i >= model.width_in[last]:
            raise ValueError(f"i must be below {model.width_in[last]}, the nodes of layer {l}; got {i}")
    if out_score is not None:
        check_tensor("out_score", out_score)
        check_shape("out_score", out_score, (model.width_in[last],))
        out_score = out_score.detach().to(model.device, model.dtype)
    scores = attribution_scores(model, [each.nodes for each in trace(model, rows_for(model, x, dataset))], l, out_score)
    if l is None:
        return scores.mean()
    return scores.nodes[0] if i is None else scores.nodes[0][i]


def feature_score(model: Network, x: Any = None) -> Tensor:
    """Return the importance ``[inputs]`` of each input, as defined in :meth:`KAN.attribute`. If ``x`` is None, the
    importance is computed on the rows of the last fit."""
    scores = attribute(model, x=x)
    assert isinstance(scores, Scores)
    return scores.nodes[0]
