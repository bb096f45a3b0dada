"""The route that a contraction takes through autograd, and the backend that computes it: one decision for each call.

The first route that applies is taken:

1. composite: differentiable PyTorch, where a functorch transform, a forward-mode level, an export or a trace is
   active, or the knots require a gradient. The Function would raise there, and the registered operators would
   silently give no tangent.
2. operators: while ``torch.compile`` traces.
3. functions: in eager mode.
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

# the backend that "auto" stands for on a device, where it supports it
_AUTO = {"cpu": "cpu", "cuda": "triton"}

_chosen = threading.local()


class Route(NamedTuple):
    """A decision, with its reasons in words."""

    way: str  # "composite", "operators" or "functions"
    way_because: str
    backend: str
    backend_because: str


@checked(name=Choice(BACKEND_NAMES))
@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute every contraction inside the ``with`` by one backend, in this thread.

    Args:
        name: ``"auto"`` (the default everywhere: by device), ``"reference"``, ``"cpu"`` or
            ``"triton"``. A backend that can't serve a call raises there; none is put in its place.
            A backward uses the backend of its forward.

    Raises:
        ValueError: for any other name.
        RuntimeError: for a backend that this version or machine does not have.

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
    """Return the name given to the innermost :func:`backend` context, ``"auto"`` outside of any."""
    return getattr(_chosen, "name", "auto")


def needs_composite(knots: Tensor) -> str | None:
    """Return why only composite PyTorch can be differentiated here and now, or None."""
    if functorch_is_active():
        return "a torch.func transform is active"
    if forward_mode_is_active():
        return "a forward-mode level is active"
    if needs_graph(knots):
        return "a gradient by the knots is wanted"
    if torch.compiler.is_exporting():
        return "an export is under way"
    if torch.jit.is_tracing():  # which records PyTorch's operators alone
        return "torch.jit is tracing"
    return None


def route(x: Tensor, knots: Tensor, plain: bool = False) -> Route:
    """Return the route and backend of a call, with the reasons.

    Args:
        plain: whether :func:`has_values` is true of the call's tensors, so that no transform or trace is active.

    Raises:
        RuntimeError: if the backend asked for can't serve this call.
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
    """Return the backend that "auto" stands for on a device, and why."""
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
    slots: Operands,
    basis: Basis,
    derivative: int,
    pieces: Callable[[], Pieces] | None = None,
):
    """Contraction ``name`` of ``slots``, differentiable, by the route and backend that apply here and now.

    Args:
        pieces: makes the tables of the knots; without it they are computed with each graph that needs them.
    """
    plain, product = has_values(x, knots, *slots), autocast_dtype(x)
    if product is not None:
        basis = basis._replace(product=product)
    taken = route(x, knots, plain)
    spec = ContractionSpec(basis, derivative, taken.backend, {} if pieces is None else {"pieces": pieces}, plain)
    if taken.way == "operators":
        return ops.apply(name, spec, x, knots, slots)
    # autocast is off inside, since it is known where to round
    with nullcontext() if product is None else torch.autocast(x.device.type, enabled=False):
        if taken.way == "functions":
            return Contract.apply(name, spec, x, knots, *slots)
        return BACKENDS["reference"].contract[name](x, knots, slots, basis, derivative)
