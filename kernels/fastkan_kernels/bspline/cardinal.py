"""The B-spline on integer knots, centred, by its truncated powers.

    B_k(z) = 1/k! * sum_j (-1)^j C(k+1, j) * max((k+1)/2 - j - |z|, 0)^k      0 <= j <= k/2

(Schoenberg's formula, folded at its axis of symmetry, so that no terms of opposite sign outgrow
their sum.) Its d-th derivative has k-d for the power and, for odd d, the sign of -z. It is written
out for each d < k; autograd through abs and max would be wrong on knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def middles(first: int, count: int, order: int, like: Tensor) -> Tensor:
    """Where splines ``first``, ``first + 1``, ... of knots 0, 1, 2, ... have their middles, ``[count]``."""
    start = first + (order + 1) / 2
    return torch.arange(start, start + count, dtype=like.dtype, device=like.device)


def binomial(n: int, j: int) -> int:
    """n choose j, in a form that the compiler can trace."""
    return math.prod(range(n - j + 1, n + 1)) // math.prod(range(1, j + 1))


def scale(order: int, derivative: int) -> float:
    """What :func:`spline_` leaves out: 1 / (k-d)!, and signs."""
    power = order - derivative
    return (-1.0) ** (power + derivative) / math.factorial(power)


def spline_(z: Tensor, order: int, derivative: int, scratch: list[Tensor]) -> Tensor:
    """B_k^(d)(z) / scale(k, d), for 0 <= d < k, in the memory of ``z``.

    Args:
        scratch: :func:`scratch_needed` tensors like ``z``, overwritten.
    """
    power = order - derivative
    total = z
    if derivative % 2:
        total = torch.abs(z, out=scratch[-1])
        z.sign_()
    else:
        z.abs_()
    total.sub_((order + 1) / 2).clamp_(max=0.0)  # -max((k+1)/2 - |z|, 0)
    # min(total + j, 0), as total <= 0
    inner = [torch.ops.aten.softshrink.out(total, j, out=scratch[j - 1]) for j in range(1, order // 2 + 1)]
    _power_(total, power)
    for j, term in enumerate(inner, start=1):
        total.add_(_power_(term, power), alpha=(-1) ** j * binomial(order + 1, j))
    return z.mul_(total) if derivative % 2 else total


def spline(z: Tensor, order: int, derivative: int) -> Tensor:
    """:func:`spline_` in expressions, for the compiler to fuse."""
    power = order - derivative
    edge = (z.abs() - (order + 1) / 2).clamp(max=0.0)
    total = edge**power
    for j in range(1, order // 2 + 1):
        total = total + (-1) ** j * binomial(order + 1, j) * (edge + j).clamp(max=0.0) ** power
    return total * z.sign() if derivative % 2 else total


def scratch_needed(order: int, derivative: int) -> int:
    """How many tensors :func:`spline_` works in besides ``z``."""
    return order // 2 + derivative % 2


def _power_(base: Tensor, power: int) -> Tensor:
    """``base ** power`` in place, by the powers that PyTorch multiplies out (2 and 3)."""
    if power == 4:
        return base.pow_(2).pow_(2)
    if power == 5:
        return base.mul_(base.square().square_())
    return base if power == 1 else base.pow_(power)
