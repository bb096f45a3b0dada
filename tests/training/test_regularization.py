"""The penalties of a fit, against pykan, and against N x I x O tensors and autograd."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import pytest
import torch
from networks import D, mixed, network, points, same
from peers import pykan_of
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.training.regularization import REG_METRICS, Penalty, coefficient_penalty, edge_penalty, edge_sizes
from fastkan_kernels.bspline.cox_de_boor import base_function, splines

FUNCTIONS = {"x": lambda z: z, "x^2": torch.square, "sin": torch.sin, "exp": torch.exp, "tanh": torch.tanh}
TERMS = [(1.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 0.7, 0.0), (0.0, 0.0, 0.0, 0.3), (1.0, 10.0, 0.5, 0.2)]

FORMULAS = [(0, 0, 0, "sin"), (0, 2, 5, "exp"), (1, 1, 2, "tanh"), (2, 0, 1, "sin")]
NETWORKS = {
    "stack": lambda: network([3, 4, 2], off=[(0, 1, 2), (1, 0, 1)]),
    "adapted": lambda: network([2, 3, 1], "adapted", base_fun="identity"),
    "mixed": lambda: mixed(knots="adapted"),
}

# -- on paper -----------------------------------------------------------------------------------------


def spread(values: Tensor) -> Tensor:
    """Standard deviation along the first dimension, of differences from the first row: exactly 0 for equal numbers."""
    return (values - values[:1]).std(0)


def passed(model: KAN, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Nodes, numeric edges ``[N, I, O]`` and all edges of each layer, and the output."""
    nodes, numeric, edges = [x[:, model.input_id]], [], []
    for l, (layer, symbolic) in enumerate(zip(model.layers, model.symbolic)):
        h = nodes[-1]
        weight = layer.spline_weight * layer.spline_scale
        values = torch.einsum("npi,pio->nio", splines(h, layer.knots, layer.spline_order), weight)
        if layer.base_weight is not None:
            values = values + base_function(h, layer.base).unsqueeze(2) * layer.base_weight
        if layer.mask is not None:
            values = values * layer.mask
        numeric.append(values)
        for edge, (a, b, c, d) in zip(symbolic.edges, symbolic.affine):
            formula = torch.zeros_like(values)
            formula[:, edge.i, edge.j] = c * FUNCTIONS[edge.name](a * h[:, edge.i] + b) + d
            values = values + formula
        edges.append(values)
        moved = model.subnode_scale[l] * values.sum(1) + model.subnode_bias[l]
        groups = model.architecture.factors(l + 1)
        out = torch.stack([moved[:, group].prod(1) for group in groups], 1)
        nodes.append(model.node_scale[l] * out + model.node_bias[l])
    return nodes[:-1], numeric, edges, nodes[-1]


def shares(model: KAN, edges: Sequence[Tensor], last: int, worth: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of nodes and edges for each node of a layer, by loops over them."""
    score = torch.diag(worth)
    found_nodes, found_edges = [score], []
    for l in range(last - 1, -1, -1):
        at_subnodes = torch.zeros(len(score), model.width_out[l + 1], dtype=D)
        for node, group in enumerate(model.architecture.factors(l + 1)):
            at_subnodes = at_subnodes.index_add(1, torch.tensor(group), score[:, [node] * len(group)])
        whole = spread(edges[l].sum(1)) + 1e-4
        each = spread(edges[l]) * (at_subnodes / whole).unsqueeze(1)
        score = each.sum(2)
        found_nodes.insert(0, score)
        found_edges.insert(0, each)
    return found_nodes, found_edges


def sizes_on_paper(model: KAN, x: Tensor, metric: str) -> list[Tensor]:
    nodes, numeric, edges, _ = passed(model, x)
    ranges = [(spread(h) + 0.1).unsqueeze(1) for h in nodes]
    if metric == "edge_forward_spline_n":
        return [spread(each) / width for each, width in zip(numeric, ranges)]
    if metric == "edge_forward_spline_u":
        return [spread(each) for each in edges]
    if metric == "edge_forward_sum":
        return [spread(each) / width for each, width in zip(edges, ranges)]
    score, each = shares(model, edges, model.depth, torch.ones(model.width_in[-1], dtype=D))
    if metric == "edge_backward":
        return [part.mean(0) for part in each]
    return [shares(model, edges, l, score[l].mean(0))[0][0].t() for l in range(1, model.depth + 1)]


def penalty_on_paper(model: KAN, x: Tensor, metric: str, terms: Sequence[float]) -> Tensor:
    l1, entropy, coef, coefdiff = terms
    total = torch.zeros((), dtype=D)
    for size in sizes_on_paper(model, x, metric):
        total = total + l1 * size.sum()
        for along in (0, 1):
            share = size / (size.sum(along, keepdim=True) + 1)
            total = total - entropy * (share * torch.log2(share + 1e-4)).sum(along).mean()
    for layer in model.layers:
        weight = layer.spline_weight if layer.mask is None else layer.spline_weight * layer.mask
        total = total + coef * weight.abs().mean(2).sum() + coefdiff * weight.diff(dim=0).abs().mean(2).sum()
    return total


def learned(model: KAN) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}


def gradients(value: Tensor, model: KAN, **options: bool) -> list[Tensor]:
    asked = list(learned(model).values())
    return list(torch.autograd.grad(value, asked, allow_unused=True, materialize_grads=True, **options))


@pytest.mark.parametrize("terms", TERMS, ids=["l1", "entropy", "coef", "coefdiff", "all"])
@pytest.mark.parametrize("metric", REG_METRICS)
@pytest.mark.parametrize("make", list(NETWORKS))
def test_values_and_gradients(make: str, metric: str, terms: tuple[float, ...]) -> None:
    model = NETWORKS[make]()
    x = points(model)
    output, value = Penalty(model, *terms, metric)(x)
    same(output, model(x), digits=1e-13)
    expected = penalty_on_paper(model, x, metric, terms)
    same(value, expected)
    exact = gradients(expected, model)
    for again in (False, True):
        got = gradients(Penalty(model, *terms, metric)(x)[1], model, create_graph=again)
        for name, one, other in zip(learned(model), got, exact):
            assert torch.allclose(one, other, rtol=1e-8, atol=1e-11), name


@pytest.mark.parametrize("metric", REG_METRICS)
@pytest.mark.parametrize("make", ["adapted", "mixed"])
def test_second_derivatives(make: str, metric: str) -> None:
    model = NETWORKS[make]()
    x = points(model, 20)

    def second(value: Tensor) -> list[Tensor]:
        first = gradients(value, model, create_graph=True)
        draw = torch.Generator().manual_seed(0)
        mixture = sum((g * torch.randn(g.shape, generator=draw, dtype=D)).sum() for g in first)
        return gradients(mixture, model)

    for layer in model.layers:  # of an edge that is off autograd's own second derivative of a spread is NaN
        layer.set_mask(None)
    got = second(Penalty(model, 1.0, 2.0, 0.0, 0.0, metric)(x)[1])
    exact = second(penalty_on_paper(model, x, metric, (1.0, 2.0, 0.0, 0.0)))
    for name, one, other in zip(learned(model), got, exact):
        scale = float(other.abs().max())
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9 * scale), name


# -- beside pykan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arity", [2, 3, None])
def test_pykans_numbers(arity: int | None) -> None:
    options = {"width": [3, [2, 2], [1, 1], 2], "mult_arity": arity}
    model = NETWORKS["stack"]() if arity is None else mixed(**options, formulas=FORMULAS, off=[(0, 1, 1), (1, 2, 1)])
    x = points(model, 50)
    other = pykan_of(model, arity or 2)
    same(model(x), other(x))
    other.attribute()
    other.node_attribute()  # which asks for less than all, and leaves that
    other.attribute()
    for metric, terms in itertools.product(REG_METRICS, TERMS):
        l1, entropy, coef, coefdiff = terms
        expected = other.reg(metric, l1, entropy, 0.0, 0.0)
        same(Penalty(model, l1, entropy, 0.0, 0.0, metric)(x)[1], expected, digits=1e-9)
        whole = copy.deepcopy(model)
        for layer in whole.layers:
            layer.set_mask(None)  # pykan counts the coefficients of edges that are off
        same(coefficient_penalty(whole, coef, coefdiff), other.reg(metric, 0.0, 0.0, coef, coefdiff), digits=1e-9)


# -- odd cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", REG_METRICS)
def test_every_metric_has_a_gradient_for_every_weight_that_is_on(metric: str) -> None:
    model = network([2, 3, 1])
    value = Penalty(model, 1.0, 0.0, 0.0, 0.0, metric)(points(model, 400))[1]
    for name, slope in zip(learned(model), gradients(value, model)):
        if name.endswith("spline_weight"):  # splines without a sample are another matter
            slope = slope.abs().amax(0)
        assert (slope != 0).all(), name


@pytest.mark.parametrize("metric", REG_METRICS)
@pytest.mark.parametrize("make", ["stack", "mixed"])
def test_nodes_and_inputs_that_do_not_vary(make: str, metric: str) -> None:
    model = NETWORKS[make]()
    mask = torch.ones(3, model.width_out[1])
    mask[:, 0] = 0  # a dead node
    model.layers[0].set_mask(mask)
    for i, j, _ in model.symbolic[0].edges:
        model.symbolic[0].unfix(i, j)
    x = points(model)
    x[:, 2] = 0.3  # an input that is constant
    value = Penalty(model, 1.0, 2.0, 0.1, 0.1, metric)(x)[1]
    same(value, penalty_on_paper(model, x, metric, (1.0, 2.0, 0.1, 0.1)))
    first = gradients(value, model, create_graph=True)
    second = gradients(sum(slope.square().sum() for slope in first), model)
    assert all(slope.isfinite().all() for slope in (*first, *second))


@pytest.mark.parametrize("metric", REG_METRICS)
@pytest.mark.parametrize("make", ["stack", "mixed"])
def test_one_row_has_no_spread(make: str, metric: str) -> None:
    """The last batch of a loader may have one row."""
    model = NETWORKS[make]()
    x = points(model, 1)
    output, value = Penalty(model, 1.0, 2.0, 0.0, 0.0, metric)(x)
    same(output, model(x))
    assert value == 0
    value = Penalty(model, 1.0, 2.0, 0.5, 0.0, metric)(x)[1]
    same(value, coefficient_penalty(model, 0.5, 0.0))
    with pytest.raises(ValueError, match="more than 1 rows"):
        edge_sizes(model, [step.nodes for step in model.trace(x)], "edge_forward_sum")


@pytest.mark.parametrize("metric", REG_METRICS)
def test_singularities_are_avoided_where_that_is_asked_for(metric: str) -> None:
    model = network([2, 2, 1])
    model.symbolic[1].fix(0, 0, "1/x")
    mask = torch.ones(2, 2)
    mask[:, 0] = 0
    model.layers[0].set_mask(mask)
    model.symbolic[0].fix(0, 0, "x", (1e-12, 0, 1, 0))
    x = points(model)
    x[0, 0] = 0.0
    assert not Penalty(model, 1.0, 2.0, 0.0, 0.0, metric)(x)[0].isfinite().all()
    output, value = Penalty(model, 1.0, 2.0, 0.0, 0.0, metric)(x, True, 5.0)
    assert output.isfinite().all()
    assert value.isfinite()
    assert all(slope.isfinite().all() for slope in gradients(value, model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", ["edge_forward_spline_n", "edge_backward"])
def test_narrow_dtypes(metric: str, dtype: torch.dtype) -> None:
    model = network([2, 3, 1], "own")
    narrow = copy.deepcopy(model).to(dtype)
    x = points(narrow)
    value = Penalty(narrow, 1.0, 2.0, 0.1, 0.1, metric)(x)[1]
    assert value.dtype == dtype
    exact = Penalty(copy.deepcopy(narrow).double(), 1.0, 2.0, 0.1, 0.1, metric)(x.double())[1]
    assert abs(value.double() - exact) <= 16 * torch.finfo(dtype).eps * exact
    assert all(slope.isfinite().all() and slope.dtype == dtype for slope in gradients(value, narrow))


def test_torchs_default_device_is_not_asked() -> None:
    model = network([2, 3, 1])
    x = points(model)
    expected = Penalty(model, 1.0, 2.0, 0.1, 0.1, "edge_backward")(x)[1]
    with torch.device("meta"):
        value = Penalty(model, 1.0, 2.0, 0.1, 0.1, "edge_backward")(x)[1]
        gradients(value, model)
    assert torch.equal(value, expected)


@pytest.mark.parametrize("entropy", [0.0, 3.0])
def test_gradcheck_of_the_penalty_of_sizes(entropy: float) -> None:
    sizes = [torch.rand(3, 4, dtype=D).requires_grad_(), torch.rand(4, 1, dtype=D).requires_grad_()]
    with torch.no_grad():
        sizes[0][1] = 0.2
    assert torch.autograd.gradcheck(lambda *s: edge_penalty(s, 0.7, entropy), sizes)
    assert torch.autograd.gradgradcheck(lambda *s: edge_penalty(s, 0.7, entropy), sizes)


def test_no_tensor_of_all_edges_values_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkan.layers import edge_functions as edges
    from fastkan_kernels import statistics as statistics

    def never(*args, **options) -> None:
        raise AssertionError("N x I x O")

    for module in (edges, statistics):
        monkeypatch.setattr(module, "edge_values", never)
    model = network([3, 4, 2])
    for metric in REG_METRICS:
        gradients(Penalty(model, 1.0, 2.0, 0.1, 0.1, metric)(points(model, 5000))[1], model)


def test_compiled_and_traced_it_is_the_same() -> None:
    metric = "edge_backward"
    from torch.fx.experimental.proxy_tensor import make_fx

    model = network([2, 3, 1])
    x = points(model, 20)
    penalty = Penalty(model, 1.0, 2.0, 0.1, 0.1, metric)

    def objective(x: Tensor) -> Tensor:
        output, value = penalty(x)
        return output.square().mean() + value

    exact = objective(x)
    found = torch.compile(objective, backend="aot_eager", fullgraph=True)(x)
    same(found, exact)
    for one, other in zip(gradients(found, model), gradients(exact, model)):
        same(one, other, digits=1e-9)
    with torch.no_grad():
        same(make_fx(objective)(x)(x / 2), objective(x / 2))
