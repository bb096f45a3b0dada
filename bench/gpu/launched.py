"""A pytest plugin: what the tests launch, for :mod:`bench.gpu.ahead`."""

from __future__ import annotations

import os
import pickle
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import needed


class Launched:
    """Keeps launches from the first test to the last, and writes them to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._during = ExitStack()
        self._found: dict[tuple, needed.Kept] = {}

    def pytest_sessionstart(self) -> None:
        from fastkan_kernels.backends.triton.launch import Launch

        self._found = self._during.enter_context(needed.launches(Launch.run))

    def pytest_sessionfinish(self) -> None:
        self._during.close()
        (self._folder / f"{os.getpid()}.pickle").write_bytes(pickle.dumps(list(self._found.values())))


def pytest_configure(config: pytest.Config) -> None:
    """In each process of the suite."""
    config.pluginmanager.register(Launched(Path(os.environ["FASTKAN_TEST_LAUNCHES"])))
