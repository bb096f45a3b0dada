"""What is compared. Each rival is one function that builds a network; to add one, write another, in a file of your
own that ``python -m bench --add FILE.py`` reads.

from bench.rivals import rival


@rival("my layer", needs="my_package")
def mine(case, edges):
    from my_package import MyKAN

    network = MyKAN(case.widths, grid_size=case.grid_size, spline_order=case.order)
    for layer, edge in zip(network.layers, edges):  # edge.spline_weight [G + k, in, out], edge.base_weight [in, out]
        layer.coefficients.copy_(edge.spline_weight.permute(1, 2, 0))
        layer.base.copy_(edge.base_weight)
    return network

A layer that can't hold splines says ``is_kan=False``: it is timed without being compared with float64. What else can
be said is told by :class:`bench.rivals.Rival`.
"""

from __future__ import annotations

from . import ours, baselines, peers  # isort: skip  # the order of the table
from .registry import NOT_INSTALLED, RIVALS, Rival, WithPenalty, is_ours, load, rival

__all__ = [
    "NOT_INSTALLED", "RIVALS", "Rival", "WithPenalty", "baselines", "is_ours", "load", "ours", "peers", "rival",
]  # fmt: skip
