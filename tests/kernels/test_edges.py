"""The size of each edge: spread and mean size over a batch, against the edges' own values."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from cases import KNOTS, inside_cells, make_case

from fastkan_kernels import Basis, edge_mean_abs, edge_std, edge_values, feature_covariance
from fastkan_kernels import knots as knots_module
from fastkan_kernels import statistics as edges

BASES = ["silu", "gelu", "identity", "none"]
SIZED = {"std": edge_std, "mean_abs": edge_mean_abs}


def case(kind: str = "adapted", base: str = "silu", rows: int = 40, **more):
    o, basis = make_case(kind, rows=rows, base=base, inputs=3, outputs=4, **more)
    return o._replace(x=torch.where(o.x.abs() > 40, 0.1, o.x)), basis  # the spread is of the inside


def sizes(o, basis: Basis) -> tuple:
    return o.x, o.knots, o.weight, o.base_weight


@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("order", [1, 3, 5])
def test_values_of_every_edge_are_those_of_scipy(order: int, base: str, kind: str) -> None:
    o, basis = case(kind, base, order=order)
    a = o.array()
    expected = np.einsum("nbi,bio->nio", oracle.splines(a.x, a.knots, order), a.weight)
    if base != "none":
        expected += oracle.base_function(a.x, base)[..., None] * a.base_weight
    np.testing.assert_allclose(edge_values(*sizes(o, basis), basis=basis), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", [0, 1, 5])
@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize("base", BASES)
def test_spread_is_that_of_the_values(base: str, kind: str, correction: int) -> None:
    o, basis = case(kind, base)
    values = edge_values(*sizes(o, basis), basis=basis)
    found = edge_std(*sizes(o, basis), basis=basis, correction=correction)
    torch.testing.assert_close(found, values.std(0, correction=correction), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_mean_size_is_that_of_the_values(base: str) -> None:
    o, basis = case(base=base)
    values = edge_values(*sizes(o, basis), basis=basis)
    torch.testing.assert_close(edge_mean_abs(*sizes(o, basis), basis=basis), values.abs().mean(0))


def test_covariance_of_features_is_that_of_numpy() -> None:
    o, basis = case()
    covariance = feature_covariance(o.x, o.knots, basis=basis)
    assert covariance.shape == (3, 10, 10)
    a = o.array()
    psi = np.concatenate([oracle.splines(a.x, a.knots, 3), oracle.silu(a.x)[:, None]], 1)
    for i in range(3):
        np.testing.assert_allclose(covariance[i], np.cov(psi[:, :, i].T), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", SIZED)
def test_blocks_of_rows_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    o, basis = case()
    whole = SIZED[name](*sizes(o, basis), basis=basis)
    x = o.x.clone().requires_grad_()
    (by_x,) = torch.autograd.grad(SIZED[name](x, *sizes(o, basis)[1:], basis=basis).sum(), x)
    monkeypatch.setattr(edges, "BLOCK_ELEMENTS", 200)
    torch.testing.assert_close(SIZED[name](*sizes(o, basis), basis=basis), whole, rtol=1e-11, atol=1e-13)
    parts = SIZED[name](x, *sizes(o, basis)[1:], basis=basis)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), x)[0], by_x, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_low_precision(dtype: torch.dtype, offset: float) -> None:
    """Off by the rounding of W^T C W, each of its terms by what adding up N and then P^2 of them costs;
    squares less squares would cost the square of the features' means as well."""
    o, basis = case("shared", dtype=torch.float32)
    o = o._replace(weight=o.weight + offset, x=inside_cells(40, o.knots, 3))
    half = type(o)(*(t if t is o.knots else t.to(dtype) for t in o))
    found = edge_std(*sizes(half, basis), basis=basis)
    assert found.dtype == dtype
    wide = type(o)(*(t.double() for t in half))
    exact = edge_std(*sizes(wide, basis), basis=Basis(3))
    covariance = feature_covariance(wide.x, wide.knots, basis=Basis(3))
    spread = covariance.diagonal(dim1=1, dim2=2).sqrt()  # |C_pq| is at most the product of two of these
    weights = torch.cat([wide.weight, wide.base_weight[None]]).abs()
    terms = torch.einsum("ip,pio->io", spread, weights).square()
    variance = (2 * 40**0.5 + 2 * 10 + 20) * torch.finfo(torch.float32).eps * terms
    bound = torch.minimum(variance / (2 * exact), variance.sqrt()) + torch.finfo(dtype).eps * exact
    assert ((found.double() - exact).abs() <= bound).all()


# -- gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shared", "adapted", "repeated"])
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize("name", SIZED)
def test_gradients_by_weights_and_inputs(name: str, base: str, kind: str) -> None:
    o, basis = case(kind, base, rows=7)
    x = inside_cells(7, o.knots, 3)
    leaves = [t.clone().requires_grad_() for t in (x, o.weight, o.base_weight) if t is not None]

    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return SIZED[name](x, o.knots, *weights, basis=basis)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", SIZED)
def test_second_derivatives_by_the_weights(name: str) -> None:
    o, basis = case(rows=6)
    weight = o.weight.clone().requires_grad_()

    def function(weight: torch.Tensor) -> torch.Tensor:
        return SIZED[name](o.x, o.knots, weight, o.base_weight, basis=basis)

    assert torch.autograd.gradgradcheck(function, (weight,), fast_mode=True)


@pytest.mark.parametrize("by", ["x", "weight", "both"])
@pytest.mark.parametrize("name", SIZED)
def test_derivatives_of_the_gradient_by_x_are_right_or_raise(name: str, by: str) -> None:
    """A penalty on the slope of a penalty: whichever tensor the second derivative is asked of."""
    o, basis = case(rows=6)

    def second(composite: bool) -> tuple[torch.Tensor, ...]:
        x, weight = inside.clone().requires_grad_(), o.weight.clone().requires_grad_()
        knots = o.knots.clone().requires_grad_(composite)  # then PyTorch differentiates everything
        size = SIZED[name](x, knots, weight, o.base_weight, basis=basis)
        (slope,) = torch.autograd.grad(size.sum(), x, create_graph=True)
        total = slope.square().sum() + weight.square().sum() + x.square().sum()
        return torch.autograd.grad(total, {"x": [x], "weight": [weight], "both": [x, weight]}[by])

    inside = inside_cells(6, o.knots, 3)
    expected = second(composite=True)
    try:
        found = second(composite=False)
    except RuntimeError:
        return
    for value, want in zip(found, expected, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SIZED)
def test_transforms_are_right_or_raise(name: str) -> None:
    o, basis = case(rows=8)

    def function(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return SIZED[name](x, o.knots, weight, o.base_weight, basis=basis).sum()

    x = inside_cells(8, o.knots, 3)
    leaves = [o.weight.clone().requires_grad_(), x.clone().requires_grad_()]
    expected = torch.autograd.grad(function(*leaves), leaves)
    along = (expected[0] * o.weight).sum() + (expected[1] * x).sum()
    try:
        found = torch.func.grad(function, (0, 1))(o.weight, x)
        tangent = torch.func.jvp(function, (o.weight, x), (o.weight, x))[1]
    except RuntimeError:
        assert name != "std"  # it is composite there
        return
    for value, want in zip((*found, tangent), (*expected, along), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)


# -- edges that don't vary, and spoiled ones --------------------------------------------------------


@pytest.mark.parametrize("why", ["zero", "constant input", "masked"])
def test_an_edge_that_does_not_vary_has_a_gradient_of_0(why: str) -> None:
    """torch.std would give NaN, and training on a penalty of it would end there."""
    o, basis = case(base="silu")
    x, weight, base_weight = o.x.clone(), o.weight.clone(), o.base_weight.clone()
    if why == "constant input":
        x[:, 1] = 0.37
    else:
        weight[:, 1], base_weight[1] = 0, 0
    leaves = [t.requires_grad_() for t in (x, weight, base_weight)]
    mask = torch.ones(3, 4, dtype=x.dtype)
    if why == "masked":
        mask[1] = 0
    spread = edge_std(x, o.knots, weight * mask, base_weight * mask, basis=basis)
    rounding = 1e-14  # a mean of equal numbers may be off by one
    assert (spread[1] <= rounding).all()
    assert (spread[[0, 2]] > 0.01).all()
    spread.sum().backward()
    assert all(t.grad.isfinite().all() for t in leaves)
    assert (weight.grad[:, 1].abs() <= rounding).all()
    assert (base_weight.grad[1].abs() <= rounding).all()
    assert (x.grad[:, 1].abs() <= rounding).all()
    assert (weight.grad[:, 0] != 0).any()


def test_an_edge_that_is_one_number_varies_by_rounding_at_most() -> None:
    """All coefficients equal: on the grid that is a constant, though the features vary."""
    o, basis = case("shared", "none")
    weight = torch.full_like(o.weight, 3.0).requires_grad_()
    x = inside_cells(40, o.knots, 3).requires_grad_()
    spread = edge_std(x, o.knots, weight, basis=basis)
    assert spread.max() < 1e-7  # the root of a rounding
    spread.sum().backward()
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("name", SIZED)
def test_nan_is_not_lost(name: str) -> None:
    """An input with a NaN has no spread to tell, as torch.std has none; the other inputs have theirs."""
    o, basis = case()
    clean = SIZED[name](*sizes(o, basis), basis=basis)
    o.x[7, 1] = torch.nan
    found = SIZED[name](*sizes(o, basis), basis=basis)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


def test_no_tensor_of_all_edges_and_rows_is_made() -> None:
    """N x I x O would be 34 MB here, features of all rows 19; blocks of them are 4."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return out

    knots = knots_module.uniform_knots(16, 5, 3)
    weight, base_weight = torch.randn(8, 16, 16), torch.randn(16, 16)
    x = torch.rand(32768, 16).requires_grad_()
    for size in SIZED.values():
        with Watch():
            size(x, knots, weight, base_weight, basis=Basis(3, uniform=True)).sum().backward()
    assert 0 < largest < 10_000_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_a_mean_over_many_rows_of_low_precision(dtype: torch.dtype) -> None:
    """Added up in float32: 80000 is no float16, and bfloat16 stops counting at 256."""
    knots = knots_module.uniform_knots(1, 5, 3)
    x = (torch.rand(40000, 1) * 1.8 - 0.9).to(dtype)
    weight = torch.full((8, 1, 2), 2.0, dtype=dtype)
    found = edge_mean_abs(x, knots, weight, basis=Basis(3, "none", uniform=True))
    assert found.dtype == dtype
    assert torch.equal(found, torch.full_like(found, 2.0))


@pytest.mark.parametrize("size", [*SIZED.values(), edge_values], ids=[*SIZED, "values"])
def test_autocast_is_held_off(size) -> None:
    """W^T C W cancels: rounded to bfloat16 it would be off by as much as it is."""
    o, basis = case(dtype=torch.float32)
    o = o._replace(weight=o.weight + 10)
    exact = size(*sizes(o, basis), basis=basis)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(size(*sizes(o, basis), basis=basis), exact)


@pytest.mark.parametrize(("name", "device", "most"), [
    ("std", "cpu", 2**18), ("std", "meta", 2**24), ("mean_abs", "cpu", 2**20), ("mean_abs", "meta", 2**24),
])  # fmt: skip
def test_blocks_fit_into_a_cache_on_a_cpu_only(
    name: str, device: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other devices compute larger blocks, since they would spend their time on launches otherwise."""
    sizes, split = [], torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda x, rows: (sizes.append(rows), split(x, rows))[1])
    x, weight = torch.rand(1000, 8, device=device), torch.rand(8, 8, 16, device=device)
    knots = knots_module.uniform_knots(8, 5, 3).to(device)
    SIZED[name](x, knots, weight, basis=Basis(3, "none", uniform=True))
    (rows,) = sizes
    elements = rows * 8 * (8 + (1 if name == "std" else 16))
    assert 0.9 * most < elements <= most
