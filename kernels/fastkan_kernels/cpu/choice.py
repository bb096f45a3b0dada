"""Which way a contraction takes, from sizes alone.

The figures are nanoseconds of one input value on one core, as measured: ``python -m bench.cpu_costs``
makes them anew. Only their ratios count, and near a tie either way will do.
"""

from __future__ import annotations

from ..basis import Basis
from .blocks import filling

PRODUCT = 0.012  # one multiplication and addition inside a matrix product
GATHER = 0.12  # the same with a gathered row
FILL = {"closed": 1.3, "recursive": 6.0, "scattered": 0.15}  # one dense feature
LOCAL = 12.0  # one active feature and where it stands


def choose(name: str, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """The way of contraction F, G or H with O outputs and K splines: "banded" or "dense"."""
    if name == "G" or derivative > basis.order:
        return "dense"
    pays = banded_cost(basis, outputs) < dense_cost(basis, count, outputs, derivative)
    return "banded" if pays else "dense"


def dense_cost(basis: Basis, count: int, outputs: int, derivative: int = 0) -> float:
    """Of the dense way, for one input value."""
    how = filling(basis, count, derivative)
    active = LOCAL * (basis.order + 1) if how == "scattered" else 0.0
    return active + count * (FILL[how] + PRODUCT * outputs)


def banded_cost(basis: Basis, outputs: int) -> float:
    """Of the banded way, for one input value."""
    return (basis.order + 1) * (LOCAL + GATHER * outputs)
