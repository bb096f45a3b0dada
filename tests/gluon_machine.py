"""A machine for Gluon kernels, which have no interpreter: their Python source is run on NumPy arrays, one
program after the other, against the worst that asynchrony may do. ``run`` is all that tests need.

What it holds a kernel to:

- Shared memory is NaN until written, and again from the issue of a copy into it until the copy arrives: at once
  ("eager"), when a wait on its mbarrier can't do without it ("late"), or at any moment between ("random").
  What a load without ``other`` leaves out is NaN as well.
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
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

POLICIES = ("eager", "late", "random")
NUMPY = {
    getattr(tl, n): np.dtype(n) for n in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
NUMPY |= {tl.int1: np.dtype(bool), tl.float16: np.dtype("f2"), tl.bfloat16: np.dtype("f4")}
NUMPY |= {tl.float32: np.dtype("f4"), tl.float64: np.dtype("f8")}
# what a kernel's assembly does, by its whole text or its first word
ASSEMBLY = {
    "cvt.sat.f32.f32": lambda x: np.where(x > 0, np.minimum(x, 1), 0),
    "mov.b32": lambda x: x,
    "ex2.approx.ftz.f32": np.exp2,
    "rcp.approx.ftz.f32": np.reciprocal,
    "tanh.approx.f32": np.tanh,
}


class MachineError(Exception):
    """The kernel does what the hardware punishes."""


class Deadlock(MachineError):
    """A wait that nothing ends."""


def plain(x):
    return x.value if isinstance(x, tl.constexpr) else x


def poison(dtype):
    return np.nan if dtype.is_floating() else 113


def rounded(value, dtype):
    """As an array that holds numbers of this dtype; a bfloat16 is kept as the float32 that it equals."""
    value = np.asarray(value).astype(np.int64 if dtype.is_ptr() else NUMPY[dtype])
    if dtype == tl.bfloat16:
        bits = value.view(np.uint32)
        even = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
        value = np.where(np.isnan(value), value, even)
    return value


def literal_type(x):
    if isinstance(x, bool | np.bool_):
        return tl.int1
    if isinstance(x, int | np.integer):
        return tl.int32 if -(2**31) <= x < 2**31 else tl.int64
    if isinstance(x, float | np.floating):
        return tl.float32
    raise MachineError(f"{type(x).__name__} is no number")


def kind_of(dtype):
    return 2 if dtype.is_floating() else 0 if dtype == tl.int1 else 1


def common_type(a, b):
    """Of an operation on both; a literal goes by the tensor where it can."""
    x, y = (v.dtype if isinstance(v, Tensor) else literal_type(v) for v in (a, b))
    if isinstance(a, Tensor) != isinstance(b, Tensor):
        tensor, literal = (x, y) if isinstance(a, Tensor) else (y, x)
        if kind_of(literal) <= kind_of(tensor):
            return tensor
    if x.is_floating() and y.is_floating() and x != y:
        return tl.float64 if tl.float64 in (x, y) else tl.float32
    return max(x, y, key=lambda dtype: (kind_of(dtype), dtype.primitive_bitwidth))


class Tensor:
    """Registers: an array and its dtype. A pointer is one of places in a ``storage``."""

    def __init__(self, value, dtype, storage=None):
        self.value, self.dtype, self.storage = rounded(value, dtype), dtype, storage

    def like(self, value):
        return Tensor(value, self.dtype, self.storage)

    @property
    def shape(self):
        return list(self.value.shape)

    @property
    def T(self):
        return self.like(self.value.T)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(k is not None and k != slice(None) for k in keys):
            raise MachineError("an index of a tensor other than : and None")
        return self.like(self.value[key])

    def __bool__(self):
        return bool(self.item())

    def __index__(self):
        return int(self.item())

    __int__ = __index__

    def item(self):
        if self.value.size != 1:
            raise MachineError("a tensor where one number is needed")
        return self.value.item()

    def to(self, dtype, bitcast=False):
        if bitcast and self.value.itemsize != NUMPY[dtype].itemsize:
            raise MachineError("a bitcast to another size")
        return Tensor(self.value.view(NUMPY[dtype]) if bitcast else self.value, dtype)

    def __neg__(self):
        return self.like(-self.value)

    def __invert__(self):
        return self.like(~self.value)

    def __abs__(self):
        return self.like(np.abs(self.value))

    def __getattr__(self, name):
        if name in ("reshape", "permute", "trans", "expand_dims", "broadcast_to", "sum", "max", "min", "abs", "exp"):
            return lambda *args, **named: getattr(Language, name)(self, *args, **named)
        raise AttributeError(name)


def combine(function, a, b, result=None):
    a, b = plain(a), plain(b)
    for pointer, offset in ((a, b), (b, a)):
        if isinstance(pointer, Tensor) and pointer.storage is not None:
            step = offset.value.astype(np.int64) if isinstance(offset, Tensor) else offset
            return pointer.like(function(pointer.value, step))
    dtype = common_type(a, b)
    if function is np.true_divide and not dtype.is_floating():
        dtype = tl.float32
    x, y = (rounded(v.value if isinstance(v, Tensor) else v, dtype) for v in (a, b))
    return Tensor(function(x, y), result or dtype)


def quotient(x, y):
    """Of integers, towards zero."""
    return np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))


def define(name, function, result=None):
    setattr(Tensor, f"__{name}__", lambda self, other: combine(function, self, other, result))
    setattr(Tensor, f"__r{name}__", lambda self, other: combine(function, other, self, result))


for name, function in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide}.items():
    define(name, function)
for name, function in {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.items():
    define(name, function)
for name, function in {"lshift": np.left_shift, "rshift": np.right_shift, "floordiv": quotient, "mod": np.fmod}.items():
    define(name, function)
for name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    short = {"equal": "eq", "not_equal": "ne"}.get(name, name[0] + ("e" if "_" in name else "t"))
    define(short, getattr(np, name), tl.int1)


def lift(x, dtype=None):
    """A tensor of it."""
    x = plain(x)
    if isinstance(x, Tensor):
        return x if dtype is None else x.to(dtype)
    return Tensor(x, dtype or literal_type(x))


def sizes(*shape):
    shape = shape[0] if len(shape) == 1 and hasattr(plain(shape[0]), "__len__") else shape
    return tuple(int(plain(n)) for n in plain(shape))


def unary(function):
    return staticmethod(lambda x, *_, **__: lift(x).like(function(lift(x).value)))


def reduction(function):
    def call(x, axis=None, keep_dims=False):
        dtype = tl.int32 if x.dtype == tl.int1 else x.dtype
        wide = x.value.astype(np.float64 if dtype.is_floating() else np.int64)
        return Tensor(function(wide, axis=axis, keepdims=keep_dims), dtype)

    return staticmethod(call)


def unchanged(x, *_, **__):
    return x


class Language:
    """What Triton's languages have that needs no memory of a program."""

    abs, floor, ceil = unary(np.abs), unary(np.floor), unary(np.ceil)
    exp, exp2, log, log2 = unary(np.exp), unary(np.exp2), unary(np.log), unary(np.log2)
    sqrt = sqrt_rn = unary(np.sqrt)
    rsqrt = unary(lambda x: 1 / np.sqrt(x))
    sum, max, min = reduction(np.sum), reduction(np.fmax.reduce), reduction(np.fmin.reduce)
    maximum = staticmethod(lambda x, y, *_, **__: combine(np.fmax, x, y))
    minimum = staticmethod(lambda x, y, *_, **__: combine(np.fmin, x, y))
    div_rn = fdiv = staticmethod(lambda x, y, *_, **__: lift(x) / y)
    cdiv = staticmethod(lambda x, y: (x + y - 1) // y)
    convert_layout = set_auto_layout = multiple_of = max_contiguous = constexpr = to_tensor = staticmethod(unchanged)
    static_print = device_print = assume = staticmethod(lambda *_, **__: None)
    cast = staticmethod(lambda x, dtype, *_, **__: lift(x, dtype))
    permute = trans = staticmethod(lambda x, *order: x.like(x.value.transpose(sizes(*order) or None)))
    reshape = staticmethod(lambda x, *shape, **__: x.like(x.value.reshape(sizes(*shape))))
    expand_dims = staticmethod(lambda x, axis: x.like(np.expand_dims(x.value, axis)))
    broadcast_to = staticmethod(lambda x, *shape: x.like(np.broadcast_to(x.value, sizes(*shape))))
    arange = staticmethod(lambda start, end, layout=None: Tensor(np.arange(plain(start), plain(end)), tl.int32))
    full = staticmethod(
        lambda shape, value, dtype, layout=None: Tensor(np.broadcast_to(lift(value).value, sizes(shape)), plain(dtype))
    )
    zeros = staticmethod(lambda shape, dtype, layout=None: Language.full(shape, 0, dtype))
    static_range = staticmethod(lambda *bounds, **__: range(*(int(plain(n)) for n in bounds)))

    @staticmethod
    def range(*bounds, **_):
        return (lift(i) for i in range(*(int(plain(n)) for n in bounds)))

    @staticmethod
    def static_assert(condition, message=""):
        if not condition:
            raise MachineError(f"static_assert {message}")

    device_assert = static_assert

    @staticmethod
    def where(condition, x, y):
        return combine(lambda x, y: np.where(lift(condition).value, x, y), x, y)

    @staticmethod
    def fma(x, y, z):
        dtype = common_type(x, y)
        return Tensor(lift(x).value.astype(np.float64) * lift(y).value + lift(z).value, dtype)

    @staticmethod
    def inline_asm_elementwise(asm, constraints, args, dtype, is_pure, pack):
        text = plain(asm).strip()
        function = ASSEMBLY.get(text) or ASSEMBLY[text.split()[0]]
        return Tensor(function(*(lift(x).value for x in args)), plain(dtype))

    @staticmethod
    def load(pointer, mask=None, other=None, **_):
        at, mask = np.broadcast_arrays(pointer.value, True if mask is None else lift(mask).value)
        value = np.full(at.shape, poison(pointer.dtype.element_ty), NUMPY[pointer.dtype.element_ty])
        if other is not None:
            value[...] = lift(other).value
        value[mask] = pointer.storage.read(at[mask])
        return Tensor(value, pointer.dtype.element_ty)

    @staticmethod
    def store(pointer, value, mask=None, **_):
        at, mask = np.broadcast_arrays(pointer.value, True if mask is None else lift(mask).value)
        value = np.broadcast_to(lift(value, pointer.dtype.element_ty).value, at.shape)
        pointer.storage.write(at[mask], value[mask])


class Storage:
    """All memory of a torch tensor."""

    def __init__(self, tensor):
        self.dtype = tl.int1 if tensor.dtype == torch.bool else getattr(tl, str(tensor.dtype).removeprefix("torch."))
        flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.detach().untyped_storage())
        self.address = flat.data_ptr()
        self.flat = flat.view(torch.uint16).numpy() if self.dtype == tl.bfloat16 else flat.numpy()

    def pointer(self, tensor):
        return Tensor(tensor.storage_offset(), tl.pointer_type(self.dtype), self)

    def inside(self, at):
        if at.size and not (at.min() >= 0 and at.max() < self.flat.size):
            raise MachineError("an access outside of a tensor's storage")
        return at

    def read(self, at):
        value = self.flat[self.inside(at)]
        return (value.astype(np.uint32) << 16).view(np.float32) if self.dtype == tl.bfloat16 else value

    def write(self, at, value):
        self.flat[self.inside(at)] = value.view(np.uint32) >> 16 if self.dtype == tl.bfloat16 else value


class Descriptor:
    """Of a tensor in global memory, for TMA."""

    def __init__(self, base, shape, strides, block_shape, layout, padding="zero", **_):
        self.base, self.dtype, self.layout = base, base.dtype.element_ty, layout
        self.shape, self.strides, self.block_shape = sizes(shape), sizes(strides), list(sizes(block_shape))
        self.block_type = tl.block_type(self.dtype, self.block_shape)
        self.nbytes_per_cta, self.fill = self.block_type.nbytes, np.nan if padding == "nan" else 0
        size = self.dtype.primitive_bitwidth // 8
        steps = [base.storage.address + base.item() * size, *(step * size for step in self.strides[:-1])]
        if any(step % 16 for step in steps) or self.strides[-1] != 1 or self.block_shape[-1] * size < 16:
            raise MachineError("TMA takes addresses and strides of whole 16 bytes, and rows without gaps")
        if min(self.shape) < 1:
            raise MachineError("TMA takes no empty tensors")

    def places(self, corner):
        """Where a block's elements are, and which of them are in the tensor."""
        if len(corner) != len(self.shape):
            raise MachineError("as many coordinates as dimensions")
        at, inside = np.int64(self.base.item()), np.bool_(True)
        for axis, (first, length) in enumerate(zip(sizes(corner), self.block_shape)):
            index = (first + np.arange(length)).reshape([-1 if a == axis else 1 for a in range(len(corner))])
            at, inside = at + index * self.strides[axis], inside & (index >= 0) & (index < self.shape[axis])
        return at, inside

    def read(self, corner):
        at, inside = self.places(corner)
        block = np.full(at.shape, self.fill, NUMPY[self.dtype])
        block[inside] = self.base.storage.read(at[inside])
        return block

    def write(self, corner, block):
        at, inside = self.places(corner)
        self.base.storage.write(at[inside], block[inside])


class Shared:
    """A view of shared memory. Of each element it knows besides its value in which span between barriers it was
    last ``read``, what in flight ``reads`` and ``writes`` it, and what a store still wants: 1 a fence, 2 a barrier."""

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
        self.cells["read"] = self.machine.span
        return Tensor(self.cells["value"].copy(), self.dtype)

    def store(self, value):
        if value.dtype != self.dtype or value.shape != self.shape:
            raise MachineError("a store of another dtype or shape")
        self.machine.check(not self.cells["reads"].any(), "a store over what a product or copy in flight reads")
        self.machine.check(not self.cells["writes"].any(), "a store over what a copy in flight writes")
        self.cells["value"], self.cells["wants"] = value.value, 3

    def _keep_alive(self):
        pass


class Loan:
    """Shared memory that something reads asynchronously."""

    def __init__(self, shared):
        self.cells, self.machine, self.poison = shared.cells, shared.machine, poison(shared.dtype)
        self.machine.check(not self.cells["wants"].any(), "an asynchronous read of a store without fence and barrier")
        self.cells["reads"] += 1
        self.before = self.cells["value"].copy()

    def value(self):
        """What has changed since isn't known."""
        return np.where(self.cells["value"] == self.before, self.before, self.poison)

    def end(self):
        self.cells["reads"] -= 1
        self.cells["read"] = self.machine.span


class Accumulator(Tensor):
    """What a product will be; no number before a wait has returned it."""

    def __init__(self, dtype, shape, result=None):
        self.dtype, self.form, self.result, self.storage = dtype, shape, result, None
        self.done, self.used = result is not None, False

    @property
    def value(self):
        raise MachineError("an accumulator is used that no warpgroup_mma_wait has returned")


def multiplied(a, b, total, precision):
    """a b + total as wgmma has it, of float32 the bits that tf32 has."""
    if a.dtype == np.float32 and precision is not None:
        a, b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in map(np.ascontiguousarray, (a, b)))
    return (total.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


class Machine(Language):
    """One program's memory, and the language's functions that need it."""

    def __init__(self, policy, seed, checked, warps):
        assert policy in POLICIES
        self.policy, self.random, self.checked, self.warps = policy, np.random.default_rng(seed), checked, warps
        self.copies_of = {}

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
        if self.policy == "random":
            for copy in [c for c in self.copies if not self.late()]:
                self.arrive_copy(copy)

    def program_id(self, axis):
        return lift(self.program[plain(axis)])

    def num_programs(self, axis):
        return lift(self.grid[plain(axis)])

    def num_warps(self):
        return self.warps

    def num_ctas(self):
        return 1

    def allocate_shared_memory(self, element_ty, shape, layout=None, value=None):
        dtype = plain(element_ty)
        fields = [("value", NUMPY[dtype]), ("read", "i4"), ("reads", "i4"), ("writes", "i4"), ("wants", "u1")]
        cells = np.zeros(sizes(shape), fields)
        cells["value"] = poison(dtype)
        self.memory.append(cells)
        shared = Shared(self, cells, dtype, layout)
        if value is not None:
            shared.store(value)
        return shared

    def allocate_mbarrier(self, batch=None, two_ctas=False):
        return self.allocate_shared_memory(tl.int64, [1] if batch is None else [batch, 1])

    def fence_async_shared(self, cluster=False):
        for cells in self.memory:
            cells["wants"] &= 2
        for barrier in self.barriers.values():
            barrier.fenced = True

    def barrier(self, cluster=False):
        self.span += 1
        for cells in self.memory:
            cells["wants"] &= 1

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

    def make_tensor_descriptor(self, base, shape, strides, block_shape, layout, padding_option="zero"):
        return Descriptor(base, shape, strides, block_shape, layout, plain(padding_option))

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
        self.check(not cells["wants"].any(), "a copy over a store without fence and barrier")
        cells["writes"] += 1
        cells["value"] = poison(result.dtype)
        copy = SimpleNamespace(descriptor=tensor_desc, corner=coord, barrier=barrier, cells=cells)
        self.copies.append(copy)
        if not self.late():
            self.arrive_copy(copy)

    async_load = async_copy_global_to_shared

    def arrive_copy(self, copy):
        self.copies.remove(copy)
        copy.cells["value"] = copy.descriptor.read(copy.corner)
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
        if isinstance(acc, Accumulator):
            acc.used = True
        out = Accumulator(acc.dtype, form)
        loans = [Loan(operand) if isinstance(operand, Shared) else operand for operand in (a, b)]
        precision = plain(precision)
        self.products.append(SimpleNamespace(loans=loans, acc=acc, use=bool(use_acc), precision=precision, out=out))
        if not self.late():
            self.compute()
        return out if plain(is_async) else self.warpgroup_mma_wait(0, [out, a])[0]

    def compute(self, last=None):
        """The results of the products in flight, in their order."""
        for p in self.products[:last]:
            if p.out.result is None:
                total = p.acc.result if isinstance(p.acc, Accumulator) else p.acc.value
                a, b = (loan.value() if isinstance(loan, Loan) else loan.value for loan in p.loans)
                p.out.result = multiplied(a, b, total if p.use else 0 * total, p.precision)

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
        name, module = getattr(value, "__name__", ""), str(getattr(value, "__module__", ""))
        if isinstance(value, ModuleType):
            return Module(self, value) if name.startswith("triton") else value
        if isinstance(value, JITFunction | InterpretedFunction):
            value = value.fn
            own = getattr(self, value.__name__, None) if value.__module__.startswith("triton.") else None
            return own or self.copied(value)
        if module.startswith("triton.") and callable(value) and isinstance(name, str) and name:
            if hasattr(self, name):
                return getattr(self, name)
            if hasattr(value, "__triton_builtin__"):
                raise MachineError(f"this machine has no {name}")
        return plain(value)

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

    def argument(self, value):
        if isinstance(value, torch.Tensor):
            return Storage(value).pointer(value)
        if hasattr(value, "block_shape"):
            options = {"padding": getattr(value, "padding", "zero")}
            layout = getattr(value, "layout", None)
            base = self.argument(value.base)
            return Descriptor(base, value.shape, value.strides, value.block_shape, layout, **options)
        if isinstance(value, tuple | list):
            return tuple(map(self.argument, value))
        return lift(value) if isinstance(value, bool | int | float) else plain(value)


class Module:
    """One of Triton's, where this machine's functions stand in for its own."""

    def __init__(self, machine, module):
        self.machine, self.module = machine, module

    def __getattr__(self, name):
        return getattr(self.machine, name, None) or self.machine.translated(getattr(self.module, name))


def run(kernel, grid, *args, policy="late", seed=0, check=True, num_warps=4, **named):
    """Run all programs of a kernel (``gluon.jit`` or ``triton.jit``), on torch tensors, numbers and descriptors."""
    machine = Machine(policy, seed, check, num_warps)
    parameters = signature(kernel.fn).parameters
    bound = signature(kernel.fn).bind(*args, **{n: v for n, v in named.items() if n in parameters})
    bound.apply_defaults()
    with np.errstate(all="ignore"):
        for name, value in bound.arguments.items():
            constant = "constexpr" in str(parameters[name].annotation)
            bound.arguments[name] = plain(value) if constant else machine.argument(value)
        function = machine.copied(kernel.fn)
        for program in product(*map(range, grid)):
            machine.start((*program, 0, 0), (*grid, 1, 1))
            function(*bound.args, **bound.kwargs)
            machine.end()
