"""The same cases under pytest-benchmark, for its history and comparisons: ``pytest bench``.

It times one contender after another, so that ratios between contenders are better read from ``python -m bench``.
"""

from __future__ import annotations

import pytest
import torch

from ..measure import seconds, settle_allocator
from .cases import CASES, Case
from .contenders import CONTENDERS, Contender
from .errors import Oracle
from .modes import MODES
from .run import checked

pytest.importorskip("pytest_benchmark")

PATIENCE = 5.0  # seconds of a call, beyond which another package is skipped

settle_allocator()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def oracle(request) -> Oracle:
    return Oracle(request.param)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_speed(benchmark, oracle: Oracle, contender: Contender, mode: str) -> None:
    case: Case = oracle.case
    reason = contender.why_not(case) or MODES[mode].why_not(case)
    if reason is not None or not contender.takes(mode):
        pytest.skip(reason or "the mode does not apply")
    if contender.compiled and mode == "pinn":
        pytest.skip("torch.compile has no second derivatives")
    torch.compiler.reset()
    subject, error = checked(contender, oracle, MODES[mode].table)
    assert error is None or not error.too_large, f"{contender.name} is wrong: {error}"
    task = subject.task(mode)
    seconds(task)  # compiled code is compiled anew for each mode
    taken = seconds(task)
    if contender.needs is not None and taken > PATIENCE:
        pytest.skip(f"a call takes more than {PATIENCE} s")
    benchmark.group = f"{case.name} {mode}"
    benchmark.pedantic(task.call, setup=task.between, rounds=max(3, min(100, int(1.0 / taken))))
