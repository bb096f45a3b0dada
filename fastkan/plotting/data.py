"""Computation of the data in a picture of a network: the edges to be drawn, their scores, and their curves."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import warn

from ..layers import grid
from ..layers.edge_functions import edge_functions, numeric_functions
from ..layers.function_library import Interval, lookup
from ..network import trace as activations
from ..network.trace import edge_kinds
from ..training.regularization import edge_sizes

if TYPE_CHECKING:
    from ..layers.linear import KANLinear
    from ..network.core import Network

METRICS = {"backward": "edge_backward", "forward_n": "edge_forward_sum", "forward_u": "edge_forward_spline_u"}
POINTS = 101  # Number of points of each curve
MAX_VALUES = 1 << 22  # Maximum number of values in a batch of samples; from a larger batch, random rows are selected
KINDS = ("numeric", "symbolic", "both")


class ShownEdges(NamedTuple):
    """The E edges of one layer that :func:`shown_edges` selects for the picture, sorted by (i, j)."""

    i: Tensor  # [E], input nodes
    j: Tensor  # [E], output subnodes
    kind: Tensor  # [E], indices into KINDS
    score: Tensor  # [E], scores by the metric of the plot
    is_drawn: Tensor  # [E], False for edges that mask=True hides
    left_out: int  # number of edges that would also be drawn if max_edges were larger


def rows_for(model: Network, x: Tensor | None, layer: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """Return a tuple of the samples at which all nodes are finite and a list of the inputs of each layer.

    A warning is issued if samples are left out because the value of a node is not finite.

    Args:
        model: the network.
        x: samples ``[..., in_features]``. If None, the rows of the last fit are used or, if there was no fit, points
            spread evenly over the first layer's grids.
        layer: index of the last layer whose inputs must be finite. If None, the inputs of all layers and the outputs of
            the network must be finite.
    """
    activations.check_not_sharded(model, "a plot")
    rows = activations.rows_for(model, x, strict=False)
    if x is None and len(rows) < 2:  # Scores are standard deviations, for which at least two rows are needed
        rows = activations.grid_points(model)
    if len(rows) < 2:
        raise ValueError(f"x must have at least two samples, got {len(rows)}")
    rows = some_of(rows, max(2, MAX_VALUES // max(1, rows.shape[1])))
    trace = activations.trace(model, rows)
    nodes = [traced.nodes for traced in trace]
    required = [*nodes, trace[-1].out] if layer is None else nodes[: layer + 1]
    is_finite = torch.stack([values.isfinite().all(1) for values in required]).all(0)
    count = int(is_finite.sum())
    if count < 2:
        raise ValueError(f"nothing can be drawn at x, its samples: {_cause(model, required)}")
    if count < len(rows):
        left_out = f"{len(rows) - count} of {len(rows)} samples make a node NaN or infinite and are left out"
        warn(left_out, RuntimeWarning)
    return rows[is_finite], [values[is_finite] for values in nodes]


def some_of(rows: Tensor, max_count: int) -> Tensor:
    """Return at most ``max_count`` of the rows, selected at random but with a fixed seed."""
    if len(rows) <= max_count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:max_count]
    return rows[chosen.to(rows.device)]


def _cause(model: Network, nodes: list[Tensor]) -> str:
    """Return a description of the first place in the network where values are not finite."""
    if int(nodes[0].isfinite().all(1).sum()) < 2:
        return "the samples are NaN or infinite"
    for layer, (entering, leaving) in enumerate(pairwise(nodes)):
        some = entering[entering.isfinite().all(1)][:100]
        bad = (~edge_functions(model.layers[layer], model.symbolic[layer], some).isfinite()).any(0).nonzero().tolist()
        if bad:
            named = ", ".join(f"({layer}, {i}, {j})" for i, j in bad[:5])
            return f"edges (l, i, j) = {named}{', ...' if len(bad) > 5 else ''} are NaN or infinite at the samples"
        if int(leaving.isfinite().all(1).sum()) < 2:
            break
    return f"the nodes behind the edges of layer {layer} are NaN or infinite at the samples"


def shown_edges(
    model: Network, nodes: list[Tensor], metric: str, mask: list[Tensor] | None, max_edges: int
) -> list[ShownEdges]:
    """Select the edges of each layer to draw: all that are on, or the ``max_edges`` strongest if there are more."""
    sizes = edge_sizes(model, nodes, METRICS[metric])
    shown = []
    for layer, size in enumerate(sizes):
        score = size.detach().double().cpu().nan_to_num(nan=0.0)
        numeric, symbolic = edge_kinds(model, layer)
        on = numeric | symbolic
        unmasked = on if mask is None else on & mask[layer].bool().cpu()
        if int(on.sum()) > max_edges:
            order = torch.where(unmasked, score, -1.0).flatten().argsort(descending=True, stable=True)
            chosen = torch.zeros_like(on).flatten()
            chosen[order[: min(max_edges, int(unmasked.sum()))]] = True
            on = chosen.view_as(on)
        i, j = on.nonzero().unbind(1)
        kind = symbolic[i, j] * (1 + numeric[i, j].long())
        shown.append(ShownEdges(i, j, kind, score[i, j], unmasked[i, j], int((unmasked & ~on).sum())))
    return shown


def ranges(layer: KANLinear, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of the lower ends ``[nodes]`` and the upper ends ``[nodes]`` of the intervals over which the edges
    of each node are drawn.

    The interval is the range of the samples of the node. If the samples are constant, the interval also contains the
    grid.
    """
    low, high = nodes.amin(0), nodes.amax(0)
    limits = grid.interior(layer.knots, layer.spline_order).to(nodes.dtype)
    rounding = 16 * torch.finfo(nodes.dtype).eps * torch.maximum(low.abs(), high.abs())
    is_constant = high - low <= rounding
    low = torch.where(is_constant, torch.minimum(low, limits[:, 0]), low)
    return low, torch.where(is_constant, torch.maximum(high, limits[:, -1]), high)


def evenly_spaced(low: Tensor, high: Tensor, count: int = POINTS) -> Tensor:
    """Return evenly spaced points ``[count, nodes]`` from ``low [nodes]`` to ``high [nodes]``."""
    return torch.lerp(low, high, torch.linspace(0, 1, count, dtype=low.dtype, device=low.device).unsqueeze(1))


def curves(model: Network, layer: int, i: Tensor, j: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of two tensors ``[N, E]`` with the values of E edges: of splines plus base functions, and of
    formulas.

    The input nodes of the edges are ``i [E]``, their output subnodes are ``j [E]``, and the values of all input nodes
    are ``nodes [N, in]``.
    """
    numeric, symbolic = model.layers[layer], model.symbolic[layer]
    inputs, from_input = i.to(nodes.device).unique(return_inverse=True)
    outputs, to_output = j.to(nodes.device).unique(return_inverse=True)
    values = numeric_functions(numeric, nodes, inputs, outputs)[:, from_input, to_output]
    formulas = torch.zeros_like(values)
    if symbolic.edges:
        index = {edge[:2]: n for n, edge in enumerate(symbolic.edges)}
        column = torch.tensor([index.get(ends, -1) for ends in zip(i.tolist(), j.tolist())], device=nodes.device)
        formulas = torch.where(column >= 0, symbolic.values(nodes)[:, column.clamp(min=0)], formulas)
    return values, formulas


def value_limits(values: Tensor, at_samples: Tensor, has_pole: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of the lower limits ``[E]`` and the upper limits ``[E]`` between which E curves are drawn.

    The limits are the minimum and maximum of the finite entries of ``values [N, E]``. If a curve may have a pole, the
    limits extend beyond the 10% and 90% quantiles of ``at_samples [samples, E]`` by at most the distance between the
    two quantiles. If a curve is constant up to rounding errors, the limits lie around its value, and if a curve has no
    finite values, the limits lie around 0.
    """
    finite = values.isfinite()
    low = torch.where(finite.any(0), torch.where(finite, values, torch.inf).amin(0).double(), 0.0)
    high = torch.where(finite.any(0), torch.where(finite, values, -torch.inf).amax(0).double(), 0.0)
    if bool(has_pole.any()):
        finite = torch.where(at_samples.isfinite(), at_samples, torch.nan).double()
        quantiles = torch.tensor([0.1, 0.9], dtype=torch.float64, device=finite.device)
        usual_low, usual_high = torch.nanquantile(finite, quantiles, 0)
        width = usual_high - usual_low
        cut = has_pole.to(width.device) & (width > 0)
        low = torch.where(cut, torch.maximum(low, usual_low - width), low)
        high = torch.where(cut, torch.minimum(high, usual_high + width), high)
    magnitude = torch.maximum(low.abs(), high.abs())
    is_constant = high - low <= 8 * torch.finfo(values.dtype).eps * magnitude
    middle = (low + high) / 2
    half = torch.where(is_constant, 1 + magnitude, (high - low) / 2)
    return middle - half, middle + half


def may_have_poles(model: Network, layer: int, i: Tensor, j: Tensor) -> Tensor:
    """Return a mask ``[E]`` that is True for each edge whose formula is unbounded or undefined somewhere.

    The input nodes of the edges are ``i [E]``, and their output subnodes are ``j [E]``.
    """
    has_pole = {}
    for edge in model.symbolic[layer].edges:
        function = lookup(edge.name)
        is_partial = function.domain != Interval()
        has_pole[edge.i, edge.j] = bool(function.poles or is_partial or function.fun_singularity)
    return torch.tensor([has_pole.get(ends, False) for ends in zip(i.tolist(), j.tolist())], dtype=torch.bool)
