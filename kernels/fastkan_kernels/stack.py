"""Layers one after another in one piece, with the standard deviation of every edge: a step of a small network.

A network of a few nodes spends its time on calls, and here they are few. The standard deviations, which sparsity
penalties need, come from values of the edges that exist already. :class:`FusedStack` works on arrays, without a graph;
:func:`fused_stack` is the same for autograd. What they compute is ``contract_out`` of each layer in turn, and
``edge_std``, on the CPU's piecewise backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd import dispatch
from .autograd.functions import required_grads
from .backends.cpu.piecewise import Array, Block, Moments, Piecewise, array, columns, has_sizes, quiet
from .backends.cpu.selection import piecewise_pays
from .backends.modes import has_values
from .basis import Basis, autocast_dtype
from .bspline.piecewise import MAX_DENSE_CELLS, Pieces, pieces_of
from .statistics import column_std, edge_std
from .trilinear import Operands

MAX_SPLINES = 1 << 22  # numbers, 16 MiB of float32, of splines that a cache holds
MANY_OUTPUTS = 0.6  # outputs for each spline, above which products with all splines are quicker than polynomials


class StackLayer(NamedTuple):
    """One layer: ``phi_io = mask_io (scale_io sum_b weight[b,i,o] B_b + base_weight_io base)``.

    Args:
        weight: ``[K, I, O]``.
        base_weight, scale, mask: ``[I, O]`` or None.
        knots: ``[I, M]``.
        basis: the features.
        pieces: returns the tables of the knots; None computes them for each pass.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> layer = StackLayer(weight, None, None, None, knots, basis_of(knots, 3, "none"))
    """

    weight: Tensor
    base_weight: Tensor | None
    scale: Tensor | None
    mask: Tensor | None
    knots: Tensor
    basis: Basis
    pieces: Callable[[], Pieces] | None = None


class LayerStd(NamedTuple):
    """Standard deviations over the rows, of the values of each edge ``[I, O]`` and of each input ``[I]``.

    Example:
        >>> LayerStd(edges=torch.rand(2, 5), inputs=torch.rand(2)).inputs.shape
        torch.Size([2])
    """

    edges: Any
    inputs: Any


class StackCache:
    """Rows that come again, with their splines, for one :class:`FusedStack` after another, as a fit makes them.

    Example:
        >>> cache = StackCache()
    """

    def __init__(self) -> None:
        self._rows: Piecewise | None = None

    def rows(self, x: Array, tables: Pieces, basis: Basis, outputs: int) -> Piecewise:
        """The first layer's rows; those of the last pass, if x, the tables and the basis are the same."""
        last = self._rows
        if last is not None and last.tables is tables and last.basis == basis and last.x.shape == x.shape:
            last = last if (last.x == x).all() else None
        else:
            last = None
        if last is None:
            last = self._rows = Piecewise(x, tables, basis, outputs, x.size * (tables.count + 1) <= MAX_SPLINES)
        return last


def supports_stack(x: Tensor, layers: Sequence[StackLayer], cached: bool = False) -> bool:
    """Whether a stack of these layers is computed in one piece here and now, because that is possible and quickest.

    Args:
        cached: whether the splines of the first layer are in a :class:`StackCache`.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> layer = StackLayer(weight, None, None, None, knots, basis_of(knots, 3, "none"))
        >>> supports_stack(torch.rand(10, 2), [layer])
        True
    """
    if not (x.is_cpu and has_values(x) and dispatch.chosen_backend() in ("auto", "cpu") and autocast_dtype(x) is None):
        return False
    differentiable, rows, sizes = torch.is_grad_enabled(), x.shape[0], []
    for weight, _, _, mask, knots, basis, _ in layers:
        if not x.dtype == weight.dtype == knots.dtype:
            return False
        if differentiable and (knots.requires_grad or (mask is not None and mask.requires_grad)):
            return False
        if not has_sizes(rows, knots.shape[0], knots.shape[1], weight.shape[2], basis, x.dtype):
            return False
        sizes.append((rows, knots.shape[0], weight.shape[2], weight.shape[0], basis))
    return piecewise_pays(sizes, cached and x.numel() * (sizes[0][3] + 1) <= MAX_SPLINES)


def fused_stack(x: Tensor, layers: Sequence[StackLayer], std: bool = False) -> tuple[Tensor, list[LayerStd]]:
    """Layers one after another; differentiable to any order. Call it where :func:`supports_stack` is true.

    Args:
        x: ``[N, I]``.
        layers: each with as many inputs as the one before has outputs.
        std: whether standard deviations are wanted; for two rows or more.

    Returns:
        y ``[N, O]`` and, with ``std``, a :class:`LayerStd` of each layer, else an empty list.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> layer = StackLayer(weight, None, None, None, knots, basis_of(knots, 3, "none"))
        >>> y, stds = fused_stack(torch.rand(10, 2), [layer], std=True)
        >>> y.shape, stds[0].edges.shape
        (torch.Size([10, 5]), torch.Size([2, 5]))
    """
    fixed = [layer[4:] for layer in layers]
    y, *deviations = _FusedStack.apply(x, std, fixed, *(operand for layer in layers for operand in layer[:4]))
    return y, [LayerStd(*pair) for pair in zip(deviations[::2], deviations[1::2])]


def fold_scale_and_mask(weight: Any, base_weight: Any, scale: Any, mask: Any) -> tuple[Any, Any]:
    """The weights of splines and base function, tensors or arrays, with scale and mask in them.

    Example:
        >>> fold_scale_and_mask(torch.ones(8, 2, 5), None, 3 * torch.ones(2, 5), None)[0].unique()
        tensor([3.])
    """
    if mask is not None:
        scale = mask if scale is None else scale * mask
        base_weight = None if base_weight is None else base_weight * mask
    return weight if scale is None else weight * scale, base_weight


class FusedStack:
    """One pass through the layers on arrays, and its gradients; NumPy may warn of results that are not finite.

    Args:
        x: ``[N, I]``.
        layers: as in :func:`fused_stack`.
        std: whether :meth:`stds` will be called.
        cache: of rows that come again.
        x_grad: whether a gradient with respect to x may be wanted.

    Attributes:
        y: ``[O, N]``.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> layer = StackLayer(weight, None, None, None, knots, basis_of(knots, 3, "none"))
        >>> FusedStack(torch.rand(10, 2), [layer]).y.shape
        (5, 10)
    """

    def __init__(
        self,
        x: Tensor,
        layers: Sequence[StackLayer],
        std: bool = False,
        cache: StackCache | None = None,
        x_grad: bool = True,
    ) -> None:
        self.operands: list[list[Any]] = []
        self.passes: list[_LayerPass] = []
        h = columns(x)
        for place, (*tensors, knots, basis, pieces) in enumerate(layers):
            operands: list[Any] = [None if each is None else each.numpy(force=True) for each in tensors]
            tables = pieces_of(knots, basis) if pieces is None else pieces()
            count, _, outputs = operands[0].shape
            if cache is not None and place == 0:
                rows = cache.rows(h, tables, basis, outputs)
            else:  # many outputs are quicker from the splines, slopes are not
                many = outputs > MANY_OUTPUTS * count and tables.local.shape[3] <= MAX_DENSE_CELLS
                by_splines = many and place == 0 and not x_grad and h.size * (count + 1) <= MAX_SPLINES
                rows = Piecewise(h, tables, basis, outputs, by_splines)
            self.operands.append(operands)
            self.passes.append(_LayerPass(rows, *fold_scale_and_mask(*operands), std))
            h = self.passes[-1].y
        self.y = h

    def stds(self) -> list[LayerStd]:
        """Standard deviations of each layer's edges and inputs."""
        return [LayerStd(each.edges.std(), each.rows.input_moments().std()) for each in self.passes]

    def vjp(
        self, g: Array, by_stds: Sequence[tuple[Array | None, Array | None]], needed: Sequence[bool]
    ) -> tuple[Array | None, list[Array | None]]:
        """Gradients with respect to x ``[I, N]`` and each layer's weight, base_weight, scale and mask.

        Args:
            g: gradient with respect to y, ``[O, N]``.
            by_stds: the same with respect to each layer's :class:`LayerStd`, each ``(None, None)`` without.
            needed: which are computed, of x and then the others; the mask has no gradient.
        """
        found: list[Array | None] = [None] * (4 * len(self.passes))
        for place in range(len(self.passes) - 1, -1, -1):
            weight, _, scale, mask = self.operands[place]
            by_weight, by_base, by_scale = needed[4 * place + 1 : 4 * place + 4]
            wanted = ["x"] if place > 0 or needed[0] else []
            if by_weight or by_base or by_scale:
                wanted.append("W")
            by_edges, by_inputs = by_stds[place]
            gradients = self.passes[place].vjp(g, by_edges, by_inputs, wanted)
            g = gradients.get("x")
            if "W" not in gradients:
                continue
            dw, db = gradients["W"]
            if by_scale:
                of_scale = (dw * weight).sum(0)
                found[4 * place + 2] = of_scale if mask is None else of_scale * mask
            dw, db = fold_scale_and_mask(dw, db, scale, mask)
            if by_weight:
                found[4 * place] = dw
            if by_base:
                found[4 * place + 1] = db
        return g, found


class _LayerPass:
    """F_0 of one layer and the moments of its edges and inputs; ``y [O, N]``."""

    def __init__(self, rows: Piecewise, weight: Array, base_weight: Array | None, std: bool) -> None:
        import numpy as np

        self.rows, self.operands = rows, Operands(None, weight, base_weight)
        self.edges = Moments()
        parts = []
        for _, block in rows.blocks():
            if std:
                edges = block.edges(weight, base_weight, 0)
                self.edges.add(edges)
                parts.append(np.add.reduce(edges, 0))
            else:
                parts.append(block.contract("F", self.operands, 0))
        self.y = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def vjp(self, g: Array, by_edges: Array | None, by_inputs: Array | None, wanted: list[str]) -> dict[str, Any]:
        """Gradients of y and of the standard deviations; each centred value has its share of the latter's."""
        add = None
        if by_edges is not None:
            moments, share = self.edges, self.edges.share(by_edges)[..., None]

            def add(block: Block, g: Array) -> Array:
                centred = moments.only
                if centred is None:
                    centred = moments.centred(block.edges(*self.operands[1:3], 0))
                upstream = share * centred
                upstream += g
                return upstream

        found = self.rows.vjp("F", self.operands, g, wanted, 0, add)
        if by_inputs is not None and "x" in wanted:
            inputs = self.rows.input_moments()
            found["x"] += inputs.share(by_inputs)[:, None] * inputs.only
        return found


class _FusedStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, std, fixed, *operands):
        layers = [StackLayer(*operands[4 * place : 4 * place + 4], *each) for place, each in enumerate(fixed)]
        with quiet():
            stack = FusedStack(x, layers, std, x_grad=ctx.needs_input_grad[0])
            deviations = [torch.from_numpy(each.copy()) for pair in stack.stds() for each in pair] if std else []
        ctx.std, ctx.fixed, ctx.stack = std, fixed, stack
        ctx.save_for_backward(x, *operands)
        return torch.from_numpy(stack.y.T.copy()), *deviations

    @staticmethod
    def backward(ctx, by_y, *by_deviations):
        x, *operands = ctx.saved_tensors
        needed = required_grads(ctx, (x, None, None, *operands))
        # each is checked: of a batch of gradients some may be zeros that have no batch
        if torch.is_grad_enabled() or not all(map(has_values, (by_y, *by_deviations))):
            return _differentiable_vjp(ctx, x, operands, (by_y, *by_deviations), needed)
        by_x, _, _, *others = needed
        stds = [array(each) for each in by_deviations] or [None] * (2 * len(ctx.fixed))
        with quiet():
            g, found = ctx.stack.vjp(array(by_y).T, list(zip(stds[::2], stds[1::2])), (by_x, *others))
        by_operands = (None if each is None else torch.from_numpy(each) for each in found)
        return torch.from_numpy(g.T.copy()) if by_x else None, None, None, *by_operands


def _differentiable_vjp(
    ctx, x: Tensor, operands: Sequence[Tensor | None], upstream: Sequence[Tensor], needed: Sequence[bool]
) -> tuple:
    """The same gradients by way of the contractions, for a graph of them and for batches of upstream gradients."""
    given: list[Any] = [x, None, None, *operands]
    asked = [place for place, needs in enumerate(needed) if needs]
    with torch.enable_grad():
        for place in asked:  # x may depend on the weights, and layers may share them, but each gradient is partial
            given[place] = given[place].view_as(given[place])
        h, operands, outputs = given[0], given[3:], []
        for place, (knots, basis, pieces) in enumerate(ctx.fixed):
            operands = Operands(None, *fold_scale_and_mask(*operands[4 * place : 4 * place + 4]))
            if ctx.std:
                outputs += [edge_std(h, knots, operands.weight, operands.base_weight, basis=basis), column_std(h)]
            h = dispatch.contract("F", h, knots, operands, basis, 0, pieces)
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
