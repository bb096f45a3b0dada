"""The Cox-de Boor recursion for arbitrary knots, in a form in which no division depends on x.

Divide each spline of degree d by the width of its support, ``N_{j,d} = B_{j,d} / (t_{j+d+1} - t_j)``. The recursion
from degree d - 1 to degree d is then

    B_{j,d} = (x - t_j) N_{j,d-1} - (x - t_{j+d+1}) N_{j+1,d-1},       B'_{j,d} = d (N_{j,d-1} - N_{j+1,d-1})

See de Boor, A Practical Guide to Splines, IX (14) and X (16). The differences ``x - t_j`` are computed once and used
for all degrees. The reciprocals of the widths depend on the knots alone and are also computed only once. Rows are the
innermost dimension, so every operation runs over contiguous memory, even if the layer has few inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCRATCH = 3  # the number of scratch tensors [M, I, rows] that a block of rows needs


class Recurrence:
    """A function object that evaluates all splines on given knots, or their derivatives of order d <= k.

    Args:
        knots: the knots ``[I, M]``, non-decreasing in each row.
        order: the degree k of the splines.
        derivative: the order d of the derivative.

    Attributes:
        holds: whether the reciprocals of the widths stay within the range of the dtype. If ``holds`` is False, the
            instance must not be called, and :func:`.cox_de_boor.splines` has to be used instead.
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
        self.inv_widths = [torch.where(width > 0, 1 / width, 0.0) for width in widths]
        # If no cell has width 0, the splines of degree 1 (hat functions) are continuous. A hat function is then the
        # minimum of two straight lines, so the cell of x does not have to be found.
        self.hats = derivative < order and bool((widths[0] > 0).all())
        if self.hats:
            norm = self.inv_widths[1] if order > 1 else torch.ones_like(self.inv_widths[0][1:])
            self.rising, self.falling = self.inv_widths[0][:-1] * norm, self.inv_widths[0][1:] * -norm

    def __call__(self, x: Tensor, scratch: Tensor) -> Tensor:
        """Evaluate the splines at ``x [n, I]`` and return a view ``[n, K, I]`` of ``scratch``.

        Args:
            scratch: scratch memory ``[3, M, I, n]``, which is overwritten.
        """
        t, count = self.knots, len(self.knots)
        rows = x.t().contiguous()
        within = torch.minimum(torch.maximum(rows, t[0, :, :]), t[-1, :, :])  # x is clamped because inf * 0 is NaN
        ahead, here, there = scratch
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
            here[:count].addcmul_(within, torch.zeros_like(within))  # adding x * 0 makes the splines NaN if x is NaN
            here[:count].mul_(self.inv_widths[0])
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
                made.mul_(self.inv_widths[degree])
            here, there = there, here
        return here[:count].permute(2, 0, 1)
