"""Refusal of functions that would make the processes of a distributed program diverge."""

from __future__ import annotations

import torch


def check_one_process(what: str) -> None:
    """Raise a RuntimeError if other processes train the network too, for functions of this process's samples alone."""
    distributed = torch.distributed
    count = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if count > 1:
        raise RuntimeError(
            f"{what} uses the samples of this process alone, but {count} processes are initialised: the networks of "
            f"different ranks would become different ones. Call it before torch.distributed.init_process_group, or in "
            f"a program of one process, and load the result on every rank (save and load, or load_state_dict)"
        )
