"""The penalty that a fit adds to the loss, in favour of few edges and of small and smooth spline coefficients.

The size of an edge is the standard deviation of its values over a batch. The standard deviation is computed from the
covariance of the splines (``fastkan_kernels.statistics``), without a tensor of the shape ``[N, in, out]``, and is
differentiable. The penalty has the same terms as in pykan 0.2.8, but here the size of an edge is differentiable in
every metric.
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

INPUT_FLOOR = 0.1  # Added to the standard deviation of an input, because the sum is a divisor and must not be 0.
TINY = 1e-4  # Added to the share of an edge at its node, because the logarithm of 0 is infinite.
BITS = 1 / math.log(2)

REG_METRICS = ("edge_forward_spline_n", "edge_forward_spline_u", "edge_forward_sum", "edge_backward", "node_backward")
MLP_METRICS = ("w", "act", "fa", "a")  # the metrics of `fastkan.interop.pykan.MLP`


class Penalty:
    """The penalty on the edges of a network, computed in the same pass as the network's output.

    Args:
        lamb_l1, lamb_entropy: see :func:`edge_penalty`.
        lamb_coef, lamb_coefdiff: see :func:`coefficient_penalty`.
        metric: a name in :data:`REG_METRICS`, which selects the definition of the size of an edge. In the following
            definitions, std is the standard deviation over the batch.

            - ``"edge_forward_spline_n"``: the std of the edge's spline and base function, without its formula, divided
              by the std of the edge's input plus 0.1;
            - ``"edge_forward_sum"``: the std of the edge's values, including its formula, divided by the std of the
              edge's input plus 0.1;
            - ``"edge_forward_spline_u"``: the std of the edge's values, including its formula;
            - ``"edge_backward"``: the attribution score of the edge, which is the share of the edge in the std of the
              outputs;
            - ``"node_backward"``: in contrast to the other metrics, a size for each pair of a node and a network input.
              The size is the share of the input in the std of the node, times the attribution score of the node.

    Raises:
        ValueError: if ``metric`` is not a name in :data:`REG_METRICS`.
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
        """Return a tuple of the network's output for ``x [N, in_features]`` and the penalty with :func:`rounded`
        edge sizes."""
        model = self.model
        if len(x) < 2:  # The last batch of a loader can have a single row. All standard deviations are then 0.
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
        """Whether the penalty is a function of the standard deviations of edges and inputs alone, as :meth:`vjp`
        requires."""
        return self.metric == "edge_forward_spline_n" and not any(self.of_coefficients) and len(x) > 1

    def vjp(
        self, stds: Sequence[tuple[Any, Any]], unit: float, smooth: float = 0.0
    ) -> tuple[float, float, list[tuple[Any, Any]]]:
        """Compute the penalty and its gradients in NumPy. For each layer, ``stds`` has a pair of the standard
        deviations of the edges ``[in, out]`` and of the inputs ``[in]``.

        Returns:
            A tuple of the penalty, the penalty with :func:`rounded` edge sizes, and a list of gradients. For each
            layer, the list has a pair of the gradients of the penalty with rounded edge sizes with respect to the
            standard deviations of the edges and of the inputs. The gradients are multiplied by ``unit``.
        """
        import numpy as np

        # The weights are converted to Python floats, because NumPy scalars would promote float32 to float64.
        lamb_l1, lamb_entropy = map(float, self.of_edges)
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
    """Return a smooth approximation of ``size`` that differs from ``size`` by at most ``smooth``.

    The derivative of a standard deviation with respect to the parameters jumps where the standard deviation is 0. The
    derivative of the approximation is continuous.
    """
    return (size * size + smooth * smooth) ** 0.5 - smooth if smooth else size


def edge_sizes(
    model: Network, nodes: Sequence[Tensor], metric: str, singularity_avoiding: bool = False, y_th: float = 10.0
) -> list[Tensor]:
    """Return a list with the edge sizes ``[in, out]`` of each layer, measured by a metric of :data:`REG_METRICS`.

    Args:
        nodes: inputs ``[N, nodes]`` of each layer.
        metric: see :class:`Penalty`.
        singularity_avoiding, y_th: arguments of :meth:`KAN.forward`.
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
    """Compute the penalty on the edge sizes, given as one non-negative tensor ``[in, out]`` for each layer. The result
    is differentiable.

    The penalty is a sum over layers. Each layer contributes ``lamb_l1`` times the sum of its edge sizes, plus
    ``lamb_entropy`` times two entropies in bits. The first entropy is a mean over the input nodes of the layer: the
    sizes of the edges from an input node are divided by their sum plus 1, and the entropy of the quotients is computed.
    The second entropy is the corresponding mean over the output nodes of the layer and the edges into an output node.
    """
    penalties: Any = (_EdgePenalty.apply(size, lamb_l1, lamb_entropy) for size in sizes)
    return sum(penalties, next(penalties))


class _EdgePenalty(torch.autograd.Function):
    """The penalty :func:`edge_penalty` of one layer, with the gradient computed in the forward pass. On a CPU the
    penalty is computed in NumPy, because the arrays are small and a NumPy call takes a third of the time of a PyTorch
    call."""

    @staticmethod
    def forward(ctx, size: Tensor, lamb_l1: float, lamb_entropy: float) -> Tensor:
        ctx.weights = lamb_l1, lamb_entropy
        # NumPy is not used for 16-bit dtypes, because NumPy has no bfloat16.
        if size.device.type != "cpu" or size.dtype.itemsize < 4 or not has_values(size):
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
        if torch.is_grad_enabled():  # the gradient must itself be differentiable
            value = _value_and_slope(size, torch.log2, *ctx.weights)[0]
            (slope,) = torch.autograd.grad(value, size, create_graph=True)
        return slope * upstream, None, None


def _value_and_slope(size: Any, log2: Callable, lamb_l1: float, lamb_entropy: float) -> tuple[Any, Any]:
    """Return a tuple of the penalty of one layer and the gradient of the penalty with respect to ``size``. If ``size``
    is a tensor, the results are tensors; if ``size`` is a NumPy array, the results are NumPy arrays."""
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
    """Compute the penalty on the spline coefficients, which is ``lamb_coef`` times the sum of the magnitudes of the
    coefficients, plus ``lamb_coefdiff`` times the sum of the magnitudes of the differences between consecutive
    coefficients. Both sums are averaged over the outputs of each layer. The result is differentiable."""
    total = model.layers[0].spline_weight.new_zeros(())
    for layer in model.layers:
        weight = layer.spline_weight if layer.mask is None else layer.spline_weight * layer.mask
        if lamb_coef:
            total = total + lamb_coef * weight.abs().mean(2).sum()
        if lamb_coefdiff:
            total = total + lamb_coefdiff * weight.diff(dim=0).abs().mean(2).sum()
    return total
