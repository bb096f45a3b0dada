"""F of a layer so small that calls cost more than numbers, with its features kept for the backward.

All features at once and as few calls as there can be: psi^(d) and, where the input's gradient will be
asked for, psi^(d+1) from the same truncated powers. They are few, so they are kept, and the backward is
three products. They lie as ``[splines, I, N]``, so that loops run along the rows, however few the
inputs.

For uniform knots that all inputs share.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..basis import Basis
from ..features import base_function
from ..trilinear import Slots
from . import cardinal

MOST_FEATURES = 1 << 17
MOST_INPUTS = 32  # above, each call has enough to do


class Kept(NamedTuple):
    """What a forward leaves to its backward."""

    psi: Tensor  # [K * I, N], times scale(k, d) rate^d
    slope: Tensor | None  # the same of d + 1
    base: Tensor | None  # [N, I]
    bounded: Tensor | None  # x without infinities


def serves(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, derivative: int) -> bool:
    """Whether this is for a forward like that."""
    return (
        x.shape[1] <= MOST_INPUTS
        and 0 < x.shape[0] * knots.numel() <= MOST_FEATURES
        and derivative == 0
        and basis.order > 1  # else the slope has no closed form on knots
        and basis.cells is not None
        and basis.product is None
        and slots.v is None
        and x.dtype == knots.dtype == slots.weight.dtype
    )


def forward(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, sloped: bool) -> tuple[Tensor, Kept]:
    """F_0(x, W), and what to keep; ``sloped`` if the gradient by x will be wanted."""
    assert basis.cells is not None  # as serves() has seen to
    first, rate = basis.cells
    weight = slots.weight
    count, inputs, outputs = weight.shape
    start = -rate * first - (basis.order + 1) / 2
    places = torch.arange(start, start - count + 0.5, -1.0, dtype=x.dtype, device=x.device)
    z = torch.add(places.view(-1, 1, 1), x.t().contiguous(), alpha=rate)
    slope = None
    if sloped:
        psi, slope = cardinal.spline_and_slope_(z, basis.order)
        slope = slope.view(count * inputs, -1)
    else:
        psi = cardinal.spline_(z, basis.order, 0, [torch.empty_like(z) for _ in range(basis.order // 2)])
    psi = psi.view(count * inputs, -1)
    base = bounded = None
    if slots.base_weight is None:
        y = x.new_empty(x.shape[0], outputs)
    else:
        finite = torch.finfo(x.dtype)
        bounded = x.clamp(finite.min, finite.max) if sloped else None
        base = _base(x, basis.base)
        y = torch.mm(base, slots.base_weight)
    scale = cardinal.scale(basis.order, 0)
    y.addmm_(psi.t(), weight.reshape(-1, outputs), beta=0 if base is None else 1, alpha=scale)
    return y, Kept(psi, slope, base, bounded)


def backward(kept: Kept, slots: Slots, basis: Basis, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x, weight and base_weight where they are wanted, else None."""
    assert basis.cells is not None
    dx = dw = db = None
    weight, base_weight = slots.weight, slots.base_weight
    if by_weight:
        dw = torch.mm(kept.psi, g).mul_(cardinal.scale(basis.order, 0)).view(weight.shape)
    if by_base and kept.base is not None:
        db = torch.mm(kept.base.t(), g)
    if by_x:
        assert kept.slope is not None
        products = torch.mm(weight.reshape(-1, weight.shape[2]), g.t()).mul_(kept.slope)
        summed = products.view(*weight.shape[:2], -1).sum(0).t()
        scale = cardinal.scale(basis.order, 1) * basis.cells[1]
        if base_weight is None or kept.bounded is None:
            dx = torch.mul(summed, scale).contiguous()
        else:
            pulled = torch.mm(g, base_weight.t())
            if basis.base == "silu":
                dx = torch.ops.aten.silu_backward(pulled, kept.bounded)
            else:
                dx = pulled.mul_(base_function(kept.bounded, basis.base, 1))
            dx.add_(summed, alpha=scale)
    return dx, dw, db


def _base(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return functional.silu(x.clamp(min=torch.finfo(x.dtype).min))  # silu(-inf) would be NaN
    return base_function(x, name)
