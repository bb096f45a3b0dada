"""F, G and H of small layers as the compiler should see them: laid open, so that it fuses them.

Only under ``torch.compile``. The operators have had their derivatives by then (autograd comes before
functionalization, which is when they are laid open), so nothing here is differentiated.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline import cardinal
from ...bspline import cox_de_boor as features
from ...trilinear import Operands
from .. import reference

MAX_FEATURES = 1 << 17

# of all code that is traced here
SOURCE = format(zlib.crc32(b"".join(Path(f).read_bytes() for f in (
    __file__, cardinal.__file__, features.__file__, reference.__file__))), "08x")  # fmt: skip


def serves(x: Tensor, knots: Tensor, basis: Basis) -> bool:
    """Whether a contraction is small enough; a large one is better left whole."""
    return x.device.type == "cpu" and basis.matmul_dtype is None and x.shape[0] * knots.numel() <= MAX_FEATURES


def contract(name: str, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int):
    """Contraction F, G or H; contiguous, as the operators' results are."""
    closed = basis.uniform_grid is not None and derivative < basis.order
    if not closed or x.dtype not in (torch.float32, torch.float64):
        return getattr(reference, _REFERENCE[name])(x, knots, slots, basis, derivative)
    psi = _features(x, knots, basis, derivative)
    if slots.v is not None:
        psi = psi * slots.v.t()
    matrix = psi.flatten(0, 1)  # [(K + 1) * I, N]
    if name == "F":
        return matrix.t() @ _joined(slots)
    if name == "G":
        both = (matrix @ slots.g).view(*psi.shape[:2], -1)
        return (both, None) if basis.base == "none" else (both[:-1], both[-1])
    products = (_joined(slots) @ slots.g.t()).view(psi.shape)
    return (products * psi).sum(0).t().contiguous()


_REFERENCE = {"F": "contract_out", "G": "contract_weight", "H": "contract_in"}


def _features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """psi^(d), the base function last, as ``[K + 1, I, N]``, whose loops run along the rows."""
    assert basis.uniform_grid is not None
    first, rate = basis.uniform_grid
    middles = cardinal.middles(0, basis.splines_of(knots), basis.order, x).view(-1, 1, 1)
    psi = cardinal.spline((x.t() - first) * rate - middles, basis.order, derivative)
    psi = psi * (cardinal.scale(basis.order, derivative) * rate**derivative)
    if basis.base == "none":
        return psi
    return torch.cat([psi, features.base_function(x, basis.base, derivative).t().unsqueeze(0)])


def _joined(slots: Operands) -> Tensor:
    """Both parts of W as ``[(K + 1) * I, O]``."""
    if slots.base_weight is None:
        return slots.weight.flatten(0, 1)
    return torch.cat([slots.weight.flatten(0, 1), slots.base_weight])
