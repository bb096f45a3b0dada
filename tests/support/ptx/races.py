"""Detection of races by vector clocks.

A race is a pair of conflicting accesses neither of which happens before the other.

Each warp is an actor, and so is each kind of asynchronous operation of a warp. The clock of a warp holds, for each
actor, the latest epoch of the actor whose accesses happen before the warp's next access. A barrier merges the clocks of
all warps that wait at the barrier. Matrix products and bulk copies access shared memory through the asynchronous proxy,
for which the writes of threads become visible only after a proxy fence. A second clock therefore holds the epochs that
a proxy fence has covered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .memory import Fault, Global, Memory

Array = npt.NDArray[Any]
GRAIN = 2  # number of bytes that share one record
MAX_ASYNC = 64  # maximum number of actors for copies that barriers in shared memory count


ASYNC = ("products", "copies", "stores")  # kinds of asynchronous operations that a warp commits in groups


class Race(Fault):
    """Two accesses of the same memory, one of them a write, of which neither happens before the other."""


class Clocks:
    """The order of the events of a CTA (thread block).

    The first ``warps`` actors are the warps. The next actors are the products, the copies and the bulk stores of each
    warp, and the last actors are the barriers in shared memory.
    """

    def __init__(self, warps: int) -> None:
        self.warps = warps
        self.actors = 4 * warps + MAX_ASYNC + 1
        # The actor ``nothing`` is the writer of memory that was never written. No clock reaches the actor's epoch 1, so
        # a read of such memory is reported as a race.
        self.nothing = self.actors - 1
        self.clock = np.zeros((warps, self.actors), np.int32)
        self.fenced = np.zeros((warps, self.actors), np.int32)
        self.clock[range(warps), range(warps)] = 1
        self._barriers: dict[int, int] = {}
        self.issued = np.zeros(self.actors, np.int32)  # latest epoch of each asynchronous actor

    def actor(self, kind: str, warp: int) -> int:
        """Return the number of the actor for the asynchronous operations of a kind in ``ASYNC`` of a warp."""
        return (1 + ASYNC.index(kind)) * self.warps + warp

    def barrier(self, address: int) -> int:
        """Return the number of the actor for the copies that a barrier in shared memory counts."""
        return self._barriers.setdefault(address, 4 * self.warps + len(self._barriers))

    def release(self, warp: int) -> tuple[Array, Array]:
        """Return a tuple of copies of the two clocks of a warp, and begin the next epoch of the warp."""
        found = self.clock[warp].copy(), self.fenced[warp].copy()
        self.clock[warp, warp] += 1
        return found

    def acquire(self, warps: slice | int, clocks: tuple[Array, Array]) -> None:
        """Record that the events that ``clocks`` cover happen before all later events of some warps."""
        np.maximum(self.clock[warps], clocks[0], out=self.clock[warps])
        np.maximum(self.fenced[warps], clocks[1], out=self.fenced[warps])

    def fence(self, warps: slice) -> None:
        """Make all writes that happen before a proxy fence visible to the asynchronous proxy."""
        np.maximum(self.fenced[warps], self.clock[warps], out=self.fenced[warps])
        for warp in range(warps.start, warps.stop):
            self.clock[warp, warp] += 1


class SharedShadow:
    """The last write and the last reads of each part of shared memory.

    If several warps execute an instruction together and write the same memory, no race is reported. Such warps must
    write the same values, because otherwise the bits of results would depend on the policy.
    """

    def __init__(self, shared: Memory, clocks: Clocks) -> None:
        count = shared.size // GRAIN
        self.clocks = clocks
        self.writer = np.full(count, clocks.nothing, np.int16)
        self.write_epoch = np.ones(count, np.int32)
        self.write_text = np.zeros(count, np.int32)  # position of the instruction that wrote last
        self.reads = np.zeros((count, 3 * clocks.warps), np.int32)
        # indices of the actors that can read
        self.readers = np.r_[: 2 * clocks.warps, 3 * clocks.warps : 4 * clocks.warps]
        self.column = {int(actor): n for n, actor in enumerate(self.readers)}
        self.read_text = np.zeros((count, 3 * clocks.warps), np.int32)

    def _parts(self, at: Array, size: int) -> Array:
        return (at[..., None] + np.arange(0, size, GRAIN)).reshape(-1) // GRAIN

    def read(self, at: Array, size: int, warps: Array, position: int) -> None:
        """Record a read by threads.

        Args:
            at: offset of each access.
            size: number of bytes of each access.
            warps: warp of each access.
            position: position of the instruction.
        """
        parts = self._parts(at, size)
        by = np.repeat(warps, max(1, -(-size // GRAIN)))
        self._check_written(parts, by, self.clocks.clock, position)
        self.reads[parts, by] = self.clocks.clock[by, by]
        self.read_text[parts, by] = position

    def read_async(self, parts: Array, warps: range, actors: Array, position: int) -> None:
        """Record that asynchronous operations of several warps read the same bytes."""
        for warp in warps:
            self._check_written(parts, warp, self.clocks.clock, position)
            self._check_written(parts, warp, self.clocks.fenced, position, generic_only=True)
        columns = np.array([self.column[int(a)] for a in actors])
        self.reads[parts[:, None], columns] = self.clocks.issued[actors] + 1
        self.read_text[parts[:, None], columns] = position

    def write(self, at: Array, size: int, warps: Array, position: int) -> None:
        """Record a write by threads. The arguments are the same as in :meth:`read`."""
        parts = self._parts(at, size)
        by = np.repeat(warps, max(1, -(-size // GRAIN)))
        self._check_free(parts, by, position)
        self.writer[parts], self.write_epoch[parts] = by, self.clocks.clock[by, by]
        self.write_text[parts] = position

    def write_async(
        self, parts: Array, warp: int, actor: int, epoch: int, position: int, generic: bool = False
    ) -> None:
        """Record a write by an asynchronous copy that a warp has started.

        If ``generic``, the copy uses the generic proxy, as copies by threads (cp.async) do.
        """
        self._check_free(parts, warp, position)
        if not generic:
            self._check_written(parts, warp, self.clocks.fenced, position, generic_only=True)
        self.writer[parts], self.write_epoch[parts], self.write_text[parts] = actor, epoch, position

    def _check_written(
        self, parts: Array, by: Array | int, clock: Array, position: int, generic_only: bool = False
    ) -> None:
        writer = self.writer[parts]
        late = clock[by, writer] < self.write_epoch[parts]
        if generic_only:
            late &= writer < self.clocks.warps
        if late.any():
            first = int(np.argmax(late))
            part = int(parts[first])
            if writer[first] == self.clocks.nothing:
                raise Race(self._report("reads memory that nothing has written", part, by, first, position))
            missing = " without a proxy fence" if generic_only else ""
            what = f"accesses{missing} what {self._name(int(writer[first]))} writes at {{{int(self.write_text[part])}}}"
            raise Race(self._report(what, part, by, first, position))

    def _check_free(self, parts: Array, by: Array | int, position: int) -> None:
        writer = self.writer[parts]
        late = (self.clocks.clock[by, writer] < self.write_epoch[parts]) & (writer != self.clocks.nothing)
        if late.any():
            first = int(np.argmax(late))
            part = int(parts[first])
            what = f"writes what {self._name(int(writer[first]))} writes at {{{int(self.write_text[part])}}}"
            raise Race(self._report(what, part, by, first, position))
        seen = self.clocks.clock[:, self.readers][by]
        unseen = self.reads[parts] > seen
        if unseen.any():
            first, column = (int(n) for n in np.unravel_index(int(np.argmax(unseen)), unseen.shape))
            part = int(parts[first])
            reader = self._name(int(self.readers[column]))
            what = f"writes what {reader} reads at {{{int(self.read_text[part, column])}}}"
            raise Race(self._report(what, part, by, first, position))

    def _name(self, actor: int) -> str:
        kind, warp = divmod(actor, self.clocks.warps)
        if kind < 4:
            return f"{('warp', 'a product of warp', 'a copy of warp', 'a store of warp')[kind]} {warp}"
        return "a copy that a barrier counts"

    @staticmethod
    def _report(what: str, part: int, by: Array | int, first: int, position: int) -> str:
        warp = by if isinstance(by, int) else int(by[first])
        return f"warp {warp} at {{{position}}} {what}, at offset {part * GRAIN} of shared memory"


def parts_of(places: Array, size: int) -> Array:
    """Return the indices of the records of :class:`SharedShadow` for elements of ``size`` bytes, without duplicates."""
    return np.unique((places.reshape(-1, 1) + np.arange(0, size, GRAIN)) // GRAIN)


class GlobalShadow:
    """The thread that has written each part of global memory during a launch.

    The project's kernels do not pass data from one warp to another through global memory, so each part may be written
    by only one warp and must not be read by other warps.
    """

    def __init__(self, memory: Global) -> None:
        self.writer = np.zeros(memory.size // GRAIN, np.int32)

    def _parts(self, at: Array, size: int) -> Array:
        return (at[..., None] + np.arange(0, size, GRAIN)) // GRAIN

    def read(self, at: Array, size: int, warps: Array) -> None:
        """Raise a :class:`Race` if another warp of the launch has written what warps read."""
        writer = self.writer[self._parts(at, size)]
        if ((writer != 0) & (writer != warps[..., None])).any():
            raise Race("reads global memory that another warp of the launch writes")

    def write(self, at: Array, size: int, warps: Array) -> None:
        """Record a write, and raise a :class:`Race` if another warp of the launch has written the same memory."""
        parts = self._parts(at, size)
        self.read(at, size, warps)
        self.writer[parts] = np.broadcast_to(warps[..., None], parts.shape)
        if (self.writer[parts] != warps[..., None]).any():
            raise Race("writes global memory that another warp writes")
