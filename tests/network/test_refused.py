"""Arguments that do not fit the network: each is refused by a message with its name, and nothing has changed.

Types and general bounds are tested for every public function in ``test_arguments``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import D, mixed, parameters_of, unchanged

from fastkan.kan.model import KAN

Call = Callable[[KAN], Any]

EDGES: list[tuple[Call, str]] = [
    (lambda m, name=name, edge=edge: getattr(m, name)(*edge), message)
    for name in ("get_fun", "get_range", "remove_edge")
    for edge, message in (
        ((3, 0, 0), "l must be below 3, the number of layers; got 3"),
        ((-1, 0, 0), "l must be at least 0"),
        ((0, 3, 0), "i must be below 3, the inputs of layer 0; got 3"),
        ((1, 0, 3), "j must be below 3, the outputs of layer 1; got 3"),
    )
]
SAMPLES: list[tuple[Call, str]] = [
    (lambda m, use=use, x=x: use(m, x), message)
    for use in (lambda m, x: m.refine(12, x), lambda m, x: m.update_grid(x), lambda m, x: m.attribute(x=x))
    for x, message in (
        (torch.rand(0, 3, dtype=D), "x must have at least one sample"),
        (torch.rand(5, 2, dtype=D), "x must have the shape"),
    )
]
REFUSED: list[tuple[Call, str]] = [
    *EDGES,
    *SAMPLES,
    (lambda m: m.remove_node(4, 0), "l must be at most 3"),
    (lambda m: m.remove_node(1, 5), "i must be below 5"),
    (lambda m: m.remove_node(1, 0, "both"), "mode must be one of 'all', 'up', 'down'; got 'both'"),
    (lambda m: m.prune_node(mode="hand"), "mode must be one of 'auto', 'manual'; got 'hand'"),
    (lambda m: m.prune_node(mode="manual"), "needs active_neurons_id"),
    (lambda m: m.prune_node(active_neurons_id=[[0]]), "a list for each of the 2 hidden layers"),
    (lambda m: m.prune_node(active_neurons_id=[[0], []]), r"active_neurons_id\[1\] must keep at least one"),
    (lambda m: m.prune_node(active_neurons_id=[[5], [0]]), r"active_neurons_id\[0\] must be below 5"),
    (lambda m: m.prune_input(active_inputs=[]), "active_inputs must keep at least one input"),
    (lambda m: m.prune_input(active_inputs=[3]), "active_inputs must be of the columns"),
    (lambda m: m.expand_width(0, 1), "layer_id must be at least 1"),
    (lambda m: m.expand_width(3, 1), "layer_id must name a hidden layer, from 1 to 2"),
    (lambda m: m.expand_width(1, 0), "n_added_nodes must be at least 1"),
    (lambda m: m.expand_width(1, 1, False, 1), "mult_arity must be at least 2"),
    (lambda m: m.expand_width(1, 2, False, [2]), "mult_arity must have 2 entries"),
    (lambda m: m.swap(3, 0, 1), "the order of the outputs is fixed"),
    (lambda m: m.swap(1, 0, 5), "i2 must be below 5"),
    (lambda m: m.swap(1, 1, 2), "different kinds"),
    (lambda m: m.swap(1, 2, 3), "different kinds"),
    (lambda m: m.refine(0), "new_grid must be at least 1"),
    (lambda m: m.refine([6]), "new_grid must be a number or a list for each of the 3 layers"),
    (lambda m: m.refine([6, 0, 6]), r"new_grid\[1\] must be at least 1"),
    (lambda m: m.refine(12, torch.full((5, 3), torch.nan, dtype=D)), "x must be finite, got 15 NaN or infinite of 15"),
    (lambda m: m.attribute(0), "l must be at least 1"),
    (lambda m: m.attribute(4), "l must be at most 3"),
    (lambda m: m.attribute(1, 5), "i must be below 5"),
    (lambda m: m.attribute(i=0), "l must be given together with i, got i=0 without l"),
    (lambda m: m.attribute(out_score=torch.ones(3)), r"out_score must have the shape \[2\]"),
    (lambda m: m.attribute(1, out_score=torch.ones(1, 3)), r"out_score must have the shape \[5\]"),
    (lambda m: m.attribute(x=torch.rand(1, 3, dtype=D)), "x must have at least 2 different rows, got 1 among 1"),
    (lambda m: m.attribute(x=torch.ones(9, 3, dtype=D)), "x must have at least 2 different rows, got 1 among 9"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_does_not_fit_the_network_is_refused_and_nothing_changed(call: Call, message: str) -> None:
    model = mixed()
    before, width = parameters_of(model), model.width
    with pytest.raises(ValueError, match=message):
        call(model)
    unchanged(model, before)
    assert model.width == width
