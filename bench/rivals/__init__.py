"""What is compared. Each rival is one function that builds a network; to add one, write another.

@rival("my layer", needs="my_package")
def mine(case, edges):
    from my_package import MyKAN

    network = MyKAN(case.widths, grid_size=case.grid_size, spline_order=case.order)
    for layer, edge in zip(network.layers, edges):
        layer.coefficients.copy_(edge.spline_weight.permute(1, 2, 0))
        layer.base.copy_(edge.base_weight)
    return network
"""

from __future__ import annotations

from . import ours, baselines, peers  # isort: skip  # the order of the table
from .registry import RIVALS, Rival, rival

__all__ = ["RIVALS", "Rival", "baselines", "ours", "peers", "rival"]
