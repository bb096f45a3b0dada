"""NaN, infinities and half precision in F, G and H, by every way."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch
from cases import (
    CPU_WAYS,
    DEVICE,
    TRITON_WAYS,
    WAYS,
    WITH_TRITON,
    Example,
    assert_in_budget,
    assert_within,
    by_triton,
    check,
    compute,
    forced,
    make_case,
    no_triton,
    places,
    small_blocks,
)

from fastkan import KANLinear
from fastkan.functional import predecessor
from fastkan_kernels import Basis, basis_of, uniform_knots

BASES = ["silu", "gelu", "identity", "none"]
KINDS = ("shared", "adapted")
ON_CPU = pytest.mark.skipif(no_triton() is not None or DEVICE != "cpu", reason="it computes on the CPU")


def case(kind: str, base: str = "silu") -> tuple[Example, Basis]:
    return make_case(kind, rows=23, inputs=4, outputs=3, grid=7, base=base)


def with_infinities(kind: str, base: str) -> tuple[Example, Basis]:
    o, basis = case(kind, base)
    o.x[3, 1], o.x[8, 2] = -torch.inf, torch.inf
    return o, basis


BY_TRITON = by_triton(
    ("shared", 0, "silu"), ("adapted", 0, "silu"), ("adapted", 4, "silu"), ("shared", 1, "identity"),
    ("shared", 1, "none"), ("adapted", 0, "none"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("way", "kind", "derivative", "base"),
    [*((*place, base) for place in places(0, 1, 3, 4, kinds=KINDS) for base in BASES), *BY_TRITON],
)
def test_nan_spoils_its_row_of_f_its_element_of_h_and_its_sums_in_g(
    way: str, kind: str, derivative: int, base: str
) -> None:
    o, basis = case(kind, base)
    spoiled = o.x.clone()
    spoiled[6, 2] = torch.nan
    for blocks in (False, True) if way in WAYS else (False,):  # Triton's blocks are its tiles, which are small here
        with forced(way), small_blocks() if blocks else forced(way):
            clean = [value for name in "FGH" for value in compute(name, o, basis, derivative)]
            got = [value for name in "FGH" for value in compute(name, o._replace(x=spoiled), basis, derivative)]
        hit = [torch.zeros_like(value, dtype=torch.bool) for value in clean]
        hit[0][6] = True  # F[n, :]
        hit[1][:, 2] = True  # G[:, i, :]
        if base != "none":
            hit[2][2] = True  # the base function's part of G, [i, :]
        hit[-1][6, 2] = True  # H[n, i]
        for before, after, lost in zip(clean, got, hit, strict=True):
            assert torch.equal(after.isnan(), lost)
            torch.testing.assert_close(after[~lost], before[~lost], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operand", ["v", "g"])
@pytest.mark.parametrize(
    ("way", "kind", "derivative", "base"),
    [
        *((*place, base) for place in places(0, 1, 3, kinds=KINDS) for base in BASES),
        *by_triton(("shared", 0, "silu"), ("adapted", 0, "none"), ("shared", 1, "none"), ("adapted", 1, "silu")),
    ],
)
def test_an_infinite_operand_leaves_no_sum_that_it_enters_finite(
    way: str, kind: str, derivative: int, base: str, operand: str
) -> None:
    """A sum may be NaN instead of infinite, since many of the features are 0."""
    o, basis = case(kind, base)
    infinite = getattr(o, operand).clone()
    infinite[6, 2] = torch.inf
    with forced(way):
        clean = [value for name in "FGH" for value in compute(name, o, basis, derivative)]
        changed = o._replace(**{operand: infinite})
        got = [value for name in "FGH" for value in compute(name, changed, basis, derivative)]
    hit = [torch.zeros_like(value, dtype=torch.bool) for value in clean]
    for part in hit[1:-1]:
        part[..., 2, :] |= operand == "v"  # G[:, i, :]
        part[..., 2] |= operand == "g"  # G[:, :, o]
    hit[0][6] = operand == "v"  # F[n, :]
    hit[-1][6] = operand == "g"  # H[n, :]
    for before, after, lost in zip(clean, got, hit, strict=True):
        assert torch.equal(~after.isfinite(), lost)
        torch.testing.assert_close(after[~lost], before[~lost], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("way", "kind", "derivative"), [*places(0, 2, kinds=KINDS), *by_triton(*itertools.product(KINDS, (0, 2)))]
)
def test_nothing_but_nan_is_nothing_but_nan(way: str, kind: str, derivative: int) -> None:
    """A NaN must not become an index, however many of them there are."""
    o, basis = case(kind)
    with forced(way):
        for name in "FGH":
            for value in compute(name, o._replace(x=torch.full_like(o.x, torch.nan)), basis, derivative):
                assert value.isnan().all()


@pytest.mark.parametrize(
    ("way", "kind", "derivative", "base"),
    [*((*place, base) for place in places(*range(5), kinds=KINDS) for base in BASES), *BY_TRITON],
)
def test_at_infinities_only_the_base_function_is_left(way: str, kind: str, derivative: int, base: str) -> None:
    o, basis = with_infinities(kind, base)
    check(o, basis, derivative, way)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("way", [*WAYS, "torch.func"])
def test_gradients_at_infinities_are_their_limits(way: str, base: str) -> None:
    """The same holds for the table's rules and for PyTorch's own where a way is composite."""
    o, basis = with_infinities("shared", base)
    o = o._replace(v=None)
    if way == "torch.func":

        def slope(x: torch.Tensor) -> torch.Tensor:
            return torch.func.vjp(lambda x: compute("F", o._replace(x=x), basis)[0], x)[1](o.g)[0]

        by_x, curved = slope(o.x), torch.func.grad(lambda x: slope(x).sum())(o.x)
    else:
        with forced(way):
            x = o.x.clone().requires_grad_()
            # the sum itself is infinite: its gradient is asked for, not its value
            (by_x,) = torch.autograd.grad(compute("F", o._replace(x=x), basis)[0], x, o.g, create_graph=True)
            (curved,) = torch.autograd.grad(by_x.sum(), x)
    for value, derivative in ((by_x, 1), (curved, 2)):
        (exact,) = oracle.exact("H", o, basis, derivative)
        assert_within(value, exact, 1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("size", [1e4, 1e18, 3e38])
@pytest.mark.parametrize(
    ("way", "kind", "derivative"), [*places(0, 1, kinds=KINDS), *by_triton(*((kind, 1) for kind in KINDS))]
)
def test_far_outside_the_grid_nothing_overflows(way: str, kind: str, derivative: int, size: float) -> None:
    o, basis = make_case(kind, rows=9, inputs=2, outputs=3, base="none", dtype=torch.float32)
    x = torch.where(torch.rand_like(o.x) < 0.5, size, -size)
    with forced(way):
        for name in "FGH":
            for value in compute(name, o._replace(x=x), basis, derivative):
                assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 1, 2, kinds=KINDS))
def test_half_precision_is_computed_in_float32_and_rounded_once(
    way: str, kind: str, dtype: torch.dtype, derivative: int
) -> None:
    o, basis = make_case(kind, rows=30, inputs=3, outputs=4, dtype=torch.float32)
    o = Example(*(t if t is o.knots else t.to(dtype) for t in o))  # knots stay float32
    with forced(way):
        assert_in_budget(o, basis, derivative, way)


@pytest.mark.parametrize("product", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("way", "kind", "derivative"), [place for place in places(0, 2, kinds=KINDS) if place[0] != "piecewise"]
)
def test_a_product_dtype_rounds_features_and_weights_and_nothing_else(
    way: str, kind: str, derivative: int, product: torch.dtype
) -> None:
    """Each of them by half an ulp; x, v, g and the sums stay float32. (The piecewise way has no rounding.)"""
    o, basis = make_case(kind, rows=30, inputs=3, outputs=4, grid=64, dtype=torch.float32)
    rounded = basis._replace(matmul_dtype=product)
    with forced(way):
        assert_in_budget(o, rounded, derivative, way, 2.1 * torch.finfo(product).eps / 2)
        for name in "FGH":
            values, unrounded = compute(name, o, rounded, derivative), compute(name, o, basis, derivative)
            # float16 has no range for derivatives where cells differ in width: there G, without weights, is exact
            kept = name == "G" and product == torch.float16 and derivative > 0 and not basis.uniform
            assert torch.equal(values[0], unrounded[0]) == kept


@pytest.mark.parametrize("grid_eps", [0.001, 0.02])
def test_float16_products_have_finite_derivatives_on_adapted_knots(grid_eps: float) -> None:
    """Cells there are ten thousand times narrower than the mean one."""
    layer = KANLinear(1, 1, 20)
    samples = torch.cat([torch.rand(3000, 1) * 1e-4, torch.rand(300, 1)])
    layer.update_grid(samples, grid_eps=grid_eps)
    value = samples[::50].clone().requires_grad_()
    x = value
    with torch.autocast("cpu", torch.float16):
        value = layer(x)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("way", CPU_WAYS)
def test_on_the_last_knot_of_all_splines_are_exactly_0(way: str, dtype: torch.dtype) -> None:
    """The same holds on uniform knots, whose cells are counted."""
    ranges = [(-1e-3, 2e-3), (0.1, 0.7), (-3e5, 1e5)]
    for (low, high), grid, order in itertools.product(ranges, [3, 64, 300], [2, 3, 5]):
        knots = torch.cat([uniform_knots(1, grid, order, (low, high + i * (high - low)), dtype=dtype) for i in (0, 1)])
        for own in (knots, knots[:1].repeat(2, 1)):
            basis = basis_of(own, order, "none")
            assert basis.uniform
            weight, g = torch.randn(grid + order, 2, 3, dtype=dtype), torch.randn(1, 3, dtype=dtype)
            o = Example(own[:, -1:].t(), own, None, weight, None, g)
            for derivative in range(order + 1):
                with forced(way):
                    assert not any(value.any() for name in "FGH" for value in compute(name, o, basis, derivative))


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=WITH_TRITON) for way in TRITON_WAYS)])
def test_derivatives_of_silu_far_out_are_not_lost_beside_1(way: str) -> None:
    """They are even and odd functions: at 30 as large as at -30, and not 0."""
    o, basis = make_case(rows=6, inputs=1, outputs=1)
    x = torch.tensor([[-60.0], [-40.0], [-20.0], [20.0], [40.0], [60.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    o = Example(x, o.knots, None, torch.zeros_like(o.weight), one, one.expand(6, 1).contiguous())
    for derivative in (2, 3, 4):
        with forced(way):
            (tail,) = compute("H", o, basis, derivative)
        sign = -1 if derivative == 3 else 1
        torch.testing.assert_close(tail[3:], sign * tail[:3].flip(0), rtol=1e-12, atol=0)
        exact = oracle.silu(x[:3].numpy(), derivative)
        np.testing.assert_allclose(tail[:3].numpy(), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("base", ["silu", "gelu", "identity"])
@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=ON_CPU) for way in TRITON_WAYS)])
def test_what_float16_has_no_range_for_is_infinite_under_autocast(way: str, base: str) -> None:
    """The same elements are infinite as those of a Linear."""
    layer = KANLinear(2, 3, 4, base=base, grid_range=(-1e6, 1e6))
    x = torch.tensor([[0.3, 7e4], [1e30, -0.5], [6.5e4, 1.0]], requires_grad=True)
    with forced(way), torch.autocast("cpu", torch.float16):
        y = layer(x)
    by_x, by_base, by_spline = torch.autograd.grad(y, (x, layer.base_weight, layer.spline_weight), torch.ones_like(y))
    assert y.isinf().all(1).tolist() == [True, True, False]
    assert y[2].isfinite().all()
    assert by_base.isinf().all()
    assert by_x.isfinite().all()
    assert by_spline.isfinite().all()


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, torch.int32), (torch.float64, torch.int64)], ids=str)
def test_the_predecessor_is_the_next_number_below(dtype: torch.dtype, bits: torch.dtype) -> None:
    limits = torch.iinfo(bits)
    x = torch.randint(limits.min, limits.max, (100_000,), dtype=bits).view(dtype)
    powers = 2.0 ** torch.arange(-100, 100, dtype=dtype)
    ordinary = x.isfinite() & (x.abs() > 16 * torch.finfo(dtype).tiny)
    x = torch.cat([x[ordinary], powers, -powers, torch.zeros(1, dtype=dtype)])
    assert torch.equal(predecessor(x), torch.nextafter(x, torch.full_like(x, -torch.inf)))


def test_a_layer_linear_outside_exports_without_nextafter() -> None:
    """ONNX has no such operation."""
    layer, x = KANLinear(2, 3, outside="linear", dtype=torch.float64), 3 * torch.randn(20, 2, dtype=torch.float64)
    program = torch.export.export(layer, (x,)).run_decompositions()
    assert "nextafter" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-12, atol=1e-12)
