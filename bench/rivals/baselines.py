"""What a KAN layer is measured against: a network of as many parameters, its bare matrix products,
and the layer as it is usually written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cases import Case, Edges
from ..plain import KANLinear as PlainKANLinear
from .registry import WithPenalty, rival


def lasso(case: Case, edges: list[Edges]) -> nn.Module:
    """The MLP with what usually makes one sparse: the sum of all weights' sizes."""
    return WithPenalty(mlp(case, edges), lambda network: sum(weight.abs().sum() for weight in network.parameters()))


@rival("MLP, as many parameters", is_kan=False, anchor=True, sparse=lasso, own_penalty=True)
def mlp(case: Case, edges: list[Edges]) -> nn.Module:
    """For I-H-O: ``Linear(I, H (G+k+1))``, SiLU, ``Linear(H (G+k+1), O)``, no biases."""
    inputs, hidden, outputs = case.widths
    wide = hidden * case.features
    return nn.Sequential(nn.Linear(inputs, wide, bias=False), nn.SiLU(), nn.Linear(wide, outputs, bias=False))


@rival("bare matrix products", is_kan=False, only=("forward", "step"))
def products(case: Case, edges: list[Edges]) -> nn.Module:
    """The products of dense KAN layers on features that are there already."""
    return BareProducts(case)


@rival("plain Cox-de Boor")
def plain(case: Case, edges: list[Edges]) -> nn.Module:
    """The baseline layer, eager."""
    return nn.Sequential(*plain_layers(case, edges, torch.float32))


def plain_layers(case: Case, edges: list[Edges], dtype: torch.dtype) -> list[PlainKANLinear]:
    """Baseline layers that hold ``edges``, in any precision."""
    return [
        PlainKANLinear(inputs, outputs, case.grid_size, case.order, dtype=dtype).load(*edge)
        for (inputs, outputs), edge in zip(case.layers, edges)
    ]


class BareProducts(nn.Module):
    """``[N, I (G+k+1)] @ [I (G+k+1), O]`` for each layer; backward both gradients of each, and the
    weight's alone for the first, as in a training step."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        rows = case.rows
        sizes = [(inputs * case.features, outputs) for inputs, outputs in case.layers]
        self.features = [torch.rand(rows, wide) for wide, _ in sizes]
        self.upstream = [torch.randn(rows, outputs) for _, outputs in sizes[:-1]]
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
        upstream = [*ctx.upstream, last]
        for layer, (psi, g, weight) in enumerate(zip(ctx.features, upstream, ctx.saved_tensors)):
            gradients.append(psi.t() @ g)
            if layer:
                g @ weight.t()
        return None, None, *gradients
