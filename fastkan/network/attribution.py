"""Attribution: the importance of edges, nodes and inputs, as shares in the outputs' variation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import INDEX, Int, Optional, check_shape, check_tensor, checked, column_std

from ..layers.edge_functions import all_edge_std
from .trace import rows_for, trace

if TYPE_CHECKING:
    from .core import Network

TINY = 1e-4  # added to a subnode's standard deviation, which may be 0, before dividing by it


class Scores(NamedTuple):
    """Importances for O target nodes, layer by layer, from the inputs to the targets.

    Args:
        nodes: ``[O, nodes]`` for each layer of nodes.
        edges: ``[O, in, out]`` for each layer of edges.
        subnodes: ``[O, subnodes]`` for the subnodes where each layer of edges ends.
    """

    nodes: list[Tensor]
    edges: list[Tensor]
    subnodes: list[Tensor]

    def mean(self) -> Scores:
        """Return the mean over the target nodes, without their dimension."""
        return Scores(*([each.mean(0) for each in part] for part in self))


def attribution_scores(
    model: Network,
    nodes: Sequence[Tensor],
    layer: int | None = None,
    out_score: Tensor | None = None,
    singularity_avoiding: bool = False,
    y_th: float = 10.0,
) -> Scores:
    """Compute the importance of every edge and node for each node of a target layer; differentiable.

    Importance is passed from the target layer to the inputs (Liu et al., KAN 2.0, 2024, section 4.1). Each subnode has
    the score of its node. An edge gets the score of its subnode times the ratio of the edge's standard deviation to the
    subnode's. A node gets the sum of the scores of the edges that start in it.

    Args:
        nodes: the values that enter each layer, ``[N, nodes]``.
        layer: the target layer of nodes, counted from the inputs; None is the last.
        out_score: weights ``[nodes]`` of its nodes; None stands for 1.
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
    """Return ``[O, subnodes]`` of ``[O, nodes]``: every factor of a multiplication node has the score of its node."""
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
    """Compute how important every edge, node and input is for the outputs, or for the nodes of a hidden layer.

    Args:
        l: the target layer of nodes, counted from the inputs; None is the last.
        i: a single target node of layer ``l``.
        out_score: weights ``[nodes]`` of the target nodes; None stands for 1.
        x: ``[..., in_features]``, rows on which the network is evaluated; None takes those of the last fit.
        dataset: instead of x, a dataset as :meth:`fit` takes it.

    Returns:
        Without ``l``, the :class:`Scores`, averaged over the outputs. With ``l``, the scores of the inputs for each
        target node, ``[nodes, inputs]``; with ``i`` as well, those for that node, ``[inputs]``.

    Raises:
        TypeError, ValueError: for a layer or node that does not exist, an ``out_score`` of another shape, and fewer
            than two different rows.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.attribute(x=torch.rand(100, 2)).edges[0].shape
        torch.Size([2, 5])
    """
    last = model.depth if l is None else l
    if last > model.depth:
        raise ValueError(f"l must be at most {model.depth}, the last layer of nodes; got {l}")
    if i is not None:
        if l is None:
            raise ValueError(f"i={i} is a node of a layer l, which must be given too")
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
    """The importance of each input, ``[inputs]``, on the rows of the last fit; see :meth:`KAN.attribute`."""
    scores = attribute(model, x=x)
    assert isinstance(scores, Scores)
    return scores.nodes[0]
