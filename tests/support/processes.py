"""Processes of ``torch.distributed`` that are started once and then run the checks of many tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

SECONDS = 30  # the limit of a collective


class Processes:
    """A group of processes, connected by gloo, with ranks from 0.

    Each rank is a pool of one process. The first check starts the processes. After a check that fails, they are started
    again, because some ranks may wait for others.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pools: list[ProcessPoolExecutor] = []
        self._meeting = tempfile.mktemp(prefix="gloo-")

    def run(self, check: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``check(*arguments)`` in every process, and return the results by rank.

        The function must be importable and ask ``torch.distributed`` for its rank. An error on a rank is raised here.
        """
        if not self._pools:
            self._start()
        # The pools would send tensors as shared memory, which would then be the same in all processes.
        call = pickle.dumps((check, arguments))
        futures = [pool.submit(_called, call) for pool in self._pools]
        done, running = wait(futures, 2 * SECONDS)
        failed = [future for future in futures if future in done and future.exception() is not None]
        if failed or running:
            self.stop()
        if failed:
            raise _cause(failed)
        assert not running, f"ranks {[rank for rank, future in enumerate(futures) if future in running]} did not finish"
        return [pickle.loads(future.result()) for future in futures]

    def stop(self) -> None:
        """End the processes."""
        for pool in self._pools:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)
        self._pools = []
        Path(self._meeting).unlink(missing_ok=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [
            ProcessPoolExecutor(1, context, _join, (rank, self.count, self._meeting)) for rank in range(self.count)
        ]


def _called(call: bytes) -> bytes:
    check, arguments = pickle.loads(call)
    return pickle.dumps(check(*arguments))


def _cause(failed: list[Future]) -> BaseException:
    """Return the error of a check itself if there is one, and otherwise the error of a rank that waited in vain."""
    errors = [future.exception() for future in failed]
    return next((e for e in errors if "gloo" not in str(e) and "timed out" not in str(e).lower()), errors[0])


def _join(rank: int, count: int, meeting: str) -> None:
    """Make this process a rank. The variables are those that torchrun sets, which Lightning and accelerate read."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "tests",
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=timedelta(seconds=SECONDS)
    )
