"""What is known of tensors' values, and when one has to look again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import Basis, basis_of
from fastkan_kernels.cpu.small import has_values
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

    def __getstate__(self) -> dict[str, Any]:
        """A copy's knots count from the start."""
        return {**self.__dict__, "_version": None}


class Fact:
    """What ``ask`` says of some tensors' values, asked once, and again when they are others or have changed.

    Compiled code, functorch, what others trace and whatever is being trained get ``otherwise``, which must be right for
    any values.
    """

    def __init__(self, ask: Callable[..., bool], otherwise: bool) -> None:
        self._ask, self._otherwise = ask, otherwise
        # one attribute, so that threads see all of it or nothing
        self._known: tuple[list[tuple[Tensor | None, int]], bool] | None = None

    def __call__(self, *tensors: Tensor | None) -> bool:
        if torch.compiler.is_compiling():
            return self._otherwise
        known = self._known
        if known is not None and _same(known[0], tensors):
            return known[1]
        marked: list[tuple[Tensor | None, int]] = []
        for tensor in tensors:
            if tensor is None:
                marked.append((None, 0))
            elif tensor.requires_grad or tensor.is_inference():  # of the latter nobody counts what is written
                return self._otherwise
            else:
                marked.append((tensor, tensor._version))
        if any(t is not None and (t.is_meta or needs_composite(t) or not has_values(t)) for t in tensors):
            return self._otherwise
        answer = self._ask(*tensors)
        self._known = marked, answer
        return answer

    def __getstate__(self) -> dict[str, Any]:
        """A copy's tensors count from the start."""
        return {**self.__dict__, "_known": None}


def _version(tensor: Tensor) -> int:
    """How often it has been written into; in inference mode nobody counts."""
    return -1 if tensor.is_inference() else tensor._version


def _same(marked: list[tuple[Tensor | None, int]], tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether these are the tensors, and as they were."""
    for (held, version), tensor in zip(marked, tensors, strict=True):
        if tensor is not held:
            return False
        if tensor is not None and (tensor._version != version or tensor.requires_grad):
            return False
    return True
