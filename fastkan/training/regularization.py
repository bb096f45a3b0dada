"""The penalty of a fit, for few edges and for small and smooth spline coefficients.

The size of an edge is measured by the standard deviation of its values over a batch. It is computed from the covariance
of the splines (``fastkan_kernels.statistics``), without an N x I x O tensor, and is differentiable. The terms are those
of pykan 0.2.8, except that each metric has a gradient here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import column_std, has_values

from ..layers.edge_functions import all_edge_std, numeric_edge_std
from ..network.attribution import attribution_scores

if TYPE_CHECKING:
    from ..network.core import Network

INPUT_FLOOR = 0.1  # added to the standard deviation of an input, which may be 0, before dividing by it
TINY = 1e-4  # added to a share before its logarithm is taken
BITS = 1 / math.log(2)

REG_METRICS = ("edge_forward_spline_n", "edge_forward_spline_u", "edge_forward_sum", "edge_backward", "node_backward")
MLP_METRICS = ("w", "act", "fa", "a")  # metrics of `fastkan.interop.pykan.MLP`


class Penalty:
    """The penalty of a network's edges, computed in one pass with the network's output.

    Args:
        lamb_l1, lamb_entropy: see :func:`edge_penalty`.
        lamb_coef, lamb_coefdiff: see :func:`coefficient_penalty`.
        metric: a name in :data:`REG_METRICS`. With std for the standard deviation over the batch, the size of an edge
            is

            - ``"edge_forward_spline_n"``: the std of its values, without its formula, divided by the std of its input
              plus 0.1;
            - ``"edge_forward_sum"``: the same, with its formula;
            - ``"edge_forward_spline_u"``: the std of its values, with its formula;
            - ``"edge_backward"``: its attribution score, that is its share in the std of the outputs;
            - ``"node_backward"``: not defined for edges, but for pairs of a node and a network input: the share of the
              input in the std of the node, times the attribution score of the node.

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
        """Compute the network's output for ``x [N, in_features]``, and the penalty of :func:`rounded` sizes."""
        model = self.model
        if len(x) < 2:  # as in the last batch of a loader; with a single row all standard deviations and sizes are 0
            output, sizes = model._forward_with_std(x, singularity_avoiding, y_th)[0], []
        elif self.metric == "edge_forward_spline_n":
            output, stds = model._forward_with_std(x, singularity_avoiding, y_th, with_std=True)
            sizes = [edges / (inputs + INPUT_FLOOR).unsqueeze(1) for edges, inputs in stds]
        else:
            nodes = [model._select_inputs(x)]
            for layer in range(model.depth):
                subnodes = model._subnode_values(layer, nodes[-1], singularity_avoiding, y_th)
                nodes.append(model._node_values(layer, subnodes))
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
        self, stds: Sequence[tuple[Any, Any]], unit: float, smooth: float = 0.0
    ) -> tuple[float, float, list[tuple[Any, Any]]]:
        """Compute the penalty in NumPy from each layer's standard deviations of edges ``[in, out]``, inputs ``[in]``.

        Returns:
            The penalty; the penalty of :func:`rounded` sizes; and for each layer the gradients of the latter with
            respect to the two standard deviations, times ``unit``.
        """
        import numpy as np

        lamb_l1, lamb_entropy = map(float, self.of_edges)  # as NumPy scalars they would promote float32 to float64
        exact, total, gradients = 0.0, 0.0, []
        for edges, inputs in stds:
            divisor = (inputs + edges.dtype.type(INPUT_FLOOR))[:, None]
            size = edges / divisor
            value, slope = _value_and_slope(rounded(size, smooth), np.log2, lamb_l1, lamb_entropy)
            total += float(value)
            if smooth:
                slope = slope * (size / (size * size + smooth * smooth) ** 0.5)
                value, _ = _value_and_slope(size, np.log2, lamb_l1, lamb_entropy)
            exact += float(value)
            edge_gradient = slope * (unit / divisor)
            gradients.append((edge_gradient, -(edge_gradient * edges).sum(1) / divisor[:, 0]))
        return exact, total, gradients


def rounded(size: Any, smooth: float) -> Any:
    """Smooth approximation of ``size``, from which it differs by at most ``smooth``. The derivative of a standard
    deviation with respect to the parameters jumps where the standard deviation is 0; that of this function does not."""
    return (size * size + smooth * smooth) ** 0.5 - smooth if smooth else size


def edge_sizes(
    model: Network, nodes: Sequence[Tensor], metric: str, singularity_avoiding: bool = False, y_th: float = 10.0
) -> list[Tensor]:
    """Sizes of the edges, ``[in, out]`` for each layer, in a metric of :data:`REG_METRICS`.

    Args:
        nodes: inputs of each layer, ``[N, nodes]``.
        metric: see :class:`Penalty`.
        singularity_avoiding, y_th: as in :meth:`KAN.forward`.
    """
    guarded = singularity_avoiding, y_th
    if metric in ("edge_backward", "node_backward"):
        scores = attribution_scores(model, nodes, None, None, *guarded).mean()
        if metric == "edge_backward":
            return scores.edges
        targets = range(1, model.depth + 1)
        return [attribution_scores(model, nodes, l, scores.nodes[l], *guarded).nodes[0].t() for l in targets]
    sizes = []
    for numeric, symbolic, x in zip(model.layers, model.symbolic, nodes):
        without_formulas = metric == "edge_forward_spline_n"
        size = numeric_edge_std(numeric, x) if without_formulas else all_edge_std(numeric, symbolic, x, *guarded)
        if metric != "edge_forward_spline_u":
            size = size / (column_std(x) + INPUT_FLOOR).unsqueeze(1)
        sizes.append(size)
    return sizes


def edge_penalty(sizes: Sequence[Tensor], lamb_l1: float, lamb_entropy: float) -> Tensor:
    """Compute the penalty of the sizes of edges, non-negative tensors ``[in, out]`` of each layer; differentiable.

    It is the sum over layers of ``lamb_l1`` times the sum of all sizes and ``lamb_entropy`` times two entropies, in
    bits: the mean over input nodes of the entropy of the sizes of the edges from a node, each divided by their sum plus
    1, and the same for the edges into output nodes.
    """
    penalties: Any = (_EdgePenalty.apply(size, lamb_l1, lamb_entropy) for size in sizes)
    return sum(penalties, next(penalties))


class _EdgePenalty(torch.autograd.Function):
    """:func:`edge_penalty` of one layer, with the gradient computed in the forward pass; on a CPU in NumPy, since a
    call of NumPy costs a third of a call of PyTorch and the sizes are small arrays."""

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
        if torch.is_grad_enabled():  # the gradient itself must be differentiable
            value = _value_and_slope(size, torch.log2, *ctx.weights)[0]
            (slope,) = torch.autograd.grad(value, size, create_graph=True)
        return slope * upstream, None, None


def _value_and_slope(size: Any, log2: Callable, lamb_l1: float, lamb_entropy: float) -> tuple[Any, Any]:
    """Penalty of one layer and its gradient with respect to ``size``, both tensors or both NumPy arrays."""
    value, slope = lamb_l1 * size.sum(), 0 * size + lamb_l1
    if lamb_entropy:
        for axis in (0, 1):
            total = size.sum(axis=axis, keepdims=True) + 1
            share = size / total
            shifted = share + TINY
            bits = log2(shifted)
            weight = lamb_entropy / size.shape[1 - axis]
            value = value - weight * (share * bits).sum()
            share_slope = bits + share / shifted * BITS
            slope = slope - weight * (share_slope - (share_slope * share).sum(axis=axis, keepdims=True)) / total
    return value, slope


def coefficient_penalty(model: Network, lamb_coef: float, lamb_coefdiff: float) -> Tensor:
    """Compute ``lamb_coef`` times the sum of the spline coefficients' magnitudes plus ``lamb_coefdiff`` times that of
    the differences of consecutive coefficients, both averaged over the outputs of each layer; differentiable."""
    total = model.layers[0].spline_weight.new_zeros(())
    for layer in model.layers:
        weight = layer.spline_weight if layer.mask is None else layer.spline_weight * layer.mask
        if lamb_coef:
            total = total + lamb_coef * weight.abs().mean(2).sum()
        if lamb_coefdiff:
            total = total + lamb_coefdiff * weight.diff(dim=0).abs().mean(2).sum()
    return total
