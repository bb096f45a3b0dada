"""pykan's ``MultKAN`` as a :class:`fastkan.KAN`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..network import AFFINE, KAN
from ..symbolic.edge import SymbolicEdges
from ..symbolic.library import SYMBOLIC_LIB
from .modules import network_of, pykan_layer


@torch.no_grad()
def network_from(source: Any) -> KAN:
    """The same network.

    pykan does not keep how many columns x has: of a network that reads only some, ``in_features`` becomes the number
    up to the last of them. Assign to it where x has more.

    Raises:
        ValueError: for what can't be the same.
    """
    layers = []
    for place, layer in enumerate(source.act_fun):
        try:
            layers.append(pykan_layer(layer))
        except ValueError as error:
            raise ValueError(f"act_fun.{place}: {error}") from None
    model = network_of(layers, [list(pair) for pair in source.width], source.mult_arity)
    model.grid_eps = float(source.grid_eps)
    for place in range(model.depth):
        if source.symbolic_enabled:
            _set_formulas(model.symbolic[place], source.symbolic_fun[place], place)
        for name in AFFINE:
            ours, theirs = getattr(model, name), getattr(source, name)[place]
            ours[place] = nn.Parameter(theirs.detach().clone().to(ours[place]), requires_grad=theirs.requires_grad)
    ids = source.input_id.long().to(model.device)
    model.input_id = ids.clone()
    model.in_features = int(ids.max()) + 1
    return model


def _set_formulas(edges: SymbolicEdges, source: Any, layer: int) -> None:
    edges.affine.requires_grad_(source.affine.requires_grad)
    on = source.mask.detach()
    for j, i in on.nonzero().tolist():
        name, share = source.funs_name[j][i], on[j, i].item()
        place = f"the formula of edge {(layer, i, j)}"
        if share != 1:
            raise ValueError(f"{place} has the mask {share:g}; it must be 0 or 1")
        if name not in SYMBOLIC_LIB:
            raise ValueError(f"{place} is {name!r}, which is not in the library: add it by fastkan.add_symbolic")
        edges.fix(i, j, name, source.affine[j, i].detach())
