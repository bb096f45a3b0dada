"""The choice of the autograd route and of the backend for a contraction.

The first applicable route in the following list is used:

1. composite: the reference backend, differentiated by autograd itself. The route is needed under a functorch transform,
   forward-mode differentiation, ``torch.export`` and ``torch.jit.trace``, and for a gradient with respect to the knots.
   In these cases the autograd Functions would raise an error, and the registered operators would return a result
   without a tangent.
2. operators: registered operators, which are used while ``torch.compile`` traces or ``FlopCounterMode`` counts.
3. functions: autograd Functions, which are used in eager mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import convolution
from ..backends.modes import forward_mode_is_active, functorch_is_active, has_values, needs_graph
from ..backends.registry import BACKENDS, ContractionSpec, implementation
from ..basis import Basis, autocast_dtype
from ..bspline.piecewise import Pieces
from ..trilinear import Operands
from ..validation import Choice, checked, warn
from . import flops
from . import operators as ops
from .functions import Contract

BACKEND_NAMES = ("auto", *BACKENDS)

# The backend that "auto" selects for each type of device. For all other types, and if the backend cannot run on a
# device, "auto" selects "dense". Tensors of the type "meta" have no memory, so any backend would do.
_AUTO = {"cpu": "cpu", "cuda": "triton", "meta": "reference"}
_DEVICES = {"cpu": "the CPU", "cuda": "a GPU", "meta": "no device"}
_warned: set[tuple[str, str]] = set()  # pairs of a device type and a reason

_chosen = threading.local()


class Route(NamedTuple):
    """A route and a backend, each with an explanation of the choice in words."""

    way: str  # The route is "composite", "operators" or "functions".
    way_because: str
    backend: str
    backend_because: str


@checked(name=Choice(BACKEND_NAMES))
@contextmanager
def backend(name: str) -> Iterator[None]:
    """Select the backend for all contractions inside a ``with`` block, in the current thread.

    Args:
        name: the backend, ``"auto"``, ``"reference"``, ``"cpu"``, ``"dense"`` or ``"triton"``. Outside of any ``with``
            block, ``"auto"`` is used, which chooses a backend by the device: the Triton kernels on a GPU, or
            ``"dense"``, plain PyTorch with bounded memory, where the kernels cannot run. A contraction that a backend
            selected by name cannot compute raises an error. A backward pass uses the backend of its forward pass.

    Raises:
        ValueError: if there is no backend with the given name.
        RuntimeError: if a package that the backend needs is not installed.

    Example:
        >>> with backend("reference"):
        ...     y = KANLinear(2, 5)(torch.rand(10, 2))
    """
    missing = None if name == "auto" else BACKENDS[name].missing()
    if missing is not None:
        raise RuntimeError(f"backend {name!r} cannot be used: {missing}")
    before = chosen_backend()
    _chosen.name = name
    try:
        yield
    finally:
        _chosen.name = before


def chosen_backend() -> str:
    """Return the name passed to the innermost active :func:`backend` block of the current thread, or ``"auto"``."""
    return getattr(_chosen, "name", "auto")


def needs_composite(knots: Tensor) -> str | None:
    """Return the reason in words why the composite route is needed, or None if the route is not needed."""
    if functorch_is_active():
        return "a torch.func transform is active"
    if forward_mode_is_active():
        return "a forward-mode level is active"
    if needs_graph(knots):
        return "a gradient with respect to the knots is needed"
    if torch.compiler.is_exporting():
        return "the model is being exported"
    if torch.jit.is_tracing():  # The trace records only PyTorch's own operators.
        return "torch.jit is tracing"
    return None


def route(x: Tensor, knots: Tensor, plain: bool = False) -> Route:
    """Return the route and the backend for a contraction with the inputs x.

    Args:
        x: the inputs ``[N, I]``.
        knots: the knots ``[I, M]`` of the splines.
        plain: whether :func:`has_values` has found that no transform or trace is active.

    Raises:
        RuntimeError: if the backend selected by :func:`backend` cannot compute the contraction.
    """
    asked = chosen_backend()
    reason = None if plain and not needs_graph(knots) else needs_composite(knots)
    if reason is not None:
        if asked not in ("auto", "reference"):
            raise RuntimeError(
                f"backend {asked!r} cannot be used here: {reason}, and only the reference is "
                "differentiated by PyTorch itself. Use backend('auto') or backend('reference')"
            )
        return Route("composite", reason, "reference", "the only backend that PyTorch itself differentiates")

    if asked == "auto":
        name, because = _automatic(x.device)
    else:
        name, because = asked, "selected by fastkan.backend"
        unable = BACKENDS[name].unable(x.device)
        if unable:
            raise RuntimeError(f"backend {name!r} cannot be used for this call: {unable}")
    if not plain and torch.compiler.is_compiling():
        return Route("operators", "torch.compile is tracing", name, because)
    if not plain and flops.is_counting():
        return Route("operators", "floating-point operations are counted", name, because)
    return Route("functions", "eager mode", name, because)


def _automatic(device: torch.device) -> tuple[str, str]:
    """Return a tuple of the backend that ``"auto"`` selects for a device and the reason for the choice in words."""
    name = _AUTO.get(device.type, "triton")
    unable = BACKENDS[name].unable(device)
    if unable is not None:
        _warn_once(device.type, unable)
        return "dense", f"auto: backend {name!r} cannot be used: {unable}"
    return name, f"auto: x is on {_DEVICES[device.type]}"


def _warn_once(device_type: str, reason: str) -> None:
    if (device_type, reason) not in _warned:
        _warned.add((device_type, reason))
        warn(
            f"fastkan: the Triton kernels cannot run on {device_type!r} tensors because {reason}; the contractions run "
            "in plain PyTorch, which is slower",
            RuntimeWarning,
        )


_warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile calls it instead of tracing it


def contract(
    name: str,
    x: Tensor,
    knots: Tensor,
    operands: Operands,
    basis: Basis,
    derivative: int,
    pieces: Callable[[], Pieces] | None = None,
    window: convolution.Window | None = None,
):
    """Compute a contraction by the current route and backend. The result can be differentiated.

    Args:
        name: the contraction, ``"F"``, ``"G"`` or ``"H"``.
        x: the inputs ``[N, I]``.
        knots: the knots ``[I, M]`` of the splines.
        operands: the operands of the contraction.
        basis: the spline order and the base function.
        derivative: the order d of the contraction.
        pieces: a function that returns the tables of the knots. If None, the tables are computed once for each autograd
            graph in which the tables are needed.
        window: the geometry of a convolution, or None. With a window, x, v and g are images ``[N, C, *size]``; see
            :mod:`..backends.convolution`.
    """
    plain, product = has_values(x, knots, *operands), autocast_dtype(x)
    if product is not None:
        basis = basis._replace(matmul_dtype=product)
    taken = route(x, knots, plain)
    cache = None if window else {"pieces": pieces, "fixed_x": not x.requires_grad and torch.is_grad_enabled()}
    spec = ContractionSpec(basis, derivative, taken.backend, cache, plain, window)
    if taken.way == "operators":
        return ops.apply(name, spec, x, knots, operands)
    # Autocast is switched off, because the autocast dtype is stored in the basis and the backends round by themselves.
    with nullcontext() if product is None else torch.autocast(x.device.type, enabled=False):
        if taken.way == "functions":
            if torch.is_grad_enabled():
                return Contract.apply(name, spec, x, knots, *operands)
            return implementation(name, spec, x, knots, operands)()
        if window is not None:
            return convolution.CONTRACTIONS[name](x, knots, operands, basis, derivative, window, None)
        return BACKENDS["reference"].contract[name](x, knots, operands, basis, derivative)
