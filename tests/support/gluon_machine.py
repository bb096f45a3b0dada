"""A machine for Gluon kernels, which have no interpreter: their Python source is run on NumPy arrays, one
program after the other, against the worst that asynchrony may do. ``run`` is all that tests need.

What it holds a kernel to:

- Shared memory is NaN until written, and again from the issue of a copy into it until the copy arrives: at once
  ("eager"), when a wait on its mbarrier can't do without it ("late"), or at any moment between ("random"). To read
  it then raises (``check``). What a load without ``other`` leaves out is NaN as well.
- A product in flight gets its operands at its issue or at the wait that ends it; whatever changed between is NaN.
  Its result raises where it is used before that wait, and its left operand in registers must be one of the
  wait's ``deps``.
- An mbarrier counts arrivals and bytes, and a wait asks for a parity, as the hardware does: the wrong one passes
  at once or never. What can't end raises, and so do bytes left over, and copies or products that outlive the program.
- All warps are one here, so that what a CTA barrier is for can't go wrong by itself. It is checked instead
  (``check``): no copy over what a load or a product has read since the last barrier, or over what a product
  reads; no next phase of an mbarrier before a barrier has followed the last wait on it; and between a store
  and what reads it asynchronously, as between ``mbarrier.init`` and copies, a fence (for stores, and a barrier).
- Global accesses stay within their tensor's storage, descriptors within what TMA takes.

What it doesn't prove: anything of layouts, registers, bank conflicts, or what the compiler makes of the source;
the order of loads and stores of shared memory among themselves (the compiler puts barriers there); races between
programs; clusters and warp specialisation; the last bits (products are summed in float64 and rounded once to
float32, tf32 drops bits, approximate functions are exact). Indices are int32, as in the kernel, and wrap.
"""

from __future__ import annotations

import math
from inspect import signature
from itertools import product
from types import CellType, CodeType, FunctionType, ModuleType, SimpleNamespace

import numpy as np
import triton.language as tl
from gluon_numbers import (
    Accumulator,
    Language,
    MachineError,
    Tensor,
    argument,
    lift,
    multiplied,
    plain,
    poison,
    poisoned,
    sizes,
)
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

POLICIES = ("eager", "late", "random")


class Deadlock(MachineError):
    """A wait that nothing ends."""


class Shared:
    """A view of shared memory, of which :func:`poisoned` tells what is known."""

    def __init__(self, machine, cells, dtype, layout=None):
        self.machine, self.cells, self.dtype, self.layout = machine, cells, dtype, layout
        self.shape, self.rank, self.numel = list(cells.shape), cells.ndim, cells.size

    def view(self, cells):
        if not np.may_share_memory(cells, self.cells):
            raise MachineError("this view of shared memory would be a copy")
        return Shared(self.machine, cells, self.dtype, self.layout)

    def index(self, i):
        return self.view(self.slice(i, 1).cells[0, ...])

    def slice(self, start, length, dim=0):
        if not 0 <= int(start) <= int(start) + length <= self.shape[dim]:
            raise MachineError("a view beyond shared memory")
        return self.view(self.cells[(slice(None),) * dim + (slice(int(start), int(start) + length),)])

    def permute(self, order):
        return self.view(self.cells.transpose(sizes(order)))

    def reshape(self, shape):
        return self.view(self.cells.reshape(sizes(shape)))

    def _reinterpret(self, dtype, shape, layout=None):
        if plain(dtype) != self.dtype:
            raise MachineError("this machine can't take shared memory for another dtype")
        return self.view(self.cells.reshape(-1)[: math.prod(sizes(shape))].reshape(sizes(shape)))

    def load(self, layout=None):
        self.machine.stir()
        self.machine.check(not self.cells["writes"].any(), "a load of what a copy in flight writes")
        self.machine.check((self.cells["wants"] < 4).all(), "a load of what nothing has written")
        self.cells["read"] = self.machine.span
        return Tensor(self.cells["value"].copy(), self.dtype)

    def store(self, value):
        if value.dtype != self.dtype or value.shape != self.shape:
            raise MachineError("a store of another dtype or shape")
        self.machine.check(not self.cells["reads"].any(), "a store over what a product or copy in flight reads")
        self.machine.check(not self.cells["writes"].any(), "a store over what a copy in flight writes")
        self.cells["value"], self.cells["wants"] = value.value, 3


class Loan:
    """Shared memory that something reads asynchronously."""

    def __init__(self, shared):
        self.cells, self.machine, self.poison = shared.cells, shared.machine, poison(shared.dtype)
        self.machine.check(not self.cells["writes"].any(), "a product or copy of what a copy in flight writes")
        self.machine.check((self.cells["wants"] < 4).all(), "a product or copy of what nothing has written")
        self.machine.check(not self.cells["wants"].any(), "a product or copy of a store without fence and barrier")
        self.cells["reads"] += 1
        self.before = self.cells["value"].copy()

    def value(self):
        """What has changed since isn't known."""
        return np.where(self.cells["value"] == self.before, self.before, self.poison)

    def end(self):
        self.cells["reads"] -= 1
        self.cells["read"] = self.machine.span


class Machine(Language):
    """One program's memory, and the language's functions that need it."""

    def __init__(self, policy, seed, checked, warps):
        assert policy in POLICIES
        self.policy, self.random, self.checked, self.copies_of = policy, np.random.default_rng(seed), checked, {}
        self.num_warps, self.num_ctas = lambda: warps, lambda: 1

    def start(self, program, grid):
        self.program, self.grid, self.span = program, grid, 1
        self.memory, self.barriers, self.copies, self.products, self.stores = [], {}, [], [], []

    def end(self):
        if self.copies or self.products or self.stores:
            raise MachineError("the program ends with copies or products in flight")
        for barrier in self.barriers.values():
            self.retire(barrier)

    def check(self, right, message):
        if self.checked and not right:
            raise MachineError(message)

    def late(self):
        return self.policy == "late" or (self.policy == "random" and self.random.random() < 0.5)

    def stir(self):
        """Time passes, and with it copies may arrive."""
        if self.policy == "random":
            for copy in list(self.copies):
                copy.delay -= 1
                if copy.delay < 0:
                    self.arrive_copy(copy)

    def program_id(self, axis):
        return lift(self.program[plain(axis)])

    def num_programs(self, axis):
        return lift(self.grid[plain(axis)])

    def allocate_shared_memory(self, element_ty, shape, layout=None, value=None):
        dtype = plain(element_ty)
        self.memory.append(poisoned(shape, dtype))
        shared = Shared(self, self.memory[-1], dtype, layout)
        if value is not None:
            shared.store(value)
        return shared

    def allocate_mbarrier(self, batch=None, two_ctas=False):
        return self.allocate_shared_memory(tl.int64, [1] if batch is None else [batch, 1])

    def fence_async_shared(self, cluster=False):
        for cells in self.memory:
            cells["wants"] &= 4 + 2
        for barrier in self.barriers.values():
            barrier.fenced = True

    def barrier(self, cluster=False):
        self.span += 1
        for cells in self.memory:
            cells["wants"] &= 4 + 1

    thread_barrier = debug_barrier = barrier

    # mbarrier

    def barrier_at(self, shared):
        try:
            return self.barriers[shared.cells.__array_interface__["data"][0]]
        except KeyError:
            raise MachineError("an mbarrier that isn't initialised") from None

    def init(self, mbarrier, count):
        at = mbarrier.cells.__array_interface__["data"][0]
        if at in self.barriers:
            raise MachineError("an mbarrier is initialised twice")
        self.barriers[at] = SimpleNamespace(
            at=at, count=plain(count), missing=plain(count), bytes=0, phase=0, fenced=False, waited=0
        )

    def retire(self, barrier):
        if barrier.bytes or any(copy.barrier is barrier for copy in self.copies):
            raise MachineError("an mbarrier ends with bytes that are expected or too many")

    def invalidate(self, mbarrier):
        barrier = self.barrier_at(mbarrier)
        self.check(barrier.waited < self.span, "an mbarrier is invalidated where other warps may still wait on it")
        self.retire(barrier)
        del self.barriers[barrier.at]

    def signal(self, barrier, arrivals, bytes):
        barrier.missing, barrier.bytes = barrier.missing - arrivals, barrier.bytes + bytes
        if barrier.missing < 0:
            raise MachineError("more arrivals at an mbarrier than its count")
        if barrier.missing == 0 and barrier.bytes == 0:
            barrier.missing, barrier.phase = barrier.count, barrier.phase + 1

    def arrive(self, mbarrier, *, count=1, pred=True, bytes=0, **_):
        if pred:
            barrier = self.barrier_at(mbarrier)
            self.check(barrier.waited < self.span, "an mbarrier's next phase where other warps may wait for the last")
            self.signal(barrier, count, bytes)

    def expect(self, mbarrier, bytes_per_cta=None, pred=True, bytes=None, **_):
        self.arrive(mbarrier, pred=pred, bytes=int(plain(bytes if bytes_per_cta is None else bytes_per_cta)))

    def wait(self, mbarrier, phase, pred=True, deps=()):
        if not pred:
            return
        self.stir()
        barrier, parity = self.barrier_at(mbarrier), int(phase)
        if parity not in (0, 1):
            raise MachineError("a parity is 0 or 1")
        while barrier.phase % 2 == parity:
            copy = next((copy for copy in self.copies if copy.barrier is barrier), None)
            if copy is None:
                raise Deadlock("nothing in flight ends this wait")
            self.arrive_copy(copy)
        barrier.waited = self.span

    # copies by TMA

    def async_copy_global_to_shared(self, tensor_desc, coord, barrier, result, pred=True, *_, **__):
        if not pred:
            return
        self.stir()
        barrier, cells = self.barrier_at(barrier), result.cells
        if result.shape != tensor_desc.block_shape or result.dtype != tensor_desc.dtype:
            raise MachineError("a copy into shared memory of another shape or dtype")
        self.check(barrier.fenced, "a copy with an mbarrier that no fence has followed")
        self.check(not cells["reads"].any(), "a copy over what a product or copy in flight reads")
        self.check(not cells["writes"].any(), "two copies into the same shared memory")
        self.check((cells["read"] < self.span).all(), "a copy over what was read since the last barrier")
        self.check(not (cells["wants"] & 3).any(), "a copy over a store without fence and barrier")
        cells["writes"] += 1
        cells["value"] = poison(result.dtype)
        delay = 0 if self.policy == "eager" else self.random.integers(20)
        copy = SimpleNamespace(descriptor=tensor_desc, corner=coord, barrier=barrier, cells=cells, delay=delay)
        self.copies.append(copy)
        if self.policy != "late" and delay == 0:
            self.arrive_copy(copy)

    async_load = async_copy_global_to_shared

    def arrive_copy(self, copy):
        self.copies.remove(copy)
        copy.cells["value"], copy.cells["wants"] = copy.descriptor.read(copy.corner), 0
        copy.cells["writes"] -= 1
        self.signal(copy.barrier, 0, -copy.descriptor.block_type.nbytes)

    def async_copy_shared_to_global(self, tensor_desc, coord, src, **_):
        self.stir()
        loan = Loan(src)
        if not (late := self.late()):
            tensor_desc.write(coord, loan.value())
        self.stores.append((loan, tensor_desc, coord, late))

    async_store = async_copy_shared_to_global

    def store_wait(self, pendings):
        while len(self.stores) > plain(pendings):
            loan, descriptor, corner, late = self.stores.pop(0)
            if late:
                descriptor.write(corner, loan.value())
            loan.end()

    # products

    def warpgroup_mma_init(self, value):
        return Accumulator(value.dtype, value.shape, value.value)

    def warpgroup_mma(self, a, b, acc, *, use_acc=True, precision=None, is_async=False, **_):
        self.stir()
        rows, columns, inner = a.shape[0], b.shape[1], a.shape[1]
        form = acc.form if isinstance(acc, Accumulator) else acc.shape
        fitting = b.shape[0] == inner and form == [rows, columns] and a.dtype == b.dtype and rows % 64 == 0
        if not (isinstance(b, Shared) and fitting):
            raise MachineError("operands that wgmma doesn't take")
        steps = [operand.cells.strides[::way] for operand, way in ((a, 1), (b, -1)) if isinstance(operand, Shared)]
        if a.dtype == tl.float32 and any(across < along for across, along in steps):
            raise MachineError("tf32 operands in shared memory that aren't contiguous along what is summed over")
        if isinstance(acc, Accumulator):
            acc.used = True
        out = Accumulator(acc.dtype, form)
        loans = [Loan(operand) if isinstance(operand, Shared) else operand for operand in (a, b)]
        self.products.append(SimpleNamespace(loans=loans, acc=acc, use=bool(use_acc), out=out))
        if not self.late():
            self.compute()
        return out if plain(is_async) else self.warpgroup_mma_wait(0, [out, a])[0]

    def compute(self, last=None):
        """The results of the products in flight, in their order."""
        for p in self.products[:last]:
            if p.out.result is None:
                total = p.acc.result if isinstance(p.acc, Accumulator) else p.acc.value
                a, b = (loan.value() if isinstance(loan, Loan) else loan.value for loan in p.loans)
                p.out.result = multiplied(a, b, total if p.use else np.zeros_like(total))

    def warpgroup_mma_wait(self, num_outstanding=0, deps=None):
        if not deps:
            raise MachineError("warpgroup_mma_wait without deps")
        self.stir()
        ended = max(0, len(self.products) - plain(num_outstanding))
        self.compute(ended)
        for p in self.products[:ended]:
            p.out.done = True
            for loan in p.loans:
                if isinstance(loan, Loan):
                    loan.end()
                else:
                    self.check(any(loan is dep for dep in deps), "a product's left operand is none of its wait's deps")
        del self.products[:ended]
        for dep in deps:
            self.check(not (isinstance(dep, Accumulator) and dep.used), "an accumulator is used twice")
        out = [Tensor(d.result, d.dtype) if isinstance(d, Accumulator) and d.done else d for d in deps]
        return out[0] if len(out) == 1 else tuple(out)

    # the kernel's source

    def translated(self, value):
        """What a kernel sees in place of a global."""
        if isinstance(value, ModuleType):
            return Module(self, value) if value.__name__.startswith("triton") else value
        compiled = isinstance(value, JITFunction | InterpretedFunction)
        value = value.fn if compiled else value
        name = str(getattr(value, "__name__", ""))
        if callable(value) and str(value.__module__).startswith("triton.") and hasattr(self, name):
            return getattr(self, name)
        if hasattr(value, "__triton_builtin__"):
            raise MachineError(f"this machine has no {name}")
        return self.copied(value) if compiled else plain(value)

    def copied(self, function):
        """The function on this machine, and so what it calls."""
        if function not in self.copies_of:
            names, codes = set(), [function.__code__]
            while codes:
                code = codes.pop()
                names.update(code.co_names)
                codes.extend(c for c in code.co_consts if isinstance(c, CodeType))
            known = {"range": self.range, "INTERPRETED": False}
            cells = tuple(CellType(self.translated(c.cell_contents)) for c in function.__closure__ or ())
            copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__, cells)
            copy.__kwdefaults__ = function.__kwdefaults__
            self.copies_of[function] = copy
            there = function.__globals__
            known.update({n: self.translated(there[n]) for n in names if n in there and n not in known})
        return self.copies_of[function]


class Module:
    """One of Triton's, where this machine's functions stand in for its own."""

    def __init__(self, machine, module):
        self.machine, self.module = machine, module

    def __getattr__(self, name):
        return getattr(self.machine, name, None) or self.machine.translated(getattr(self.module, name))


def run(kernel, grid, *args, policy="late", seed=0, check=True, num_warps=4, num_stages=None, **named):
    """Run all programs of a kernel (``gluon.jit`` or ``triton.jit``), on torch tensors, numbers and descriptors."""
    machine = Machine(policy, seed, check, num_warps)
    parameters = signature(kernel.fn).parameters
    bound = signature(kernel.fn).bind(*args, **named)
    bound.apply_defaults()
    with np.errstate(all="ignore"):
        for name, value in bound.arguments.items():
            constant = "constexpr" in str(parameters[name].annotation)
            bound.arguments[name] = plain(value) if constant else argument(value)
        function = machine.copied(kernel.fn)
        for program in product(*map(range, grid)):
            machine.start((*program, 0, 0), (*grid, 1, 1))
            function(*bound.args, **bound.kwargs)
            machine.end()
