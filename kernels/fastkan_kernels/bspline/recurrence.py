"""Cox-de Boor's recursion on any knots, without divisions and along the rows.

With every spline divided by the width of its support, ``N_j = B_j / (t_{j+d+1} - t_j)``, one degree more is

    B_{j,d} = (x - t_j) N_{j,d-1} - (x - t_{j+d+1}) N_{j+1,d-1},       B'_{j,d} = d (N_{j,d-1} - N_{j+1,d-1})

(de Boor, A Practical Guide to Splines, IX (14) and X (16)), so the differences ``x - t_j`` are made once and serve all
degrees, and reciprocals of the widths depend on the knots alone. The rows are the innermost dimension: every pass runs
over contiguous memory, whatever the number of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROOMS = 3  # tensors [M, I, rows] that a block is made in


class Recurrence:
    """psi^(d) of one layer's knots, for d <= k.

    Args:
        knots: ``[I, M]``, each row non-decreasing.

    Attributes:
        holds: whether the reciprocals stay in the dtype's range; else only the definition is right.
    """

    def __init__(self, knots: Tensor, order: int, derivative: int) -> None:
        self.order, self.derivative = order, derivative
        self.knots = t = knots.t().unsqueeze(2).contiguous()
        widths = [t[degree:] - t[:-degree] for degree in range(1, order + 1)]
        limits = torch.finfo(knots.dtype)
        narrowest = torch.where(widths[0] > 0, widths[0], limits.max).min()
        tame = (narrowest > limits.tiny * 16) & ((t[-1] - t[0]).max() < narrowest * limits.max**0.5)
        self.holds = bool(tame)
        if not self.holds:
            return
        self.rates = [torch.where(width > 0, 1 / width, 0.0) for width in widths]
        # where no cell is empty, hats are continuous, and the search for a row's cell can be left out
        self.hats = derivative < order and bool((widths[0] > 0).all())
        if self.hats:
            norm = self.rates[1] if order > 1 else torch.ones_like(self.rates[0][1:])
            self.rising, self.falling = self.rates[0][:-1] * norm, self.rates[0][1:] * -norm

    def __call__(self, x: Tensor, rooms: Tensor) -> Tensor:
        """The splines at ``x [n, I]`` as a view ``[n, K, I]`` of memory ``[K, I, n]``.

        Args:
            rooms: ``[3, M, I, n]``, overwritten.
        """
        t, count = self.knots, len(self.knots)
        rows = x.t().contiguous()
        within = torch.minimum(torch.maximum(rows, t[0, :, :]), t[-1, :, :])  # an infinity times 0 would be NaN
        ahead, here, there = rooms
        torch.sub(within, t, out=ahead)
        if self.hats:
            count -= 2
            torch.mul(ahead[:count], self.rising, out=here[:count])
            torch.mul(ahead[2:], self.falling, out=there[:count])
            torch.minimum(here[:count], there[:count], out=here[:count]).clamp_(min=0)
            degrees = range(2, self.order + 1)
        else:
            count -= 1
            beyond = rows >= t
            torch.ne(beyond[:-1], beyond[1:], out=here[:count])
            here[:count].addcmul_(within, torch.zeros_like(within))  # a NaN lies in no cell, and stays NaN
            here[:count].mul_(self.rates[0])
            degrees = range(1, self.order + 1)
        for degree in degrees:
            count -= 1
            made, before = there[:count], here[: count + 1]
            if degree > self.order - self.derivative:
                torch.sub(before[:-1], before[1:], out=made).mul_(degree)
            else:
                torch.mul(ahead[:count], before[:-1], out=made)
                made.addcmul_(ahead[degree + 1 :], before[1:], value=-1)
            if degree < self.order:
                made.mul_(self.rates[degree])
            here, there = there, here
        return here[:count].permute(2, 0, 1)
