"""A pytest plugin: tests that would begin after the time in FASTKAN_TEST_DEADLINE are skipped, and say so."""

from __future__ import annotations

import os
import time

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture."""
    if time.time() > float(os.environ.get("FASTKAN_TEST_DEADLINE", "inf")):
        pytest.skip("out of time")
