"""The same cases under pytest-benchmark, for its history and comparisons: ``pytest bench``.

It times one rival after another, so ratios across rivals are better read from ``python -m bench``.
"""

from __future__ import annotations

import pytest
import torch

from .cases import CASES, Case
from .errors import Oracle
from .measure import seconds
from .memory import settle_allocator
from .modes import MODES, Subject
from .rivals import RIVALS, Rival
from .run import checked

pytest.importorskip("pytest_benchmark")

PATIENCE = 5.0  # seconds for a call; another package that is slower is skipped

settle_allocator()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def oracle(case: Case) -> Oracle:
    return Oracle(case)


@pytest.fixture(scope="module", params=RIVALS, ids=lambda rival: rival.name)
def rival(request, case: Case) -> Rival:
    note = request.param.why_not(case)
    if note is not None:
        pytest.skip(note)
    torch.compiler.reset()
    return request.param


@pytest.fixture(scope="module", params=MODES)
def subject(request, case: Case, rival: Rival, oracle: Oracle) -> Subject:
    mode = MODES[request.param]
    if not rival.takes(mode.name) or mode.why_not(case) is not None:
        pytest.skip(mode.why_not(case) or "it has no such thing")
    if rival.compiled and mode.name == "pinn":
        pytest.skip("torch.compile has no derivative of a derivative")
    subject, error = checked(rival, oracle, mode.table)
    assert error is None or not error.too_large, f"{rival.name} is wrong: {error}"
    seconds(subject.task(mode.name))  # compiled code is compiled for each mode
    if rival.needs is not None and seconds(subject.task(mode.name)) > PATIENCE:
        pytest.skip(f"it takes more than {PATIENCE} s")
    return subject


def test_speed(benchmark, case: Case, subject: Subject, request) -> None:
    mode = request.node.callspec.params["subject"]
    benchmark.group = f"{case.name} {mode}"
    task = subject.task(mode)
    rounds = max(3, min(100, int(1.0 / seconds(task))))
    benchmark.pedantic(task.call, setup=task.between, rounds=rounds)
    task.between()
