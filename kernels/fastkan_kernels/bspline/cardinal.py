"""The cardinal B-spline, whose knots have a spacing of 1, as a sum of truncated powers around the spline's centre.

    B_k(z) = 1/k! * sum_j (-1)^j C(k+1, j) * max((k+1)/2 - j - |z|, 0)^k      0 <= j <= k/2

The formula above is Schoenberg's formula, rewritten with the symmetry B(z) = B(-z). Without the symmetry, terms of
opposite sign would be much larger than their sum. In the d-th derivative, k - d takes the place of k in both the
exponent and the factorial; for odd d, the sum is also multiplied by the sign of -z. The derivatives are implemented
explicitly for each d < k, because autograd through abs and max would give wrong results on knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def middles(first: int, count: int, order: int, like: Tensor) -> Tensor:
    """Return the centres ``[count]`` of ``count`` splines on the knots 0, 1, 2, ..., starting with spline ``first``."""
    start = first + (order + 1) / 2
    return torch.arange(start, start + count, dtype=like.dtype, device=like.device)


def scale(order: int, derivative: int) -> float:
    """Return the constant factor that :func:`splines_at` omits, which is 1 / (k - d)! up to its sign."""
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
    """Evaluate the d-th derivatives (0 <= d < k) of splines on equally spaced knots, divided by :func:`scale`.

    Args:
        first, inv_spacing: the first knot and the inverse spacing, each either a number or a tensor ``[I]``.
        order: the degree k of the splines.
        derivative: the order d of the derivative.
        memory: a one-dimensional tensor with at least ``(1 + scratch_needed(k, d)) * N * count * I`` elements, which
            are overwritten.
        x: the inputs ``[N, I]``.
        numbers: the slice of ``count`` splines to evaluate.

    Returns:
        A tensor ``[N, count, I]``, which is a view of ``memory``.
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
    total.abs_().sub_((order + 1) / 2).clamp_(max=0.0)  # = -max((k+1)/2 - |z|, 0)
    for j in range(1, terms):
        torch.ops.aten.softshrink.out(total, j, out=rooms[j])  # Equals min(total + j, 0), because total <= 0.
    if power == 5:  # Powers above 3 are written as products because PyTorch does so only for the powers 2 and 3.
        bases.mul_(bases.square().square_())
    elif power == 4:
        bases.pow_(2).pow_(2)
    elif power > 1:
        bases.pow_(power)
    for j in range(1, terms):
        total.add_(rooms[j], alpha=(-1) ** j * math.comb(order + 1, j))
    return total.mul_(rooms[terms]) if odd else total


def spline(z: Tensor, order: int, derivative: int) -> Tensor:
    """Return the spline B_k^(d)(z) / scale(k, d), for 0 <= d < k.

    The function has no in-place operations, so a compiler can fuse all of its operations.
    """
    power = order - derivative
    edge = (z.abs() - (order + 1) / 2).clamp(max=0.0)
    total = edge**power
    for j in range(1, order // 2 + 1):
        total = total + (-1) ** j * math.comb(order + 1, j) * (edge + j).clamp(max=0.0) ** power
    return total * z.sign() if derivative % 2 else total


def scratch_needed(order: int, derivative: int) -> int:
    """Return the number of scratch tensors that :func:`splines_at` needs in addition to its result."""
    return order // 2 + derivative % 2
