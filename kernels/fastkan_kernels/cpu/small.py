"""F of a layer so small that calls cost more than numbers, with its features kept for the backward.

All features at once and as few calls as there can be: psi and, where the input's gradient will be asked
for, psi' from the same truncated powers. They are few, so they are kept, and the backward is a few
products. They lie as ``[splines, I, N]``: loops run along the rows, however few the inputs, and a
narrow product is quicker from that side.

For uniform knots that all inputs share.
"""

from __future__ import annotations

from functools import lru_cache
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

    psi: Tensor  # [K * I, N], times the sign of _Form
    slope: Tensor | None  # psi' without its factor, likewise
    base: Tensor | None  # [N, I]
    bounded: Tensor | None  # x without infinities


class _Form(NamedTuple):
    """Numbers of the closed form: z = places + x * rate, in units in which a truncated power needs no
    factor (see :mod:`.cardinal`)."""

    places: Tensor  # [K, 1, 1]
    rate: float
    sign: float  # of what comes out as psi
    slope: float  # by which what comes out as psi' must be multiplied


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
        and slots.weight.shape[2] > 0
        and x.dtype == knots.dtype == slots.weight.dtype
    )


def forward(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, sloped: bool) -> tuple[Tensor, Kept]:
    """F_0(x, W), and what to keep; ``sloped`` if the gradient by x will be wanted."""
    weight, base_weight = slots.weight, slots.base_weight
    form = _form(basis.cells, basis.order, weight.shape[0], x.dtype)
    z = torch.add(form.places, x.t().contiguous(), alpha=form.rate)
    psi, slope = cardinal.power_sums(z, basis.order, sloped)
    psi = psi.view(-1, x.shape[0])
    weight = weight.flatten(0, 1)
    if base_weight is None:
        y = torch.mm(psi.t(), weight)
        return y if form.sign > 0 else y.neg_(), Kept(psi, slope, None, None)
    finite = torch.finfo(x.dtype)
    base = _base(x.clamp(min=finite.min), basis.base)
    y = torch.mm(base, base_weight).addmm_(psi.t(), weight, alpha=form.sign)
    return y, Kept(psi, slope, base, x.clamp(finite.min, finite.max) if sloped else None)


def backward(kept: Kept, slots: Slots, basis: Basis, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x, weight and base_weight where they are wanted, else None."""
    dx = dw = db = None
    weight, base_weight = slots.weight, slots.base_weight
    form = _form(basis.cells, basis.order, weight.shape[0], g.dtype)
    flat = weight.flatten(0, 1)
    gt = g.t().contiguous()
    if by_weight:
        dw = torch.addmm(flat, kept.psi, gt.t(), beta=0, alpha=form.sign).view(weight.shape)
    if by_base and kept.base is not None:
        db = torch.mm(kept.base.t(), g)
    if by_x:
        assert kept.slope is not None
        summed = torch.mm(flat, gt).view_as(kept.slope).mul_(kept.slope).sum(0).t()
        if base_weight is None or kept.bounded is None:
            dx = torch.mul(summed, form.slope).contiguous()
        else:
            dx = _pull_base(torch.mm(g, base_weight.t()), kept.bounded, basis.base).add_(summed, alpha=form.slope)
    return dx, dw, db


@lru_cache(maxsize=256)
def _form(cells: tuple[float, float], order: int, count: int, dtype: torch.dtype) -> _Form:
    first, rate = cells
    unit = cardinal.unit(order)
    with torch.inference_mode(False):
        places = cardinal.middles(0, count, order, torch.empty(0, dtype=torch.float64))
        places = (-unit * (places + rate * first)).to(dtype).view(-1, 1, 1)
    sign = (-1.0) ** order
    return _Form(places, rate * unit, sign, sign * order * unit * rate)


def _base(x: Tensor, name: str) -> Tensor:
    return functional.silu(x) if name == "silu" else base_function(x, name)


def _pull_base(pulled: Tensor, x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return torch.ops.aten.silu_backward(pulled, x)
    return pulled.mul_(base_function(x, name, 1))
