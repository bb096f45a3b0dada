"""What a moment allows: whether tensors' values may be looked at, and computed with outside of PyTorch's sight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def has_values(*tensors: Tensor) -> bool:
    """Whether they are plain, and nobody transforms or records what is done with them: NumPy would go unseen."""
    if torch.compiler.is_compiling():
        return False
    # torch has no public names for these; tests/test_routes.py and tests/test_stack_routes.py pin them
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    recorded = torch._C._len_torch_dispatch_stack() > 0 or torch.jit.is_tracing()
    if transformed or recorded:
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor
    for tensor in tensors:  # which costs less than all()
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or batched(tensor):
            return False
    return True


def needs_graph(x: Tensor) -> bool:
    """Whether a gradient by x may be wanted."""
    return x.requires_grad and torch.is_grad_enabled()


def is_batched(*tensors: Tensor | None) -> bool:
    """Whether ``autograd.grad(is_grads_batched=True)`` batches any of some tensors."""
    if torch.compiler.is_compiling():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor  # torch has no public name for it
    return any(tensor is not None and batched(tensor) for tensor in tensors)
