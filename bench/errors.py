"""How wrong a rival is: against the plain recursion in float64, with the same weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .cases import Case
from .rivals.baselines import plain_layers

BOUND = 1e-4  # of float32, relative; beyond it a rival gets no time
ROWS = 512  # of the batch are compared


class Error(NamedTuple):
    """Largest deviation divided by the largest true value."""

    output: float
    gradient: float  # by the input

    @property
    def too_large(self) -> bool:
        return not (self.output <= BOUND and self.gradient <= BOUND)  # a NaN is too large


class Oracle:
    """The true outputs and input gradients of a case, on some of its rows: each row's stand alone."""

    def __init__(self, case: Case) -> None:
        self.x, self.upstream = case.inputs(), case.upstream()
        self.rows = slice(None, None, -(-case.rows // ROWS))
        network = nn.Sequential(*plain_layers(case, case.edges(), torch.float64))
        self.y, self.dx = _values(network, self.x[self.rows].double(), self.upstream[self.rows].double())

    def error(self, network: nn.Module) -> Error:
        """Of a network that holds the case's weights, run on the whole batch."""
        y, dx = _values(network, self.x, self.upstream)
        return Error(_deviation(y[self.rows], self.y), _deviation(dx[self.rows], self.dx))


def _values(network: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = network(x)
    (dx,) = torch.autograd.grad(y, x, upstream)
    return y.detach(), dx


def _deviation(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).abs().max() / truth.abs().max()).item()
