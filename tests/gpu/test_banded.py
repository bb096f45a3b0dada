"""The banded implementation of F and H: values, races and the choice of its tile sizes.

Triton's interpreter does not run the kernels. The PTX interpreter therefore runs them, in a process in which Triton's
interpreter is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
import ptx.builds
from cases import DEVICE
from ptx.builds import Case
from ptx.machine import POLICIES

from fastkan_kernels.backends.triton import hardware, rules
from fastkan_kernels.backends.triton.config import Config, check
from fastkan_kernels.backends.triton.key import Key

Apart = Callable[..., Any]
without_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter stands in for a GPU")
OUT = Config("banded", 128, 32, 32, 1, 4, 3)
IN = Config("banded", 64, 4, 64, 1, 4, 3)  # a program computes 4 inputs, and a part has 64 outputs


def _cases() -> Iterator[Case]:
    for name, config, sizes in (("F", OUT, (150, 6, 40, 20)), ("H", IN, (150, 6, 40, 20))):
        d, v = int(name == "H"), name == "F"
        yield Case(name, config, "bf16", sizes, derivative=d)
        yield Case(name, config, "fp16", sizes, derivative=0)
        yield Case(name, config, "bf16", sizes, knots="adapted", derivative=d, v=v)
        yield Case(name, config, "bf16", sizes, knots="repeated", order=2, derivative=1, v=v, base="none")
        yield Case(name, config, "bf16", sizes, order=1, derivative=1, base="identity")
        yield Case(name, config, "bf16", sizes, derivative=3)
        yield Case(name, config, "fp32", sizes, autocast="bf16", v=v, padding=3)
        yield Case(name, config._replace(rows=64, warps=2, stages=2), "bf16", (1, 1, 8, 1), derivative=d)
        yield Case(name, config, "bf16", (70, 3, 72, 33), derivative=d, capability=80)
    shipped = Config("banded", 512, 32, 32, 1, 16, 3)
    yield Case("F", shipped, "bf16", (520, 4, 40, 256), policies=POLICIES[:2])
    shipped = Config("banded", 256, 64, 256, 1, 16, 2)
    yield Case("H", shipped, "bf16", (260, 3, 264, 256), derivative=1, policies=POLICIES[:2])


CASES = {str(case): case for case in _cases()}


@without_gpu
@pytest.mark.parametrize("name", CASES)
def test_values_agree_with_float64_under_each_policy_and_no_accesses_race(name: str, apart: Apart) -> None:
    assert apart(ptx.builds.check, CASES[name]).counts


@without_gpu
@pytest.mark.parametrize("knots", ["shared", "adapted"])
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize(("name", "config", "d"), [("F", OUT, 0), ("F", OUT, 1), ("H", IN, 0), ("H", IN, 1)])
def test_nan_and_infinities_go_where_they_go_in_float64(
    name: str, config: Config, d: int, base: str, knots: str, apart: Apart
) -> None:
    sizes = (70, 24, 40, 20)
    case = Case(name, config, "bf16", sizes, knots, derivative=d, base=base, policies=POLICIES[:1])
    apart(ptx.builds.check_special, case)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.capability != 80])
def test_values_agree_with_float64_on_a_gpu(name: str) -> None:
    ptx.builds.check_on(DEVICE, CASES[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 16}, "rows must be at least 8 for each warp, got 16 of 4"),
        ({"inner": 16}, "inner must be 32, 64, 128 or 256, got 16"),
        ({"stages": 1}, "stages must be at least 2, got 1"),
    ],
)
def test_tile_sizes_without_a_kernel_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check("H", IN._replace(**change))


KEY = Key("F", "bfloat16", "ieee", "cardinal", 3, 0, "silu", False, True, True, 8192, 256, 256, True, True, 259, False)


@pytest.mark.parametrize(
    ("name", "config"),
    [("F", Config("banded", 512, 32, 32, 1, 16, 3)), ("H", Config("banded", 256, 128, 128, 1, 16, 2))],
)
def test_the_rules_choose_about_one_program_for_each_multiprocessor(
    name: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    monkeypatch.setattr(rules, "gluon_available", lambda: True)
    assert rules.default(KEY._replace(contraction=name), 90) == config
    check(name, config)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"order": 4},
        {"aligned": False},
        {"spline_count": 2000},  # two slots of weights would need more than 227 KiB
        {"rows": 1 << 24},
    ],
)
def test_the_rules_choose_another_implementation_elsewhere(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    monkeypatch.setattr(rules, "gluon_available", lambda: True)
    assert rules.default(KEY._replace(contraction="H", **change), 90).way != "banded"
