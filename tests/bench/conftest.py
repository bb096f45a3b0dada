"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def float64() -> Iterator[None]:
    """Use float64, as the commands do that set it themselves, which must not change the dtype for what follows."""
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    yield
    found = torch.get_default_dtype()
    torch.set_default_dtype(default)
    torch.set_num_threads(threads)
    assert found == torch.float64
