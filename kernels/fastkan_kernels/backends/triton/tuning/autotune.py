"""Whether configurations are tuned when they are first needed. Imports without Triton; :mod:`.tuning` does it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager
from dataclasses import dataclass

from ....validation import FLAG, Real, checked

SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class _State:
    """Of the process: a backward on a GPU runs in a thread of its own."""

    on: bool
    seconds: float


def on_by_environment() -> bool:
    """Whether FASTKAN_AUTOTUNE turns tuning on for the whole process."""
    return os.environ.get("FASTKAN_AUTOTUNE", "0").lower() in ("1", "true", "yes", "on")


_states = [_State(on_by_environment(), SECONDS)]  # the last one counts; threads may leave theirs in any order


@checked(enabled=FLAG, seconds=Real(above=0))
def autotune(enabled: bool = True, *, seconds: float = SECONDS) -> _GeneratorContextManager[None]:
    """Tune the Triton kernels inside the ``with``, or the function that this decorates: in this process, on a GPU.

    The first time that a contraction of some kind meets sizes without a measured choice, its candidates are compiled,
    checked against the choice by rule and timed on the operands at hand; the best is taken from then on, and kept in a
    file for the next process (in the folder FASTKAN_CACHE, by default ``~/.cache/fastkan``). That file is read only
    while this is on: without it results don't depend on what an earlier run left on disk. Another choice adds in
    another order, so the last bits may differ from those without tuning; what is once chosen stays.

    Nothing is tuned while a CUDA graph is captured, while ``torch.compile`` traces, on a CPU, or under
    ``torch.use_deterministic_algorithms``. FASTKAN_AUTOTUNE=1 in the environment turns it on for the whole process.

    Args:
        enabled: False turns it off, where the environment turned it on.
        seconds: about how long one contraction may take.

    Raises:
        TypeError: if ``enabled`` is no bool, or ``seconds`` no number.
        ValueError: if ``seconds`` is not above 0.

    Example:
        >>> with autotune(seconds=5):
        ...     y = KANLinear(2, 5)(torch.rand(10, 2))
    """
    return _within(enabled, seconds)


@contextmanager
def _within(enabled: bool, seconds: float) -> Iterator[None]:
    state = _State(enabled, seconds)
    _states.append(state)
    try:
        yield
    finally:
        _states.remove(state)


def is_on() -> bool:
    """Whether the moment is inside of one, or the environment asks for it."""
    return _states[-1].on


def seconds_each() -> float:
    """About how long one contraction may take."""
    return _states[-1].seconds
