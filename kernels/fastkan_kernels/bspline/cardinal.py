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


def scale(order: int, derivative: int) -> float:
    """What :func:`splines_at` leaves out: 1 / (k-d)!, and signs."""
    power = order - derivative
    return (-1.0) ** (power + derivative) / math.factorial(power)


def splines_at(
    first: Tensor | float,
    inv_spacing: Tensor | float,
    order: int,
    derivative: int,
    memory: Tensor,
    x: Tensor,
    numbers: slice,
) -> Tensor:
    """Derivatives of splines ``numbers`` on equally spaced knots, divided by :func:`scale`, for 0 <= d < k.

    Args:
        first, inv_spacing: the first knot and the number of cells per unit length, each a number or ``[I]``.
        memory: at least ``(1 + scratch_needed) * N * count * I`` numbers, overwritten.
        x: ``[N, I]``.

    Returns:
        ``[N, count, I]``, a view of ``memory``.
    """
    terms, power, odd = order // 2 + 1, order - derivative, derivative % 2
    shape = (terms + odd, len(x), numbers.stop - numbers.start, x.shape[1])
    rooms = memory[: math.prod(shape)].view(shape)
    total, bases = rooms[0], rooms[:terms]
    t = torch.sub(x, first).mul_(inv_spacing).unsqueeze(1)
    start = numbers.start + (order + 1) / 2
    torch.sub(t, torch.arange(start, start + shape[2], dtype=x.dtype, device=x.device).unsqueeze(1), out=total)
    if odd:
        torch.sign(total, out=rooms[terms])
    total.abs_().sub_((order + 1) / 2).clamp_(max=0.0)  # -max((k+1)/2 - |z|, 0)
    for j in range(1, terms):
        torch.ops.aten.softshrink.out(total, j, out=rooms[j])  # min(total + j, 0), as total <= 0
    if power == 5:  # PyTorch multiplies out the powers 2 and 3 alone
        bases.mul_(bases.square().square_())
    elif power == 4:
        bases.pow_(2).pow_(2)
    elif power > 1:
        bases.pow_(power)
    for j in range(1, terms):
        total.add_(rooms[j], alpha=(-1) ** j * math.comb(order + 1, j))
    return total.mul_(rooms[terms]) if odd else total


def spline(z: Tensor, order: int, derivative: int) -> Tensor:
    """The spline B_k^(d)(z) / scale(k, d), for 0 <= d < k, in expressions, for the compiler to fuse."""
    power = order - derivative
    edge = (z.abs() - (order + 1) / 2).clamp(max=0.0)
    total = edge**power
    for j in range(1, order // 2 + 1):
        total = total + (-1) ** j * math.comb(order + 1, j) * (edge + j).clamp(max=0.0) ** power
    return total * z.sign() if derivative % 2 else total


def scratch_needed(order: int, derivative: int) -> int:
    """How many tensors :func:`splines_at` works in besides its result."""
    return order // 2 + derivative % 2
