"""The processes that the tests of this folder share, and a process group of this process alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from processes import Processes
from torch import distributed

if not (distributed.is_available() and distributed.is_gloo_available()):
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session")
def two() -> Iterator[Processes]:
    """Two processes."""
    processes = Processes(2)
    yield processes
    processes.stop()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group that only this process belongs to."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
