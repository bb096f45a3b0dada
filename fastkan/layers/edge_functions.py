"""Functions that compute the weights, values and standard deviations of the edge functions of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastkan_kernels import (
    StackLayer,
    base_function,
    column_std,
    edge_std,
    edge_values,
    fold_scale_and_mask,
    fused_stack,
    supports_stack,
)

from .grid import splines_with_tangents
from .linear import KANLinear

OPERANDS = ("spline_weight", "base_weight", "spline_scale", "mask", "knots")

if TYPE_CHECKING:
    from .symbolic import SymbolicEdges


def edge_weights(layer: KANLinear) -> tuple[Tensor, Tensor | None]:
    """Return a tuple of the weights ``[K, in, out]`` of the splines and the weights ``[in, out]`` of the base function.

    The weights of the splines are multiplied by the scale and the mask, the weights of the base function by the mask.
    The second element is None if the base function is ``"none"``. The results are differentiable.

    Example:
        >>> weight, base_weight = edge_weights(KANLinear(2, 5))
        >>> weight.shape
        torch.Size([8, 2, 5])
    """
    return fold_scale_and_mask(*stacked(layer)[:4])


def is_stackable(layer: KANLinear) -> bool:
    """Whether the tensors returned by :func:`stacked` fully determine the result of calling the layer."""
    return (
        type(layer) is KANLinear
        and layer.outside == "zero"
        and not has_hooks(layer)
        and layer.bias is None
        and layer._outside_count is None
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks, or a ``forward`` attribute of the instance, may change the result of calling a module."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def stacked(layer: KANLinear) -> StackLayer:
    """Return the tensors of a layer in the format that the fused stack expects."""
    # Reading the dictionaries is faster than five calls of nn.Module.__getattr__. Parametrizations and torch's pruning
    # do not store a weight in the dictionaries, so getattr is used for weights that the dictionaries do not contain.
    own: dict[str, Any] = {**layer._buffers, **layer._parameters} if type(layer) is KANLinear else {}
    weight, base_weight, scale, mask, knots = [own[n] if n in own else getattr(layer, n) for n in OPERANDS]
    if mask is not None and mask.dtype != weight.dtype:
        mask = mask.to(weight.dtype)
    basis, pieces = layer._known.basis_and_pieces(knots)
    if pieces is None:
        weight, base_weight = layer._known.checked(knots, basis, weight, base_weight)
    return StackLayer(weight, base_weight, scale, mask, knots, basis, pieces)


def edge_functions(layer: KANLinear, symbolic: SymbolicEdges, x: Tensor) -> Tensor:
    """Return the values ``[N, in, out]`` of all edges of a layer, splines or formulas, at each row of ``x``."""
    values = numeric_functions(layer, x)
    for place, edge in enumerate(symbolic.edges):
        if place == 0:
            formulas = symbolic.values(x)
        values[:, edge.i, edge.j] += formulas[:, place]
    return values


def numeric_functions(
    layer: KANLinear, x: Tensor, inputs: Tensor | slice = slice(None), outputs: Tensor | slice = slice(None)
) -> Tensor:
    """Return the values ``[N, in, out]`` of the numeric edges (splines) at the rows of ``x [N, in]``.

    The result is differentiable.

    Args:
        layer: the layer with the splines.
        x: the inputs ``[N, in]`` of the layer.
        inputs, outputs: the indices of the inputs and outputs to evaluate (default: all).
    """
    weight, base_weight = edge_weights(layer)
    x, knots = x[:, inputs], layer.knots[inputs]
    weight = weight[:, inputs][:, :, outputs]
    base_weight = None if base_weight is None else base_weight[inputs][:, outputs]
    if layer.outside == "zero":
        return edge_values(x, knots, weight, base_weight, basis=layer.basis)
    psi = splines_with_tangents(x.to(knots.dtype), knots, layer.spline_order)
    values = torch.einsum("nki,kio->nio", psi, weight.to(psi.dtype))
    if base_weight is not None:
        values = values + base_function(x, layer.base).unsqueeze(2) * base_weight
    return values.to(x.dtype)


def numeric_edge_std(layer: KANLinear, x: Tensor) -> Tensor:
    """Return the standard deviation ``[in, out]`` of each numeric edge over the rows of ``x [N, in]``.

    The result is differentiable.
    """
    if layer.outside != "zero":
        return column_std(numeric_functions(layer, x).flatten(1)).view(layer.in_features, -1)
    stack = [stacked(layer)]
    if len(x) > 1 and supports_stack(x, stack):
        return fused_stack(x, stack, std=True)[1][0].edges
    return edge_std(x, layer.knots, *edge_weights(layer), basis=layer.basis)


def all_edge_std(
    layer: KANLinear, symbolic: SymbolicEdges, x: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0
) -> Tensor:
    """Return the standard deviation ``[in, out]`` of each edge, spline or formula, over the rows of ``x [N, in]``.

    The result is differentiable.

    Args:
        layer: the layer with the splines.
        symbolic: the edges with formulas.
        x: the inputs ``[N, in]`` of the layer.
        singularity_avoiding, y_th: arguments with the same meaning as in :meth:`SymbolicEdges.forward`.
    """
    std = numeric_edge_std(layer, x)
    if not symbolic.has_edges:
        return std
    values = symbolic.values(x, singularity_avoiding=singularity_avoiding, y_th=y_th)
    i, j = symbolic.ends
    if symbolic.has_splines(layer.mask):  # An edge function is the sum of its formula and its spline.
        values = values + numeric_functions(layer, x)[:, i, j]
    return std.index_put((i, j), column_std(values))


def mask_of(layer: KANLinear) -> Tensor:
    """Return a bool tensor ``[in, out]`` that is True for the numeric edges that are on."""
    if layer.mask is None:
        return torch.ones(layer.in_features, layer.out_features, dtype=torch.bool, device=layer.knots.device)
    return layer.mask != 0
