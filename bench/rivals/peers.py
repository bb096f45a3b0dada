"""Other packages' layers, as their authors ship them."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..cases import Case, Edges
from .registry import rival


def _inkan(case: Case, edges: list[Edges], compile_basis: bool) -> nn.Module:
    from inkan import KANNetwork

    network = KANNetwork(
        list(case.widths),
        grid_size=case.grid_size,
        spline_order=case.order,
        compile_basis=compile_basis,
    )
    for layer, edge in zip(network.layers, edges):
        splines = edge.spline_weight.permute(2, 1, 0).flatten(1)  # [out, in * (G + k)]
        layer.weight.copy_(torch.cat([splines, edge.base_weight.t()], 1))
    return network


@rival("inkan", needs="inkan", anchor=True)
def inkan_eager(case: Case, edges: list[Edges]) -> nn.Module:
    """``compile_basis=False``."""
    return _inkan(case, edges, compile_basis=False)


@rival("inkan, compile_basis", needs="inkan", compiled=True)
def inkan_shipped(case: Case, edges: list[Edges]) -> nn.Module:
    """``compile_basis=True``, its default."""
    return _inkan(case, edges, compile_basis=True)


@rival("inkan, torch.compile", needs="inkan", compiled=True)
def inkan_compiled(case: Case, edges: list[Edges]) -> nn.Module:
    """The eager one, compiled whole."""
    return cast(nn.Module, torch.compile(_inkan(case, edges, compile_basis=False)))


def _pykan(case: Case, edges: list[Edges]):
    from kan import MultKAN

    with torch.random.fork_rng(devices=[]):  # it seeds torch's generator
        network = MultKAN(list(case.widths), grid=case.grid_size, k=case.order, auto_save=False)
    for layer, edge in zip(network.act_fun, edges):
        layer.coef.copy_(edge.spline_weight.permute(1, 2, 0))
        layer.scale_base.copy_(edge.base_weight)
        layer.scale_sp.fill_(1.0)
    return network


@rival("pykan, speed mode", needs="kan", most_edges=1 << 25)
def pykan_speed(case: Case, edges: list[Edges]) -> nn.Module:
    """After its ``speed()``: no symbolic part, no activations kept."""
    return _pykan(case, edges).speed()


@rival("pykan", needs="kan", most_edges=1 << 17)
def pykan(case: Case, edges: list[Edges]) -> nn.Module:
    """As it is made."""
    return _pykan(case, edges)
