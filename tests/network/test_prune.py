"""Pruning: what is kept computes what it did, what is left out was worth little, and nothing is severed."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from networks import D, mixed, network, nothing_shared, parameters_of, points, same, unchanged, walk
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.network.attribution import attribution_scores
from fastkan.network.prune import edges_on


@torch.no_grad()
def faded(model: KAN, edges: list[tuple[int, int, int]], by: float = 1e-5) -> KAN:
    """Make some edges so faint that pruning should remove them."""
    for l, i, j in edges:
        layer, symbolic = model.layers[l], model.symbolic[l]
        layer.spline_weight[:, i, j] *= by
        if layer.base_weight is not None:
            layer.base_weight[i, j] *= by
        for row, edge in zip(symbolic.affine, symbolic.edges):
            if edge[:2] == (i, j):
                row[2:] *= by
    return model


def without(model: KAN, masks: list[Tensor]) -> KAN:
    """The same network with some edges off."""
    other = copy.deepcopy(model)
    for l, mask in enumerate(masks):
        for i, j in itertools.product(*map(range, mask.shape)):
            if not mask[i, j]:
                other.remove_edge(l, i, j)
    return other


def into(model: KAN, layer: int, node: int) -> list[tuple[int, int, int]]:
    """All edges into a node."""
    return [
        (layer - 1, i, j) for i in range(model.width_in[layer - 1]) for j in model.architecture.factors(layer)[node]
    ]


def faint() -> KAN:
    """[3, 5, 2] with a faint node, and faint edges elsewhere."""
    model = network([3, 5, 2], "adapted")
    return faded(model, [*into(model, 1, 1), (1, 1, 0), (1, 1, 1), (0, 0, 3), (1, 4, 1)])


def faint_products() -> KAN:
    """Products of 2, 3 and 4 factors, a sum and the middle product faint, formulas faint and not."""
    model = mixed()
    return faded(
        model, [*((1, 3, j) for j in range(3)), *((1, 0, j) for j in range(3)), (0, 2, 5), (0, 2, 8), (2, 0, 1)]
    )


@pytest.fixture(params=[faint, faint_products], ids=["sums", "products"])
def model(request: pytest.FixtureRequest) -> KAN:
    return request.param()


@pytest.fixture
def x(model: KAN) -> Tensor:
    """Rows that the network remembers."""
    rows = points(model)
    model.get_act(rows)
    return rows


def test_prune_leaves_out_what_is_faint_and_keeps_the_function_of_the_rest(model: KAN) -> None:
    x = points(model)
    y = model(x)
    before = parameters_of(model)
    pruned = model.prune(x=x)
    unchanged(model, before)
    assert torch.equal(model(x), y)
    dropped = {(l, *ij) for l, mask in enumerate(model.prune_mask) for ij in (~mask).nonzero().tolist()}
    if model.depth == 2:
        assert pruned.width == [[3, 0], [4, 0], [2, 0]]
        assert dropped == {(0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 1, 0), (1, 1, 1), (0, 0, 3), (1, 4, 1)}
    else:
        assert pruned.width == [[3, 0], [1, 2], [1, 1], [2, 0]]
        assert pruned.mult_arity == [[], [2, 4], [2], []]
        assert dropped >= {(0, 2, 5), (0, 2, 8), (2, 0, 1), (1, 0, 0), (1, 3, 1), (0, 0, 4), (0, 1, 6)}
    same(pruned(x), walk(without(model, model.prune_mask), x)[-1].out)
    same(pruned(x), y, digits=1e-3)
    nothing_shared(model, pruned)
    assert pruned.prune_mask is None


def test_every_node_and_edge_that_is_kept_computes_what_it_did(model: KAN, x: Tensor) -> None:
    pruned = model.prune()
    whole = without(model, model.prune_mask).trace(x, edges=True)
    alive = [mask.any(1).nonzero().flatten() for mask in model.prune_mask]
    for l, (step, old) in enumerate(zip(pruned.trace(x, edges=True), whole)):
        same(step.nodes, old.nodes[:, alive[l]])
        last = torch.arange(2) if l + 1 == model.depth else alive[l + 1]
        same(step.out, old.out[:, last])
        subnodes = [s for node in last.tolist() for s in model.architecture.factors(l + 1)[node]]
        same(step.edges, old.edges[:, alive[l]][:, :, subnodes])


def test_pruning_twice_is_pruning_once(model: KAN, x: Tensor) -> None:
    once = model.prune()
    twice = once.prune()
    assert twice.width == once.width
    unchanged(twice, parameters_of(once))
    assert torch.equal(twice(x), once(x))
    assert all(mask.equal(edges_on(once, l)) for l, mask in enumerate(once.prune_mask))


def test_what_hangs_on_what_goes_goes_too() -> None:
    """A node worth more than a node must be, but by one edge that is worth less than an edge must be."""
    model = network([2, 3, 1])
    x = points(model)
    model.get_act(x)
    worth = model.attribute().edges[1][2, 0].item()
    faded(model, [(1, 2, 0)], 0.02 / worth)
    assert 0.01 < model.attribute().nodes[1][2] < 0.03
    pruned = model.prune()
    assert pruned.width == [[2, 0], [2, 0], [1, 0]]
    assert not model.prune_mask[0][:, 2].any()
    same(pruned(x), walk(without(model, model.prune_mask), x)[-1].out)


@pytest.mark.usefixtures("x")
@pytest.mark.parametrize(("node_th", "edge_th"), [(1e-2, 3e-2), (0.1, 0.05), (0.02, 0.1)])
def test_what_is_kept_is_worth_it_for_some_output(model: KAN, node_th: float, edge_th: float) -> None:
    pruned = model.prune(node_th, edge_th)
    scores = attribution_scores(pruned, [step.nodes for step in pruned.trace()])
    for l in range(pruned.depth):
        worth = scores.edges[l].amax(0)
        assert (worth[edges_on(pruned, l)] > edge_th).all()
        assert (worth[~edges_on(pruned, l)] == 0).all()
        if l:
            assert (scores.nodes[l].amax(0) > node_th).all()


def test_what_only_one_of_several_outputs_needs_is_kept() -> None:
    model = network([2, 4, 3])
    model.layers[1].set_mask(torch.cat([torch.eye(3), torch.zeros(1, 3)]))
    model.get_act(points(model))
    assert model.prune().width == [[2, 0], [3, 0], [3, 0]]


def test_a_node_that_nothing_enters_goes_with_all_behind_it() -> None:
    model = network([2, 3, 3, 1])
    faded(model, into(model, 1, 2))
    model.layers[1].set_mask(torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))  # node 2 hangs on node 2
    x = points(model)
    model.get_act(x)
    pruned = model.prune()
    assert pruned.width == [[2, 0], [2, 0], [2, 0], [1, 0]]
    same(pruned(x), walk(without(model, model.prune_mask), x)[-1].out)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.prune(1e3), "node_th=1000.0 would leave no node in layer 1; the most important one is worth"),
        (lambda m: m.prune(0.0, 1e3), "edge_th=1000.0 would leave no edge in layer 0"),
        (lambda m: m.prune_node(1e3), "node_th=1000.0 would leave no node in layer 1"),
        (lambda m: m.prune_edge(1e3), "edge_th=1000.0 would leave no edge in layer"),
        (lambda m: m.prune_input(1e3), "threshold=1000.0 would leave no input; the most important one is worth"),
    ],
)
@pytest.mark.usefixtures("x")
def test_a_layer_is_never_severed(model: KAN, call: Any, message: str) -> None:
    before, sample = parameters_of(model), model.sample
    with pytest.raises(ValueError, match=message):
        call(model)
    unchanged(model, before)
    assert model.prune_mask is None
    assert model.sample is sample


def test_an_untrained_network_with_nothing_in_it_is_not_pruned_to_nothing() -> None:
    model = network([2, 3, 1])
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="would leave no node in layer 1"):
        model.prune()
    assert model.prune_mask is None


# -- one kind of thing at a time --------------------------------------------------------------------


def test_prune_node_leaves_edges_alone(model: KAN, x: Tensor) -> None:
    pruned = model.prune_node()
    assert pruned.width == model.prune().width
    kept: list[list[int]] = []
    other = copy.deepcopy(model)
    for l in range(1, model.depth):
        alive = [model.prune_mask[l - 1][:, factors].any() for factors in model.architecture.factors(l)]
        kept.append([node for node, on in enumerate(alive) if on])
        for node in set(range(model.width_in[l])).difference(kept[-1]):
            other.remove_node(l, node)
    same(pruned(x), other(x))
    by_hand = model.prune_node(mode="manual", active_neurons_id=kept)
    unchanged(by_hand, parameters_of(pruned))


@pytest.mark.parametrize("kept", [[[0, 2, 4], [0, 1]], [[4, 2, 0], [1, 0]], [[0, 2, 2, 4, 0], [0, 1, 1]]])
def test_nodes_by_hand_in_any_order(kept: list[list[int]]) -> None:
    model = mixed()
    x = points(model)
    pruned = model.prune_node(active_neurons_id=kept)
    assert pruned.width == [[3, 0], [1, 2], [1, 1], [2, 0]]
    assert pruned.mult_arity == [[], [2, 4], [2], []]
    other = copy.deepcopy(model)
    for node in (1, 3):
        other.remove_node(1, node)
    same(pruned(x), walk(other, x)[-1].out)
    nothing_shared(model, pruned)


def test_prune_edge_leaves_nodes_alone(model: KAN, x: Tensor) -> None:
    before = parameters_of(model)
    pruned = model.prune_edge()
    unchanged(model, before)
    assert pruned.width == model.width
    for l in range(model.depth):
        assert torch.equal(edges_on(pruned, l), model.prune_mask[l])
    assert any((~mask & edges_on(model, l)).any() for l, mask in enumerate(model.prune_mask))
    same(pruned(x), walk(without(model, model.prune_mask), x)[-1].out)
    nothing_shared(model, pruned)


def test_prune_input_once_and_again() -> None:
    model = network([4, 3, 1])
    faded(model, [(0, i, j) for i in (0, 2) for j in range(3)])
    x = points(model)
    model.get_act(x)
    before = parameters_of(model)
    pruned = model.prune_input()
    unchanged(model, before)
    assert pruned.input_id.tolist() == [1, 3]
    assert (pruned.in_features, pruned.width_in[0]) == (4, 2)
    expected = without(model, [torch.tensor([[0.0] * 3, [1.0] * 3] * 2), torch.ones(3, 1)])
    same(pruned(x), expected(x))
    again = pruned.prune_input(active_inputs=[3])
    assert again.input_id.tolist() == [3]
    expected = without(expected, [torch.tensor([[0.0] * 3] * 3 + [[1.0] * 3]), torch.ones(3, 1)])
    same(again(x), expected(x))
    same(again.prune_input()(x), again(x))
    nothing_shared(model, again)
    with pytest.raises(ValueError, match=r"active_inputs must be of the columns that the network reads, \[3\]; got 1"):
        again.prune_input(active_inputs=[1])
    with pytest.raises(ValueError, match="x must have the shape"):
        again(x[:, :1])
    assert torch.equal(model.prune_input(active_inputs=[3, 1, 3])(x), pruned(x))


# -- single edges and nodes -------------------------------------------------------------------------


def test_remove_edge_takes_the_spline_and_the_formula() -> None:
    model = mixed()
    x = points(model)
    for l, i, j in ((0, 0, 0), (0, 2, 5), (1, 0, 1), (0, 1, 1)):
        old = model.trace(x, edges=True)[l].edges
        model.remove_edge(l, i, j)
        new = model.trace(x, edges=True)[l].edges
        assert (new[:, i, j] == 0).all()
        old[:, i, j] = 0
        same(new, old)
        same(model(x), walk(model, x)[-1].out)
    assert model.symbolic[0].edges == ()


@pytest.mark.parametrize("mode", ["all", "up", "down"])
@pytest.mark.parametrize("node", [1, 3])  # a sum, and a product of 3
def test_remove_node(node: int, mode: str) -> None:
    model = mixed()
    before = [edges_on(model, l) for l in range(3)]
    model.remove_node(1, node, mode)
    after = [edges_on(model, l) for l in range(3)]
    subnodes = {1: [1], 3: [4, 5, 6]}[node]
    if mode != "up":
        before[0][:, subnodes] = False
    if mode != "down":
        before[1][node] = False
    assert all(torch.equal(a, b) for a, b in zip(after, before))


def test_remove_node_at_both_ends() -> None:
    model = network([2, 3, 2])
    model.remove_node(0, 1)
    model.remove_node(2, 0)
    assert model.layers[0].mask.tolist() == [[1.0] * 3, [0.0] * 3]
    assert model.layers[1].mask.tolist() == [[0.0, 1.0]] * 3


# -- what goes with it ------------------------------------------------------------------------------


def test_a_pruned_network_is_trained_as_the_old_one_was() -> None:
    model = faint()
    model.layers[0].spline_scale.requires_grad_(False)
    model.node_bias[0].requires_grad_(True)
    model.layers[0].count_outside()
    model.eval()
    x = points(model)
    model.get_act(x)
    pruned = model.prune().prune_input(active_inputs=[0, 2])
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in pruned.named_parameters()} == flags
    assert not any(module.training for module in pruned.modules())
    pruned(x).sum().backward()
    assert pruned.node_bias[0].grad.shape == (4,)
    assert pruned.layers[0].outside_share().shape == (2,)


def test_in_inference_mode_and_beside_another_default_device() -> None:
    model = faint()
    x = points(model)
    with torch.inference_mode():
        model.get_act(x)
        pruned = model.prune()
    pruned(x).sum().backward()
    with torch.device("meta"):
        other = model.prune()
    unchanged(other, parameters_of(pruned))
    assert x.dtype == D
