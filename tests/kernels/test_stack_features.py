"""``small_stack`` of an x that needs no gradient: by its features, which are kept for rows that come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import inside_cells
from fastkan_kernels.autograd.stack import StackedLayer, small_stack
from networks import D, same
from test_stack import BASES, KINDS, all_inputs, layers_of, learned, mixture, plain, stacked
from torch import Tensor

from fastkan_kernels import basis_of
from fastkan_kernels.backends.cpu import by_features


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of each time that features are made; none are kept before."""
    rows: list[int] = []

    class Counted(by_features.Features):
        def __init__(self, x, *rest) -> None:
            rows.append(x.shape[1])
            super().__init__(x, *rest)

    monkeypatch.setattr(by_features.SHARED, "kept", [])
    monkeypatch.setattr(by_features, "Features", Counted)
    yield rows
    assert len(by_features.SHARED.kept) <= by_features.MAX_KEPT


def right(x: Tensor, layers: Sequence[StackedLayer], spread: bool = True) -> None:
    """Values, spreads and gradients are those of plain PyTorch."""
    got, want = stacked(x, layers, spread), plain(x, layers, spread)
    for one, other in zip(got, want, strict=True):
        same(one, other)
    exact = torch.autograd.grad(mixture(want), learned(layers))
    for one, other in zip(torch.autograd.grad(mixture(got), learned(layers)), exact, strict=True):
        same(one, other)


# -- values and gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("scaled", "masked"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, base: str, scaled: bool, masked: bool, spread: bool, made: list[int]) -> None:
    layers = layers_of(kind=kind, base=base, scaled=scaled, masked=masked)
    x = all_inputs(kind, layers)
    right(x, layers, spread)
    right(x.clone(), layers, spread)  # of features that are there
    assert made == [30]
    exact = torch.autograd.grad(mixture(plain(x, layers, spread)), learned(layers))
    found = torch.autograd.grad(mixture(stacked(x, layers, spread)), learned(layers), create_graph=True)
    for one, other in zip(found, exact, strict=True):
        same(one, other)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("widths", [(1, 1), (5, 1), (1, 5), (2, 5, 1), (1, 1, 1, 1)])
def test_orders_and_sizes(order: int, widths: tuple[int, ...]) -> None:
    layers = layers_of(widths, order=order)
    x = all_inputs("adapted", layers)
    for _ in range(2):
        right(x, layers)


@pytest.mark.parametrize("asked", ["weight", "base_weight", "scale"])
def test_each_gradient_by_itself(asked: str) -> None:
    layers = [StackedLayer(*(t.detach() if isinstance(t, Tensor) else t for t in layer)) for layer in layers_of()]
    x = all_inputs("adapted", layers)
    wanted = [getattr(layer, asked).requires_grad_() for layer in layers]
    exact = torch.autograd.grad(mixture(plain(x, layers)), wanted)
    for one, other in zip(torch.autograd.grad(mixture(stacked(x, layers)), wanted), exact, strict=True):
        same(one, other)


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


@pytest.mark.parametrize("layout", ["transposed", "strided", "negated", "expanded"])
@pytest.mark.parametrize("inputs", [1, 3])
def test_inputs_need_not_be_contiguous(inputs: int, layout: str) -> None:
    layers = layers_of((inputs, 2))
    x = inside_cells(20, layers[0].knots, 3)
    x = {
        "transposed": x.t().contiguous().t(),
        "strided": x.repeat(1, 2)[:, ::2],
        "negated": torch._neg_view(-x),
        "expanded": x[:1].expand(20, -1),
    }[layout]
    right(x, layers, spread=layout != "expanded")


# -- spreads close to 0 -----------------------------------------------------------------------------


def nearly_constant(dtype: torch.dtype) -> tuple[StackedLayer, Tensor]:
    """Splines whose coefficients are 1 but for some 1e-5, on a grid on which they add up to 1; and rows."""
    (layer,) = layers_of((3, 8), base="none", scaled=False, masked=False, dtype=dtype)
    weight = (1 + 1e-5 * torch.randn(layer.weight.shape, dtype=D)).to(dtype).requires_grad_()
    return layer._replace(weight=weight), inside_cells(200, layer.knots, 3)


def spreads_and_gradients(function: Callable, x: Tensor, layer: StackedLayer) -> list[Tensor]:
    edges = function(x, [layer])[1]
    return [edges.detach().to(D), torch.autograd.grad(mixture([edges]), layer.weight)[0].to(D)]


def test_spreads_close_to_0_are_off_by_their_terms_rounding_only() -> None:
    """A sum of n products is off by 2 sqrt(n) roundings of the sum of their sizes; as everywhere in these tests."""
    layer, x = nearly_constant(D)
    spread, slope = spreads_and_gradients(stacked, x, layer)
    exact, exact_slope = spreads_and_gradients(plain, x, layer)
    assert (exact < 1e-5).all()
    covariance = torch.from_numpy(by_features.SHARED.kept[0][-1].covariance).abs()
    weight = layer.weight.detach().abs()
    by_weight = torch.einsum("ipq,qio->pio", covariance, weight)
    rounding = 2 * len(weight) * torch.finfo(D).eps  # of the two sums over P features
    allowed = rounding * (weight * by_weight).sum(0) / exact  # (spread + error)^2 = spread^2 + rounding
    assert ((spread - exact).abs() <= allowed).all()
    upstream = torch.autograd.grad(mixture([spread.requires_grad_()]), spread)[0].abs()
    allowed_slope = (upstream * rounding * by_weight + allowed * exact_slope.abs()) / exact
    assert ((slope - exact_slope).abs() <= allowed_slope).all()


def test_spreads_close_to_0_in_float32_are_within_twice_the_references_error() -> None:
    errors, references, sizes = [], [], []
    for seed in range(8):
        torch.manual_seed(seed)
        layer, x = nearly_constant(torch.float32)
        wide = layer._replace(weight=layer.weight.detach().to(D).requires_grad_(), knots=layer.knots.to(D))
        wide = wide._replace(basis=basis_of(wide.knots, 3, "none"))
        exact = spreads_and_gradients(plain, x.to(D), wide)
        errors.append([(a - b).norm() for a, b in zip(spreads_and_gradients(stacked, x, layer), exact)])
        references.append([(a - b).norm() for a, b in zip(spreads_and_gradients(plain, x, layer), exact)])
        sizes.append([b.norm() for b in exact])
    error, reference, size = (torch.tensor(each).norm(dim=0) for each in (errors, references, sizes))
    assert (error <= 2 * reference + torch.finfo(torch.float32).eps * size).all()


# -- what is kept -----------------------------------------------------------------------------------


def test_rows_written_into_behind_torchs_back_are_other_rows(made: list[int]) -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    right(x, layers)
    x.numpy()[3, 1] += 0.01
    right(x, layers)
    x.numpy()[3, 1] -= 0.01
    x.data[0] = 0.2
    right(x, layers)
    assert len(made) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_knots_written_into_are_other_knots(kind: str) -> None:
    layers = layers_of((2, 3), kind)
    x = all_inputs(kind, layers)
    right(x, layers)
    layers[0].knots.mul_(1.1).add_(0.01)
    right(x, [layers[0]._replace(basis=basis_of(layers[0].knots, 3))])


def test_equal_bytes_of_another_shape_are_other_rows() -> None:
    """Where all inputs have one grid, their tables are the same."""
    values = torch.linspace(-1, 1, 60, dtype=D)
    for inputs in (2, 3, 1, 4):
        right(values.view(inputs, -1).t(), layers_of((inputs, 2), "shared"))
    x = torch.zeros(30, 2, dtype=D)
    for inputs in (2, 3):
        right(x.reshape(-1, inputs), layers_of((inputs, 2), "shared"), spread=False)


def test_equal_bytes_of_another_dtype_are_other_rows() -> None:
    wide, narrow = layers_of((2, 2), "shared"), layers_of((2, 2), "shared", dtype=torch.float32)
    x = torch.randint(0, 1 << 30, (2, 40), dtype=torch.int32).view(torch.float32).clamp(max=1.0)
    y = plain(x.t(), narrow, spread=False)[0]
    for _ in range(2):
        right(x.view(D).t(), wide, spread=False)
        torch.testing.assert_close(stacked(x.t(), narrow, spread=False)[0], y)


def test_other_bases_and_orders_have_features_of_their_own() -> None:
    for _ in range(2):
        for base in BASES:
            for order in (1, 3):
                layers = layers_of((2, 2), "shared", order, base)
                right(torch.linspace(-1, 1, 20, dtype=D).view(10, 2), layers)


@pytest.mark.parametrize("batches", [by_features.MAX_KEPT, by_features.MAX_KEPT + 2])
def test_batches_in_turn(batches: int, made: list[int]) -> None:
    layers = layers_of()
    rows = [all_inputs("adapted", layers, rows=20 + n) for n in range(batches)]
    for _ in range(3):
        for x in rows:
            right(x, layers)
    assert len(made) == (batches if batches == by_features.MAX_KEPT else 3 * batches)


def test_the_batch_that_was_used_last_stays(made: list[int]) -> None:
    layers = layers_of()
    rows = [all_inputs("adapted", layers, rows=20 + n) for n in range(8)]
    for x in rows[1:]:
        right(rows[0], layers)
        right(x, layers)
    assert made == [len(x) for x in rows]


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("outputs", [1, 2])
def test_results_are_their_owners(inputs: int, outputs: int) -> None:
    """Who writes into them spoils nothing for the next."""
    layers = layers_of((inputs, outputs), scaled=False, masked=False)
    x = all_inputs("adapted", layers)
    results = []
    for _ in range(2):
        found = stacked(x, layers)
        found += torch.autograd.grad(mixture(found), learned(layers))
        assert all(t.is_contiguous() for t in found)
        results.append([t.detach().clone() for t in found])
        for tensor in found:
            tensor.detach().fill_(torch.nan)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    right(x, layers)


def test_what_is_kept_for_a_backward_outlives_other_batches_and_writes() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    exact = torch.autograd.grad(mixture(plain(x, layers)), learned(layers))
    total = mixture(stacked(x, layers))
    for n in range(6):
        stacked(all_inputs("adapted", layers, rows=10 + n), layers)
    x.numpy()[:] = 0.5
    for one, other in zip(torch.autograd.grad(total, learned(layers)), exact, strict=True):
        same(one, other)


def test_what_is_asked_of_kept_features_later_is_of_the_rows_that_they_are_of() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    twin = x.clone()
    stacked(x, layers, spread=False)
    x.numpy()[::2] = 0.5
    right(twin, layers)


def test_threads() -> None:
    layers = layers_of()
    rows = [all_inputs("adapted", layers, rows=20 + n) for n in range(6)]
    expected = [plain(x, layers)[:2] for x in rows]

    def run(n: int) -> list[Tensor]:
        y, spreads = small_stack(rows[n % 6], layers, True)
        return [y, spreads[0].edges]

    with ThreadPoolExecutor(4) as pool:
        for n, found in enumerate(pool.map(run, range(240))):
            for one, other in zip(found, expected[n % 6], strict=True):
                same(one, other)
