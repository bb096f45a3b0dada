"""F, G and H against the float64 oracle: every order, derivative, kind of knots, size and way."""

from __future__ import annotations

import itertools
import warnings

import oracle
import pytest
import torch
from cases import (
    FILLINGS,
    KNOTS,
    WAYS,
    Example,
    assert_in_budget,
    by_triton,
    check,
    compute,
    described,
    forced,
    make_case,
    places,
    serves,
    small_blocks,
)
from hypothesis import given
from hypothesis import strategies as st

from fastkan_kernels.backends.registry import BACKENDS

DTYPES = {"float64": torch.float64, "float32": torch.float32}
ALL = [case for case in itertools.product(WAYS, KNOTS, range(1, 6), range(5)) if serves(*case)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("way", "kind", "order", "derivative"), ALL, ids=str)
def test_all_orders_and_derivatives(way: str, kind: str, order: int, derivative: int, dtype: torch.dtype) -> None:
    o, basis = make_case(kind, order=order, dtype=dtype)
    check(o, basis, derivative, way)


# Each size for each of N, I and O, next to sizes on either side of it
SIZES = [
    (1, 1, 1), (1, 5, 7), (1, 33, 257), (5, 1, 33), (5, 7, 1), (5, 257, 5), (7, 5, 257), (7, 33, 1), (7, 7, 7),
    (33, 1, 5), (33, 7, 33), (33, 257, 1), (257, 1, 7), (257, 5, 1), (257, 33, 5), (257, 7, 257),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 1, kinds=("shared", "adapted")))
def test_all_sizes(way: str, kind: str, derivative: int, sizes: tuple[int, int, int]) -> None:
    check(*make_case(kind, *sizes, dtype=torch.float32), derivative, way)


@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize("sizes", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_size_of_zero(way: str, sizes: tuple[int, int, int], base: str) -> None:
    """Sums over nothing are exactly 0, as is their budget, and results of no size have the right shape."""
    o, basis = make_case("shared", *sizes, base=base)
    with forced(way):
        assert_in_budget(o, basis, 0, way)


@pytest.mark.parametrize("grid", [1, 2, 3, 16, 31, 100])
@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 2, kinds=("shared", "repeated")))
def test_all_grids(way: str, kind: str, derivative: int, grid: int) -> None:
    check(*make_case(kind, grid=grid, dtype=torch.float32), derivative, way)


@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "none"])
@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 1, 4, 6, kinds=("shared",), order=5))
def test_every_base_function(way: str, kind: str, derivative: int, base: str) -> None:
    """Above the splines' order their base goes on; silu and gelu have no sixth derivative (see test_errors.py)."""
    if base in ("silu", "gelu") and derivative == 6:
        base = "none"
    check(*make_case(kind, base=base, order=5), derivative, way)


@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize("way", ["reference", "recursive"])
def test_above_the_order_the_splines_are_exactly_0(way: str, name: str) -> None:
    o, basis = make_case(base="none", order=2)
    with forced(way):
        (value,) = compute(name, o, basis, derivative=3)
    assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize(("way", "kind", "derivative"), places(1, kinds=("shared", "repeated")))
def test_no_multiplier_is_a_multiplier_of_1(way: str, kind: str, derivative: int) -> None:
    o, basis = make_case(kind, v=False)
    check(o, basis, derivative, way, names="FG")
    ones = o._replace(v=torch.ones_like(o.x))
    with forced(way):
        for name in "FG":
            for plain, times_1 in zip(compute(name, o, basis), compute(name, ones, basis), strict=True):
                torch.testing.assert_close(plain, times_1, rtol=1e-13, atol=1e-13)


# -- ways -------------------------------------------------------------------------------------------

WORDS = {"closed": "closed form", "scattered": "scatter", "recursive": "recursion", "banded": "banded"}
SEARCHED = list(itertools.product((5, 32, 64, 300), ((2, 5), (40, 3), (40, 200)), (9, 600)))
CHOSEN = [("closed", "uniform"), ("scattered", "adapted"), ("recursive", "adapted"), ("banded", "uniform"),
          ("banded", "repeated")]  # fmt: skip


@pytest.mark.parametrize(("way", "kind"), CHOSEN)
@pytest.mark.parametrize("name", "FGH")
def test_every_way_is_taken_by_itself_somewhere_and_is_right_there(
    name: str, way: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing forced: sizes at which the backend says that it takes this way, where contractions share nothing."""
    monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(at_rows=None))
    if name == "G" and way == "banded":
        pytest.skip("G has no banded way")
    for grid, (inputs, outputs), rows in SEARCHED:
        o, basis = make_case(kind, rows, inputs, outputs, grid, dtype=torch.float32)
        if WORDS[way] in described(name, o, basis):
            check(o, basis, 0, "auto", names=name)
            return
    pytest.fail(f"no size that was tried takes the {way} way")


@pytest.mark.parametrize("v", [True, False], ids=["v", "no-v"])
@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 2, kinds=("shared", "uniform", "adapted")))
def test_blocks_of_rows_and_of_splines_fit_together(way: str, kind: str, derivative: int, v: bool) -> None:
    o, basis = make_case(kind, rows=61, inputs=3, outputs=5, grid=9, v=v)
    with small_blocks():
        if way in FILLINGS:
            with forced(way):
                assert "dense" in described("F", o, basis)
                assert " 1 block " not in described("F", o, basis)
        check(o, basis, derivative, way)


# -- memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 1))
def test_memory_that_nobody_filled_is_not_read(way: str, kind: str, derivative: int) -> None:
    """PyTorch's deterministic mode fills fresh memory with NaN, so whatever reads it shows."""
    o, basis = make_case(kind, rows=61, inputs=3, outputs=5, grid=9)
    assert torch.utils.deterministic.fill_uninitialized_memory
    for blocks in (False, True):
        with forced(way), small_blocks() if blocks else forced(way):
            plain = [value for name in "FGH" for value in compute(name, o, basis, derivative)]
            torch.use_deterministic_algorithms(True)
            try:
                assert torch.empty(3).isnan().all(), "memory is not poisoned, so this shows nothing"
                poisoned = [value for name in "FGH" for value in compute(name, o, basis, derivative)]
            finally:
                torch.use_deterministic_algorithms(False)
        for value, other in zip(plain, poisoned, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize(
    ("way", "kind", "sizes"),
    [*((way, "shared", (300, 40, 30)) for way in WAYS), *by_triton(("adapted", (70, 7, 9)))],
    ids=str,
)
def test_the_same_call_gives_the_same_bits(way: str, kind: str, sizes: tuple[int, int, int], name: str) -> None:
    o, basis = make_case(kind, *sizes, grid=8, dtype=torch.float32)
    with forced(way):
        first = compute(name, o, basis)
        for _ in range(3 if way in WAYS else 1):
            assert all(torch.equal(a, b) for a, b in zip(first, compute(name, o, basis), strict=True))


@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize("way", WAYS)
def test_operands_are_left_as_they_are(way: str, name: str) -> None:
    o, basis = make_case("shared", base="identity")  # whose value is x itself
    before = [t.clone() for t in o]
    with forced(way):
        results = compute(name, o, basis)
    for result in results:
        result.zero_()
    assert all(torch.equal(t, b) for t, b in zip(o, before, strict=True))


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values, no two of them neighbours in memory."""
    wide = torch.full((*t.shape, 2), torch.nan, dtype=t.dtype)
    wide[..., 0] = t
    return wide.transpose(0, -2).contiguous().transpose(0, -2)[..., 0]


@pytest.mark.parametrize("layout", [strided, lambda t: t.mT.contiguous().mT], ids=["strided", "transposed"])
@pytest.mark.parametrize(("way", "kind", "derivative"), places(0, 1))
def test_inputs_need_not_be_contiguous(way: str, kind: str, derivative: int, layout) -> None:
    o, basis = make_case(kind, rows=37, inputs=5, outputs=7)
    odd = Example(*map(layout, o))
    assert not any(t.is_contiguous() for t in odd)
    check(odd, basis, derivative, way)


@pytest.mark.parametrize("way", ["banded", "scattered"])
def test_knots_that_are_not_contiguous_are_no_reason_to_warn(way: str) -> None:
    o, basis = make_case("adapted")
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(), forced(way):
            warnings.simplefilter("error")  # torch.searchsorted would say that it is slow
            compute("F", o._replace(knots=strided(o.knots)), basis)
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("way", WAYS)
def test_inputs_may_be_expanded(way: str) -> None:
    """One row of x, v and g for all n, one row of knots for all inputs."""
    o, basis = make_case("shared", rows=9)
    o = o._replace(
        x=o.x[3:4].expand(9, -1), v=o.v[:1].expand(9, -1), g=o.g[:1].expand(9, -1), knots=o.knots[:1].expand(3, -1)
    )
    check(o, basis, 1, way)


@pytest.mark.parametrize("sizes", [(11, 3, 5), (1, 2, 1), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize("way", WAYS)
def test_results_are_contiguous(way: str, name: str, base: str, sizes: tuple[int, int, int]) -> None:
    """Gradients are what comes out here: torch.optim.LBFGS views them flat, and torch.compile relies
    on the strides that an operator has promised."""
    o, basis = make_case("shared", *sizes, base=base)
    with forced(way):
        assert all(value.is_contiguous() for value in compute(name, o, basis))


# -- the trilinear form -----------------------------------------------------------------------------


@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    grid=st.integers(1, 40),
    order=st.integers(1, 5),
    derivative=st.integers(0, 5),
    kind=st.sampled_from(KNOTS),
    way=st.sampled_from(WAYS),
)
def test_f_g_and_h_are_one_number(rows, inputs, outputs, grid, order, derivative, kind, way) -> None:
    """<F(x, W, v), g> = <G(x, g, v), W> = <H(x, W, g), v> = T_d."""
    if not serves(way, kind, order, derivative):
        way = "recursive"
    o, basis = make_case(kind, rows, inputs, outputs, grid, order, base="identity")
    with forced(way):
        (y,), (splines, base), (h,) = (compute(name, o, basis, derivative) for name in "FGH")
    number = (h * o.v).sum()
    size = oracle.budget("F", o, basis, derivative, way, sums=True)[0] * o.g.abs().numpy()
    allowed = 2 * float(size.sum()) + 1e-13 * float((h * o.v).abs().sum())
    assert abs((y * o.g).sum() - number) <= allowed
    assert abs((splines * o.weight).sum() + (base * o.base_weight).sum() - number) <= allowed
