"""The edge functions of a layer: their weights, values and spreads."""

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

from .grid import continued
from .linear import KANLinear

OPERANDS = ("spline_weight", "base_weight", "spline_scale", "mask", "knots")

if TYPE_CHECKING:
    from .symbolic import SymbolicEdges


def edge_weights(layer: KANLinear) -> tuple[Tensor, Tensor | None]:
    """What multiplies the splines ``[K, in, out]`` and the base function ``[in, out]`` of each edge, with scale
    and mask in it; differentiable.

    Example:
        >>> weight, base_weight = edge_weights(KANLinear(2, 5))
        >>> weight.shape
        torch.Size([8, 2, 5])
    """
    return fold_scale_and_mask(*stacked(layer)[:4])


def is_stackable(layer: KANLinear) -> bool:
    """Whether calling the layer does no more than :func:`stacked` tells."""
    return (
        type(layer) is KANLinear
        and layer.outside == "zero"
        and not has_hooks(layer)
        and layer.bias is None
        and layer._buffers["_outside_count"] is None
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def stacked(layer: KANLinear) -> StackLayer:
    """What the kernels need of a layer."""
    # many calls of nn.Module.__getattr__ would show; but what computes a weight keeps it elsewhere
    own: dict[str, Any] = {**layer._buffers, **layer._parameters} if type(layer) is KANLinear else {}
    weight, base_weight, scale, mask, knots = [own[n] if n in own else getattr(layer, n) for n in OPERANDS]
    if mask is not None and mask.dtype != weight.dtype:
        mask = mask.to(weight.dtype)
    basis, pieces = layer._known.basis_and_pieces(knots)
    if pieces is None:
        weight, base_weight = layer._known.checked(knots, basis, weight, base_weight)
    return StackLayer(weight, base_weight, scale, mask, knots, basis, pieces)


def edge_functions(layer: KANLinear, symbolic: SymbolicEdges, x: Tensor) -> Tensor:
    """Every edge function of a network's layer, formulas included, at every row of ``x [N, in]``: ``[N, in, out]``."""
    values = numeric_functions(layer, x)
    for place, edge in enumerate(symbolic.edges):
        if place == 0:
            formulas = symbolic.values(x)
        values[:, edge.i, edge.j] += formulas[:, place]
    return values


def numeric_functions(
    layer: KANLinear, x: Tensor, inputs: Tensor | slice = slice(None), outputs: Tensor | slice = slice(None)
) -> Tensor:
    """The values of numeric edges at every row of ``x [N, in]``, ``[N, in, out]``; differentiable.

    Args:
        inputs, outputs: which of them are wanted; all by default.
    """
    weight, base_weight = edge_weights(layer)
    x, knots = x[:, inputs], layer.knots[inputs]
    weight = weight[:, inputs][:, :, outputs]
    base_weight = None if base_weight is None else base_weight[inputs][:, outputs]
    if layer.outside == "zero":
        return edge_values(x, knots, weight, base_weight, basis=layer.basis)
    psi = continued(x.to(knots.dtype), knots, layer.spline_order)
    values = torch.einsum("nki,kio->nio", psi, weight.to(psi.dtype))
    if base_weight is not None:
        values = values + base_function(x, layer.base).unsqueeze(2) * base_weight
    return values.to(x.dtype)


def numeric_spread(layer: KANLinear, x: Tensor) -> Tensor:
    """Standard deviation over the rows of ``x [N, in]`` of every numeric edge, ``[in, out]``; differentiable."""
    if layer.outside != "zero":
        return column_std(numeric_functions(layer, x).flatten(1)).view(layer.in_features, -1)
    stack = [stacked(layer)]
    if len(x) > 1 and supports_stack(x, stack):
        return fused_stack(x, stack, std=True)[1][0].edges
    return edge_std(x, layer.knots, *edge_weights(layer), basis=layer.basis)


def edge_spread(
    layer: KANLinear, symbolic: SymbolicEdges, x: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0
) -> Tensor:
    """The same of every edge, formulas included."""
    spread = numeric_spread(layer, x)
    if not symbolic.edges:
        return spread
    values = symbolic.values(x, singularity_avoiding=singularity_avoiding, y_th=y_th)
    i, j = symbolic.ends
    if symbolic.has_splines(layer.mask):  # both add up
        values = values + numeric_functions(layer, x)[:, i, j]
    return spread.index_put((i, j), column_std(values))


def mask_of(layer: KANLinear) -> Tensor:
    """Which numeric edges of a layer are on, ``[in, out]`` of bool."""
    if layer.mask is None:
        return torch.ones(layer.in_features, layer.out_features, dtype=torch.bool, device=layer.knots.device)
    return layer.mask != 0
