"""Grids that move and grow: update_grid, refine, set_knots, and what lies beyond the ends."""

from __future__ import annotations

import copy

import numpy as np
import oracle
import pytest
import torch
from cases import inside_cells, make_knots

from fastkan import KANLinear

ORDERS = range(1, 6)


def layer_on(kind: str, order: int = 3, grid: int = 6, dtype: torch.dtype = torch.float64, **options) -> KANLinear:
    layer = KANLinear(3, 4, grid, order, dtype=dtype, **options)
    knots = torch.float32 if dtype.itemsize < 4 else dtype
    layer.set_knots(make_knots(kind, 3, grid, order, knots))
    with torch.no_grad():
        layer.spline_weight.normal_()
    return layer


def ends(layer: KANLinear) -> tuple[torch.Tensor, torch.Tensor]:
    order = layer.spline_order
    return layer.knots[:, order], layer.knots[:, -order - 1]


def spread(layer: KANLinear, rows: int = 200) -> torch.Tensor:
    """Inputs all over the grid, its first end among them, and just short of its last."""
    low, high = ends(layer)
    x = low + (high - low) * torch.rand(rows, layer.in_features, dtype=low.dtype)
    x[0], x[1] = low, torch.nextafter(high, low)
    return x


def make_polynomial(layer: KANLinear) -> None:
    """Give each edge a random polynomial of the splines' own degree, which any knots can represent."""
    layer.base_weight.data.zero_()
    x = spread(layer, 300).double()
    powers = torch.stack([x**p for p in range(layer.spline_order + 1)])  # [p, n, i]
    values = torch.einsum("pni,pio->nio", powers, torch.randn(len(powers), 3, 4, dtype=torch.float64))
    psi = torch.from_numpy(oracle.splines(x.numpy(), layer.knots.double().numpy(), layer.spline_order))
    for i in range(3):
        layer.spline_weight.data[:, i] = torch.linalg.lstsq(psi[..., i], values[:, i], driver="gelsd").solution


# -- update_grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid_eps", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("kind", ["shared", "adapted"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_function_that_new_knots_can_hold_stays(order: int, kind: str, grid_eps: float) -> None:
    layer = layer_on(kind, order)
    make_polynomial(layer)
    low, high = ends(layer)
    x = low + (high - low) * (0.05 + 0.9 * torch.rand(400, 3, dtype=torch.float64).square())
    y, before = layer(x), layer.knots.clone()
    layer.update_grid(x, grid_eps=grid_eps)
    assert (layer.knots - before).abs().max() > 0.01
    torch.testing.assert_close(layer(x), y, rtol=1e-6, atol=1e-6)


def test_a_smooth_function_stays_close_and_samples_decide_where() -> None:
    layer = KANLinear(1, 1, 20, dtype=torch.float64)
    fine = torch.linspace(-1, 1, 400, dtype=torch.float64).unsqueeze(1)
    make = torch.optim.LBFGS([layer.spline_weight, layer.base_weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        make.zero_grad()
        value = (layer(fine) - torch.sin(4 * fine)).square().mean()
        value.backward()
        return value

    make.step(loss)
    x = (0.3 * torch.randn(3000, 1, dtype=torch.float64)).clamp(-0.95, 0.95)
    y = layer(x).detach()
    layer.update_grid(x)
    assert (layer(x) - y).abs().max() < 0.01
    assert (layer(x) - y).square().mean().sqrt() < 1e-3
    widths = layer.knots[0, 3:-3].diff()
    assert widths[9:11].mean() < widths[[0, -1]].mean() / 4


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.5])
def test_knots_are_quantiles_mixed_with_even_ones(margin: float) -> None:
    x = torch.randn(57, 3, dtype=torch.float64).exp()
    low, high = x.numpy().min(0), x.numpy().max(0)
    shares = np.linspace(0, 1, 7)
    quantiles = np.quantile(x.numpy(), shares, axis=0).T
    room = margin * (high - low)
    even = (low - room)[:, None] + (high - low + 2 * room)[:, None] * shares
    for grid_eps in (0.0, 0.3, 1.0):
        layer = layer_on("shared")
        layer.update_grid(x, grid_eps=grid_eps, margin=margin)
        grid = layer.knots.numpy()[:, 3:-3]
        np.testing.assert_allclose(grid, grid_eps * even + (1 - grid_eps) * quantiles, rtol=1e-12, atol=1e-12)
        step = (grid[:, -1] - grid[:, 0]) / 6
        np.testing.assert_allclose(layer.knots.numpy()[:, :3], grid[:, :1] - step[:, None] * [3, 2, 1], rtol=1e-9)
        np.testing.assert_allclose(layer.knots.numpy()[:, -3:], grid[:, -1:] + step[:, None] * [1, 2, 3], rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.25, -7.0])
def test_an_input_that_does_not_vary_keeps_its_knots_and_function(value: float) -> None:
    layer = layer_on("shared")
    layer.spline_weight.data[:, [0, 2]] = 0  # so that the layer is a function of input 1
    layer.base_weight.data[[0, 2]] = 0
    x = 0.5 * torch.randn(200, 3, dtype=torch.float64)
    x[:, 1] = value
    probe, knots = spread(layer), layer.knots.clone()
    y = layer(probe)
    layer.update_grid(x)
    torch.testing.assert_close(layer.knots[1], knots[1], rtol=1e-12, atol=1e-12)
    assert (layer.knots[[0, 2]] - knots[[0, 2]]).abs().amax(1).min() > 0.01
    torch.testing.assert_close(layer(probe), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid_eps", [0.0, 0.02])
@pytest.mark.parametrize("order", ORDERS)
def test_samples_of_few_values_give_finite_functions_and_gradients(order: int, grid_eps: float) -> None:
    """One-hot columns, counts, clipped sensors: quantiles coincide, and so do knots."""
    layer = layer_on("shared", order)
    x = torch.randint(0, 3, (300, 3), dtype=torch.float64) / 2 - 0.5
    x[:, 2] = (torch.rand(300) < 0.01).double()
    y = layer(x)
    layer.update_grid(x, grid_eps=grid_eps)
    assert layer.knots.isfinite().all()
    probe = x.clone().requires_grad_()
    after = layer(probe)
    gradients = torch.autograd.grad(after.square().sum(), [probe, *layer.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    # the last knot of the grid belongs to no cell of no width: it is only there that samples may move
    inside = (x < ends(layer)[1]).all(1)
    torch.testing.assert_close(after[inside], y[inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_samples_are_kept_exactly(rows: int) -> None:
    layer = layer_on("shared")
    x = torch.rand(rows, 3, dtype=torch.float64) - 0.5
    y = layer(x)
    layer.update_grid(x)
    torch.testing.assert_close(layer(x), y, rtol=1e-3, atol=1e-3)
    assert layer.spline_weight.isfinite().all()


def test_scale_and_mask_are_not_applied_twice() -> None:
    """efficient-kan applies them twice, and its outputs change by more than their size."""
    layer = layer_on("shared", spline_scale=True, bias=True)
    make_polynomial(layer)
    with torch.no_grad():
        layer.spline_scale.uniform_(2, 5)
        layer.bias.normal_()
    layer.set_mask(torch.rand(3, 4) > 0.4)
    x = torch.rand(300, 3, dtype=torch.float64) - 0.5
    y, scale = layer(x), layer.spline_scale.clone()
    layer.update_grid(x)
    torch.testing.assert_close(layer(x), y, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.spline_scale, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_the_parameter_stays_the_one_that_the_optimizer_has(dtype: torch.dtype) -> None:
    layer = layer_on("shared", dtype=dtype)
    parameter = layer.spline_weight
    layer.update_grid(torch.rand(4, 30, 3).to(dtype))
    assert layer.spline_weight is parameter
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.dtype == dtype
    assert layer.knots.dtype == torch.float32
    assert "knots=adapted" in repr(layer)
    assert layer.knots.is_contiguous()
    assert layer.spline_weight.is_contiguous()


@pytest.mark.parametrize("grid_size", [3, 5, 16, 40])
@pytest.mark.parametrize(("middle", "half"), [(101325.0, 5.0), (-101325.0, 5.0), (1e6, 1.0), (1e6, 100.0)])
def test_columns_far_from_0_adapt_in_float32_as_in_float64(middle: float, half: float, grid_size: int) -> None:
    """Each knot to within float32's spacing there, as long as the cells are wider than that."""
    spacing = np.spacing(np.float32(abs(middle) + half))
    if 2 * half / grid_size < spacing:
        pytest.skip("float32 has no numbers for that many cells")
    x = middle + half * (2 * torch.rand(2000, 1) - 1)
    narrow, wide = KANLinear(1, 2, grid_size), KANLinear(1, 2, grid_size, dtype=torch.float64)
    narrow.update_grid(x)
    wide.update_grid(x.double())
    assert narrow.knots.diff(dim=1).min() > 0
    assert ends(wide)[0] < x.min()
    assert ends(wide)[1] > x.max()
    # knots that rounding would merge are spread out: those may be off by more
    crowded = wide.knots.diff(dim=1).min() < 2 * spacing
    assert (narrow.knots.double() - wide.knots).abs().max() <= spacing * (grid_size if crowded else 0.5)


def test_a_function_of_a_column_far_from_0_can_be_fitted_in_float32() -> None:
    x = 101325 + 5 * (2 * torch.rand(1000, 1) - 1)
    layer = KANLinear(1, 13, 10, base="none")
    layer.update_grid(x)
    with torch.no_grad():
        layer.spline_weight.copy_(torch.eye(13).unsqueeze(1))  # each output is one spline
        psi, target = layer(x).double(), torch.sin((x.double() - 101325) / 2)
    solution = torch.linalg.lstsq(psi, target, driver="gelsd").solution
    assert (psi @ solution - target).abs().max() < 2e-3


def test_knots_that_would_merge_in_float32_are_spread_out() -> None:
    """Half the samples are one value; the narrowest cells are then a hundredth of the mean one."""
    x = 1e4 + torch.cat([torch.zeros(500, 1), torch.rand(500, 1)])
    layer = KANLinear(1, 2, 20)
    layer.update_grid(x, grid_eps=1e-3)
    assert layer.knots.diff(dim=1).min() > 0
    near = layer.knots[0, 3:-3] < 1e4 + 0.25
    assert near.sum() > 12  # they still crowd where the samples do


def test_a_flat_column_keeps_its_knots_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    layer = KANLinear(3, 2)
    before = layer.knots.clone()
    layer.update_grid(torch.stack([torch.full((50,), 1e6), torch.rand(50), torch.zeros(50)], 1))
    assert torch.equal(layer.knots[::2], before[::2])
    assert not torch.equal(layer.knots[1], before[1])
    assert not recwarn.list


def test_a_column_too_narrow_for_float32_keeps_its_knots_and_says_so() -> None:
    layer = KANLinear(2, 2, 5)
    before = layer.knots.clone()
    x = torch.stack([torch.rand(300), 1e6 + 0.2 * torch.rand(300)], 1)
    with pytest.warns(UserWarning, match=r"inputs \[1\] keep their grids.*torch.float32.*float64 layer") as caught:
        layer.update_grid(x)
    assert caught[0].filename == __file__
    assert torch.equal(layer.knots[1], before[1])
    assert not torch.equal(layer.knots[0], before[0])


# -- refine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("kind", ["shared", "uniform", "adapted", "repeated"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_multiple_of_the_grid_is_exactly_the_same_function(order: int, kind: str, times: int) -> None:
    layer = layer_on(kind, order, grid=8)
    x = spread(layer).requires_grad_()
    y = layer(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    layer.refine(8 * times)
    assert layer.grid_size == 8 * times
    assert layer.spline_weight.shape == (8 * times + order, 3, 4)
    size = float(layer.spline_weight.detach().abs().max())
    torch.testing.assert_close(layer(x), y, rtol=1e-11, atol=1e-11 * size)
    if order > 1 or kind in ("shared", "uniform"):
        torch.testing.assert_close(torch.autograd.grad(layer(x).sum(), x)[0], slope, rtol=1e-8, atol=1e-8 * size)


@pytest.mark.parametrize("kind", ["shared", "adapted"])
def test_refining_in_float32_is_exact_to_its_rounding(kind: str) -> None:
    layer = layer_on(kind, dtype=torch.float32)
    x = spread(layer)
    y = layer(x)
    everywhere = copy.deepcopy(layer)
    layer.refine(24, x)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)
    assert ("adapted" in repr(layer)) == (kind == "adapted")
    x = 2 * x
    y = everywhere(x)
    everywhere.refine(24)
    torch.testing.assert_close(everywhere(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("samples", ["none", "one outside", "far", "inside"])
@pytest.mark.parametrize("kind", ["shared", "uniform", "adapted"])
@pytest.mark.parametrize("order", ORDERS)
def test_refining_changes_no_value_anywhere(order: int, kind: str, samples: str, outside: str) -> None:
    """The values are the same in the grid, between the outer knots and beyond, for any size that is not smaller."""
    layer = layer_on(kind, order, grid=4, outside=outside)
    knots = layer.knots.clone()
    low, high = ends(layer)
    width = high - low
    dense = torch.linspace(0, 1, 1501, dtype=torch.float64).unsqueeze(1)
    x = (knots[:, 0] - width) + dense * (knots[:, -1] - knots[:, 0] + 2 * width)
    covered = (low <= x) & (x <= high)
    rows = {"none": None, "inside": low + dense * width, "far": high + 2 * width * (dense - 0.7)}.get(samples)
    if samples == "one outside":
        rows = (low + dense * width).clone()
        rows[7, 1] = (high + 0.3 * (knots[:, -1] - high))[1]
    y = layer(x)
    size = float(layer.spline_weight.detach().abs().max())
    for grid in (4, 5, 8, 11, 24, 48):
        finer = copy.deepcopy(layer)
        finer.refine(grid, rows)
        assert finer.grid_size == grid
        even = grid % 4 == 0 and (outside == "linear" or samples == "inside")
        where = covered.all(1) if even and outside == "zero" else slice(None)
        torch.testing.assert_close(finer(x)[where], y[where], rtol=0, atol=1e-13 * size)
        if not even:
            assert all(torch.isin(old, new).all() for old, new in zip(knots, finer.knots))
        elif kind != "adapted":
            assert finer.basis.uniform


def test_knots_are_inserted_where_the_samples_are() -> None:
    """The samples of the three inputs lie in the grid, between the outer knots, and beyond all knots."""
    layer = layer_on("shared", grid=4)
    low, high = ends(layer)
    step = (high - low)[0] / 4
    x = high + step * torch.tensor([[-1.1, 0.2, 0.3], [-1.9, 1.1, 9.0]], dtype=torch.float64)
    before = layer.knots.clone()
    layer.refine(12, x)
    inserted = [new[~torch.isin(new, old)] for new, old in zip(layer.knots, before)]
    assert [len(knots) for knots in inserted] == [8, 8, 8]
    assert ((high[0] - 2 * step < inserted[0]) & (inserted[0] < high[0] - step)).all()
    assert ((high[1] < inserted[1]) & (inserted[1] < high[1] + 2 * step)).all()
    assert (high[2] < inserted[2]).all()
    assert inserted[2][-1] > x[1, 2]


@pytest.mark.parametrize("at", range(11))
def test_samples_that_all_lie_on_one_knot(at: int) -> None:
    layer = layer_on("shared", grid=4)
    x = layer.knots[:, at].repeat(5, 1)
    dense = torch.linspace(-6, 6, 500, dtype=torch.float64).unsqueeze(1).expand(-1, 3)
    y = layer(dense)
    for grid in (5, 6, 9):
        finer = copy.deepcopy(layer)
        finer.refine(grid, x)
        torch.testing.assert_close(finer(dense), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [1, 2, 4, 5])
@pytest.mark.parametrize("samples", [True, False], ids=["samples", "evenly"])
def test_a_coarser_grid_reproduces_polynomials(grid: int, samples: bool) -> None:
    """A polynomial is reproduced exactly for any samples, and also where there are no samples."""
    layer = layer_on("shared")
    make_polynomial(layer)
    x = spread(layer)
    y = layer(x)
    layer.refine(grid, x[:50] * 0.3 if samples else None)
    assert layer.grid_size == grid
    torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-5)


def test_a_refined_layer_trains_and_keeps_its_options() -> None:
    layer = layer_on("adapted", spline_scale=True, bias=True, outside="linear")
    layer.set_mask(torch.rand(3, 4) > 0.4)
    x = spread(layer)
    y, old = layer(x), layer.spline_weight
    layer.refine(12)
    torch.testing.assert_close(layer(x), y, rtol=1e-10, atol=1e-10)
    assert layer.spline_weight is not old
    assert isinstance(layer.spline_weight, torch.nn.Parameter)
    assert "spline_weight" in dict(layer.named_parameters())
    layer(x).sum().backward()
    assert layer.spline_weight.grad.isfinite().all()
    layer.spline_weight.requires_grad_(False)
    layer.refine(24)
    assert not layer.spline_weight.requires_grad


def test_new_knots_keep_the_coefficients() -> None:
    layer = layer_on("shared")
    weight, knots = layer.spline_weight.clone(), make_knots("repeated", 3, 6, 3)
    layer.set_knots(knots)
    assert torch.equal(layer.knots, knots)
    assert torch.equal(layer.spline_weight, weight)
    assert "knots=adapted" in repr(layer)
    knots.zero_()
    assert layer.knots.any(), "the layer kept the caller's tensor"


# -- beyond the ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shared", "uniform", "adapted", "repeated"])
@pytest.mark.parametrize("order", ORDERS)
def test_linear_outside_goes_on_by_the_tangent(order: int, kind: str) -> None:
    layer = layer_on(kind, order, outside="linear", base="none")
    low, high = ends(layer)
    for end, inward in ((low, high), (high, low)):
        # value and slope a hair inside, where the layer is its splines
        hair = 1e-9 * (inward - end)
        x = (end + hair).unsqueeze(0).requires_grad_()
        plain = KANLinear(3, 4, 6, order, base="none", dtype=torch.float64)
        plain.load_state_dict(layer.state_dict())
        inside = plain(x)
        slopes = torch.stack([torch.autograd.grad(inside[0, o], x, retain_graph=True)[0][0] for o in range(4)], 1)
        for away in (0.0, 0.1, 3.0):
            out = (end - away * (inward - end)).unsqueeze(0).requires_grad_()
            y = layer(out)
            expected = inside + (out - x.detach()).detach() @ slopes
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
            (slope,) = torch.autograd.grad(y.sum(), out)
            torch.testing.assert_close(slope[0], slopes.sum(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["shared", "repeated"])
@pytest.mark.parametrize("order", ORDERS)
def test_linear_outside_has_gradients(order: int, kind: str) -> None:
    layer = layer_on(kind, order, outside="linear")
    low, high = ends(layer)
    x = torch.stack([low - 0.7, low - 0.01, high + 0.01, high + 5])
    x = torch.cat([x, inside_cells(3, layer.knots, order)]).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters)), x)

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(function, (x, *parameters))
    if order > 1:
        assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("order", ORDERS)
def test_inside_the_grid_linear_outside_changes_nothing(order: int) -> None:
    layer = layer_on("adapted", order, dtype=torch.float32, outside="linear")
    plain = layer_on("adapted", order, dtype=torch.float32)
    plain.load_state_dict(layer.state_dict())
    x = spread(layer)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)


def test_linear_outside_spoils_no_more_than_its_row() -> None:
    layer = layer_on("shared", outside="linear")
    x = spread(layer, 6)
    y = layer(x)
    x[2, 1] = torch.nan
    after = layer(x)
    assert after[2].isnan().all()
    assert torch.equal(after[[0, 1, 3, 4, 5]], y[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("order", [2, 3, 4])
def test_linear_outside_has_every_derivative_at_the_first_knot_of_the_grid(order: int) -> None:
    """A PINN's boundary lies there; the derivative is that of the cell to the right, not half of it."""
    layer = layer_on("adapted", order, outside="linear")
    plain = layer_on("adapted", order)
    plain.load_state_dict(layer.state_dict())
    values = []
    for module in (layer, plain):
        x = ends(layer)[0].unsqueeze(0).clone().requires_grad_()
        value = module(x)
        for _ in range(order):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            values.append(value.detach())
    for linear, zero in zip(values[:order], values[order:], strict=True):
        torch.testing.assert_close(linear, zero, rtol=1e-9, atol=1e-9)
