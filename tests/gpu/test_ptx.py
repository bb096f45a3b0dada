"""Tests of the PTX code of the kernels: values, order of events, and faults that the interpreter must detect.

Triton's own interpreter is on in the process of the tests, so the kernels are compiled and run in another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")
import ptx.builds
import ptx.mutants
import triton
from cases import DEVICE
from ptx.memory import Fault

from fastkan_kernels.backends.triton import hardware

Apart = Callable[..., Any]
without_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter stands in for a GPU")


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call a check of a case for the interpreter, or for a GPU if there is one of the case's compute capability."""

    def call(check: Callable[..., Any], case: ptx.builds.Case) -> Any:
        if DEVICE == "cpu":
            return request.getfixturevalue("apart")(check, case)
        if hardware.capability(torch.device(DEVICE)) != case.capability:
            pytest.skip(f"needs compute capability {case.capability / 10}")
        return check(case, DEVICE)

    return call


@pytest.mark.gpu
@pytest.mark.parametrize("name", ptx.builds.CASES)
def test_each_build_agrees_with_float64(name: str, tried: Callable[..., Any]) -> None:
    """The interpreter runs each build under several policies. A GPU runs each build once."""
    report = tried(ptx.builds.check, ptx.builds.CASES[name])
    assert report.counts or DEVICE != "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ptx.builds.SPECIAL)
def test_nan_and_infinities_go_where_they_go_in_float64(name: str, tried: Callable[..., Any]) -> None:
    tried(ptx.builds.check_special, ptx.builds.SPECIAL[name])


@without_gpu
@pytest.mark.parametrize(("name", "operand"), [("F", "v"), ("G", "v"), ("G", "g"), ("H", "g")])
def test_an_infinite_operand_leaves_no_sum_that_it_enters_finite(name: str, operand: str, apart: Apart) -> None:
    config = ptx.builds.PIPELINED[name]
    case = ptx.builds.Case(name, config, "bf16", (70, 40, 40, 3), derivative=1, v=operand == "v")
    apart(ptx.builds.check_infinite, case, operand)


# -- faults ------------------------------------------------------------------------------------------


@without_gpu
@pytest.mark.parametrize("name", ptx.mutants.CASES)
def test_each_mutant_of_the_order_of_events_is_detected(name: str, apart: Apart) -> None:
    tried, undetected = apart(ptx.mutants.survivors, ptx.mutants.CASES[name])
    assert tried >= 5
    assert not undetected


@without_gpu
@pytest.mark.parametrize("name", ["F", "G"])
def test_products_that_lose_their_registers_are_detected(name: str, apart: Apart) -> None:
    """Triton before 3.9 lets the next step overwrite registers that an asynchronous product reads (issue 9433)."""
    case = ptx.builds.Case(name, ptx.builds.FUSED[name], "bf16")
    error = apart(ptx.builds.error_without_wait, case)
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < hardware.WGMMA_WAIT_UNNEEDED_SINCE:
        assert error > 0.05
        with pytest.raises(Fault, match="uses registers of a matrix product that has not finished"):
            apart(ptx.builds.error_without_wait, case, True)
    else:
        assert apart(ptx.builds.error_without_wait, case, True) == error < 0.01


# -- counts ------------------------------------------------------------------------------------------


@without_gpu
def test_counts_of_a_step(apart: Apart) -> None:
    """With another block of 64 inputs, each spline and the base function take one more step."""
    sizes = ((128, inputs, 256, 2) for inputs in (64, 128))
    fewer, more = (apart(ptx.builds.counts, ptx.builds.Case("F", ptx.builds.SHIPPED["F"], "bf16", s)) for s in sizes)
    steps, warps = 2 + 3 + 1, 8
    step = {name: (number - fewer[name]) / steps for name, number in more.items()}

    def total(start: str, end: str = "") -> float:
        return sum(number for name, number in step.items() if name.startswith(start) and name.endswith(end))

    assert total("wgmma.mma_async", "m64n256k16.f32.bf16.bf16") == 4 * warps  # each product sums over 16 inputs
    assert total("wgmma.wait_group") == warps
    assert step["bulk load bytes"] == 64 * 256 * 2
    assert step["wgmma shared bytes"] == 2 * 64 * 256 * 2  # each of the two warp groups reads the tile of W
    assert total("ld.global", " bytes") * steps >= 128 * 64 * 2  # the program loads x for the base function
    arithmetic = sum(total(operation, ".f32") for operation in ("add", "sub", "mul", "fma"))
    assert 32 * warps < arithmetic < 32 * 16 * warps  # a thread has 32 features


@without_gpu
@pytest.mark.parametrize("name", ptx.builds.BANDED)
def test_the_weights_of_active_splines_lie_in_different_banks(name: str, apart: Apart) -> None:
    """Shared memory serves the addresses of a matrix of 128 bytes in one cycle, for any splines of its rows."""
    case = ptx.builds.Case(name, ptx.builds.BANDED[name], "bf16", (150, 6, 40, 20), derivative=int(name == "H"))
    found = apart(ptx.builds.counts, case)
    (read,) = (kind.removesuffix(" bytes") for kind in found if kind.startswith("ldmatrix") and kind.endswith(" bytes"))
    assert found[f"{read} wavefronts"] * 128 == found[f"{read} bytes"] > 0
