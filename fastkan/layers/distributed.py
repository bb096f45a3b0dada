"""A check for functions that would make the processes of a distributed program diverge."""

from __future__ import annotations

import torch


def check_one_process(what: str) -> None:
    """Raise an error if ``torch.distributed`` runs several processes.

    If several processes called a function that uses only the samples of its own process, the function would give a
    different network in every process.

    Args:
        what: the name of the function, for the error message.

    Raises:
        RuntimeError: if ``torch.distributed`` is initialized with more than one process.
    """
    distributed = torch.distributed
    count = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if count > 1:
        raise RuntimeError(
            f"{what} uses the samples of this process alone, but {count} processes are initialised: the networks of "
            f"different ranks would become different ones. Call it before torch.distributed.init_process_group, or in "
            f"a program of one process, and load the result on every rank (save and load, or load_state_dict)"
        )
