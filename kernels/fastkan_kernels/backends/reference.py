"""The reference backend, which computes F, G and H by their definition, as matrix products with all features.

The other backends are tested against the reference backend. The reference backend consists of differentiable PyTorch
operations for any dtype and device, so it also works under ``torch.func``, forward-mode differentiation and
``torch.export``. All features are stored, which takes memory for N x K x I numbers. Matrix products are used
instead of einsum, because ``autograd.grad(is_grads_batched=True)`` cannot batch einsum.
"""

from __future__ import annotations

from torch import Tensor

from ..basis import Basis
from ..bspline.cox_de_boor import features, round_weights
from ..trilinear import Operands


def contract_out(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """Compute F_d(x, W, v) = y[n,o], a sum over b and i."""
    psi, base = _times_v(*features(x, knots, basis, derivative), operands.v)
    y = _rows(psi) @ _columns(round_weights(operands.weight, basis.matmul_dtype, psi.dtype))
    if base is not None and operands.base_weight is not None:
        y = y + base @ round_weights(operands.base_weight, basis.matmul_dtype, psi.dtype)
    return y.to(x.dtype)


def contract_weight(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int
) -> tuple[Tensor, Tensor | None]:
    """Compute G_d(x, g, v) = dW[b,i,o], a sum over n, and return its parts for the splines and the base function."""
    psi, base = _times_v(*features(x, knots, basis, derivative), operands.v)
    g = operands.g.to(psi.dtype)
    splines = (_rows(psi).t() @ g).to(x.dtype).view(*psi.shape[1:], g.shape[1])
    return splines, None if base is None else (base.t() @ g).to(x.dtype)


def contract_in(x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Tensor:
    """Compute H_d(x, W, g) = h[n,i], a sum over b and o."""
    psi, base = features(x, knots, basis, derivative)
    g = operands.g.to(psi.dtype)
    weight = round_weights(operands.weight, basis.matmul_dtype, psi.dtype)
    h = (psi * (g @ _columns(weight).t()).view(psi.shape)).sum(1)
    if base is not None and operands.base_weight is not None:
        h = h + base * (g @ round_weights(operands.base_weight, basis.matmul_dtype, psi.dtype).t())
    return h.to(x.dtype)


def _rows(psi: Tensor) -> Tensor:
    """Reshape ``psi [N, K, I]`` to ``[N, K I]``."""
    return psi.reshape(psi.shape[0], psi.shape[1] * psi.shape[2])


def _columns(weight: Tensor) -> Tensor:
    """Reshape ``weight [K, I, O]`` to ``[K I, O]``."""
    return weight.reshape(weight.shape[0] * weight.shape[1], weight.shape[2])


def _times_v(psi: Tensor, base: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if v is None:
        return psi, base
    v = v.to(psi.dtype)
    return psi * v.unsqueeze(1), None if base is None else base * v
