"""The table of backends. A backend is three functions, F, G and H, on the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..basis import Basis, exact_products
from ..trilinear import CONTRACTIONS, Operands, gradients
from . import cpu, reference
from .modes import is_batched
from .triton import backend as triton


class ContractionSpec(NamedTuple):
    """The fixed part of a contraction: its features, the order of its derivative, and the name of its backend."""

    basis: Basis
    derivative: int
    backend: str
    cache: dict | None = None  # what a backend caches with a graph, for contractions of the same x and knots


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
    ``at_rows(cache, x, knots, slots, basis, *derivatives)`` returns, where that pays and else
    None, an object whose ``contract(name, slots, derivative)`` and ``vjp(name, slots, upstream, wanted, derivative)``
    share what they compute of x; ``cache`` is that of a :class:`ContractionSpec`.
    """

    contract: dict[str, Callable]
    unable: Callable[[torch.device], str | None]
    describe: Callable[..., str]
    at_rows: Callable[..., Any] | None = None
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
        at_rows=cpu.piecewise.rows_of,
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
    if backend.at_rows is not None and not compiling:
        cache = {} if call.cache is None else call.cache
        rows = backend.at_rows(cache, x, knots, slots, call.basis, call.derivative)
        if rows is not None:
            return rows.contract(name, slots, call.derivative)
    function = (backend.compiling if compiling else None) or backend.contract
    if is_batched(x, *slots):
        function = _REFERENCE  # PyTorch can batch neither what writes into given memory nor a kernel
    with exact_products(x):
        return function[name](x, knots, slots, call.basis, call.derivative)


def vjp(
    name: str, call: ContractionSpec, x: Tensor, knots: Tensor, slots: Operands, upstream, wanted: Collection[str]
) -> dict:
    """Gradients of contraction ``name``, as :func:`.trilinear.gradients`, without a graph."""
    at_rows, order = BACKENDS[call.backend].at_rows, call.derivative
    if at_rows is not None:
        cache = {} if call.cache is None else call.cache
        full = slots.with_operand(CONTRACTIONS[name].free, upstream)
        rows = at_rows(cache, x, knots, full, call.basis, order, order + 1)
        if rows is not None:
            return rows.vjp(name, slots, upstream, wanted, order)

    def contracted(name: str, slots: Operands, derivative: int):
        return contract(name, call._replace(derivative=derivative), x, knots, slots)

    return gradients(name, slots, upstream, wanted, order, contracted)
