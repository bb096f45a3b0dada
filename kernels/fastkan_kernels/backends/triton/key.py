"""The properties of a contraction on which the choice of its configuration depends."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .config import power_of_two
from .problem import Problem

EXACT_BELOW = 256  # Sizes up to this limit are not rounded. Larger sizes are rounded up to a power of two.


class Key(NamedTuple):
    """The properties of a contraction on which the choice of its configuration depends.

    The number of rows is rounded up to a power of two, so that a slightly different batch size does not change the
    configuration and thereby the order of sums. A key does not include the GPU and the versions of the compilers,
    because a table stores the GPU and the versions once for all keys.
    """

    contraction: str  # name of the contraction, "F", "G" or "H"
    dtype: str  # dtype of the factors of matrix products
    precision: str  # precision of float32 matrix products
    form: str  # form in which the kernels compute the splines
    order: int
    derivative: int
    base: str
    multiplied: bool  # whether features are multiplied by v, which takes additional registers
    aligned: bool  # whether hardware tensor descriptors can address W and g
    rows_aligned: bool  # whether hardware tensor descriptors can address x and v
    rows: int  # number of rows, rounded up to a power of two
    inputs: int  # number of inputs, rounded up to a power of two if it is above EXACT_BELOW
    outputs: int  # number of outputs, rounded up to a power of two if it is above EXACT_BELOW
    inputs_by_16: bool  # whether the number of inputs is divisible by 16, so that Triton compiles different loads
    outputs_by_16: bool  # whether the number of outputs is divisible by 16, so that Triton compiles different loads
    spline_count: int
    deterministic: bool  # whether PyTorch's deterministic algorithms are on


def key(p: Problem) -> Key:
    """Return the key of the contraction that a problem describes."""
    # The import is inside the function, because tables of configurations are also read without Triton.
    from .launch import describable, describable_rows

    aligned = all(describable(t) for t in (p.weight, p.base_weight, p.g) if t is not None)
    dtype = str(p.matmul_dtype).removeprefix("torch.")
    rows_aligned = describable_rows(p.x) and describable_rows(p.v)
    return Key(
        p.name, dtype, p.precision, p.form, p.basis.order, p.derivative, p.base, p.v is not None,
        aligned, rows_aligned, power_of_two(p.rows, 1, 1 << 40), _bucket(p.inputs), _bucket(p.outputs),
        p.inputs % 16 == 0, p.outputs % 16 == 0, p.spline_count, torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _bucket(size: int) -> int:
    return size if size <= EXACT_BELOW else power_of_two(size, 1, 1 << 40)
