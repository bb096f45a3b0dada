"""A fused forward and backward pass through all layers of a small network, with the standard deviation of every edge.

In a small network most of the time goes into the overhead of calls, so this module makes few calls. The standard
deviations, which sparsity penalties need, are computed from edge values that the forward pass has already computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...basis import Basis
from ...bspline.piecewise import Pieces, pieces_of
from ...trilinear import Operands
from ..modes import process_group_exists
from .piecewise import MAX_SPLINES, Array, Block, Moments, Piecewise, columns, has_sizes, splines_pay
from .selection import piecewise_pays


class StackLayer(NamedTuple):
    """A layer with the edge functions ``phi_io = mask_io (scale_io sum_b weight[b,i,o] B_b + base_weight_io base)``.

    Args:
        weight: the spline coefficients ``[K, I, O]``.
        base_weight: the weights ``[I, O]`` of the base function, or None if the base function is ``"none"``.
        scale: a factor ``[I, O]`` for the spline of each edge, or None if all factors are 1.
        mask: a factor ``[I, O]`` for each edge function, or None if all factors are 1.
        knots: the knots ``[I, M]`` of the splines.
        basis: the spline order and the base function.
        pieces: a function that returns the tables of the knots. If None, the tables are computed in each pass.

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
    """The standard deviations over the rows: ``edges [I, O]`` for the values of each edge, and ``inputs [I]``.

    Example:
        >>> LayerStd(edges=torch.rand(2, 5), inputs=torch.rand(2)).inputs.shape
        torch.Size([2])
    """

    edges: Any
    inputs: Any


class StackCache:
    """A cache for rows and the spline values at the rows, shared by all :class:`FusedStack` objects of a fit.

    Example:
        >>> cache = StackCache()
    """

    def __init__(self) -> None:
        self._rows: Piecewise | None = None

    def rows(self, x: Array, tables: Pieces, basis: Basis, outputs: int) -> Piecewise:
        """Return the rows of the first layer, from the cache if x, the tables and the basis have not changed."""
        import numpy as np

        last = self._rows
        if last is None or last.tables is not tables or last.basis != basis or not np.array_equal(last.x, x):
            last = self._rows = Piecewise(x, tables, basis, outputs, x.size * (tables.count + 1) <= MAX_SPLINES)
        return last


def fold_scale_and_mask(weight: Any, base_weight: Any, scale: Any, mask: Any) -> tuple[Any, Any]:
    """Return a tuple of the spline weights times scale and mask, and the weights of the base function times the mask.

    Either all arguments are tensors or all arguments are arrays. All arguments except ``weight`` may be None.

    Example:
        >>> fold_scale_and_mask(torch.ones(8, 2, 5), None, 3 * torch.ones(2, 5), None)[0].unique()
        tensor([3.])
    """
    if mask is not None:
        scale = mask if scale is None else scale * mask
        base_weight = None if base_weight is None else base_weight * mask
    return weight if scale is None else weight * scale, base_weight


class FusedStack:
    """A pass through several layers on arrays, and the gradients of the pass.

    NumPy may print warnings about results that are not finite.

    Args:
        x: the inputs ``[N, I]`` of the first layer.
        layers: the layers in order. The number of inputs of a layer is the number of outputs of the preceding layer.
        std: whether :meth:`stds` will be called.
        cache: a cache for the rows of the first layer, or None if the rows are used only once.
        fixed_x: whether gradients will be computed, but no gradient with respect to x.

    Attributes:
        y: the outputs ``[O, N]`` of the last layer.

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
            if process_group_exists():  # FSDP could not free memory that NumPy has seen; see piecewise.array.
                tensors = [each if each is None else each.clone() for each in tensors]
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
        """Return the standard deviations of the edges and inputs of each layer."""
        return [LayerStd(each.edges.std, each.rows.input_moments().std) for each in self.passes]

    def vjp(
        self, g: Array, by_stds: Sequence[tuple[Array | None, Array | None]], needed: Sequence[bool]
    ) -> tuple[Array | None, list[Array | None]]:
        """Return the gradient ``[I, N]`` with respect to x, and a list of the gradients with respect to the parameters.

        The list has four entries for each layer: the gradients with respect to weight, base_weight, scale and mask. An
        entry is None if the gradient is not needed. The entry for the mask is always None.

        Args:
            g: the gradient ``[O, N]`` with respect to y.
            by_stds: the pair of gradients with respect to the fields of :class:`LayerStd`, for each layer. Without
                gradients, the pair is ``(None, None)``.
            needed: one bool for the gradient of x, followed by four for each layer (weight, base_weight, scale, mask).
                The bool of the mask is ignored.
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
    """A forward pass through one layer: its output ``y [O, N]`` and the moments of its edges and inputs."""

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
        """Return the gradients of the layer from the gradients with respect to y and to the standard deviations."""
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
    """Whether a fused pass supports the sizes of the layers and is the fastest implementation for the sizes.

    Args:
        x: the inputs ``[N, I]`` of the first layer.
        layers: the layers in order.
        cached: whether the spline values of the first layer are stored in a :class:`StackCache`.
    """
    rows, sizes = x.shape[0], []
    for weight, _, _, _, knots, basis, _ in layers:
        if not has_sizes(rows, knots.shape[0], knots.shape[1], weight.shape[2], basis, x.dtype):
            return False
        sizes.append((rows, knots.shape[0], weight.shape[2], weight.shape[0], basis))
    return piecewise_pays(sizes, cached and x.numel() * (sizes[0][3] + 1) <= MAX_SPLINES)
