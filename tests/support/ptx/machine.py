"""Warps of a thread block (CTA) that execute a decoded kernel in an order that a policy chooses.

Adjacent warps at the same instruction are executed together, as one group of NumPy operations.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .memory import SHARED_BASE, Fault, Global, TensorMap, shared_memory
from .races import ASYNC, Clocks, GlobalShadow, SharedShadow, parts_of

if TYPE_CHECKING:
    from .instructions import Program

Array = npt.NDArray[Any]
LANES = 32


class Policy(NamedTuple):
    """A choice among the executions that PTX allows.

    The fields ``copies`` and ``products`` are "early" if asynchronous copies and matrix products finish as soon as they
    start, or "late" if they finish as late as possible. The field ``warps`` is "together" if all warps run in step,
    "ahead" if warp 0 runs ahead of the other warps, "behind" if warp 0 runs behind the other warps, or "random".
    """

    copies: str = "late"
    products: str = "late"
    warps: str = "together"

    def __str__(self) -> str:
        return f"copies {self.copies}, products {self.products}, warps {self.warps}"


EARLY = Policy("early", "early", "behind")
LATE = Policy("late", "late", "together")
MIXED = Policy("early", "late", "random")
AHEAD = Policy("late", "early", "ahead")
POLICIES = (LATE, EARLY, MIXED, AHEAD)


class Deadlock(Fault):
    """Raised if all warps wait for events that cannot happen."""


READY, AT_BARRIER, AT_MBARRIER, DONE = "ready", "at a barrier", "at an mbarrier", "done"


class Group:
    """Adjacent warps, with views of their registers for each type. A view is a list of arrays ``[warps, 32]``."""

    def __init__(self, cta: CTA, low: int, high: int) -> None:
        self.cta, self.low, self.high = cta, low, high
        self.warps = high - low
        self.shape = (self.warps, LANES)
        part = {width: file[:, low:high] for width, file in cta.registers.items()}
        self.pred = list(part[1])
        self.u16, self.i16 = list(part[16]), list(part[16].view(np.int16))
        self.u32, self.i32, self.f32 = (list(part[32].view(t)) for t in (np.uint32, np.int32, np.float32))
        self.u64, self.i64, self.f64 = (list(part[64].view(t)) for t in (np.uint64, np.int64, np.float64))
        self.files = part
        self.warp = np.broadcast_to(np.arange(low, high)[:, None], self.shape)
        self.slice = slice(low, high)
        self.range = range(low, high)


@dataclass
class Mbarrier:
    """An mbarrier, which is a barrier in shared memory that counts arrivals and bytes."""

    count: int
    clocks: tuple[Array, Array]  # clocks of the events for which the current phase waits
    pending: int = 0
    bytes: int = 0
    phase: int = 0
    done: tuple[Array, Array] | None = None  # clocks of the last complete phase

    def __post_init__(self) -> None:
        self.pending = self.count

    def check(self) -> bool:
        """Complete the phase if all threads and bytes have arrived, and return whether the phase is complete."""
        if self.pending or self.bytes:
            return False
        self.phase ^= 1
        self.pending = self.count
        self.done = (self.clocks[0].copy(), self.clocks[1].copy())
        return True


class Pending(NamedTuple):
    """An unfinished asynchronous operation, with bit masks of the registers that a product writes and reads."""

    finish: Callable[[], None]
    written: int = 0
    read: int = 0


@dataclass
class Warp:
    """The state of a warp except for its registers."""

    number: int
    pc: int = 0
    state: str = READY
    # for each kind of asynchronous operations, the groups that are committed and for which no instruction has waited
    # yet, and at the end the group that is not committed
    groups: dict[str, deque[list[Pending]]] = field(default_factory=lambda: {kind: deque([[]]) for kind in ASYNC})

    def registers_in_use(self) -> tuple[int, int]:
        """Return bit masks of the registers that unfinished products write and read."""
        written = read = 0
        for product in itertools.chain(*self.groups["products"]):
            written |= product.written
            read |= product.read
        return written, read


def runs_of(warps: Iterable[int], key: Callable[[int], Any]) -> list[tuple[int, int]]:
    """Return the first warp and the end of each run of adjacent warps with equal keys."""
    runs = [list(run) for _, run in itertools.groupby(warps, key)]
    return [(run[0], run[-1] + 1) for run in runs]


class CTA:
    """A thread block. The methods implement those effects of instructions that are not effects on registers."""

    def __init__(
        self, program: Program, values: dict[str, int | float], maps: dict[int, TensorMap], memory: Global,
        shared_size: int, policy: Policy, rng: random.Random,
    ) -> None:  # fmt: skip
        self.program, self.maps, self.memory, self.policy, self.rng = program, maps, memory, policy, rng
        self.shared = shared_memory(shared_size)
        self.warp_count = program.warps
        self.registers = program.register_files()
        self.values = values
        self.groups: dict[tuple[int, int], Group] = {}
        self.global_shadow: GlobalShadow | None = None  # None if races are not checked in global memory
        self.traffic: Counter[str] | None = None  # bytes of memory by name; None if they are not counted
        self.strict = True  # whether the use of registers of unfinished products is a fault

    def start(self, index: tuple[int, int, int], grid: tuple[int, int, int], number: int) -> None:
        """Prepare the execution of one block of the grid."""
        self.index = index
        self.first_writer = 1 + number * self.warp_count  # number of warp 0 among the warps of the launch
        for width, file in self.registers.items():
            file[...] = width > 1  # the registers of threads whose loads are masked stay unchanged
        self.program.set_constants(self.registers, self.values, index, grid)
        self.shared.views[8][...] = 0xFFFFFFFFFFFFFFFF
        self.warps = [Warp(n) for n in range(self.warp_count)]
        self.mbarriers: dict[int, Mbarrier] = {}
        self.arrived: dict[int, tuple[Array, Array]] = {}  # clocks of the warps that wait at the barrier of the CTA
        self.bulk_copies: list[Callable[[], None]] = []
        self.clocks = Clocks(self.warp_count)
        self.shadow = SharedShadow(self.shared, self.clocks) if self.global_shadow is not None else None

    def group(self, low: int, high: int) -> Group:
        if (low, high) not in self.groups:
            self.groups[low, high] = Group(self, low, high)
        return self.groups[low, high]

    # -- scheduling ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all warps to their end.

        Raises:
            Fault: if an instruction does something that PTX does not define.
        """
        while True:
            if self.bulk_copies and self.policy.warps == "random" and self.rng.random() < 0.25:
                self._finish_a_copy()
            picked = self._pick()
            if picked is not None:
                self._advance(self.group(*picked))
            elif all(warp.state == DONE for warp in self.warps):
                if self.bulk_copies:
                    raise Fault("the kernel ends before its copies")
                return
            elif not self._finish_a_copy():
                where = "\n".join(
                    f"warp {w.number} {w.state}: {self.program.text(w.pc)}" for w in self.warps if w.state != DONE
                )
                raise Deadlock(f"deadlock:\n{where}")

    def _pick(self) -> tuple[int, int] | None:
        runs = runs_of(range(self.warp_count), lambda n: (self.warps[n].state, self.warps[n].pc))
        runs = [run for run in runs if self.warps[run[0]].state == READY]
        if not runs:
            return None
        how = self.policy.warps
        if how == "together":
            return min(runs, key=lambda run: self.warps[run[0]].pc)
        if how == "random":
            low, high = self.rng.choice(runs)
            cut = self.rng.randint(low + 1, high)
            return (low, cut) if self.rng.random() < 0.5 or cut == high else (cut, high)
        low, high = runs[0]
        if low == 0 and how == "ahead":
            return 0, 1
        if low == 0 and how == "behind":
            return (1, high) if high > 1 else runs[-1]
        return runs[-1] if how == "behind" else runs[0]

    def _advance(self, group: Group) -> None:
        """Execute instructions until the warps of the group wait, end or diverge."""
        program = self.program
        code, controls, stops = program.code, program.controls, program.stops
        pc = self.warps[group.low].pc
        while True:
            stop = stops[pc]
            program.hits[pc] += group.warps
            program.hits[stop + 1] -= group.warps
            busy = self._registers_in_use(group)
            try:
                if busy is None:
                    for step in code[pc:stop]:
                        step(group)
                else:
                    self._advance_checked(group, pc, stop, busy)
                found = controls[stop](group)
            except Fault as fault:
                raise self._explained(fault, stop, group) from fault
            if found is None:
                return
            pc = found

    def _advance_checked(self, group: Group, pc: int, stop: int, busy: tuple[int, int]) -> None:
        """Execute the instructions before ``stop``; none may use a register of an unfinished product."""
        for at in range(pc, stop + 1):
            reads, writes = self.program.masks[at]
            if (reads | writes) & busy[0] or writes & busy[1]:
                raise Fault(f"{{{at}}} uses registers of a matrix product that has not finished")
            if at < stop:
                self.program.code[at](group)
                if at in self.program.products:
                    busy = self._registers_in_use(group) or (0, 0)

    def _explained(self, fault: Fault, pc: int, group: Group) -> Fault:
        text = re.sub(r"\{(\d+)\}", lambda m: f"{m[1]} ({self.program.text(int(m[1]))})", str(fault))
        at = pc if fault.position is None else fault.position
        where = f"{self.program.name}, CTA {self.index}, warps {group.low} to {group.high - 1}"
        return type(fault)(f"{text} [{where}, at {at} ({self.program.text(at)})]")

    def _registers_in_use(self, group: Group) -> tuple[int, int] | None:
        written = read = 0
        for n in group.range:
            found = self.warps[n].registers_in_use()
            written, read = written | found[0], read | found[1]
        return (written, read) if self.strict and (written or read) else None

    def _finish_a_copy(self) -> bool:
        if not self.bulk_copies:
            return False
        at = self.rng.randrange(len(self.bulk_copies)) if self.policy.warps == "random" else 0
        self.bulk_copies.pop(at)()
        return True

    # -- control -------------------------------------------------------------------------------------

    def part(self, group: Group, pcs: Sequence[int]) -> int | None:
        """Set the position of each warp of a group. If all warps have the same position, return the position."""
        if min(pcs) == max(pcs):
            return pcs[0]
        for n, pc in zip(group.range, pcs, strict=True):
            self.warps[n].pc = pc
        return None

    def finish(self, group: Group) -> None:
        for n in group.range:
            unfinished = [kind for kind, groups in self.warps[n].groups.items() if any(groups)]
            if unfinished:
                raise Fault(f"the kernel ends before its {unfinished[0]}")
            self.warps[n].state = DONE

    def arrive_at_barrier(self, group: Group, pc: int) -> None:
        """Let warps wait at the barrier of the CTA until all warps have arrived."""
        for n in group.range:
            self.arrived[n] = self.clocks.release(n)
            self.warps[n].pc, self.warps[n].state = pc + 1, AT_BARRIER
        if len(self.arrived) == self.warp_count:
            clocks, fenced = (np.max(each, 0) for each in zip(*self.arrived.values(), strict=True))
            for n in self.arrived:
                self.clocks.acquire(n, (clocks, fenced))
                self.warps[n].state = READY
            self.arrived = {}

    # -- barriers in shared memory -------------------------------------------------------------------

    def use_mbarrier(self, address: int, warp: int, pc: int, writes: bool = False) -> Mbarrier:
        """Return an mbarrier, and raise a race unless its initialisation happens before the use.

        If ``writes``, the mbarrier is initialised or invalidated, and all other uses must happen before.
        """
        if self.shadow is not None:
            record = self.shadow.write if writes else self.shadow.read
            record(np.array([address - SHARED_BASE]), 8, np.array([warp]), pc)
        return self.mbarrier(address)

    def mbarrier(self, address: int) -> Mbarrier:
        if address not in self.mbarriers:
            raise Fault(f"there is no mbarrier at {address}")
        return self.mbarriers[address]

    def start_mbarrier(self, address: int, count: int, warp: int, pc: int) -> None:
        if address in self.mbarriers:
            raise Fault(f"the mbarrier at {address} already exists")
        self.mbarriers[address] = Mbarrier(count, (self.clocks.clock[0] * 0, self.clocks.clock[0] * 0))
        self.use_mbarrier(address, warp, pc, writes=True)

    def end_mbarrier(self, address: int, warp: int, pc: int) -> None:
        barrier = self.use_mbarrier(address, warp, pc, writes=True)
        if barrier.bytes or barrier.pending != barrier.count:
            raise Fault(f"the mbarrier at {address} is invalidated while a phase has begun")
        if any(w.state == AT_MBARRIER for w in self.warps):
            raise Fault(f"the mbarrier at {address} is invalidated while a warp waits")
        del self.mbarriers[address]

    def arrive_at_mbarrier(self, address: int, warp: int, expected_bytes: int, pc: int) -> None:
        barrier = self.use_mbarrier(address, warp, pc)
        if barrier.pending < 1:
            raise Fault(f"the mbarrier at {address} gets more arrivals than it counts")
        for mine, own in zip(barrier.clocks, self.clocks.release(warp), strict=True):
            np.maximum(mine, own, out=mine)
        barrier.pending -= 1
        barrier.bytes += expected_bytes
        self._check_mbarrier(barrier)

    def _check_mbarrier(self, barrier: Mbarrier) -> None:
        if barrier.check():
            for warp in self.warps:
                if warp.state == AT_MBARRIER:
                    warp.state = READY

    def wait_for_mbarrier(self, group: Group, pc: int, addresses: Sequence[int], parities: Sequence[int]) -> list[bool]:
        """Return for each warp whether the phase is complete. The warps whose phase is not complete must wait."""
        done = []
        for n, address, parity in zip(group.range, addresses, parities, strict=True):
            barrier = self.use_mbarrier(address, n, pc)
            complete = barrier.phase != parity
            done.append(complete)
            if not complete:
                self.warps[n].state = AT_MBARRIER
                self.warps[n].pc = pc
            elif barrier.done is not None:
                self.clocks.acquire(n, barrier.done)
        return done

    # -- asynchronous copies and products ------------------------------------------------------------

    def start_bulk_load(
        self, tensor: TensorMap, start: Sequence[int], address: int, barrier: int, warp: int, pc: int
    ) -> None:
        """Start a copy of a tile to shared memory. An mbarrier counts the bytes of the copy."""
        places = tensor.shared_places(self.shared, address)
        self.use_mbarrier(barrier, warp, pc)
        if self.traffic is not None:
            self.traffic["bulk load bytes"] += tensor.inside_bytes(start)
        actor = self.clocks.barrier(barrier)
        epoch = int(self.clocks.issued[actor]) + 1
        self.clocks.issued[actor] = epoch
        if self.shadow is not None:
            self.shadow.write_async(parts_of(places, tensor.element), warp, actor, epoch, pc)

        def finish() -> None:
            self.shared.views[tensor.element][places // tensor.element] = tensor.load(self.memory, start)
            counted = self.mbarrier(barrier)
            counted.bytes -= tensor.bytes
            counted.clocks[0][actor] = epoch
            self._check_mbarrier(counted)

        if self.policy.copies == "early":
            finish()
        else:
            self.bulk_copies.append(finish)

    def start_bulk_store(self, tensor: TensorMap, start: Sequence[int], address: int, warp: int, pc: int) -> None:
        """Start a copy of a tile from shared memory."""
        places = tensor.shared_places(self.shared, address)
        actor = self.clocks.actor("stores", warp)
        if self.traffic is not None:
            self.traffic["bulk store bytes"] += tensor.inside_bytes(start)
        if self.shadow is not None:
            self.shadow.read_async(parts_of(places, tensor.element), range(warp, warp + 1), np.array([actor]), pc)

        def finish() -> None:
            tensor.store(self.memory, start, self.shared.views[tensor.element][places // tensor.element])

        self.begin(warp, "stores", Pending(finish))

    def begin(self, warp: int, kind: str, operation: Pending) -> None:
        """Add an operation to the group that a warp has not committed yet, unless the policy finishes it at once."""
        if getattr(self.policy, "products" if kind == "products" else "copies") == "early":
            operation.finish()
        else:
            self.warps[warp].groups[kind][-1].append(operation)

    def commit(self, group: Group, kind: str) -> None:
        for n in group.range:
            self.warps[n].groups[kind].append([])
            self.clocks.issued[self.clocks.actor(kind, n)] += 1

    def wait(self, group: Group, kind: str, left: int) -> bool:
        """Finish all committed groups except the last ones, and return whether any were unfinished."""
        waited = False
        for n in group.range:
            groups, actor = self.warps[n].groups[kind], self.clocks.actor(kind, n)
            while len(groups) - 1 > left:
                waited = waited or bool(groups[0])
                for operation in groups.popleft():
                    operation.finish()
            self.clocks.clock[n, actor] = self.clocks.issued[actor] - (len(groups) - 1)
        return waited
