"""The plain Cox-de Boor layer: the baseline of all comparisons.

It uses the algorithm of most KAN layers in PyTorch: the whole [N, in, G + k] tensor of splines from the recursion over
the knots, flattened, and one ``F.linear``; plus the base function. Its class name and tensors are those of
efficient-kan's layer, which many projects have copied, so that :func:`fastkan.convert` accepts it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class KANLinear(nn.Module):
    """``y[n,o] = sum_i (sum_b spline_weight[o,i,b] B_b(x[n,i]) + base_weight[o,i] silu(x[n,i]))``.

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        grid_size: G, intervals of the grid.
        spline_order: k.
        grid_range: ends of the grid.
    """

    grid: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.spline_order = spline_order
        self.base_activation = nn.SiLU()
        low, high = grid_range
        steps = torch.arange(-spline_order, grid_size + spline_order + 1, dtype=torch.float64)
        knots = low + steps * ((high - low) / grid_size)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.register_buffer("grid", knots.to(dtype).repeat(in_features, 1))
        count = grid_size + spline_order
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, count, dtype=dtype))
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        nn.init.normal_(self.spline_weight, std=0.1 / math.sqrt(in_features))
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5))

    def splines(self, x: Tensor) -> Tensor:
        """All splines of every input, ``[N, in, G + k]``."""
        x, t = x.unsqueeze(-1), self.grid
        values = ((x >= t[:, :-1]) & (x < t[:, 1:])).to(x.dtype)
        for degree in range(1, self.spline_order + 1):
            left, right = t[:, : -degree - 1], t[:, degree + 1 :]
            rising = (x - left) / (t[:, degree:-1] - left) * values[:, :, :-1]
            falling = (right - x) / (right - t[:, 1:-degree]) * values[:, :, 1:]
            values = rising + falling
        return values

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in]`` to ``[N, out]``."""
        base = functional.linear(self.base_activation(x), self.base_weight)
        return base + functional.linear(self.splines(x).flatten(1), self.spline_weight.flatten(1))

    @torch.no_grad()
    def load(self, spline_weight: Tensor, base_weight: Tensor) -> KANLinear:
        """Take weights in :class:`fastkan.KANLinear`'s layout, ``[G + k, in, out]`` and ``[in, out]``."""
        self.spline_weight.copy_(spline_weight.permute(2, 1, 0))
        self.base_weight.copy_(base_weight.t())
        return self
