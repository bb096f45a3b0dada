"""Kernel launches stored as objects, so that a kernel can be run, or compiled for a check, with the same arguments."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# Integer arguments that depend on the number of rows. Triton must not compile another kernel where they are 1 or
# divisible by 16, because the last batch of an epoch is often shorter than the others.
UNSPECIALIZED = ("N", "part_rows")


class Launch(NamedTuple):
    """A kernel launch ``kernel[grid](**arguments, **constants)`` that has not run yet."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # run-time arguments of the kernel: tensors, descriptors and integers
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self) -> None:
        """Launch the kernel on the GPU that holds the first tensor of ``arguments``."""
        device = next(a.device for a in self.arguments.values() if isinstance(a, Tensor))
        watch = getattr(_of_thread, "watch", None)
        given = {**self.arguments, **self.constants, "num_warps": self.warps, "num_stages": self.stages}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if watch is not None and watch.compile_only:
                compiled = self.kernel.warmup(grid=self.grid, **given)
            else:
                compiled = self.kernel[self.grid](**given)
        if watch is not None:
            watch.kernels.append(compiled)


class _Watch(NamedTuple):
    kernels: list[Any]
    compile_only: bool


_of_thread = threading.local()


@contextmanager
def watched(compile_only: bool = False) -> Iterator[list[Any]]:
    """Collect the compiled kernels of all launches that the current thread makes inside the ``with`` statement.

    The list has None for each launch that Triton's interpreter runs.

    Args:
        compile_only: if True, compile the kernels without launching them, so that the result tensors hold
            uninitialised memory.
    """
    before = getattr(_of_thread, "watch", None)
    _of_thread.watch = _Watch([], compile_only)
    try:
        yield _of_thread.watch.kernels
    finally:
        _of_thread.watch = before


def describable(tensor: Tensor | None) -> bool:
    """Return whether a hardware tensor descriptor can address a contiguous tensor.

    The address and the number of bytes of a row must be multiples of 16.
    """
    if tensor is None:
        return True
    return tensor.data_ptr() % 16 == 0 and tensor.shape[-1] * tensor.element_size() % 16 == 0


def describable_rows(tensor: Tensor | None) -> bool:
    """Return whether a hardware tensor descriptor can address a matrix with any distance between its rows.

    The address and the distance in bytes must be multiples of 16. A tensor with overlapping rows is not supported, such
    as the result of ``expand`` or ``unfold``.
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


def power_of_two(number: int, least: int, most: int) -> int:
    """Return the smallest power of two that is at least ``number``, clamped to the range from ``least`` to ``most``."""
    return max(least, min(most, 1 << (max(1, number) - 1).bit_length()))
