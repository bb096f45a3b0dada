"""The table of backends. Every backend has three functions with equal signatures for the contractions F, G and H."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..basis import Basis
from ..trilinear import Operands, gradients
from . import convolution, cpu, reference
from .convolution import Window
from .modes import functorch_is_active, is_batched
from .triton import backend as triton


class ContractionSpec(NamedTuple):
    """The arguments of a contraction that are not tensors.

    Attributes:
        basis: the spline order and the base function.
        derivative: the order d of the contraction.
        backend: the name of the backend.
        cache: a dictionary for results that contractions with the same x and knots share in one autograd graph. If
            None, contractions share no results.
        plain: whether all tensors have values that can be read; see :func:`has_values`.
        window: the geometry of a convolution, whose x is a batch of images, or None if x consists of rows.
    """

    basis: Basis
    derivative: int
    backend: str
    cache: dict | None = None
    plain: bool = False
    window: Window | None = None


class Decomposition(NamedTuple):
    """The contractions of a backend as PyTorch operations that a compiler can fuse.

    The operations are used for sizes at which the fused operations are faster than calling the backend.

    Attributes:
        supports: a function ``supports(x, knots, basis)`` that returns whether the fused operations are faster for the
            sizes of the arguments.
        contract: a function ``contract(name, x, knots, operands, basis, derivative)`` that computes a contraction. The
            compiler traces the function after autograd has run.
        source: a digest of the source code of the contractions, which changes whenever the source code changes.
    """

    supports: Callable[..., bool]
    contract: Callable
    source: str


class Backend(NamedTuple):
    """An implementation of the contractions F, G and H.

    Attributes:
        contract: a dictionary with the keys ``"F"``, ``"G"`` and ``"H"``. Each value is a function
            ``f(x, knots, operands, basis, derivative)`` that returns the contraction in the dtype of x.
        unable: a function ``unable(device)`` that returns the reason why the backend cannot run on a device, or None.
        describe: a function ``describe(name, x, outputs, count, basis, derivative)`` that describes the algorithm of a
            contraction in words.
        at_rows: a function ``at_rows(cache, x, knots, operands, basis, *derivatives)``. If shared results make
            contractions at the rows x faster, the function returns an object with the methods
            ``contract(name, operands, derivative)`` and ``vjp(name, full, wanted, derivative)``; otherwise, the
            function returns None. The argument ``cache`` is the cache of :class:`ContractionSpec`.
        compiling: functions that replace ``contract`` in code compiled by torch.compile, or None.
        decomposition: the operations that the compiler traces instead of calling the operator, or None.
        features: a function ``features(x, knots, basis, derivative)`` that returns the derivative psi^(d) ``[N, K, I]``
            of all splines in the working dtype, or None.
        missing: a function ``missing()`` that returns the package that the backend needs and that is not installed, or
            None.
    """

    contract: dict[str, Callable]
    unable: Callable[[torch.device], str | None]
    describe: Callable[..., str]
    at_rows: Callable[..., Any] | None = None
    compiling: dict[str, Callable] | None = None
    decomposition: Decomposition | None = None
    features: Callable[..., Tensor] | None = None
    missing: Callable[[], str | None] = lambda: None


_REFERENCE: dict[str, Callable] = {
    "F": reference.contract_out,
    "G": reference.contract_weight,
    "H": reference.contract_in,
}
_CPU: dict[str, Callable] = {"F": cpu.contract_out, "G": cpu.contract_weight, "H": cpu.contract_in}
_DENSE: dict[str, Callable] = {
    "F": partial(cpu.contract_out, dense_only=True),
    "G": cpu.contract_weight,
    "H": partial(cpu.contract_in, dense_only=True),
}

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
    "dense": Backend(
        _DENSE,
        unable=lambda device: None,
        describe=partial(cpu.describe, dense_only=True),
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
    """Return a function without arguments that computes the contraction ``name`` by the backend of ``spec``.

    Autocast must be off while the returned function runs, because ``spec.basis.matmul_dtype`` already contains the
    autocast dtype.

    Args:
        name: the contraction, ``"F"``, ``"G"`` or ``"H"``.
        spec: the arguments of the contraction that are not tensors.
        x: the inputs ``[N, I]``.
        knots: the knots ``[I, M]`` of the splines.
        operands: the operands of the contraction.
        compiling: whether the caller is compiled by torch.compile, which allows the backend to compile functions too.
    """
    backend, derivative = BACKENDS[spec.backend], spec.derivative
    if spec.plain and spec.cache is not None and backend.at_rows is not None:
        rows = backend.at_rows(spec.cache, x, knots, operands, spec.basis, derivative)
        if rows is not None:
            return partial(rows.contract, name, operands, derivative)
    table = (backend.compiling if compiling else None) or backend.contract
    if not spec.plain and (is_batched(x, *operands) or functorch_is_active()):
        # PyTorch cannot batch or transform kernels and operations that write into existing memory.
        table = _REFERENCE
    if spec.window is not None:
        features = None if table is _REFERENCE else backend.features
        return partial(
            convolution.CONTRACTIONS[name], x, knots, operands, spec.basis, derivative, spec.window, features
        )
    return partial(table[name], x, knots, operands, spec.basis, derivative)


def vjp(name: str, spec: ContractionSpec, x: Tensor, knots: Tensor, full: Operands, wanted: Collection[str]) -> dict:
    """Return the gradients of a contraction as :func:`.trilinear.gradients` does, without an autograd graph."""
    at_rows, order = BACKENDS[spec.backend].at_rows, spec.derivative
    if spec.plain and spec.cache is not None and at_rows is not None:
        rows = at_rows(spec.cache, x, knots, full, spec.basis, order, order + 1)
        if rows is not None:
            return rows.vjp(name, full, wanted, order)

    def contract(name: str, operands: Operands, derivative: int):
        # If shared results do not make all gradients together faster, they do not make a single gradient faster.
        alone = ContractionSpec(spec.basis, derivative, spec.backend, None, spec.plain, spec.window)
        return implementation(name, alone, x, knots, operands)()

    return gradients(name, full, wanted, order, contract)
