"""F of a layer so small that calls cost more than numbers, with what its backward needs kept.

On a cell every edge function is a polynomial, whose coefficients are a small product of the weights and a table that
depends on the knots alone (:mod:`.pieces`). A product with indicators of the rows' cells picks them, and Horner's
rule does the rest on numbers for each edge and row, instead of each feature and row; the slope comes from the same
coefficients. It goes for any knots alike. What an edge gives at each row is there by itself then, so its spread
is cheap (:mod:`..stack`).

In NumPy, whose calls cost a third of PyTorch's, and which is quicker at comparisons.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..basis import Basis
from ..trilinear import Slots
from .pieces import pieces_of

MOST_INDICATORS = 1 << 17
MOST_VALUES = 1 << 16

BEYOND = 1e18  # outside of every grid, and times 0 it is 0
Array = Any  # numpy.ndarray, which is imported where it is used


class Kept(NamedTuple):
    """What a forward leaves to its backward; C cells, k the order."""

    inside: Tensor  # [I, C, N], 1 in a row's cell
    rate: Tensor  # [I, 1, N], 1 over the width of the row's cell
    u: Tensor  # [I, 1, N], where in its cell a row lies, from -1/2 to 1/2
    own: Tensor  # [I, O, k + 1, N], the edges' coefficients in the row's cell
    base: Tensor | None  # [I, 1, N]
    slope: Tensor | None  # of the base, where it isn't 1
    table: Tensor  # [I or 1, K, (k + 1) C]


def serves(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, derivative: int) -> bool:
    """Whether this is for a forward like that."""
    return (
        derivative == 0
        and slots.v is None
        and x.dtype == knots.dtype == slots.weight.dtype
        and fits(len(x), knots, slots.weight, basis)
        and has_values(x)
    )


def fits(rows: int, knots: Tensor, weight: Tensor, basis: Basis) -> bool:
    """Whether a layer and that many rows are of the size and kind."""
    _, inputs, outputs = weight.shape
    return (
        0 < rows * knots.numel() <= MOST_INDICATORS
        and 0 < rows * inputs * outputs * (basis.order + 1) <= MOST_VALUES
        and basis.product is None
        and weight.dtype in (torch.float32, torch.float64)
    )


def has_values(x: Tensor) -> bool:
    """Whether it is a plain tensor, and nobody transforms or records what is done with it: NumPy would go unseen."""
    if torch.compiler.is_compiling():
        return False
    # torch has no public names for these; tests/test_routes.py and tests/test_stack_routes.py pin them
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    recorded = torch._C._len_torch_dispatch_stack() > 0 or torch.jit.is_tracing()
    batched = torch._C._functorch.is_legacy_batchedtensor(x)  # by autograd.grad(is_grads_batched=True)
    plain = type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ and not batched
    return plain and not transformed and not recorded


def forward(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, sloped: bool) -> tuple[Tensor, Kept]:
    """F_0(x, W), and what to keep."""
    values, kept = edge_values(x, knots, slots, basis, sloped)
    return torch.from_numpy(values.sum(0).T.copy()), kept


def backward(kept: Kept, slots: Slots, basis: Basis, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x, weight and base_weight where they are wanted, else None."""
    if not has_values(g):  # of a batch of gradients, or with tangents
        return _pull_in_torch(kept, slots, g.t().unsqueeze(0), by_x, by_weight, by_base)
    return pull(kept, slots, _array(g).T[None], by_x, by_weight, by_base)


def edge_values(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, sloped: bool) -> tuple[Array, Kept]:
    """What every edge gives at every row, ``[I, O, N]``, and what to keep."""
    import numpy as np

    (rows, inputs), outputs, order = x.shape, slots.weight.shape[2], basis.order
    tables = pieces_of(knots, basis)
    table = tables.table.flatten(2)
    xt = np.ascontiguousarray(_array(x).T)[:, None]
    with np.errstate(all="ignore"):
        finite = bool(np.isfinite(xt.sum()))
        within = xt if finite else np.clip(xt, -BEYOND, BEYOND)
        beyond = within >= tables.knots.numpy()
        inside = (beyond[:, :-1] != beyond[:, 1:]).astype(xt.dtype)
        edges = _array(slots.weight).transpose(1, 2, 0) @ table.numpy()
        edges = edges.reshape(inputs, outputs * (order + 1), -1)
        cells = tables.cells.numpy()
        if len(cells) < inputs:
            cells = cells.repeat(inputs, 0)
        picked = np.concatenate([cells, edges], 1) @ inside
        rate = picked[:, 1:2] if finite else np.where(np.isnan(xt), xt, picked[:, 1:2])  # a slope at NaN is NaN
        u = within - picked[:, :1]
        u *= rate
        own = picked[:, 2:].reshape(inputs, outputs, order + 1, rows)
        values = own[:, :, order] * u
        values += own[:, :, order - 1]
        for power in range(order - 2, -1, -1):
            values *= u
            values += own[:, :, power]
        base: Any = None
        slope: Any = None
        if slots.base_weight is not None:
            base = within
            if basis.base == "silu":
                logistic = torch.from_numpy(within).sigmoid().numpy()
                base = within * logistic
                if sloped:
                    slope = base * (1 - logistic)
                    slope += logistic
                    slope = torch.from_numpy(slope)
            if not finite:
                base = np.where(xt > BEYOND, xt, base) if basis.base == "silu" else xt
            values += base * _array(slots.base_weight)[:, :, None]
            base = torch.from_numpy(base)
    tensor = torch.from_numpy
    return values, Kept(tensor(inside), tensor(rate), tensor(u), tensor(own), base, slope, table)


def pull(kept: Kept, slots: Slots, g: Array, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x ``[N, I]``, weight and base_weight, of what each edge gives; ``g [I or 1, O, N]``."""
    import numpy as np

    inside, rate, u, own = (each.numpy() for each in kept[:4])
    inputs, outputs, powers, rows = own.shape
    dx = dw = db = None
    with np.errstate(all="ignore"):
        if by_weight:
            raised = np.empty_like(own)
            raised[:, :, 0] = g
            for power in range(1, powers):
                np.multiply(raised[:, :, power - 1], u, out=raised[:, :, power])
            edges = (raised.reshape(inputs, -1, rows) @ inside.transpose(0, 2, 1)).reshape(inputs, outputs, -1)
            dw = edges @ kept.table.numpy().transpose(0, 2, 1)
            dw = torch.from_numpy(np.ascontiguousarray(dw.transpose(2, 0, 1)))
        if by_base and kept.base is not None:
            db = torch.from_numpy((g @ kept.base.numpy().transpose(0, 2, 1)).reshape(inputs, outputs))
        if by_x:
            slope = own[:, :, -1] * (powers - 1)
            for power in range(powers - 2, 0, -1):
                slope *= u
                slope += own[:, :, power] if power == 1 else own[:, :, power] * power
            slope *= rate
            if slots.base_weight is not None:
                base_weight = _array(slots.base_weight)[:, :, None]
                slope += base_weight if kept.slope is None else kept.slope.numpy() * base_weight
            slope *= g
            dx = torch.from_numpy(slope.sum(1).T.copy())
    return dx, dw, db


def _pull_in_torch(kept: Kept, slots: Slots, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """:func:`pull` for those who look on."""
    inside, rate, u, own, base, base_slope, table = kept
    inputs, outputs, powers, rows = own.shape
    dx = dw = db = None
    if by_weight:
        raised = torch.stack([g * u**power for power in range(powers)], 2)
        edges = (raised.reshape(inputs, -1, rows) @ inside.mT).reshape(inputs, outputs, -1)
        dw = (edges @ table.mT).permute(2, 0, 1)
    if by_base and base is not None:
        db = (g @ base.mT).reshape(inputs, outputs)
    if by_x:
        slope = rate * sum(power * own[:, :, power] * u ** (power - 1) for power in range(1, powers))
        if slots.base_weight is not None:
            by_base_function = slots.base_weight.unsqueeze(2)
            slope = slope + (by_base_function if base_slope is None else base_slope * by_base_function)
        dx = (slope * g).sum(1).t()
    return dx, dw, db


def deviation(values: Array) -> tuple[Tensor, Tensor]:
    """Standard deviation over the last dimension, in which ``values`` are centred in place; and these.

    Less the first one before less the mean: of what does not vary exactly 0 is left.
    """
    import numpy as np

    rows = values.shape[-1]
    with np.errstate(invalid="ignore"):
        values -= values[..., :1].copy()
        values -= np.add.reduce(values, -1, keepdims=True) / values.dtype.type(rows)
        squares = np.einsum("...n,...n->...", values, values)
        squares /= rows - 1
        return torch.from_numpy(np.sqrt(squares, out=squares)), torch.from_numpy(values)


def pull_deviation(deviation: Tensor, centred: Tensor, g: Tensor) -> Array:
    """Gradient of :func:`deviation` by the values; 0 where they don't vary."""
    spread, share = deviation.numpy(), _array(g) / (centred.shape[-1] - 1)
    if spread.all():
        share /= spread
    else:
        share[spread != 0] /= spread[spread != 0]
        share[spread == 0] = 0
    return centred.numpy() * share[..., None]


def transposed(x: Tensor) -> Array:
    """``[N, I]`` as a contiguous ``[I, N]`` of its own."""
    return _array(x).T.copy()


def _array(tensor: Tensor) -> Array:
    return tensor.numpy(force=True)  # of a negated or conjugated view too
