"""What a Gluon kernel computes with, on NumPy arrays: registers, functions of Triton's languages that need no
memory of a program, and global memory. :mod:`gluon_machine` has the rest."""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl

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


def plain(x):
    return x.value if isinstance(x, tl.constexpr) else x


def poison(dtype):
    return np.nan if dtype.is_floating() else 113


def poisoned(shape, dtype):
    """Shared memory that nothing has written. For each element, besides its value: in which span between barriers
    it was last ``read``, how many in flight ``reads`` and ``writes`` it, and what it ``wants`` before an
    asynchronous read, in bits: 1 a fence, 2 a barrier, 4 to be written at all."""
    fields = [("value", NUMPY[dtype]), ("read", "i4"), ("reads", "i4"), ("writes", "i4"), ("wants", "u1")]
    cells = np.zeros(sizes(shape), fields)
    cells["value"], cells["wants"] = poison(dtype), 4
    return cells


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


def extreme(numbers, all_values):
    """The larger or smaller; a NaN is passed over, or kept if that is asked for."""

    def call(x, y, propagate_nan=tl.PropagateNan.NONE, **_):
        return combine(numbers if propagate_nan == tl.PropagateNan.NONE else all_values, x, y)

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
    maximum, minimum = extreme(np.fmax, np.maximum), extreme(np.fmin, np.minimum)
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

    make_tensor_descriptor = staticmethod(
        lambda base, shape, strides, block_shape, layout, padding_option="zero": Descriptor(
            base, shape, strides, block_shape, layout, plain(padding_option)
        )
    )

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
        function = ASSEMBLY.get(text) or ASSEMBLY.get(text.split()[0])
        if function is None:
            raise MachineError(f"this machine doesn't know the assembly {text}")
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


class Accumulator(Tensor):
    """What a product will be; no number before a wait has returned it."""

    def __init__(self, dtype, shape, result=None):
        self.dtype, self.form, self.result, self.storage = dtype, shape, result, None
        self.done, self.used = result is not None, False

    @property
    def value(self):
        raise MachineError("an accumulator is used that no warpgroup_mma_wait has returned")


def multiplied(a, b, total):
    """a b + total as wgmma has it: of a float32 the bits that tf32 has, and of a bfloat16 all."""
    if a.dtype == np.float32:
        a, b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in map(np.ascontiguousarray, (a, b)))
    return (total.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


def argument(value):
    """Of a kernel, from the host."""
    if isinstance(value, torch.Tensor):
        storage = Storage(value)
        return Tensor(value.storage_offset(), tl.pointer_type(storage.dtype), storage)
    if hasattr(value, "block_shape"):
        layout, padding = getattr(value, "layout", None), getattr(value, "padding", "zero")
        return Descriptor(argument(value.base), value.shape, value.strides, value.block_shape, layout, padding)
    if isinstance(value, tuple | list):
        return tuple(map(argument, value))
    return lift(value) if isinstance(value, bool | int | float) else plain(value)
