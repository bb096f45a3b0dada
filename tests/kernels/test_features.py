"""psi^(d): the splines against scipy, the base functions against mpmath, and the ends of both."""

from __future__ import annotations

import mpmath
import numpy as np
import oracle
import pytest
import torch
from cases import DEVICE, KNOTS, WITH_TRITON, assert_within, inside_cells, make_case, make_inputs, make_knots
from hypothesis import given
from hypothesis import strategies as st
from oracle import Example

from fastkan_kernels import Basis
from fastkan_kernels.backends.registry import BACKENDS
from fastkan_kernels.bspline.cox_de_boor import base_function, features, splines

ORDERS = range(1, 6)
CASES = [(k, d) for k in ORDERS for d in range(k + 2)]
EPS = float(np.finfo(np.float64).eps)


def assert_splines(x: torch.Tensor, knots: torch.Tensor, order: int, derivative: int) -> None:
    """Within 5 roundings a degree of scipy, each of the size of what was added up."""
    points, t = x.numpy(), knots.numpy()
    exact = oracle.splines(points, t, order, derivative)
    sizes = oracle.magnitudes(np.nan_to_num(points, posinf=1e300, neginf=-1e300), t, order, derivative)
    assert_within(splines(x, knots, order, derivative), exact, (5 * order + derivative + 4) * EPS * sizes)


@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize(("order", "derivative"), CASES, ids=str)
def test_the_oracles_recursion_is_scipys_and_can_be_differentiated(kind: str, order: int, derivative: int) -> None:
    knots = make_knots(kind, inputs=3, grid=7, order=order)
    x = make_inputs(60, knots)
    x[5, 1], x[6, 2], x[7, 0] = torch.nan, torch.inf, -torch.inf
    exact = [oracle.splines(x.numpy(), knots.numpy(), order, derivative + more) for more in (0, 1)]
    sizes = oracle.magnitudes(np.nan_to_num(x.numpy()), knots.numpy(), order, derivative)
    x.requires_grad_()
    psi = oracle.recursion(x, knots, order, derivative)
    np.testing.assert_array_equal(oracle.recursion(x.detach().numpy(), knots.numpy(), order, derivative), psi.detach())
    assert_within(psi, exact[0], (5 * order + derivative + 4) * EPS * sizes)
    inside = x.isfinite().unsqueeze(1) & torch.from_numpy(np.isfinite(exact[1]))
    slope = torch.stack([torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in psi.unbind(1)], 1)
    largest = np.abs(exact[1][inside]).max()
    np.testing.assert_allclose(slope[inside], exact[1][inside], rtol=0, atol=1e-11 * largest + 1e-12)


@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize("v", [False, True])
def test_the_oracle_gives_sizes_and_works_in_blocks(name: str, v: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    o, basis = make_case("adapted", rows=37, v=v)
    sizes = Example(*(None if t is None else np.abs(t) for t in o.array()))
    x, knots = o.x.numpy(), o.knots.numpy()
    psi, base = np.abs(oracle.splines(x, knots, 3, 1)), np.abs(oracle.silu(x, 1))
    monkeypatch.setattr(oracle, "BLOCK_ELEMENTS", 100)
    values, summed = oracle.exact(name, o, basis, 1), oracle.contract(name, sizes, psi, base)
    ones = oracle.contract(name, sizes, np.ones_like(psi), np.ones_like(base))
    for part, *numbers in zip(oracle.exact_with_sizes(name, o, basis, 1), values, summed, ones, strict=True):
        for found, exact in zip(part, numbers, strict=True):
            np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12 * np.abs(numbers[1]).max())


@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize(("order", "derivative"), CASES, ids=str)
def test_splines_are_those_of_scipy_on_knots_beside_them_outside_and_at_nan(
    kind: str, order: int, derivative: int
) -> None:
    """On a knot, scipy's splines are those of the cell on its right; from the last knot on, the bound is exactly 0."""
    knots = make_knots(kind, inputs=3, grid=7, order=order)
    beside = [knots.t().nextafter(torch.tensor(end, dtype=torch.float64)) for end in (-torch.inf, torch.inf)]
    far = torch.tensor([1e30, -1e30, torch.inf, -torch.inf], dtype=torch.float64).unsqueeze(1).expand(-1, 3)
    x = torch.cat([make_inputs(60, knots), knots.t(), *beside, far])
    x[5, 1] = torch.nan
    assert_splines(x, knots, order, derivative)


@given(data=st.data(), order=st.integers(1, 5))
def test_splines_are_those_of_scipy_on_any_knots(data: st.DataObject, order: int) -> None:
    """Knots from a few values, so that many coincide; inputs from the same, so that most are on knots."""
    places = st.integers(0, 9)
    row = st.lists(places, min_size=2 * order + 2, max_size=2 * order + 8).map(sorted)
    t = data.draw(row.filter(lambda r: r[0] < r[-1]))
    x = data.draw(st.lists(places | st.floats(-1, 10, width=16), min_size=1, max_size=12))
    derivative = data.draw(st.integers(0, order + 1))
    assert_splines(
        torch.tensor(x, dtype=torch.float64).unsqueeze(1),
        torch.tensor([t], dtype=torch.float64),
        order,
        derivative,
    )


@pytest.mark.parametrize("derivative", [0, 1])
@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize("order", ORDERS)
def test_pytorch_differentiates_splines_by_inputs_and_knots(order: int, kind: str, derivative: int) -> None:
    """Repeated knots too: moved by a little they stay as they are or become a very narrow cell, which
    no finite difference can take, so there only the knots that stand alone are moved."""
    knots = make_knots(kind, inputs=2, grid=4, order=order)
    x = inside_cells(5, knots, order).requires_grad_()
    alone = torch.ones_like(knots, dtype=torch.bool)
    same = knots.diff(dim=1) == 0
    alone[:, 1:] &= ~same
    alone[:, :-1] &= ~same
    free = knots[alone].requires_grad_()

    def by(x: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        return splines(x, knots.masked_scatter(alone, free), order, derivative)

    assert torch.autograd.gradcheck(by, (x, free))


@pytest.mark.parametrize("order", ORDERS)
def test_a_cell_of_no_width_has_finite_gradients(order: int) -> None:
    """0/0 counts as 0 in the gradient as well; a masked division would give NaN."""
    knots = make_knots("repeated", inputs=2, grid=6, order=order).requires_grad_()
    x = make_inputs(30, knots.detach()).requires_grad_()
    by_x, by_knots = torch.autograd.grad(splines(x, knots, order).square().sum(), (x, knots))
    assert by_x.isfinite().all()
    assert by_knots.isfinite().all()


@pytest.mark.parametrize("order", ORDERS)
def test_pytorch_and_the_written_derivative_agree_on_every_knot(order: int) -> None:
    """PINN grids sit on knots, where a closed form by abs or max would be differentiated wrongly."""
    knots = make_knots("shared", inputs=1, grid=5, order=order)
    x = knots.t().contiguous().requires_grad_()
    weight = torch.randn(5 + order, 1, dtype=torch.float64)
    value = (splines(x, knots, order) * weight).sum(1)
    for derivative in range(1, order + 1):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        written = (splines(x, knots, order, derivative) * weight).sum(1)
        torch.testing.assert_close(value, written, rtol=1e-11, atol=1e-12 * float(written.detach().abs().max()))


# -- base functions ---------------------------------------------------------------------------------

POINTS = [-700.0, -40.0, -5.5, -1.0, -1e-8, 0.0, 1e-8, 0.3, 1.2, 2.4, 5.5, 20.0, 36.9, 700.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("derivative", range(5))
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_base_functions_and_their_derivatives_are_those_of_mpmath(
    name: str, derivative: int, dtype: torch.dtype
) -> None:
    x = torch.tensor(POINTS, dtype=dtype)
    function = {"silu": lambda z: z / (1 + mpmath.exp(-z)), "gelu": lambda z: z * mpmath.ncdf(z)}[name]
    with mpmath.workdps(400):  # the derivatives of gelu have nearly 300 zeros behind the point at 36.9
        exact = np.array([float(mpmath.diff(function, mpmath.mpf(p), derivative)) for p in x.tolist()])
    sizes = oracle._base_magnitude(x.double().numpy(), name, derivative)
    # 8 roundings; at -700 float32's logistic is 0, and what that loses is below the smallest normal
    bound = 8 * torch.finfo(dtype).eps * sizes + 1e3 * torch.finfo(dtype).tiny
    assert_within(base_function(x, name, derivative), exact, bound)
    np.testing.assert_allclose(
        oracle.base_function(x.double().numpy(), name, derivative), exact, rtol=1e-13, atol=1e-18
    )


LIMITS = {
    "silu": [(0.0, torch.inf), (0.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)],
    "gelu": [(0.0, torch.inf), (0.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)],
    "identity": [(-torch.inf, torch.inf), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)],
}


@pytest.mark.parametrize(("name", "derivative"), [(name, d) for name, of in LIMITS.items() for d in range(len(of))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_base_functions_take_their_limits(name: str, derivative: int, dtype: torch.dtype) -> None:
    huge = torch.finfo(dtype).max
    x = torch.tensor([-torch.inf, torch.inf, -huge, huge, torch.nan], dtype=dtype)
    value = base_function(x, name, derivative)
    assert tuple(value[:2].tolist()) == LIMITS[name][derivative]
    assert value.isnan().tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("derivative", range(4))
@pytest.mark.parametrize("name", ["silu", "gelu", "identity"])
def test_pytorch_differentiates_base_functions(name: str, derivative: int) -> None:
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(base_function(x, name, derivative).sum(), x, allow_unused=True)
    slope = torch.zeros_like(x) if slope is None else slope
    torch.testing.assert_close(slope, base_function(x.detach(), name, derivative + 1), rtol=1e-12, atol=1e-13)


def test_base_functions_and_derivatives_that_do_not_exist_are_named() -> None:
    for name, derivative, message in (
        ("silu", 5, r"derivative must be at most 4 for base='silu', got 5; use base='identity'"),
        ("gelu", 5, r"derivative must be at most 4 for base='gelu', got 5"),
        ("relu", 0, r"base must be one of .*silu.*got 'relu'"),
    ):
        with pytest.raises(ValueError, match=message):
            base_function(torch.zeros(1), name, derivative)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_features_of_half_inputs_are_made_in_float32(dtype: torch.dtype) -> None:
    knots = make_knots("shared", inputs=2, grid=80, order=3, dtype=torch.float32)
    x = make_inputs(50, knots).to(dtype)
    psi, base = features(x, knots, Basis(3), derivative=3)
    assert psi.dtype == base.dtype == torch.float32
    exact = oracle.splines(x.double().numpy(), knots.double().numpy(), 3, 3)
    assert np.abs(exact).max() > 65504  # what float16 could not hold
    bound = 24 * np.finfo(np.float32).eps * oracle.magnitudes(x.double().numpy(), knots.double().numpy(), 3, 3)
    assert_within(psi, exact, bound)


@pytest.mark.parametrize("derivative", range(4))
@pytest.mark.parametrize("grid", [5, 56, 300])
def test_features_are_rounded_in_units_of_a_cell(grid: int, derivative: int) -> None:
    """h^-d is applied after the rounding: psi''' of a fine grid would overflow float16."""
    knots = make_knots("shared", inputs=1, grid=grid, order=3, dtype=torch.float32)
    x = make_inputs(200, knots)
    psi, _ = features(x, knots, Basis(3, "none", True, matmul_dtype=torch.float16), derivative)
    unrounded, _ = features(x, knots, Basis(3, "none"), derivative)
    assert psi.isfinite().all()
    h = float(knots[0, 1] - knots[0, 0])
    # half an ulp of float16, 2^-11 of the value or 2^-25 of a cell's units; and float32's own
    allowed = (2**-11 + 1e-6) * unrounded.abs() + (2**-25 / h**derivative) * 1.01
    assert ((psi - unrounded).abs() <= allowed).all()
    assert derivative == 3 or not torch.equal(psi, unrounded)


@pytest.mark.parametrize(
    ("kind", "derivative"),
    [*(("shared", d) for d in range(5)), ("uniform", 1), ("adapted", 0), ("adapted", 3), ("repeated", 2)],
)
@pytest.mark.parametrize("name", ["cpu", pytest.param("triton", marks=WITH_TRITON)])
def test_a_backend_makes_the_same_features(name: str, kind: str, derivative: int) -> None:
    entry = BACKENDS[name]
    assert entry.features is not None
    device = "cpu" if name == "cpu" else DEVICE
    for grid, dtype in ((5, torch.float64), (20, torch.float64), (5, torch.bfloat16)):
        o, basis = make_case(kind, rows=37, grid=grid)
        x, knots = o.x.to(device, dtype), o.knots.to(device, torch.promote_types(dtype, torch.float32))
        found = entry.features(x, knots, basis, derivative)
        want, _ = features(x.double(), knots.double(), basis._replace(base="none"), derivative)
        assert found.dtype == knots.dtype
        close = 1e-10 if dtype == torch.float64 else 1e-3  # of uniform knots' own rounding, where cells are counted
        torch.testing.assert_close(found.double(), want, rtol=0, atol=close * max(1.0, float(want.abs().max())))
