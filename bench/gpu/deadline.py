"""A pytest plugin for a suite whose time is short: what tells most runs first, what passed before is left out.

Read from the environment: FASTKAN_TEST_DEADLINE, after which no test begins; FASTKAN_TEST_BEFORE, a file with the
names of tests that passed before; FASTKAN_TEST_PASSED, a file for those that pass now.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

# On hardware, what the interpreter can't tell: narrow dtypes, tensor cores' precision, NaN, descriptors, the layer.
# Orders and sizes in float64 come last: they are many, and the interpreter has seen them.
FIRST = (
    "test_half_layers", "test_hopper", "test_precision_of", "test_in_single_precision", "the_same_bits",
    "test_a_step_by_triton", "test_nan", "test_autocast", "test_tiles_and_loads", "test_layer.py", "test_at_infinities",
)  # fmt: skip


def _worth(item: pytest.Item) -> int:
    return next((number for number, part in enumerate(FIRST) if part in item.nodeid), len(FIRST))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the same order in every process."""
    path = os.environ.get("FASTKAN_TEST_BEFORE")
    before = set(Path(path).read_text(encoding="utf-8").splitlines()) if path else set()
    gone = [item for item in items if item.nodeid in before]
    if gone:
        config.hook.pytest_deselected(items=gone)
    items[:] = sorted((item for item in items if item.nodeid not in before), key=_worth)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture."""
    if time.time() > float(os.environ.get("FASTKAN_TEST_DEADLINE", "inf")):
        pytest.skip("out of time")


class _Passed:
    """Writes names as they pass; of the process that hears of all tests."""

    def __init__(self, path: str) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(report.nodeid + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """xdist's workers report to the process that started them."""
    path = os.environ.get("FASTKAN_TEST_PASSED")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Passed(path))
