"""Cox-de Boor's recursion along the rows, and layers whose gradients come in batches or which are traced."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import inputs_around, random_knots

import fastkan_kernels
from fastkan import KANLinear
from fastkan_kernels import basis_of
from fastkan_kernels.bspline.cox_de_boor import splines
from fastkan_kernels.bspline.recurrence import SCRATCH, Recurrence

D = torch.float64


@pytest.mark.parametrize("kind", ["distinct", "repeated", "as many as the order"])
@pytest.mark.parametrize(("order", "derivative"), [(k, d) for k in range(1, 6) for d in range(k + 1)])
def test_the_recursion_is_the_definition(order: int, derivative: int, kind: str) -> None:
    knots = random_knots(kind, 3, 6 + 2 * order + 1, order)
    x = inputs_around(knots)
    made = Recurrence(knots, order, derivative)
    assert made.holds
    rooms = torch.full((SCRATCH, knots.shape[1], 3, len(x)), torch.nan, dtype=D)
    got, want = made(x, rooms), splines(x, knots, order, derivative)
    assert torch.equal(got.isnan(), want.isnan())
    scale = want.nan_to_num().abs().max()
    assert ((got - want).nan_to_num().abs() <= 1e-13 * scale).all()
    assert (got[-4:] == 0).all()  # infinities, and far outside


def test_knots_whose_reciprocals_leave_the_dtype_go_by_the_definition() -> None:
    knots = torch.linspace(-1, 1, 12).repeat(2, 1)
    knots[1, 4:6] = torch.tensor([0.0, 0.0]).nextafter(torch.tensor([0.0, 1.0]))
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
