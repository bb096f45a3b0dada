"""The cardinal B-spline, whose knots are one apart, as a sum of truncated powers around its centre.

    B_k(z) = 1/k! * sum_j (-1)^j C(k+1, j) * max((k+1)/2 - j - |z|, 0)^k      0 <= j <= k/2

This is Schoenberg's formula with the symmetry B(z) = B(-z) used, without which terms of opposite sign would be much
larger than their sum. The d-th derivative has k-d for both k of the power and the factorial and, for odd d, the sign
of -z. It is written out for each d < k, because autograd through abs and max would be wrong on knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def middles(first: int, count: int, order: int, like: Tensor) -> Tensor:
    """Centres of the splines ``first``, ``first + 1``, ... on the knots 0, 1, 2, ..., ``[count]``."""
    start = first + (order + 1) / 2
    return torch.arange(start, start + count, dtype=like.dtype, device=like.device)


def binomial(n: int, j: int) -> int:
    """n choose j, computed in a way that torch.compile can trace."""
    return math.prod(range(n - j + 1, n + 1)) // math.prod(range(1, j + 1))


def scale(order: int, derivative: int) -> float:
    """The factor that :func:`spline_` leaves out: 1 / (k-d)!, with a sign."""
    power = order - derivative
    return (-1.0) ** (power + derivative) / math.factorial(power)


def spline_(z: Tensor, order: int, derivative: int, scratch: list[Tensor]) -> Tensor:
    """B_k^(d)(z) / scale(k, d), for 0 <= d < k, computed in place: ``z`` is overwritten.

    Args:
        scratch: as many tensors like ``z`` as :func:`scratch_needed` says; they are overwritten.
    """
    power = order - derivative
    total = z
    if derivative % 2:
        total = torch.abs(z, out=scratch[-1])
        z.sign_()
    else:
        z.abs_()
    total.sub_((order + 1) / 2).clamp_(max=0.0)  # -max((k+1)/2 - |z|, 0)
    # Since total <= 0, softshrink gives min(total + j, 0).
    inner = [torch.ops.aten.softshrink.out(total, j, out=scratch[j - 1]) for j in range(1, order // 2 + 1)]
    _power_(total, power)
    for j, term in enumerate(inner, start=1):
        total.add_(_power_(term, power), alpha=(-1) ** j * binomial(order + 1, j))
    return z.mul_(total) if derivative % 2 else total


def spline(z: Tensor, order: int, derivative: int) -> Tensor:
    """The same as :func:`spline_` without writing in place, for a compiler to fuse."""
    power = order - derivative
    edge = (z.abs() - (order + 1) / 2).clamp(max=0.0)
    total = edge**power
    for j in range(1, order // 2 + 1):
        total = total + (-1) ** j * binomial(order + 1, j) * (edge + j).clamp(max=0.0) ** power
    return total * z.sign() if derivative % 2 else total


def scratch_needed(order: int, derivative: int) -> int:
    """Number of scratch tensors that :func:`spline_` needs."""
    return order // 2 + derivative % 2


def _power_(base: Tensor, power: int) -> Tensor:
    """``base ** power`` in place, by squares and cubes, which PyTorch computes as products."""
    if power == 4:
        return base.pow_(2).pow_(2)
    if power == 5:
        return base.mul_(base.square().square_())
    return base if power == 1 else base.pow_(power)
