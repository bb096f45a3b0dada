"""When ``small_stack`` is taken, and the tables of knots that it goes by."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from cases import inside_cells, make_knots
from fastkan_kernels.autograd.stack import serves, small_stack
from networks import D, network, points, same
from test_stack import KINDS, all_inputs, layers_of, learned, mixture, plain, stacked
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastkan
import fastkan_kernels
from fastkan_kernels import basis_of
from fastkan_kernels.bspline import piecewise as pieces

# -- tables of knots --------------------------------------------------------------------------------


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


def test_results_depend_on_the_knots_and_not_on_who_came_before() -> None:
    """Knots that agree in their ends, but by a rounding not inside."""
    (layer,) = layers_of((1, 1), "shared")
    other = layer.knots.clone()
    other[:, 7] = torch.nextafter(other[:, 7], other[:, 8])
    assert basis_of(other, 3) == layer.basis
    tables = [pieces.pieces_of(knots, layer.basis).knots.flatten() for knots in (layer.knots, other, layer.knots)]
    for table, knots in zip(tables, (layer.knots, other, layer.knots), strict=True):
        assert torch.equal(torch.from_numpy(table), knots[0])


@pytest.mark.parametrize("kind", KINDS)
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


# -- when it is taken -------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of :func:`small_stack` by a network."""
    from fastkan.kan import model as module

    calls: list[int] = []
    monkeypatch.setattr(module, "small_stack", lambda x, *rest: (calls.append(len(x)), small_stack(x, *rest))[1])
    return calls


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


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
        "dispatch mode": inside(Seen),
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


@pytest.mark.parametrize("spread", [False, True])
def test_batches_of_gradients_and_tangents_of_them(spread: bool) -> None:
    """A backward under a transform that its forward has not seen."""
    layers = layers_of()
    x = all_inputs("adapted", layers).requires_grad_()
    asked = [x, *learned(layers)]
    outputs = stacked(x, layers, spread)
    g = [torch.randn(3, *t.shape, dtype=D) for t in outputs]

    def pulled(function: Callable, g: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, layers, spread), asked, g, **options)

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
    with Seen():
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
    assert serves(x, layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not serves(x, layers)
    assert not serves(x[:0], layers)
    assert not serves(x.float(), layers)
    wide = layers_of((40, 40))
    assert not serves(all_inputs("adapted", wide).repeat(100, 1), wide)
    assert not serves(x.to("meta"), layers)
    assert not serves(torch.Tensor._make_subclass(type("Own", (Tensor,), {"__torch_dispatch__": None}), x), layers)
    narrow = [layer._replace(weight=layer.weight.half(), knots=layer.knots.half()) for layer in layers]
    assert not serves(x.half(), narrow)
    last = layers[-1]._replace(knots=layers[-1].knots.clone().requires_grad_())
    assert not serves(x, [*layers[:-1], last])


@pytest.mark.filterwarnings("ignore")
def test_it_is_not_taken_while_torchscript_traces() -> None:
    layers = layers_of()
    x = all_inputs("adapted", layers)
    asked = []

    def function(x: Tensor) -> Tensor:
        asked.append(serves(x, layers))
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
    with Seen():
        assert torch._C._len_torch_dispatch_stack() == 1
        with Seen():
            assert torch._C._len_torch_dispatch_stack() == 2
    assert torch._C._len_torch_dispatch_stack() == 0
    assert Tensor.__torch_dispatch__ is torch.nn.Parameter.__torch_dispatch__


def test_a_layer_by_itself_and_in_a_stack_are_the_same_to_the_bit() -> None:
    (layer,) = layers_of((3, 2), scaled=False, masked=False)
    x = all_inputs("adapted", [layer])
    y = fastkan_kernels.contract_out(x, layer.knots, layer.weight, layer.base_weight, basis=layer.basis)
    assert torch.equal(y, small_stack(x, [layer])[0])
