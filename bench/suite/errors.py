"""Errors of a contender: its values beside those of the tests' float64 oracle, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import oracle
import torch
from torch import Tensor, nn

from .cases import ENTROPY, L1, Case, Edges
from .modes import MODES, PLAIN

BOUND = 1e-4  # relative, for float32; beyond it a contender gets no time
ROWS = 512  # rows of the batch that are compared
INPUT_FLOOR, SHARE_FLOOR = 0.1, 1e-4  # in pykan 0.2.8, added to an input's std, and to a share before its logarithm


class Error(NamedTuple):
    """Largest deviation divided by the largest true value; None where it was not compared.

    Args:
        output: of the mode's values: y, the penalty, or u_xx.
        gradient: of the gradient of y or the penalty with respect to the input; or of u_x.
        weights: of the loss's slope along a direction in the space of all weights.
    """

    output: float
    gradient: float
    weights: float | None = None

    @property
    def too_large(self) -> bool:
        return not all(found <= BOUND for found in self if found is not None)  # a NaN is too large


class Truth(NamedTuple):
    """Float64 values of one mode."""

    output: Tensor
    gradient: Tensor
    slope: float  # of the loss from the case's weights towards ``moved``, times that distance
    moved: list[Edges]


class Oracle:
    """The true values of a case; of some of its rows where the values of each row depend on that row alone."""

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
        """Errors of a network that holds the case's weights, run on the whole batch.

        Args:
            moved: makes the same network with other weights. In whichever layout a network holds its weights, the
                difference between the parameters of the two is a direction, along which the slope of the loss is known.
            mode: a name in :data:`bench.suite.modes.MODES` that has a probe.
        """
        truth, probe = self.truth(mode), MODES[mode].probe
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
        probe = MODES[mode].probe
        assert probe is not None
        rows = slice(None) if mode == "sparse" else self.rows  # the penalty's statistics are those of all rows
        network = Exact(self.case, penalised=mode == "sparse")
        found = probe(network, self.x[rows].double().requires_grad_(), self.upstream[rows].double(), slice(None))
        weights = list(network.weights)
        slopes = torch.autograd.grad(found.loss, weights)
        moved = _moved([weight.detach() for weight in weights], slopes)
        slope = sum(((end - start) * towards).sum().item() for end, start, towards in zip(moved, weights, slopes))
        edges = [Edges(weight[:-1].float(), weight[-1].float()) for weight in moved]
        return Truth(found.output.detach(), found.gradient.detach(), slope, edges)


def _moved(weights: list[Tensor], slopes: tuple[Tensor, ...]) -> list[Tensor]:
    """Other weights, roughly along the gradient, so that errors of single weights don't cancel in the slope."""
    generator = torch.Generator().manual_seed(0)
    norms = [torch.stack([each.square().sum() for each in of]).sum().sqrt() for of in (weights, slopes)]
    return [
        (start + norms[0] / norms[1] * towards * 2 * torch.rand(start.shape, generator=generator)).float().double()
        for start, towards in zip(weights, slopes)
    ]


class Exact(nn.Module):
    """A case's network on the oracle's features, float64; with pykan's penalty if asked for.

    Its weights are ``[G + k + 1, in, out]`` for each layer, the base function's last. The standard deviation of an
    edge over the batch is ``sqrt(w^T C w)``, where C is the covariance of the features that its weights multiply.
    """

    def __init__(self, case: Case, penalised: bool = False) -> None:
        super().__init__()
        steps = np.arange(-case.order, case.grid_size + case.order + 1)
        self.knots, self.order, self.penalised = -1 + steps * (2 / case.grid_size), case.order, penalised
        weights = [torch.cat([edge.spline_weight, edge.base_weight.unsqueeze(0)]) for edge in case.edges()]
        self.weights = nn.ParameterList(weight.double() for weight in weights)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for weight in self.weights:
            features = _Features.apply(x, self.knots, self.order, 0)
            if self.penalised:
                centred = features - features.mean(0)
                covariance = torch.einsum("nbi,nci->ibc", centred, centred) / (len(x) - 1)
                std = torch.einsum("bio,ibc,cio->io", weight, covariance, weight).sqrt()
                total = total + _penalty(std / (x.std(0) + INPUT_FLOOR).unsqueeze(1))
            x = torch.einsum("nbi,bio->no", features, weight)
        return (x, total) if self.penalised else x


class _Features(torch.autograd.Function):
    """The oracle's derivatives of all features, ``[N, G + k + 1, in]``."""

    @staticmethod
    def forward(ctx, x: Tensor, knots: np.ndarray, order: int, derivative: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.others = knots, order, derivative
        points = x.detach().numpy()
        splines = oracle.splines(points, np.tile(knots, (points.shape[1], 1)), order, derivative)
        return torch.from_numpy(np.concatenate([splines, oracle.silu(points, derivative)[:, None]], 1))

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        knots, order, derivative = ctx.others
        return (g * _Features.apply(x, knots, order, derivative + 1)).sum(1), None, None, None


def _penalty(sizes: Tensor) -> Tensor:
    entropies = sizes.new_zeros(())
    for along in (0, 1):
        share = sizes / (sizes.sum(along, keepdim=True) + 1)
        entropies = entropies - (share * (share + SHARE_FLOOR).log2()).sum(along).mean()
    return L1 * sizes.sum() + ENTROPY * entropies


def _deviation(value: Tensor, truth: Tensor) -> float:
    return ((value.detach().double() - truth).abs().max() / truth.abs().max()).item()
