"""The public switch that turns tuning on.

This module can be imported without Triton. :mod:`.selection` reads the state of the switch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager
from dataclasses import dataclass

from ...validation import FLAG, Real, checked

SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class _State:
    """The state of the switch, which all threads of the process share.

    Threads share the state because PyTorch runs the backward on a GPU in a different thread than the forward.
    """

    on: bool
    seconds: float


def on_by_environment() -> bool:
    """Whether the environment variable FASTKAN_AUTOTUNE turns tuning on for the whole process."""
    return os.environ.get("FASTKAN_AUTOTUNE", "0").lower() in ("1", "true", "yes", "on")


# The last state in the list is the current one. Threads may remove states from the list in any order.
_states = [_State(on_by_environment(), SECONDS)]


@checked(enabled=FLAG, seconds=Real(above=0))
def autotune(enabled: bool = True, *, seconds: float = SECONDS) -> _GeneratorContextManager[None]:
    """Tune the Triton kernels for a GPU inside the ``with`` statement or inside the decorated function.

    When a contraction is first computed with sizes for which no configuration was measured, the candidate
    configurations are compiled, checked against the default configuration and timed on the given operands. The fastest
    configuration is used from then on, and also saved for later processes, in a file in the folder FASTKAN_CACHE
    (default: ``~/.cache/fastkan``). The file is read only while tuning is on, so that without tuning the results do not
    depend on earlier runs. Different configurations sum in different orders, so tuning may change the last bits of
    results. A configuration does not change once it has been chosen.

    Nothing is tuned while a CUDA graph is captured, while ``torch.compile`` traces, on a CPU, or under
    ``torch.use_deterministic_algorithms``. FASTKAN_AUTOTUNE=1 in the environment turns tuning on for the whole process.

    Args:
        enabled: whether to tune. False turns tuning off if FASTKAN_AUTOTUNE has turned it on.
        seconds: approximate time limit for tuning one contraction, in seconds.

    Raises:
        TypeError: if ``enabled`` is not a bool, or ``seconds`` is not a number.
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
    """Whether :func:`autotune` or the environment variable FASTKAN_AUTOTUNE has turned tuning on."""
    return _states[-1].on


def seconds_each() -> float:
    """Return the approximate time limit for tuning one contraction, in seconds."""
    return _states[-1].seconds
