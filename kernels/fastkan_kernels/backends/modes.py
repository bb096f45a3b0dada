"""Functions that check the state of PyTorch during a call, for example whether function transforms are active.

PyTorch has no public functions for most of the checks in this module. The tests in tests/kernels/test_routes.py and
test_autograd.py verify that the private functions used in this module behave as expected.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

functorch_is_active = torch._C._are_functorch_transforms_active
count_dispatch_modes = torch._C._len_torch_dispatch_stack
is_batched_tensor = torch._C._functorch.is_legacy_batchedtensor
engine_executes = torch._C._will_engine_execute_node
# In builds of PyTorch without torch.distributed, no process group can exist, and bool() returns False.
process_group_exists = torch.distributed.is_initialized if torch.distributed.is_available() else bool


def forward_mode_is_active() -> bool:
    """Check whether forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def has_values(*tensors: Tensor | None) -> bool:
    """Check whether code may read the values of the tensors and compute with the values outside of PyTorch.

    The result is False if a function transform, a tracer or a dispatch mode is active, or if a tensor is an instance of
    a subclass that intercepts operations. Arguments that are None are ignored.
    """
    if torch.compiler.is_compiling() or functorch_is_active() or forward_mode_is_active():
        return False
    if count_dispatch_modes() > 0 or torch.jit.is_tracing():
        return False
    for tensor in tensors:  # a plain loop is faster than all() with a generator
        if tensor is None:
            continue
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or is_batched_tensor(tensor):
            return False
    return True


def needs_graph(x: Tensor) -> bool:
    """Check whether autograd records operations on x."""
    return x.requires_grad and torch.is_grad_enabled()


def is_batched(*tensors: Tensor | None) -> bool:
    """Check whether ``autograd.grad(is_grads_batched=True)`` has batched any of the tensors."""
    if torch.compiler.is_compiling():
        return False
    return any(tensor is not None and is_batched_tensor(tensor) for tensor in tensors)
