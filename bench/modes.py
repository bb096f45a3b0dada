"""The modes: what is timed of a network, and what of it is compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .cases import Case
from .measure import Task

LAMB = 0.01  # what the sparsity terms count beside the loss
LOWEST_PINN_ORDER = 3  # below it u_xx jumps at knots, or is 0
Network = Callable[[Tensor], Tensor]


class Subject:
    """A rival's network with a case's input and upstream gradient, and a method for each mode.

    Args:
        network: ``[N, in]`` to ``[N, out]``; for the mode ``sparse`` to that and a penalty.
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
        """As ``zero_grad`` does."""
        for parameter in self.parameters:
            parameter.grad = None

    def unseen(self) -> Subject:
        """The same network with rows that it has not met, so that what it keeps of known ones is made anew."""
        return Subject(self.network, self.x.clone(), self.upstream)

    def task(self, mode: str) -> Task:
        return Task(getattr(self, mode), self.clear)


class Probed(NamedTuple):
    """What can be compared: two tensors, and a scalar whose gradient by the weights is the third thing."""

    output: Tensor
    gradient: Tensor
    loss: Tensor


Probe = Callable[[nn.Module, Tensor, Tensor, slice], Probed]


def probe_step(network: nn.Module, x: Tensor, upstream: Tensor, rows: slice) -> Probed:
    """Output and gradient by the input of some rows, with a loss of these rows alone."""

    def loss_of(y: Tensor) -> Tensor:
        return (y[rows] * upstream[rows]).sum()

    (dx,) = torch.autograd.grad(loss_of(network(x)), x)
    y = network(x)  # again: a compiled network's graph may be gone back through once
    return Probed(y[rows], dx[rows], loss_of(y))


def probe_sparse(network: nn.Module, x: Tensor, upstream: Tensor, rows: slice) -> Probed:
    """The penalty, which has no rows, and its gradient by the input."""
    (dx,) = torch.autograd.grad(network(x)[1], x)
    penalty = network(x)[1]
    return Probed(penalty, dx, penalty)


def probe_pinn(network: nn.Module, x: Tensor, upstream: Tensor, rows: slice) -> Probed:
    """u_xx and u_x of some rows, with a loss of these rows alone."""
    u, u_x, u_xx = (value[rows] for value in derivatives(network, x))
    return Probed(u_xx, u_x, residual_loss(u, u_x, u_xx))


def derivatives(network: Network, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first output u ``[N]``, its gradient u_x ``[N, in]`` and its second derivative by the first input, u_xx
    ``[N]``; all with a graph."""
    u = network(x)[:, 0]
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x[:, 0].sum(), x, create_graph=True)
    return u, u_x, u_xx[:, 0]


def residual_loss(u: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
    """Of an equation like Burgers': mean of ``(u_xx + u u_t)^2``, where t is the last input."""
    return (u_xx + u * u_x[:, -1]).square().mean()


class Mode(NamedTuple):
    """Something to time.

    Args:
        name: of the :class:`Subject`'s method, and in JSON.
        heading: in tables.
        words: in titles.
        errors: headings of what is compared with float64: two tensors and the weights' gradient.
        probe: makes what is compared.
        shown_with: the mode in whose table it stands, and whose comparison counts for it; None: itself.
    """

    name: str
    heading: str
    words: str
    errors: tuple[str, str, str]
    probe: Probe | None = None
    shown_with: str | None = None

    @property
    def table(self) -> str:
        """Name of the mode in whose table it stands, and whose comparison counts for it."""
        return self.shown_with or self.name

    def why_not(self, case: Case) -> str | None:
        """Why no network is timed in a case, or None."""
        if self.name == "pinn" and case.order < LOWEST_PINN_ORDER:
            return f"a second derivative asks for order {LOWEST_PINN_ORDER} and above"
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
PLAIN = "step"  # its comparison is made of every network
DEFAULT = ("forward", "step")


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The modes of these names, in :data:`MODES`' order; ``all`` is all of them, None the default.

    Raises:
        ValueError: for another name.
    """
    for name in names or ():
        if name not in (*MODES, "all"):
            raise ValueError(f"--modes takes {', '.join(MODES)} or all; got {name!r}")
    if not names:
        return DEFAULT
    return tuple(mode for mode in MODES if mode in names or "all" in names)
