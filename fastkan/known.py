"""Facts about tensors' values, which are never older than the values.

Writes by ``.data``, NumPy, ``torch.distributed`` or another thread change no version counter, so a fact is kept with a
copy of the values that it was read from, and holds only while they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import Basis, basis_of
from fastkan_kernels.cpu.small import has_values

PLAIN = (Tensor, nn.Parameter)


class KnownKnots:
    """The basis of a layer's knots.

    On a CPU it is read again when their values are others. To read a GPU's values makes the host wait, so there a
    counted write is noticed at once, and any other one in two steps: :meth:`doubt` makes every result of the
    very call NaN, on the GPU, so that no wrong number comes out, and a later call reads them again.
    """

    def __init__(self, knots: Tensor, order: int, base: str) -> None:
        self.order, self.base = order, base
        # one attribute, so that threads see all of it or nothing: the knots, a copy, their version and the basis
        self._known: tuple[Tensor, Tensor, int, Basis] | None = None
        self._notice: tuple[Tensor, torch.cuda.Event] | None = None
        self.look(knots)

    def look(self, knots: Tensor) -> Basis:
        """Read the values."""
        basis = basis_of(knots, self.order, self.base)
        self._known, self._notice = (knots, knots.detach().clone(), _version(knots), basis), None
        return basis

    def basis(self, knots: Tensor) -> Basis:
        """The basis of ``knots``, which may be others than before, as in ``torch.func.functional_call``."""
        known = self._known
        if torch.compiler.is_compiling():  # tracing can't read values; the compiled code has its doubt()
            return known[3] if known is not None and known[0] is knots else Basis(self.order, self.base)
        if knots.requires_grad or not has_values(knots):  # the reference needs no more
            return Basis(self.order, self.base)
        if known is not None:
            if knots.is_cpu:
                if _same([known[1]], [knots]):
                    return known[3]
            elif known[0] is knots and known[2] == _version(knots) and not self._was_noticed():
                return known[3]
        return self.look(knots)

    def doubt(self, knots: Tensor, basis: Basis) -> Tensor | None:
        """A number to add to what is computed with: 0 or, if ``basis`` was read before and is not theirs any more, NaN.

        None where no doubt is possible: on a CPU the knots have just been compared, and of knots that are not uniform
        nothing was read.
        """
        compiling = torch.compiler.is_compiling()
        if not basis.uniform or self._known is None or not (compiling or knots.is_cuda):
            return None
        same = (knots == self._known[1]).all()
        if not compiling and not torch.cuda.is_current_stream_capturing():
            self._notify(same)
        return torch.where(same, 0.0, torch.nan)

    def _notify(self, same: Tensor) -> None:
        """Send the answer to the host, which will find it there at some later call."""
        if self._notice is None:
            event = torch.cuda.Event()
            self._notice = torch.ones((), dtype=torch.bool, pin_memory=True), event
        elif not self._notice[1].query():
            return
        answer, event = self._notice
        answer.copy_(same, non_blocking=True)
        event.record(torch.cuda.current_stream(same.device))

    def _was_noticed(self) -> bool:
        if self._notice is None or torch.cuda.is_current_stream_capturing():
            return False
        answer, event = self._notice
        return event.query() and not bool(answer)

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks for itself."""
        return {**self.__dict__, "_known": None, "_notice": None}


class Fact:
    """An answer about some tensors' values, asked again when they are others.

    Compiled code, functorch, GPUs, tracers and whatever is being trained get ``otherwise``, which must be right for any
    values.
    """

    def __init__(self, ask: Callable[..., bool], otherwise: bool) -> None:
        self._ask, self._otherwise = ask, otherwise
        # one attribute, so that threads see all of it or nothing: copies of the tensors, and the answer
        self._known: tuple[list[Tensor | None], bool] | None = None

    def __call__(self, *tensors: Tensor | None) -> bool:
        if not has_values():
            return self._otherwise
        for tensor in tensors:
            if tensor is not None and (tensor.requires_grad or not tensor.is_cpu or type(tensor) not in PLAIN):
                return self._otherwise
        known = self._known
        if known is not None and _same(known[0], tensors):
            return known[1]
        answer = self._ask(*tensors)
        self._known = [None if t is None else t.detach().clone() for t in tensors], answer
        return answer

    def __getstate__(self) -> dict[str, Any]:
        """A copy asks for itself."""
        return {**self.__dict__, "_known": None}


def _version(tensor: Tensor) -> int:
    """How often it has been written into; inference tensors don't count that."""
    return -1 if tensor.is_inference() else tensor._version


def _same(copies: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> bool:
    """Whether all values are those of the copies."""
    try:
        for copy, tensor in zip(copies, tensors, strict=True):
            if copy is None or tensor is None:
                if copy is not tensor:
                    return False
            elif not torch.equal(copy, tensor):
                return False
    except RuntimeError:  # of another dtype or device
        return False
    return True
