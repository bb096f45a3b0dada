"""fastkan and the layers that it is compared with, in the order of the tables.

fast-kan is not among them: it has radial functions in place of splines, and its package has the import name of this
one, so that the two can't be installed together.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastkan import KAN, KANLinear
from fastkan.training.regularization import Penalty

from .cases import ENTROPY, L1, Case, Edges
from .contenders import MLP, OURS, WithPenalty, contender
from .plain import KANLinear as PlainKANLinear

PENALTY = "edge_forward_spline_n"  # pykan's name of its default penalty


class Penalised(nn.Module):
    """A ``KAN`` whose call returns output and penalty, as its own ``fit`` computes them."""

    def __init__(self, network: KAN) -> None:
        super().__init__()
        self.network = network
        self.penalty = Penalty(network, L1, ENTROPY, 0.0, 0.0, PENALTY)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.penalty(x)


def fastkan_sparse(case: Case, edges: list[Edges]) -> nn.Module:
    """``KAN`` with its :class:`Penalty`."""
    network = KAN(width=list(case.widths), grid=case.grid_size, k=case.order, seed=0)
    for layer, edge in zip(network.layers, edges):
        layer.spline_weight.copy_(edge.spline_weight)
        layer.get_parameter("base_weight").copy_(edge.base_weight)
        layer.get_parameter("spline_scale").fill_(1.0)
    return Penalised(network)


@contender(OURS, sparse=fastkan_sparse)
def fastkan(case: Case, edges: list[Edges]) -> nn.Module:
    """``KANLinear`` layers, eager."""
    layers = []
    for (inputs, outputs), edge in zip(case.layers, edges):
        layer = KANLinear(inputs, outputs, case.grid_size, case.order)
        layer.spline_weight.copy_(edge.spline_weight)
        layer.get_parameter("base_weight").copy_(edge.base_weight)
        layers.append(layer)
    return nn.Sequential(*layers)


@contender(f"{OURS}, torch.compile", compiled=True)
def fastkan_compiled(case: Case, edges: list[Edges]) -> nn.Module:
    """The same under ``torch.compile``."""
    return cast(nn.Module, torch.compile(fastkan(case, edges)))


def lasso(case: Case, edges: list[Edges]) -> nn.Module:
    """The MLP with the penalty that is usual for one: the sum of its weights' absolute values."""
    return WithPenalty(mlp(case, edges), lambda network: sum(weight.abs().sum() for weight in network.parameters()))


@contender(MLP, is_kan=False, anchor=True, sparse=lasso, own_penalty=True)
def mlp(case: Case, edges: list[Edges]) -> nn.Module:
    """For I-H-O: ``Linear(I, H (G+k+1))``, SiLU, ``Linear(H (G+k+1), O)``, no biases."""
    inputs, hidden, outputs = case.widths
    wide = hidden * case.features
    return nn.Sequential(nn.Linear(inputs, wide, bias=False), nn.SiLU(), nn.Linear(wide, outputs, bias=False))


class BareProducts(nn.Module):
    """``[N, I (G+k+1)] @ [I (G+k+1), O]`` for each layer on random features; backward computes both gradients of each
    product, and for the first layer the weight's alone, as in a training step."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        sizes = [(inputs * case.features, outputs) for inputs, outputs in case.layers]
        self.features = [torch.rand(case.rows, wide) for wide, _ in sizes]
        self.upstream = [torch.randn(case.rows, outputs) for _, outputs in sizes[:-1]]
        self.weights = nn.ParameterList(torch.randn(size) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        return _Products.apply(self.features, self.upstream, *self.weights)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, upstream, *weights):
        ctx.features, ctx.upstream = features, upstream
        ctx.save_for_backward(*weights)
        for psi, weight in zip(features, weights):
            y = psi @ weight
        return y

    @staticmethod
    def backward(ctx, last):
        gradients = []
        for layer, (psi, g, weight) in enumerate(zip(ctx.features, [*ctx.upstream, last], ctx.saved_tensors)):
            gradients.append(psi.t() @ g)
            if layer:
                g @ weight.t()
        return None, None, *gradients


@contender("bare matrix products", is_kan=False, only=("forward", "step"))
def products(case: Case, edges: list[Edges]) -> nn.Module:
    """The products of dense KAN layers on features that exist already."""
    return BareProducts(case)


@contender("plain Cox-de Boor")
def plain(case: Case, edges: list[Edges]) -> nn.Module:
    """The layer as it is usually written, eager."""
    return nn.Sequential(
        *(PlainKANLinear(*sizes, case.grid_size, case.order).load(*edge) for sizes, edge in zip(case.layers, edges))
    )


def _inkan(case: Case, edges: list[Edges], compile_basis: bool) -> nn.Module:
    from inkan import KANNetwork

    network = KANNetwork(
        list(case.widths), grid_size=case.grid_size, spline_order=case.order, compile_basis=compile_basis
    )
    for layer, edge in zip(network.layers, edges):
        splines = edge.spline_weight.permute(2, 1, 0).flatten(1)  # [out, in * (G + k)]
        layer.weight.copy_(torch.cat([splines, edge.base_weight.t()], 1))
    return network


@contender("inkan", needs="inkan", anchor=True)
def inkan_eager(case: Case, edges: list[Edges]) -> nn.Module:
    """``compile_basis=False``."""
    return _inkan(case, edges, compile_basis=False)


@contender("inkan, compile_basis", needs="inkan", compiled=True)
def inkan_default(case: Case, edges: list[Edges]) -> nn.Module:
    """``compile_basis=True``, its default."""
    return _inkan(case, edges, compile_basis=True)


@contender("inkan, torch.compile", needs="inkan", compiled=True)
def inkan_compiled(case: Case, edges: list[Edges]) -> nn.Module:
    """The eager network, compiled as a whole."""
    return cast(nn.Module, torch.compile(_inkan(case, edges, compile_basis=False)))


def _take(network: Any, edges: list[Edges]) -> Any:
    """Copy weights into layers with efficient-kan's parameters."""
    for layer, edge in zip(network.layers, edges):
        layer.spline_weight.copy_(edge.spline_weight.permute(2, 1, 0))
        layer.base_weight.copy_(edge.base_weight.t())
    return network


@contender("flashkan", needs="flashkan", compiled=True)
def flashkan(case: Case, edges: list[Edges]) -> nn.Module:
    """Cubic splines by truncated powers, compiled as it ships; wrong for other orders, and on fine grids."""
    from flashkan import KANNetwork

    return _take(KANNetwork(list(case.widths), grid_size=case.grid_size, spline_order=case.order), edges)


def efficient_sparse(case: Case, edges: list[Edges]) -> nn.Module:
    """With its own penalty on the coefficients."""
    return WithPenalty(efficient(case, edges), lambda network: network.regularization_loss(L1, ENTROPY))


@contender("efficient_kan", needs="efficient_kan", sparse=efficient_sparse, own_penalty=True)
def efficient(case: Case, edges: list[Edges]) -> nn.Module:
    """From its repository, since it is not on PyPI."""
    from efficient_kan import KAN as EfficientKAN

    network = _take(EfficientKAN(list(case.widths), grid_size=case.grid_size, spline_order=case.order), edges)
    for layer in network.layers:
        layer.spline_scaler.fill_(1.0)
    return network


def _pykan(case: Case, edges: list[Edges]) -> Any:
    from kan import MultKAN

    with torch.random.fork_rng(devices=[]):  # since it seeds torch's generator
        network = MultKAN(list(case.widths), grid=case.grid_size, k=case.order, auto_save=False)
    for layer, edge in zip(network.act_fun, edges):
        layer.coef.copy_(edge.spline_weight.permute(1, 2, 0))
        layer.scale_base.copy_(edge.base_weight)
        layer.scale_sp.fill_(1.0)
    return network


@contender("pykan, speed mode", needs="kan", max_edges=1 << 25)
def pykan_speed(case: Case, edges: list[Edges]) -> nn.Module:
    """After its ``speed()``: without its symbolic part and without stored activations."""
    return _pykan(case, edges).speed()


def pykan_sparse(case: Case, edges: list[Edges]) -> nn.Module:
    """As its ``fit`` trains it: activations are stored, and the symbolic part is off."""
    network = _pykan(case, edges)
    network.symbolic_enabled = False
    return WithPenalty(network, lambda network: network.get_reg(PENALTY, L1, ENTROPY, 0.0, 0.0))


@contender("pykan", needs="kan", max_edges=1 << 17, sparse=pykan_sparse)
def pykan(case: Case, edges: list[Edges]) -> nn.Module:
    """As constructed."""
    return _pykan(case, edges)
