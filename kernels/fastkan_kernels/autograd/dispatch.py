"""The choice of a contraction's route through autograd and of the backend that computes it.

The first of these routes that applies is taken:

1. composite: the reference backend, differentiated by autograd itself. It is needed under a functorch transform,
   forward-mode differentiation, ``torch.export`` and ``torch.jit.trace``, and for a gradient with respect to the knots.
   The Functions would raise there; the registered operators would silently lose the tangent.
2. operators: registered operators, while ``torch.compile`` traces.
3. functions: autograd Functions, in eager mode.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import registry as backends
from ..backends.registry import BACKENDS, ContractionSpec
from ..basis import Basis, autocast_dtype
from ..trilinear import Operands
from ..validation import Choice, checked
from . import operators as ops
from .functions import FUNCTIONS, ContractOutSmall

BACKEND_NAMES = ("auto", *BACKENDS)

# The backend that "auto" takes for a type of device, unless it is unable to run there.
_AUTO = {"cpu": "cpu", "cuda": "triton"}

_chosen = threading.local()


class Route(NamedTuple):
    """A route and a backend, each with the reason for it in words."""

    way: str  # "composite", "operators" or "functions"
    way_because: str
    backend: str
    backend_because: str


@checked(name=Choice(BACKEND_NAMES))
@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute every contraction inside the ``with`` by one backend, in this thread.

    Args:
        name: ``"auto"`` (the default, which chooses by the device), ``"reference"``, ``"cpu"`` or
            ``"triton"``. A call that the backend cannot compute raises instead of falling back to another.
            A backward pass uses the backend of its forward.

    Raises:
        ValueError: for any other name.
        RuntimeError: for a backend whose packages are not installed.

    Example:
        >>> with backend("reference"):
        ...     y = KANLinear(2, 5)(torch.rand(10, 2))
    """
    missing = None if name == "auto" else BACKENDS[name].missing()
    if missing is not None:
        raise RuntimeError(f"backend {name!r} can't serve: {missing}")
    before = chosen_backend()
    _chosen.name = name
    try:
        yield
    finally:
        _chosen.name = before


def chosen_backend() -> str:
    """Name given to the innermost active :func:`backend` of this thread, or ``"auto"``."""
    return getattr(_chosen, "name", "auto")


def needs_composite(knots: Tensor) -> str | None:
    """The reason why the composite route is needed now, in words, or None."""
    # PyTorch has no public names for the first two; tests/kernels/test_routes.py fails if they change.
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "a forward-mode level is active"
    if knots.requires_grad and torch.is_grad_enabled():
        return "a gradient by the knots is wanted"
    if torch.compiler.is_exporting():
        return "an export is under way"
    if torch.jit.is_tracing():  # it records PyTorch's own operators only
        return "torch.jit is tracing"
    return None


def route(x: Tensor, knots: Tensor) -> Route:
    """The route and backend that a contraction of x takes now.

    Raises:
        RuntimeError: if the backend chosen by :func:`backend` cannot compute this call.
    """
    asked = chosen_backend()
    reason = needs_composite(knots)
    if reason is not None:
        if asked not in ("auto", "reference"):
            raise RuntimeError(
                f"backend {asked!r} can't serve here: {reason}, and only the reference is "
                "differentiated by PyTorch itself. Use backend('auto') or backend('reference')"
            )
        return Route("composite", reason, "reference", "the only one that PyTorch itself differentiates")

    if asked == "auto":
        name, because = _automatic(x.device)
    else:
        name, because = asked, "asked for by fastkan.backend"
        unable = BACKENDS[name].unable(x.device)
        if unable:
            raise RuntimeError(f"backend {name!r} can't serve this call: {unable}")
    if torch.compiler.is_compiling():
        return Route("operators", "torch.compile is tracing", name, because)
    return Route("functions", "eager mode", name, because)


def _automatic(device: torch.device) -> tuple[str, str]:
    """The backend that "auto" takes on a device, and the reason for it."""
    name = _AUTO.get(device.type)
    if name is None:
        return "reference", "auto: it serves every device"
    unable = BACKENDS[name].unable(device)
    if unable is not None:
        return "reference", f"auto: backend {name!r} can't serve: {unable}"
    return name, f"auto: x is on {'the CPU' if device.type == 'cpu' else 'a GPU'}"


def is_small(call: ContractionSpec, x: Tensor, knots: Tensor, slots: Operands) -> bool:
    """Whether the backend has an F of its own for a layer as small as this."""
    small = BACKENDS[call.backend].small
    return small is not None and small.serves(x, knots, slots, call.basis, call.derivative)


def contract(name: str, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int):
    """Contraction ``name``, differentiable, by the current route and backend."""
    product = autocast_dtype(x)
    if product is not None:
        basis = basis._replace(matmul_dtype=product)
    taken = route(x, knots)
    call = ContractionSpec(basis, derivative, taken.backend, {})
    if taken.way == "functions":
        function = ContractOutSmall if name == "F" and is_small(call, x, knots, slots) else FUNCTIONS[name]
        return function.apply(call, x, knots, *slots)
    if taken.way == "operators":
        return ops.apply(name, call, x, knots, slots)
    return backends.contract(name, call, x, knots, slots)
