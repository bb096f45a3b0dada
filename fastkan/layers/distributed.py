"""Functions for programs of several processes, whose ranks have different samples or parts of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastkan_kernels import Kind, kind_of

from .sampling import MAX_SAMPLES, subsample

T = TypeVar("T")


class Group(Kind):
    """An argument kind that accepts a process group of ``torch.distributed`` with the calling process, or None."""

    def read(self, name: str, value: Any) -> Any:
        if value is None or (torch.distributed.is_available() and isinstance(value, torch.distributed.ProcessGroup)):
            return value
        raise TypeError(
            f"{name} must be a torch.distributed.ProcessGroup that this process belongs to, such as "
            f"torch.distributed.group.WORLD, or None; got {kind_of(value)}"
        )


GROUP = Group()


def process_count() -> int:
    """Return the number of processes of ``torch.distributed``, or 1 if ``torch.distributed`` is not initialised."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def check_one_process(what: str, remedy: str) -> None:
    """Raise an error if ``torch.distributed`` runs several processes.

    If several processes called a function that uses only the samples of its own process, the function would give a
    different network in every process.

    Args:
        what: the name of the function, for the error message.
        remedy: what to call instead, for the error message.

    Raises:
        RuntimeError: if ``torch.distributed`` is initialised with more than one process.
    """
    count = process_count()
    if count > 1:
        raise RuntimeError(
            f"{what} uses the samples of this process alone, but {count} processes are initialised, so the networks "
            f"of the ranks would diverge. {remedy}"
        )


def gather_samples(what: str, read: Callable[[], Tensor], group: Any) -> Tensor:
    """Return the samples of all ranks of a process group, or the samples of this process if the group is None.

    If the ranks have more than ``MAX_SAMPLES`` rows together, each rank contributes a part of its rows, chosen by
    :func:`subsample`. All ranks get the same rows in the same order.

    Args:
        what: the name of the calling function, for error messages.
        read: a function that checks and returns the rows ``[N, I]`` of this process. With a group, N may be 0.
        group: a process group, or None.

    Raises:
        RuntimeError: if the group is None although several processes are initialised.
        ValueError: if no rank has a sample. An error of ``read`` on one rank raises an error on every rank.
    """
    if group is None:
        check_one_process(what, f"To use the samples of all ranks, call {what} on every rank with "
                                "group=torch.distributed.group.WORLD")  # fmt: skip
        return read()
    rows = on_every_rank(read, group)
    counts = all_gather_values(len(rows), group)
    total = sum(counts)
    if total == 0:
        raise ValueError("x must have at least one sample on one of the ranks, got none")
    if total > MAX_SAMPLES:
        counts = [min(count, max(1, count * MAX_SAMPLES // total)) for count in counts]
        rows = subsample(rows, counts[torch.distributed.get_rank(group)])
    # Ranks may have different dtypes, and float64 contains the values of all of them.
    own = rows.new_zeros(max(counts), rows.shape[1], dtype=torch.float64)
    own[: len(rows)] = rows
    parts = [torch.empty_like(own) for _ in counts]
    torch.distributed.all_gather(parts, own, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts)]).to(rows.dtype)


def on_every_rank(work: Callable[[], T], group: Any) -> T:
    """Call a function without collective operations, and raise an error on every rank of the group if one call fails.

    Without the exchange of errors, the ranks on which the call succeeds would wait in the next collective for a rank
    that never takes part in it.

    Args:
        work: the function.
        group: a process group, or None, in which case the function is just called.

    Raises:
        Exception: on a rank on which the call failed, the exception of the call.
        ValueError: on any other rank.
    """
    if group is None:
        return work()
    failure, result = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    messages = all_gather_values(None if failure is None else str(failure), group)
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise ValueError(f"rank {rank} of the group failed: {message}")
    return result  # type: ignore[return-value]


def check_every_rank(what: str, read: Callable[[], dict[str, Any]], group: Any) -> None:
    """Raise an error on every rank of a group if ``read`` fails on one of them, or finds different values on two ranks.

    Collectives take tensors of different shapes or dtypes on different ranks as different parts of the same bytes, so
    that numbers would be wrong without an error, or would wait for each other.

    Args:
        what: the name of the calling function, for the error message.
        read: a function without collective operations, which checks the arguments of this process, and returns the
            values that must be the same on every rank, by name. A tensor stands for its dtype and shape.
        group: a process group, or None, in which case ``read`` is just called.

    Raises:
        Exception: on a rank on which ``read`` failed, the exception of ``read``.
        ValueError: on every rank, if values differ; and on the other ranks, if ``read`` failed on one rank.
    """
    own = on_every_rank(read, group)
    if group is None:
        return
    shown = {name: _kind_of_tensor(each) if isinstance(each, Tensor) else repr(each) for name, each in own.items()}
    first, *others = all_gather_values(shown, group)
    for rank, other in enumerate(others, 1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"{what} needs the same {name} on every rank of the group, got {first.get(name)} on rank 0 and "
                    f"{other.get(name)} on rank {rank}"
                )


def _kind_of_tensor(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def broadcast(tensors: list[Tensor], group: Any) -> None:
    """Overwrite tensors with the tensors of the first rank of the group, unless the group is None.

    The ranks of a group may round differently even if they compute with the same values, for example if they use
    different numbers of threads.
    """
    if group is not None:
        for tensor in tensors:
            values = tensor.detach().clone(memory_format=torch.contiguous_format)
            torch.distributed.broadcast(values, group=group, group_src=0)
            tensor.copy_(values)  # In contrast to a broadcast, a copy is recorded by the version counter.


def all_gather_values(value: Any, group: Any) -> list[Any]:
    """Return the values of all ranks of a group."""
    values: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, value, group=group)
    return values


# -- sharded tensors ------------------------------------------------------------------------------


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether a tensor is a ``DTensor``, whose values are distributed over the processes of a mesh."""
    return hasattr(tensor, "device_mesh")  # An isinstance check would import a large part of torch.distributed.


def local(tensor: Any) -> Any:
    """Return this process's part of a ``DTensor``, detached from the autograd graph, and any other tensor unchanged."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: Any) -> Any:
    """Return all values of a ``DTensor`` as a plain tensor, recorded by autograd, and any other value unchanged. For a
    ``DTensor``, all processes of the mesh must call the function."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def check_not_sharded(what: str, tensors: Any, remedy: str) -> None:
    """Raise an error if one of the tensors is a ``DTensor``.

    Args:
        what: the name of the calling function, for the error message.
        tensors: pairs of a name and a tensor or None.
        remedy: what to do instead, for the error message.

    Raises:
        RuntimeError: if a tensor is a ``DTensor``.
    """
    for name, tensor in tensors:
        if is_sharded(tensor):
            raise RuntimeError(
                f"{what} needs all values of {name}, which is a DTensor, because fully_shard or parallelize_module "
                f"has distributed the layer over processes. {remedy}"
            )
