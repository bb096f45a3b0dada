"""Helpers of tests that compare with pykan's own functions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peers import D
from torch import Tensor


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(D)
    yield
    torch.set_default_dtype(torch.float32)


def kan(name: str) -> Any:
    """Import a module of pykan, or skip the test."""
    pytest.importorskip("kan")
    return __import__(f"kan.{name}", fromlist=["_"])


def quiet(function: Callable, *args: Any, **options: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*args, **options)


def rows(columns: int, count: int = 60, low: float = 0.5, high: float = 1.5) -> Tensor:
    return low + (high - low) * torch.rand(count, columns, generator=torch.Generator().manual_seed(3), dtype=D)
