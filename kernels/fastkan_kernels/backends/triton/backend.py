"""The entry points of the Triton backend, as the registry of backends expects them.

This module can be imported without Triton, because the kernels are imported only when a contraction is first computed.
The function :func:`missing` reports whether Triton is installed.
"""

from __future__ import annotations

import functools
from types import ModuleType

from torch import Tensor

from ...basis import Basis
from ...trilinear import Operands
from .hardware import missing, unable

__all__ = ["contract_in", "contract_out", "contract_weight", "describe", "features", "missing", "unable"]


@functools.cache  # an import statement in the function would take longer, even if the module is already imported
def _dispatch() -> ModuleType:
    from . import dispatch

    return dispatch


def contract_out(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """Return the contraction F_d(x, W, v) ``[N, O]``, which is summed over the splines b and the inputs i."""
    return _dispatch().contract("F", x, knots, operands, basis, derivative)


def contract_weight(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int
) -> tuple[Tensor, Tensor | None]:
    """Return the contraction G_d(x, g, v), which is summed over the rows n.

    Returns:
        A tuple of the tensor for the splines ``[K, I, O]`` and the tensor for the base function ``[I, O]``. Without a
        base function, None is returned in place of the tensor for the base function.
    """
    return _dispatch().contract("G", x, knots, operands, basis, derivative)


def contract_in(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """Return the contraction H_d(x, W, g) ``[N, I]``, which is summed over the splines b and the outputs o."""
    return _dispatch().contract("H", x, knots, operands, basis, derivative)


def features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Return the d-th derivative of all splines ``[N, K, I]`` in the working dtype."""
    return _dispatch().features(x, knots, basis, derivative)


def describe(name: str, x: Tensor, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """Return a description in words of the kernels that run for a contraction of the given sizes."""
    return _dispatch().describe(name, x, outputs, count, basis, derivative)
