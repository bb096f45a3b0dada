"""The rows that a network remembers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_SAMPLES = 10_000  # rows that a network remembers: enough for any fit of an edge, and no copy of a large table


class Sample:
    """The rows that a network remembers; copies of the network have copies of them, pickles leave them out.

    Args:
        rows: ``[N, in_features]``, or None; at most ``MAX_SAMPLES`` are kept, those with the columns' ends among them.

    Example:
        >>> from fastkan.network.trace import Sample
        >>> Sample(torch.rand(50_000, 2)).rows.shape
        torch.Size([10000, 2])
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = None if rows is None or rows.shape[0] == 0 else _bounded(rows.detach()).clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Sample:
        return Sample(self.rows)

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()


def _bounded(rows: Tensor) -> Tensor:
    """Rows drawn from all alike, the same on every call: every n-th could miss values that come in turns."""
    if len(rows) <= MAX_SAMPLES:
        return rows
    ends = torch.cat([rows.argmin(0), rows.argmax(0)]).unique()[: MAX_SAMPLES // 2].cpu()
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0), device="cpu")
    chosen = torch.cat([ends, drawn[~torch.isin(drawn, ends)]])[:MAX_SAMPLES].sort().values
    return rows[chosen.to(rows.device)]
