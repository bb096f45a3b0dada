"""Predicates on the mode that PyTorch runs in: whether values can be read, a graph is built, or tensors are batched."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def has_values(*tensors: Tensor) -> bool:
    """Whether values can be read and computed with in NumPy: the tensors are plain ones, and no transform, tracer or
    compiler records the operations on them."""
    if torch.compiler.is_compiling():
        return False
    # PyTorch has no public names for these; tests/kernels/test_routes.py and test_stack_routes.py fail if they change.
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    recorded = torch._C._len_torch_dispatch_stack() > 0 or torch.jit.is_tracing()
    if transformed or recorded:
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor
    for tensor in tensors:  # a plain loop, since all() with a generator takes longer
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or batched(tensor):
            return False
    return True


def needs_graph(x: Tensor) -> bool:
    """Whether autograd records operations on x."""
    return x.requires_grad and torch.is_grad_enabled()


def is_batched(*tensors: Tensor | None) -> bool:
    """Whether ``autograd.grad(is_grads_batched=True)`` has batched any of the tensors."""
    if torch.compiler.is_compiling():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor  # PyTorch has no public name for it
    return any(tensor is not None and batched(tensor) for tensor in tensors)
