"""Cox-de Boor's recursion along the rows, and layers of few edges in blocks and on many cells."""

from __future__ import annotations

import itertools

import pytest
import torch
from fastkan_kernels.backends.cpu.by_blocks import ByBlocks
from fastkan_kernels.backends.cpu.by_edges import ByEdges
from fastkan_kernels.backends.cpu.by_features import Features
from scipy.interpolate import BSpline
from torch import Tensor

import fastkan_kernels
from fastkan import KANLinear
from fastkan_kernels import basis_of
from fastkan_kernels.backends.cpu import by_blocks, by_features
from fastkan_kernels.bspline import piecewise as pieces
from fastkan_kernels.bspline.cox_de_boor import splines
from fastkan_kernels.bspline.recurrence import SCRATCH, Recurrence

D = torch.float64


def knots_of(kind: str, inputs: int, count: int, order: int) -> Tensor:
    generator = torch.Generator().manual_seed(7 * count + order)
    knots = torch.sort(torch.randn(inputs, count, dtype=D, generator=generator), 1).values
    if kind == "repeated":
        knots[:, 3] = knots[:, 2]
        knots[:, -2] = knots[:, -1]
    if kind == "as many as the order":
        knots[1, 2 : 2 + order] = knots[1, 2]
    return knots


def places(knots: Tensor) -> Tensor:
    """Random ones, each knot, and everything that is not a place on the grid."""
    inputs = len(knots)
    random = torch.randn(50, inputs, dtype=D, generator=torch.Generator().manual_seed(1))
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30], dtype=D).unsqueeze(1).expand(-1, inputs)
    return torch.cat([random, knots.t(), odd])


@pytest.mark.parametrize("kind", ["distinct", "repeated", "as many as the order"])
@pytest.mark.parametrize(("order", "derivative"), [(k, d) for k in range(1, 6) for d in range(k + 1)])
def test_the_recursion_is_the_definition(order: int, derivative: int, kind: str) -> None:
    knots = knots_of(kind, 3, 6 + 2 * order + 1, order)
    x = places(knots)
    made = Recurrence(knots, order, derivative)
    assert made.holds
    scratch = torch.full((SCRATCH, knots.shape[1], 3, len(x)), torch.nan, dtype=D)
    got, want = made(x, scratch), splines(x, knots, order, derivative)
    assert torch.equal(got.isnan(), want.isnan())
    scale = want.nan_to_num().abs().max()
    assert ((got - want).nan_to_num().abs() <= 1e-13 * scale).all()
    assert (got[-4:] == 0).all()  # infinities, and far outside


def test_the_recursion_is_scipys() -> None:
    knots = knots_of("distinct", 1, 13, 3)
    x = torch.linspace(knots.min().item(), knots.max().item() - 1e-9, 200, dtype=D).unsqueeze(1)
    made = Recurrence(knots, 3, 1)(x, torch.empty(SCRATCH, 13, 1, 200, dtype=D))
    padded = torch.cat([knots[0, :1].expand(3), knots[0], knots[0, -1:].expand(3)]).numpy()
    for b in range(9):
        weights = [0.0] * 15
        weights[b + 3] = 1.0
        want = BSpline(padded, weights, 3).derivative()(x[:, 0].numpy())
        torch.testing.assert_close(made[:, b, 0], torch.from_numpy(want), rtol=1e-10, atol=1e-10)


def test_knots_whose_reciprocals_leave_the_dtype_go_by_the_definition() -> None:
    knots = torch.linspace(-1, 1, 12).repeat(2, 1)
    knots[1, 5] = torch.nextafter(knots[1, 4] * 0, torch.tensor(1.0)) + knots[1, 4] * 0
    knots[1, 4] = 0.0
    knots[1, 6:] = knots[0, 6:]
    knots = torch.sort(knots, 1).values
    assert not Recurrence(knots, 3, 0).holds
    weight, base = torch.randn(8, 2, 70), torch.randn(2, 70)
    x = torch.rand(400, 2) * 2 - 1
    basis = basis_of(knots, 3)
    y = fastkan_kernels.contract_out(x, knots, weight, base, basis=basis)
    with fastkan_kernels.backend("reference"):
        want = fastkan_kernels.contract_out(x, knots, weight, base, basis=basis)
    assert y.isfinite().all()
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", ["silu", "identity", "none"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("grid", [5, 60])
def test_blocks_of_rows_are_the_pass_of_all(
    grid: int, adapted: bool, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, spreads and all gradients, on both sides of the number of cells from which tables are banded."""
    import numpy as np

    torch.manual_seed(0)
    layer = KANLinear(3, 2, grid, base=base, dtype=D)
    if adapted:
        layer.update_grid(torch.randn(300, 3, dtype=D))
    weight = layer.spline_weight.detach().numpy() + np.random.default_rng(0).normal(size=layer.spline_weight.shape)
    base_weight = None if layer.base_weight is None else layer.base_weight.detach().numpy()
    tables = pieces.pieces_of(layer.knots, layer.basis)
    assert (tables.local.shape[3] > pieces.MAX_DENSE_CELLS) == (grid == 60)
    x = np.ascontiguousarray((torch.randn(200, 3, dtype=D) * 0.7).numpy().T)
    whole = ByEdges(x, tables, weight, base_weight, layer.basis, sloped=True)
    blocks = ByBlocks(x, tables, weight, base_weight, layer.basis, True, 7, 3, spread=True)
    rng = np.random.default_rng(1)
    g, by_edges, by_inputs = rng.normal(size=(2, 200)), rng.normal(size=(3, 2)), rng.normal(size=3)
    np.testing.assert_allclose(blocks.y, whole.y, rtol=1e-12, atol=1e-13)
    for one, other in zip(blocks.spread(), whole.spread(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=0)
    asked = (g, by_edges, by_inputs, True, True, True)
    for one, other in zip(blocks.vjp(*asked), whole.vjp(*asked), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
    in_torch = blocks.vjp_in_torch(torch.from_numpy(g), True, True, True)
    for one, other in zip(in_torch, whole.vjp(g, None, None, True, True, True), strict=True):
        assert one is None or torch.allclose(one, torch.from_numpy(other), rtol=1e-10, atol=1e-11)
    constant = ByBlocks(x * 0 + 0.3, tables, weight, base_weight, layer.basis, True, 7, 3, spread=True)
    assert all((spread == 0).all() for spread in constant.spread())
    # and the whole layer, forward and backward, where it is taken for it
    monkeypatch.setattr(by_blocks, "KEEP_VALUES", 100)
    monkeypatch.setattr(by_blocks, "BLOCK_VALUES", 1000)
    t = torch.from_numpy(x.T.copy()).requires_grad_()
    layer(t).square().sum().backward()
    got = [t.grad, *(p.grad for p in layer.parameters())]
    t.grad = None
    layer.zero_grad()
    with fastkan_kernels.backend("reference"):
        layer(t).square().sum().backward()
    for one, other in zip(got, [t.grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_features_on_many_cells_are_the_splines(order: int) -> None:
    knots = knots_of("repeated", 2, 80, order)
    x = places(knots)
    basis = basis_of(knots, order, "none")
    made = Features(x.numpy().T.copy(), pieces.pieces_of(knots, basis), basis).values
    want = splines(x, knots, order)
    got = torch.from_numpy(made).permute(2, 1, 0)
    assert torch.equal(got.isnan(), want.isnan())
    assert ((got - want).nan_to_num().abs() < 1e-12).all()


def test_large_products_are_the_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above some size PyTorch takes NumPy's place."""
    from fastkan_kernels.backends.cpu import cells

    torch.manual_seed(0)
    layer = KANLinear(4, 3, 12, dtype=D)
    x = torch.rand(70, 4, dtype=D)
    want = torch.autograd.functional.jacobian(layer, x)
    monkeypatch.setattr(cells, "MAX_OWN_PRODUCTS", 0)
    monkeypatch.setattr(cells, "MAX_OWN_VECTOR_PRODUCTS", 0)
    monkeypatch.setattr(by_features.SHARED, "kept", [])
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, x), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("sizes", [(3, 4, 10), (64, 64, 1000), (5, 3, 1000)])
def test_gradients_of_a_batch_of_gradients(sizes: tuple[int, int, int], outside: str, second_order: bool) -> None:
    inputs, outputs, rows = sizes
    layer = KANLinear(inputs, outputs, outside=outside, dtype=D)
    x = (torch.rand(rows, inputs, dtype=D) * 2.4 - 1.2).requires_grad_()
    y = layer(x)
    if second_order:
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    of = [x, layer.spline_weight, layer.base_weight]
    g = torch.randn(3, *y.shape, dtype=D)
    got = torch.autograd.grad(y, of, g, is_grads_batched=True, retain_graph=True)
    for n, each in itertools.product(range(3), range(3)):
        (want,) = torch.autograd.grad(y, of[each], g[n], retain_graph=True)
        torch.testing.assert_close(got[each][n], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [(3, 4), (64, 64)])
def test_a_traced_layer_computes_of_what_it_is_given(sizes: tuple[int, int]) -> None:
    layer = KANLinear(*sizes)
    traced = torch.jit.trace(layer, torch.rand(100, sizes[0]), check_trace=False)
    with torch.no_grad():
        for x in (torch.rand(100, sizes[0]), torch.rand(37, sizes[0]) - 1):
            torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-6)
