"""``fused_stack``: layers and standard deviations in one Function, and on arrays, against plain PyTorch in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import getitem
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import Example, inside_cells, make_inputs, make_knots
from networks import D, Passive, network, points, same
from torch import Tensor
from torch.autograd import forward_ad

import fastkan
import fastkan_kernels
from fastkan_kernels import (
    FusedStack,
    StackCache,
    StackLayer,
    basis_of,
    edge_std,
    edge_values,
    feature_covariance,
    fused_stack,
    pieces_of,
    supports_stack,
)

KINDS = ("shared", "uniform", "adapted", "repeated")
BASES = ("silu", "gelu", "identity", "none")
BY_X = pytest.mark.parametrize("by_x", [True, False], ids=["by x", "not by x"])


def layers_of(
    widths: Sequence[int] = (3, 4, 2),
    kind: str = "adapted",
    order: int = 3,
    base: str = "silu",
    scaled: bool = True,
    masked: bool = True,
    dtype: torch.dtype = D,
) -> list[StackLayer]:
    draw = torch.Generator().manual_seed(3)
    made = []
    for inputs, outputs in itertools.pairwise(widths):
        knots = make_knots(kind, inputs, 7, order, dtype)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=D).to(dtype)

        mask = ((torch.arange(inputs).unsqueeze(1) + torch.arange(outputs)) % 3 != 1).to(dtype)  # the first edge is on
        made.append(
            StackLayer(
                (randn(7 + order, inputs, outputs) / inputs**0.5).requires_grad_(),
                None if base == "none" else randn(inputs, outputs).requires_grad_(),
                randn(inputs, outputs).requires_grad_() if scaled else None,
                mask if masked else None,
                knots,
                basis_of(knots, order, base),
            )
        )
    return made


def plain(x: Tensor, layers: Sequence[StackLayer], std: bool = True) -> list[Tensor]:
    """y and every std by composite PyTorch, which differentiates it itself."""
    found, h = [], x
    for weight, base_weight, scale, mask, knots, basis in (layer[:6] for layer in layers):
        factor = torch.ones_like(weight[0])
        factor = factor if mask is None else factor * mask
        base = None if base_weight is None else base_weight * factor
        edges = edge_values(h, knots, weight * (factor if scale is None else factor * scale), base, basis=basis)
        if std:  # less the first, since the mean of equal numbers may be another one
            found += [(edges - edges[:1]).std(0), (h - h[:1]).std(0)]
        h = edges.sum(1)
    return [h, *found]


def stacked(x: Tensor, layers: Sequence[StackLayer], std: bool = True) -> list[Tensor]:
    y, stds = fused_stack(x, layers, std)
    return [y, *(each for pair in stds for each in pair)]


def learned(layers: Sequence[StackLayer]) -> list[Tensor]:
    return [t for layer in layers for t in layer[:3] if t is not None]


def mixture(outputs: Sequence[Tensor]) -> Tensor:
    """A number in which every output counts by its own weight."""
    draw = torch.Generator().manual_seed(4)
    return sum((t.to(D) * torch.randn(t.shape, generator=draw, dtype=D)).sum() for t in outputs)


def all_inputs(kind: str, layers: Sequence[StackLayer], rows: int = 30) -> Tensor:
    """In, around and on the knots."""
    return make_inputs(rows, layers[0].knots)


# -- values and gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize(("scaled", "masked"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, base: str, scaled: bool, masked: bool, std: bool) -> None:
    layers = layers_of(kind=kind, base=base, scaled=scaled, masked=masked)
    x = all_inputs(kind, layers).requires_grad_()
    got, want = stacked(x, layers, std), plain(x, layers, std)
    for one, other in zip(got, want, strict=True):
        same(one, other)
    asked = [x, *learned(layers)]
    exact = torch.autograd.grad(mixture(want), asked)
    for again in (False, True):  # at once, and as a graph
        for one, other in zip(torch.autograd.grad(mixture(stacked(x, layers, std)), asked, create_graph=again), exact):
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
    layers = [StackLayer(*(t.detach() if isinstance(t, Tensor) else t for t in layer)) for layer in layers_of()]
    x = all_inputs("adapted", layers)
    wanted = [x] if asked == "x" else [getattr(layer, asked) for layer in layers]
    for tensor in wanted:
        tensor.requires_grad_()
    exact = torch.autograd.grad(mixture(plain(x, layers)), wanted)
    for again in (False, True):
        for one, other in zip(torch.autograd.grad(mixture(stacked(x, layers)), wanted, create_graph=again), exact):
            same(one, other)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("kind", ["shared", "repeated"])
def test_gradcheck_and_gradgradcheck(kind: str, std: bool) -> None:
    layers = layers_of((2, 2, 1), kind)
    x = inside_cells(6, layers[0].knots, 3).requires_grad_()

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        parts = iter(weights)
        used = [StackLayer(next(parts), next(parts), next(parts), *layer[3:]) for layer in layers]
        return tuple(stacked(x, used, std))

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


# -- stds ----------------------------------------------------------------------------------------


def test_stds_are_those_of_edge_std() -> None:
    for layer in layers_of((3, 4), masked=False, scaled=False):
        x = all_inputs("adapted", [layer])
        _, ((edges, inputs),) = fused_stack(x, [layer], True)
        same(edges, edge_std(x, layer.knots, layer.weight, layer.base_weight, basis=layer.basis), digits=1e-7)
        same(inputs, x.std(0))


@BY_X
@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_what_does_not_vary_has_a_std_and_a_gradient_of_exactly_0(value: float, dtype: torch.dtype, by_x: bool) -> None:
    layers = layers_of((3, 4, 2), dtype=dtype, masked=False)
    x = inside_cells(30, layers[0].knots, 3)
    x[:, 1] = value
    with torch.no_grad():
        layers[0].scale[2, 3] = layers[0].base_weight[2, 3] = 0
    x.requires_grad_(by_x)
    _, stds = fused_stack(x, layers, True)
    flat = stds[0].edges == 0
    assert flat[1].all()
    assert flat[2, 3]
    assert flat.sum() == 5
    assert (stds[0].inputs == 0).tolist() == [False, True, False]
    for again in (False, True):
        *by_inputs, dw, db, scale = torch.autograd.grad(
            mixture([stds[0].edges, stds[0].inputs]),
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


def are_close(errors: list[list[Tensor]], references: list[list[Tensor]], sizes: list[list[Tensor]]) -> bool:
    """Whether errors are at most twice the reference's and a rounding of the size, in the median over the batches.

    In a few batches, a row close to a bend of a spline magnifies the roundings before it, and their size is luck. No
    batch may be off by more than eight times as much (of 99 networks, the worst batch was off by 2.5 times as much).
    """
    error, reference, size = (torch.tensor(each) for each in (errors, references, sizes))
    allowed = 2 * reference + torch.finfo(torch.float32).eps * size
    return bool((2 * (error <= allowed).sum(0) > len(error)).all() and (error <= 8 * allowed).all())


@BY_X
@pytest.mark.parametrize(("kind", "order", "widths"), FLOAT32)
def test_float32_is_within_twice_the_references_error(
    kind: str, order: int, widths: tuple[int, ...], by_x: bool
) -> None:
    """Errors of values, stds and gradients are small beside the reference's."""
    layers = layers_of(widths, kind, order, dtype=torch.float32)
    wide = [StackLayer(*(t.detach().to(D) if isinstance(t, Tensor) else t for t in layer)) for layer in layers]
    for tensor in learned(wide):
        tensor.requires_grad_()
    wide = [layer._replace(basis=basis_of(layer.knots, order)) for layer in wide]

    def everything(function: Callable, x: Tensor, layers: Sequence[StackLayer]) -> list[Tensor]:
        outputs = function(x, layers)
        gradients = torch.autograd.grad(mixture(outputs), [*([x] if by_x else []), *learned(layers)])
        return [t.detach().to(D) for t in (*outputs, *gradients)]

    errors, references, sizes = [], [], []
    for seed in range(24):
        torch.manual_seed(seed)
        x = make_inputs(200, layers[0].knots)[:-2].requires_grad_(by_x)
        exact = everything(plain, x.detach().to(D).requires_grad_(by_x), wide)
        errors.append([(one - want).norm() for one, want in zip(everything(stacked, x, layers), exact)])
        references.append([(one - want).norm() for one, want in zip(everything(plain, x, layers), exact)])
        sizes.append([want.norm() for want in exact])
    assert are_close(errors, references, sizes)


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
    y, _ = fused_stack(x, [layer])
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
def test_a_nan_spoils_the_stds_of_its_column_only(by_x: bool) -> None:
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


# -- rows that come again ---------------------------------------------------------------------------


def cacheable(layers: Sequence[StackLayer]) -> list[StackLayer]:
    """The layers with tables of their knots that stay the same object."""
    made = [pieces_of(layer.knots, layer.basis) for layer in layers]
    return [layer._replace(pieces=partial(getitem, made, place)) for place, layer in enumerate(layers)]


def on_arrays(x: Tensor, layers: Sequence[StackLayer], cache: StackCache | None, std: bool = True) -> list[Tensor]:
    """y, the standard deviations and all gradients of their :func:`mixture`, without a graph."""
    with np.errstate(all="ignore"):
        stack = FusedStack(x, layers, std, cache)
        deviations = [torch.from_numpy(each) for pair in stack.stds() for each in pair] if std else []
        outputs = [torch.from_numpy(stack.y.T.copy()).requires_grad_(), *(t.requires_grad_() for t in deviations)]
        by_y, *by_stds = (t.numpy() for t in torch.autograd.grad(mixture(outputs), outputs))
        by_stds = by_stds or [None] * (2 * len(layers))
        needed = [name < 3 and operand is not None for layer in layers for name, operand in enumerate(layer[:4])]
        _, found = stack.vjp(by_y.T, list(zip(by_stds[::2], by_stds[1::2])), [False, *needed])
    return [t.detach() for t in outputs] + [torch.from_numpy(t) for t in found if t is not None]


def right(x: Tensor, layers: Sequence[StackLayer], cache: StackCache | None, std: bool = True) -> None:
    """Values, standard deviations and gradients are those of plain PyTorch."""
    want = plain(x, layers, std)
    exact = torch.autograd.grad(mixture(want), learned(layers))
    for one, other in zip(on_arrays(x, layers, cache, std), (*want, *exact), strict=True):
        same(one, other)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize(("scaled", "masked"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_rows_give_the_same_values_and_gradients(
    kind: str, base: str, scaled: bool, masked: bool, std: bool
) -> None:
    layers = cacheable(layers_of(kind=kind, base=base, scaled=scaled, masked=masked))
    x, cache = all_inputs(kind, layers), StackCache()
    right(x, layers, cache, std)
    rows = cache._rows
    right(x.clone(), layers, cache, std)
    assert cache._rows is rows
    assert rows.by_splines


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("widths", [(1, 1), (5, 1), (1, 5), (2, 5, 1), (1, 1, 1, 1)])
def test_orders_and_sizes_of_cached_rows(order: int, widths: tuple[int, ...]) -> None:
    layers, cache = cacheable(layers_of(widths, order=order)), StackCache()
    x = all_inputs("adapted", layers)
    for _ in range(2):
        right(x, layers, cache)
    right(x, layers, None)


@pytest.mark.parametrize("layout", ["transposed", "strided", "negated", "expanded"])
@pytest.mark.parametrize("inputs", [1, 3])
def test_cached_rows_need_not_be_contiguous(inputs: int, layout: str) -> None:
    layers = cacheable(layers_of((inputs, 2)))
    x = inside_cells(20, layers[0].knots, 3)
    x = {
        "transposed": x.t().contiguous().t(),
        "strided": x.repeat(1, 2)[:, ::2],
        "negated": torch._neg_view(-x),
        "expanded": x[:1].expand(20, -1),
    }[layout]
    right(x, layers, StackCache(), std=layout != "expanded")


def test_rows_written_into_behind_torchs_back_are_other_rows() -> None:
    layers, cache = cacheable(layers_of()), StackCache()
    x = all_inputs("adapted", layers)
    right(x, layers, cache)
    x.numpy()[3, 1] += 0.01
    right(x, layers, cache)
    x.numpy()[3, 1] -= 0.01
    x.data[0] = 0.2
    right(x, layers, cache)


@pytest.mark.parametrize("kind", KINDS)
def test_other_knots_and_bases_have_rows_of_their_own(kind: str) -> None:
    layers, cache = cacheable(layers_of((2, 3), kind)), StackCache()
    x = all_inputs(kind, layers)
    right(x, layers, cache)
    layers[0].knots.mul_(1.1).add_(0.01)
    moved = cacheable([layers[0]._replace(basis=basis_of(layers[0].knots, 3))])
    right(x, moved, cache)
    right(x, [moved[0]._replace(basis=moved[0].basis._replace(base="identity"))], cache)


def test_equal_bytes_of_another_shape_or_dtype_are_other_rows() -> None:
    """Where all inputs have one grid, their tables may be the same."""
    values, cache = torch.linspace(-1, 1, 60, dtype=D), StackCache()
    (layer,) = cacheable(layers_of((1, 2), "shared"))
    shared = layer.pieces
    for inputs in (2, 3, 1, 4):
        (layer,) = layers_of((inputs, 2), "shared")
        right(values.view(inputs, -1).t(), [layer._replace(pieces=shared)], cache)
    narrow = cacheable(layers_of((2, 2), "shared", dtype=torch.float32))
    x = torch.randint(0, 1 << 30, (2, 40), dtype=torch.int32).view(torch.float32).clamp(max=1.0)
    right(x.view(D).t(), [layers_of((2, 2), "shared")[0]._replace(pieces=shared)], cache, std=False)
    y = on_arrays(x.t(), narrow, cache, std=False)[0]
    torch.testing.assert_close(y, plain(x.t(), narrow, std=False)[0].detach())


def TABLES() -> Any:
    return _TABLES


_TABLES = pieces_of(make_knots("shared", 1, 7, 3), layers_of((1, 1), "shared")[0].basis)


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("outputs", [1, 2])
def test_results_are_their_owners(inputs: int, outputs: int) -> None:
    """Writes into them spoil nothing for the next pass."""
    layers, cache = cacheable(layers_of((inputs, outputs), scaled=False, masked=False)), StackCache()
    x = all_inputs("adapted", layers)
    results = []
    for _ in range(2):
        found = [*on_arrays(x, layers, cache), *(outputs := stacked(x, layers))]
        found += torch.autograd.grad(mixture(outputs), learned(layers))
        results.append([t.detach().clone() for t in found])
        for tensor in found[-len(outputs) - len(learned(layers)) :]:
            assert tensor.is_contiguous()
            tensor.detach().fill_(torch.nan)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    right(x, layers, cache)


def test_a_backward_needs_nothing_that_other_batches_or_writes_can_change() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    exact = torch.autograd.grad(mixture(plain(x, layers)), learned(layers))
    total = mixture(stacked(x, layers))
    for n in range(6):
        stacked(all_inputs("adapted", layers, rows=10 + n), layers)
    x.numpy()[:] = 0.5
    for one, other in zip(torch.autograd.grad(total, learned(layers)), exact, strict=True):
        same(one, other)


def test_threads() -> None:
    layers = layers_of()
    rows = [all_inputs("adapted", layers, rows=20 + n) for n in range(6)]
    expected = [plain(x, layers) for x in rows]
    exact = [torch.autograd.grad(mixture(each), learned(layers)) for each in expected]

    def run(n: int) -> list[Tensor]:
        found = stacked(rows[n % 6], layers)
        return [*found, *torch.autograd.grad(mixture(found), learned(layers))]

    with ThreadPoolExecutor(4) as pool:
        for n, found in enumerate(pool.map(run, range(240))):
            for one, other in zip(found, (*expected[n % 6], *exact[n % 6]), strict=True):
                same(one, other)


# -- standard deviations close to 0 ------------------------------------------------------------------


def nearly_constant(dtype: torch.dtype) -> tuple[StackLayer, Tensor]:
    """Splines whose coefficients are 1 but for some 1e-5, on a grid on which they add up to 1; and rows."""
    (layer,) = layers_of((3, 8), base="none", scaled=False, masked=False, dtype=dtype)
    weight = (1 + 1e-5 * torch.randn(layer.weight.shape, dtype=D)).to(dtype).requires_grad_()
    return layer._replace(weight=weight), inside_cells(200, layer.knots, 3)


def stds_and_gradients(function: Callable, x: Tensor, layer: StackLayer) -> list[Tensor]:
    edges = function(x, [layer])[1]
    return [edges.detach().to(D), torch.autograd.grad(mixture([edges]), layer.weight)[0].to(D)]


def test_stds_close_to_0_are_off_by_their_terms_rounding_only() -> None:
    """A sum of n products is off by 2 sqrt(n) roundings of the sum of their sizes; as everywhere in these tests."""
    layer, x = nearly_constant(D)
    std, slope = stds_and_gradients(stacked, x, layer)
    exact, exact_slope = stds_and_gradients(plain, x, layer)
    assert (exact < 1e-5).all()
    covariance = feature_covariance(x, layer.knots, basis=layer.basis).abs()
    weight = layer.weight.detach().abs()
    by_weight = torch.einsum("ipq,qio->pio", covariance, weight)
    rounding = 2 * len(weight) * torch.finfo(D).eps  # of the two sums over the features
    allowed = rounding * (weight * by_weight).sum(0) / exact  # (std + error)^2 = std^2 + rounding
    assert ((std - exact).abs() <= allowed).all()
    upstream = torch.autograd.grad(mixture([std.requires_grad_()]), std)[0].abs()
    allowed_slope = (upstream * rounding * by_weight + allowed * exact_slope.abs()) / exact
    assert ((slope - exact_slope).abs() <= allowed_slope).all()


def test_stds_close_to_0_in_float32_are_within_twice_the_references_error() -> None:
    errors, references, sizes = [], [], []
    for seed in range(8):
        torch.manual_seed(seed)
        layer, x = nearly_constant(torch.float32)
        wide = layer._replace(weight=layer.weight.detach().to(D).requires_grad_(), knots=layer.knots.to(D))
        wide = wide._replace(basis=basis_of(wide.knots, 3, "none"))
        exact = stds_and_gradients(plain, x.to(D), wide)
        errors.append([(a - b).norm() for a, b in zip(stds_and_gradients(stacked, x, layer), exact)])
        references.append([(a - b).norm() for a, b in zip(stds_and_gradients(plain, x, layer), exact)])
        sizes.append([b.norm() for b in exact])
    assert are_close(errors, references, sizes)


def test_second_derivatives_by_the_weights() -> None:
    layers = layers_of((2, 3, 1))
    x = all_inputs("adapted", layers)

    def derivatives(outputs: Sequence[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(mixture(outputs), learned(layers), create_graph=True)
        return [*first, *torch.autograd.grad(mixture(first), learned(layers))]

    for _ in range(2):
        for one, other in zip(derivatives(stacked(x, layers)), derivatives(plain(x, layers)), strict=True):
            same(one, other, digits=1e-9)


@pytest.mark.parametrize("of", ["y", "edges", "inputs", "all"])
def test_batches_of_gradients(of: str) -> None:
    """Also of some outputs: what comes of the others are zeros, which are no batch."""
    layers = layers_of()
    x = all_inputs("adapted", layers)
    chosen = {"y": slice(0, 1), "edges": slice(1, 2), "inputs": slice(4, 5), "all": slice(0, 5)}[of]
    got, want = stacked(x, layers)[chosen], plain(x, layers)[chosen]
    got, want = zip(*((one, other) for one, other in zip(got, want) if other.requires_grad))
    g = [torch.randn(3, *t.shape, dtype=D) for t in got]
    asked = [layers[0].weight, layers[0].base_weight, layers[0].scale]
    found = torch.autograd.grad(got, asked, g, is_grads_batched=True)
    for n in range(3):
        exact = torch.autograd.grad(want, asked, [t[n] for t in g], retain_graph=True)
        for one, other in zip(found, exact, strict=True):
            same(one[n], other, digits=1e-7)


# -- knots and tables -------------------------------------------------------------------------------


def test_a_first_call_in_inference_mode_does_not_spoil_later_ones() -> None:
    layers = layers_of((2, 3))
    layers = [layer._replace(knots=(knots := layer.knots * 1.7 + 0.1), basis=basis_of(knots, 3)) for layer in layers]
    x = points(network([2, 3]))
    with torch.inference_mode():
        before = stacked(x, layers)
    got = stacked(x, layers)
    assert all(torch.equal(a, b) for a, b in zip(before, got))
    mixture(got).backward()
    assert layers[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["shared", "adapted"])
def test_knots_written_into_do_not_spoil_the_tables_of_equal_ones(kind: str) -> None:
    (layer,) = layers_of((2, 3), kind)
    layer.knots.mul_(1.37).add_(0.02)  # which nobody else has
    layer = layer._replace(basis=basis_of(layer.knots, 3))
    x = all_inputs(kind, [layer])
    before = stacked(x, [layer])
    twin = layer.knots.clone()
    layer.knots.mul_(1.5)
    moved = layer._replace(basis=basis_of(layer.knots, 3))
    for one, other in zip(stacked(x, [moved]), plain(x, [moved])):
        same(one, other)
    assert all(torch.equal(a, b) for a, b in zip(stacked(x, [layer._replace(knots=twin)]), before))


# -- when it is taken -------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of :func:`fused_stack` by a network."""
    from fastkan.network import core as module

    calls: list[int] = []
    monkeypatch.setattr(module, "fused_stack", lambda x, *rest: (calls.append(len(x)), fused_stack(x, *rest))[1])
    return calls


def test_it_is_taken_by_a_plain_small_network(taken: list[int]) -> None:
    model = network([2, 5, 1])
    x = points(model, 20)
    model(x)
    with torch.no_grad():
        model(x.requires_grad_())
    with torch.inference_mode():
        model(x)
    with fastkan.backend("cpu"):
        model(x.detach())
    assert taken == [20] * 4
    model(x)  # whose graph by x may be differentiated again, by the layers' contractions
    assert taken == [20] * 4


def elsewhere() -> dict[str, Any]:
    def traced(how: Callable) -> Callable:
        def run(model: torch.nn.Module, x: Tensor) -> Tensor:
            with torch.no_grad(), fastkan.backend("reference" if how is torch.jit.trace else "auto"):
                return how(model, (x,), check_trace=False)(x) if how is torch.jit.trace else how(model)(x)(x)

        return run

    def dual(model: torch.nn.Module, x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(model(forward_ad.make_dual(x, x))).primal

    def inside(context: Callable) -> Callable:
        def run(model: torch.nn.Module, x: Tensor) -> Tensor:
            with context():
                return model(x)

        return run

    from torch.fx.experimental.proxy_tensor import make_fx

    return {
        "vmap": lambda model, x: torch.vmap(lambda row: model(row))(x),
        "jvp": lambda model, x: torch.func.jvp(model, (x,), (x,))[0],
        "forward mode": dual,
        "compile": lambda model, x: torch.compile(model, backend="aot_eager", fullgraph=True)(x),
        "export": lambda model, x: torch.export.export(model, (x,)).module()(x),
        "jit": traced(torch.jit.trace),
        "make_fx": traced(make_fx),
        "dispatch mode": inside(Passive),
        "reference": inside(lambda: fastkan.backend("reference")),
    }


@pytest.mark.filterwarnings("ignore")  # of torch's tracers
@pytest.mark.parametrize("where", list(elsewhere()))
@pytest.mark.parametrize("known", [False, True])
def test_it_is_not_taken_where_numpy_would_go_unseen(taken: list[int], where: str, known: bool) -> None:
    model = network([2, 5, 1])
    x = points(model, 20)
    expected = network([2, 5, 1])(x)
    if known:
        model(x)
    taken.clear()
    same(elsewhere()[where](model, x), expected)
    assert taken == []


@pytest.mark.parametrize("std", [False, True])
def test_batches_of_gradients_and_tangents_of_them(std: bool) -> None:
    """A backward under a transform that its forward has not seen."""
    layers = layers_of()
    x = all_inputs("adapted", layers).requires_grad_()
    asked = [x, *learned(layers)]
    outputs = stacked(x, layers, std)
    g = [torch.randn(3, *t.shape, dtype=D) for t in outputs]

    def pulled(function: Callable, g: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, layers, std), asked, g, **options)

    each = [pulled(plain, [t[n] for t in g]) for n in range(3)]
    expected = [torch.stack(parts) for parts in zip(*each)]
    ways = (
        pulled(stacked, g, is_grads_batched=True),
        torch.autograd.grad(outputs, asked, g, is_grads_batched=True, retain_graph=True),
        torch.vmap(lambda *g: torch.autograd.grad(outputs, asked, g, retain_graph=True))(*g),
    )
    for found in ways:
        for one, other in zip(found, expected, strict=True):
            same(one, other, digits=1e-7)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t[0], t[1]) for t in g]
        found = torch.autograd.grad(outputs, asked, dual, retain_graph=True)
        tangents = [forward_ad.unpack_dual(t).tangent for t in found]
    for one, other in zip(tangents, expected, strict=True):
        same(one, other[1], digits=1e-7)
    with Passive():
        found = torch.autograd.grad(outputs, asked, [t[2] for t in g])
    for one, other in zip(found, expected, strict=True):
        assert not one.requires_grad
        same(one, other[2], digits=1e-7)


def test_a_jacobian_of_a_network_in_one_sweep() -> None:
    from torch.autograd.functional import jacobian

    model = network([2, 3, 2])
    x = points(model, 5)
    same(jacobian(model, x, vectorize=True), jacobian(model, x))
    same(jacobian(model, x, vectorize=True, strategy="forward-mode"), jacobian(model, x))


def test_it_is_not_taken_for_what_it_can_not_do() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    assert supports_stack(x, layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not supports_stack(x, layers)
    assert not supports_stack(x[:0], layers)
    assert not supports_stack(x.float(), layers)
    wide = layers_of((40, 40))
    assert not supports_stack(all_inputs("adapted", wide).repeat(100, 1), wide)
    assert not supports_stack(x.to("meta"), layers)
    assert not supports_stack(
        torch.Tensor._make_subclass(type("Own", (Tensor,), {"__torch_dispatch__": None}), x), layers
    )
    narrow = [layer._replace(weight=layer.weight.half(), knots=layer.knots.half()) for layer in layers]
    assert not supports_stack(x.half(), narrow)
    last = layers[-1]._replace(knots=layers[-1].knots.clone().requires_grad_())
    assert not supports_stack(x, [*layers[:-1], last])


@pytest.mark.filterwarnings("ignore")
def test_it_is_not_taken_while_torchscript_traces() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    asked = []

    def function(x: Tensor) -> Tensor:
        asked.append(supports_stack(x, layers))
        return 2 * x

    torch.jit.trace(function, (x,), check_trace=False)
    assert asked == [False]


def test_torch_counts_dispatch_modes_and_knows_batches_under_these_private_names() -> None:
    batched = []
    torch._vmap_internals._vmap(lambda t: batched.append(torch._C._functorch.is_legacy_batchedtensor(t)) or t)(
        torch.zeros(2)
    )
    assert batched == [True]
    assert not torch._C._functorch.is_legacy_batchedtensor(torch.zeros(2))
    assert torch._C._len_torch_dispatch_stack() == 0
    with Passive():
        assert torch._C._len_torch_dispatch_stack() == 1
        with Passive():
            assert torch._C._len_torch_dispatch_stack() == 2
    assert torch._C._len_torch_dispatch_stack() == 0
    assert Tensor.__torch_dispatch__ is torch.nn.Parameter.__torch_dispatch__


def test_a_layer_by_itself_and_in_a_stack_are_the_same_to_the_bit() -> None:
    (layer,) = layers_of((3, 2), scaled=False, masked=False)
    x = all_inputs("adapted", [layer])
    y = fastkan_kernels.contract_out(x, layer.knots, layer.weight, layer.base_weight, basis=layer.basis)
    assert torch.equal(y, fused_stack(x, [layer])[0])
