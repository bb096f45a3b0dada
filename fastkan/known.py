"""What a layer knows of its knots, and when it has to look again."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkan_kernels import Basis, basis_of
from fastkan_kernels.routing import needs_composite


class KnownKnots:
    """The basis of some knots, read off their values once, and again when they have changed.

    Reading makes a GPU wait; asking whether somebody has written into them doesn't.
    """

    def __init__(self, knots: Tensor, order: int, base: str) -> None:
        self.order, self.base = order, base
        self.look(knots)

    def look(self, knots: Tensor) -> None:
        """Read the values."""
        self._basis = basis_of(knots, self.order, self.base)
        self._knots, self._version = knots, _version(knots)

    def basis(self, knots: Tensor) -> Basis:
        """Of ``knots``, which may be others than before, as in ``torch.func.functional_call``."""
        if torch.compiler.is_compiling():  # tracing can't read values, nor compiled code ask for versions
            return self._basis if self._knots is knots else Basis(self.order, self.base)
        if self._knots is not knots or self._version != _version(knots):
            if needs_composite(knots) is not None:  # the reference needs no more
                return Basis(self.order, self.base)
            self.look(knots)
        return self._basis


def _version(knots: Tensor) -> int:
    """How often it has been written into; in inference mode nobody counts."""
    return -1 if knots.is_inference() else knots._version
