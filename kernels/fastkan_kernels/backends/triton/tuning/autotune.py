"""The public switch that turns tuning on. It can be imported without Triton; :mod:`.selection` reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager
from dataclasses import dataclass

from ....validation import FLAG, Real, checked

SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class _State:
    """A setting of the whole process, since a backward on a GPU runs in another thread than its forward."""

    on: bool
    seconds: float


def on_by_environment() -> bool:
    """Whether FASTKAN_AUTOTUNE turns tuning on for the whole process."""
    return os.environ.get("FASTKAN_AUTOTUNE", "0").lower() in ("1", "true", "yes", "on")


_states = [_State(on_by_environment(), SECONDS)]  # the last one holds; threads may end theirs in any order


@checked(enabled=FLAG, seconds=Real(above=0))
def autotune(enabled: bool = True, *, seconds: float = SECONDS) -> _GeneratorContextManager[None]:
    """Tune the Triton kernels for a GPU inside the ``with``, or in the function that this decorates.

    When a contraction is first computed with sizes for which no choice was measured, its candidates are compiled,
    checked against the choice by rule and timed on the given operands. The fastest is used from then on, and saved in
    a file for later processes (in the folder FASTKAN_CACHE, by default ``~/.cache/fastkan``). The file is only read
    while tuning is on, so that otherwise results do not depend on earlier runs. Different choices sum in different
    orders, so the last bits of results may differ from those without tuning; a choice does not change once it is made.

    Nothing is tuned while a CUDA graph is captured, while ``torch.compile`` traces, on a CPU, or under
    ``torch.use_deterministic_algorithms``. FASTKAN_AUTOTUNE=1 in the environment turns tuning on for the whole process.

    Args:
        enabled: False turns tuning off where the environment has turned it on.
        seconds: approximate limit on the time for tuning one contraction.

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
    """Whether tuning is on, by :func:`autotune` or the environment."""
    return _states[-1].on


def seconds_each() -> float:
    """Approximate limit on the time for tuning one contraction."""
    return _states[-1].seconds
