"""The choice of the dense, banded or piecewise implementation of a contraction: the one with the lowest estimated cost.

The cost is estimated from sizes alone. The operations of an implementation are counted by kind, and each count is
multiplied by the measured time of one operation. The command ``python -m bench.cpu_costs`` repeats the measurements.
Only the ratios of the times matter. If two costs are nearly equal, either implementation is a good choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from ...basis import Basis
from . import dense

# The time of each operation in nanoseconds on one CPU core. A step consists of F_0, G_0 and H_1 of one layer.
NANOSECONDS = {
    "step": 280e3,  # The overhead of a dense or banded step, in addition to the overhead of its contractions.
    "closed call": 160e3,  # The overhead of one contraction whose splines are evaluated in closed form.
    "recursive call": 420e3,  # The overhead of one contraction whose splines are evaluated by recursion.
    "scattered call": 310e3,  # The overhead of one contraction whose active splines are scattered into an array.
    "banded call": 390e3,  # The overhead of one banded contraction.
    "value": 37.0,  # The evaluation of the base function at one input value of a dense or banded step.
    "closed": 2.8,  # The evaluation of one spline at one input value in closed form.
    "closed power": 0.21,  # The evaluation of one truncated power in the closed form of a spline.
    "recursive": 0.83,  # The evaluation of one degree of the recursion for one spline at one input value.
    "scattered": 1.6,  # The memory of one spline value in the array into which active splines are scattered.
    "active": 3.3,  # The evaluation of one truncated power of one active spline on uniform knots.
    "active any": 11.0,  # The evaluation of one degree of the recursion for one active spline on arbitrary knots.
    "product": 0.022,  # The multiplication of one spline value by the weight of one output.
    "gather": 0.41,  # The multiplication of one spline value by one weight in a gathered row of weights.
    "piecewise step": 440e3,  # The overhead of a piecewise step.
    "piecewise cell": 1.3,  # The comparison of one input value with one cell to find the cell that contains the value.
    "piecewise term": 2.1,  # The evaluation of one term of the polynomial of one edge at one input value.
    "piecewise look-up": 0.07,  # The work for one cell in the selection of one coefficient for one input value.
    "piecewise coefficient": 2.6,  # The computation of one polynomial coefficient of one edge on one cell.
    "spline step": 22e3,  # The overhead of a piecewise step that uses cached spline values.
    "spline product": 0.13,  # The multiplication of one cached spline value by the weight of one output.
}


@lru_cache(maxsize=1024)
def choose(name: str, rows: int, inputs: int, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """Return the faster implementation, "banded" or "dense", of contraction F, G or H with K = ``count`` splines."""
    if name == "G" or derivative > basis.order:  # There is no banded implementation of G.
        return "dense"
    sizes = rows, inputs, outputs, count, basis, derivative
    return "banded" if cost(banded_work(*sizes)) < cost(dense_work(*sizes)) else "dense"


def cost(work: dict[str, float]) -> float:
    """Return the estimated time, in nanoseconds, of the operations counted in ``work``."""
    return sum(NANOSECONDS[each] * times for each, times in work.items())


def dense_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis, derivative: int) -> dict[str, float]:
    """Count the operations of one contraction in the dense implementation."""
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
    """Count the operations of the contraction F or H in the banded implementation."""
    values = rows * inputs
    gathered = values * (basis.order + 1) * outputs
    return {**_active_work(values, basis, derivative), "banded call": 1.0, "gather": gathered}


def _active_work(values: int, basis: Basis, derivative: int) -> dict[str, float]:
    active = values * (basis.order + 1)
    if basis.uniform and derivative < basis.order:
        return {"active": active * _powers(basis)}
    return {"active any": active * basis.order}


def _powers(basis: Basis) -> int:
    """Return the number of truncated powers in the closed form of a spline."""
    return basis.order // 2 + 1


def step_work(
    rows: int, inputs: int, outputs: int, count: int, basis: Basis, way: str | None = None
) -> dict[str, float]:
    """Count the operations of a training step of one layer, which consists of the contractions F_0, G_0 and H_1.

    Args:
        rows, inputs, outputs: the sizes N, I and O.
        count: the number of splines K.
        basis: the spline order and the base function.
        way: the implementation of F and H, "banded" or "dense". If None, the faster implementation of each is counted.
    """
    total = {"step": 1.0, "value": float(rows * inputs)}
    for name, derivative in (("F", 0), ("G", 0), ("H", 1)):
        sizes = rows, inputs, outputs, count, basis, derivative
        how = choose(name, *sizes) if way is None or name == "G" else way
        for each, times in (banded_work if how == "banded" else dense_work)(*sizes).items():
            total[each] = total.get(each, 0.0) + times
    return total


def piecewise_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> dict[str, float]:
    """Count the operations of a training step of one layer in the piecewise implementation (:mod:`.piecewise`)."""
    values, cells, terms = rows * inputs, count + basis.order, outputs * (basis.order + 1)
    return {
        "piecewise step": 1.0,
        "piecewise cell": values * cells,
        "piecewise term": values * terms,
        "piecewise look-up": values * terms * cells,
        "piecewise coefficient": inputs * terms * cells,
    }


def by_splines_work(rows: int, inputs: int, outputs: int, count: int, basis: Basis) -> dict[str, float]:
    """Count the operations of a training step of one layer that multiplies cached spline values by the weights."""
    return {"spline step": 1.0, "spline product": rows * inputs * (count + 1) * outputs}


def piecewise_pays(
    layers: Sequence[tuple[int, int, int, int, Basis]], by_splines: bool = False, contractions: float = 1
) -> bool:
    """Whether the piecewise implementation is the fastest for a training step of a sequence of layers.

    Args:
        layers: a tuple ``(rows, inputs, outputs, count, basis)`` for each layer, with ``count`` splines for each input.
        by_splines: whether the spline values of the first layer are cached.
        contractions: the factor by which a contraction gets cheaper because several contractions share the rows.
    """
    own = general = 0.0
    for place, layer in enumerate(layers):
        own += _cost_of(by_splines_work if by_splines and place == 0 else piecewise_work, layer)
        general += _cost_of(step_work, layer)
    return own / contractions < general


@lru_cache(maxsize=1024)
def _cost_of(work: Callable[..., dict[str, float]], sizes: tuple) -> float:
    return cost(work(*sizes))
