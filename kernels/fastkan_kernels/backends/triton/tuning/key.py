"""What a choice of configuration depends on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..launch import DTYPES, describable, describable_rows, power_of_two
from ..problem import Problem

_DTYPES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
EXACT_BELOW = 256  # sizes up to here are told apart, above only their powers of two


class Key(NamedTuple):
    """What a choice depends on; never the number of rows itself, or another batch would change the order of a sum.
    The GPU and the versions of the compilers are a table's, see :mod:`.environment`."""

    contraction: str  # "F", "G" or "H"
    dtype: str  # of the product
    precision: str  # of float32 products
    form: str
    order: int
    derivative: int
    base: str
    multiplied: bool  # by v, which takes registers
    aligned: bool  # whether descriptors can address W and g
    rows_aligned: bool  # and x and v
    rows: int  # bucketed, as are the next two
    inputs: int
    outputs: int
    inputs_by_16: bool  # divisible: Triton compiles other loads for it
    outputs_by_16: bool
    spline_count: int
    deterministic: bool  # whether PyTorch is asked for deterministic algorithms


def key(p: Problem) -> Key:
    """What the choice for a problem depends on."""
    aligned = all(describable(t) for t in (p.weight, p.base_weight, p.g) if t is not None)
    rows_aligned = describable_rows(p.x) and describable_rows(p.v)
    return Key(
        p.name, _DTYPES[p.matmul_dtype], p.precision, p.form, p.basis.order, p.derivative, p.base, p.v is not None,
        aligned, rows_aligned, power_of_two(p.rows, 1, 1 << 40), _bucket(p.inputs), _bucket(p.outputs),
        p.inputs % 16 == 0, p.outputs % 16 == 0, p.spline_count, torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _bucket(size: int) -> int:
    return size if size <= EXACT_BELOW else power_of_two(size, 1, 1 << 40)
