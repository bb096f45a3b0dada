"""Caches for results that depend on the values of tensors. A result is recomputed when the values change.

The version counter of a tensor does not record writes through ``.data``, NumPy or ``torch.distributed``. Each cached
result is therefore stored together with a copy of the values, and the result is only used while the current values are
equal to the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import Basis, Pieces, basis_of, check_knots, has_values, pieces_of, recorder

PLAIN = (Tensor, nn.Parameter)
# The maximum number of elements of tensors that are compared as lists of numbers, which is faster for small tensors.
MAX_LISTED = 64


class ReadValues:
    """A copy of the values of a tensor, made when the values were read.

    Args:
        tensor: the tensor. The object keeps a reference to the tensor, to recognise the tensor by identity.
        copy: the copy of the values, if the caller has one already.
    """

    def __init__(self, tensor: Tensor, copy: Tensor | None = None) -> None:
        self.tensor, self.version = tensor, _version(tensor)
        self.copy = tensor.detach().clone() if copy is None else copy
        self.values = _values(self.copy)


class ReadKnots(ReadValues):
    """The basis of a tensor of knots, and a copy of the knots that the basis was computed from.

    Args:
        knots: the tensor of knots.
        basis: the basis that was computed from the values of the knots.
    """

    def __init__(self, knots: Tensor, basis: Basis) -> None:
        super().__init__(knots)
        self.basis = basis
        self._pieces: Pieces | None = None

    def pieces(self) -> Pieces:
        """Return the tables of the polynomials of the splines, computed at the first call. Knots must be on a CPU."""
        if self._pieces is None:
            self._pieces = pieces_of(self.copy, self.basis)
        return self._pieces


class Notice:
    """A bool that is copied asynchronously from a GPU to the host. The host reads the bool later and never waits."""

    def __init__(self) -> None:
        self.answer = torch.zeros((), dtype=torch.bool, pin_memory=True)
        self.event = torch.cuda.Event()

    def send(self, answer: Tensor) -> None:
        """Start to copy a bool from the GPU to the host, unless the previous copy is still running."""
        if self.event.query():
            self.answer.copy_(answer, non_blocking=True)
            self.event.record(torch.cuda.current_stream(answer.device))

    def says_yes(self) -> bool:
        """Whether the previous copy has finished and the copied value is True."""
        return not torch.cuda.is_current_stream_capturing() and self.event.query() and bool(self.answer)


class ValueMetadata:
    """A cache for what was read from the values of a tensor that other code may write into.

    On a CPU, every call compares the values of the tensor with the cached copy. On a GPU, comparing values would make
    the host wait, so only the version counters are compared. A write that the version counter does not record is
    handled in two steps. First, the values are compared on the GPU by :meth:`changed`, and the results of the current
    call are replaced by NaN, so that no wrong number is returned. Once the host has received the outcome of the
    comparison, the next call reads the new values.
    """

    _known: Any

    def __init__(self) -> None:
        # The attribute is always replaced as a whole, so that other threads never see an inconsistent state.
        self._known = None
        self._notice: Notice | None = None

    def is_same_version(self, tensor: Tensor) -> bool:
        """Whether the cached copy belongs to a tensor on a GPU, as far as the host knows without waiting."""
        known = self._known
        return (
            known.tensor is tensor
            and known.version == _version(tensor)
            and not (self._notice and self._notice.says_yes())
        )

    def changed(self, tensor: Tensor) -> Tensor:
        """Return a bool tensor that tells whether the values of a tensor differ from the cached copy.

        The comparison runs on the GPU or in the compiled code, and the host does not wait for the outcome.
        """
        changed = (tensor != self._known.copy).any()
        if tensor.is_cuda and not torch.compiler.is_compiling() and not torch.cuda.is_current_stream_capturing():
            self._notice = self._notice or Notice()
            self._notice.send(changed)
        return changed

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cache, so that a copy of the module reads the tensor of the copy."""
        return {**self.__dict__, "_known": None, "_notice": None}


class TextMetadata(ValueMetadata):
    """A cache for the bytes of a uint8 tensor that contains a text, or None."""

    _known: ReadValues | None

    def look(self, text: Tensor | None, copy: Tensor | None = None) -> None:
        """Store the bytes of the tensor ``text`` in the cache. A tensor without values needs a ``copy`` with values."""
        self._known, self._notice = None if text is None else ReadValues(text, copy), None

    def is_read(self, text: Tensor | None, may_wait: bool) -> bool:
        """Whether the cache has the bytes of the tensor, whose values must be readable.

        Args:
            text: the tensor.
            may_wait: whether the host may wait for a GPU, so that writes without a new version are noticed at once.
        """
        known = self._known
        if text is None or known is None:
            return text is None and known is None
        copy = known.copy
        if text.is_cpu:
            return copy.is_cpu and copy.dtype is text.dtype and torch.equal(copy, text)
        if not may_wait or torch.cuda.is_current_stream_capturing():
            return self.is_same_version(text)
        return (copy.dtype, copy.device) == (text.dtype, text.device) and torch.equal(copy, text)

    def changed(self, tensor: Tensor) -> Tensor:
        """As in :class:`ValueMetadata`, also for a tensor of another size or a cache without bytes."""
        known = self._known
        if known is None or known.copy.shape != tensor.shape:
            return torch.ones((), dtype=torch.bool, device=tensor.device)
        if known.copy.device != tensor.device:
            known.copy = known.copy.to(tensor.device)
        return super().changed(tensor)


class KnotMetadata(ValueMetadata):
    """A cache for the basis of the knots of a layer, which is updated when the values of the knots change."""

    _known: ReadKnots | None
    # Whether the layer was constructed on the meta device, and has not had valid knots in its memory since then.
    awaits_values = False

    def __init__(self, knots: Tensor, order: int, base: str) -> None:
        super().__init__()
        self.order, self.base = order, base
        self.look(knots)

    def look(self, knots: Tensor) -> ReadKnots:
        """Compute the basis from the values of the knots, store the basis in the cache and return the cache entry."""
        known = ReadKnots(knots, basis_of(knots, self.order, self.base))
        is_unwritten = self.awaits_values and not knots.is_meta and self._fault_of(knots) is not None
        self.awaits_values = knots.is_meta or is_unwritten
        self._known, self._notice = None if is_unwritten else known, None  # without an entry, the next call looks again
        return known

    def _fault_of(self, knots: Tensor) -> str | None:
        """Return the reason why knots are invalid, or None."""
        try:
            check_knots(knots, self.order)
        except ValueError as error:
            return str(error)
        return None

    def read(self, knots: Tensor) -> ReadKnots | None:
        """Return the cache entry for ``knots``, which is recomputed if it does not belong to the current values.

        The argument ``knots`` may be a different tensor in each call, for example with ``torch.func.functional_call``.
        The result is None if the values of the knots cannot or must not be read, because the knots require a gradient
        or a tracer or a transform is active.

        Raises:
            RuntimeError: if the layer was constructed on the meta device, and its memory has not contained valid knots.
        """
        if knots.requires_grad or not has_values(knots):  # The reference backend does not use the values of the knots.
            return None
        known = self._known
        if known is not None:
            if knots.is_cpu:
                if _are_values(known.values, knots):
                    return known
            elif self.is_same_version(knots):
                return known
        known = self.look(knots)
        if self.awaits_values and not knots.is_meta:
            raise RuntimeError(
                "the KAN layer was constructed on the device meta, and its memory has not been initialised "
                f"({self._fault_of(knots)}): call reset_parameters() of the layer or load_state_dict(). If "
                "from_pretrained of transformers has constructed the layer, pass it "
                "quantization_config=fastkan.interop.transformers.KANLayersConfig()"
            )
        return known

    def basis(self, knots: Tensor) -> Basis:
        """Return the basis of ``knots``. If the values of the knots cannot be read, the basis has unknown spacing."""
        return self.basis_and_pieces(knots)[0]

    def basis_and_pieces(self, knots: Tensor) -> tuple[Basis, Callable[[], Pieces] | None]:
        """Return a tuple of the basis of ``knots`` and a function that returns the tables of ``knots``.

        The second element is None if the knots are not on a CPU or their values cannot be read.
        """
        if torch.compiler.is_compiling():  # Values cannot be read while tracing; the compiled code calls checked().
            known = self._known
            return known.basis if known is not None and known.tensor is knots else Basis(self.order, self.base), None
        read = self.read(knots)
        if read is None:
            return Basis(self.order, self.base), None
        return read.basis, read.pieces if knots.is_cpu else None

    def checked(
        self, knots: Tensor, basis: Basis, weight: Tensor, base_weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weights of the splines and of the base function.

        If the values of ``knots`` differ from the values that ``basis`` was computed from, all elements of one of the
        two weights are replaced by NaN. No comparison is necessary for eager calls on a CPU, where the values have just
        been compared, and for non-uniform knots, because a non-uniform basis does not depend on the values of the
        knots. No comparison is made while Jacobians are recorded, because the recorder has to recognize the parameters.
        """
        is_compared = (torch.compiler.is_compiling() or knots.is_cuda) and recorder() is None
        if not basis.uniform or self._known is None or not is_compared:
            return weight, base_weight
        changed = self.changed(knots)
        if base_weight is None:
            return weight.masked_fill(changed, torch.nan), None
        return weight, base_weight.masked_fill(changed, torch.nan)  # The base weight is the smaller tensor.


class CachedPredicate:
    """A predicate on the values of tensors, whose result is cached until the values change.

    Args:
        ask: a function that computes the result from the tensors.
        default: the result if values cannot be read cheaply or safely, which is the case in compiled code, under
            functorch transforms and tracers, on GPUs, and for tensors that require a gradient. The default must
            lead to correct results for all values.
    """

    def __init__(self, ask: Callable[..., bool], default: bool) -> None:
        self._ask, self._default = ask, default
        # One attribute contains the copies of the values and the result, so that other threads see a consistent state.
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
        """Return the state without the cached result."""
        return {**self.__dict__, "_known": None}


def is_in_order(ids: Tensor) -> bool:
    """Whether the elements of ``ids`` are 0, 1, 2 and so on, in ascending order."""
    return bool((ids == torch.arange(len(ids), device=ids.device)).all())


def any_on(mask: Tensor | None) -> bool:
    """Whether at least one edge is on. If the mask is None, all edges are on."""
    return mask is None or bool(mask.any())


def is_plain(scale: Tensor, bias: Tensor) -> bool:
    """Whether the affine map with the given scale and bias is the identity."""
    return bool((scale == 1).all() & (bias == 0).all())


def are_plain(*scales_and_biases: Tensor) -> bool:
    """Whether all affine maps are the identity. The arguments are first the scales of all maps, then the biases."""
    half = len(scales_and_biases) // 2
    return all(map(is_plain, scales_and_biases[:half], scales_and_biases[half:]))


def _version(tensor: Tensor) -> int:
    """Return the version counter of a tensor, or -1 for inference tensors, which have no version counter."""
    return -1 if tensor.is_inference() else tensor._version


def _values(tensor: Tensor) -> Any:
    """Return a copy of the dtype and values of a tensor, in the format that :func:`_are_values` expects."""
    if tensor.numel() > MAX_LISTED or tensor.is_meta or type(tensor) not in PLAIN:  # fake tensors have no values
        return tensor.detach().clone()
    return tensor.dtype, tensor.tolist()


def _are_values(copy: Any, tensor: Tensor | None) -> bool:
    """Whether a tensor has the dtype and values of a copy that :func:`_values` made."""
    if tensor is None or copy is None:
        return tensor is copy
    if tensor.numel() > MAX_LISTED:
        same_kind = isinstance(copy, Tensor) and (copy.dtype, copy.device) == (tensor.dtype, tensor.device)
        return same_kind and torch.equal(copy, tensor)
    return type(copy) is tuple and copy[0] is tensor.dtype and copy[1] == tensor.tolist()
