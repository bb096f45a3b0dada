"""F of a layer so small that calls cost more than numbers, with what its backward needs kept.

Two ways: by the edges' polynomials (:mod:`.by_edges`), and, where no gradient by x is wanted, by the features
(:mod:`.by_features`), which are kept for rows that come again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..basis import Basis
from ..trilinear import Slots
from .by_edges import ByEdges
from .by_features import ByFeatures
from .cells import Array
from .pieces import pieces_of

MOST_INDICATORS = 1 << 17
MOST_VALUES = 1 << 16

Pass = ByEdges | ByFeatures


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


def run(
    x: Array, knots: Tensor, weight: Array, base_weight: Array | None, basis: Basis, by_x: bool, first: bool
) -> Pass:
    """A layer's pass.

    Args:
        x: ``[I, N]``, contiguous; nobody may write into it afterwards.
        by_x: whether a gradient by x may be wanted.
        first: whether the rows may come again.
    """
    tables = pieces_of(knots, basis)
    if first and not by_x:
        return ByFeatures(x, tables, weight, base_weight, basis)
    return ByEdges(x, tables, weight, base_weight, basis, sloped=by_x)


def quiet() -> Any:
    """NumPy says nothing of numbers that are none."""
    import numpy as np

    return np.errstate(all="ignore")


def forward(x: Tensor, knots: Tensor, slots: Slots, basis: Basis, by_x: bool) -> tuple[Tensor, Pass]:
    """F_0(x, W), and what to keep."""
    base_weight = None if slots.base_weight is None else array(slots.base_weight)
    with quiet():
        kept = run(columns(x), knots, array(slots.weight), base_weight, basis, by_x, first=True)
    return torch.from_numpy(kept.y.T.copy()), kept


def backward(kept: Pass, g: Tensor, by_x: bool, by_weight: bool, by_base: bool):
    """Gradients by x, weight and base_weight where they are wanted, else None."""
    if not has_values(g):  # of a batch of gradients, or with tangents
        dx, dw, db = kept.pull_in_torch(g.t(), by_x, by_weight, by_base)
        return None if dx is None else dx.t(), dw, db
    with quiet():
        dx, dw, db = kept.pull(array(g).T, None, None, by_x, by_weight, by_base)
    dx = None if dx is None else dx.T.copy()
    return tuple(None if each is None else torch.from_numpy(each) for each in (dx, dw, db))


def columns(x: Tensor) -> Array:
    """``[N, I]`` as a contiguous ``[I, N]`` of its own."""
    return array(x).T.copy()


def array(tensor: Tensor) -> Array:
    """Its values; of a negated or conjugated view too."""
    return tensor.numpy(force=True)
