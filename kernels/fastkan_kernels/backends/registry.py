"""The table of backends. A backend has at least three functions, F, G and H, of the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..basis import Basis
from ..trilinear import Operands, gradients
from . import cpu, reference
from .modes import functorch_is_active, is_batched
from .triton import backend as triton


class ContractionSpec(NamedTuple):
    """The arguments of a contraction that are not tensors: basis, order of the derivative and name of the backend."""

    basis: Basis
    derivative: int
    backend: str
    cache: dict | None = None  # what contractions of the same x and knots share in one graph; None where they don't
    plain: bool = False  # whether all tensors are plain ones; see has_values


class Decomposition(NamedTuple):
    """A backend's contractions in PyTorch operations, which a compiler fuses, for sizes where that is quicker.

    ``supports(x, knots, basis)`` says whether the sizes are such; ``contract(name, x, knots, operands, basis,
    derivative)`` is traced after autograd has run. ``source`` is a digest of its code, so it changes with it.
    """

    supports: Callable[..., bool]
    contract: Callable
    source: str


class Backend(NamedTuple):
    """One implementation of F, G and H.

    Attributes:
        contract: F, G and H by name, each ``f(x, knots, operands, basis, derivative)`` with a result in x's dtype.
        unable: ``unable(device)`` says why the backend cannot run on a device, or returns None.
        describe: ``describe(name, x, outputs, count, basis, derivative)`` says in words what it would run.
        at_rows: ``at_rows(cache, x, knots, operands, basis, *derivatives)`` returns None, or if that is faster, an
            object whose ``contract(name, operands, derivative)`` and ``vjp(name, full, wanted, derivative)`` share
            what they compute of x; ``cache`` is that of :class:`ContractionSpec`.
        compiling: replaces ``contract`` in code that torch.compile has compiled.
        decomposition: what the compiler traces instead of calling the operator.
        features: ``features(x, knots, basis, derivative)`` returns psi^(d) of all splines, ``[N, K, I]`` in the
            working dtype.
        missing: ``missing()`` says which package the backend needs and lacks, or returns None.
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


def implementation(
    name: str, spec: ContractionSpec, x: Tensor, knots: Tensor, operands: Operands, compiling: bool = False
) -> Callable[[], Any]:
    """Return the function that computes contraction ``name`` of ``operands`` by the backend of ``spec``.

    Autocast must be off while it runs, since its dtype is in ``spec.basis.matmul_dtype`` already.

    Args:
        compiling: whether the caller is compiled by torch.compile, so that the backend may compile too.
    """
    backend, derivative = BACKENDS[spec.backend], spec.derivative
    if spec.plain and spec.cache is not None and backend.at_rows is not None:
        rows = backend.at_rows(spec.cache, x, knots, operands, spec.basis, derivative)
        if rows is not None:
            return partial(rows.contract, name, operands, derivative)
    table = (backend.compiling if compiling else None) or backend.contract
    if not spec.plain and (is_batched(x, *operands) or functorch_is_active()):
        table = _REFERENCE  # PyTorch can batch or transform neither what writes into given memory nor a kernel
    return partial(table[name], x, knots, operands, spec.basis, derivative)


def vjp(name: str, spec: ContractionSpec, x: Tensor, knots: Tensor, full: Operands, wanted: Collection[str]) -> dict:
    """Gradients of contraction ``name`` without a graph, by the arguments of :func:`.trilinear.gradients`."""
    at_rows, order = BACKENDS[spec.backend].at_rows, spec.derivative
    if spec.plain and spec.cache is not None and at_rows is not None:
        rows = at_rows(spec.cache, x, knots, full, spec.basis, order, order + 1)
        if rows is not None:
            return rows.vjp(name, full, wanted, order)

    def contract(name: str, operands: Operands, derivative: int):
        # sharing that is no gain for all gradients together is none for one of them
        alone = spec._replace(derivative=derivative, cache=None)
        return implementation(name, alone, x, knots, operands)()

    return gradients(name, full, wanted, order, contract)
