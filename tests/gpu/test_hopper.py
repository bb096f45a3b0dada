"""The conditions under which the kernels with waits written by hand are used; test_ptx.py runs the kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import make_case, no_triton
from oracle import Example

from fastkan_kernels import Basis
from fastkan_kernels.backends.triton import hopper
from fastkan_kernels.trilinear import Operands

if no_triton() is not None or not hopper.gluon_available():
    pytest.skip("Triton has no Gluon here", allow_module_level=True)
from fastkan_kernels.backends.triton import dispatch
from fastkan_kernels.backends.triton.hopper import pipeline
from fastkan_kernels.backends.triton.problem import problem
from fastkan_kernels.backends.triton.tuning.config import Config, shared_limit
from fastkan_kernels.backends.triton.tuning.key import key
from fastkan_kernels.backends.triton.tuning.rules import ways_of


def make_half_case(
    kind: str = "shared",
    rows: int = 75,
    inputs: int = 24,
    outputs: int = 40,
    dtype: torch.dtype = torch.bfloat16,
    **more,
) -> tuple[Example, Basis]:
    """Return operands that hardware descriptors can address, whose knots stay in float32."""
    o, basis = make_case(kind, rows, inputs, outputs, dtype=torch.float32, **more)
    return Example(*(t if t is o.knots or t is None else t.to(dtype) for t in o)), basis


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
