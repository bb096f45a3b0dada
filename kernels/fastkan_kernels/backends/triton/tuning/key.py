"""The properties of a contraction on which the choice of its configuration depends."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..launch import DTYPES, describable, describable_rows, power_of_two
from ..problem import Problem

_DTYPES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
EXACT_BELOW = 256  # sizes up to this one are distinguished; larger ones are rounded up to a power of two


class Key(NamedTuple):
    """The properties on which a choice depends.

    The number of rows is rounded up to a power of two, so that a slightly different batch does not change the choice
    and with it the order of sums. The GPU and the versions of the compilers belong to a table, not to its keys.
    """

    contraction: str  # "F", "G" or "H"
    dtype: str  # of the factors of products
    precision: str  # of float32 products
    form: str
    order: int
    derivative: int
    base: str
    multiplied: bool  # whether features are multiplied by v, which takes registers
    aligned: bool  # whether descriptors can address W and g
    rows_aligned: bool  # whether descriptors can address x and v
    rows: int  # rounded up to a power of two; the next two only above EXACT_BELOW
    inputs: int
    outputs: int
    inputs_by_16: bool  # whether it is divisible by 16, for which Triton compiles other loads
    outputs_by_16: bool
    spline_count: int
    deterministic: bool  # whether PyTorch's deterministic algorithms are on


def key(p: Problem) -> Key:
    """The key of a problem."""
    aligned = all(describable(t) for t in (p.weight, p.base_weight, p.g) if t is not None)
    rows_aligned = describable_rows(p.x) and describable_rows(p.v)
    return Key(
        p.name, _DTYPES[p.matmul_dtype], p.precision, p.form, p.basis.order, p.derivative, p.base, p.v is not None,
        aligned, rows_aligned, power_of_two(p.rows, 1, 1 << 40), _bucket(p.inputs), _bucket(p.outputs),
        p.inputs % 16 == 0, p.outputs % 16 == 0, p.spline_count, torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _bucket(size: int) -> int:
    return size if size <= EXACT_BELOW else power_of_two(size, 1, 1 << 40)
