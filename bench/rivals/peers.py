"""Other packages' layers, as their authors ship them.

fast-kan is not among them: it has radial functions in the place of splines, and its package has this one's import
name, so the two can't be installed together.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..cases import ENTROPY, L1, Case, Edges
from .registry import WithPenalty, rival


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


@rival("flashkan", needs="flashkan", compiled=True)
def flashkan(case: Case, edges: list[Edges]) -> nn.Module:
    """Cubic splines by truncated powers, compiled as it ships; of other orders it is wrong, and on fine grids."""
    from flashkan import KANNetwork

    network = KANNetwork(list(case.widths), grid_size=case.grid_size, spline_order=case.order)
    for layer, edge in zip(network.layers, edges):
        layer.spline_weight.copy_(edge.spline_weight.permute(2, 1, 0))
        layer.base_weight.copy_(edge.base_weight.t())
    return network


def efficient_sparse(case: Case, edges: list[Edges]) -> nn.Module:
    """With its own penalty, of the coefficients."""
    return WithPenalty(efficient(case, edges), lambda network: network.regularization_loss(L1, ENTROPY))


@rival("efficient_kan", needs="efficient_kan", sparse=efficient_sparse, own_penalty=True)
def efficient(case: Case, edges: list[Edges]) -> nn.Module:
    """From its repository; PyPI has no such package."""
    from efficient_kan import KAN

    network = KAN(list(case.widths), grid_size=case.grid_size, spline_order=case.order)
    for layer, edge in zip(network.layers, edges):
        layer.spline_weight.copy_(edge.spline_weight.permute(2, 1, 0))
        layer.base_weight.copy_(edge.base_weight.t())
        layer.spline_scaler.fill_(1.0)
    return network


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


def pykan_sparse(case: Case, edges: list[Edges]) -> nn.Module:
    """As its ``fit`` trains it: activations are kept, the symbolic part is off."""
    network = _pykan(case, edges)
    network.symbolic_enabled = False
    return WithPenalty(network, lambda network: network.get_reg("edge_forward_spline_n", L1, ENTROPY, 0.0, 0.0))


@rival("pykan", needs="kan", most_edges=1 << 17, sparse=pykan_sparse)
def pykan(case: Case, edges: list[Edges]) -> nn.Module:
    """As it is made."""
    return _pykan(case, edges)
