"""Implementations that use PyTorch's compiler, for contractions that are called under ``torch.compile``.

- A large contraction remains a single operator, and the compiler generates the code for its dense features
  (:func:`closed_form`). The generated code makes one pass over memory instead of nine.
- A small contraction is decomposed into PyTorch operations (:func:`contract`), which the compiler fuses with the
  operations around them. Operators are decomposed during functionalization, which comes after autograd, so a
  decomposition is never differentiated.
"""

from __future__ import annotations

import functools
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline import cardinal
from ...bspline import cox_de_boor as features
from ...knots import uniform_grid
from ...trilinear import Operands
from .. import reference

MAX_FEATURES = 1 << 17  # the largest number of features for which a contraction is decomposed

# The checksum of all code that the compiler traces in a decomposition.
SOURCE = format(zlib.crc32(b"".join(Path(f).read_bytes() for f in (
    __file__, cardinal.__file__, features.__file__, reference.__file__))), "08x")  # fmt: skip


# -- features of a large contraction ----------------------------------------------------------------


def closed_form(like: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Callable[[Tensor, slice], Tensor]:
    """Return a compiled function that evaluates psi^(d), d < k, on uniform knots for a block of rows and splines.

    Args:
        like: a tensor ``[N, I]`` with the dtype and the device of the blocks.
    """
    first, inv_spacing = uniform_grid(knots, basis)
    scale = inv_spacing**derivative * cardinal.scale(basis.order, derivative)
    constants = [
        torch.as_tensor(number, dtype=like.dtype, device=like.device).expand(like.shape[1]).contiguous()
        for number in (first, inv_spacing, scale)
    ]
    which = f"{basis.order}{derivative}"  # a str is passed because the compiler would turn ints into symbolic sizes

    def fill(x: Tensor, numbers: slice) -> Tensor:
        middles = cardinal.middles(numbers.start, numbers.stop - numbers.start, basis.order, like)
        with torch.no_grad():
            return _compiled_psi()(x, *constants, middles, which)

    return fill


@functools.cache
def works() -> bool:
    """Check whether a working compiler is installed, and issue a single warning if no compiler works."""
    cpu = torch.device("cpu")  # the device is set explicitly because the default device may not be the CPU
    row = torch.zeros(3, device=cpu)
    try:
        with torch.no_grad():
            _compiled_psi()(torch.zeros(4, 3, device=cpu), row, row, row, torch.zeros(5, device=cpu), "10")
    except Exception as error:  # a missing or broken compiler may raise an exception of any type
        warnings.warn(f"fastkan does not compile its features, because the compilation failed: {error}", stacklevel=3)
        return False
    return True


def _psi(x: Tensor, first: Tensor, inv_spacing: Tensor, scale: Tensor, middles: Tensor, which: str) -> Tensor:
    order, derivative = int(which[0]), int(which[1])
    z = ((x - first) * inv_spacing).unsqueeze(1) - middles.unsqueeze(1)
    return cardinal.spline(z, order, derivative) * scale


@functools.cache
def _compiled_psi() -> Callable:
    return torch.compile(_psi, dynamic=True, fullgraph=True)


# -- decomposition of a small contraction -----------------------------------------------------------


def decomposes(x: Tensor, knots: Tensor, basis: Basis) -> bool:
    """Check whether a contraction is small enough to be decomposed. Large contractions are faster as one operator."""
    return x.device.type == "cpu" and basis.matmul_dtype is None and x.shape[0] * knots.numel() <= MAX_FEATURES


def contract(name: str, x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int):
    """Compute contraction F, G or H by PyTorch operations. The result is contiguous, like the registered operator's."""
    closed = basis.uniform_grid is not None and derivative < basis.order
    if not closed or x.dtype not in (torch.float32, torch.float64):
        return getattr(reference, _REFERENCE[name])(x, knots, operands, basis, derivative)
    psi = _features(x, knots, basis, derivative)
    if operands.v is not None:
        psi = psi * operands.v.t()
    matrix = psi.flatten(0, 1)  # [(K + 1) * I, N]
    if name == "F":
        return matrix.t() @ _joined(operands)
    if name == "G":
        both = (matrix @ operands.g).view(*psi.shape[:2], -1)
        return (both, None) if basis.base == "none" else (both[:-1], both[-1])
    products = (_joined(operands) @ operands.g.t()).view(psi.shape)
    return (products * psi).sum(0).t().contiguous()


_REFERENCE = {"F": "contract_out", "G": "contract_weight", "H": "contract_in"}


def _features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Return all features ``[K + 1, I, N]``, with the base function last and rows as the innermost dimension."""
    assert basis.uniform_grid is not None
    first, inv_spacing = basis.uniform_grid
    middles = cardinal.middles(0, basis.splines_of(knots), basis.order, x).view(-1, 1, 1)
    psi = cardinal.spline((x.t() - first) * inv_spacing - middles, basis.order, derivative)
    psi = psi * (cardinal.scale(basis.order, derivative) * inv_spacing**derivative)
    if basis.base == "none":
        return psi
    return torch.cat([psi, features.base_function(x, basis.base, derivative).t().unsqueeze(0)])


def _joined(operands: Operands) -> Tensor:
    """Concatenate the spline weights and any base weights into one matrix.

    The shape of the matrix is ``[(K + 1) * I, O]``, or ``[K * I, O]`` without base weights.
    """
    if operands.base_weight is None:
        return operands.weight.flatten(0, 1)
    return torch.cat([operands.weight.flatten(0, 1), operands.base_weight])
