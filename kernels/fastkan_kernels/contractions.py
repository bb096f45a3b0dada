"""The public functions for the contractions F, G and H, and for the fused stack of the layers of a small network.

The functions for the contractions validate their arguments. :func:`fused_stack` combines the calls of
:func:`contract_out` and :func:`edge_std` for all layers of a network in a single operation on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autograd import dispatch as routing
from .autograd.functions import required_grads
from .backends.cpu import stack
from .backends.cpu.piecewise import array, quiet
from .backends.cpu.stack import LayerStd, StackLayer, fold_scale_and_mask
from .backends.modes import has_values
from .basis import Basis, autocast_dtype
from .row_jacobian import recorder
from .statistics import column_std, edge_std
from .trilinear import CONTRACTIONS, Operands
from .validation import INDEX, check_operands, checked


def _contract(name: str, x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int):
    check_operands(x, knots, operands, basis, CONTRACTIONS[name].filled)
    return routing.contract(name, x, knots, operands, basis, derivative)


@checked(derivative=INDEX)
def contract_out(
    x: Tensor,
    knots: Tensor,
    weight: Tensor,
    base_weight: Tensor | None = None,
    v: Tensor | None = None,
    *,
    basis: Basis,
    derivative: int = 0,
) -> Tensor:
    """Compute F_d, ``y[n,o] = sum_{b,i} v[n,i] psi_b^(d)(x[n,i]) W[b,i,o]``; F_0 is the forward pass of a KAN layer.

    Args:
        x: the inputs ``[N, I]``.
        knots: the knots ``[I, G + 2k + 1]`` of the splines, in the units of x, non-decreasing in each row.
        weight: the spline coefficients ``[G + k, I, O]``.
        base_weight: the weights ``[I, O]`` of the base function, or None if the base function is ``"none"``.
        v: a factor ``[N, I]`` for each input value, or None if all factors are 1.
        basis: the spline order and the base function; see :class:`Basis`.
        derivative: the order d >= 0 of the derivative of the features. If d is larger than the spline order, all
            splines contribute 0.

    Returns:
        A tensor ``[N, O]`` in the dtype of x. The result can be differentiated any number of times with respect to x,
        v, weight and base_weight. If ``knots.requires_grad``, the reference backend is used, and the result can also be
        differentiated with respect to the knots.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments are inconsistent.
        ValueError: if ``derivative`` is above 4 and the base function is silu.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 4)
        >>> contract_out(torch.rand(10, 2), knots, weight, basis=basis_of(knots, 3, "none")).shape
        torch.Size([10, 4])
    """
    return _contract("F", x, knots, Operands(v, weight, base_weight), basis, derivative)


@checked(derivative=INDEX)
def contract_weight(
    x: Tensor,
    knots: Tensor,
    g: Tensor,
    v: Tensor | None = None,
    *,
    basis: Basis,
    derivative: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Compute G_d, ``dW[b,i,o] = sum_n v[n,i] psi_b^(d)(x[n,i]) g[n,o]``; G_0 is the gradient with respect to W.

    Args:
        x, knots, v, basis, derivative: arguments with the same meaning as in :func:`contract_out`.
        g: a tensor ``[N, O]``, usually the gradient of the layer's output.

    Returns:
        A tuple of the result ``[G + k, I, O]`` for the splines and the result ``[I, O]`` for the base function. The
        result for the base function is None if the base function is ``"none"``.

    Raises:
        TypeError, ValueError: in the same cases as :func:`contract_out`.

    Example:
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> splines, base = contract_weight(torch.rand(10, 2), knots, torch.randn(10, 4), basis=basis_of(knots, 3))
        >>> splines.shape, base.shape
        (torch.Size([8, 2, 4]), torch.Size([2, 4]))
    """
    return _contract("G", x, knots, Operands(v, g=g), basis, derivative)


@checked(derivative=INDEX)
def contract_in(
    x: Tensor,
    knots: Tensor,
    weight: Tensor,
    base_weight: Tensor | None,
    g: Tensor,
    *,
    basis: Basis,
    derivative: int = 0,
) -> Tensor:
    """Compute H_d, ``h[n,i] = sum_{b,o} psi_b^(d)(x[n,i]) W[b,i,o] g[n,o]``; H_1 is the gradient with respect to x.

    Args:
        x, knots, weight, base_weight, basis, derivative: arguments with the same meaning as in :func:`contract_out`.
        g: a tensor ``[N, O]``, usually the gradient of the layer's output.

    Returns:
        A tensor ``[N, I]`` in the dtype of x.

    Raises:
        TypeError, ValueError: in the same cases as :func:`contract_out`.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 4)
        >>> basis = basis_of(knots, 3, "none")
        >>> contract_in(torch.rand(10, 2), knots, weight, None, torch.randn(10, 4), basis=basis, derivative=1).shape
        torch.Size([10, 2])
    """
    return _contract("H", x, knots, Operands(None, weight, base_weight, g), basis, derivative)


def supports_stack(x: Tensor, layers: Sequence[StackLayer], cached: bool = False) -> bool:
    """Whether :func:`fused_stack` supports the layers in the current context and is the fastest implementation.

    Args:
        x: the inputs ``[N, I]`` of the first layer.
        layers: the layers in order.
        cached: whether the spline values of the first layer are stored in a :class:`StackCache`.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> layer = StackLayer(weight, None, None, None, knots, basis_of(knots, 3, "none"))
        >>> supports_stack(torch.rand(10, 2), [layer])
        True
    """
    if recorder() is not None:  # The fused stack has no operands of G to record.
        return False
    if not (x.is_cpu and has_values(x) and routing.chosen_backend() in ("auto", "cpu") and autocast_dtype(x) is None):
        return False
    differentiable = torch.is_grad_enabled()
    for weight, _, _, mask, knots, _, _ in layers:
        if not x.dtype == weight.dtype == knots.dtype:
            return False
        if differentiable and (knots.requires_grad or (mask is not None and mask.requires_grad)):
            return False
    return stack.pays(x, layers, cached)


def fused_stack(x: Tensor, layers: Sequence[StackLayer], std: bool = False) -> tuple[Tensor, list[LayerStd]]:
    """Apply several layers, one after another. The function must only be called if :func:`supports_stack` is true.

    Args:
        x: the inputs ``[N, I]`` of the first layer.
        layers: the layers in order. The number of inputs of a layer is the number of outputs of the preceding layer.
        std: whether to compute standard deviations, which requires at least two rows.

    Returns:
        A tuple of the outputs ``y [N, O]`` and a list. If ``std`` is true, the list contains a :class:`LayerStd` for
        each layer; otherwise the list is empty. The results can be differentiated any number of times.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> layer = StackLayer(weight, None, None, None, knots, basis_of(knots, 3, "none"))
        >>> y, stds = fused_stack(torch.rand(10, 2), [layer], std=True)
        >>> y.shape, stds[0].edges.shape
        (torch.Size([10, 5]), torch.Size([2, 5]))
    """
    options = std, torch.is_grad_enabled() and not x.requires_grad
    fixed = [layer[4:] for layer in layers]
    y, *deviations = _FusedStack.apply(x, options, fixed, *(operand for layer in layers for operand in layer[:4]))
    return y, [LayerStd(*pair) for pair in zip(deviations[::2], deviations[1::2])]


class _FusedStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, options, fixed, *operands):
        std, is_fixed = options
        layers = [StackLayer(*operands[4 * place : 4 * place + 4], *each) for place, each in enumerate(fixed)]
        with quiet():
            fused = stack.FusedStack(x, layers, std, fixed_x=is_fixed)
            deviations = [torch.from_numpy(each.copy()) for pair in fused.stds() for each in pair] if std else []
        ctx.std, ctx.fixed, ctx.fused = std, fixed, fused
        ctx.save_for_backward(x, *operands)
        return torch.from_numpy(fused.y.T.copy()), *deviations

    @staticmethod
    def backward(ctx, by_y, *by_deviations):
        x, *operands = ctx.saved_tensors
        needed = required_grads(ctx, (x, None, None, *operands))
        # Every gradient is checked, because in a batch of gradients some tensors may be zeros without a batch
        # dimension.
        if torch.is_grad_enabled() or not all(map(has_values, (by_y, *by_deviations))):
            return _differentiable_vjp(ctx, x, operands, (by_y, *by_deviations), needed)
        by_x, _, _, *others = needed
        stds = [array(each) for each in by_deviations] or [None] * (2 * len(ctx.fixed))
        with quiet():
            g, found = ctx.fused.vjp(array(by_y).T, list(zip(stds[::2], stds[1::2])), (by_x, *others))
        by_operands = (None if each is None else torch.from_numpy(each) for each in found)
        return torch.from_numpy(g.T.copy()) if by_x else None, None, None, *by_operands


def _differentiable_vjp(
    ctx, x: Tensor, layers: Sequence[Tensor | None], upstream: Sequence[Tensor], needed: Sequence[bool]
) -> tuple:
    """Return the gradients of a fused stack, computed by contractions, which can be differentiated and batched."""
    given: list[Any] = [x, None, None, *layers]
    asked = [place for place, needs in enumerate(needed) if needs]
    with torch.enable_grad():
        # Views make every operand a separate variable, since x may depend on the weights and layers may share weights.
        for place in asked:
            given[place] = given[place].view_as(given[place])
        h, outputs = given[0], []
        for place, (knots, basis, pieces) in enumerate(ctx.fixed):
            operands = Operands(None, *fold_scale_and_mask(*given[3 + 4 * place : 7 + 4 * place]))
            if ctx.std:
                outputs += [edge_std(h, knots, operands.weight, operands.base_weight, basis=basis), column_std(h)]
            h = routing.contract("F", h, knots, operands, basis, 0, pieces)
    pairs = [(o, u) for o, u in zip((h, *outputs), upstream) if o.requires_grad]
    gradients = torch.autograd.grad(
        [o for o, _ in pairs],
        [given[place] for place in asked],
        [u for _, u in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    found: list[Tensor | None] = [None] * len(given)
    for place, gradient in zip(asked, gradients):
        found[place] = gradient
    return tuple(found)
