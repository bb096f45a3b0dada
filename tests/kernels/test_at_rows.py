"""Small layers' contractions that share what is kept of their rows: the same numbers, whoever came before."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from cases import Example, compute, forced, make_case
from torch import Tensor

import fastkan_kernels
from fastkan_kernels import Basis, contract_in, contract_out
from fastkan_kernels.backends.cpu import small
from fastkan_kernels.bspline import piecewise as pieces
from fastkan_kernels.trilinear import CONTRACTIONS, Operands

D = torch.float64
ASKED = list(itertools.product("FGH", range(6)))


def by(name: str, kept: dict, o: Example, basis: Basis, derivative: int) -> list[Tensor]:
    operands = Operands(o.v, o.weight, o.base_weight, o.g).without(CONTRACTIONS[name].free)
    value = small.contract(name, kept, o.x, o.knots, operands, basis, derivative)
    assert value is not None
    return [part for part in (value if name == "G" else [value]) if part is not None]


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("outputs", [1, 7])  # G by powers, and by splines
@pytest.mark.parametrize("kind", ["shared", "repeated"])
def test_kept_or_fresh_the_bits_are_the_same(kind: str, outputs: int, dtype: torch.dtype) -> None:
    o, basis = make_case(kind, outputs=outputs, base="identity", dtype=dtype)
    other = o._replace(weight=-2 * o.weight + 1, base_weight=o.base_weight + 1)
    kept: dict[str, Any] = {}
    first = {asked: by(asked[0], kept, o, basis, asked[1]) for asked in ASKED}
    for asked in reversed(ASKED):  # other weights meet the same rows in between
        again = by(asked[0], kept, other, basis, asked[1]) and by(asked[0], kept, o, basis, asked[1])
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
    for way in ("small", "recursive"):
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
        value = small.contract("H", {}, x, knots, Operands(weight=weight, g=g), basis, derivative)
        assert (value is not None) == served
    with forced("recursive"):
        expected = contract_in(x, knots, weight, None, g, basis=basis, derivative=3)
    got = contract_in(x, knots, weight, None, g, basis=basis, derivative=3)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_it_is_for_small_layers_and_plain_numbers() -> None:
    o, basis = make_case("shared")

    def serves(o: Example, basis: Basis = basis, derivative: int = 1) -> bool:
        operands = Operands(None, o.weight, o.base_weight, o.g)
        return small.contract("H", {}, o.x, o.knots, operands, basis, derivative) is not None

    assert serves(o)
    wide = o._replace(
        x=o.x.repeat(100, 1),
        weight=o.weight.repeat(1, 1, 8),
        base_weight=o.base_weight.repeat(1, 8),
        g=o.g.repeat(100, 8),
    )
    assert serves(wide)  # of a graph of derivatives
    assert not serves(wide, derivative=0)
    many = small.MAX_KEPT_AT_ROWS // (4 * o.weight[0].numel())
    assert not serves(o._replace(x=o.x[:1].repeat(many, 1), g=o.g[:1].repeat(many, 1)))
    assert not serves(o._replace(g=o.g.float()))
    assert not serves(o._replace(x=o.x[:0], g=o.g[:0]))
    assert not serves(Example(*(None if t is None else t.half() for t in o)))
    assert not serves(o, basis._replace(matmul_dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"order 5 .*silu"):
        compute("H", o, basis, 5)
