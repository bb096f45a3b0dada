"""The functions of this backend for the table of backends. They can be imported without Triton: the kernels are
imported in the first call, and :func:`missing` says whether Triton is installed."""

from __future__ import annotations

from torch import Tensor

from ...basis import Basis
from ...trilinear import Operands
from .hardware import missing, unable

__all__ = ["contract_in", "contract_out", "contract_weight", "describe", "features", "missing", "unable"]


def contract_out(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """F_d(x, W, v) = y[n,o], summed over b and i."""
    from . import dispatch

    return dispatch.contract_out(x, knots, operands, basis, derivative)


def contract_weight(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int
) -> tuple[Tensor, Tensor | None]:
    """G_d(x, g, v) = dW[b,i,o], summed over n: the part of the splines and that of the base function."""
    from . import dispatch

    return dispatch.contract_weight(x, knots, operands, basis, derivative)


def contract_in(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """H_d(x, W, g) = h[n,i], summed over b and o."""
    from . import dispatch

    return dispatch.contract_in(x, knots, operands, basis, derivative)


def features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """psi^(d) of all splines, ``[N, K, I]`` in the working dtype."""
    from . import dispatch

    return dispatch.features(x, knots, basis, derivative)


def describe(name: str, x: Tensor, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """Description in words of what runs for a contraction of these sizes."""
    from . import dispatch

    return dispatch.describe(name, x, outputs, count, basis, derivative)
