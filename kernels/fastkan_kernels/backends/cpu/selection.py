"""Which way a contraction takes, from sizes alone.

The figures are nanoseconds of one input value on one core, as measured: ``python -m bench.cpu_costs``
makes them anew. Only their ratios count, and near a tie either way will do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...basis import Basis
from ...bspline.piecewise import MAX_DENSE_CELLS
from .dense import filling

PRODUCT = 0.012  # one multiplication and addition inside a matrix product
GATHER = 0.12  # the same with a gathered row
FILL = {"closed": 1.3, "recursive": 2.0, "scattered": 0.15}  # one dense feature
LOCAL = 12.0  # one active feature and where it stands

# nanoseconds of a step, forward and backward: (calls, one input value, one input value and spline)
STEP = {"closed": (650e3, 11.0, 3.7), "recursive": (1050e3, 0.0, 11.0), "scattered": (1000e3, 0.0, 5.0)}
STEP_PRODUCT = 0.2  # one input value, spline and output
PIECEWISE_CALLS, PIECEWISE_VALUE, PIECEWISE_CELL = 190e3, 2.0, 1.55
PIECEWISE_TERM, PIECEWISE_LOOK_UP = 2.6, 0.14  # one coefficient of an edge, and with each cell
PIECEWISE_DENSE, PIECEWISE_LOCAL = 0.06, 1.5  # one coefficient of the table, for each coefficient of an edge
BY_SPLINES_CALLS, BY_SPLINES_PRODUCT = 100e3, 0.1  # the same from splines that are cached with the rows


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


def step_cost(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> float:
    """A step of one layer by F, G and H."""
    calls, value, spline = STEP[filling(basis, count, 0)]
    return calls + rows * inputs * (value + count * (spline + STEP_PRODUCT * outputs))


def piecewise_cost(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> float:
    """The same by the polynomials of its edges (:mod:`.piecewise`)."""
    cells, terms = count + basis.order, outputs * (basis.order + 1)
    each = PIECEWISE_VALUE + PIECEWISE_CELL * cells + terms * (PIECEWISE_TERM + PIECEWISE_LOOK_UP * cells)
    # coefficients of the edges' polynomials, whatever the rows, and back
    each_coefficient = PIECEWISE_DENSE * count if cells <= MAX_DENSE_CELLS else PIECEWISE_LOCAL * (basis.order + 1)
    return PIECEWISE_CALLS + inputs * (rows * each + terms * cells * each_coefficient)


def by_splines_cost(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> float:
    """The same by products with splines that are cached with the rows."""
    return BY_SPLINES_CALLS + rows * inputs * (count + 1) * outputs * BY_SPLINES_PRODUCT


def piecewise_pays(
    layers: Sequence[tuple[int, int, int, int, Basis]], by_splines: bool = False, contractions: float = 1
) -> bool:
    """Whether the piecewise way is the quickest for a step of layers, one after another.

    Args:
        layers: rows, inputs, outputs, number of splines and basis of each.
        by_splines: whether the splines of the first layer are cached.
        contractions: how many share the rows that they are at.
    """
    own = [piecewise_cost(*layer) for layer in layers]
    if by_splines:
        own[0] = by_splines_cost(*layers[0])
    return sum(own) / contractions < sum(step_cost(*layer) for layer in layers)
