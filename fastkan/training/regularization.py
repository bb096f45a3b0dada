"""What a fit may ask for beside a small error: few edges, short and smooth coefficients.

An edge's size is the spread of its values over a batch. It comes from the covariance of the splines
(``fastkan_kernels.statistics``), so no N x I x O tensor is made, and it is differentiable. The terms are those of pykan
0.2.8, but that every metric here has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import column_std, has_values

from ..layers.edge_functions import edge_spread, numeric_spread
from ..network.attribution import attributed

if TYPE_CHECKING:
    from ..network.core import Network

INPUT_FLOOR = 0.1  # added to an input's spread, which may be 0
TINY = 1e-4  # added to a share before its logarithm
BITS = 1 / math.log(2)

REG_METRICS = (
    "edge_forward_spline_n",
    "edge_forward_spline_u",
    "edge_forward_sum",
    "edge_backward",
    "node_backward",
)
MLP_METRICS = ("w", "act", "fa", "a")  # of the network in interop.pykan.mlp


class Penalty:
    """A network's forward and the penalty of its edges on the same batch.

    Args:
        lamb_l1, lamb_entropy: see :func:`edge_penalty`.
        lamb_coef, lamb_coefdiff: see :func:`coefficient_penalty`.
        metric: a name in :data:`REG_METRICS`: the size of an edge is

            - ``"edge_forward_spline_n"``: the spread of what it gives for one of what it is given, of its spline and
              base function alone;
            - ``"edge_forward_sum"``: the same, with its formula;
            - ``"edge_forward_spline_u"``: the spread of what it gives, with its formula;
            - ``"edge_backward"``: its share in the outputs' spread;
            - ``"node_backward"``: not an edge's, but the inputs' shares in the spread of each node behind them, times
              that node's own share in the outputs'.

    Raises:
        ValueError: for another name.
    """

    def __init__(
        self, model: Network, lamb_l1: float, lamb_entropy: float, lamb_coef: float, lamb_coefdiff: float, metric: str
    ) -> None:
        if metric not in REG_METRICS:
            raise ValueError(f"reg_metric must be one of {', '.join(map(repr, REG_METRICS))}; got {metric!r}")
        self.model, self.metric = model, metric
        self.of_edges, self.of_coefficients = (lamb_l1, lamb_entropy), (lamb_coef, lamb_coefdiff)

    def __call__(
        self, x: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0, smooth: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """``x [N, in_features]`` to the output and the penalty, of sizes that are :func:`rounded`."""
        model = self.model
        if len(x) < 2:  # the last batch of a loader; one row has no spread, and every edge the size 0
            output, sizes = model.through(x, singularity_avoiding, y_th)[0], []
        elif self.metric == "edge_forward_spline_n":
            output, spreads = model.through(x, singularity_avoiding, y_th, spread=True)
            sizes = [edges / (inputs + INPUT_FLOOR).unsqueeze(1) for edges, inputs in spreads]
        else:
            nodes = [model.inputs(x)]
            for layer in range(model.depth):
                subnodes = model.subnodes_of(layer, nodes[-1], singularity_avoiding, y_th)
                nodes.append(model.nodes_of(layer, subnodes))
            output = nodes.pop()
            sizes = edge_sizes(model, nodes, self.metric, singularity_avoiding, y_th)
        sizes = [rounded(size, smooth) for size in sizes]
        total = edge_penalty(sizes, *self.of_edges) if sizes else output.new_zeros(())
        if any(self.of_coefficients):
            total = total + coefficient_penalty(model, *self.of_coefficients)
        return output, total

    def is_of_spreads(self, x: Tensor) -> bool:
        """Whether the penalty comes from :class:`LayerStd` alone, as :meth:`vjp` has it."""
        return self.metric == "edge_forward_spline_n" and not any(self.of_coefficients) and len(x) > 1

    def vjp(
        self, spreads: Sequence[tuple[Any, Any]], unit: float, smooth: float = 0.0
    ) -> tuple[float, float, list[tuple[Any, Any]]]:
        """The penalty, the same of sizes that are :func:`rounded` and, times ``unit``, the gradients of this by the
        spreads of each layer's edges and inputs; of arrays."""
        import numpy as np

        lamb_l1, lamb_entropy = map(float, self.of_edges)  # NumPy's own numbers would widen float32
        exact, total, pulled = 0.0, 0.0, []
        for edges, inputs in spreads:
            floored = (inputs + edges.dtype.type(INPUT_FLOOR))[:, None]
            size = edges / floored
            value, slope = _value_and_slope(rounded(size, smooth), np.log2, lamb_l1, lamb_entropy)
            total += float(value)
            if smooth:
                slope = slope * (size / (size * size + smooth * smooth) ** 0.5)
                value, _ = _value_and_slope(size, np.log2, lamb_l1, lamb_entropy)
            exact += float(value)
            by_edges = slope * (unit / floored)
            pulled.append((by_edges, -(by_edges * edges).sum(1) / floored[:, 0]))
        return exact, total, pulled


def rounded(size: Any, smooth: float) -> Any:
    """Sizes whose slope goes to 0 as they do, within a length of ``smooth``; a size's own jumps there."""
    return (size * size + smooth * smooth) ** 0.5 - smooth if smooth else size


def edge_sizes(
    model: Network, nodes: Sequence[Tensor], metric: str, singularity_avoiding: bool = False, y_th: float = 10.0
) -> list[Tensor]:
    """The size of every edge of each layer, ``[in, out]``, in a metric of :data:`REG_METRICS`.

    Args:
        nodes: what enters each layer, ``[N, nodes]``.
        singularity_avoiding, y_th: as in :meth:`KAN.forward`.
    """
    guarded = singularity_avoiding, y_th
    if metric in ("edge_backward", "node_backward"):
        scores = attributed(model, nodes, None, None, *guarded).mean()
        if metric == "edge_backward":
            return scores.edges
        return [
            attributed(model, nodes, layer, scores.nodes[layer], *guarded).nodes[0].t()
            for layer in range(1, model.depth + 1)
        ]
    found = []
    for numeric, symbolic, x in zip(model.layers, model.symbolic, nodes):
        alone = metric == "edge_forward_spline_n"
        size = numeric_spread(numeric, x) if alone else edge_spread(numeric, symbolic, x, *guarded)
        if metric != "edge_forward_spline_u":
            size = size / (column_std(x) + INPUT_FLOOR).unsqueeze(1)
        found.append(size)
    return found


def edge_penalty(sizes: Sequence[Tensor], lamb_l1: float, lamb_entropy: float) -> Tensor:
    """Sum over layers of ``lamb_l1`` times the sizes' sum, and ``lamb_entropy`` times the entropies of how nodes share
    their sizes among their edges, mean over each side's nodes; differentiable.

    Args:
        sizes: ``[in, out]`` of each layer, 0 or more.

    Example:
        >>> edge_penalty([torch.tensor([[1.0], [0.0]])], lamb_l1=1.0, lamb_entropy=0.0)
        tensor(1.)
    """
    total, *rest = (_EdgePenalty.apply(size, lamb_l1, lamb_entropy) for size in sizes)
    for each in rest:
        total = total + each
    return total


class _EdgePenalty(torch.autograd.Function):
    """Of one layer, with its gradient made at once; on a CPU in NumPy, whose calls cost a third."""

    @staticmethod
    def forward(ctx, size: Tensor, lamb_l1: float, lamb_entropy: float) -> Tensor:
        ctx.weights = lamb_l1, lamb_entropy
        if size.device.type != "cpu" or size.dtype.itemsize < 4 or not has_values(size):  # NumPy has no bfloat16
            value, slope = _value_and_slope(size, torch.log2, lamb_l1, lamb_entropy)
        else:
            import numpy as np

            value, slope = _value_and_slope(size.numpy(force=True), np.log2, lamb_l1, lamb_entropy)
            value, slope = torch.as_tensor(value, dtype=size.dtype, device=size.device), torch.from_numpy(slope)
        ctx.save_for_backward(size, slope)
        return value

    @staticmethod
    def backward(ctx, upstream):
        size, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative will be wanted
            value = _value_and_slope(size, torch.log2, *ctx.weights)[0]
            (slope,) = torch.autograd.grad(value, size, create_graph=True)
        return slope * upstream, None, None


def _value_and_slope(size: Any, log2: Callable, lamb_l1: float, lamb_entropy: float) -> tuple[Any, Any]:
    """The penalty of one layer and its gradient, of a tensor or an array."""
    value, slope = lamb_l1 * size.sum(), 0 * size + lamb_l1
    if lamb_entropy:
        for along in (0, 1):
            whole = size.sum(axis=along, keepdims=True) + 1
            share = size / whole
            moved = share + TINY
            bits = log2(moved)
            weight = lamb_entropy / size.shape[1 - along]
            value = value - weight * (share * bits).sum()
            by_share = bits + share / moved * BITS
            slope = slope - weight * (by_share - (by_share * share).sum(axis=along, keepdims=True)) / whole
    return value, slope


def coefficient_penalty(model: Network, lamb_coef: float, lamb_coefdiff: float) -> Tensor:
    """Sizes of the splines' coefficients, and of their differences from one to the next, mean over outputs."""
    total = model.layers[0].spline_weight.new_zeros(())
    for layer in model.layers:
        weight = layer.spline_weight if layer.mask is None else layer.spline_weight * layer.mask
        if lamb_coef:
            total = total + lamb_coef * weight.abs().mean(2).sum()
        if lamb_coefdiff:
            total = total + lamb_coefdiff * weight.diff(dim=0).abs().mean(2).sum()
    return total
