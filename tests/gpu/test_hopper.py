"""The choice, the arguments, the polynomials and, on a Hopper GPU, the results of the pipelined kernels.

The results without a GPU are checked by test_ptx.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cases import DEVICE, assert_rounded, compute, forced, make_case, no_triton
from oracle import Example, exact
from scipy.interpolate import BSpline

from fastkan_kernels import Basis
from fastkan_kernels.backends.triton import hardware
from fastkan_kernels.trilinear import Operands

SERVED = no_triton() is None and hardware.gluon_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SERVED, reason="Triton or its language Gluon is not available"),
]
ON_HOPPER = pytest.mark.skipif(
    DEVICE == "cpu" or torch.cuda.get_device_capability()[0] != 9, reason="there is no Hopper GPU"
)
if SERVED:
    from fastkan_kernels.backends.triton.config import shared_limit
    from fastkan_kernels.backends.triton.dispatch import launched, memory_of
    from fastkan_kernels.backends.triton.hopper import words
    from fastkan_kernels.backends.triton.key import key
    from fastkan_kernels.backends.triton.problem import Problem, problem
    from fastkan_kernels.backends.triton.rules import by_way, ways_of


def make_half_case(
    kind: str = "shared",
    rows: int = 75,
    inputs: int = 24,
    outputs: int = 40,
    dtype: torch.dtype = torch.bfloat16,
    **more,
) -> tuple[Example, Basis]:
    """Return operands that tensor descriptors can address, with sizes that are not multiples of any tile size."""
    o, basis = make_case(kind, rows, inputs, outputs, dtype=torch.float32, **more)
    return Example(*(t if t is o.knots or t is None else t.to(dtype) for t in o)), basis


def problem_of(name: str, o: Example, basis: Basis, derivative: int = 0, capability: int = 90) -> Problem:
    operands = Operands(o.v, None, None, o.g) if name == "G" else Operands(o.v, o.weight, o.base_weight, o.g)
    if name == "H":
        operands = operands._replace(v=None)
    return problem(name, o.x, o.knots, operands, basis, derivative, capability)


def ways(name: str, o: Example, basis: Basis, derivative: int = 0, capability: int = 90) -> list[str]:
    return ways_of(key(problem_of(name, o, basis, derivative, capability)), capability)


@pytest.mark.parametrize(("order", "derivative"), [(k, d) for k in (1, 2, 3) for d in range(k)])
def test_polynomials_are_those_of_scipy(order: int, derivative: int) -> None:
    u = np.linspace(0, 1, 9)[:-1]
    for position, mirrored in itertools.product(range(order + 1), (False, True)):
        z = 1 - u if mirrored else u
        powers = range(order - derivative + 1)
        value = sum(words.coefficient(order, derivative, position, n, mirrored) * z**n for n in powers)
        spline = BSpline.basis_element(np.arange(order + 2.0), extrapolate=False)
        want = spline.derivative(derivative)(u + order - position) if derivative else spline(u + order - position)
        np.testing.assert_allclose(value, want, atol=1e-14)


def test_supported_problems() -> None:
    o, basis = make_half_case()
    for name, capability in itertools.product("FGH", (90, 80, 89, 100, 120)):
        assert ("pipelined" in ways(name, o, basis, capability=capability)) == (capability == 90)
    for cases in (
        make_half_case(dtype=torch.float32), make_half_case(outputs=36), make_half_case(inputs=20),
        make_half_case("adapted", order=4), make_half_case(order=5),
    ):  # fmt: skip
        assert "pipelined" not in ways("F", *cases)
    # the distance between the rows is 0
    assert "pipelined" not in ways("F", o._replace(x=o.x[:1].expand(75, 24)), basis)
    assert "pipelined" not in ways("F", *make_half_case(dtype=torch.float16), derivative=1)
    assert "pipelined" in ways("H", *make_half_case(dtype=torch.float16), derivative=1)
    # the address of x is not a multiple of 16 bytes
    x = torch.empty(75 * 24 + 1, dtype=torch.bfloat16)[1:].view(75, 24).copy_(o.x)
    assert "pipelined" not in ways("F", o._replace(x=x), basis)


def test_slots_fit_into_shared_memory() -> None:
    for name, dtype, v, base in itertools.product(
        "FGH", (torch.bfloat16, torch.float32), (False, True), ("silu", "none")
    ):
        o, basis = make_half_case(rows=512, inputs=256, outputs=256, dtype=dtype, v=v, base=base)
        p = problem_of(name, o, basis._replace(matmul_dtype=torch.bfloat16))
        config = next(c for c in by_way(key(p), 90) if c.way == "pipelined")
        launch = launched(p, config, *memory_of(p, config))
        a, slots = launch.arguments, launch.constants["SLOTS"]
        blocks = (
            [a["w"], a["g"], *([a["base_w"]] if base != "none" else [])]
            if name == "H"
            else [a["w" if name == "F" else "g"]]
        )
        if name != "H":
            prefix = "base_" if base != "none" else ""
            blocks += [a[prefix + x] for x in (("x", "v") if v else ("x",))]
        size = sum(np.prod(b.block_shape) * b.base.element_size() for b in blocks)
        features = 0 if name == "H" else 2 * 64 * launch.constants["ROWS"] * 2
        assert slots >= 3
        assert slots * size + features + 1024 <= shared_limit(90)


# -- results on a GPU -------------------------------------------------------------------------------


@ON_HOPPER
@pytest.mark.parametrize(
    ("order", "kind", "derivative"),
    [(1, "shared", 0), (2, "uniform", 1), (3, "shared", 0), (3, "shared", 1), (3, "shared", 2), (2, "repeated", 1),
     (3, "adapted", 0), (3, "uniform", 3)],
    ids=str,
)  # fmt: skip
def test_orders_and_derivatives(order: int, kind: str, derivative: int) -> None:
    o, basis = make_half_case(kind, order=order)
    assert_rounded(o, basis, derivative, "pipelined", torch.bfloat16)


@ON_HOPPER
@pytest.mark.parametrize("sizes", [(1, 8, 8), (65, 24, 24), (130, 8, 72), (2000, 136, 264)], ids=str)
@pytest.mark.parametrize("grid", [5, 20])
def test_sizes(sizes: tuple[int, int, int], grid: int) -> None:
    o, basis = make_half_case("shared", *sizes, grid=grid, v=False)
    assert_rounded(o, basis, 0, "pipelined", torch.bfloat16)


@ON_HOPPER
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize(("kind", "derivative"), [("shared", 0), ("shared", 1), ("adapted", 0), ("adapted", 1)])
def test_nan_and_infinities(kind: str, derivative: int, base: str, value: float) -> None:
    o, basis = make_half_case(kind, base=base)
    o.x[5, 3] = o.x[70, 20] = value
    with forced("pipelined"):
        for name in "FGH":
            for part, want in zip(
                compute(name, o, basis, derivative), exact(name, o, basis, derivative), strict=True
            ):  # fmt: skip
                odd = ~np.isfinite(want)
                np.testing.assert_array_equal(part.float().cpu().numpy()[odd], want[odd])
                assert part.isfinite().sum() == (~odd).sum()
