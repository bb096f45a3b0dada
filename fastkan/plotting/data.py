"""The data in a picture of a network: which edges are shown, their scores, and their curves."""

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
POINTS = 101  # per curve
MAX_VALUES = 1 << 22  # numbers in a batch; of a larger one some rows are drawn at random
KINDS = ("numeric", "symbolic", "both")


class ShownEdges(NamedTuple):
    """The E edges of one layer that have a place in the picture, sorted by (i, j)."""

    i: Tensor  # [E], input nodes
    j: Tensor  # [E], output subnodes
    kind: Tensor  # [E], indices of KINDS
    score: Tensor  # [E], by the metric of the plot
    is_drawn: Tensor  # [E], whether the edge is drawn in its place, that is, not hidden by mask=True
    left_out: int  # number of edges that would also be drawn if max_edges were larger


def rows_for(model: Network, x: Tensor | None, layer: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """Return samples at which every node is finite, and the inputs of each layer at them; warn of those left out.

    Args:
        x: samples; None takes those of the last fit or, before any, points spread over the first grids.
        layer: the last layer whose inputs must be finite; None requires finite outputs too.
    """
    rows = activations.rows_for(model, x, strict=False)
    if x is None and len(rows) < 2:  # scores are standard deviations, which take two rows
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
    """Return at most ``max_count`` of the rows, drawn at random but the same ones on every call."""
    if len(rows) <= max_count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:max_count]
    return rows[chosen.to(rows.device)]


def _cause(model: Network, nodes: list[Tensor]) -> str:
    """Description of the first place in the network where numbers are no longer finite."""
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
    """Select the edges of each layer that are shown: all that are on or, of more than ``max_edges``, the strongest."""
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
    """Ends of the interval over which the edges of each node are drawn, ``[nodes]`` each: the range of the node's
    samples, extended to the grid if they don't vary."""
    low, high = nodes.amin(0), nodes.amax(0)
    limits = grid.interior(layer.knots, layer.spline_order).to(nodes.dtype)
    rounding = 16 * torch.finfo(nodes.dtype).eps * torch.maximum(low.abs(), high.abs())
    is_constant = high - low <= rounding
    low = torch.where(is_constant, torch.minimum(low, limits[:, 0]), low)
    return low, torch.where(is_constant, torch.maximum(high, limits[:, -1]), high)


def evenly_spaced(low: Tensor, high: Tensor, count: int = POINTS) -> Tensor:
    """``[count, nodes]`` evenly spaced points from ``low [nodes]`` to ``high [nodes]``."""
    return torch.lerp(low, high, torch.linspace(0, 1, count, dtype=low.dtype, device=low.device).unsqueeze(1))


def curves(model: Network, layer: int, i: Tensor, j: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the edges ``i, j`` (``[E]`` each) at ``nodes [N, in]``: of their splines with base functions, and of
    their formulas, each ``[N, E]``."""
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
    """Lower and upper limit ``[E]`` of the drawn part of curves ``[N, E]``: their finite range, except for curves that
    may have a pole, which are cut off one width outside of the middle 80% of their values ``at_samples [samples, E]``.
    A curve that is constant up to rounding gets limits around its value, and one without finite values around 0."""
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
    """Whether each of the edges ``i, j`` (``[E]`` each) has a formula that is unbounded or undefined somewhere."""
    has_pole = {}
    for edge in model.symbolic[layer].edges:
        function = lookup(edge.name)
        is_partial = function.domain != Interval()
        has_pole[edge.i, edge.j] = bool(function.poles or is_partial or function.fun_singularity)
    return torch.tensor([has_pole.get(ends, False) for ends in zip(i.tolist(), j.tolist())], dtype=torch.bool)
