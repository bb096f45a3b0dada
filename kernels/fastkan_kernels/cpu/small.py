"""F of a layer so small that calls cost more than numbers, with its features kept for the backward.

All features at once and as few calls as there can be: psi and, where the input's gradient will be asked
for, psi' from the same truncated powers. They are few, so they are kept, and the backward is a few
products. They lie as ``[splines, I, N]``: loops run along the rows, however few the inputs, and a
narrow product is quicker from that side.

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
MOST_FORMS = 1 << 12


class Kept(NamedTuple):
    """What a forward leaves to its backward."""

    psi: Tensor  # [K * I, N], times the sign of _Form
    slope: Tensor | None  # psi' without its factor, likewise
    base: Tensor | None  # [N, I]
    bounded: Tensor | None  # x without infinities


class _Form(NamedTuple):
    """Numbers of the closed form: z = places + (x - first) * rate, in units in which a truncated power
    needs no factor (see :mod:`.cardinal`)."""

    places: Tensor  # [K, 1, 1]
    first: float
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
    form = _form(basis, weight.shape[0], x)
    ahead = torch.sub(x.t(), form.first, out=x.new_empty(x.shape[::-1]))
    z = torch.add(form.places, ahead, alpha=form.rate)
    psi, slope = cardinal.power_sums(z, basis.order, sloped)
    psi = psi.view(-1, x.shape[0])
    weight = weight.flatten(0, 1)
    if base_weight is None:
        y = torch.mm(psi.t(), weight)
        return y if form.sign > 0 else y.neg_(), Kept(psi, slope, None, None)
    base = _base(x, basis.base)
    y = torch.mm(base, base_weight).addmm_(psi.t(), weight, alpha=form.sign)
    finite = torch.finfo(x.dtype)
    return y, Kept(psi, slope, base, x.clamp(finite.min, finite.max) if sloped else None)


def backward(kept: Kept, slots: Slots, basis: Basis, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x, weight and base_weight where they are wanted, else None."""
    dx = dw = db = None
    weight, base_weight = slots.weight, slots.base_weight
    form = _form(basis, weight.shape[0], g)
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


_forms: dict[tuple, _Form] = {}  # made for each kind of layer once


def _form(basis: Basis, count: int, like: Tensor) -> _Form:
    key = (basis.cells, basis.order, count, like.dtype)
    form = _forms.get(key)
    if form is None:
        assert basis.cells is not None  # as serves() has seen to
        (first, rate), order = basis.cells, basis.order
        unit, sign = cardinal.unit(order), (-1.0) ** order
        with torch.inference_mode(False):  # what is made in that mode can't be used outside of it
            places = -unit * cardinal.middles(0, count, order, like).view(-1, 1, 1)
        form = _Form(places, first, rate * unit, sign, sign * order * unit * rate)
        if type(places) is Tensor and len(_forms) < MOST_FORMS:  # not a fake one
            _forms[key] = form
    return form


def _base(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return functional.silu(x.clamp(min=torch.finfo(x.dtype).min))  # silu(-inf) would be NaN
    return base_function(x, name)


def _pull_base(pulled: Tensor, x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return torch.ops.aten.silu_backward(pulled, x)
    return pulled.mul_(base_function(x, name, 1))
