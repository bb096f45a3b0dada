"""Looking inside a network: traces, samples, single edges."""

from __future__ import annotations

import pytest
import torch
from networks import D, mixed, network, points, same, walk

from fastkan import KAN
from fastkan.functional import derivatives
from fastkan.network.trace import LayerTrace, default_rows
from fastkan.optim.levenberg_marquardt import cross_entropy
from fastkan.symbolic import search


def test_a_trace_has_every_layer_and_no_gradient() -> None:
    model = mixed()
    x = points(model)
    steps = model.trace(x.view(3, 20, 3))
    assert len(steps) == model.depth
    assert all(isinstance(step, LayerTrace) and step.edges is None for step in steps)
    for l, (step, exact) in enumerate(zip(model.trace(x, edges=True), walk(model, x))):
        same(step.edges, exact.edges)
        same(step.subnodes, step.edges.sum(1))
        same(step.nodes, exact.nodes)
        assert torch.equal(steps[l].out, step.out)
        assert not any(t.requires_grad for t in step)
    assert model.sample is None


def test_results_are_shown_by_their_shapes() -> None:
    """A notebook shows the last line of a cell. Thousands of numbers there would hide everything else."""
    model = KAN([2, 3, 1], seed=0)
    x = torch.rand(100, 2)
    first = "LayerTrace(nodes=Tensor[100, 2], edges={}, subnodes=Tensor[100, 3], out=Tensor[100, 3])"
    assert repr(model.trace(x)[0]) == first.format(None)
    assert repr(model.get_act(x)).startswith(f"[{first.format('Tensor[100, 2, 3]')}, LayerTrace(")
    found = derivatives(model, x)
    assert str(found) == "Derivatives(value=Tensor[100], gradient=Tensor[100, 2], hessian=Tensor[100, 2, 2])"
    fits = search(x, x.sin(), ["x", "sin"])
    assert repr(fits) == "SymbolicFits(names=['x', 'sin'], affine=Tensor[2, 2, 4], r2=Tensor[2, 2])"
    block = cross_entropy(x, torch.zeros(100, dtype=torch.long))
    assert repr(block).startswith(f"Block(outputs=Tensor[100, 2], cost={block.cost}, residuals=Tensor[200], upstream=")
    assert "tensor(" not in repr(block)


def test_before_any_fit_samples_are_spread_over_the_first_grids() -> None:
    model = network([3, 2, 1], "adapted").prune_input(active_inputs=[0, 2])
    x = default_rows(model)
    limits = model.layers[0].knots[:, [3, -4]]
    assert x.shape[1] == 3
    read = x[:, [0, 2]]
    assert (read >= limits[:, 0]).all()
    assert (read <= limits[:, 1]).all()
    width = limits[:, 1] - limits[:, 0]
    for share in range(10):  # evenly
        inside = (read >= limits[:, 0] + width * share / 10) & (read < limits[:, 0] + width * (share + 1) / 10)
        torch.testing.assert_close(inside.double().mean(0), torch.full((2,), 0.1, dtype=D), rtol=0, atol=0.01)
    assert torch.equal(default_rows(model), x)
    given = points(model)
    model(given)
    assert torch.equal(default_rows(model), x)
    model.get_act(given)
    assert torch.equal(default_rows(model), given)
    assert default_rows(model.float()).dtype == torch.float32


def test_the_sample_goes_where_the_network_goes() -> None:
    model = network([2, 3, 1])
    model.get_act(points(model))
    model.float()
    assert model.trace()[0].nodes.dtype == torch.float32


def test_get_act_keeps_what_was_sent_through() -> None:
    model = network([2, 3, 1])
    x = points(model)
    steps = model.get_act({"train_input": x, "train_label": x[:, :1]})
    assert torch.equal(model.sample, x)
    same(steps[1].edges, walk(model, x)[1].edges)
    other = points(model, seed=5)
    model.get_act(other)
    assert torch.equal(model.sample, other)
    same(model.get_act()[0].nodes, other)


@pytest.mark.parametrize(("l", "i", "j"), [(0, 0, 0), (0, 2, 5), (1, 4, 0), (2, 1, 1)])
def test_get_fun_and_get_range_are_of_one_edge(l: int, i: int, j: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = mixed()
    x = points(model)
    model.get_act(x)
    step = walk(model, x)[l]
    inputs, values = model.get_fun(l, i, j)
    order = step.nodes[:, i].argsort()
    same(inputs, step.nodes[order, i])
    same(values, step.edges[order, i, j])
    ends = model.get_range(l, i, j)
    assert ends == (inputs.min(), inputs.max(), values.min(), values.max())
    shown = "x range: [{:.2f}, {:.2f}]\ny range: [{:.2f}, {:.2f}]\n".format(*ends)
    assert capsys.readouterr().out == shown
    assert model.get_range(l, i, j, verbose=False) == ends
    assert capsys.readouterr().out == ""


def test_evaluate_is_the_root_mean_squared_error() -> None:
    model = network([2, 3, 2])
    x = points(model)
    y = torch.randn(60, 2, dtype=D)
    exact = (model(x) - y).square().mean().sqrt().item()
    assert model.evaluate({"test_input": x, "test_label": y})["test_loss"] == pytest.approx(exact, rel=1e-12)
    with pytest.raises(ValueError, match=r"y must have the shape \[60, 2\]"):
        model.evaluate({"test_input": x, "test_label": y[:, 0]})
