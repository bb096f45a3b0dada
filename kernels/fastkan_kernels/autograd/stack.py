"""Layers one after another as one Function, with the spread of every edge: a step of a small network.

A network of a few nodes spends its time on calls. Here they are few, and the sizes of the edges, which
sparsity asks for, come from values that are there already. :func:`serves` says whether a network is for it;
what it computes is ``contract_out`` of each layer in turn, and ``edge_std``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.cpu import small
from ..backends.cpu.cells import Room
from ..backends.modes import needs_graph
from ..basis import Basis, autocast_dtype
from ..bspline.piecewise import Pieces, pieces_of
from ..statistics import edge_std, edge_values
from ..trilinear import Operands
from . import dispatch as routing
from .functions import required_grads


class StackedLayer(NamedTuple):
    """One layer: ``phi_io = mask_io (scale_io sum_b weight[b,i,o] B_b + base_weight_io base)``.

    Args:
        weight: ``[K, I, O]``.
        base_weight, scale, mask: ``[I, O]`` or None.
        knots: ``[I, M]``.
        pieces: gives the tables of these knots, where somebody has kept them.
    """

    weight: Tensor
    base_weight: Tensor | None
    scale: Tensor | None
    mask: Tensor | None
    knots: Tensor
    basis: Basis
    pieces: Callable[[], Pieces] | None = None


class Spread(NamedTuple):
    """Standard deviations over the rows, of each edge's values ``[I, O]`` and of each input ``[I]``."""

    edges: Tensor
    inputs: Tensor


def serves(x: Tensor, layers: Sequence[StackedLayer], features: small.KeptFeatures = small.SHARED) -> bool:
    """Whether layers of their sizes, and this moment, are for :func:`small_stack`.

    Args:
        features: what is kept of rows that may come again.
    """
    return (
        x.device.type == "cpu"
        and small.has_values(x)
        and routing.chosen_backend() in ("auto", "cpu")
        and autocast_dtype(x) is None
        and all(x.dtype == layer.weight.dtype == layer.knots.dtype for layer in layers)
        and small.pays(
            len(x),
            [(layer.knots, layer.weight, layer.basis) for layer in layers],
            None if needs_graph(x) else features,
        )
        and not (torch.is_grad_enabled() and any(map(_asks_for_more, layers)))
    )


def _asks_for_more(layer: StackedLayer) -> bool:
    """Whether a gradient is wanted that the stack does not have."""
    return layer.knots.requires_grad or (layer.mask is not None and layer.mask.requires_grad)


def operands_of(layers: Sequence[StackedLayer]) -> list[Tensor | None]:
    """Weight, base_weight, scale and mask of one layer after another."""
    return [operand for layer in layers for operand in layer[:4]]


def small_stack(x: Tensor, layers: Sequence[StackedLayer], spread: bool = False) -> tuple[Tensor, list[Spread]]:
    """Layers one after another; differentiable to any order.

    Args:
        x: ``[N, I]``.
        layers: each with as many inputs as the one before has outputs.
        spread: whether the deviations are wanted; for two rows or more.

    Returns:
        y ``[N, O]`` and, with ``spread``, a :class:`Spread` of each layer.
    """
    fixed = [layer[4:] for layer in layers]
    y, *deviations = _SmallStack.apply(x, spread, fixed, *operands_of(layers))
    return y, [Spread(*pair) for pair in zip(deviations[::2], deviations[1::2])]


class Taken:
    """A stack's way forward, as numbers, and back again.

    Args:
        x: ``[N, I]``.
        by_x: whether a gradient by x may be wanted.
        spread: whether :meth:`spreads` will be asked for.
        features: what is kept of rows that may come again.
        rooms: for each layer where it gets its memory, of a way that ends before the next one in the same rooms.

    Attributes:
        y: ``[O, N]``.
    """

    def __init__(
        self,
        x: Tensor,
        layers: Sequence[StackedLayer],
        by_x: bool,
        spread: bool,
        features: small.KeptFeatures = small.SHARED,
        rooms: Sequence[Room] | None = None,
    ) -> None:
        self.passes: list[small.Pass] = []
        self.operands: list[list[Any]] = []
        h = small.columns(x)
        for place, (weight, base_weight, scale, mask, knots, basis, pieces) in enumerate(layers):
            arrays = [None if t is None else small.array(t) for t in (weight, base_weight, scale, mask)]
            kept = None if place else features
            room = None if rooms is None else rooms[place]
            tables = pieces_of(knots, basis) if pieces is None else pieces()
            taken = small.run(h, tables, *fold_scale_and_mask(*arrays), basis, by_x or place > 0, kept, spread, room)
            self.passes.append(taken)
            self.operands.append(arrays)
            h = taken.y
        self.y = h

    def spreads(self) -> list[tuple[Any, Any]]:
        """Of each layer's edges and inputs."""
        return [taken.spread() for taken in self.passes]

    def vjp(self, g: Any, by_spreads: Sequence[Sequence[Any]], needed: Sequence[bool]) -> tuple[Any, list[Any]]:
        """Gradients by x ``[I, N]`` and by each layer's weight, base_weight, scale and mask, where they are wanted.

        Args:
            g: of y, ``[O, N]``.
            by_spreads: of each layer's spreads, or None.
            needed: of x and of each of the others.
        """
        found: list[Any] = [None] * (4 * len(self.passes))
        for place in range(len(self.passes) - 1, -1, -1):
            weight, _, scale, mask = self.operands[place]
            by_weight, by_base, by_scale = needed[1 + 4 * place : 4 + 4 * place]
            by_x = place > 0 or needed[0]
            by_edges, by_inputs = by_spreads[place]
            g, dw, db = self.passes[place].vjp(g, by_edges, by_inputs, by_x, by_weight or by_scale, by_base)
            if by_scale:
                found[4 * place + 2] = _times((dw * weight).sum(0), mask)
            if by_weight:
                found[4 * place] = _times(dw, _times(scale, mask))
            if by_base:
                found[4 * place + 1] = _times(db, mask)
        return g, found


class _SmallStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, spread, fixed, *operands):
        layers = [StackedLayer(*operands[4 * place : 4 * place + 4], *each) for place, each in enumerate(fixed)]
        with small.quiet():
            taken = Taken(x, layers, ctx.needs_input_grad[0], spread)
            deviations = [torch.from_numpy(each.copy()) for pair in taken.spreads() for each in pair] if spread else []
        ctx.spread, ctx.fixed, ctx.taken = spread, fixed, taken
        ctx.save_for_backward(x, *operands)
        return torch.from_numpy(taken.y.T.copy()), *deviations

    @staticmethod
    def backward(ctx, by_y, *by_deviations):
        x, *operands = ctx.saved_tensors
        asked = required_grads(ctx, (x, None, None, *operands))
        # each is asked: of a batch of gradients some may be zeros that have no batch
        if torch.is_grad_enabled() or not all(map(small.has_values, (by_y, *by_deviations))):
            return _differentiable(ctx, x, operands, (by_y, *by_deviations), asked)
        by_x, _, _, *needed = asked
        by_spreads = [None if t is None else small.array(t) for t in by_deviations] or [None] * (2 * len(ctx.fixed))
        with small.quiet():
            pairs = list(zip(by_spreads[::2], by_spreads[1::2]))
            g, found = ctx.taken.vjp(small.array(by_y).T, pairs, (by_x, *needed))
        by_operands = (None if each is None else torch.from_numpy(each) for each in found)
        return torch.from_numpy(g.T.copy()) if by_x else None, None, None, *by_operands


def _times(one: Any, other: Any) -> Any:
    """Of two factors, tensors or arrays, either of which may be None and then is 1."""
    if one is None or other is None:
        return other if one is None else one
    return one * other


def fold_scale_and_mask(weight: Any, base_weight: Any, scale: Any, mask: Any) -> tuple[Any, Any]:
    """The weights of splines and base function, tensors or arrays, with scale and mask in them."""
    return _times(weight, _times(scale, mask)), None if base_weight is None else _times(base_weight, mask)


def _differentiable(
    ctx, x: Tensor, operands: Sequence[Tensor | None], upstream: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple:
    """The same gradients by way of the contractions, for a graph of them, or for those who transform them."""
    create_graph = torch.is_grad_enabled()
    given: list[Any] = [x, None, None, *operands]
    asked = [place for place, needs in enumerate(needed) if needs]
    with torch.enable_grad():
        for place in asked:  # x may come from the weights, and layers may share them: each is asked about by itself
            given[place] = given[place].view_as(given[place])
        h, operands = given[0], given[3:]
        outputs: list[Tensor] = []
        for layer, (knots, basis, _) in enumerate(ctx.fixed):
            slots = Operands(None, *fold_scale_and_mask(*operands[4 * layer : 4 * layer + 4]))
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
