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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.modes import forward_mode_is_active, functorch_is_active, has_values, needs_graph
from ..backends.registry import BACKENDS, ContractionSpec
from ..basis import Basis, autocast_dtype
from ..bspline.piecewise import Pieces
from ..trilinear import Operands
from ..validation import Choice, checked
from . import operators as ops
from .functions import Contract

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
    if functorch_is_active():
        return "a torch.func transform is active"
    if forward_mode_is_active():
        return "a forward-mode level is active"
    if needs_graph(knots):
        return "a gradient by the knots is wanted"
    if torch.compiler.is_exporting():
        return "an export is under way"
    if torch.jit.is_tracing():  # it records PyTorch's own operators only
        return "torch.jit is tracing"
    return None


def route(x: Tensor, knots: Tensor, plain: bool = False) -> Route:
    """The route and backend that a contraction of x takes now.

    Args:
        plain: whether :func:`has_values` has found that no transform or trace is active.

    Raises:
        RuntimeError: if the backend chosen by :func:`backend` cannot compute this call.
    """
    asked = chosen_backend()
    reason = None if plain and not needs_graph(knots) else needs_composite(knots)
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
    if not plain and torch.compiler.is_compiling():
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


def contract(
    name: str,
    x: Tensor,
    knots: Tensor,
    operands: Operands,
    basis: Basis,
    derivative: int,
    pieces: Callable[[], Pieces] | None = None,
):
    """Contraction ``name``, differentiable, by the current route and backend.

    Args:
        pieces: function that returns the tables of the knots; by default they are computed for each graph that needs
            them.
    """
    plain, product = has_values(x, knots, *operands), autocast_dtype(x)
    if product is not None:
        basis = basis._replace(matmul_dtype=product)
    taken = route(x, knots, plain)
    cache = {"pieces": pieces, "fixed_x": not x.requires_grad and torch.is_grad_enabled()}
    spec = ContractionSpec(basis, derivative, taken.backend, cache, plain)
    if taken.way == "operators":
        return ops.apply(name, spec, x, knots, operands)
    # Autocast is off inside, since its dtype is in the basis and the backends round themselves.
    with nullcontext() if product is None else torch.autocast(x.device.type, enabled=False):
        if taken.way == "functions":
            return Contract.apply(name, spec, x, knots, *operands)
        return BACKENDS["reference"].contract[name](x, knots, operands, basis, derivative)
