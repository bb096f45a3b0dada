"""pykan's ``MultKAN`` as a :class:`fastkan.KAN`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kan import KAN
from ...layers.function_library import SYMBOLIC_LIB
from ...layers.symbolic import SymbolicEdges
from ...network.core import AFFINE
from .modules import Made, layers_of, network_of
from .recognise import Kind


@torch.no_grad()
def network_from(source: Any, made: Made) -> KAN:
    """The same network.

    pykan does not keep how many columns x has: of a network that reads only some, ``in_features`` becomes the number
    up to the last of them. Assign to it where x has more.

    Raises:
        ValueError: for what can't be the same.
    """
    layers = layers_of(source, source.act_fun, "act_fun", Kind.PYKAN_LAYER, made)
    arity = source.mult_arity
    arity = int(arity) if source.mult_homo else [[int(factors) for factors in nodes] for nodes in arity]
    model = network_of(layers, [[int(count) for count in pair] for pair in source.width], arity)
    model.grid_eps = float(source.grid_eps)
    for place in range(model.depth):
        if source.symbolic_enabled:
            theirs = source.symbolic_fun[place]
            if theirs not in made:
                _set_formulas(model.symbolic[place], theirs, place)
                made[theirs] = model.symbolic[place]
            model.symbolic[place] = made[theirs]
        for name in AFFINE:
            ours, kept = getattr(model, name), getattr(source, name)[place]
            ours[place] = nn.Parameter(kept.detach().clone().to(ours[place]), requires_grad=kept.requires_grad)
    ids = source.input_id.long().to(model.device)
    model.input_id = ids.clone()
    model.in_features = int(ids.max()) + 1 if len(ids) else 0
    return model


def _set_formulas(edges: SymbolicEdges, source: Any, layer: int) -> None:
    if source.mask.requires_grad:
        raise ValueError(
            f"symbolic_fun.{layer}: mask is trained, which it can't be here: mask.requires_grad_(False) before"
        )
    on, found, functions = source.mask.detach(), [], {}
    for j, i in on.nonzero().tolist():
        name, share = source.funs_name[j][i], on[j, i].item()
        place = f"the formula of edge {(layer, i, j)}"
        if share != 1:
            raise ValueError(f"{place} has the mask {share:g}; it must be 0 or 1")
        if name not in SYMBOLIC_LIB:
            raise ValueError(f"{place} is {name!r}, which is not in the library: add it by fastkan.add_symbolic")
        fun = source.funs[j][i]
        if (fun, name) not in functions:
            functions[fun, name] = _same_function(fun, SYMBOLIC_LIB[name].fun)
        if not functions[fun, name]:
            raise ValueError(f"{place} is called {name!r}, and computes something else than fastkan's {name!r}")
        if not bool(source.affine[j, i].isfinite().all()):
            raise ValueError(f"{place} must have finite numbers, it has {source.affine[j, i].tolist()}")
        found.append([i, j, name])
    if found:
        found.sort()
        rows = source.affine.detach()[[j for _, j, _ in found], [i for i, _, _ in found]]
        edges.load_state_dict({"affine": rows, "formulas": found})  # all at once: there may be thousands
        edges.affine.requires_grad_(source.affine.requires_grad)


def _same_function(theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]) -> bool:
    """On both sides of 0 and of 1, NaN where the other is."""
    z = torch.linspace(-2.9, 3.1, 61, dtype=torch.float64)
    try:
        return torch.allclose(theirs(z.clone()), ours(z), rtol=1e-9, atol=1e-9, equal_nan=True)
    except Exception:  # whatever a function of somebody's own does
        return False
