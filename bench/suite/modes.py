"""The modes: what is timed of a network, and which of its values are compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..measure import Task
from .cases import Case

LAMB = 0.01  # weight of the sparsity terms in the loss
MIN_PINN_ORDER = 3  # with a lower order u_xx jumps at knots, or is 0
Network = Callable[[Tensor], Tensor]


class Subject:
    """A contender's network with a case's data; it has a method for each mode.

    Args:
        network: ``[N, in]`` to ``[N, out]``; in the mode ``sparse`` to that and a penalty.
        x: ``[N, in]``.
        upstream: ``[N, out]``.
    """

    def __init__(self, network: nn.Module, x: Tensor, upstream: Tensor) -> None:
        self.network, self.x, self.upstream = network, x, upstream
        self.parameters = list(network.parameters())

    def forward(self) -> None:
        with torch.no_grad():
            self.network(self.x)

    def step(self) -> None:
        self.network(self.x).backward(self.upstream)

    def sparse(self) -> None:
        y, penalty = self.network(self.x)
        torch.autograd.backward((y, penalty), (self.upstream, torch.full_like(penalty, LAMB)))

    def pinn(self) -> None:
        u, u_x, u_xx = derivatives(self.network, self.x.clone().requires_grad_())
        residual_loss(u, u_x, u_xx).backward()

    def clear(self) -> None:
        """Drop all gradients, as ``zero_grad`` does."""
        for parameter in self.parameters:
            parameter.grad = None

    def unseen(self) -> Subject:
        """The same network on a copy of the rows, for which it has cached nothing."""
        return Subject(self.network, self.x.clone(), self.upstream)

    def task(self, mode: str) -> Task:
        return Task(getattr(self, mode), self.clear)


class Probed(NamedTuple):
    """Values to compare: two tensors, and a scalar whose gradient with respect to the weights is the third."""

    output: Tensor
    gradient: Tensor
    loss: Tensor


Probe = Callable[[nn.Module, Tensor, Tensor, slice], Probed]


def probe_step(network: nn.Module, x: Tensor, upstream: Tensor, rows: slice) -> Probed:
    """Output and gradient with respect to the input of some rows, and the loss of these rows alone."""

    def loss_of(y: Tensor) -> Tensor:
        return (y[rows] * upstream[rows]).sum()

    (dx,) = torch.autograd.grad(loss_of(network(x)), x)
    y = network(x)  # once more, since a compiled network allows a single backward of each graph
    return Probed(y[rows], dx[rows], loss_of(y))


def probe_sparse(network: nn.Module, x: Tensor, upstream: Tensor, rows: slice) -> Probed:
    """The penalty of the whole batch, and its gradient with respect to the input."""
    (dx,) = torch.autograd.grad(network(x)[1], x)
    penalty = network(x)[1]
    return Probed(penalty, dx, penalty)


def probe_pinn(network: nn.Module, x: Tensor, upstream: Tensor, rows: slice) -> Probed:
    """u_xx and u_x of some rows, and the loss of these rows alone."""
    u, u_x, u_xx = (value[rows] for value in derivatives(network, x))
    return Probed(u_xx, u_x, residual_loss(u, u_x, u_xx))


def derivatives(network: Network, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first output u ``[N]``, its gradient u_x ``[N, in]``, and its second derivative with respect to the first
    input, u_xx ``[N]``; all with a graph."""
    u = network(x)[:, 0]
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x[:, 0].sum(), x, create_graph=True)
    return u, u_x, u_xx[:, 0]


def residual_loss(u: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
    """Loss of an equation like Burgers': mean of ``(u_xx + u u_t)^2``, where t is the last input."""
    return (u_xx + u * u_x[:, -1]).square().mean()


class Mode(NamedTuple):
    """Something to time.

    Args:
        name: of the method of :class:`Subject`, and in results.
        heading: in tables.
        words: in titles.
        errors: headings of the errors: of two tensors, and of the gradient with respect to the weights.
        probe: computes the values to compare.
        shown_with: the mode whose table and comparison this one shares; None for its own.
    """

    name: str
    heading: str
    words: str
    errors: tuple[str, str, str]
    probe: Probe | None = None
    shown_with: str | None = None

    @property
    def table(self) -> str:
        """Name of the mode whose table and comparison this one shares."""
        return self.shown_with or self.name

    def why_not(self, case: Case) -> str | None:
        """Reason why the mode does not apply to a case, or None."""
        if self.name == "pinn" and case.order < MIN_PINN_ORDER:
            return f"a second derivative needs order {MIN_PINN_ORDER} or above"
        return None


_PLAIN = ("err y", "err dx", "err dW")
MODES = {
    mode.name: mode
    for mode in (
        Mode("forward", "fwd", "Forward alone", _PLAIN, shown_with="step"),
        Mode("step", "fwd+bwd", "Forward and backward", _PLAIN, probe_step),
        Mode("sparse", "sparse", "Training step with sparsity terms", ("err reg", "err dx", "err dW"), probe_sparse),
        Mode("pinn", "PINN", "PINN step", ("err u_xx", "err u_x", "err dW"), probe_pinn),
    )
}
PLAIN = "step"  # the mode in which every network is compared
DEFAULT = ("forward", "step")


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The modes of these names, in the order of :data:`MODES`; ``all`` is all of them, None the default.

    Raises:
        ValueError: for another name.
    """
    for name in names or ():
        if name not in (*MODES, "all"):
            raise ValueError(f"--modes takes {', '.join(MODES)} or all; got {name!r}")
    if not names:
        return DEFAULT
    return tuple(mode for mode in MODES if mode in names or "all" in names)
