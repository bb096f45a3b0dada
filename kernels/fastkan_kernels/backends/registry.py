"""The table of backends. A backend has at least three functions, F, G and H, of the same arguments."""

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
    """The arguments of a contraction that are not tensors: basis, order of the derivative and name of the backend."""

    basis: Basis
    derivative: int
    backend: str
    kept: dict | None = None  # a backend's cache for further contractions of the same x, owned by the graph


class Small(NamedTuple):
    """A backend's functions for layers so small that the number of calls decides the time.

    For F_0, ``forward(kept, x, knots, slots, basis, by_x)`` returns y and a cache for
    ``backward(taken, g, by_x, by_weight, by_base)``. ``serves(x, knots, slots, basis, derivative)`` says whether a
    layer is supported by these two.

    ``contract(name, kept, x, knots, slots, basis, derivative)`` computes any contraction, and
    ``vjp(name, kept, x, knots, slots, upstream, wanted, basis, derivative)`` all gradients of one without building a
    graph. They return None for a layer that they do not support. ``kept`` is that of :class:`ContractionSpec`.
    """

    serves: Callable[..., bool]
    forward: Callable[..., tuple]
    backward: Callable[..., tuple]
    contract: Callable
    vjp: Callable[..., dict | None]


class Decomposition(NamedTuple):
    """A backend's contractions in PyTorch operations that a compiler traces and fuses, for sizes where that is quicker.

    ``serves(x, knots, basis)`` says whether the sizes are such; ``contract(name, x, knots, slots, basis, derivative)``
    is traced after autograd has run. ``source`` is a digest of its code, different for each version of it.
    """

    serves: Callable[..., bool]
    contract: Callable
    source: str


class Backend(NamedTuple):
    """One implementation of F, G and H.

    Attributes:
        contract: F, G and H by name, each ``f(x, knots, slots, basis, derivative)`` with a result in x's dtype.
        unable: ``unable(device)`` says why the backend cannot run on a device, or returns None.
        describe: ``describe(name, x, outputs, count, basis, derivative)`` says in words what it would run.
        small: functions for small layers.
        compiling: replaces ``contract`` in code that torch.compile has compiled.
        decomposition: what the compiler traces instead of calling the operator.
        features: ``features(x, knots, basis, derivative)`` returns psi^(d) of all splines, ``[N, K, I]`` in the
            working dtype. The next call may overwrite it.
        missing: ``missing()`` says which package the backend needs and lacks, or returns None.
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
        decomposition=Decomposition(cpu.lowered.serves, cpu.lowered.contract, cpu.lowered.SOURCE),
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
    """Compute contraction ``name`` by the backend of ``call``.

    Autocast is off inside, since its dtype is in ``call.basis.matmul_dtype`` already.

    Args:
        compiling: whether the caller is compiled by torch.compile, so that the backend may compile too.
    """
    backend = BACKENDS[call.backend]
    if backend.small is not None and not compiling:
        kept = {} if call.kept is None else call.kept
        value = backend.small.contract(name, kept, x, knots, slots, call.basis, call.derivative)
        if value is not None:
            return value
    function = (backend.compiling if compiling else None) or backend.contract
    if is_batched(x, *slots):
        function = _REFERENCE  # neither functions with out= arguments nor kernels can be batched
    with exact_products(x):
        return function[name](x, knots, slots, call.basis, call.derivative)


def vjp(
    name: str, call: ContractionSpec, x: Tensor, knots: Tensor, slots: Operands, upstream, wanted: Collection[str]
) -> dict:
    """Gradients of contraction ``name``, as :func:`.trilinear.gradients` returns them, without building a graph."""
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
    """The functions for small layers of the backend of ``call``, which must have some."""
    small = BACKENDS[call.backend].small
    assert small is not None
    return small
