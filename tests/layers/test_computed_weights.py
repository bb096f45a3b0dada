"""Layers whose weights are computed from others, in a network: its forward, its penalty and its fit."""

from __future__ import annotations

import pytest
import torch
from computed_weights import COMPUTED
from networks import network, points, same

from fastkan.training.regularization import Penalty


@pytest.mark.parametrize("metric", ["edge_forward_spline_n", "edge_forward_spline_u", "edge_backward"])
@pytest.mark.parametrize("name", list(COMPUTED))
def test_spreads_of_computed_weights_are_those_of_plain_ones(name: str, metric: str) -> None:
    model, twin = (network([2, 4, 3], off=[(0, 1, 2), (1, 0, 1)]) for _ in range(2))
    COMPUTED[name](model)
    x = points(model)
    model(x)
    with torch.no_grad():
        for layer, own in zip(twin.layers, model.layers):
            for weight in ("spline_weight", "base_weight", "spline_scale"):
                getattr(layer, weight).copy_(getattr(own, weight))
    same(model(x), twin(x))
    sizes = [Penalty(each, 1.0, 2.0, 0.0, 0.0, metric)(x)[1] for each in (model, twin)]
    same(*sizes)


@pytest.mark.parametrize("lamb", [0.0, 1e-3])
@pytest.mark.parametrize("opt", ["LBFGS", "Adam"])
@pytest.mark.parametrize("name", list(COMPUTED))
def test_a_fit_of_computed_weights(name: str, opt: str, lamb: float) -> None:
    """The loss falls, by what the network computes after all; with trials in it, from the fourth step on."""
    model = network([2, 3, 1])
    COMPUTED[name](model)
    x = points(model, 40)
    y = (x[:, :1] * x[:, 1:]).sin()
    with torch.no_grad():
        before = (model(x) - y).square().mean().sqrt().item()
    results = model.fit((x, y), opt, steps=6, lr=1.0 if opt == "LBFGS" else 0.05, lamb=lamb, update_grid=False,
                        progress=False)  # fmt: skip
    with torch.no_grad():
        after = (model(x) - y).square().mean().sqrt().item()
    assert after == pytest.approx(results["train_loss"][-1], rel=1e-9)
    assert after < 0.8 * before
    if name == "pruning":
        layer = model.layers[0]
        assert (layer.spline_weight[layer.spline_weight_mask == 0] == 0).all()
        assert (layer.spline_weight_mask == 0).sum() == layer.spline_weight.numel() // 2
