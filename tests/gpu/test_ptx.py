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
import ptx.pipelines
import triton
from cases import DEVICE
from ptx.machine import LATE, POLICIES
from ptx.memory import Fault

from fastkan_kernels.backends.triton import hardware

Apart = Callable[..., Any]
without_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter stands in for a GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ptx.builds.CASES)
def test_each_build_agrees_with_float64(name: str, request: pytest.FixtureRequest) -> None:
    """The interpreter runs each build under several policies. A GPU runs each build once."""
    case = ptx.builds.CASES[name]
    if DEVICE == "cpu":
        assert request.getfixturevalue("apart")(ptx.builds.check, case).counts
    elif hardware.capability(torch.device(DEVICE)) == case.capability:
        ptx.builds.check_on(DEVICE, case)
    else:
        pytest.skip(f"needs compute capability {case.capability / 10}")


@without_gpu
@pytest.mark.parametrize("name", ptx.builds.SPECIAL)
def test_nan_and_infinities_go_where_they_go_in_float64(name: str, apart: Apart) -> None:
    apart(ptx.builds.check_special, ptx.builds.SPECIAL[name])


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


@without_gpu
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_producer_and_a_consumer(policy: Any, transposed: bool, apart: Apart) -> None:
    bound = 1e-6 if transposed else 2.0**-8  # relative error of sums in float32 or of a result in bfloat16
    assert apart(ptx.pipelines.error, None, policy, transposed) < bound


@without_gpu
@pytest.mark.parametrize("bug", ptx.pipelines.BUGS)
def test_bugs_of_a_producer_and_a_consumer_are_detected(bug: str, apart: Apart) -> None:
    with pytest.raises(Fault):
        apart(ptx.pipelines.error, bug, LATE)


# -- counts ------------------------------------------------------------------------------------------


@without_gpu
def test_counts_of_a_step(apart: Apart) -> None:
    """With another block of 64 inputs, each spline and the base function take one more step."""
    sizes = ((128, inputs, 256, 2) for inputs in (64, 128))
    fewer, more = (apart(ptx.builds.counts, ptx.builds.Case("F", ptx.builds.SHIPPED["F"], "bf16", s)) for s in sizes)
    steps, warps = 2 + 3 + 1, 8
    step = {kind: (number - fewer[kind]) / steps for kind, number in more.items()}
    assert step["wgmma m64n256k16 bf16"] == 4 * warps  # each product sums over 16 inputs
    assert step["wgmma wait"] == warps
    assert step["bulk load bytes"] == 64 * 256 * 2
    assert step["wgmma shared bytes"] == 2 * 64 * 256 * 2  # each of the two warp groups reads the tile of W
    assert step["global load bytes"] * steps >= 128 * 64 * 2  # the program loads x for the base function
    assert 32 * warps < step["fp32"] < 32 * 16 * warps  # a thread has 32 features
