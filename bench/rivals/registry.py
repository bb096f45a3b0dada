"""The list of rivals, and how a function becomes one."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..cases import Case, Edges

NOT_INSTALLED = "not installed"
Builder = Callable[[Case, "list[Edges]"], nn.Module]


class Rival(NamedTuple):
    """A network to compare.

    Args:
        name: what the table calls it.
        build: makes the network; ``build(case, edges)`` copies ``edges``, one for each layer, into
            its own parameters, so that all rivals compute one function. Called under ``no_grad``.
        needs: the import name of a package that it needs.
        is_kan: whether it computes that function, so that its error says something.
        compiled: whether it calls the compiler, which takes long (``--quick`` leaves it out).
        anchor: whether the others' times are divided by its time.
        most_edges: the largest N x in x out that it is asked to do, if it makes such tensors.
        sparse: like ``build``, of a module whose call gives the output and a penalty (see :class:`WithPenalty`);
            None if it has none.
        own_penalty: whether that is another penalty than pykan's with the weights ``L1`` and ``ENTROPY`` of
            :mod:`bench.cases`, so that float64 can't judge it.
        only: the modes in which it means anything; None: all.
    """

    name: str
    build: Builder
    needs: str | None = None
    is_kan: bool = True
    compiled: bool = False
    anchor: bool = False
    most_edges: int | None = None
    sparse: Builder | None = None
    own_penalty: bool = False
    only: tuple[str, ...] | None = None

    @property
    def ours(self) -> bool:
        """Whether it is fastkan itself."""
        return is_ours(self.name)

    def why_not(self, case: Case) -> str | None:
        """Why it sits this case out, or None."""
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return NOT_INSTALLED
        if self.most_edges is not None and case.largest_edges > self.most_edges:
            return "left out: too slow and large for it"
        return None

    def takes(self, mode: str) -> bool:
        """Whether there is anything to time in a mode."""
        return (self.only is None or mode in self.only) and (mode != "sparse" or self.sparse is not None)

    def make(self, case: Case, edges: list[Edges] | None = None, mode: str = "step") -> nn.Module:
        """The network for a mode, ready to be called; with other weights than the case's own, if given."""
        build = self.sparse if mode == "sparse" else self.build
        assert build is not None
        with torch.no_grad():
            return build(case, case.edges() if edges is None else edges)


def is_ours(name: str) -> bool:
    """Whether a rival of this name is fastkan itself."""
    return name.split(",")[0] == "fastkan"


class WithPenalty(nn.Module):
    """A network whose call also gives a penalty, which is asked for right after the network's own call."""

    def __init__(self, network: nn.Module, penalty: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.penalty = network, penalty

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.network(x)
        return y, self.penalty(self.network)


RIVALS: list[Rival] = []


def rival(name: str, **properties) -> Callable[[Builder], Builder]:
    """Enter the decorated builder as a :class:`Rival` of these properties.

    Raises:
        ValueError: if there is a rival of this name.
    """

    def enter(build: Builder) -> Builder:
        if any(name == other.name for other in RIVALS):
            raise ValueError(f"there is a rival named {name!r} already")
        RIVALS.append(Rival(name, build, **properties))
        return build

    return enter


def load(module: str) -> list[Rival]:
    """Import what enters rivals, and return those.

    Args:
        module: a module's name, or the path of a file that ends in ``.py``.

    Raises:
        ValueError: if it can't be imported, or enters none.
    """
    before = len(RIVALS)
    try:
        if module.endswith(".py"):
            runpy.run_path(module)
        else:
            importlib.import_module(module)
    except Exception as failure:  # whatever stands in it
        del RIVALS[before:]
        raise ValueError(f"--add {module}: {type(failure).__name__}: {failure}") from failure
    if len(RIVALS) == before:
        raise ValueError(f"--add {module}: it enters no rival; see bench/rivals/__init__.py")
    return RIVALS[before:]
