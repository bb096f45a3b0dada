"""Kernel launches stored as objects, so that a kernel can be run, or compiled for a check, with the same arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# Integer arguments that depend on the number of rows. Triton must not compile another kernel where one of these
# arguments is 1 or divisible by 16, because the last batch of an epoch often has fewer rows than the other batches.
UNSPECIALIZED = ("N", "part_rows", "base_part_rows", "programs", "tiles", "PADDED")


class Launch(NamedTuple):
    """A kernel launch ``kernel[grid](**arguments, **constants)`` that has not run yet."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # run-time arguments of the kernel: tensors, descriptors and integers
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self) -> Any:
        """Launch the kernel, or call the function that :func:`launched_by` has set.

        Returns:
            The compiled kernel, or None if Triton's interpreter has run the kernel.
        """
        return (replacement() or Launch.start)(self)

    def start(self) -> Any:
        """Launch the kernel on the GPU that holds the first tensor of ``arguments``, and return the compiled kernel."""
        with self._device():
            return self.kernel[self.grid](**self._given())

    def compile(self) -> Any:
        """Compile the kernel without launching it, and return the compiled kernel."""
        with self._device():
            return self.kernel.warmup(grid=self.grid, **self._given())

    def repeat(self, compiled: Any, tensors: Sequence[Tensor | None]) -> Repeat | None:
        """Return the launch in a form that can be repeated with other tensors, or None if it cannot be repeated.

        Args:
            compiled: the result of :meth:`start`.
            tensors: all tensors that the arguments contain, possibly as views that begin at the same address.
        """
        numbers = {t.data_ptr(): number for number, t in enumerate(tensors) if t is not None}
        alone = len(numbers) == sum(t is not None for t in tensors)  # whether each address belongs to only one tensor
        if not isinstance(compiled, CompiledKernel) or self.kernel.pre_run_hooks or not alone:
            return None
        arguments, places = [], []
        for place, name in enumerate(self.kernel.arg_names):
            value = self.arguments[name] if name in self.arguments else self.constants[name]
            base = value if isinstance(value, Tensor) else getattr(value, "base", None)
            if isinstance(base, Tensor):
                number = numbers.get(base.data_ptr())
                if number is None or base.dtype != tensors[number].dtype:  # type: ignore[union-attr]
                    return None
                kind, fields = (None, {}) if base is value else (type(value), {**vars(value), "base": None})
                places.append((place, number, kind, fields))
                value = None
            arguments.append(value)
        grid = (*self.grid, 1, 1)[:3]
        device = next(t.device for t in tensors if t is not None)
        return Repeat(compiled[grid], arguments, places, device)

    def _device(self) -> AbstractContextManager[Any]:
        device = next(a.device for a in self.arguments.values() if isinstance(a, Tensor))
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _given(self) -> dict[str, Any]:
        return {**self.arguments, **self.constants, "num_warps": self.warps, "num_stages": self.stages}


class Repeat(NamedTuple):
    """A launch without its tensors, which can be repeated with tensors of the same layout.

    The compiled kernel is called directly, so Triton does not examine the arguments again. The tensors must therefore
    have the same shapes, strides, dtypes and alignment of addresses, for which Triton compiles special kernels.
    """

    start: Callable[..., None]
    arguments: list[Any]  # the arguments in the order of the kernel, with None in place of tensors
    # The place, the number of the tensor, and the type and fields of the descriptor for each argument with a tensor.
    places: list[tuple[int, int, type | None, dict[str, Any]]]
    device: torch.device

    def run(self, tensors: Sequence[Tensor | None]) -> None:
        """Launch the kernel with the given tensors, which replace the tensors of :meth:`Launch.repeat`."""
        arguments = self.arguments.copy()
        for place, number, kind, fields in self.places:
            value: Any = tensors[number]
            if kind is not None:
                # the constructor is skipped, because its checks have passed for the first descriptor
                made: Any = object.__new__(kind)
                made.__dict__ = {**fields, "base": value}
                value = made
            arguments[place] = value
        if self.device.type == "cuda" and self.device.index != torch.cuda.current_device():
            with torch.cuda.device(self.device):
                self.start(*arguments)
        else:
            self.start(*arguments)


_everywhere: list[Callable[[Launch], Any]] = []
_here = threading.local()


def replacement() -> Callable[[Launch], Any] | None:
    """Return the function that runs launches in place of :meth:`Launch.start`, or None."""
    return getattr(_here, "run", None) or (_everywhere[-1] if _everywhere else None)


@contextmanager
def launched_by(run: Callable[[Launch], Any], every_thread: bool = True) -> Iterator[None]:
    """Run each launch inside the ``with`` statement by a function, for example :meth:`Launch.compile`.

    Args:
        run: the function, which gets the launch and returns the compiled kernel or None.
        every_thread: whether the function also runs the launches of other threads, such as the threads in which
            PyTorch runs a backward on a GPU.
    """
    before = getattr(_here, "run", None)
    if every_thread:
        _everywhere.append(run)
    else:
        _here.run = run
    try:
        yield
    finally:
        if every_thread:
            _everywhere.remove(run)
        else:
            _here.run = before


def describable(tensor: Tensor | None) -> bool:
    """Return whether a hardware tensor descriptor can address a contiguous tensor.

    The address and the number of bytes of a row must be multiples of 16.
    """
    if tensor is None:
        return True
    return tensor.data_ptr() % 16 == 0 and tensor.shape[-1] * tensor.element_size() % 16 == 0


def describable_rows(tensor: Tensor | None) -> bool:
    """Return whether a hardware tensor descriptor can address a matrix with any distance between its rows.

    The address of the matrix and the distance between its rows in bytes must be multiples of 16. A tensor with
    overlapping rows is not supported, such as the result of ``expand`` or ``unfold``.
    """
    if tensor is None:
        return True
    apart = tensor.stride(0)
    separate = tensor.shape[0] == 1 or (apart >= tensor.shape[1] and apart * tensor.element_size() % 16 == 0)
    return tensor.data_ptr() % 16 == 0 and separate


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """Return a descriptor of a contiguous tensor that loads tiles of the shape ``block``.

    Elements of a tile that lie beyond the edges of the tensor are loaded as 0.
    """
    return TensorDescriptor(tensor, list(tensor.shape), strides(tensor), block)


def strides(tensor: Tensor) -> list[int]:
    """Return strides of a tensor that a hardware tensor descriptor accepts.

    For a dimension of size 1, PyTorch's own stride may be arbitrary, so a valid stride is computed.
    """
    found, whole = list(tensor.stride()), 16 // tensor.element_size()
    for place in reversed(range(len(found))):
        if tensor.shape[place] == 1:
            last = place + 1 == len(found)
            found[place] = 1 if last else whole * -(-found[place + 1] * tensor.shape[place + 1] // whole)
    return found
