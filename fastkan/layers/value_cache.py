"""Cached answers about tensors' values that are recomputed when the values change.

Some writes change no version counter: those through ``.data``, NumPy or ``torch.distributed``. Each answer is therefore
stored with a copy of the values that it was computed from, and used only while the tensors still have these values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import Basis, Pieces, basis_of, has_values, pieces_of

PLAIN = (Tensor, nn.Parameter)
MAX_LISTED = 64  # elements; smaller tensors are compared faster as lists of numbers


class ReadKnots:
    """The basis of a tensor of knots, with a copy of the values that it was computed from.

    Args:
        knots: the tensor itself, to recognise it by identity.
        basis: computed from its values.
    """

    def __init__(self, knots: Tensor, basis: Basis) -> None:
        self.knots, self.basis, self.version = knots, basis, _version(knots)
        self.copy = knots.detach().clone()
        self.values = _values(self.copy)
        self._pieces: Pieces | None = None

    def pieces(self) -> Pieces:
        """Return the tables of the splines' polynomials on these knots, made at the first call; for knots on a CPU."""
        if self._pieces is None:
            self._pieces = pieces_of(self.copy, self.basis)
        return self._pieces


class Notice:
    """A bool that is copied from a GPU to the host asynchronously, which reads it later and never waits."""

    def __init__(self) -> None:
        self.answer = torch.zeros((), dtype=torch.bool, pin_memory=True)
        self.event = torch.cuda.Event()

    def send(self, answer: Tensor) -> None:
        """Start copying a bool, unless the last copy has not finished."""
        if self.event.query():
            self.answer.copy_(answer, non_blocking=True)
            self.event.record(torch.cuda.current_stream(answer.device))

    def says_yes(self) -> bool:
        """Whether the last copy has finished and is True."""
        return not torch.cuda.is_current_stream_capturing() and self.event.query() and bool(self.answer)


class KnotMetadata:
    """The basis of a layer's knots, kept up to date with their values.

    On a CPU the values are compared in every call. On a GPU that would make the host wait, so only the version counter
    is compared. A write that the counter misses is found in two steps: :meth:`checked` compares the values on the GPU
    and turns the results of that call into NaN, so that no wrong number is returned, and a later call, after the host
    has received the outcome, reads the new values.
    """

    def __init__(self, knots: Tensor, order: int, base: str) -> None:
        self.order, self.base = order, base
        self._known: ReadKnots | None = None  # replaced as a whole, so that other threads never see a part
        self._notice: Notice | None = None
        self.look(knots)

    def look(self, knots: Tensor) -> ReadKnots:
        """Compute the basis from the values, and cache it."""
        known = ReadKnots(knots, basis_of(knots, self.order, self.base))
        self._known, self._notice = known, None
        return known

    def read(self, knots: Tensor) -> ReadKnots | None:
        """Return the cached basis if it belongs to ``knots``, else compute it anew.

        ``knots`` may be another tensor than before, as in ``torch.func.functional_call``. None stands for knots whose
        values cannot or must not be read: those that require a gradient, and those under a tracer or a transform.
        """
        if knots.requires_grad or not has_values(knots):  # the reference backend needs nothing from their values
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
        """Return the basis of ``knots``, as a basis of unknown spacing where their values cannot be read."""
        return self.basis_and_pieces(knots)[0]

    def basis_and_pieces(self, knots: Tensor) -> tuple[Basis, Callable[[], Pieces] | None]:
        """Return the basis of ``knots``, and a function that returns their tables (None unless they are on a CPU)."""
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
        """Return the weights of the splines and of the base function, and make one of them NaN if ``knots`` are not the
        ones that ``basis`` was computed from.

        The comparison runs on the GPU or in the compiled code, and the host does not wait for it. It is unnecessary for
        eager calls on a CPU, where the values have just been compared, and for non-uniform knots, whose basis contains
        none of their values.
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
        return weight, base_weight.masked_fill(changed, torch.nan)  # the smaller of the two tensors

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cache, so that a copy of the layer reads its own knots."""
        return {**self.__dict__, "_known": None, "_notice": None}


class CachedPredicate:
    """A yes-or-no question about tensors' values whose answer is cached until the values change.

    Args:
        ask: computes the answer from the tensors.
        default: the answer where values cannot be read cheaply or safely: in compiled code, under functorch and
            tracers, on GPUs, and for tensors that require a gradient. It must be safe for any values.
    """

    def __init__(self, ask: Callable[..., bool], default: bool) -> None:
        self._ask, self._default = ask, default
        # Copies of the values and the answer in one attribute, so that other threads never see a part.
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
        """Leave out the cached answer."""
        return {**self.__dict__, "_known": None}


def is_in_order(ids: Tensor) -> bool:
    """Whether ``ids`` is 0, 1, 2, ..."""
    return bool((ids == torch.arange(len(ids), device=ids.device)).all())


def any_on(mask: Tensor | None) -> bool:
    """Whether a mask leaves any edge on; None, no mask, leaves all on."""
    return mask is None or bool(mask.any())


def is_plain(scale: Tensor, bias: Tensor) -> bool:
    """Whether an affine map is the identity."""
    return bool((scale == 1).all() & (bias == 0).all())


def are_plain(*scales_and_biases: Tensor) -> bool:
    """Whether several affine maps are all the identity; the arguments are all scales and then all biases."""
    half = len(scales_and_biases) // 2
    return all(map(is_plain, scales_and_biases[:half], scales_and_biases[half:]))


def _version(tensor: Tensor) -> int:
    """Return the version counter, or -1 for an inference tensor, which has none."""
    return -1 if tensor.is_inference() else tensor._version


def _values(tensor: Tensor) -> Any:
    """Return a copy of the values in the form that :func:`_are_values` compares."""
    if tensor.numel() > MAX_LISTED or tensor.is_meta:
        return tensor.detach().clone()
    return tensor.dtype, tensor.tolist()


def _are_values(copy: Any, tensor: Tensor | None) -> bool:
    """Whether a tensor has the dtype and values of a copy that :func:`_values` made."""
    if tensor is None or copy is None:
        return tensor is copy
    if tensor.numel() > MAX_LISTED:
        return isinstance(copy, Tensor) and copy.dtype == tensor.dtype and torch.equal(copy, tensor)
    return type(copy) is tuple and copy[0] is tensor.dtype and copy[1] == tensor.tolist()
