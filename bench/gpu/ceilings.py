"""What this GPU does at its best, in the run whose figures are held against it: bytes and operations a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..measure import Task, times
from .clock import Clock
from .place import Place
from .rows import Ceilings
from .settings import kind, precision

SECONDS = 1.0  # for each
COPY = "copy"


def measure(item: Ceilings, place: Place, clock: Clock) -> dict[str, Any]:
    """A copy from memory to memory, counting what is read and what is written; and a product of each dtype."""
    found: dict[str, Any] = {"kind": "ceilings", "name": item.name, "bytes": item.copied, "products": {}}
    samples = clock.interleaved({COPY: Task(_copy(item.copied // 2, place))}, SECONDS)
    found["copy"] = _rate(item.copied, times(samples[COPY]))
    for name in item.dtypes:
        to = kind(name, place.device)
        left, right = (torch.randn(item.side, item.side, **to) for _ in range(2))
        with precision(name, place.device.type):
            samples = clock.interleaved({name: Task(_product(left, right))}, SECONDS)
        found["products"][name] = _rate(2 * item.side**3, times(samples[name]))
    return found


def _copy(size: int, place: Place) -> Callable[[], Tensor]:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _rate(amount: int, seconds: Any) -> dict[str, Any]:
    """Amount a second, at the median."""
    return {"rate": amount / seconds.median, "seconds": seconds._asdict()}
