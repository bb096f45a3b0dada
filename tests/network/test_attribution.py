"""Which edges, nodes and inputs matter: against shares counted on paper, and against pykan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Step, mixed, network, points, same, walk
from peers import pykan_of
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.network.attribution import Scores, attribution_scores

Array = np.ndarray


def on_paper(model: KAN, steps: list[Step], last: int, worth: Array | None = None) -> Scores:
    """Shares in each node of a layer, by loops over nodes and edges."""
    count = model.width_in[last]
    score = np.diag(np.ones(count) if worth is None else worth)
    nodes, edges, subnodes = [score], [], []
    for l in range(last - 1, -1, -1):
        below = np.zeros((count, model.width_out[l + 1]))
        at = 0
        for node, arity in enumerate([1] * model.width[l + 1][0] + model.mult_arity[l + 1]):
            for _ in range(arity):
                below[:, at] = score[:, node]
                at += 1
        each = np.zeros((count, model.width_in[l], model.width_out[l + 1]))
        for i in range(each.shape[1]):
            for j in range(each.shape[2]):
                whole = steps[l].subnodes[:, j].std(ddof=1) + 1e-4
                each[:, i, j] = below[:, j] * steps[l].edges[:, i, j].std(ddof=1) / whole
        score = each.sum(2)
        nodes.insert(0, score)
        edges.insert(0, each)
        subnodes.insert(0, below)
    return Scores(*([torch.from_numpy(t) for t in part] for part in (nodes, edges, subnodes)))


def alike(found: Scores, expected: Scores) -> None:
    for part, wanted in zip(found, expected, strict=True):
        for got, want in zip(part, wanted, strict=True):
            same(got, want, digits=1e-9)


NETWORKS = {"stack": lambda: network([3, 4, 2], off=[(0, 1, 2)]), "mixed": lambda: mixed(knots="adapted")}


@pytest.mark.parametrize("make", list(NETWORKS))
def test_the_scores_are_those_on_paper(make: str) -> None:
    model = NETWORKS[make]()
    x = points(model)
    steps = walk(model, x)
    exact = on_paper(model, steps, model.depth)
    alike(attribution_scores(model, [step.nodes for step in model.trace(x)]), exact)
    alike(model.attribute(x=x), Scores(*([t.mean(0) for t in part] for part in exact)))
    for layer in range(1, model.depth + 1):
        expected = on_paper(model, steps, layer).nodes[0]
        same(model.attribute(layer, x=x), expected, digits=1e-9)
        for node in range(model.width_in[layer]):
            same(model.attribute(layer, node, x=x), expected[node], digits=1e-9)
    worth = np.array([0.3, 2.0])
    weighted = on_paper(model, steps, model.depth, worth)
    alike(
        model.attribute(out_score=torch.from_numpy(worth), x=x),
        Scores(*([t.mean(0) for t in part] for part in weighted)),
    )
    same(model.attribute(model.depth, out_score=torch.from_numpy(worth), x=x), weighted.nodes[0], digits=1e-9)


@pytest.mark.parametrize("arity", [2, 4])
def test_pykans_scores(arity: int) -> None:
    model = mixed(width=[3, [2, 2], [1, 1], 1], mult_arity=arity, formulas=[(0, 0, 0, "sin")], off=[(0, 1, 1)])
    x = points(model)
    other = pykan_of(model, arity)
    other(x)
    other.attribute()
    found = model.attribute(x=x)
    for ours, scores in zip(found, (other.node_scores, [t.t() for t in other.edge_scores], other.subnode_scores)):
        for one, score in zip(ours, scores, strict=True):
            same(one, score, digits=1e-9)
    model.get_act(x)
    same(model.feature_score, other.feature_score, digits=1e-9)


def test_an_input_that_the_output_does_not_depend_on_is_worth_nothing() -> None:
    model = network([3, 2, 1])
    model.layers[0].set_mask(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
    model.get_act(points(model))
    scores = model.attribute()
    assert scores.nodes[0][1] == 0
    assert (scores.edges[0][1] == 0).all()
    assert (scores.nodes[0][[0, 2]] > 0.1).all()
    assert torch.equal(model.feature_score, scores.nodes[0])


def test_an_edge_that_does_all_is_worth_all() -> None:
    model = network([2, 2, 1])
    model.layers[0].set_mask(torch.eye(2))
    model.layers[1].set_mask(torch.tensor([[1.0], [0.0]]))
    x = points(model)
    scores = model.attribute(x=x)
    first, second = (step.subnodes[:, 0].std(ddof=1) for step in walk(model, x))
    last = second / (second + 1e-4)
    same(scores.nodes[1], [last, 0.0], digits=1e-9)
    same(scores.edges[0], [[last * first / (first + 1e-4), 0.0], [0.0, 0.0]], digits=1e-9)


@pytest.mark.parametrize("dead", ["node", "input", "output"])
def test_what_does_not_vary_is_worth_0_and_spoils_nothing(dead: str) -> None:
    model = network([2, 3, 2])
    x = points(model)
    if dead == "input":
        x[:, 1] = 0.4
    else:
        layer, column = (0, 2) if dead == "node" else (1, 1)
        mask = torch.ones(model.width_in[layer], model.width_out[layer + 1])
        mask[:, column] = 0
        model.layers[layer].set_mask(mask)
    scores = model.attribute(x=x)
    assert all(t.isfinite().all() for part in scores for t in part)
    if dead == "input":
        assert scores.nodes[0][1] <= 1e-15  # silu of equal numbers may be another one by a rounding
    elif dead == "node":
        assert scores.nodes[1][2] == 0
        assert (scores.edges[0][:, 2] == 0).all()
    else:
        assert (scores.edges[1][:, 1] == 0).all()


def test_the_remembered_rows_are_asked_where_none_are_given() -> None:
    model = network([2, 3, 1])
    with pytest.warns(UserWarning, match="there has been no fit, so points spread evenly over the first grids"):
        before = model.attribute()
    assert all(t.isfinite().all() for part in before for t in part)
    x = points(model)
    model.get_act(x)
    alike(model.attribute(), model.attribute(x=x))
    assert torch.equal(model.sample, x)
    model.attribute(x=points(model, seed=5))
    assert torch.equal(model.sample, x)


def test_inputs_are_those_that_the_network_reads() -> None:
    model = network([3, 2, 1])
    x = points(model)
    whole = model.attribute(x=x).nodes[0]
    model.input_id.copy_(torch.tensor([2, 0, 1]))
    same(model.attribute(x=x[:, [1, 2, 0]]).nodes[0], whole)


def test_scores_have_no_gradient_but_attributed_does() -> None:
    model = network([2, 2, 1])
    x = points(model)
    assert not model.attribute(x=x).nodes[0].requires_grad
    nodes = [step.nodes for step in model.trace(x)]
    score = attribution_scores(model, nodes).edges[0][0, 1, 0]
    (slope,) = torch.autograd.grad(score, model.layers[1].base_weight)
    h = 1e-6

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            model.layers[1].base_weight[0, 0] += by
            value = attribution_scores(model, nodes).edges[0][0, 1, 0]
            model.layers[1].base_weight[0, 0] -= by
        return value

    torch.testing.assert_close(slope[0, 0], (moved(h) - moved(-h)) / (2 * h), rtol=1e-6, atol=0)
