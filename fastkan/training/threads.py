"""A limit on torch's threads for computations on small tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread within the ``with`` statement.

    In many operations on small tensors, several threads mostly wait for each other: a fit of 1000 rows by a network of
    the shape [2, 1, 1] takes twice the processor time with two threads and, while other processes compute, five times
    the time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
