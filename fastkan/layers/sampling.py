"""The choice of a part of many rows of samples."""

from __future__ import annotations

import torch
from torch import Tensor

# Maximum number of rows that a network keeps, that the ranks of a process group exchange, and number of rows after
# which no more batches are read from a loader. The maximum is large enough to fit any edge, and small enough that large
# tables are not copied.
MAX_SAMPLES = 10_000


def subsample(rows: Tensor, count: int = MAX_SAMPLES) -> Tensor:
    """Return at most ``count`` of the rows in their original order, including the rows with the smallest and the
    largest value of each column.

    The rows are selected at random, because a selection of every n-th row would miss values that alternate with a
    period of n. Every call with the same rows returns the same selection.
    """
    if len(rows) <= count:
        return rows
    ends = torch.cat([rows.argmin(0), rows.argmax(0)]).unique()[: count // 2].cpu()
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0), device="cpu")
    chosen = torch.cat([ends, drawn[~torch.isin(drawn, ends)]])[:count].sort().values
    return rows[chosen.to(rows.device)]
