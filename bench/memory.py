"""Peak tensor memory of a call, by PyTorch's own record of its allocations.

So what compiled code and operators inside allocate counts as well.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.autograd.profiler import profile


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that ``call`` held at once of what it allocated itself; its result included."""
    with profile(profile_memory=True) as record:
        result = call()
    del result
    allocations = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in allocations:
        held += event.nbytes()
        peak = max(peak, held)
    return peak
