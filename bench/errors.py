"""How wrong a rival is: against the plain recursion in float64, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .cases import ENTROPY, L1, Case, Edges
from .modes import MODES, PLAIN
from .plain import KANLinear as PlainKANLinear
from .rivals.baselines import plain_layers

BOUND = 1e-4  # of float32, relative; beyond it a rival gets no time
ROWS = 512  # of the batch are compared
INPUT_FLOOR, SHARE_FLOOR = 0.1, 1e-4  # of pykan 0.2.8: added to an input's spread, and to a share before its logarithm


class Error(NamedTuple):
    """Largest deviation divided by the largest true value; None where it was not compared.

    Args:
        output: of what the mode is about: y, the penalty, or u_xx.
        gradient: by the input, of y or the penalty; or u_x.
        weights: of the loss's slope along a direction in the space of all weights.
    """

    output: float
    gradient: float
    weights: float | None = None

    @property
    def too_large(self) -> bool:
        return not all(found <= BOUND for found in self if found is not None)  # a NaN is too large


class Truth(NamedTuple):
    """In float64, of one mode."""

    output: Tensor
    gradient: Tensor
    slope: float  # of the loss from the case's weights towards ``moved``, times that distance
    moved: list[Edges]


class Oracle:
    """The true values of a case, on some of its rows where each row's stand alone."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.x, self.upstream = case.inputs(), case.upstream()
        self.rows = slice(None, None, -(-case.rows // ROWS))
        self.truth = cache(self._truth)

    @property
    def y(self) -> Tensor:
        """The true outputs of the compared rows."""
        return self.truth(PLAIN).output

    def error(
        self, network: nn.Module, moved: Callable[[list[Edges]], nn.Module] | None = None, mode: str = PLAIN
    ) -> Error:
        """Of a network that holds the case's weights, run on the whole batch.

        Args:
            moved: makes the same network with other weights. However a network lays out its weights, the difference
                between its parameters and this one's is a direction, along which the slope of its loss is known.
            mode: a name in :data:`bench.modes.MODES` that has a probe.
        """
        truth = self.truth(mode)
        probe = MODES[mode].probe
        assert probe is not None
        found = probe(network, self.x.clone().requires_grad_(), self.upstream, self.rows)
        output, gradient = _deviation(found.output, truth.output), _deviation(found.gradient, truth.gradient)
        if moved is None:
            return Error(output, gradient)
        slope = 0.0
        both = zip(network.parameters(), moved(truth.moved).parameters())
        pairs = [(start, end) for start, end in both if start.requires_grad]
        gradients = torch.autograd.grad(found.loss, [start for start, _ in pairs], allow_unused=True)
        for (start, end), towards in zip(pairs, gradients):
            if towards is not None:
                slope += ((end.detach().double() - start.detach().double()) * towards.double()).sum().item()
        return Error(output, gradient, abs(slope / truth.slope - 1))

    def _truth(self, mode: str) -> Truth:
        edges, probe = self.case.edges(), MODES[mode].probe
        assert probe is not None
        layers = plain_layers(self.case, edges, torch.float64)
        rows = slice(None) if mode == "sparse" else self.rows  # a spread is of all rows
        x = self.x[rows].double().requires_grad_()
        network = Penalised(layers) if mode == "sparse" else nn.Sequential(*layers)
        found = probe(network, x, self.upstream[rows].double(), slice(None))
        weights = [weight for layer in layers for weight in (layer.spline_weight, layer.base_weight)]
        flat = iter(torch.autograd.grad(found.loss, weights))
        slopes = [Edges(next(flat).permute(2, 1, 0), next(flat).t()) for _ in layers]
        moved = _moved(edges, slopes)
        slope = sum(
            ((end.double() - start.double()) * towards).sum().item()
            for trio in zip(moved, edges, slopes)
            for end, start, towards in zip(*trio)
        )
        return Truth(found.output.detach(), found.gradient.detach(), slope, moved)


def _moved(edges: list[Edges], slopes: list[Edges]) -> list[Edges]:
    """Weights some way off, about along the gradient: there no wrong weight's share cancels another's."""
    generator = torch.Generator().manual_seed(0)

    def size(of: list[Edges]) -> float:
        return sum(each.double().square().sum().item() for layer in of for each in layer) ** 0.5

    scale = size(edges) / size(slopes)
    return [
        Edges(
            *(
                start + (scale * towards * 2 * torch.rand(start.shape, generator=generator)).float()
                for start, towards in zip(*pair)
            )
        )
        for pair in zip(edges, slopes)
    ]


class Penalised(nn.Module):
    """Plain layers whose call gives output and pykan's penalty of their edges, by definition: an edge's spread over
    the batch is ``sqrt(w^T C w)``, where C is the covariance of what its weights multiply."""

    def __init__(self, layers: list[PlainKANLinear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for layer in self.layers:
            assert isinstance(layer, PlainKANLinear)
            features = torch.cat([layer.splines(x), nn.functional.silu(x).unsqueeze(-1)], 2)
            centred = features - features.mean(0)
            covariance = torch.einsum("nib,nic->ibc", centred, centred) / (len(x) - 1)
            weight = torch.cat([layer.spline_weight, layer.base_weight.unsqueeze(-1)], 2)
            spread = torch.einsum("oib,ibc,oic->io", weight, covariance, weight).sqrt()
            total = total + _penalty(spread / (x.std(0) + INPUT_FLOOR).unsqueeze(1))
            x = layer(x)
        return x, total


def _penalty(sizes: Tensor) -> Tensor:
    entropies = sizes.new_zeros(())
    for along in (0, 1):
        share = sizes / (sizes.sum(along, keepdim=True) + 1)
        entropies = entropies - (share * (share + SHARE_FLOOR).log2()).sum(along).mean()
    return L1 * sizes.sum() + ENTROPY * entropies


def _deviation(value: Tensor, truth: Tensor) -> float:
    return ((value.detach().double() - truth).abs().max() / truth.abs().max()).item()
