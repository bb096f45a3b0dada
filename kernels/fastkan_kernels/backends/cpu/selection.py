"""The way that a contraction takes, dense, banded or piecewise: the one of the lowest cost, from sizes alone.

A cost is a sum of counts, such as that of the products, each times the nanoseconds that one of them takes. Those were
measured, and ``python -m bench.cpu_costs`` measures them anew. Only their ratios matter, and near a tie either way
will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from ...basis import Basis
from . import dense

# nanoseconds on one core, of each thing that a step (F, G and H of one layer) or a contraction does
NANOSECONDS = {
    "step": 490e3,  # calls of a step that is dense or banded, beside those of its contractions
    "closed call": 140e3,  # calls of one contraction, by the filling of its features
    "recursive call": 550e3,
    "scattered call": 300e3,
    "banded call": 450e3,
    "value": 53.0,  # one input value of such a step, for the base function
    "closed": 1.7,  # one spline of one input value, in closed form
    "closed power": 0.34,  # each of its truncated powers
    "recursive": 0.56,  # one spline by recursion, for each degree
    "scattered": 1.5,  # one spline's place in memory, where the active ones are scattered
    "active": 3.2,  # one active spline on uniform knots, for each of its truncated powers
    "active any": 13.0,  # the same on any knots, for each degree
    "product": 0.027,  # one spline of one input value, multiplied by the weight of one output
    "gather": 0.28,  # the same with a gathered row of weights
    "piecewise step": 500e3,  # calls of a step that is piecewise
    "piecewise cell": 1.6,  # one cell of one input value, where its cell is looked up
    "piecewise term": 4.0,  # one coefficient of an edge's polynomial, for one input value
    "piecewise look-up": 0.077,  # the same, for each cell
    "piecewise coefficient": 1.8,  # one coefficient of an edge's polynomial on one cell, whatever the number of rows
    "spline step": 26e3,  # calls of a piecewise step from splines that are cached with the rows
    "spline product": 0.085,  # one such spline of one input value, multiplied by the weight of one output
}


@lru_cache(maxsize=1024)
def choose(name: str, rows: int, inputs: int, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """Return the quicker way, "banded" or "dense", of contraction F, G or H with K = ``count`` splines."""
    if name == "G" or derivative > basis.order:  # G has no banded way
        return "dense"
    sizes = rows, inputs, outputs, count, basis, derivative
    return "banded" if cost(banded_work(*sizes)) < cost(dense_work(*sizes)) else "dense"


def cost(work: dict[str, float]) -> float:
    """Nanoseconds that some work takes."""
    return sum(NANOSECONDS[each] * times for each, times in work.items())


def dense_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis, derivative: int) -> dict[str, float]:
    """Count what one contraction does by the dense way."""
    values, how = rows * inputs, dense.filling(basis, count, derivative)
    work: dict[str, float]
    if how == "closed":
        work = {"closed": values * count, "closed power": values * count * _powers(basis)}
    elif how == "scattered":
        work = {"scattered": values * count, **_active_work(values, basis, derivative)}
    else:
        work = {"recursive": values * count * basis.order}
    return {**work, f"{how} call": 1.0, "product": values * count * outputs}


def banded_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis, derivative: int) -> dict[str, float]:
    """Count what F or H does by the banded way."""
    values = rows * inputs
    gathered = values * (basis.order + 1) * outputs
    return {**_active_work(values, basis, derivative), "banded call": 1.0, "gather": gathered}


def _active_work(values: int, basis: Basis, derivative: int) -> dict[str, float]:
    active = values * (basis.order + 1)
    if basis.uniform and derivative < basis.order:
        return {"active": active * _powers(basis)}
    return {"active any": active * basis.order}


def _powers(basis: Basis) -> int:
    """Truncated powers of which the closed form of a spline is made."""
    return basis.order // 2 + 1


def step_work(
    rows: int, inputs: int, outputs: int, count: int, basis: Basis, way: str | None = None
) -> dict[str, float]:
    """Count what F_0, G_0 and H_1 do, the step of one layer.

    Args:
        way: of F and H, "banded" or "dense"; None for the quicker one of each.
    """
    total = {"step": 1.0, "value": float(rows * inputs)}
    for name, derivative in (("F", 0), ("G", 0), ("H", 1)):
        sizes = rows, inputs, outputs, count, basis, derivative
        how = choose(name, *sizes) if way is None or name == "G" else way
        for each, times in (banded_work if how == "banded" else dense_work)(*sizes).items():
            total[each] = total.get(each, 0.0) + times
    return total


def piecewise_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> dict[str, float]:
    """Count what the same step does by the polynomials of the edges (:mod:`.piecewise`)."""
    values, cells, terms = rows * inputs, count + basis.order, outputs * (basis.order + 1)
    return {
        "piecewise step": 1.0,
        "piecewise cell": values * cells,
        "piecewise term": values * terms,
        "piecewise look-up": values * terms * cells,
        "piecewise coefficient": inputs * terms * cells,
    }


def by_splines_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> dict[str, float]:
    """Count what the same step does by products with splines that are cached with the rows."""
    return {"spline step": 1.0, "spline product": rows * inputs * (count + 1) * outputs}


def piecewise_pays(
    layers: Sequence[tuple[int, int, int, int, Basis]], by_splines: bool = False, contractions: float = 1
) -> bool:
    """Whether the piecewise way is the quickest for a step of layers, one after another.

    Args:
        layers: rows, inputs, outputs, number of splines and basis of each.
        by_splines: whether the splines of the first layer are cached.
        contractions: number of contractions that share the rows that they are at.
    """
    own = general = 0.0
    for place, layer in enumerate(layers):
        own += _cost_of(by_splines_work if by_splines and place == 0 else piecewise_work, layer)
        general += _cost_of(step_work, layer)
    return own / contractions < general


@lru_cache(maxsize=1024)
def _cost_of(work: Callable[..., dict[str, float]], sizes: tuple) -> float:
    return cost(work(*sizes))
