"""The Triton kernels against the float64 oracle, by every way they go: in the interpreter, or on a GPU.

The interpreter computes in float64 too, so what is wrong in a kernel can't hide in rounding.
"""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from cases import (
    DEVICE,
    TRITON_WAYS,
    WITH_TRITON,
    absolute_terms,
    assert_in_budget,
    assert_rounded,
    check,
    compute,
    forced,
    forced_triton,
    make_case,
)
from oracle import Example
from torch.utils._python_dispatch import TorchDispatchMode

import fastkan_kernels

pytestmark = WITH_TRITON

# orders, and of each the kinds of knots with their derivatives
ORDERS = {
    1: {"shared": (0, 2), "repeated": (0, 1)},
    2: {"uniform": (0, 1), "adapted": (1, 2)},
    3: {"shared": range(5), "repeated": range(5), "uniform": (1,), "adapted": (1,)},
    4: {"shared": (1, 2), "repeated": (0, 2)},
    5: {"uniform": range(5), "adapted": (0, 2, 4)},
}
ALL = [(w, kind, k, d) for w in TRITON_WAYS for k, kinds in ORDERS.items() for kind, ds in kinds.items() for d in ds]


@pytest.mark.parametrize(("way", "kind", "order", "derivative"), ALL, ids=str)
def test_all_orders_and_derivatives(way: str, kind: str, order: int, derivative: int) -> None:
    o, basis = make_case(kind, grid=4, order=order)
    check(o, basis, derivative, way)


@pytest.mark.parametrize(
    ("kind", "derivative"),
    [("shared", 0), ("shared", 2), ("uniform", 1), ("adapted", 0), ("repeated", 1), ("adapted", 2)],
)
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_in_single_precision(way: str, kind: str, derivative: int) -> None:
    o, basis = make_case(kind, dtype=torch.float32)
    check(o, basis, derivative, way)


# N, I and O: each with each at least once; tiles have 32 rows. Every way runs every size, the kinds of knots in turn.
SIZES = [
    (0, 5, 7), (0, 1, 1), (1, 1, 1), (1, 33, 5), (1, 7, 33), (1, 5, 7), (70, 1, 33), (40, 33, 1), (70, 7, 5),
    (70, 5, 1), (70, 1, 7), (40, 33, 7), (40, 7, 1), (40, 5, 33),
]  # fmt: skip
IN_TURN = [("shared", 0), ("adapted", 1)]
SIZED = [
    (way, *IN_TURN[(row + column) % 2], size)
    for row, way in enumerate(TRITON_WAYS)
    for column, size in enumerate(SIZES)
]


@pytest.mark.parametrize(("way", "kind", "derivative", "sizes"), SIZED, ids=str)
def test_all_sizes(way: str, kind: str, derivative: int, sizes: tuple[int, int, int]) -> None:
    o, basis = make_case(kind, *sizes, grid=2, dtype=torch.float32)
    if 0 in sizes:
        with forced(way):
            assert_in_budget(o, basis, 0, way)  # which is exactly 0
    else:
        check(o, basis, derivative, way)


@pytest.mark.parametrize(("kind", "grid"), [("uniform", 1), ("repeated", 1), ("repeated", 2), ("uniform", 20)])
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_all_grids(way: str, kind: str, grid: int) -> None:
    check(*make_case(kind, grid=grid), 1, way)


TILES = [
    {"rows": 32, "columns": 16, "inner": 16, "splines": 1},
    {"rows": 16, "columns": 32, "inner": 16, "splines": 4},
    {"rows": 16, "columns": 16, "inner": 32, "splines": 8},
]


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize(
    ("tiles", "kind", "base"),
    [
        (TILES[0], "shared", "silu"),
        (TILES[1], "repeated", "none"),
        (TILES[2], "shared", "none"),
        (TILES[2], "repeated", "silu"),
    ],
    ids=str,
)
def test_tiles_and_loads(kind: str, base: str, tiles: dict[str, int], descriptors: bool) -> None:
    """Tiles that the sizes fill, and don't; bits may differ from tile to tile, numbers not."""
    o, basis = make_case(kind, rows=50, inputs=21, outputs=20, base=base)
    with forced_triton("fused", descriptors, **tiles):
        assert_in_budget(o, basis, 1, "fused")


@pytest.mark.parametrize("way", ["fused", "gather", "chunked"])
@pytest.mark.parametrize("derivative", range(5))
def test_gelu_and_its_derivatives(way: str, derivative: int) -> None:
    o, basis = make_case("shared", rows=20, inputs=3, outputs=5, order=2, base="gelu")
    with forced(way):
        assert_in_budget(o, basis, derivative, way)


def test_what_no_descriptor_can_address_goes_by_pointers() -> None:
    from fastkan_kernels.backends.triton.key import key
    from fastkan_kernels.backends.triton.problem import problem
    from fastkan_kernels.backends.triton.rules import default
    from fastkan_kernels.trilinear import Operands

    for outputs, aligned in ((8, True), (7, False)):
        o, basis = make_case(outputs=outputs, dtype=torch.float32)
        p = problem("F", o.x, o.knots, Operands(o.v, o.weight, o.base_weight), basis, 0, capability=90)
        assert key(p).aligned == aligned
        assert default(key(p), 90).descriptors == aligned
    shifted = torch.empty(o.weight.numel() + 1)[1:].view_as(o.weight).copy_(o.weight)
    p = problem("F", o.x, o.knots, Operands(o.v, shifted, o.base_weight), basis, 0, capability=90)
    assert not key(p).aligned


@pytest.mark.parametrize("way", TRITON_WAYS)
def test_strided_transposed_and_negated_views_are_read_as_what_they_are(way: str) -> None:
    o, basis = make_case(rows=40, inputs=6)
    wide = torch.full((40, 17), torch.nan, dtype=o.x.dtype)
    wide[:, 2:8] = o.x
    views = [o._replace(x=x, v=x * 0 + o.v) for x in (wide[:, 2:8], o.x.t().contiguous().t())]
    one, _ = make_case(rows=40, inputs=1)
    with forced(way):
        for name in "FGH":
            for plain, given in (*((o, view) for view in views), (one, negated(one))):
                for value, same in zip(compute(name, given, basis), compute(name, plain, basis), strict=True):
                    assert torch.equal(value, same)


def negated(o: Example) -> Example:
    return Example(*(t if t is o.knots else torch._neg_view(-t) for t in o))


# -- range and views ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-10, 1e10])
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_powers_of_the_cells_width_overflow_only_where_the_result_does(way: str, size: float) -> None:
    o, basis = make_case(order=5, dtype=torch.float32)
    o = o._replace(knots=o.knots * size, x=o.x * size)
    with forced(way):
        for name in "FGH":
            truth = oracle.exact(name, o, basis, 4)
            for value, exact in zip(compute(name, o, basis, 4), truth, strict=True):
                ordinary = np.abs(exact) < 1e37
                assert value.numpy()[ordinary].astype(np.float64) == pytest.approx(exact[ordinary], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("way", TRITON_WAYS)
def test_a_fifth_derivative_of_silu_is_refused(way: str) -> None:
    for order in (5, 3):
        o, basis = make_case(order=order)
        for name in "FGH":
            with forced(way), pytest.raises(ValueError, match="derivative must be at most 4 for base='silu', got 5"):
                compute(name, o, basis, 5)


# -- half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "derivative", "dtype"),
    [("shared", 0, torch.float16), ("shared", 0, torch.bfloat16), ("uniform", 2, torch.bfloat16),
     ("adapted", 0, torch.bfloat16), ("adapted", 1, torch.float16)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_half_layers(way: str, kind: str, derivative: int, dtype: torch.dtype) -> None:
    o, basis = make_case(kind, rows=30, grid=20, dtype=torch.float32)
    assert_rounded(Example(*(t if t is o.knots else t.to(dtype) for t in o)), basis, derivative, way, dtype)


@pytest.mark.parametrize(
    ("kind", "derivative", "dtype"),
    [("shared", 0, torch.bfloat16), ("shared", 2, torch.float16), ("adapted", 0, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_autocast_keeps_x(way: str, kind: str, derivative: int, dtype: torch.dtype) -> None:
    """At 64 cells a rounded x would be off by a tenth of a cell."""
    o, basis = make_case(kind, rows=30, inputs=2, grid=64, dtype=torch.float32)
    assert_rounded(o, basis._replace(matmul_dtype=dtype), derivative, way, dtype)


@pytest.mark.parametrize("way", TRITON_WAYS)
def test_derivatives_do_not_overflow_float16(way: str) -> None:
    """The third derivative on 100 cells is above 65504, in units of a cell at most 3."""
    o, basis = make_case("shared", 10, 1, 2, grid=100, order=4, dtype=torch.float32, base="none")
    assert np.abs(oracle.splines(o.x.double().numpy(), o.knots.double().numpy(), 4, 3)).max() > 65504
    o = o._replace(weight=o.weight * 1e-4)
    with forced(way):
        for name in "FGH":
            for value in compute(name, o, basis._replace(matmul_dtype=torch.float16), 3):
                assert value.isfinite().all()


@pytest.mark.parametrize("product", [None, torch.float16], ids=["half", "autocast"])
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_inputs_of_very_different_cells_in_float16(way: str, narrow: int, product: torch.dtype | None) -> None:
    """No unit fits their second derivatives, which are a million times apart, into float16's range."""
    ranges = [(-1.0, 1.0), (-1.0, 1.0)]
    ranges[narrow] = (-1e-3, 1e-3)
    knots = torch.cat([fastkan_kernels.uniform_knots(1, 6, 3, r) for r in ranges])
    o, basis = make_case("uniform", rows=20, inputs=2, dtype=torch.float32)
    o = o._replace(knots=knots, x=torch.rand(20, 2) * torch.tensor([r[1] for r in ranges]))
    if product is None:
        o = Example(*(t if t is knots else t.to(torch.float16) for t in o))
        o = o._replace(weight=o.weight * 2.0**-10, g=o.g * 2.0**-12)  # the results fit
    assert_rounded(o, basis._replace(matmul_dtype=product), 2, way, torch.float16)


@pytest.mark.parametrize("way", TRITON_WAYS)
def test_autocast_to_float16_loses_no_small_gradient(way: str) -> None:
    """float16 can represent neither 1e-9 nor a v of a million."""
    o, basis = make_case(rows=20, dtype=torch.float32)
    o = o._replace(g=o.g * 1e-9, v=o.v * 1e6)
    assert_rounded(o, basis._replace(matmul_dtype=torch.float16), 1, way, torch.float16)


@pytest.mark.parametrize("derivative", [0, 1, 4])  # 4 is above the spline order, where only the base function is left
@pytest.mark.parametrize("name", ["F", "G", "H"])
def test_products_by_pytorch_are_in_tf32_where_it_replaces_float16(name: str, derivative: int) -> None:
    """PyTorch's own setting is float32 here, for which a GPU has no tensor cores."""
    settings, found = torch.backends.cuda.matmul, []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
                found.append(settings.fp32_precision)
            return func(*args, **(kwargs or {}))

    o, basis = make_case(rows=20, dtype=torch.float32)
    before = settings.fp32_precision, torch.get_float32_matmul_precision()
    for matmul_dtype, precision in ((torch.float16, "tf32"), (None, before[0])):
        found.clear()
        with forced_triton("chunked"), Products():
            compute(name, o, basis._replace(matmul_dtype=matmul_dtype), derivative)
        assert found
        assert set(found) <= {precision}
        assert (settings.fp32_precision, torch.get_float32_matmul_precision()) == before


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no other precision")
@pytest.mark.parametrize("setting", ["highest", "high"])
def test_precision_of_float32_products(setting: str) -> None:
    before = torch.get_float32_matmul_precision()
    o, basis = make_case(rows=300, inputs=64, outputs=64, dtype=torch.float32)
    try:
        torch.set_float32_matmul_precision(setting)
        with forced_triton("fused", rows=64, columns=64, inner=32):
            (value,) = compute("F", o, basis)
    finally:
        torch.set_float32_matmul_precision(before)
    exact, size = oracle.exact("F", o, basis)[0], absolute_terms("F", o, basis, 0)[0]
    error = np.abs(value.double().numpy() - exact).max() / np.abs(size).max()
    assert (error < 1e-6) == (setting == "highest")


@pytest.mark.parametrize(("triton", "ptxas"), [("3.8.0", ""), ("3.9.0", "/other/ptxas"), ("3.9.0", "")], ids=str)
def test_only_hopper_waits_for_products(triton: str, ptxas: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkan_kernels.backends.triton import hardware

    monkeypatch.setattr("triton.__version__", triton)
    monkeypatch.setenv("TRITON_PTXAS_PATH", ptxas)
    found = {
        capability: hardware.needs_wgmma_wait.__wrapped__(capability) for capability in (80, 89, 90, 100, 103, 120)
    }
    hopper = triton < "3.9" or bool(ptxas)
    assert found == {80: False, 89: False, 90: hopper, 100: False, 103: False, 120: False}


@pytest.mark.parametrize(("name", "base"), [("split rows", "silu"), ("one part", "silu"), ("no base", "none")])
def test_one_launch_computes_both_results_of_g(name: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two results share no memory, which registered operators may not return."""
    from fastkan_kernels.backends.triton.launch import Launch

    launched, run = [], Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (launched.append(launch), run(launch)))
    o, basis = make_case(rows=50, base=base)
    with forced_triton("fused", inner=16 if name == "split rows" else 64):
        results = compute("G", o, basis)
    (launch,) = launched
    assert launch.grid[1] == (4 if name == "split rows" else 1)
    assert launch.grid[0] == basis.splines_of(o.knots) + len(results) - 1  # one tile each
    assert all(result.is_contiguous() for result in results)
    assert len({result.untyped_storage().data_ptr() for result in results}) == len(results)


COMPILED = """
import torch
from stub_driver import StubDriver
from triton.runtime import driver, jit

import fastkan_kernels
from fastkan_kernels.backends.triton import dispatch
from fastkan_kernels.backends.triton.config import WAYS
from fastkan_kernels.backends.triton.dispatch import Config, Operands, problem

found = set()
driver.set_active(StubDriver())
jit.JITFunction._do_compile = lambda kernel, key, *_: found.add((kernel.__name__, key))  # whose None is not launched
knots, weight, base_weight = torch.rand(16, 12), torch.rand(8, 16, 16), torch.rand(16, 16)
plain, pipelined = Config("fused", 16, 16, 16), Config("pipelined", 64, 16, 16, warps=4, stages=4, descriptors=True)
for rows in (256, 255, 17, 1):
    for dtype, configs in ((torch.float32, [plain._replace(way=way) for way in ("fused", "chunked", "gather")]),
                           (torch.bfloat16, [plain._replace(descriptors=True), pipelined])):
        x, g = torch.rand(rows, 16, dtype=dtype), torch.rand(rows, 16, dtype=dtype)
        w, base_w = weight.to(dtype), base_weight.to(dtype)
        basis = fastkan_kernels.Basis(3, "silu", True, (0.0, 1.0))
        for config in configs:
            for name, operands in (("F", Operands(x, w, base_w)), ("G", Operands(x, None, None, g)),
                                   ("H", Operands(None, w, base_w, g))):
                if name in WAYS[config.way]:
                    p = problem(name, x, knots, operands, basis, 0, 90)
                    dispatch.run(p, config)
    print(*sorted(name for name, _ in found))
"""


def test_a_shorter_batch_compiles_nothing() -> None:
    from stub_driver import run_compiling

    first, *rest = run_compiling(COMPILED).splitlines()
    assert len(first.split()) >= 12
    assert rest == [first] * 3


@pytest.mark.parametrize("derivative", [0, 1])
@pytest.mark.parametrize("way", ["fused", "chunked"])
def test_shared_knots_are_read_once(way: str, derivative: int) -> None:
    """Only the first input's knots are read, and the results have the same bits as with the knots of each input."""
    o, basis = make_case("shared", dtype=torch.float32)
    assert basis.uniform_grid is not None
    spoiled = o.knots.clone()
    spoiled[1:] = torch.nan
    with forced(way):
        for name in "FGH":
            each = compute(name, o, basis._replace(uniform_grid=None), derivative)
            shared = compute(name, o._replace(knots=spoiled), basis, derivative)
            assert all(map(torch.equal, shared, each))


def test_overlapping_rows_go_into_no_tensor_descriptor() -> None:
    from fastkan_kernels.backends.triton.launch import describable_rows

    long = torch.zeros(400)
    assert describable_rows(long.unfold(0, 8, 8))
    assert describable_rows(long.unfold(0, 8, 16))
    assert not describable_rows(long.unfold(0, 16, 8))
    assert not describable_rows(long[:16].expand(4, 16))
    assert describable_rows(long[:16].expand(1, 16))


def test_products_are_not_wider_than_the_features() -> None:
    from fastkan_kernels.backends.triton.problem import product_dtype

    basis = fastkan_kernels.Basis(3, matmul_dtype=torch.float64)
    for dtype, product in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        assert product_dtype("F", torch.ones(1, 1, dtype=dtype), basis, 0, False) == (product, False)
    assert product_dtype("F", torch.ones(1, 1).double(), basis, 0, False) == (torch.float64, False)


def test_a_description_depends_on_the_layout_of_x() -> None:
    """Copies by the hardware need rows whose distance is a multiple of 16 bytes."""
    basis = fastkan_kernels.Basis(3, "silu", True, (-1.0, 2.5))
    from fastkan_kernels.backends.triton import dispatch, hardware

    if not hardware.gluon_available():
        pytest.skip("there is no implementation that needs aligned rows")
    whole = torch.empty(8192, 256, dtype=torch.bfloat16, device="meta")
    part = torch.empty(8192, 257, dtype=torch.bfloat16, device="meta")[:, 1:]
    words = [dispatch.describe("F", x, 256, 8, basis, 0) for x in (whole, part)]
    assert words[0].startswith("pipelined")
    assert words[1].startswith("fused")
