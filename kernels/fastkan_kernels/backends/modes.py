"""The state of PyTorch in which a call is made: transforms, tracers and batches that are active.

PyTorch has no public names for most of this; tests/kernels/test_routes.py and test_autograd.py pin the meaning of the
private ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

functorch_is_active = torch._C._are_functorch_transforms_active
count_dispatch_modes = torch._C._len_torch_dispatch_stack
is_batched_tensor = torch._C._functorch.is_legacy_batchedtensor
engine_executes = torch._C._will_engine_execute_node


def forward_mode_is_active() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    return forward_ad._current_level >= 0


def has_values(*tensors: Tensor | None) -> bool:
    """Whether the tensors, those that are not None, are plain ones whose values may be read and computed with outside
    of PyTorch, since nothing transforms, traces or records what is done with them."""
    if torch.compiler.is_compiling() or functorch_is_active() or forward_mode_is_active():
        return False
    if count_dispatch_modes() > 0 or torch.jit.is_tracing():
        return False
    for tensor in tensors:  # which costs less than all()
        if tensor is None:
            continue
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or is_batched_tensor(tensor):
            return False
    return True


def needs_graph(x: Tensor) -> bool:
    """Whether a gradient with respect to x may be wanted."""
    return x.requires_grad and torch.is_grad_enabled()


def is_batched(*tensors: Tensor | None) -> bool:
    """Whether ``autograd.grad(is_grads_batched=True)`` batches any of some tensors."""
    if torch.compiler.is_compiling():
        return False
    return any(tensor is not None and is_batched_tensor(tensor) for tensor in tensors)
