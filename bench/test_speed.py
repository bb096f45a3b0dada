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
from .rivals import RIVALS, Rival
from .run import MODES, Subject

pytest.importorskip("pytest_benchmark")

PATIENCE = 5.0  # seconds for a step; another package that is slower is skipped


settle_allocator()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def oracle(case: Case) -> Oracle:
    return Oracle(case)


@pytest.fixture(scope="module", params=RIVALS, ids=lambda rival: rival.name)
def subject(request, case: Case, oracle: Oracle) -> Subject:
    rival: Rival = request.param
    note = rival.why_not(case)
    if note is not None:
        pytest.skip(note)
    torch.compiler.reset()
    network = rival.make(case)
    if rival.is_kan:
        error = oracle.error(network)
        assert not error.too_large, f"{rival.name} is wrong: {error}"
    subject = Subject(network, oracle.x, oracle.upstream)
    seconds(subject.task("step"))
    if rival.needs is not None and seconds(subject.task("step")) > PATIENCE:
        pytest.skip(f"a step takes more than {PATIENCE} s")
    return subject


@pytest.mark.parametrize("mode", MODES)
def test_speed(benchmark, case: Case, subject: Subject, mode: str) -> None:
    benchmark.group = f"{case.name} {mode}"
    task = subject.task(mode)
    task.call()  # compiled code is compiled for each mode
    task.between()
    rounds = max(3, min(100, int(1.0 / seconds(task))))
    benchmark.pedantic(task.call, setup=task.between, rounds=rounds)
    task.between()
