"""Which edges, nodes and inputs matter: shares in the outputs' spread, handed back from layer to layer."""

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

TINY = 1e-4  # added to a subnode's spread, which may be 0


class Scores(NamedTuple):
    """Shares of what was asked about, by its nodes (the first dimension), layer by layer.

    Args:
        nodes: ``[O, nodes]`` of each layer of nodes.
        edges: ``[O, in, out]`` of each layer of edges.
        subnodes: ``[O, subnodes]`` behind each layer of edges.
    """

    nodes: list[Tensor]
    edges: list[Tensor]
    subnodes: list[Tensor]

    def mean(self) -> Scores:
        """Of all nodes that were asked about; the first dimension is gone."""
        return Scores(*([each.mean(0) for each in part] for part in self))


def attribution_scores(
    model: Network,
    nodes: Sequence[Tensor],
    layer: int | None = None,
    out_score: Tensor | None = None,
    singularity_avoiding: bool = False,
    y_th: float = 10.0,
) -> Scores:
    """Share of every edge and node in each node of one layer; differentiable.

    A node's share goes to its subnodes whole; a subnode's goes to its edges, each by its spread over the
    subnode's; an edge's goes to the node it comes from (Liu et al., KAN 2.0, 2024, section 4.1).

    Args:
        nodes: what enters each layer, ``[N, nodes]``.
        layer: of nodes, counted from the inputs; None is the last.
        out_score: weights of its nodes; None counts each as one.
        singularity_avoiding, y_th: as in :meth:`KAN.forward`.
    """
    last = model.depth if layer is None else layer
    guarded = singularity_avoiding, y_th
    score = torch.eye(model.width_in[last], device=nodes[0].device, dtype=nodes[0].dtype)
    if out_score is not None:
        score = score * out_score
    found = Scores([score], [], [])
    for below in range(last - 1, -1, -1):
        subnodes = _of_subnodes(score, model.architecture.sums[below + 1], model.architecture.arities[below + 1])
        spread = all_edge_std(model.layers[below], model.symbolic[below], nodes[below], *guarded)
        whole = column_std(model._subnode_values(below, nodes[below], *guarded)) + TINY
        edges = (subnodes / whole).unsqueeze(1) * spread
        score = edges.sum(2)
        found.nodes.insert(0, score)
        found.edges.insert(0, edges)
        found.subnodes.insert(0, subnodes)
    return found


def _of_subnodes(score: Tensor, sums: int, arities: Sequence[int]) -> Tensor:
    """``[O, nodes]`` to ``[O, subnodes]``: each of a multiplication's factors has its node's."""
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
    """How much every edge, node and input matters for the outputs, or for a node.

    Args:
        l: layer of nodes that is asked about, counted from the inputs; None is the last.
        i: one node of it.
        out_score: ``[nodes]`` weights of its nodes; None counts each as one.
        x: ``[..., in_features]`` rows to go by; None takes those of the last fit.
        dataset: instead of x, as :meth:`fit` takes it.

    Returns:
        Without ``l`` the :class:`Scores`, mean over the outputs. With it the inputs' scores for each of its nodes,
        ``[nodes, inputs]``; with ``i`` those for that node.

    Raises:
        TypeError, ValueError: for a layer or node that is not there, an ``out_score`` of another shape, and fewer than
            two different rows.

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
    """How much each input matters, ``[inputs]``; see :func:`attribute`."""
    scores = attribute(model, x=x)
    assert isinstance(scores, Scores)
    return scores.nodes[0]
