"""Layers one after another as one Function, with the spread of every edge: a step of a small network.

A network of a few nodes spends its time on calls. Here they are few, and the sizes of the edges, which
sparsity asks for, come from values that are there already. :func:`serves` says whether a network is for it;
what it computes is ``contract_out`` of each layer in turn, and ``edge_std``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import routing
from .basis import Basis, autocast_dtype
from .cpu import small
from .edges import edge_std, edge_values
from .trilinear import Slots


class StackedLayer(NamedTuple):
    """One layer: ``phi_io = mask_io (scale_io sum_b weight[b,i,o] B_b + base_weight_io base)``.

    Args:
        weight: ``[K, I, O]``.
        base_weight, scale, mask: ``[I, O]`` or None.
        knots: ``[I, M]``.
    """

    weight: Tensor
    base_weight: Tensor | None
    scale: Tensor | None
    mask: Tensor | None
    knots: Tensor
    basis: Basis


class Spread(NamedTuple):
    """Standard deviations over the rows, of each edge's values ``[I, O]`` and of each input ``[I]``."""

    edges: Tensor
    inputs: Tensor


def serves(x: Tensor, layers: Sequence[StackedLayer]) -> bool:
    """Whether layers of their sizes, and this moment, are for :func:`small_stack`."""
    return (
        x.device.type == "cpu"
        and small.has_values(x)
        and all(
            x.dtype == layer.weight.dtype == layer.knots.dtype
            and small.fits(len(x), layer.knots, layer.weight, layer.basis)
            for layer in layers
        )
        and autocast_dtype(x) is None
        and routing.chosen_backend() in ("auto", "cpu")
        and all(routing.needs_composite(layer.knots) is None for layer in layers)
    )


def small_stack(x: Tensor, layers: Sequence[StackedLayer], spread: bool = False) -> tuple[Tensor, list[Spread]]:
    """Layers one after another; differentiable to any order.

    Args:
        x: ``[N, I]``.
        layers: each with as many inputs as the one before has outputs.
        spread: whether the deviations are wanted; for two rows or more.

    Returns:
        y ``[N, O]`` and, with ``spread``, a :class:`Spread` of each layer.
    """
    operands = [operand for layer in layers for operand in layer[:4]]
    y, *deviations = _SmallStack.apply(x, spread, [(layer.knots, layer.basis) for layer in layers], *operands)
    return y, [Spread(*pair) for pair in zip(deviations[::2], deviations[1::2])]


class _SmallStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, spread, fixed, *operands):
        ctx.spread, ctx.fixed = spread, fixed
        h, by_x = x, ctx.needs_input_grad[0]
        saved: list[Tensor | None] = [x, *operands]
        deviations: list[Tensor] = []
        for layer, (knots, basis) in enumerate(fixed):
            weight, base_weight, scale, mask = operands[4 * layer : 4 * layer + 4]
            slots = effective(weight, base_weight, scale, mask)
            values, kept = small.edge_values(h, knots, slots, basis, sloped=by_x or layer > 0)
            y = torch.from_numpy(values.sum(0).T.copy())
            saved += [slots.weight, slots.base_weight, *kept]
            if spread:
                spreads = small.deviation(values), small.deviation(small.transposed(h))
                deviations += [spreads[0][0], spreads[1][0]]
                saved += [*spreads[0], *spreads[1]]
            h = y
        ctx.save_for_backward(*saved)
        return h, *deviations

    @staticmethod
    def backward(ctx, by_y, *by_deviations):
        x, *saved = ctx.saved_tensors
        count = len(ctx.fixed)
        operands, saved = saved[: 4 * count], saved[4 * count :]
        if torch.is_grad_enabled() or not small.has_values(by_y):
            return _differentiable(ctx, x, operands, (by_y, *by_deviations))
        needed = ctx.needs_input_grad
        each = len(saved) // count
        found: list[Tensor | None] = [None] * (4 * count)
        g = by_y
        for layer in range(count - 1, -1, -1):
            weight, _, scale, mask = operands[4 * layer : 4 * layer + 4]
            by_weight, by_base, by_scale, _ = needed[3 + 4 * layer : 7 + 4 * layer]
            own = saved[each * layer : each * (layer + 1)]
            slots = Slots(weight=own[0], base_weight=own[1])
            kept = small.Kept(*own[2 : 2 + len(small.Kept._fields)])
            by_x = layer > 0 or needed[0]
            upstream = small.transposed(g)[None]
            if ctx.spread:
                by_edges, by_inputs = by_deviations[2 * layer : 2 * layer + 2]
                if by_edges is not None:
                    upstream = upstream + small.pull_deviation(own[-4], own[-3], by_edges)
            dx, dw, db = small.pull(kept, slots, upstream, by_x, by_weight or by_scale, by_base)
            if by_x:
                if ctx.spread and by_inputs is not None:
                    dx += torch.from_numpy(small.pull_deviation(own[-2], own[-1], by_inputs).T)
                g = dx
            if by_scale:
                ds = (dw * weight).sum(0)
                found[4 * layer + 2] = ds if mask is None else ds * mask
            if by_weight:
                factor = _times(scale, mask)
                found[4 * layer] = dw if factor is None else dw * factor
            if by_base:
                found[4 * layer + 1] = db if mask is None else db * mask
        return g if needed[0] else None, None, None, *found


def _times(scale: Tensor | None, mask: Tensor | None) -> Tensor | None:
    if scale is None or mask is None:
        return mask if scale is None else scale
    return scale * mask


def effective(weight: Tensor, base_weight: Tensor | None, scale: Tensor | None, mask: Tensor | None) -> Slots:
    """The weights with scale and mask in them."""
    factor = _times(scale, mask)
    if mask is not None and base_weight is not None:
        base_weight = base_weight * mask
    return Slots(weight=weight if factor is None else weight * factor, base_weight=base_weight)


def _differentiable(ctx, x: Tensor, operands: Sequence[Tensor | None], upstream: Sequence[Tensor | None]) -> tuple:
    """The same gradients by way of the contractions, for a graph of them, or for those who transform them."""
    create_graph = torch.is_grad_enabled()
    given: list[Any] = [x, None, None, *operands]
    asked = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]
    with torch.enable_grad():
        for place in asked:  # x may come from the weights, and layers may share them: each is asked about by itself
            given[place] = given[place].view_as(given[place])
        h, operands = given[0], given[3:]
        outputs: list[Tensor] = []
        for layer, (knots, basis) in enumerate(ctx.fixed):
            slots = effective(*operands[4 * layer : 4 * layer + 4])
            if create_graph:
                if ctx.spread:
                    outputs += [edge_std(h, knots, slots.weight, slots.base_weight, basis=basis), column_std(h)]
                h = routing.contract("F", h, knots, slots, basis, 0)
            else:  # plain PyTorch has the only backward that anybody may look on at
                edges = edge_values(h, knots, slots.weight, slots.base_weight, basis=basis)
                if ctx.spread:
                    outputs += [column_std(edges), column_std(h)]
                h = edges.sum(1)
    pairs = [(o, u) for o, u in zip((h, *outputs), upstream) if u is not None and o.requires_grad]
    gradients = torch.autograd.grad(
        [o for o, _ in pairs],
        [given[place] for place in asked],
        [u for _, u in pairs],
        create_graph=create_graph,
        allow_unused=True,
    )
    found: list[Tensor | None] = [None] * len(given)
    for place, gradient in zip(asked, gradients):
        found[place] = gradient
    return tuple(found)


def column_std(x: Tensor) -> Tensor:
    """Standard deviation of each column of ``x [N, I]``; where one does not vary, its gradient is 0."""
    centred = x - x[:1]
    variance = (centred - centred.mean(0)).square().sum(0) / (len(x) - 1)
    varies = ~(variance <= 0)
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)
