"""Grid extension and grid updates: the same function on other knots."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import D, mixed, network, nothing_shared, parameters_of, points, same, unchanged, walk
from torch import Tensor

from fastkan.kan.model import KAN
from fastkan.layers.edge_functions import mask_of
from fastkan_kernels.bspline.cox_de_boor import splines


def inside(model: KAN, rows: int = 200) -> Tensor:
    """Samples that leave no layer's grid."""
    x = points(model, rows, wide=0.9)
    for step, layer in zip(model.trace(x), model.layers):
        limits = layer.knots[:, layer.spline_order : layer.knots.shape[1] - layer.spline_order]
        assert (step.nodes >= limits[:, 0]).all()
        assert (step.nodes <= limits[:, -1]).all()
    return x


def calm(width=(2, 4, 1), knots: str = "own", **options) -> KAN:
    """Hidden values stay in the grids."""
    model = network(width, knots, **options)
    with torch.no_grad():
        for layer in model.layers:
            layer.spline_weight *= 0.15
            if layer.base_weight is not None:
                layer.base_weight *= 0.15
    return model


def target(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)


def fitted(seed: int = 0, **options) -> tuple[KAN, Tensor, Tensor]:
    """A network after a fit with grid updates, as in a session."""
    model = KAN([2, 5, 1], grid=3, k=3, seed=seed, dtype=D)
    x = 2 * torch.rand(300, 2, generator=torch.Generator().manual_seed(seed), dtype=D) - 1
    y = target(x)
    model.fit((x, y), steps=10, progress=False, **options)
    return model, x, y


def rmse(model: KAN, x: Tensor, y: Tensor) -> float:
    return (model(x) - y).square().mean().sqrt().item()


# -- where grids nest -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("knots", ["own", "adapted"])
def test_outputs_stay_as_they_are_where_grids_nest(knots: str, order: int) -> None:
    model = calm(knots=knots, k=order, grid=4)
    if knots == "own":
        x = inside(model)
    else:
        layer = model.layers[0]
        low, high = layer.knots[:, order], layer.knots[:, -order - 1]
        x = low + (high - low) * torch.rand(200, 2, dtype=D)
    y = model(x)
    before = parameters_of(model)
    for size in (8, 12, [4, 20]):
        finer = model.refine(size)
        assert finer.grid == ([size] * 2 if isinstance(size, int) else size)
        first = finer.trace(x)[0]
        same(first.subnodes, model.trace(x)[0].subnodes)
        if knots == "own":
            same(finer(x), y)
            same(finer(x), walk(finer, x)[-1].out)
        nothing_shared(model, finer)
    unchanged(model, before)


def test_the_ends_of_a_grid_are_on_it() -> None:
    model = calm()
    axis = torch.linspace(-1, 1, 21, dtype=D)
    x = torch.cartesian_prod(axis, axis)
    y = model(x)
    finer = model.refine(12)
    assert torch.equal(finer.layers[0].knots[:, [3, -4]], torch.tensor([[-1.0, 1.0]] * 2, dtype=D))
    same(finer(x), y)


def test_knots_are_inserted_and_nothing_is_solved() -> None:
    model = calm([1, 1], "adapted", k=5)  # where a solution would lose digits
    low, high = model.layers[0].knots[:, 5], model.layers[0].knots[:, -6]
    model.get_act(low + (high - low) * torch.rand(9, 1, dtype=D))
    for size in (6, 12, 48):
        finer = model.refine(size)
        rounding = (finer(model.sample) - model(model.sample)).abs().max() / model(model.sample).abs().max()
        assert rounding <= 8 * torch.finfo(D).eps
        model = finer


def test_float32_costs_roundings_only() -> None:
    model = calm().float()
    x = inside(model)
    model.get_act(x)
    exact = copy.deepcopy(model).double()(x.double())
    apart = (model.refine(24)(x) - exact).abs().max()
    assert apart <= 16 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_a_whole_session_of_extensions_never_raises_the_loss() -> None:
    model, x, y = fitted()
    model.update_grid_from_samples(x)  # what training has moved since the last update is on the grids again
    before = rmse(model, x, y)
    for size in (6, 12, 24, 48):
        model = model.refine(size)
        assert rmse(model, x, y) == pytest.approx(before, rel=1e-9)
    results = model.fit((x, y), steps=2, progress=False, update_grid=False)
    assert results["train_loss"][0] < before


@pytest.mark.parametrize("seed", range(3))
def test_refining_right_after_a_fit_keeps_the_loss(seed: int) -> None:
    """pykan's refine raises the loss from .0019 to .63 in such a session."""
    model, x, y = fitted(seed)
    for size in (6, 12, 24):
        before = rmse(model, x, y)
        model = model.refine(size)
        assert rmse(model, x, y) == pytest.approx(before, rel=1e-12)
        model.fit((x, y), steps=2, progress=False)


def test_a_coarser_grid_hardly_changes_the_loss() -> None:
    model, x, y = fitted()
    fine = model.refine(24)
    coarse = fine.refine(10)
    assert coarse.grid == [10, 10]
    assert rmse(coarse, x, y) <= rmse(fine, x, y) + 0.05 * y.std().item()


def test_everything_else_comes_along() -> None:
    model = mixed(knots="own")
    x = points(model)
    model.get_act(x)
    model.layers[0].spline_scale.requires_grad_(False)
    finer = model.refine(12)
    for l in range(3):
        for name in ("base_weight", "spline_scale"):
            assert torch.equal(getattr(finer.layers[l], name), getattr(model.layers[l], name))
        assert torch.equal(mask_of(finer.layers[l]), mask_of(model.layers[l]))
        assert finer.symbolic[l].edges == model.symbolic[l].edges
        assert torch.equal(finer.symbolic[l].affine, model.symbolic[l].affine)
        assert torch.equal(finer.node_bias[l], model.node_bias[l])
    assert not finer.layers[0].spline_scale.requires_grad
    assert torch.equal(finer.sample, model.sample)


# -- elsewhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [6, 7, 12, 60])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_samples_outside_of_grids_keep_their_outputs(order: int, size: int) -> None:
    model = calm([2, 3, 1], k=order)
    x = 3 * torch.rand(300, 2, dtype=D) - 1.5
    finer = model.refine(size, x)
    same(finer(x), model(x))
    first = 20 * torch.rand(300, 2, dtype=D) - 10
    same(finer.trace(first)[0].subnodes, model.trace(first)[0].subnodes)
    same(model.refine(size, first)(first), model(first))


def test_a_grid_that_samples_have_left_can_learn_there() -> None:
    model = KAN([1, 1], grid=5, k=3, seed=0, dtype=D)
    x = torch.linspace(0.5, 3, 300, dtype=D).unsqueeze(1)
    y = torch.sin(3 * x)
    before = model.fit((x, y), steps=20, update_grid=False, progress=False)["train_loss"][-1]
    after = model.refine(40, x).fit((x, y), steps=20, update_grid=False, progress=False)["train_loss"]
    assert after[0] <= before
    assert after[-1] < 0.01 * before


@pytest.mark.parametrize("seed", range(3))
def test_without_grid_updates_a_whole_session_never_raises_the_loss(seed: int) -> None:
    """Training moves hidden values off their grids."""
    model, x, y = fitted(seed, update_grid=False)
    left = False
    for size in (3, 5, 10, 25):
        nodes, knots = model.trace(x)[1].nodes, model.layers[1].knots
        left = left or bool(((nodes < knots[:, 3]) | (nodes > knots[:, -4])).any())
        loss = rmse(model, x, y)
        model = model.refine(size, x)
        assert rmse(model, x, y) == pytest.approx(loss, rel=1e-12)
        model.fit((x, y), steps=3, update_grid=False, progress=False)
    assert left


@pytest.mark.parametrize("size", [7, 12, 13])
def test_knots_where_no_sample_lies_keep_the_function_there(size: int) -> None:
    """pykan's least squares set to 0 what no sample speaks for."""
    model = calm([1, 1])
    x = torch.linspace(-0.9, -0.5, 100, dtype=D).unsqueeze(1)
    model.get_act(x)
    finer = model.refine(size)
    everywhere = torch.linspace(-0.99, 0.99, 200, dtype=D).unsqueeze(1)
    y = model(everywhere)
    same(finer(everywhere), y)
    coarser = finer.refine(size // 2)
    assert (coarser(everywhere) - y).abs().max() <= 0.3 * y.abs().max()
    same(coarser(x), model(x), digits=0.02)


@pytest.mark.parametrize("value", [0.3, 5.0, -1.0, 1.0, 0.0])
def test_samples_that_are_all_one_value(value: float) -> None:
    model = calm([1, 1])
    x = torch.full((10, 1), value, dtype=D)
    for size in (6, 7, 12):
        finer = model.refine(size, x)
        same(finer(x), model(x))
        finer(x).sum().backward()
        assert all(p.grad.isfinite().all() for p in finer.layers.parameters())


# -- update_grid --------------------------------------------------------------------------------------


def test_knots_go_where_the_samples_are_in_every_layer() -> None:
    model = calm([2, 3, 1])
    x = 5 + 3 * torch.rand(500, 2, dtype=D)
    model.update_grid_from_samples(x)
    for step, layer in zip(model.trace(x), model.layers):
        limits = layer.knots[:, [3, -4]]
        low, high = step.nodes.amin(0), step.nodes.amax(0)
        assert (limits[:, 0] < low).all()
        assert (limits[:, 1] > high).all()
        assert (limits[:, 1] - limits[:, 0] <= 1.05 * (high - low)).all()


def test_a_grid_update_keeps_the_function_as_well_as_its_knots_can() -> None:
    model, x, y = fitted(update_grid=False)
    before = rmse(model, x, y)
    model.update_grid_from_samples(x)
    assert rmse(model, x, y) <= before + 0.05 * y.std().item()
    again = copy.deepcopy(model)
    again.update_grid_from_samples(x)  # to where they are
    same(again(x), model(x), digits=1e-6)
    assert model.update_grid.__func__ is model.update_grid_from_samples.__func__


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_grid_eps_mixes_quantiles_and_even_steps(eps: float) -> None:
    model = calm([1, 1], grid_eps=eps, grid=4)
    x = torch.linspace(0, 1, 1001, dtype=D).unsqueeze(1) ** 3
    model.update_grid_from_samples(x)
    knots = model.layers[0].knots[0, 3:-3]
    expected = torch.linspace(0, 1, 5, dtype=D) ** 3 if eps == 0 else torch.linspace(-0.01, 1.01, 5, dtype=D)
    same(knots, expected)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("constant", ["dead node", "input"])
def test_what_does_not_vary_keeps_its_knots_and_a_fit_goes_on(constant: str, dtype: torch.dtype) -> None:
    model = calm([2, 3, 1]).to(dtype)
    x = points(model)
    if constant == "input":
        x[:, 1] = 0.37
        layer, place = 0, 1
    else:
        mask = torch.ones(2, 3)
        mask[:, 1] = 0
        model.layers[0].set_mask(mask)
        layer, place = 1, 1
    knots = model.layers[layer].knots[place].clone()
    model.update_grid_from_samples(x)
    same(model.layers[layer].knots[place], knots, digits=4 * torch.finfo(dtype).eps)
    others = [n for n in range(model.layers[layer].in_features) if n != place]
    assert (model.layers[layer].knots[others] - knots).abs().amax(1).min() > 0.01
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.layers.parameters())
    for opt in ("LBFGS", "Adam"):
        results = model.fit((x, x[:, :1]), opt=opt, steps=3, lamb=0.01, lr=0.1, progress=False)
        assert len(results["train_loss"]) == 3


def test_layers_that_are_formulas_keep_their_knots() -> None:
    model = calm([2, 2, 1])
    for i in range(2):
        for j in range(2):
            model.symbolic[0].fix(i, j, "sin")
    model.layers[0].set_mask(torch.zeros(2, 2))
    knots = model.layers[0].knots.clone()
    x = points(model)
    model.update_grid_from_samples(x)
    assert torch.equal(model.layers[0].knots, knots)
    low, high = model.trace(x)[1].nodes.aminmax(dim=0)
    assert (model.layers[1].knots[:, 3] < low).all()
    assert (model.layers[1].knots[:, -4] > high).all()


def test_samples_that_a_later_layer_gets_as_infinities_change_nothing() -> None:
    model = calm([1, 1, 1])
    model.symbolic[0].fix(0, 0, "1/x")  # infinite at 0
    before = parameters_of(model)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN or infinite of 3"):
        model.update_grid_from_samples(torch.tensor([[0.0], [0.3], [0.5]], dtype=D))
    unchanged(model, before)
    same(model(points(model)), walk(model, points(model))[-1].out)


def test_refitted_splines_are_the_least_squares_solution() -> None:
    """The best coefficients by PyTorch's solver, on samples that determine them."""
    model = calm([1, 1])
    x = torch.linspace(-0.95, 0.95, 500, dtype=D).unsqueeze(1)
    finer = model.refine(5, x)
    old = splines(x, model.layers[0].knots, 3)[:, :, 0] @ model.layers[0].spline_weight[:, 0]
    basis = splines(x, finer.layers[0].knots, 3)[:, :, 0]
    exact = torch.linalg.lstsq(basis, old, driver="gelsd").solution
    same(basis @ finer.layers[0].spline_weight[:, 0], basis @ exact, digits=1e-5)  # anchors have a weight of 1e-6


def test_grid_updates_extend_all_grids_by_the_margin_of_the_network() -> None:
    model = KAN(width=[2, 3, 1], grid=4, seed=0, grid_eps=1.0, grid_margin=0.25, dtype=torch.float64)
    x = points(model, 100)
    copies = [model.refine(4, x), copy.deepcopy(model), model]
    for each in copies:
        each.update_grid_from_samples(x)
        for layer, step in zip(each.layers, each.trace(x)):
            low, high = step.nodes.min(0).values, step.nodes.max(0).values
            ends = layer.knots[:, [3, -4]]
            torch.testing.assert_close(ends, torch.stack([1.25 * low - 0.25 * high, 1.25 * high - 0.25 * low], 1))
