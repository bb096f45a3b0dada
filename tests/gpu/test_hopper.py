"""The choice, the arguments and the polynomials of the pipelined kernels. Their results are checked by test_ptx.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cases import make_case, no_triton
from oracle import Example
from scipy.interpolate import BSpline

from fastkan_kernels import Basis
from fastkan_kernels.backends.triton import hardware
from fastkan_kernels.trilinear import Operands

SERVED = no_triton() is None and hardware.gluon_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SERVED, reason="Triton or its language Gluon is not available"),
]
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
