"""The kernels with waits written by hand against the float64 oracle: on a Hopper GPU, else by the machine that makes
asynchrony as bad as it may be (:mod:`gluon_machine`)."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from cases import DEVICE, assert_rounded, compute, forced, forced_triton, gluon_by_the_machine, make_case, no_triton
from oracle import Example

from fastkan_kernels import Basis
from fastkan_kernels.backends.triton import hardware, hopper
from fastkan_kernels.trilinear import Operands

SERVED = no_triton() is None and hopper.gluon_available() and hardware.capability(torch.device(DEVICE)) // 10 == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SERVED, reason="there is neither a Hopper GPU nor Triton's interpreter"),
]

if SERVED:
    from gluon_machine import POLICIES, MachineError

    from fastkan_kernels.backends.triton import dispatch
    from fastkan_kernels.backends.triton.hopper import contract_out, contract_weight, pipeline
    from fastkan_kernels.backends.triton.problem import problem
    from fastkan_kernels.backends.triton.tuning.config import Config, shared_limit
    from fastkan_kernels.backends.triton.tuning.key import key
    from fastkan_kernels.backends.triton.tuning.rules import ways_of
else:
    POLICIES = ()


def make_half_case(
    kind: str = "shared",
    rows: int = 75,
    inputs: int = 24,
    outputs: int = 40,
    dtype: torch.dtype = torch.bfloat16,
    **more,
) -> tuple[Example, Basis]:
    """Sizes whose rows descriptors can address, and which no tile divides."""
    o, basis = make_case(kind, rows, inputs, outputs, dtype=torch.float32, **more)
    return Example(*(t if t is o.knots or t is None else t.to(dtype) for t in o)), basis


# order, kind and derivative: of the cardinal form below the order, else of the local one, to the third order
ORDERS = [
    (1, "shared", 0), (2, "uniform", 1), (3, "shared", 1), (4, "shared", 3), (5, "uniform", 0), (5, "shared", 2),
    (1, "shared", 1), (2, "repeated", 1), (3, "adapted", 0), (3, "adapted", 2), (3, "uniform", 3),
]  # fmt: skip


@pytest.mark.parametrize(("order", "kind", "derivative"), ORDERS, ids=str)
def test_orders_and_derivatives(order: int, kind: str, derivative: int) -> None:
    o, basis = make_half_case(kind, order=order)
    assert_rounded(o, basis, derivative, "pipelined", torch.bfloat16)


@pytest.mark.parametrize("base", ["silu", "identity", "none"])
@pytest.mark.parametrize("kind", ["shared", "adapted"])
def test_base_functions_in_float16_without_v(kind: str, base: str) -> None:
    o, basis = make_half_case(kind, dtype=torch.float16, base=base, v=False)
    assert_rounded(o, basis, 0, "pipelined", torch.float16)


# fewer rows or inputs than a tile; one step, and more steps than slots; the kinds of knots in turn
SIZES = [(1, 8, 8), (3, 8, 40), (64, 16, 16), (65, 24, 24), (130, 8, 72), (130, 8, 40), (210, 16, 8), (210, 40, 8)]


@pytest.mark.parametrize(
    ("sizes", "kind", "v"),
    [(sizes, *(("shared", False), ("adapted", True))[n % 2]) for n, sizes in enumerate(SIZES)],
    ids=str,
)
def test_all_sizes(kind: str, v: bool, sizes: tuple[int, int, int]) -> None:
    o, basis = make_half_case(kind, *sizes, v=v)
    assert_rounded(o, basis, 0, "pipelined", torch.bfloat16)


@pytest.mark.parametrize("kind", ["shared", "adapted"])
def test_autocast_keeps_x(kind: str) -> None:
    """At 20 cells a rounded x would be off by a tenth of one."""
    o, basis = make_half_case(kind, grid=20, dtype=torch.float32)
    assert_rounded(o, basis._replace(matmul_dtype=torch.bfloat16), 0, "pipelined", torch.bfloat16)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize(("kind", "derivative"), [("shared", 0), ("shared", 1), ("adapted", 0), ("adapted", 1)])
def test_nan_and_infinities(kind: str, derivative: int, base: str, value: float) -> None:
    o, basis = make_half_case(kind, base=base)
    o.x[5, 3] = o.x[70, 20] = value
    with forced("pipelined"):
        for name in "FG":
            for part, exact in zip(
                compute(name, o, basis, derivative), oracle.exact(name, o, basis, derivative), strict=True
            ):
                odd = ~np.isfinite(exact)
                np.testing.assert_array_equal(part.float().numpy()[odd], exact[odd])
                assert part.isfinite().sum() == (~odd).sum()


def test_rows_that_are_apart() -> None:
    o, basis = make_half_case()
    wide = torch.full((75, 48), torch.nan, dtype=o.x.dtype)
    wide[:, 8:32] = o.x
    with forced("pipelined"):
        for name in "FG":
            for value, same in zip(
                compute(name, o._replace(x=wide[:, 8:32]), basis), compute(name, o, basis), strict=True
            ):
                assert torch.equal(value, same)


@pytest.mark.parametrize("way", ["fused", "pipelined"])
def test_one_row_of_a_wider_matrix(way: str) -> None:
    """It counts as contiguous whatever its row's stride: that of a gradient that :func:`torch.cat` has cut, say."""
    o, basis = make_half_case(rows=1, inputs=8, outputs=8)
    wide = torch.zeros(1, 13, dtype=o.g.dtype)
    wide[:, :8] = o.g
    assert wide[:, :8].is_contiguous()
    with forced_triton(way, descriptors=True):
        for value, same in zip(compute("G", o._replace(g=wide[:, :8]), basis), compute("G", o, basis), strict=True):
            assert torch.equal(value, same)
        x = torch.zeros(1, 13, dtype=o.x.dtype)
        x[:, :8] = o.x
        for name in "FG":
            for value, same in zip(compute(name, o._replace(x=x[:, :8]), basis), compute(name, o, basis), strict=True):
                assert torch.equal(value, same)


def test_one_input_of_many() -> None:
    o, basis = make_half_case(rows=9, inputs=1, outputs=8, v=False)
    wide = torch.zeros(9, 1, 8, dtype=o.x.dtype)
    wide[:, :, 0] = o.x
    x = wide[:, :, 0]
    assert x.stride() == (8, 8)
    assert_rounded(o._replace(x=x), basis, 0, "pipelined", torch.bfloat16)


TILES = [
    {"rows": 128, "warps": 8, "columns": 32},
    {"inner": 32, "stages": 3},
    {"inner": 32, "columns": 64, "stages": 6},
]


@pytest.mark.parametrize("tiles", TILES, ids=lambda t: " ".join(f"{k}{v}" for k, v in t.items()))
def test_tiles(tiles: dict[str, int]) -> None:
    o, basis = make_half_case(rows=150)
    plain, other = (forced_triton("pipelined", **more) for more in ({}, tiles))
    with plain:
        want = [compute(name, o, basis) for name in "FG"]
    with other:
        found = [compute(name, o, basis) for name in "FG"]
    for parts, others in zip(found, want, strict=True):
        for part, same in zip(parts, others, strict=True):
            torch.testing.assert_close(part, same, rtol=0.02, atol=0.02 * float(same.abs().max()))


# -- asynchrony --------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has its own way")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["shared", "adapted"])
def test_nothing_depends_on_when_copies_and_products_end(kind: str, policy: str) -> None:
    o, basis = make_half_case(kind, rows=220, outputs=16)
    for derivative in (0, 1) if kind == "shared" else (0,):
        with forced("pipelined"):
            want = [compute(name, o, basis, derivative) for name in "FG"]
        for seed in range(3 if policy == "random" else 1):
            with forced("pipelined"), gluon_by_the_machine(policy=policy, seed=seed):
                found = [compute(name, o, basis, derivative) for name in "FG"]
            for parts, others in zip(found, want, strict=True):
                assert all(map(torch.equal, parts, others))


MUTANTS = {
    "F": [
        ("        await_tile(w_ready, step + 1, SLOTS)\n", ""),
        ("        barrier()\n", "        pass\n"),
        ("AHEAD: gl.constexpr = SLOTS - 2", "AHEAD: gl.constexpr = SLOTS - 1"),
        ("AHEAD: gl.constexpr = SLOTS - 2", "AHEAD: gl.constexpr = SLOTS"),
        ("warpgroup_mma_wait(0, deps=[running, a, following])", "warpgroup_mma_wait(1, deps=[running, a, following])"),
        ("X_SLOTS = gl.constexpr(2)", "X_SLOTS = gl.constexpr(1)"),
        ("    await_tile(ready, block, SLOTS)\n", ""),
        ("b == K:\n        copy_tile", "b == K - 1:\n        copy_tile"),
        ("            b, block = 0, block + 1\n", "            b, block = 0, block\n"),
        ("step + 1 + AHEAD < steps, SLOTS)", "step + AHEAD < steps, SLOTS)"),
        ("copy_tile(x, [row, block * INNER]", "copy_tile(x, [row, block]"),
    ],
    "G": [
        ("        await_tile(ready, step + 1, SLOTS)\n", ""),
        ("        barrier()  #", "        pass  #"),
        ("AHEAD: gl.constexpr = SLOTS - 2", "AHEAD: gl.constexpr = SLOTS - 1"),
        ("warpgroup_mma_wait(0, deps=[running, a, following])", "warpgroup_mma_wait(1, deps=[running, a, following])"),
        ("slot = (step + 1) % SLOTS", "slot = step % SLOTS"),
        ("g_tiles.index(step % SLOTS)", "g_tiles.index((step + 1) % SLOTS)"),
        ("gl.minimum(N - start, part_rows)", "(N - start)"),
    ],
}  # fmt: skip


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU may hang")
@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, all_of in MUTANTS.items() for n in range(len(all_of))], ids=str
)
def test_the_machine_tells_a_wrong_pipeline(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = MUTANTS[name][number]
    module = contract_out if name == "F" else contract_weight
    source = Path(module.__file__).read_text()
    assert old in source
    path = tmp_path / f"{module.__name__.split('.')[-1]}_{number}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"fastkan_kernels.backends.triton.hopper.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, mutant)
    spec.loader.exec_module(mutant)
    launch = "launch_out" if name == "F" else "launch_weight"

    o, basis = make_half_case(rows=220, outputs=16)
    with forced("pipelined"):
        want = compute(name, o, basis)
    monkeypatch.setattr(module, launch, getattr(mutant, launch))

    def tells(policy: str) -> bool:
        try:
            with forced("pipelined"), gluon_by_the_machine(policy=policy):
                found = compute(name, o, basis)
        except MachineError:
            return True
        return not all(map(torch.equal, found, want))

    assert any(map(tells, POLICIES))


# -- where it is a way at all ------------------------------------------------------------------------


def ways(name: str, o: Example, basis: Basis, derivative: int = 0, capability: int = 90) -> list[str]:
    operands = Operands(o.v, None, None, o.g) if name == "G" else Operands(o.v, o.weight, o.base_weight)
    p = problem(name, o.x, o.knots, operands, basis, derivative, capability)
    return ways_of(key(p), capability)


def test_where_it_serves() -> None:
    o, basis = make_half_case()
    for name, capability in itertools.product("FG", (90, 80, 89, 100, 120)):
        assert ("pipelined" in ways(name, o, basis, capability=capability)) == (capability == 90)
    assert "pipelined" not in ways("H", o, basis)
    for cases in (
        make_half_case(dtype=torch.float32), make_half_case(outputs=36), make_half_case(inputs=20),
        make_half_case("adapted", order=4),
    ):  # fmt: skip
        assert "pipelined" not in ways("F", *cases)
    assert "pipelined" not in ways("F", o._replace(x=o.x[:1].expand(75, 24)), basis)  # no row has a place of its own
    assert "pipelined" not in ways("F", *make_half_case(dtype=torch.float16), derivative=1)
    x = torch.empty(75 * 24 + 1, dtype=torch.bfloat16)[1:].view(75, 24).copy_(o.x)
    assert "pipelined" not in ways("F", o._replace(x=x), basis)


def test_the_slots_fit_into_shared_memory() -> None:
    for rows, columns, inner, dtype, v in itertools.product(
        (64, 128), (64, 128, 256), (16, 32), (torch.bfloat16, torch.float32), (False, True)
    ):
        o, basis = make_half_case(inputs=256, outputs=256, dtype=dtype, v=v)
        basis = basis._replace(matmul_dtype=torch.bfloat16)
        config = Config("pipelined", rows, columns, inner, 1, rows // 16, 4, True)
        out = torch.empty(1, 9, 256, 256)
        operands = Operands(o.v, o.weight, o.base_weight)
        launch = dispatch.launched_out(problem("F", o.x, o.knots, operands, basis, 0, 90), config, out[0, 0])
        inputs = 2 * rows * inner * o.x.element_size() * (1 + v)
        assert launch.constants["SLOTS"] >= pipeline.MIN_SLOTS
        assert launch.constants["SLOTS"] * inner * columns * 2 + inputs < shared_limit(90)
        p = problem("G", o.x, o.knots, Operands(o.v, None, None, o.g), basis, 0, 90)
        launch = dispatch.launched_weight(p, config, out, 75, False)
        assert launch.constants["SLOTS"] >= pipeline.MIN_SLOTS
        tile = inner * (columns * 2 + rows * o.x.element_size() * (1 + v))
        assert launch.constants["SLOTS"] * tile < shared_limit(90)
