"""The list of contenders: networks that hold a case's weights and are timed side by side.

To add one, write another function in a file of your own, which ``python -m bench --add FILE.py`` loads:

from bench.suite.contenders import contender


@contender("my layer", needs="my_package")
def mine(case, edges):
    from my_package import MyKAN

    network = MyKAN(case.widths, grid_size=case.grid_size, spline_order=case.order)
    for layer, edge in zip(network.layers, edges):  # edge.spline_weight [G + k, in, out], edge.base_weight [in, out]
        layer.coefficients.copy_(edge.spline_weight.permute(1, 2, 0))
        layer.base.copy_(edge.base_weight)
    return network

A layer that can't hold splines says ``is_kan=False``: it is timed without being compared with float64. The other
properties are those of :class:`Contender`.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .cases import Case, Edges

NOT_INSTALLED = "not installed"
OURS = "fastkan"
MLP = "MLP, as many parameters"
Builder = Callable[[Case, "list[Edges]"], nn.Module]


class Contender(NamedTuple):
    """A network to compare.

    Args:
        name: in tables; variants of a package are named ``package, variant``.
        build: makes the network; ``build(case, edges)`` copies ``edges``, one for each layer, into
            its own parameters, so that all contenders compute one function. Called under ``no_grad``.
        needs: the import name of a package that it needs.
        is_kan: whether it computes that function, so that it can be compared with float64.
        compiled: whether it calls the compiler, which takes long (``--quick`` leaves it out).
        anchor: whether the others' times are divided by its time.
        max_edges: the largest N x in x out for which it is timed, if it allocates such tensors.
        sparse: like ``build``, of a module whose call returns the output and a penalty (see :class:`WithPenalty`);
            None if it has none.
        own_penalty: whether that penalty is another than pykan's with the weights ``L1`` and ``ENTROPY`` of
            :mod:`bench.suite.cases`, so that it can't be compared with float64.
        only: the modes that apply to it; None for all.
    """

    name: str
    build: Builder
    needs: str | None = None
    is_kan: bool = True
    compiled: bool = False
    anchor: bool = False
    max_edges: int | None = None
    sparse: Builder | None = None
    own_penalty: bool = False
    only: tuple[str, ...] | None = None

    @property
    def ours(self) -> bool:
        """Whether it is fastkan itself."""
        return is_ours(self.name)

    def why_not(self, case: Case) -> str | None:
        """Reason why it is not timed in a case, or None."""
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return NOT_INSTALLED
        if self.max_edges is not None and case.largest_edges > self.max_edges:
            return "left out: too slow and large for it"
        return None

    def takes(self, mode: str) -> bool:
        """Whether a mode applies to it."""
        return (self.only is None or mode in self.only) and (mode != "sparse" or self.sparse is not None)

    def make(self, case: Case, edges: list[Edges] | None = None, mode: str = "step") -> nn.Module:
        """The network for a mode, with the case's own weights unless others are given."""
        build = self.sparse if mode == "sparse" else self.build
        assert build is not None
        with torch.no_grad():
            return build(case, case.edges() if edges is None else edges)


def is_ours(name: str) -> bool:
    """Whether a contender of this name is fastkan itself."""
    return name.split(",")[0] == OURS


class WithPenalty(nn.Module):
    """A network whose call also returns a penalty, computed after the network's own call."""

    def __init__(self, network: nn.Module, penalty: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.penalty = network, penalty

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.network(x)
        return y, self.penalty(self.network)


CONTENDERS: list[Contender] = []


def contender(name: str, **properties: Any) -> Callable[[Builder], Builder]:
    """Enter the decorated builder as a :class:`Contender` with these properties.

    Raises:
        ValueError: if the name is taken.
    """

    def enter(build: Builder) -> Builder:
        if any(name == other.name for other in CONTENDERS):
            raise ValueError(f"there is a contender named {name!r} already")
        CONTENDERS.append(Contender(name, build, **properties))
        return build

    return enter


def load(module: str) -> list[Contender]:
    """Import a module that enters contenders, and return those.

    Args:
        module: a module's name, or the path of a file that ends in ``.py``.

    Raises:
        ValueError: if it can't be imported, or enters none.
    """
    before = len(CONTENDERS)
    try:
        if module.endswith(".py"):
            runpy.run_path(module)
        else:
            importlib.import_module(module)
    except Exception as failure:  # of any kind, since the file is the user's
        del CONTENDERS[before:]
        raise ValueError(f"--add {module}: {type(failure).__name__}: {failure}") from failure
    if len(CONTENDERS) == before:
        raise ValueError(f"--add {module}: it enters no contender; see bench/suite/contenders.py")
    return CONTENDERS[before:]
