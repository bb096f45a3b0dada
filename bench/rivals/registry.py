"""The list of rivals, and how a function becomes one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..cases import Case, Edges

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
    """

    name: str
    build: Builder
    needs: str | None = None
    is_kan: bool = True
    compiled: bool = False
    anchor: bool = False
    most_edges: int | None = None

    def why_not(self, case: Case) -> str | None:
        """Why it sits this case out, or None."""
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return "not installed"
        if self.most_edges is not None and case.largest_edges > self.most_edges:
            return "left out: too slow and large for it"
        return None

    def make(self, case: Case) -> nn.Module:
        """The network, ready to be called."""
        with torch.no_grad():
            return self.build(case, case.edges())


RIVALS: list[Rival] = []


def rival(name: str, **properties) -> Callable[[Builder], Builder]:
    """Enter the decorated builder as a :class:`Rival` of these properties."""

    def enter(build: Builder) -> Builder:
        RIVALS.append(Rival(name, build, **properties))
        return build

    return enter
