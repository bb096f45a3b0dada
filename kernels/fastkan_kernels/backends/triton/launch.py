"""A kernel launch as data, so that runs and static checks take the same arguments."""

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


class Launch(NamedTuple):
    """``kernel[grid](**arguments, **constants)``."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, descriptors and integers
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self) -> None:
        """Launch the kernel on the GPU of its first tensor."""
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
    """Collect the compiled kernels of all launches of this thread inside the ``with``; None for an interpreted one.

    Args:
        compile_only: compile the kernels without launching them, so that results are uninitialised memory.
    """
    before = getattr(_of_thread, "watch", None)
    _of_thread.watch = _Watch([], compile_only)
    try:
        yield _of_thread.watch.kernels
    finally:
        _of_thread.watch = before


def describable(tensor: Tensor | None) -> bool:
    """Whether a hardware tensor descriptor can address a contiguous tensor: rows must be multiples of 16 bytes."""
    if tensor is None:
        return True
    return tensor.data_ptr() % 16 == 0 and tensor.shape[-1] * tensor.element_size() % 16 == 0


def describable_rows(tensor: Tensor | None) -> bool:
    """Whether a hardware tensor descriptor can address a tensor with any distance between rows, but an expanded one."""
    if tensor is None:
        return True
    apart = tensor.stride(0) * tensor.element_size()
    return tensor.data_ptr() % 16 == 0 and (tensor.shape[0] == 1 or (apart > 0 and apart % 16 == 0))


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """Descriptor of a contiguous tensor, for loads of tiles of the shape ``block``, with 0 beyond its edges."""
    return TensorDescriptor(tensor, list(tensor.shape), strides(tensor), block)


def strides(tensor: Tensor) -> list[int]:
    """Strides of a tensor that a descriptor accepts: PyTorch's may be arbitrary for a dimension of size 1."""
    found, whole = list(tensor.stride()), 16 // tensor.element_size()
    for place in reversed(range(len(found))):
        if tensor.shape[place] == 1:
            last = place + 1 == len(found)
            found[place] = 1 if last else whole * -(-found[place + 1] * tensor.shape[place + 1] // whole)
    return found


def power_of_two(number: int, least: int, most: int) -> int:
    """The smallest power of two that is at least ``number``, clamped to ``least`` and ``most``."""
    return max(least, min(most, 1 << (max(1, number) - 1).bit_length()))
