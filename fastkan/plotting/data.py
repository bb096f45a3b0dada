"""What a picture of a network shows: which edges, how much each matters, and their curves."""

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
POINTS = 101  # of a curve
MAX_VALUES = 1 << 22  # of a batch; of a larger one some rows serve
KINDS = ("numeric", "symbolic", "both")


class Shown(NamedTuple):
    """The edges of a layer that have a place in the picture, E of them, sorted by (i, j).

    Args:
        i, j: their ends, ``[E]``.
        kind: indices of :data:`KINDS`, ``[E]``.
        score: how much each matters, ``[E]``.
        drawn: those that ``mask=True`` does not hide, ``[E]``.
        left_out: how many more would be drawn, were there room.
    """

    i: Tensor
    j: Tensor
    kind: Tensor
    score: Tensor
    drawn: Tensor
    left_out: int


def rows_for(model: Network, x: Tensor | None, layer: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """Samples with which every node is finite, and what then enters each layer.

    Args:
        x: samples, or None for those of the last fit or points spread over the first grids.
        layer: whose nodes are the last that must be finite; None asks it of the outputs too.

    Raises:
        ValueError: if there are not two of them.
    """
    rows = activations.rows_for(model, x, strict=False)
    if x is None and len(rows) < 2:  # no spread, so no scores: as before any fit
        rows = activations.grid_points(model)
    if len(rows) < 2:
        raise ValueError(f"x must have at least two samples, got {len(rows)}")
    rows = some_of(rows, max(2, MAX_VALUES // max(1, rows.shape[1])))
    trace = activations.trace(model, rows)
    nodes = [traced.nodes for traced in trace]
    asked = [*nodes, trace[-1].out] if layer is None else nodes[: layer + 1]
    good = torch.stack([part.isfinite().all(1) for part in asked]).all(0)
    count = int(good.sum())
    if count < 2:
        raise ValueError(f"nothing can be drawn at x, its samples: {_culprit(model, asked)}")
    if count < len(rows):
        left_out = f"{len(rows) - count} of {len(rows)} samples make a node NaN or infinite and are left out"
        warn(left_out, RuntimeWarning)
    return rows[good], [part[good] for part in nodes]


def some_of(rows: Tensor, most: int) -> Tensor:
    """Rows at random, the same on every call, and all where there are no more."""
    if len(rows) <= most:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
    return rows[chosen.to(rows.device)]


def _culprit(model: Network, nodes: list[Tensor]) -> str:
    """The first place where numbers are no longer finite."""
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


def shown_edges(model: Network, nodes: list[Tensor], metric: str, mask: list[Tensor] | None, most: int) -> list[Shown]:
    """The edges of each layer: all that are on or, of more than ``most``, the strongest."""
    sizes = edge_sizes(model, nodes, METRICS[metric])
    found = []
    for layer, size in enumerate(sizes):
        score = size.detach().double().cpu().nan_to_num(nan=0.0)
        numeric, symbolic = edge_kinds(model, layer)
        on = numeric | symbolic
        kept = on if mask is None else on & mask[layer].bool().cpu()
        if int(on.sum()) > most:
            order = torch.where(kept, score, -1.0).flatten().argsort(descending=True, stable=True)
            chosen = torch.zeros_like(on).flatten()
            chosen[order[: min(most, int(kept.sum()))]] = True
            on = chosen.view_as(on)
        i, j = on.nonzero().unbind(1)
        kind = symbolic[i, j] * (1 + numeric[i, j].long())
        found.append(Shown(i, j, kind, score[i, j], kept[i, j], int((kept & ~on).sum())))
    return found


def ranges(layer: KANLinear, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """From where to where each node's edges are drawn: over its samples or, if these don't vary, over the grid too."""
    low, high = nodes.amin(0), nodes.amax(0)
    limits = grid.interior(layer.knots, layer.spline_order).to(nodes.dtype)
    rounding = 16 * torch.finfo(nodes.dtype).eps * torch.maximum(low.abs(), high.abs())
    flat = high - low <= rounding
    low = torch.where(flat, torch.minimum(low, limits[:, 0]), low)
    return low, torch.where(flat, torch.maximum(high, limits[:, -1]), high)


def evenly(low: Tensor, high: Tensor, count: int = POINTS) -> Tensor:
    """``[count, nodes]``."""
    return torch.lerp(low, high, torch.linspace(0, 1, count, dtype=low.dtype, device=low.device).unsqueeze(1))


def curves(model: Network, layer: int, i: Tensor, j: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Values of some edges at ``nodes [N, in]``: of their numeric part and of their formulas, each ``[N, E]``."""
    numeric, symbolic = model.layers[layer], model.symbolic[layer]
    inputs, from_input = i.to(nodes.device).unique(return_inverse=True)
    outputs, to_output = j.to(nodes.device).unique(return_inverse=True)
    values = numeric_functions(numeric, nodes, inputs, outputs)[:, from_input, to_output]
    formulas = torch.zeros_like(values)
    if symbolic.edges:
        place = {edge[:2]: n for n, edge in enumerate(symbolic.edges)}
        column = torch.tensor([place.get(end, -1) for end in zip(i.tolist(), j.tolist())], device=nodes.device)
        found = symbolic.values(nodes)[:, column.clamp(min=0)]
        formulas = torch.where(column >= 0, found, formulas)
    return values, formulas


def within(values: Tensor, seen: Tensor, singular: Tensor) -> tuple[Tensor, Tensor]:
    """Ends ``[E]`` of what is drawn of curves ``[N, E]``: all of it but, of one that has a pole, not that. What varies
    by no more than rounding gets room in which it is flat.

    Args:
        seen: their values at samples.
        singular: which of them may have poles, ``[E]``; see :func:`may_have_poles`.
    """
    low, high = _ends(values)
    if bool(singular.any()):
        finite = torch.where(seen.isfinite(), seen, torch.nan).double()
        usual = torch.nanquantile(finite, torch.tensor([0.1, 0.9], dtype=torch.float64, device=seen.device), 0)
        room = usual[1] - usual[0]
        cut = singular.to(room.device) & (room > 0)
        low = torch.where(cut, torch.maximum(low, usual[0] - room), low)
        high = torch.where(cut, torch.minimum(high, usual[1] + room), high)
    size = torch.maximum(low.abs(), high.abs())
    flat = high - low <= 8 * torch.finfo(values.dtype).eps * size
    middle = (low + high) / 2
    half = torch.where(flat, 1 + size, (high - low) / 2)
    return middle - half, middle + half


def may_have_poles(model: Network, layer: int, i: Tensor, j: Tensor) -> Tensor:
    """Which of some edges are formulas that run off somewhere, ``[E]``."""
    singular = {}
    for edge in model.symbolic[layer].edges:
        function = lookup(edge.name)
        bounded = function.domain != Interval()
        singular[edge.i, edge.j] = bool(function.poles or bounded or function.fun_singularity)
    return torch.tensor([singular.get(ends, False) for ends in zip(i.tolist(), j.tolist())], dtype=torch.bool)


def _ends(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of the finite values of each column, 0 where it has none."""
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin(0).double()
    high = torch.where(finite, values, -torch.inf).amax(0).double()
    some = finite.any(0)
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)
