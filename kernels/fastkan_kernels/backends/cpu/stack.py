"""Layers one after another in one piece, with the standard deviation of every edge: a step of a small network.

A network of a few nodes spends its time on calls, and here they are few. The standard deviations, which sparsity
penalties need, come from values of the edges that exist already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...basis import Basis
from ...bspline.piecewise import Pieces, pieces_of
from ...trilinear import Operands
from .piecewise import MAX_SPLINES, Array, Block, Moments, Piecewise, columns, has_sizes, splines_pay
from .selection import piecewise_pays


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
        layers: with as many inputs as the one before has outputs.
        std: whether :meth:`stds` will be called.
        cache: of rows that come again.
        fixed_x: whether gradients will be wanted, but none with respect to x.

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
        fixed_x: bool = False,
    ) -> None:
        self.operands: list[list[Any]] = []
        self.passes: list[_LayerPass] = []
        h = columns(x)
        for place, (*tensors, knots, basis, pieces) in enumerate(layers):
            operands: list[Any] = [None if each is None else each.numpy(force=True) for each in tensors]
            tables = pieces_of(knots, basis) if pieces is None else pieces()
            outputs = operands[0].shape[2]
            if cache is not None and place == 0:
                rows = cache.rows(h, tables, basis, outputs)
            else:
                by_splines = place == 0 and fixed_x and splines_pay(h.size, outputs, tables)
                rows = Piecewise(h, tables, basis, outputs, by_splines)
            self.operands.append(operands)
            self.passes.append(_LayerPass(rows, *fold_scale_and_mask(*operands), std))
            h = self.passes[-1].y
        self.y = h

    def stds(self) -> list[LayerStd]:
        """Standard deviations of each layer's edges and inputs."""
        return [LayerStd(each.edges.std, each.rows.input_moments().std) for each in self.passes]

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

        found = self.rows.vjp("F", self.operands._replace(g=g), wanted, 0, add)
        if by_inputs is not None and "x" in wanted:
            inputs = self.rows.input_moments()
            found["x"] += inputs.share(by_inputs)[:, None] * inputs.only
        return found


def pays(x: Tensor, layers: Sequence[StackLayer], cached: bool) -> bool:
    """Whether the sizes of these layers can be computed in one piece, and that is the quickest.

    Args:
        cached: whether the splines of the first layer are in a :class:`StackCache`.
    """
    rows, sizes = x.shape[0], []
    for weight, _, _, _, knots, basis, _ in layers:
        if not has_sizes(rows, knots.shape[0], knots.shape[1], weight.shape[2], basis, x.dtype):
            return False
        sizes.append((rows, knots.shape[0], weight.shape[2], weight.shape[0], basis))
    return piecewise_pays(sizes, cached and x.numel() * (sizes[0][3] + 1) <= MAX_SPLINES)
