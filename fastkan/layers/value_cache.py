"""Facts about tensors' values, which are never older than the values.

Writes by ``.data``, NumPy, ``torch.distributed`` or another thread change no version counter, so a fact is kept with a
copy of the values that it was read from, and holds only while they are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import Basis, Pieces, basis_of, has_values, pieces_of

PLAIN = (Tensor, nn.Parameter)
MAX_LISTED = 64  # numbers, up to which lists are compared more quickly than tensors


class ReadKnots:
    """What was read of some knots.

    Args:
        knots: the tensor itself.
        basis: theirs.
    """

    def __init__(self, knots: Tensor, basis: Basis) -> None:
        self.knots, self.basis, self.version = knots, basis, _version(knots)
        self.copy = knots.detach().clone()
        self.values = _values(self.copy)
        self._pieces: Pieces | None = None

    def pieces(self) -> Pieces:
        """Tables of the splines on these values; for knots on a CPU."""
        if self._pieces is None:
            self._pieces = pieces_of(self.copy, self.basis)
        return self._pieces


class Notice:
    """An answer on its way from a GPU to the host, which looks for it at later calls and never waits."""

    def __init__(self) -> None:
        self.answer = torch.zeros((), dtype=torch.bool, pin_memory=True)
        self.event = torch.cuda.Event()

    def send(self, answer: Tensor) -> None:
        """Send an answer, unless the last one is still on its way."""
        if self.event.query():
            self.answer.copy_(answer, non_blocking=True)
            self.event.record(torch.cuda.current_stream(answer.device))

    def says_yes(self) -> bool:
        """Whether an answer has come, and is yes."""
        return not torch.cuda.is_current_stream_capturing() and self.event.query() and bool(self.answer)


class KnotMetadata:
    """The basis of a layer's knots.

    On a CPU it is read again when their values are others. To read a GPU's values makes the host wait, so there a
    counted write is noticed at once, and any other one in two steps: :meth:`checked` makes every result of the
    very call NaN, on the GPU, so that no wrong number comes out, and a later call reads them again.
    """

    def __init__(self, knots: Tensor, order: int, base: str) -> None:
        self.order, self.base = order, base
        self._known: ReadKnots | None = None  # one attribute, so that threads see all of it or nothing
        self._notice: Notice | None = None
        self.look(knots)

    def look(self, knots: Tensor) -> ReadKnots:
        """Read the values."""
        known = ReadKnots(knots, basis_of(knots, self.order, self.base))
        self._known, self._notice = known, None
        return known

    def read(self, knots: Tensor) -> ReadKnots | None:
        """What is known of ``knots``, which may be others than before, as in ``torch.func.functional_call``; None where
        nobody may look."""
        if knots.requires_grad or not has_values(knots):  # the reference needs no more
            return None
        known = self._known
        if known is not None:
            if knots.is_cpu:
                if _are_values(known.values, knots):
                    return known
            elif (
                known.knots is knots
                and known.version == _version(knots)
                and not (self._notice and self._notice.says_yes())
            ):
                return known
        return self.look(knots)

    def basis(self, knots: Tensor) -> Basis:
        """The basis of ``knots``."""
        return self.basis_and_pieces(knots)[0]

    def basis_and_pieces(self, knots: Tensor) -> tuple[Basis, Callable[[], Pieces] | None]:
        """The basis of ``knots``, and what returns their tables, or None where they are not on a CPU."""
        if torch.compiler.is_compiling():  # tracing can't read values; the compiled code calls checked()
            known = self._known
            return known.basis if known is not None and known.knots is knots else Basis(self.order, self.base), None
        read = self.read(knots)
        if read is None:
            return Basis(self.order, self.base), None
        return read.basis, read.pieces if knots.is_cpu else None

    def checked(
        self, knots: Tensor, basis: Basis, weight: Tensor, base_weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The splines' and the base function's weights, one of them NaN where ``basis`` is that of other knots.

        The host does not wait for that. On a CPU the knots have just been compared, and of knots that are not uniform
        nothing was read, so that no doubt is possible.
        """
        compiling = torch.compiler.is_compiling()
        if not basis.uniform or self._known is None or not (compiling or knots.is_cuda):
            return weight, base_weight
        changed = (knots != self._known.copy).any()
        if not compiling and not torch.cuda.is_current_stream_capturing():
            self._notice = self._notice or Notice()
            self._notice.send(changed)
        if base_weight is None:
            return weight.masked_fill(changed, torch.nan), None
        return weight, base_weight.masked_fill(changed, torch.nan)  # which is the smaller one

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks for itself."""
        return {**self.__dict__, "_known": None, "_notice": None}


class CachedPredicate:
    """An answer about some tensors' values, asked again when they are others.

    Compiled code, functorch, GPUs, tracers and whatever is being trained get ``default``, which must be right for any
    values.
    """

    def __init__(self, ask: Callable[..., bool], default: bool) -> None:
        self._ask, self._default = ask, default
        # one attribute, so that threads see all of it or nothing: copies of the tensors, and the answer
        self._known: tuple[list[Any], bool] | None = None

    def __call__(self, *tensors: Tensor | None) -> bool:
        if not has_values():
            return self._default
        for tensor in tensors:
            if tensor is not None and (tensor.requires_grad or not tensor.is_cpu or type(tensor) not in PLAIN):
                return self._default
        known = self._known
        if known is not None and all(map(_are_values, known[0], tensors)):
            return known[1]
        answer = self._ask(*tensors)
        self._known = [None if t is None else _values(t) for t in tensors], answer
        return answer

    def __getstate__(self) -> dict[str, Any]:
        """A copy asks for itself."""
        return {**self.__dict__, "_known": None}


def is_in_order(ids: Tensor) -> bool:
    """Whether the numbers are 0, 1, 2, ..."""
    return bool((ids == torch.arange(len(ids), device=ids.device)).all())


def any_on(mask: Tensor | None) -> bool:
    """Whether a mask leaves any edge on."""
    return mask is None or bool(mask.any())


def is_plain(scale: Tensor, bias: Tensor) -> bool:
    """Whether an affine map changes nothing."""
    return bool((scale == 1).all() & (bias == 0).all())


def are_plain(*scales_and_biases: Tensor) -> bool:
    """Whether none of several affine maps changes anything: all scales come first."""
    half = len(scales_and_biases) // 2
    return all(map(is_plain, scales_and_biases[:half], scales_and_biases[half:]))


def _version(tensor: Tensor) -> int:
    """How often it has been written into; inference tensors don't count that."""
    return -1 if tensor.is_inference() else tensor._version


def _values(tensor: Tensor) -> Any:
    """A copy of the values."""
    if tensor.numel() > MAX_LISTED or tensor.is_meta:
        return tensor.detach().clone()
    return tensor.dtype, tensor.tolist()


def _are_values(copy: Any, tensor: Tensor | None) -> bool:
    """Whether these are the values still, in the same dtype."""
    if tensor is None or copy is None:
        return tensor is copy
    if tensor.numel() > MAX_LISTED:
        return isinstance(copy, Tensor) and copy.dtype == tensor.dtype and torch.equal(copy, tensor)
    return type(copy) is tuple and copy[0] is tensor.dtype and copy[1] == tensor.tolist()
