"""``small_stack``: a small network's layers and spreads in one Function, against plain PyTorch in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import oracle
import pytest
import torch
from cases import Example, inside_cells, make_inputs, make_knots
from fastkan_kernels.autograd.stack import StackedLayer, small_stack
from networks import D, same
from torch import Tensor

from fastkan_kernels import basis_of, edge_std, edge_values

KINDS = ("shared", "uniform", "adapted", "repeated")
BASES = ("silu", "identity", "none")
BY_X = pytest.mark.parametrize("by_x", [True, False], ids=["by x", "not by x"])  # by edges, or by features


def layers_of(
    widths: Sequence[int] = (3, 4, 2),
    kind: str = "adapted",
    order: int = 3,
    base: str = "silu",
    scaled: bool = True,
    masked: bool = True,
    dtype: torch.dtype = D,
) -> list[StackedLayer]:
    draw = torch.Generator().manual_seed(3)
    made = []
    for inputs, outputs in itertools.pairwise(widths):
        knots = make_knots(kind, inputs, 7, order, dtype)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=D).to(dtype)

        mask = ((torch.arange(inputs).unsqueeze(1) + torch.arange(outputs)) % 3 != 1).to(dtype)  # the first edge is on
        made.append(
            StackedLayer(
                (randn(7 + order, inputs, outputs) / inputs**0.5).requires_grad_(),
                None if base == "none" else randn(inputs, outputs).requires_grad_(),
                randn(inputs, outputs).requires_grad_() if scaled else None,
                mask if masked else None,
                knots,
                basis_of(knots, order, base),
            )
        )
    return made


def plain(x: Tensor, layers: Sequence[StackedLayer], spread: bool = True) -> list[Tensor]:
    """y and every spread by composite PyTorch, which differentiates it itself."""
    found, h = [], x
    for weight, base_weight, scale, mask, knots, basis in (layer[:6] for layer in layers):
        factor = torch.ones_like(weight[0])
        factor = factor if mask is None else factor * mask
        base = None if base_weight is None else base_weight * factor
        edges = edge_values(h, knots, weight * (factor if scale is None else factor * scale), base, basis=basis)
        if spread:  # less the first, since the mean of equal numbers may be another one
            found += [(edges - edges[:1]).std(0), (h - h[:1]).std(0)]
        h = edges.sum(1)
    return [h, *found]


def stacked(x: Tensor, layers: Sequence[StackedLayer], spread: bool = True) -> list[Tensor]:
    y, spreads = small_stack(x, layers, spread)
    return [y, *(each for pair in spreads for each in pair)]


def learned(layers: Sequence[StackedLayer]) -> list[Tensor]:
    return [t for layer in layers for t in layer[:3] if t is not None]


def mixture(outputs: Sequence[Tensor]) -> Tensor:
    """A number in which every output counts by its own weight."""
    draw = torch.Generator().manual_seed(4)
    return sum((t.to(D) * torch.randn(t.shape, generator=draw, dtype=D)).sum() for t in outputs)


def all_inputs(kind: str, layers: Sequence[StackedLayer], rows: int = 30) -> Tensor:
    """In, around and on the knots."""
    return make_inputs(rows, layers[0].knots)


# -- values and gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("scaled", "masked"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, base: str, scaled: bool, masked: bool, spread: bool) -> None:
    layers = layers_of(kind=kind, base=base, scaled=scaled, masked=masked)
    x = all_inputs(kind, layers).requires_grad_()
    got, want = stacked(x, layers, spread), plain(x, layers, spread)
    for one, other in zip(got, want, strict=True):
        same(one, other)
    asked = [x, *learned(layers)]
    exact = torch.autograd.grad(mixture(want), asked)
    for again in (False, True):  # at once, and as a graph
        for one, other in zip(
            torch.autograd.grad(mixture(stacked(x, layers, spread)), asked, create_graph=again), exact
        ):
            same(one, other)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("widths", [(1, 1), (5, 1), (1, 5), (2, 5, 1), (1, 1, 1, 1)])
def test_orders_and_sizes(order: int, widths: tuple[int, ...]) -> None:
    layers = layers_of(widths, order=order)
    x = all_inputs("adapted", layers).requires_grad_()
    got, want = stacked(x, layers), plain(x, layers)
    for one, other in zip(got, want, strict=True):
        same(one, other)
    asked = [x, *learned(layers)]
    for one, other in zip(torch.autograd.grad(mixture(got), asked), torch.autograd.grad(mixture(want), asked)):
        same(one, other)


@pytest.mark.parametrize("asked", ["x", "weight", "base_weight", "scale"])
def test_each_gradient_by_itself(asked: str) -> None:
    layers = [StackedLayer(*(t.detach() if isinstance(t, Tensor) else t for t in layer)) for layer in layers_of()]
    x = all_inputs("adapted", layers)
    wanted = [x] if asked == "x" else [getattr(layer, asked) for layer in layers]
    for tensor in wanted:
        tensor.requires_grad_()
    exact = torch.autograd.grad(mixture(plain(x, layers)), wanted)
    for again in (False, True):
        for one, other in zip(torch.autograd.grad(mixture(stacked(x, layers)), wanted, create_graph=again), exact):
            same(one, other)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("kind", ["shared", "repeated"])
def test_gradcheck_and_gradgradcheck(kind: str, spread: bool) -> None:
    layers = layers_of((2, 2, 1), kind)
    x = inside_cells(6, layers[0].knots, 3).requires_grad_()

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        parts = iter(weights)
        used = [StackedLayer(next(parts), next(parts), next(parts), *layer[3:]) for layer in layers]
        return tuple(stacked(x, used, spread))

    assert torch.autograd.gradcheck(function, (x, *learned(layers)), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *learned(layers)), fast_mode=True)


def test_second_and_third_derivatives() -> None:
    layers = layers_of((2, 3, 1), order=4)
    x = all_inputs("adapted", layers).requires_grad_()
    asked = [x, *learned(layers)]

    def derivatives(outputs: Sequence[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(mixture(outputs), asked, create_graph=True)
        second = torch.autograd.grad(mixture(first), asked, create_graph=True)
        return [*first, *second, *torch.autograd.grad(mixture(second), asked)]

    for one, other in zip(derivatives(stacked(x, layers)), derivatives(plain(x, layers)), strict=True):
        same(one, other, digits=1e-9)


@pytest.mark.parametrize("again", [False, True])
def test_inputs_that_come_from_the_weights_and_weights_that_layers_share(again: bool) -> None:
    """Each is asked about by itself; what comes by other ways PyTorch adds up."""
    (layer,) = layers_of((2, 2))
    (weight, base_weight, scale, *_) = layer
    x = all_inputs("adapted", [layer])

    def total(run: Callable) -> Tensor:
        h = x * scale.sum()
        for _ in range(2):  # a layer after itself, twice as one stack
            h = run(h, [layer, layer], False)[0] / 3
        return mixture([h])

    asked = [weight, base_weight, scale]
    exact = torch.autograd.grad(total(plain), asked)
    for one, other in zip(torch.autograd.grad(total(stacked), asked, create_graph=again), exact):
        same(one, other)


def test_a_graph_can_be_gone_back_through_twice_and_says_when_its_operands_are_not_what_they_were() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers).requires_grad_()
    total = mixture(stacked(x, layers))
    first = torch.autograd.grad(total, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(total, x, retain_graph=True)[0])
    with torch.no_grad():
        layers[1].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, x)


def test_operands_are_left_as_they_are_and_results_are_contiguous() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers).requires_grad_()
    before = [t.clone() for t in (x, *learned(layers))]
    outputs = stacked(x, layers)
    gradients = torch.autograd.grad(mixture(outputs), [x, *learned(layers)])
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *learned(layers)]))
    assert all(t.is_contiguous() for t in (*outputs, *gradients))


@pytest.mark.parametrize(
    "layout", [lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)[:, ::2], lambda x: x.flip(0).flip(0),
               lambda x: torch._neg_view(-x), lambda x: x[:1].expand(20, -1)],
    ids=["transposed", "strided", "copied", "negated", "expanded"],
)  # fmt: skip
@pytest.mark.parametrize("inputs", [1, 3])
def test_inputs_need_not_be_contiguous(inputs: int, layout: Callable) -> None:
    layers = layers_of((inputs, 2))
    x = layout(inside_cells(20, layers[0].knots, 3))
    own = x.clone(memory_format=torch.contiguous_format)
    for one, other in zip(stacked(x, layers), stacked(own, layers), strict=True):
        assert torch.equal(one, other)


# -- spreads ----------------------------------------------------------------------------------------


def test_spreads_are_those_of_edge_std() -> None:
    for layer in layers_of((3, 4), masked=False, scaled=False):
        x = all_inputs("adapted", [layer])
        _, ((edges, inputs),) = small_stack(x, [layer], True)
        same(edges, edge_std(x, layer.knots, layer.weight, layer.base_weight, basis=layer.basis), digits=1e-7)
        same(inputs, x.std(0))


@BY_X
@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_what_does_not_vary_has_a_spread_and_a_gradient_of_exactly_0(
    value: float, dtype: torch.dtype, by_x: bool
) -> None:
    layers = layers_of((3, 4, 2), dtype=dtype, masked=False)
    x = inside_cells(30, layers[0].knots, 3)
    x[:, 1] = value
    with torch.no_grad():
        layers[0].scale[2, 3] = layers[0].base_weight[2, 3] = 0
    x.requires_grad_(by_x)
    _, spreads = small_stack(x, layers, True)
    flat = spreads[0].edges == 0
    assert flat[1].all()
    assert flat[2, 3]
    assert flat.sum() == 5
    assert (spreads[0].inputs == 0).tolist() == [False, True, False]
    for again in (False, True):
        *by_inputs, dw, db, scale = torch.autograd.grad(
            mixture([spreads[0].edges, spreads[0].inputs]),
            [*([x] if by_x else []), *layers[0][:3]],
            retain_graph=True,
            create_graph=again,
        )
        assert all(gradient.isfinite().all() for gradient in (*by_inputs, dw, db, scale))
        assert all((dx[:, 1] == 0).all() for dx in by_inputs)
        assert (dw[:, 1] == 0).all()
        assert (dw[:, 2, 3] == 0).all()


# at knots that are there more than once splines or slopes jump, and hidden values may round to their other side
FLOAT32 = [
    (kind, order, widths)
    for kind, order, widths in itertools.product(KINDS, (2, 3, 5), ((3, 4, 2), (3, 4), (4, 1)))
    if kind != "repeated" or len(widths) == 2
]


@BY_X
@pytest.mark.parametrize(("kind", "order", "widths"), FLOAT32)
def test_float32_is_within_twice_the_references_error(
    kind: str, order: int, widths: tuple[int, ...], by_x: bool
) -> None:
    """Of values, spreads and gradients, over some batches, and a rounding of the largest."""
    layers = layers_of(widths, kind, order, dtype=torch.float32)
    wide = [StackedLayer(*(t.detach().to(D) if isinstance(t, Tensor) else t for t in layer)) for layer in layers]
    for tensor in learned(wide):
        tensor.requires_grad_()
    wide = [layer._replace(basis=basis_of(layer.knots, order)) for layer in wide]

    def everything(function: Callable, x: Tensor, layers: Sequence[StackedLayer]) -> list[Tensor]:
        outputs = function(x, layers)
        gradients = torch.autograd.grad(mixture(outputs), [*([x] if by_x else []), *learned(layers)])
        return [t.detach().to(D) for t in (*outputs, *gradients)]

    errors, references, sizes = [], [], []
    for seed in range(24):  # so many that the luck of a few roundings hardly counts
        torch.manual_seed(seed)
        x = make_inputs(200, layers[0].knots)[:-2].requires_grad_(by_x)
        exact = everything(plain, x.detach().to(D).requires_grad_(by_x), wide)
        errors.append([(one - want).norm() for one, want in zip(everything(stacked, x, layers), exact)])
        references.append([(one - want).norm() for one, want in zip(everything(plain, x, layers), exact)])
        sizes.append([want.norm() for want in exact])
    error, reference, size = (torch.tensor(each).norm(dim=0) for each in (errors, references, sizes))
    assert (error <= 2 * reference + torch.finfo(torch.float32).eps * size).all()


# -- numbers that are none --------------------------------------------------------------------------


@BY_X
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_nan_and_infinities_spoil_what_the_table_says(order: int, base: str, by_x: bool) -> None:
    """Each its row of y, its element of dx, and what sums over it in dW."""
    (layer,) = layers_of((3, 2), order=order, base=base, masked=False, scaled=False)
    x = inside_cells(9, layer.knots, order)
    x[2, 0], x[4, 1], x[5, 1], x[7, 2] = torch.nan, torch.inf, -torch.inf, 1e30
    x.requires_grad_(by_x)
    g = torch.randn(9, 2, dtype=D)
    o = Example(x, layer.knots, None, layer.weight, layer.base_weight, g)
    basis = layer.basis
    y, _ = small_stack(x, [layer])
    expected = torch.from_numpy(oracle.exact("F", o, basis)[0])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    y.backward(g)
    if by_x:
        slopes = torch.from_numpy(oracle.exact("H", o, basis, 1)[0])
        torch.testing.assert_close(x.grad, slopes, rtol=1e-10, atol=1e-10, equal_nan=True)
    by_weight = oracle.exact("G", o, basis)
    found = (layer.weight.grad, *(() if base == "none" else (layer.base_weight.grad,)))
    for got, want in zip(found, by_weight, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-10, atol=1e-10)


@BY_X
def test_a_nan_spoils_the_spreads_of_its_column_only(by_x: bool) -> None:
    (layer,) = layers_of((3, 2), masked=False)
    x = inside_cells(9, layer.knots, 3).requires_grad_(by_x)
    clean = stacked(x, [layer])
    with torch.no_grad():
        x[4, 1] = torch.nan
    y, edges, inputs = stacked(x, [layer])
    assert y[4].isnan().all()
    assert edges[1].isnan().all()
    assert inputs.isnan().tolist() == [False, True, False]
    for got, want in ((y, clean[0]), (edges, clean[1]), (inputs, clean[2])):
        assert torch.equal(got[~got.isnan()], want[~got.isnan()])
