"""Nodes added, layers added, nodes exchanged: the network computes what it did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import D, mixed, network, parameters_of, points, same, unchanged, walk

from fastkan.kan.model import KAN
from fastkan.network.edit import subnetwork
from fastkan.network.prune import edges_on

NETWORKS = {"stack": lambda: network([3, 4, 3, 2], "adapted", off=[(0, 1, 2), (1, 0, 1)]), "mixed": mixed}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def model(request: pytest.FixtureRequest) -> KAN:
    return request.param()


def gradients(model: KAN, x: torch.Tensor) -> dict[str, torch.Tensor]:
    for parameter in model.parameters():
        parameter.grad = None
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def flags(model: KAN) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


# -- expand_width -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"n_added_nodes": 1},
        {"n_added_nodes": 3, "sum_bool": True, "mult_arity": [5]},  # which says nothing of sums
        {"n_added_nodes": 1, "sum_bool": False},
        {"n_added_nodes": 3, "sum_bool": False, "mult_arity": [2, 4, 3]},
    ],
    ids=["a sum", "sums", "a product", "products"],
)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_wider_network_computes_what_it_did(model: KAN, layer: int, options: dict[str, Any]) -> None:
    x = points(model)
    model.get_act(x)
    y, old = model(x), copy.deepcopy(model)
    assert model.expand_width(layer, **options) is model
    count, sums = options["n_added_nodes"], options.get("sum_bool", True)
    expected = [list(pair) for pair in old.width]
    expected[layer][0 if sums else 1] += count
    assert model.width == expected
    added = [] if sums else options.get("mult_arity", [2])
    assert model.mult_arity[layer] == old.mult_arity[layer] + added
    same(model(x), y)
    same(model(x), walk(model, x)[-1].out)
    at = old.width[layer][0] if sums else old.width_in[layer]
    kept = [n for n in range(model.width_in[layer]) if not at <= n < at + count]
    for step, before in zip(model.trace(x), old.trace(x)):
        same(step.out if step.out.shape == before.out.shape else step.out[:, kept], before.out)
    assert model.sample.shape == x.shape


@pytest.mark.parametrize("sums", [True, False])
def test_what_a_wider_network_has_new_can_be_trained(model: KAN, sums: bool) -> None:
    x = points(model, 300)
    old = copy.deepcopy(model)
    model.expand_width(1, 1, sum_bool=sums)
    at = old.width[1][0] if sums else old.width_in[1]
    subnodes = [old.width[1][0]] if sums else [old.width_out[1], old.width_out[1] + 1]
    slopes = gradients(model, x)
    assert (slopes["layers.1.spline_weight"][:, at].abs().amax(0) > 0).all()
    assert (slopes["layers.1.base_weight"][at] != 0).all()
    with torch.no_grad():  # a step, and the edges into the new node matter
        model.layers[1].spline_weight -= 1e-3 * slopes["layers.1.spline_weight"]
    slopes = gradients(model, x)
    assert (slopes["layers.0.spline_weight"][:, :, subnodes].abs().amax(0) > 0).all()
    assert (slopes["layers.0.spline_scale"][:, subnodes] != 0).all()
    assert flags(model) == flags(old)
    before = (model(x) - 1).square().mean().item()
    results = model.fit((x, torch.ones(300, 2, dtype=D)), steps=3, progress=False)
    assert results["train_loss"][-1] < before


def test_fresh_edges_come_from_the_seed_and_nothing_global() -> None:
    def wider(seed: int | None) -> KAN:
        return network([2, 3, 1]).expand_width(1, 2, seed=seed)

    state = torch.get_rng_state()
    one, other, third = wider(0), wider(0), wider(1)
    unchanged(one, parameters_of(other))
    assert not torch.equal(one.layers[0].spline_weight, third.layers[0].spline_weight)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = wider(None), wider(None)
    assert not torch.equal(drawn[0].layers[0].spline_weight, drawn[1].layers[0].spline_weight)


def test_layers_keep_what_they_were_told() -> None:
    model = network([2, 3, 1]).eval()
    model.layers[0].outside = model.layers[1].outside = "linear"
    for frozen in (model.layers[0].base_weight, model.layers[1].spline_scale, model.symbolic[0].affine):
        frozen.requires_grad_(False)
    before = flags(model)
    x = 5 * points(model)
    y = model(x)
    model.expand_width(1, 1)
    same(model(x), y)
    assert flags(model) == before
    assert not any(module.training for module in model.modules())


# -- expand_depth -------------------------------------------------------------------------------------


def test_a_deeper_network_computes_what_it_did(model: KAN) -> None:
    x = points(model)
    y, old = model(x), copy.deepcopy(model)
    assert model.expand_depth() is model
    assert model.width == [*old.width, [2, 0]]
    assert (model.depth, model.grid, model.k) == (4, [*old.grid, 6], [*old.k, 3])
    same(model(x), y)
    same(model(x), walk(model, x)[-1].out)
    slopes = gradients(model, x)["symbolic.3.affine"]
    assert (slopes[:, [0, 2, 3]] != 0).all()
    assert model.expand_depth().depth == 5
    same(model(x), y)


def test_a_deeper_networks_splines_can_be_switched_on_and_trained() -> None:
    model = network([2, 3, 2]).expand_depth()
    model.layers[-1].set_mask(None)
    x = points(model, 300)
    slopes = gradients(model, x)
    assert (slopes["layers.2.spline_weight"].abs().amax(0) > 0).all()
    model.layers[-1].set_mask(torch.zeros(2, 2))
    assert "layers.2.spline_weight" not in gradients(model, x)


def test_a_deeper_network_prunes_refines_and_is_copied() -> None:
    model = network([2, 3, 2], "own")
    with torch.no_grad():  # so that values stay in the grids
        for parameter in model.layers.parameters():
            parameter *= 0.3
    x = points(model, wide=0.9)
    y = model(x)
    model.expand_depth()
    for other in (copy.deepcopy(model), model.refine(12, x), model.prune(0.0, 0.0)):
        same(other(x), model(x))
    same(model(x), y)


# -- swap ---------------------------------------------------------------------------------------------

SWAPS = [("stack", 0, 0, 2), ("stack", 1, 3, 1), ("stack", 2, 0, 0), ("mixed", 0, 2, 0), ("mixed", 1, 0, 1)]


@pytest.mark.parametrize(("make", "l", "i1", "i2"), SWAPS)
def test_nodes_change_their_places_and_the_function_stays(make: str, l: int, i1: int, i2: int) -> None:
    model = NETWORKS[make]()
    x = points(model)
    y, old = model(x), copy.deepcopy(model)
    assert model.swap(l, i1, i2) is model
    same(model(x), y)
    same(model(x), walk(model, x)[-1].out)
    order = list(range(old.width_in[l]))
    order[i1], order[i2] = order[i2], order[i1]
    assert torch.equal(edges_on(model, l), edges_on(old, l)[order])
    same(model.trace(x)[l].nodes, old.trace(x)[l].nodes[:, order])
    assert (model.width, model.mult_arity) == (old.width, old.mult_arity)
    model.swap(l, i1, i2)
    unchanged(model, parameters_of(old))


def test_products_of_as_many_factors_change_their_places() -> None:
    model = network([2, [1, 3], 2], mult_arity=[[], [3, 2, 3], []], affine=True, formulas=[(0, 1, 1, "sin")])
    x = points(model)
    y, old = model(x), copy.deepcopy(model)
    model.swap(1, 1, 3)
    same(model(x), y)
    same(model.trace(x)[1].nodes, old.trace(x)[1].nodes[:, [0, 3, 2, 1]])
    assert model.symbolic[0].name(1, 6) == "sin"
    gradients(model, x)
    with pytest.raises(ValueError, match="nodes 1 and 2 of layer 1 are of different kinds"):
        model.swap(1, 1, 2)
    with pytest.raises(ValueError, match="nodes 0 and 1 of layer 1 are of different kinds"):
        model.swap(1, 0, 1)


def test_a_network_that_reads_some_columns_still_does_after_a_swap() -> None:
    model = network([4, 3, 1])
    x = points(model)
    model = model.prune_input(active_inputs=[0, 2, 3])
    y = model(x)
    model.swap(0, 0, 2)
    assert model.input_id.tolist() == [3, 2, 0]
    same(model(x), y)
    other = model.prune_input(active_inputs=[0, 3])
    assert other.input_id.tolist() == [3, 0]
    model.remove_node(0, 1)
    same(other(x), model(x))


# -- subnetwork ---------------------------------------------------------------------------------------


def test_a_part_of_a_network_is_that_part() -> None:
    model = mixed()
    x = points(model)
    part = subnetwork(model, [[0, 2], [1, 2, 4], [0, 1], [1]])
    assert (part.width, part.mult_arity) == ([[2, 0], [1, 2], [1, 1], [1, 0]], [[], [2, 4], [2], []])
    for l, i in ((0, 1), (1, 0), (1, 3)):
        model.remove_node(l, i)
    same(part(x), model(x)[:, 1:])


def test_it_can_be_done_in_inference_mode() -> None:
    model = network([2, 3, 1], seed=0)
    x = points(model)
    with torch.inference_mode():
        model.expand_width(1, 1)
        model.swap(1, 0, 3)
        model.expand_depth()
    gradients(model, x)
