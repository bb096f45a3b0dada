"""The piecewise backend: tables of polynomials, contractions of any order that share rows, and blocks of rows."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import KNOTS, Example, compute, forced, inputs_around, inside_cells, make_case, make_knots, random_knots
from networks import same
from torch import Tensor

import fastkan_kernels
from fastkan import KANLinear
from fastkan.layers.edge_functions import numeric_edge_std as numeric_std
from fastkan_kernels import Basis, basis_of, contract_in, contract_out
from fastkan_kernels.backends.cpu import piecewise
from fastkan_kernels.backends.cpu.piecewise import Block, Piecewise, PiecewiseTensors, rows_of
from fastkan_kernels.bspline import piecewise as pieces
from fastkan_kernels.bspline.cox_de_boor import splines
from fastkan_kernels.trilinear import CONTRACTIONS, Operands

D = torch.float64
ASKED = list(itertools.product("FGH", range(6)))


def by(name: str, cache: dict, o: Example, basis: Basis, derivative: int) -> list[Tensor]:
    slots = Operands(o.v, o.weight, o.base_weight, o.g).without(CONTRACTIONS[name].free)
    value = rows_of(cache, o.x, o.knots, slots, basis, derivative).contract(name, slots, derivative)
    return [part for part in (value if name == "G" else [value]) if part is not None]


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("outputs", [1, 7])  # G by powers, and by splines
@pytest.mark.parametrize("kind", ["shared", "repeated"])
def test_kept_or_fresh_the_bits_are_the_same(kind: str, outputs: int, dtype: torch.dtype) -> None:
    o, basis = make_case(kind, outputs=outputs, base="identity", dtype=dtype)
    other = o._replace(weight=-2 * o.weight + 1, base_weight=o.base_weight + 1)
    cache: dict[str, Any] = {}
    first = {asked: by(asked[0], cache, o, basis, asked[1]) for asked in ASKED}
    for asked in reversed(ASKED):  # other weights meet the same rows in between
        again = by(asked[0], cache, other, basis, asked[1]) and by(asked[0], cache, o, basis, asked[1])
        fresh = by(asked[0], {}, o, basis, asked[1])
        for one, two, three in zip(first[asked], again, fresh, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
            assert one.data_ptr() != two.data_ptr()


def pinn_step(o: Example, basis: Basis, x: Tensor, retain: bool = False) -> list[Tensor]:
    weight = o.weight.clone().requires_grad_()
    u = contract_out(x, o.knots, weight, o.base_weight, basis=basis)
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x[:, 0].sum(), x, create_graph=True)
    return list(torch.autograd.grad((u_xx + u_x).square().sum() + u.sum(), [weight, x], retain_graph=retain))


def test_rows_written_into_between_steps_are_new_rows() -> None:
    o, basis = make_case("adapted", base="silu")
    x = o.x.clamp(-1, 1).requires_grad_()
    before = pinn_step(o, basis, x)
    for write in (lambda: x.data.mul_(0.5), lambda: x.detach().numpy().__imul__(2)):
        write()
        got, fresh = pinn_step(o, basis, x), pinn_step(o, basis, x.detach().clone().requires_grad_())
        assert all(torch.equal(a, b) for a, b in zip(got, fresh, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(got, before, strict=True))


@pytest.mark.parametrize("written", ["x", "weight"])
def test_what_a_graph_needs_may_not_be_written_into(written: str) -> None:
    o, basis = make_case("shared")
    x, weight = o.x.clone().requires_grad_(), o.weight.clone().requires_grad_()
    u = contract_out(x, o.knots, weight, o.base_weight, basis=basis)
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    with torch.no_grad():
        {"x": x, "weight": weight}[written].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        u_x.sum().backward()


def test_threads_may_go_back_through_one_graph() -> None:
    o, basis = make_case("adapted", rows=200, outputs=7)
    x, weight = o.x.clamp(-1, 1).requires_grad_(), o.weight.clone().requires_grad_()
    u = contract_out(x, o.knots, weight, o.base_weight, basis=basis)
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
    loss = (u_xx.sum() + u.sum()) ** 2
    found: list[tuple[Tensor, ...]] = []
    go = threading.Barrier(4)

    def back() -> None:
        go.wait(10)
        found.append(torch.autograd.grad(loss, [weight, x], retain_graph=True))

    threads = [threading.Thread(target=back) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, found[0], strict=True))


def test_a_gradient_by_weights_has_gradients() -> None:
    """There V takes the place of W at the same rows."""
    o, basis = make_case("shared", rows=6)
    o = o._replace(x=o.x.clamp(-1, 1))
    found = []
    for way in ("piecewise", "recursive"):
        with forced(way):
            x, weight, g = (t.clone().requires_grad_() for t in (o.x, o.weight, o.g))
            y = (contract_out(x, o.knots, weight, o.base_weight, basis=basis) * g).sum()
            (slope,) = torch.autograd.grad(y, weight, create_graph=True)
            (by_x,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(by_x.square().sum() + y, [x, weight, g]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_cells_whose_derivatives_the_dtype_can_not_hold_go_another_way() -> None:
    order = 3
    knots = torch.linspace(-1, 1, 12).repeat(2, 1)
    knots[:, 6] = knots[:, 5] + 1e-3
    assert pieces.pieces(knots, order).highest == order
    knots = 1e-14 * knots
    assert pieces.pieces(knots, order).highest == 2
    assert pieces.pieces(knots.double(), order).highest == order
    basis = fastkan_kernels.basis_of(knots, order, "none")
    x, weight, g = 1e-14 * torch.rand(9, 2), torch.randn(8, 2, 3), torch.randn(9, 3)
    for derivative, served in ((0, True), (2, True), (3, False), (4, True)):
        rows = rows_of({}, x, knots, Operands(weight=weight, g=g), basis, derivative)
        assert (rows is not None) == served
    with forced("recursive"):
        expected = contract_in(x, knots, weight, None, g, basis=basis, derivative=3)
    got = contract_in(x, knots, weight, None, g, basis=basis, derivative=3)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_it_is_for_layers_of_few_edges_and_plain_numbers() -> None:
    o, basis = make_case("shared")

    def serves(o: Example, basis: Basis = basis, derivative: int = 1) -> bool:
        slots = Operands(None, o.weight, o.base_weight, o.g)
        return rows_of({}, o.x, o.knots, slots, basis, derivative) is not None

    assert serves(o)
    wide = o._replace(
        x=o.x.repeat(100, 1),
        weight=o.weight.repeat(1, 1, 8),
        base_weight=o.base_weight.repeat(1, 8),
        g=o.g.repeat(100, 8),
    )
    assert serves(wide)  # of a graph of derivatives
    assert not serves(wide, derivative=0)
    many = 2 * piecewise.CACHED_VALUES // wide.weight.numel()  # of which not all is cached, so that less is shared
    assert not serves(wide._replace(x=wide.x[:1].repeat(many, 1), g=wide.g[:1].repeat(many, 1)))
    assert not serves(o._replace(g=o.g.float()))
    assert not serves(o._replace(x=o.x[:0], g=o.g[:0]))
    assert not serves(Example(*(None if t is None else t.half() for t in o)))
    assert not serves(o, basis._replace(matmul_dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"at most 4 for base='silu', got 5"):
        compute("H", o, basis, 5)


# -- tables -----------------------------------------------------------------------------------------


def test_results_depend_on_the_knots_and_not_on_who_came_before() -> None:
    """Knots that agree in their ends, but by a rounding not inside."""
    knots = make_knots("shared", 1, 7, 3)
    basis, other = basis_of(knots, 3), knots.clone()
    other[:, 7] = torch.nextafter(other[:, 7], other[:, 8])
    assert basis_of(other, 3) == basis
    for each in (knots, other, knots):
        assert torch.equal(torch.from_numpy(pieces.pieces_of(each, basis).knots.flatten()), each[0])


@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize("order", [1, 3, 5])
def test_pieces_are_the_splines(order: int, kind: str) -> None:
    knots = make_knots(kind, 2, 6, order)
    made = pieces.pieces(knots, order)
    cells, polynomials = torch.from_numpy(made.cells), torch.from_numpy(made.table).unflatten(2, (order + 1, -1))
    assert made.highest == order
    x = inside_cells(50, knots, order)
    psi = oracle.splines(x.numpy(), knots.numpy(), order)
    cell = torch.searchsorted(knots, x.t().contiguous(), right=True) - 1  # [I, N]
    for i, n in itertools.product(range(2), range(50)):
        c = int(cell[i, n])
        u = (x[n, i] - cells[i, 0, c]) * cells[i, 1, c]
        values = (polynomials[i, :, :, c] * u ** torch.arange(order + 1)).sum(1)
        same(values, psi[n, :, i])


# -- blocks and splines -----------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "none"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("grid", [5, 60])
def test_blocks_of_rows_are_the_pass_of_all(
    grid: int, adapted: bool, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and all gradients of every contraction, on both sides of the number of cells up to which tables are
    dense; and standard deviations."""
    torch.manual_seed(0)
    layer = KANLinear(3, 2, grid, base=base, dtype=D)
    if adapted:
        layer.update_grid(torch.randn(300, 3, dtype=D))
    rng = np.random.default_rng(1)
    weight = layer.spline_weight.detach().numpy() + rng.normal(size=layer.spline_weight.shape)
    base_weight = None if layer.base_weight is None else layer.base_weight.detach().numpy()
    tables = pieces.pieces_of(layer.knots, layer.basis)
    assert (tables.local.shape[3] > pieces.MAX_DENSE_CELLS) == (grid == 60)
    x = np.ascontiguousarray((torch.randn(200, 3, dtype=D) * 0.7).numpy().T)
    whole = Piecewise(x, tables, layer.basis, 2)
    monkeypatch.setattr(piecewise, "block_counts", lambda *sizes: (7, 3))
    blocks = Piecewise(x, tables, layer.basis, 2)
    assert [len(list(each.blocks())) for each in (whole, blocks)] == [1, 7]
    full = Operands(rng.normal(size=(3, 200)), weight, base_weight, rng.normal(size=(2, 200)))
    for name, derivative in itertools.product("FGH", range(3)):
        operands = full.without(CONTRACTIONS[name].free)
        v, w, b, g = (None if each is None else torch.from_numpy(each) for each in operands)
        tensors = Operands(None if v is None else v.T, w, b, None if g is None else g.T)
        near(*(PiecewiseTensors(each).contract(name, tensors, derivative) for each in (blocks, whole)))
        wanted = ["x", *({"v", "W", "g"} - {CONTRACTIONS[name].free})]
        got, want = (each.vjp(name, full, wanted, derivative) for each in (blocks, whole))
        for by in wanted:
            near(got[by], want[by])
    # and the whole layer, forward and backward, and its standard deviations
    monkeypatch.undo()
    monkeypatch.setattr(piecewise, "CACHED_VALUES", 100)
    monkeypatch.setattr(piecewise, "BLOCK_VALUES", 1000)
    t = torch.from_numpy(x.T.copy()).requires_grad_()
    found = []
    for backend in ("cpu", "reference"):
        with fastkan_kernels.backend(backend):
            y, std = layer(t), numeric_std(layer, t)
            total = y.square().sum() + (std * torch.arange(6.0, dtype=D).view(3, 2)).sum()
            found.append([y, std, *torch.autograd.grad(total, [t, *layer.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert (numeric_std(layer, t.detach() * 0 + 0.3) == 0).all()


@pytest.mark.parametrize("outputs", [2, 5])
def test_a_step_without_slopes_is_products_with_splines_where_outputs_are_many(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, x, taken = KANLinear(2, outputs, dtype=D), torch.randn(50, 2, dtype=D), []

    class Recorded(Piecewise):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            taken.append(self.by_splines)

    monkeypatch.setattr(piecewise, "Piecewise", Recorded)
    found = []
    for name, wanted in (("cpu", False), ("cpu", True), ("reference", False)):
        with fastkan_kernels.backend(name):
            y = layer(x.clone().requires_grad_(wanted))
            gradients = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
            found.append([each.detach().numpy() for each in (y, *gradients)])
    with torch.no_grad():
        near(layer(x).numpy(), found[-1][0])
    assert taken == [outputs == 5, False, False]
    for each in found[:-1]:
        near(tuple(each), tuple(found[-1]))


def near(one: Any, other: Any) -> None:
    for a, b in zip(one if isinstance(one, tuple) else (one,), other if isinstance(other, tuple) else (other,)):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("order", [1, 3, 5])
def test_splines_on_many_cells_are_the_splines(order: int) -> None:
    knots = random_knots("repeated", 2, 80, order)
    x = inputs_around(knots)
    basis = basis_of(knots, order, "none")
    made = Block(x.numpy().T.copy(), pieces.pieces_of(knots, basis), basis)._spline_values(0)
    want = splines(x, knots, order)
    got = torch.from_numpy(made).permute(2, 1, 0)
    assert torch.equal(got.isnan(), want.isnan())
    assert ((got - want).nan_to_num().abs() < 1e-12).all()


def test_large_products_are_the_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above some size PyTorch takes NumPy's place."""
    torch.manual_seed(0)
    layer = KANLinear(4, 3, 12, dtype=D)
    x = torch.rand(70, 4, dtype=D)
    want = torch.autograd.functional.jacobian(layer, x)
    monkeypatch.setattr(piecewise, "MAX_OWN_PRODUCTS", 1)
    monkeypatch.setattr(piecewise, "MAX_OWN_VECTOR_PRODUCTS", 1)
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, x), want, rtol=1e-12, atol=1e-13)
