"""Changes of a network's structure: removal of nodes, addition of nodes and layers, and exchange of nodes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastkan_kernels import FLAG, INDEX, SEED, Int, OneOrEach, checked

from ..layers.linear import KANLinear
from ..layers.symbolic import SymbolicEdges
from .core import AFFINE

if TYPE_CHECKING:
    from .core import NetworkT


@torch.inference_mode(False)
@torch.no_grad()
def subnetwork(model: NetworkT, nodes: Sequence[Sequence[int]]) -> NetworkT:
    """Return a new network that has only the given nodes of each layer and the edges between the nodes. The nodes of
    each layer must be in ascending order. The new network shares no tensors with the model."""
    new = copy.deepcopy(model)
    subnodes = []
    for layer, kept in enumerate(nodes):
        new.architecture, below = new.architecture.keep(layer, kept)
        subnodes.append(below)
    for layer in range(model.depth):
        ends = list(nodes[layer]), subnodes[layer + 1]
        new.layers[layer] = _with_edges(model.layers[layer], *ends)
        new.symbolic[layer] = model.symbolic[layer].subset(*ends)
        for name in AFFINE:
            part = getattr(new, name)
            part[layer] = _selected(part[layer], (nodes if name.startswith("node") else subnodes)[layer + 1])
    new.input_id = model.input_id[list(nodes[0])].clone()
    new.prune_mask = None
    for layer in new.layers:
        layer._freeze_if_idle()
    return new


def _selected(parameter: nn.Parameter, kept: Sequence[int]) -> nn.Parameter:
    return nn.Parameter(parameter.detach()[list(kept)].clone(), requires_grad=parameter.requires_grad)


def _with_edges(layer: KANLinear, inputs: list[int], outputs: list[int]) -> KANLinear:
    """Return a copy of a layer with the given inputs and outputs, in the given order."""
    new = copy.deepcopy(layer)
    new.in_features, new.out_features = len(inputs), len(outputs)
    for name in ("spline_weight", "base_weight", "spline_scale"):
        old = getattr(layer, name)
        if old is not None:
            kept = old.detach()[..., inputs, :][..., outputs].clone()
            setattr(new, name, nn.Parameter(kept, requires_grad=old.requires_grad))
    mask = None if layer.mask is None else layer.mask[inputs][:, outputs]
    new.mask = None if mask is None or mask.all() else mask.clone()  # a mask of ones has no effect but takes time
    if layer._outside_count is not None:
        new._outside_count = layer._outside_count[[*inputs, -1]]
    new._write_knots(layer.knots[inputs])
    return new


@checked(
    layer_id=Int(least=1), n_added_nodes=Int(least=1), sum_bool=FLAG, mult_arity=OneOrEach(Int(least=2)), seed=SEED
)  # fmt: skip
@torch.inference_mode(False)
@torch.no_grad()
def expand_width(
    model: NetworkT,
    layer_id: int,
    n_added_nodes: int,
    sum_bool: bool = True,
    mult_arity: int | Sequence[int] = 2,
    seed: int | None = 0,
) -> NetworkT:
    """Add nodes to a hidden layer, in place and without changing the function of the network.

    Edges that end in a new node are initialised at random. Edges that start in a new node are 0 and can be trained.

    Args:
        layer_id: index of the layer of nodes, from 1 to ``depth - 1``.
        n_added_nodes: number of new nodes.
        sum_bool: whether the new nodes are sum nodes; if False, the new nodes are multiplication nodes.
        mult_arity: number of factors of every new multiplication node, or a list with one number for each new node.
        seed: seed for the initial values of the new edges. If None, torch's global generator is used.

    Returns:
        The model itself.

    Raises:
        TypeError, ValueError: if the layer does not exist or is not hidden, or if a number is out of range.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.expand_width(1, 2).width
        [[2, 0], [7, 0], [1, 0]]
    """
    if layer_id >= model.depth:
        raise ValueError(f"layer_id must name a hidden layer, from 1 to {model.depth - 1}; got {layer_id}")
    added = [mult_arity] * n_added_nodes if isinstance(mult_arity, int) else list(mult_arity)
    if not sum_bool and len(added) != n_added_nodes:
        raise ValueError(f"mult_arity must have {n_added_nodes} entries, one for each new node; got {added}")
    old = model.architecture
    sums, arities = list(old.sums), list(old.arities)
    if sum_bool:
        sums[layer_id] += n_added_nodes
        at_node, at_subnode, subnodes = old.sums[layer_id], old.sums[layer_id], n_added_nodes
    else:
        arities[layer_id] = (*arities[layer_id], *added)
        at_node, at_subnode, subnodes = old.nodes[layer_id], old.subnodes[layer_id], sum(added)
    before, after = model.layers[layer_id - 1], model.layers[layer_id]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    model.layers[layer_id - 1] = _widened(before, 1, at_subnode, subnodes, generator)
    model.layers[layer_id] = _widened(after, 0, at_node, n_added_nodes, generator)
    _shift(model.symbolic, layer_id - 1, 1, at_subnode, subnodes)
    _shift(model.symbolic, layer_id, 0, at_node, n_added_nodes)
    for name in AFFINE:
        part = getattr(model, name)
        at, count = (at_node, n_added_nodes) if name.startswith("node") else (at_subnode, subnodes)
        parameter = part[layer_id - 1]
        fresh = parameter.new_full((count,), float(name.endswith("scale")))
        joined = torch.cat([parameter[:at], fresh, parameter[at:]])
        part[layer_id - 1] = nn.Parameter(joined, requires_grad=parameter.requires_grad)
    model.architecture = old._replace(sums=tuple(sums), arities=tuple(arities))
    model.prune_mask = None
    return model


def _widened(layer: KANLinear, along: int, at: int, count: int, generator: torch.Generator | None) -> KANLinear:
    """Return a copy of a layer with ``count`` new inputs (if ``along`` is 0) or outputs (if ``along`` is 1), inserted
    at position ``at``.

    The edges from new inputs are 0, and the edges to new outputs are random. New inputs have the same grid as the first
    input.
    """
    ends = list(range(layer.in_features)), list(range(layer.out_features))
    ends[along][at:at] = [0] * count
    new = _with_edges(layer, *ends)
    new._outside_count = None
    fresh = copy.deepcopy(new)
    fresh._draw_parameters(generator)
    added = slice(at, at + count)
    for name in ("spline_weight", "base_weight", "spline_scale"):
        own, drawn = getattr(new, name), getattr(fresh, name)
        if own is not None and along == 0:
            own[..., added, :] = drawn[..., added, :] if name == "spline_scale" else 0.0
        elif own is not None:
            own[..., added] = drawn[..., added]
    if layer.mask is not None:
        mask = layer.mask[ends[0]][:, ends[1]]
        mask.movedim(along, 0)[added] = 1.0
        new.set_mask(mask)
    return new


def _shift(symbolic: nn.ModuleList, layer: int, along: int, at: int, count: int) -> None:
    """Renumber the formulas of a layer after ``count`` new inputs (if ``along`` is 0) or outputs (if ``along`` is 1)
    were inserted at position ``at``."""
    old = symbolic[layer]
    assert isinstance(old, SymbolicEdges)
    inputs, outputs = old.in_features + count * (along == 0), old.out_features + count * (along == 1)
    new = SymbolicEdges(inputs, outputs, device=old.affine.device, dtype=old.affine.dtype)
    for edge, affine in zip(old.edges, old.affine.detach()):
        i = edge.i + count * (along == 0 and edge.i >= at)
        j = edge.j + count * (along == 1 and edge.j >= at)
        new.fix(i, j, edge.name, affine)
    new.affine.requires_grad_(old.affine.requires_grad)
    symbolic[layer] = new.train(old.training)


@torch.inference_mode(False)
@torch.no_grad()
def expand_depth(model: NetworkT) -> NetworkT:
    """Add a layer after the last layer of the network, in place and without changing the function of the network.

    The new layer has as many nodes as the last layer. Each new node has a single edge, with the formula x, from the
    output node at the same position.

    Returns:
        The model itself.

    Example:
        >>> KAN(width=[2, 5, 1], seed=0).expand_depth().width
        [[2, 0], [5, 0], [1, 0], [1, 0]]
    """
    last, count = model.layers[-1], model.width_in[-1]
    with torch.random.fork_rng(devices=[]):
        layer = KANLinear(
            count, count, last.grid_size, last.spline_order,
            base=last.base, spline_scale=True, outside=last.outside, dtype=model.dtype,
        ).to(model.device)  # fmt: skip
    layer._initialization = last._initialization
    layer._draw_parameters(torch.Generator().manual_seed(0))
    for name in ("spline_weight", "base_weight", "spline_scale"):
        if getattr(layer, name) is not None:
            getattr(layer, name).requires_grad_(getattr(last, name).requires_grad or name in last._frozen)
    layer.set_mask(torch.zeros(count, count))
    symbolic = SymbolicEdges(count, count, device=model.device, dtype=model.dtype)
    for node in range(count):
        symbolic.fix(node, node, "x")
    model.layers.append(layer.train(last.training))
    model.symbolic.append(symbolic.train(last.training))
    for name in AFFINE:
        part = getattr(model, name)
        fresh = torch.full((count,), float(name.endswith("scale")), device=model.device, dtype=model.dtype)
        part.append(nn.Parameter(fresh, requires_grad=part[-1].requires_grad))
    old = model.architecture
    model.architecture = old._replace(sums=(*old.sums, count), arities=(*old.arities, ()))
    model.prune_mask = None
    model._reset_caches()
    model.layers[-1]._freeze_if_idle()
    return model


@checked(l=INDEX, i1=INDEX, i2=INDEX)
@torch.inference_mode(False)
@torch.no_grad()
def swap(model: NetworkT, l: int, i1: int, i2: int) -> NetworkT:
    """Exchange two nodes of an input or hidden layer, in place and without changing the function of the network.

    Args:
        l: index of the layer of nodes, counted from the inputs.
        i1, i2: indices of two sum nodes, or of two multiplication nodes with the same number of factors.

    Returns:
        The model itself.

    Raises:
        TypeError, ValueError: if a node does not exist, if the nodes are of different kinds, or if ``l`` is the output
            layer.
    """
    if l >= model.depth:
        raise ValueError(f"l must be below {model.depth}: the order of the outputs is fixed; got {l}")
    for name, node in (("i1", i1), ("i2", i2)):
        if node >= model.width_in[l]:
            raise ValueError(f"{name} must be below {model.width_in[l]}, the nodes of layer {l}; got {node}")
    groups = model.architecture.factors(l)
    sums = model.architecture.sums[l]
    if (i1 < sums) != (i2 < sums) or len(groups[i1]) != len(groups[i2]):
        raise ValueError(f"i1 and i2 must be of one kind, but nodes {i1} and {i2} of layer {l} are of different kinds")
    nodes = _exchanged(model.width_in[l], [i1], [i2])
    every = list(range(model.width_out[l + 1]))
    model.layers[l] = _with_edges(model.layers[l], nodes, every)
    model.symbolic[l] = model.symbolic[l].subset(nodes, every)
    if l == 0:
        model.input_id = model.input_id[nodes].clone()
    else:
        subnodes = _exchanged(model.width_out[l], groups[i1], groups[i2])
        every = list(range(model.width_in[l - 1]))
        model.layers[l - 1] = _with_edges(model.layers[l - 1], every, subnodes)
        model.symbolic[l - 1] = model.symbolic[l - 1].subset(every, subnodes)
        for name in AFFINE:
            part = getattr(model, name)
            part[l - 1] = _selected(part[l - 1], nodes if name.startswith("node") else subnodes)
    model.prune_mask = None
    return model


def _exchanged(count: int, these: Sequence[int], those: Sequence[int]) -> list[int]:
    """Return ``list(range(count))`` after exchanging each entry of ``these`` with the entry of ``those`` at the same
    position."""
    order = list(range(count))
    for one, other in zip(these, those):
        order[one], order[other] = order[other], order[one]
    return order
