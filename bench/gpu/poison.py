"""Freed memory filled with NaN, so that a kernel that leaves a number unwritten is seen.

The kernels allocate their results and what lies between; PyTorch's allocator gives them blocks that
were freed before. Every such block is taken, filled and given back.
"""

from __future__ import annotations

import torch

NAN_BYTE = 0xFF  # in every byte it makes a NaN of each floating-point dtype
SMALL = 1 << 20  # bytes; PyTorch's allocator keeps what is no larger in a pool of its own


class Poison:
    """For calls that allocate the same each time.

    Args:
        device: of the allocator.
        sizes: bytes of the results, for a CPU, whose allocator can't be asked.
    """

    def __init__(self, device: torch.device, sizes: list[int]) -> None:
        self._device = device
        self._sizes = _freed(device) if device.type == "cuda" else sizes

    @property
    def bytes(self) -> int:
        """That are filled each time."""
        return sum(self._sizes)

    def spread(self) -> None:
        """Fill all of it."""
        held = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in self._sizes]
        for block in held:
            block.fill_(NAN_BYTE)

    def reaches(self, like: torch.Tensor) -> bool:
        """Whether an empty tensor of this kind now holds NaN throughout."""
        return bool(torch.empty_like(like).isnan().all())


def _freed(device: torch.device) -> list[int]:
    """Sizes that take up all that the allocator holds and nobody uses, the largest first."""
    index = torch.cuda.current_device() if device.index is None else device.index
    found = []
    for segment in torch.cuda.memory_snapshot():
        if segment["device"] != index:
            continue
        most = SMALL if segment["segment_type"] == "small" else segment["total_size"]
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                whole, rest = divmod(block["size"], most)
                found += [most] * whole + [rest] * bool(rest)
    return sorted(found, reverse=True)
