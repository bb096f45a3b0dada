"""The table of backends. A backend is three functions, F, G and H, on the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..basis import Basis, exact_products
from ..trilinear import Operands, gradients
from . import cpu, reference
from .modes import is_batched
from .triton import backend as triton


class ContractionSpec(NamedTuple):
    """The fixed part of a contraction: which features, which derivative, computed by whom."""

    basis: Basis
    derivative: int
    backend: str
    kept: dict | None = None  # what a backend keeps of x with a graph, for contractions of the same x


class Small(NamedTuple):
    """A backend's ways for layers so small that calls are what costs.

    The backward of F_0 uses what its forward has kept. ``serves(x, knots, slots, basis, derivative)`` says for which;
    the other two are ``forward(kept, x, knots, slots, basis, by_x)``, which returns y and what it needs, and
    ``backward(taken, g, by_x, by_weight, by_base)``.

    Any contraction is ``contract(name, kept, x, knots, slots, basis, derivative)``, and all gradients of one, without a
    graph, are ``vjp(name, kept, x, knots, slots, upstream, wanted, basis, derivative)``. These return None where they
    are not for a layer like that. ``kept`` is a :class:`ContractionSpec`'s.
    """

    serves: Callable[..., bool]
    forward: Callable[..., tuple]
    backward: Callable[..., tuple]
    contract: Callable
    vjp: Callable[..., dict | None]


class Decomposition(NamedTuple):
    """A backend's contractions in PyTorch operations, which a compiler fuses, for sizes where that is quicker.

    ``supports(x, knots, basis)`` says for which; ``contract(name, x, knots, slots, basis, derivative)`` is
    traced after all derivatives have been taken. ``source`` differs between versions of its code.
    """

    supports: Callable[..., bool]
    contract: Callable
    source: str


class Backend(NamedTuple):
    """One way to compute F, G and H, each ``f(x, knots, slots, basis, derivative)``.

    Every result has the dtype of x. ``unable(device)`` says why it can't serve a device, or
    None; ``describe(name, x, outputs, count, basis, derivative)`` says in words what it would run;
    ``missing()`` says what is not installed without which it serves nothing. ``compiling`` is ``contract``
    again for callers that torch.compile has compiled, where that makes a difference; ``features(x, knots,
    basis, derivative)`` makes psi^(d) of all splines, ``[N, K, I]`` in the working dtype.
    """

    contract: dict[str, Callable]
    unable: Callable[[torch.device], str | None]
    describe: Callable[..., str]
    small: Small | None = None
    compiling: dict[str, Callable] | None = None
    decomposition: Decomposition | None = None
    features: Callable[..., Tensor] | None = None
    missing: Callable[[], str | None] = lambda: None


_REFERENCE = {"F": reference.contract_out, "G": reference.contract_weight, "H": reference.contract_in}
_CPU = {"F": cpu.contract_out, "G": cpu.contract_weight, "H": cpu.contract_in}

BACKENDS: dict[str, Backend] = {
    "reference": Backend(
        _REFERENCE,
        unable=lambda device: None,
        describe=lambda *sizes: "the definition: all features at once, products by einsum",
    ),
    "cpu": Backend(
        _CPU,
        unable=cpu.unable,
        describe=cpu.describe,
        small=Small(cpu.small.serves, cpu.small.forward, cpu.small.backward, cpu.small.contract, cpu.small.vjp),
        compiling={name: partial(function, compiling=True) for name, function in _CPU.items()},
        decomposition=Decomposition(cpu.compiled.decomposes, cpu.compiled.contract, cpu.compiled.SOURCE),
        features=cpu.all_features,
    ),
    "triton": Backend(
        {"F": triton.contract_out, "G": triton.contract_weight, "H": triton.contract_in},
        unable=triton.unable,
        describe=triton.describe,
        features=triton.features,
        missing=triton.missing,
    ),
}


def contract(name: str, call: ContractionSpec, x: Tensor, knots: Tensor, slots: Operands, compiling: bool = False):
    """Compute contraction ``name`` of ``slots`` by the backend of ``call``.

    Autocast is held off inside: what it asks for is in ``call.basis.product`` already.

    Args:
        compiling: whether the caller is compiled, and the backend may compile too.
    """
    backend = BACKENDS[call.backend]
    if backend.small is not None and not compiling:
        kept = {} if call.kept is None else call.kept
        value = backend.small.contract(name, kept, x, knots, slots, call.basis, call.derivative)
        if value is not None:
            return value
    function = (backend.compiling if compiling else None) or backend.contract
    if is_batched(x, *slots):
        function = _REFERENCE  # PyTorch can batch neither what writes into given memory nor a kernel
    with exact_products(x):
        return function[name](x, knots, slots, call.basis, call.derivative)


def vjp(
    name: str, call: ContractionSpec, x: Tensor, knots: Tensor, slots: Operands, upstream, wanted: Collection[str]
) -> dict:
    """Gradients of contraction ``name``, as :func:`.trilinear.gradients`, without a graph."""
    small = BACKENDS[call.backend].small
    if small is not None:
        kept = {} if call.kept is None else call.kept
        found = small.vjp(name, kept, x, knots, slots, upstream, wanted, call.basis, call.derivative)
        if found is not None:
            return found

    def contracted(name: str, slots: Operands, derivative: int):
        return contract(name, call._replace(derivative=derivative), x, knots, slots)

    return gradients(name, slots, upstream, wanted, call.derivative, contracted)


def small_of(call: ContractionSpec) -> Small:
    """What the backend of ``call`` has for small layers, where it is known to have something."""
    small = BACKENDS[call.backend].small
    assert small is not None
    return small
