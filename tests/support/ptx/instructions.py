"""Translation of PTX instructions to Python functions that execute them for a group of warps."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import products
from .counts import kind_of
from .kernel import Instruction, Kernel, Register, scoped, split
from .machine import LANES, Group, Product
from .memory import SHARED_BASE, Fault
from .races import parts_of

Array = npt.NDArray[Any]
Step = Callable[[Group], None]


class Masked(NamedTuple):
    """A function that executes an instruction for some threads.

    The argument is a mask of the threads, or None for all threads of the group. The function returns False if the
    instruction did not have to wait.
    """

    run: Callable[[Group, Array | None], bool | None]


class Control(NamedTuple):
    """A function that returns the position of the next instruction, or None if the warps wait, end or diverge."""

    run: Callable[[Group], int | None]


# A dict from each type in PTX to the attribute of Group with its registers, and to its width in bits.
VIEWS = {
    "pred": ("pred", 1),
    "b16": ("u16", 16), "u16": ("u16", 16), "s16": ("i16", 16), "f16": ("f16", 16), "bf16": ("u16", 16),
    "b32": ("u32", 32), "u32": ("u32", 32), "s32": ("i32", 32), "f32": ("f32", 32), "tf32": ("u32", 32),
    "f16x2": ("u32", 32), "bf16x2": ("u32", 32),
    "b64": ("u64", 64), "u64": ("u64", 64), "s64": ("i64", 64), "f64": ("f64", 64),
    "b8": ("u16", 16), "u8": ("u16", 16), "s8": ("i16", 16),
}  # fmt: skip
BYTES = {"b8": 1, "u8": 1, "s8": 1} | {k: w // 8 for k, (_, w) in VIEWS.items() if k not in ("pred", "b8", "u8", "s8")}
FILE_TYPES: dict[int, Any] = {1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Program:
    """A decoded kernel, which has a function for each instruction."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.name, self.warps = self.kernel.name, self.kernel.threads // LANES
        self.counts = dict(self.kernel.register_counts)
        self._constants: dict[tuple[int, int], int] = {}  # index of the register of a constant, by width and value
        # index of the register of a parameter or special register, by width and name
        self._named: dict[tuple[int, str], int] = {}
        self.parameter_addresses = {p.name: (1 << 30) + 4096 * n for n, p in enumerate(self.kernel.parameters)}
        self.code: list[Step] = []
        self.acted: set[int] = set()  # positions of memory instructions that at least one thread has executed
        self.controls: dict[int, Callable[[Group], int | None]] = {}
        self.products: set[int] = set()  # positions of instructions that change which registers unfinished products use
        for pc, instruction in enumerate(self.kernel.instructions):
            try:
                self._decode(pc, instruction)
            except (KeyError, ValueError, IndexError, Fault) as error:
                raise Fault(f"cannot decode {instruction.text!r}: {error!r}") from error
        self.stops = self._stops()
        # differences between the numbers of warps that execute an instruction and the previous instruction
        self.hits = [0] * (len(self.code) + 2)
        self.masks = [_register_masks(self, i) for i in self.kernel.instructions] if self.products else []

    def text(self, pc: int) -> str:
        return self.kernel.instructions[pc].text[:160]

    def executions(self) -> list[int]:
        """Return for each instruction the number of warps that have executed the instruction."""
        return np.cumsum(self.hits)[: len(self.code)].tolist()

    def _stops(self) -> list[int]:
        """Return for each position the next position of an instruction that may change the control flow."""
        stops, stop = [0] * len(self.code), len(self.code)
        for pc in range(len(self.code) - 1, -1, -1):
            if pc in self.controls:
                stop = pc
            stops[pc] = stop
        return stops

    # -- registers -----------------------------------------------------------------------------------

    def register_files(self) -> dict[int, Array]:
        """Return one array ``[registers, warps, 32]`` for each width."""
        return {w: np.zeros((max(1, n), self.warps, LANES), FILE_TYPES[w]) for w, n in self.counts.items()}

    def set_constants(
        self,
        files: dict[int, Array],
        values: dict[str, int | float],
        index: tuple[int, int, int],
        grid: tuple[int, int, int],
    ) -> None:
        """Fill the registers of constants, parameters and special registers."""
        for (width, constant), at in self._constants.items():
            files[width][at] = constant
        special: dict[str, Any] = {
            "%tid.x": np.arange(self.warps * LANES).reshape(self.warps, LANES), "%tid.y": 0, "%tid.z": 0,
            "%ntid.x": self.warps * LANES, "%laneid": np.arange(LANES), "%warpid": np.arange(self.warps)[:, None],
            "%cluster_ctarank": 0, "%cluster_ctaid.x": 0, "global_smem": SHARED_BASE,
        }  # fmt: skip
        for axis, at_axis, size in zip("xyz", index, grid, strict=True):
            special[f"%ctaid.{axis}"], special[f"%nctaid.{axis}"] = at_axis, size
        for (width, name), at in self._named.items():
            if name in special:
                files[width][at] = special[name]
            elif name.startswith("&"):
                files[width][at] = self.parameter_addresses[name[1:]]
            else:
                value = values[name]
                if isinstance(value, float):
                    files[width][at].view({32: np.float32, 64: np.float64}[width])[...] = value
                else:
                    files[width][at] = value & ((1 << width) - 1)

    def _new(self, width: int) -> int:
        self.counts[width] += 1
        return self.counts[width] - 1

    def _constant(self, width: int, value: int) -> int:
        value &= (1 << width) - 1
        if (width, value) not in self._constants:
            self._constants[width, value] = self._new(width)
        return self._constants[width, value]

    def named(self, width: int, name: str) -> int:
        """Return the index of a register that holds a parameter or a special register."""
        if (width, name) not in self._named:
            self._named[width, name] = self._new(width)
        return self._named[width, name]

    def register(self, text: str, scope: str = "") -> Register:
        return self.kernel.registers[scoped(text, scope)]

    def operand(self, text: str, width: int, scope: str = "") -> int:
        """Return the index of the register that holds an operand: a register, or a new one with a constant."""
        known = self.kernel.registers.get(scoped(text, scope))
        if known is not None:
            if known.width != width:
                raise ValueError(f"{text} has {known.width} bits instead of {width}")
            return known.number
        if text.startswith("%") or text == "global_smem":
            return self.named(width, text)
        if text in self.parameter_addresses:
            return self.named(width, "&" + text)
        if text.startswith("0f"):
            (number,) = struct.unpack(">f", bytes.fromhex(text[2:]))
            if width == 32:
                return self._constant(32, int(text[2:], 16))
            raise ValueError(f"{number} with {width} bits")
        if text.startswith("0d"):
            return self._constant(64, int(text[2:], 16))
        return self._constant(width, int(text.rstrip("U"), 0))

    def target(self, text: str, width: int, scope: str = "") -> int:
        """Return the index of the register that an instruction writes. For ``_``, return an unused register."""
        return self._new(width) if text == "_" else self.operand(text, width, scope)

    # -- decoding ------------------------------------------------------------------------------------

    def _decode(self, pc: int, i: Instruction) -> None:
        decoder = _DECODERS.get(i.opcode)
        if decoder is None:
            raise Fault("unknown instruction")
        found = decoder(self, i, pc)
        if isinstance(found, Control):
            self.controls[pc] = found.run
            self.code.append(_nothing)
        elif isinstance(found, Masked):
            self.code.append(_mask(i, found.run, pc, self.acted))
        else:
            self.code.append(found if i.guard is None else self._guarded(i, found))

    def _guarded(self, i: Instruction, step: Step) -> Step:
        """Return a step that leaves the result register unchanged in threads whose predicate is false."""
        assert i.guard is not None
        at, negated = i.guard.number, i.guard_negated
        names = split(i.operands[0].strip("{}")) if i.operands[0][0] == "{" else i.operands[0].split("|")
        written = [self.register(name, i.scope) for name in names if name != "_"]

        def run(g: Group) -> None:
            active = ~g.pred[at] if negated else g.pred[at]
            if active.all():
                step(g)
                return
            if active.any():
                before = [g.files[r.width][r.number].copy() for r in written]
                step(g)
                for r, old in zip(written, before, strict=True):
                    np.copyto(g.files[r.width][r.number], old, where=~active)

        return run


def _nothing(g: Group) -> None:
    """Do nothing."""


def _mask(i: Instruction, run: Callable[[Group, Array | None], bool | None], pc: int, acted: set[int]) -> Step:
    """Return a step that calls a function with a mask of the threads for which an instruction's predicate is true."""
    at, negated = (i.guard.number, i.guard_negated) if i.guard is not None else (None, False)

    def step(g: Group) -> None:
        try:
            active = None if at is None else ~g.pred[at] if negated else g.pred[at]
            if active is None or active.all():
                effect = run(g, None)
            elif active.any():
                effect = run(g, active)
            else:
                return
            if effect is not False:
                acted.add(pc)
        except Fault as fault:
            fault.position = pc
            raise

    return step


Decoder = Callable[[Program, Instruction, int], "Step | Masked | Control"]
_DECODERS: dict[str, Decoder] = {}


def decodes(*names: str) -> Callable[[Decoder], Decoder]:
    """Register a decoder of the instructions with some names."""

    def add(decoder: Decoder) -> Decoder:
        _DECODERS.update(dict.fromkeys(names, decoder))
        return decoder

    return add


# -- arithmetic --------------------------------------------------------------------------------------


def _apply(function: Callable[..., Any], view: str, to: int, sources: Sequence[int]) -> Step:
    """Return a step that calls a NumPy function on registers of a type.

    The last argument of the function is the result.
    """
    if len(sources) == 1:
        return _step(view, "function(r[a], out=r[to])", function=function, a=sources[0], to=to)
    return _step(view, "function(r[a], r[b], out=r[to])", function=function, a=sources[0], b=sources[1], to=to)


def _step(view: str, body: str, **values: Any) -> Step:
    """Return a step that executes a line of Python in which ``r`` holds the registers of the attribute ``view``."""
    step: Step = _template(view, body, tuple(values))(**values)
    return step


@functools.cache
def _template(view: str, body: str, names: tuple[str, ...]) -> Any:
    source = f"def make({', '.join(names)}):\n    def step(g):\n        r = g.{view}\n        {body}\n    return step"
    found: dict[str, Any] = {}
    exec(source, {"np": np}, found)
    return found["make"]


BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def _halves(kind: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return a tuple of a function that unpacks 16-bit values to float32, and the inverse function."""
    if kind.startswith("bf16"):
        return products.from_bf16, products.to_bf16
    return products.from_f16, products.to_f16


def _of_halves(p: Program, i: Instruction, function: Callable[..., Array]) -> Step | None:
    """Return a step that computes in float32 and rounds to 16 bits, or None if the instruction has another type."""
    kind = i.modifiers[-1]
    if not kind.startswith(("bf16", "f16")):
        return None
    unpack, pack = _halves(kind)
    width = VIEWS[kind][1]
    to, *sources = (p.operand(o, width, i.scope) for o in i.operands)

    def step(g: Group) -> None:
        registers = g.u32 if width == 32 else g.u16
        values = (unpack(registers[source].view(np.uint16)) for source in sources)
        with np.errstate(all="ignore"):
            registers[to].view(np.uint16)[...] = pack(function(*values).astype(np.float32))

    return step


@decodes("add", "sub", "and", "or", "xor")
def _binary(p: Program, i: Instruction, pc: int) -> Step:
    if (halves := _of_halves(p, i, BINARY[i.opcode])) is not None:
        return halves
    view, width = VIEWS[i.modifiers[-1]]
    to, a, b = (p.operand(o, width, i.scope) for o in i.operands)
    return _apply(BINARY[i.opcode], view, to, (a, b))


@decodes("max", "min")
def _extreme(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    keeps_nan = "NaN" in i.modifiers
    largest = i.opcode == "max"
    view, width = VIEWS[kind]
    to, a, b = (p.operand(o, width, i.scope) for o in i.operands)
    if kind.startswith(("f", "bf")) and not keeps_nan:
        function = np.fmax if largest else np.fmin
    else:
        function = np.maximum if largest else np.minimum
    return _of_halves(p, i, function) or _apply(function, view, to, (a, b))


@decodes("mul")
def _mul(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    view, width = VIEWS[kind]
    if i.modifiers[0] == "wide":
        big, _ = VIEWS[kind[0] + "64"] if width == 32 else VIEWS[kind[0] + "32"]
        to = p.operand(i.operands[0], 2 * width)
        a, b = (p.operand(o, width) for o in i.operands[1:])
        body = f"np.multiply(r[a], r[b], g.{big}[to], dtype=g.{big}[to].dtype)"
        return _step(view, body, a=a, b=b, to=to)
    if (halves := _of_halves(p, i, np.multiply)) is not None:
        return halves
    to, a, b = (p.operand(o, width) for o in i.operands)
    if i.modifiers[0] == "hi":
        wide = np.int64 if kind[0] == "s" else np.uint64
        return _step(
            view, "r[to][...] = (r[a].astype(wide) * r[b].astype(wide)) >> wide(32)", a=a, b=b, to=to, wide=wide
        )
    return _apply(np.multiply, view, to, (a, b))


@decodes("mad", "fma")
def _fma(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    view, width = VIEWS[kind]
    if i.modifiers[0] == "wide":
        big, _ = VIEWS[kind[0] + "64"]
        to, c = p.operand(i.operands[0], 64), p.operand(i.operands[3], 64)
        a, b = (p.operand(o, width) for o in i.operands[1:3])
        body = f"t = g.{big}; np.add(np.multiply(r[a], r[b], dtype=t[to].dtype), t[c], t[to])"
        return _step(view, body, a=a, b=b, c=c, to=to)
    halves = _of_halves(p, i, lambda x, y, z: x.astype(np.float64) * y + z)
    if halves is not None:
        return halves
    to, a, b, c = (p.operand(o, width) for o in i.operands)
    if kind[0] != "f":
        return _step(view, "np.add(r[a] * r[b], r[c], r[to])", a=a, b=b, c=c, to=to)
    wide = np.float64 if width == 32 else np.longdouble
    return _step(view, "r[to][...] = r[a].astype(wide) * r[b] + r[c]", a=a, b=b, c=c, to=to, wide=wide)


@decodes("div", "rem")
def _div(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    view, width = VIEWS[kind]
    to, a, b = (p.operand(o, width) for o in i.operands)
    if kind[0] == "f":
        return _apply(np.divide, view, to, (a, b))

    def quotient(x: Array, y: Array, out: Array) -> None:
        y = np.where(y == 0, 1, y)
        magnitude = np.abs(x.astype(np.int64)) // np.abs(y.astype(np.int64))
        out[...] = (np.sign(x) * np.sign(y) * magnitude) if i.opcode == "div" else np.fmod(x, y)

    return _apply(quotient, view, to, (a, b))


def _reciprocal(x: Array, out: Array) -> None:
    np.divide(x.dtype.type(1), x, out)


UNARY: dict[str, Any] = {
    "neg": np.negative, "abs": np.abs, "not": np.invert, "ex2": np.exp2, "rcp": _reciprocal,
}  # fmt: skip


@decodes(*UNARY)
def _unary(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    view, width = VIEWS[kind]
    if (halves := _of_halves(p, i, UNARY[i.opcode])) is not None:
        return halves
    to, a = (p.operand(o, width, i.scope) for o in i.operands)
    function = np.logical_not if kind == "pred" else UNARY[i.opcode]
    return _apply(function, view, to, (a,))


@decodes("shl", "shr")
def _shift(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    view, width = VIEWS[kind]
    to, a = (p.operand(o, width) for o in i.operands[:2])
    n = p.operand(i.operands[2], 32)
    if re.fullmatch(r"\d+", i.operands[2]) and int(i.operands[2]) < width:
        shift = np.left_shift if i.opcode == "shl" else np.right_shift
        amount = FILE_TYPES[width](int(i.operands[2]))
        if kind[0] == "s":
            amount = np.dtype(view.replace("i", "int")).type(amount)
        return _step(view, "shift(r[a], amount, r[to])", shift=shift, a=a, amount=amount, to=to)
    left, signed = i.opcode == "shl", kind[0] == "s"

    def step(g: Group) -> None:
        registers, count = getattr(g, view), g.u32[n]
        value = registers[a]
        bounded = np.minimum(count, width - 1).astype(value.dtype)
        shifted = (value << bounded) if left else (value >> bounded)
        registers[to][...] = shifted if signed else np.where(count >= width, 0, shifted)

    return step


@decodes("shf")
def _funnel_shift(p: Program, i: Instruction, pc: int) -> Step:
    """Shift a pair of 32-bit registers, and keep the upper half (left) or the lower half (right)."""
    to, low, high, n = (p.operand(o, 32) for o in i.operands)
    left, clamped = i.modifiers[0] == "l", i.modifiers[1] == "clamp"

    def step(g: Group) -> None:
        count = g.u32[n].astype(np.uint64)
        count = np.minimum(count, 32) if clamped else count & np.uint64(31)
        both = g.u32[low].astype(np.uint64) | (g.u32[high].astype(np.uint64) << np.uint64(32))
        g.u32[to][...] = ((both << count) >> np.uint64(32) if left else both >> count) & np.uint64(0xFFFFFFFF)

    return step


@decodes("bfe")
def _bit_field(p: Program, i: Instruction, pc: int) -> Step:
    to, a, start, length = (p.operand(o, 32) for o in i.operands)
    signed = i.modifiers[-1] == "s32"

    def step(g: Group) -> None:
        n = g.u32[length].astype(np.int64)
        value = (g.u32[a].astype(np.int64) >> g.u32[start]) & ((1 << n) - 1)
        if signed:
            value = np.where((n > 0) & ((value >> np.maximum(n - 1, 0)) & 1 == 1), value - (1 << n), value)
        g.i32[to][...] = value

    return step


@decodes("prmt")
def _permute_bytes(p: Program, i: Instruction, pc: int) -> Step:
    to, a, b, selector = (p.operand(o, 32) for o in i.operands)

    def step(g: Group) -> None:
        both = np.stack([g.u32[a], g.u32[b]], -1).view(np.uint8)
        selectors = (g.u32[selector][..., None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
        found = np.take_along_axis(both, (selectors & 7).astype(np.int64), -1)
        found = np.where(selectors & 8, (found >> 7) * 0xFF, found).astype(np.uint8)
        g.u32[to][...] = np.ascontiguousarray(found).view(np.uint32)[..., 0]

    return step


@decodes("lop3")
def _logic(p: Program, i: Instruction, pc: int) -> Step:
    to, *sources = (p.operand(o, 32) for o in i.operands[:4])
    table = int(i.operands[4], 0)

    def step(g: Group) -> None:
        a, b, c = (g.u32[s] for s in sources)
        result = np.zeros_like(a)
        for n in range(8):
            if table >> n & 1:
                result |= (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
        g.u32[to][...] = result

    return step


@decodes("selp")
def _select(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    view, width = VIEWS[kind]
    view = "u" + str(width)
    to, a, b = (p.operand(o, width) for o in i.operands[:3])
    chosen = p.operand(i.operands[3], 1, i.scope)
    return _step(view, "r[to][...] = np.where(g.pred[chosen], r[a], r[b])", a=a, b=b, chosen=chosen, to=to)


def _unordered(function: Any) -> Any:
    def compare(a: Array, b: Array) -> Array:
        return function(a, b) | (a != a) | (b != b)

    return compare


def _not_equal(a: Array, b: Array) -> Array:
    return (a < b) | (a > b)


_COMPARE: dict[str, Any] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_COMPARE_FLOAT: dict[str, Any] = {
    **_COMPARE,
    "ne": _not_equal,
    **{f"{k}u": _unordered(f) for k, f in _COMPARE.items() if k in ("eq", "lt", "le", "gt", "ge")},
    "neu": np.not_equal,
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}


@decodes("setp")
def _compare(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    floating = kind.startswith(("f", "bf"))
    compare = (_COMPARE_FLOAT if floating else {**_COMPARE, "ne": np.not_equal})[i.modifiers[0]]
    view, width = VIEWS[kind]
    a, b = (p.operand(o, width) for o in i.operands[1:3])
    targets = [p.target(o, 1, i.scope) for o in i.operands[0].split("|")]
    to = targets[0]
    if "f16" in kind:
        unpack, _ = _halves(kind)
        if kind.endswith("x2"):

            def halves(g: Group) -> None:
                x, y = (unpack(g.u32[s].view(np.uint16)).reshape(*g.shape, 2) for s in (a, b))
                result = compare(x, y)
                for n, one in enumerate(targets):
                    g.pred[one][...] = result[..., n]

            return halves

        def half(g: Group) -> None:
            g.pred[to][...] = compare(unpack(g.u16[a].view(np.uint16)), unpack(g.u16[b].view(np.uint16)))

        return half
    if len(i.operands) == 4:
        combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[i.modifiers[1]]
        other = p.operand(i.operands[3].lstrip("!"), 1, i.scope)
        negated = i.operands[3][0] == "!"

        def combined(g: Group) -> None:
            registers = getattr(g, view)
            third = ~g.pred[other] if negated else g.pred[other]
            g.pred[to][...] = combine(compare(registers[a], registers[b]), third)

        return combined
    if len(targets) > 1:
        raise ValueError("two predicates")
    if isinstance(compare, np.ufunc):
        return _step(view, "compare(r[a], r[b], g.pred[to])", compare=compare, a=a, b=b, to=to)
    return _step(view, "g.pred[to][...] = compare(r[a], r[b])", compare=compare, a=a, b=b, to=to)


@decodes("mov", "cvta")
def _mov(p: Program, i: Instruction, pc: int) -> Step:
    to, source = i.operands
    kind = i.modifiers[-1]
    if to.startswith("{") or source.startswith("{"):
        return _unpack(p, i, to) if to.startswith("{") else _pack(p, i, source)
    view, width = VIEWS[kind]
    at, a = p.operand(to, width, i.scope), p.operand(source, width, i.scope)
    view = "pred" if width == 1 else f"u{width}"
    return _step(view, "r[to][...] = r[a]", a=a, to=at)


def _unpack(p: Program, i: Instruction, to: str) -> Step:
    names = split(to[1:-1])
    width = BYTES[i.modifiers[-1]] * 8
    part = width // len(names)
    source = p.operand(i.operands[1], width)
    targets = [(n, p.target(name, part, i.scope)) for n, name in enumerate(names) if name != "_"]

    def step(g: Group) -> None:
        parts = (g.u32 if width == 32 else g.u64)[source].view(FILE_TYPES[part]).reshape(*g.shape, -1)
        for n, at in targets:
            g.files[part][at][...] = parts[..., n]

    return step


def _pack(p: Program, i: Instruction, source: str) -> Step:
    names = split(source[1:-1])
    width = BYTES[i.modifiers[-1]] * 8
    part = width // len(names)
    sources = [p.operand(name, part, i.scope) for name in names]
    to = p.operand(i.operands[0], width, i.scope)

    def step(g: Group) -> None:
        whole = (g.u32 if width == 32 else g.u64)[to]
        parts = whole.view(FILE_TYPES[part]).reshape(*g.shape, -1)
        for n, at in enumerate(sources):
            parts[..., n] = g.files[part][at]

    return step


@decodes("cvt")
def _convert(p: Program, i: Instruction, pc: int) -> Step:
    to_kind, from_kind = i.modifiers[-2:]
    modes = set(i.modifiers[:-2])
    if to_kind in ("bf16x2", "f16x2"):
        _, pack = _halves(to_kind)
        to, high, low = (p.operand(o, 32) for o in i.operands)

        def pair(g: Group) -> None:
            both = np.stack([g.f32[low], g.f32[high]], -1)
            g.u32[to][...] = pack(both).view(np.uint32)[..., 0]

        return pair
    to_view, to_width = VIEWS[to_kind]
    from_view, from_width = VIEWS[from_kind]
    to = p.operand(i.operands[0], p.register(i.operands[0]).width)
    known = p.kernel.registers.get(i.operands[1])
    a = p.operand(i.operands[1], known.width if known else from_width)
    if (known and known.width != from_width) or p.register(i.operands[0]).width != to_width:
        return _convert_narrow(p, i, to, a, known.width if known else from_width)
    if to_kind == "tf32":
        return _step("u32", "r[to][...] = round_to_tf32(r[a])", a=a, to=to, round_to_tf32=products.round_to_tf32)
    if from_kind == "f32" and to_kind in ("bf16", "f16"):
        return _step("f32", "g.u16[to][...] = pack(r[a])", a=a, to=to, pack=_halves(to_kind)[1])
    if to_kind == "f32" and from_kind in ("bf16", "f16"):
        return _step("u16", "g.f32[to][...] = unpack(r[a])", a=a, to=to, unpack=_halves(from_kind)[0])
    if "sat" in modes:
        return _step(from_view, f"x = r[a]; g.{to_view}[to][...] = np.where(x == x, np.clip(x, 0, 1), 0)", a=a, to=to)
    rounding = next((f for mode, f in _ROUNDING.items() if mode in modes), None)
    if from_kind[0] == "f" and to_kind[0] in "us":
        limits = np.iinfo(f"{'u' * (to_kind[0] == 'u')}int{to_width}")

        def to_integer(g: Group) -> None:
            x = getattr(g, from_view)[a].astype(np.longdouble)
            x = (rounding or np.trunc)(np.where(np.isnan(x), 0, x))
            getattr(g, to_view)[to][...] = np.clip(x, limits.min, limits.max)

        return to_integer
    if rounding is not None and from_kind == to_kind:
        return _apply(rounding, from_view, to, (a,))
    return _step(from_view, f"g.{to_view}[to][...] = r[a]", a=a, to=to)


_ROUNDING: dict[str, Any] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


def _convert_narrow(p: Program, i: Instruction, to: int, a: int, from_file: int) -> Step:
    """Return a conversion between integers that are narrower than the registers that hold them."""
    to_kind, from_kind = i.modifiers[-2:]
    to_file = p.register(i.operands[0]).width
    types = {
        kind: np.dtype(f"{'u' * (kind[0] != 's')}int{8 * BYTES[kind]}") for kind in (to_kind, from_kind)
    }  # fmt: skip
    file_type = np.dtype(f"{'u' * (to_kind[0] != 's')}int{to_file}")

    def step(g: Group) -> None:
        narrow = g.files[from_file][a].astype(types[from_kind])
        g.files[to_file][to][...] = narrow.astype(types[to_kind]).astype(file_type).view(FILE_TYPES[to_file])

    return step


@decodes("elect")
def _elect(p: Program, i: Instruction, pc: int) -> Step:
    lane, chosen = i.operands[0].split("|")
    to, at = p.target(lane, 32), p.operand(chosen, 1, i.scope)
    first = np.arange(LANES) == 0

    def step(g: Group) -> None:
        g.u32[to][...] = 0
        g.pred[at][...] = first

    return step


@decodes("shfl")
def _shuffle(p: Program, i: Instruction, pc: int) -> Step:
    names = i.operands[0].split("|")
    to, a, n, clamp = (p.operand(o, 32) for o in (names[0], *i.operands[1:4]))
    flag = p.operand(names[1], 1, i.scope) if len(names) > 1 else None
    mode = i.modifiers[1]
    if mode not in ("bfly", "idx"):
        raise ValueError(mode)
    lanes = np.arange(LANES)

    def step(g: Group) -> None:
        count, control = g.i32[n].astype(np.int64), g.u32[clamp].astype(np.int64)
        segment, bound = (control >> 8) & 31, control & 31
        low = lanes & segment
        source = lanes ^ count if mode == "bfly" else low | (count & ~segment & 31)
        inside = source <= (low | (bound & ~segment))
        source = np.where(inside, source, lanes)
        g.u32[to][...] = np.take_along_axis(g.u32[a], source, -1)
        if flag is not None:
            g.pred[flag][...] = inside

    return step


# -- memory ------------------------------------------------------------------------------------------


def address_of(p: Program, text: str, scope: str = "") -> tuple[int, int, int]:
    """Return a tuple of the width and index of the register in an address in brackets, and the address's offset."""
    match = re.fullmatch(r"\[?\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]?", text)
    if match is None:
        raise ValueError(f"address {text}")
    known = p.kernel.registers.get(scoped(match[1], scope))
    width = known.width if known else 32
    return width, p.operand(match[1], width, scope), int(match[2] or "0", 0)


def addresses(g: Group, at: tuple[int, int, int]) -> Array:
    """Return the addresses of all threads of a group. 32-bit addresses wrap around."""
    width, index, offset = at
    found: Array = g.files[width][index].astype(np.int64) + offset
    return found & 0xFFFFFFFF if width == 32 else found


def registers_of(text: str) -> tuple[str, ...]:
    """Return the registers of a list in braces, or a list of one register if the operand is a single register."""
    return split(text.strip()[1:-1]) if text.startswith("{") else (text,)


def _access(
    i: Instruction, pc: int, at: tuple[int, int, int], total: int, action: str
) -> Callable[[Group, Array | None], tuple[Any, Array]]:
    """Return a function that gives the memory and the places that the active threads of a group access.

    The function also records the accesses for the search for races and for the counts.

    Args:
        i: the instruction.
        pc: position of the instruction.
        at: the operand with the address, as :func:`address_of` returns it.
        total: number of bytes that a thread accesses.
        action: "read" or "write".
    """
    is_global, kind_name = i.modifiers[0] == "global", kind_of(i)

    def access(g: Group, active: Array | None) -> tuple[Any, Array]:
        memory = g.cta.memory if is_global else g.cta.shared
        where, warp = addresses(g, at), g.warp
        if active is not None:
            where, warp = where[active], warp[active]
        places = memory.place(where, total)
        if g.cta.shadow is not None and g.cta.global_shadow is not None:
            if is_global:
                getattr(g.cta.global_shadow, action)(places, total, warp + g.cta.first_writer)
            else:
                getattr(g.cta.shadow, action)(places, total, warp.reshape(-1), pc)
        if g.cta.traffic is not None:
            (g.cta.traffic.moved if is_global else g.cta.traffic.shared)(kind_name, places, total, warp)
        return memory, places

    return access


@decodes("ld")
def _load(p: Program, i: Instruction, pc: int) -> Masked:
    kind = i.modifiers[-1]
    width, size = VIEWS[kind][1], BYTES[kind]
    names = registers_of(i.operands[0])
    signed = np.dtype(f"{'u' * (kind[0] != 's')}int{p.register(names[0], i.scope).width}")
    targets = [(n, p.operand(name, p.register(name, i.scope).width, i.scope)) for n, name in enumerate(names)]
    if i.modifiers[0] == "param":
        name = i.operands[1][1:-1].split("+")[0].strip()
        value, to, to_width = p.named(width, name), targets[0][1], p.register(names[0], i.scope).width
        view = VIEWS[kind][0]

        def parameter(g: Group, active: Array | None) -> None:
            extended = getattr(g, view)[value].astype(signed) if to_width > width else g.files[width][value]
            g.files[to_width][to][...] = extended.view(FILE_TYPES[to_width])

        return Masked(parameter)
    width = p.register(names[0], i.scope).width
    at = address_of(p, i.operands[1], i.scope)
    total = size * len(names)
    access = _access(i, pc, at, total, "read")

    def load(g: Group, active: Array | None) -> None:
        memory, places = access(g, active)
        elements, first, file = memory.views[size], places // size, g.files[width]
        for n, to in targets:
            found = elements[first + n]
            if kind[0] == "s" and width > 8 * size:
                found = found.view(f"int{8 * size}").astype(signed).view(file.dtype)
            if active is None:
                file[to][...] = found
            else:
                file[to][active] = found

    return Masked(load)


@decodes("st")
def _store(p: Program, i: Instruction, pc: int) -> Masked:
    kind = i.modifiers[-1]
    size = BYTES[kind]
    names = registers_of(i.operands[1])
    at = address_of(p, i.operands[0], i.scope)
    known = p.kernel.registers.get(scoped(names[0], i.scope))
    width = known.width if known else VIEWS[kind][1]
    sources = [p.operand(name, width, i.scope) for name in names]
    total = size * len(names)
    access = _access(i, pc, at, total, "write")

    def store(g: Group, active: Array | None) -> None:
        memory, places = access(g, active)
        elements, first, file = memory.views[size], places // size, g.files[width]
        for n, source in enumerate(sources):
            value = file[source] if active is None else file[source][active]
            elements[first + n] = value

    return Masked(store)


def _count_matrices(g: Group, name: str, places: Array) -> None:
    """Count accesses of 8 x 8 matrices, each of which has 8 rows of 16 bytes."""
    assert g.cta.traffic is not None
    matrices = places.reshape(-1, 8)
    g.cta.traffic.shared(name, matrices, 16, np.repeat(np.arange(len(matrices)), 8))


@decodes("ldmatrix")
def _load_matrix(p: Program, i: Instruction, pc: int) -> Masked:
    targets = [p.operand(name, 32) for name in registers_of(i.operands[0])]
    at, transposed, count = address_of(p, i.operands[1], i.scope), "trans" in i.modifiers, len(targets)

    def load(g: Group, active: Array | None) -> None:
        if active is not None:
            raise Fault("ldmatrix of a part of a warp")
        places = g.cta.shared.place(addresses(g, at)[:, : 8 * count], 16)
        if g.cta.shadow is not None:
            g.cta.shadow.read(places, 16, g.warp[:, : 8 * count].reshape(-1), pc)
        if g.cta.traffic is not None:
            _count_matrices(g, "ldmatrix", places)
        words = g.cta.shared.views[4][(places // 4)[..., None] + np.arange(4)].reshape(g.warps, count, 8, 4)
        for n, to in enumerate(targets):
            matrix = np.ascontiguousarray(words[:, n])
            if transposed:
                halves = matrix.view(np.uint16).transpose(0, 2, 1)
                matrix = np.ascontiguousarray(halves).view(np.uint32)
            g.u32[to][...] = matrix.reshape(g.shape)

    return Masked(load)


@decodes("stmatrix")
def _store_matrix(p: Program, i: Instruction, pc: int) -> Masked:
    sources = [p.operand(name, 32) for name in registers_of(i.operands[1])]
    at, transposed, count = address_of(p, i.operands[0], i.scope), "trans" in i.modifiers, len(sources)

    def store(g: Group, active: Array | None) -> None:
        if active is not None:
            raise Fault("stmatrix of a part of a warp")
        places = g.cta.shared.place(addresses(g, at)[:, : 8 * count], 16)
        if g.cta.shadow is not None:
            g.cta.shadow.write(places, 16, g.warp[:, : 8 * count].reshape(-1), pc)
        if g.cta.traffic is not None:
            _count_matrices(g, "stmatrix", places)
        first = (places // 4).reshape(g.warps, count, 8)[..., None] + np.arange(4)
        for n, source in enumerate(sources):
            matrix = np.ascontiguousarray(g.u32[source]).reshape(g.warps, 8, 4)
            if transposed:
                halves = matrix.view(np.uint16).transpose(0, 2, 1)
                matrix = np.ascontiguousarray(halves).view(np.uint32)
            g.cta.shared.views[4][first[:, n]] = matrix

    return Masked(store)


def _all(g: Group, active: Array | None) -> list[tuple[int, int]]:
    """Return the warp (relative to the group's first) and the lane of each thread that executes an instruction."""
    chosen = np.ones(g.shape, bool) if active is None else active
    return [(int(w), int(lane)) for w, lane in zip(*np.nonzero(chosen), strict=True)]


@decodes("cp")
def _copy(p: Program, i: Instruction, pc: int) -> Masked:
    if i.modifiers[:2] == ("async", "bulk"):
        return _bulk_copy(p, i, pc)
    if i.modifiers[1] == "commit_group":
        return Masked(lambda g, active: g.cta.commit_copies(g))
    if i.modifiers[1] == "wait_group":
        left = int(i.operands[0], 0)
        return Masked(lambda g, active: g.cta.wait_for_copies(g, left))
    to, source, size = address_of(p, i.operands[0]), address_of(p, i.operands[1]), int(i.operands[2], 0)
    given = p.operand(i.operands[3], 32) if len(i.operands) > 3 else p.operand(i.operands[2], 32)

    def start(g: Group, active: Array | None) -> None:
        cta, every = g.cta, np.ones(g.shape, bool) if active is None else active
        targets, sources, counts = addresses(g, to), addresses(g, source), g.u32[given]
        for w in range(g.warps):
            chosen = every[w]
            if not chosen.any():
                continue
            number = g.low + w
            places = cta.shared.place(targets[w][chosen], size)
            filled = counts[w][chosen] > 0
            found = cta.memory.place(sources[w][chosen][filled], size)
            if cta.traffic is not None:
                cta.traffic.moved("copy", found, size, np.full(len(found), number))
            if cta.shadow is not None:
                actor = cta.clocks.copies(number)
                cta.shadow.write_copy(places, size, number, actor, int(cta.clocks.issued[actor]) + 1, pc)

            def finish(places: Array = places, filled: Array = filled, found: Array = found) -> None:
                values = np.zeros((len(places), size), np.uint8)
                values[filled] = cta.memory.views[1][found[:, None] + np.arange(size)]
                cta.shared.views[1][places[:, None] + np.arange(size)] = values

            cta.add_copy(number, finish)

    return Masked(start)


def _bulk_copy(p: Program, i: Instruction, pc: int) -> Masked:
    if i.modifiers[2] == "commit_group":
        return Masked(lambda g, active: g.cta.commit_stores(g))
    if i.modifiers[2] == "wait_group":
        left = int(i.operands[0], 0)
        return Masked(lambda g, active: g.cta.wait_for_stores(g, left))
    if i.modifiers[2] != "tensor":
        raise ValueError("a bulk copy without a tensor map")
    loads = i.modifiers[4].startswith("shared")
    tile, tensor = (i.operands[0], i.operands[1]) if loads else (i.operands[1], i.operands[0])
    match = re.fullmatch(r"\[\s*([%\w]+)\s*,\s*\{(.*)\}\s*\]", tensor)
    if match is None:
        raise ValueError(f"tensor {tensor}")
    tensor_map = p.operand(match[1], 64)
    coordinates = [p.operand(c, 32) for c in split(match[2])][::-1]
    at = address_of(p, tile, i.scope)
    barrier = address_of(p, i.operands[2], i.scope) if loads else at

    def start(g: Group, active: Array | None) -> None:
        tiles, barriers = addresses(g, at), addresses(g, barrier)
        for w, lane in _all(g, active):
            found = g.cta.maps.get(int(g.u64[tensor_map][w, lane]))
            if found is None:
                raise Fault("a bulk copy without a tensor map")
            start_at = [int(g.i32[c][w, lane]) for c in coordinates]
            if loads:
                g.cta.start_bulk_load(found, start_at, int(tiles[w, lane]), int(barriers[w, lane]), g.low + w, pc)
            else:
                g.cta.start_bulk_store(found, start_at, int(tiles[w, lane]), g.low + w, pc)

    return Masked(start)


# -- order -------------------------------------------------------------------------------------------


@decodes("fence")
def _fence(p: Program, i: Instruction, pc: int) -> Masked:
    if i.modifiers[:2] == ("proxy", "async"):
        return Masked(lambda g, active: g.cta.clocks.fence(g.slice))
    return Masked(lambda g, active: None)


@decodes("setmaxnreg", "griddepcontrol", "nanosleep")
def _ignored(p: Program, i: Instruction, pc: int) -> Step:
    return _nothing


def _guard_of(i: Instruction, g: Group) -> Array:
    """Return for each warp whether an instruction is executed.

    Raises:
        Fault: if the threads of a warp differ.
    """
    if i.guard is None:
        return np.ones(g.warps, bool)
    value = g.pred[i.guard.number]
    taken = value[:, 0]
    if (value != taken[:, None]).any():
        raise Fault("the threads of a warp differ in whether they execute the instruction")
    return ~taken if i.guard_negated else taken


@decodes("bra")
def _branch(p: Program, i: Instruction, pc: int) -> Control:
    label = scoped(i.operands[0], i.scope) if not i.operands[0].startswith("$") else i.operands[0]

    def branch(g: Group) -> int | None:
        to = p.kernel.labels[label]
        taken = _guard_of(i, g)
        return g.cta.part(g, [to if t else pc + 1 for t in taken])

    return Control(branch)


@decodes("ret", "exit")
def _return(p: Program, i: Instruction, pc: int) -> Control:
    def end(g: Group) -> int | None:
        taken = _guard_of(i, g)
        if not taken.any():
            return pc + 1
        if not taken.all():
            raise Fault("some warps end and others do not")
        g.cta.finish(g)
        return None

    return Control(end)


@decodes("bar", "barrier")
def _barrier(p: Program, i: Instruction, pc: int) -> Control | Step:
    if "warp" in i.modifiers or "cluster" in i.modifiers:
        return _nothing
    waits = "arrive" not in i.modifiers
    number = p.operand(i.operands[0], 32)
    threads = p.operand(i.operands[1], 32) if len(i.operands) > 1 else None

    def arrive(g: Group) -> int | None:
        taken = _guard_of(i, g)
        if not taken.any():
            return pc + 1
        if not taken.all():
            raise Fault("some warps arrive at a barrier and others do not")
        numbers = g.u32[number][:, 0]
        if (numbers != numbers[0]).any():
            raise Fault("warps arrive at several barriers")
        expected = None if threads is None else int(g.u32[threads][0, 0])
        return g.cta.arrive_at_barrier(g, pc, int(numbers[0]), expected, waits)

    return Control(arrive)


@decodes("mbarrier")
def _mbarrier(p: Program, i: Instruction, pc: int) -> Control | Masked:
    action = i.modifiers[0]
    if action in ("try_wait", "test_wait"):
        to, at = p.operand(i.operands[0], 1, i.scope), address_of(p, i.operands[1], i.scope)
        parity = p.operand(i.operands[2], 32, i.scope)

        def wait(g: Group) -> int | None:
            where, parities = addresses(g, at), g.u32[parity]
            if (where != where[:, :1]).any() or (parities != parities[:, :1]).any():
                raise Fault("the threads of a warp wait for several mbarriers")
            if not _guard_of(i, g).all():
                raise Fault("a wait with a predicate")
            done = g.cta.wait_for_mbarrier(g, pc, where[:, 0].tolist(), (parities[:, 0] & 1).tolist())
            g.pred[to][...] = np.array(done)[:, None]
            if all(done):
                return pc + 1
            for n, one in zip(g.range, done, strict=True):
                if one:
                    g.cta.warps[n].pc = pc + 1
            return None

        return Control(wait)
    return _mbarrier_step(p, i, pc)


def _mbarrier_step(p: Program, i: Instruction, pc: int) -> Masked:
    action = i.modifiers[0]
    at = address_of(p, next(o for o in i.operands if o.startswith("[")), i.scope)
    last = p.operand("1" if i.operands[-1].startswith("[") else i.operands[-1], 32)
    expects = "expect_tx" in i.modifiers

    def act(g: Group, active: Array | None) -> None:
        where = addresses(g, at)
        for w, lane in _all(g, active):
            address, number = int(where[w, lane]), int(g.u32[last][w, lane])
            g.cta.shared.place(np.array([address]), 8)
            if action == "init":
                g.cta.start_mbarrier(address, number, g.low + w, pc)
            elif action == "inval":
                g.cta.end_mbarrier(address, g.low + w, pc)
            elif action == "arrive":
                count, expected = (1, number) if expects else (number, 0)
                g.cta.arrive_at_mbarrier(address, g.low + w, count, expected, pc)
            else:
                g.cta.use_mbarrier(address, g.low + w, pc).bytes += number

    return Masked(act)


# -- matrix products ---------------------------------------------------------------------------------


@decodes("mma")
def _mma(p: Program, i: Instruction, pc: int) -> Step:
    m, n, k = (int(x) for x in re.fullmatch(r"m(\d+)n(\d+)k(\d+)", i.modifiers[2]).groups())  # type: ignore[union-attr]
    kind = i.modifiers[6]
    width = 64 if kind == "f64" else 32
    to, a, b, c = ([p.operand(name, width) for name in registers_of(o)] for o in i.operands)
    multiply = products.mma(kind, m, n, k)

    def step(g: Group) -> None:
        file = g.files[width]
        result = multiply(file[a], file[b], file[c])
        file[to] = result

    return step


@decodes("wgmma")
def _wgmma(p: Program, i: Instruction, pc: int) -> Masked:
    if i.modifiers[0] == "fence":
        return Masked(lambda g, active: None)
    if i.modifiers[0] == "commit_group":
        return Masked(lambda g, active: g.cta.commit_products(g))
    if i.modifiers[0] == "wait_group":
        p.products.add(pc)
        left = int(i.operands[0], 0)
        return Masked(lambda g, active: g.cta.wait_for_products(g, left))
    return _start_product(p, i, pc)


def _start_product(p: Program, i: Instruction, pc: int) -> Masked:
    n, k = (int(x) for x in re.fullmatch(r"m64n(\d+)k(\d+)", i.modifiers[3]).groups())  # type: ignore[union-attr]
    kind = i.modifiers[5]
    to = products.run_of([p.operand(name, 32) for name in registers_of(i.operands[0])])
    in_registers = i.operands[1].startswith("{")
    a = [p.operand(name, 32) for name in registers_of(i.operands[1])] if in_registers else None
    a_descriptor = -1 if in_registers else p.operand(i.operands[1], 64)
    b_descriptor = p.operand(i.operands[2], 64)
    scale = i.operands[3]
    keep_at = p.operand(scale, 1, i.scope) if scale.startswith("%") or scale[0].isalpha() else None
    keep = None if keep_at is not None else bool(int(scale))
    signs, flags = [int(o) for o in i.operands[4:6]], [bool(int(o)) for o in i.operands[6:]]
    if signs != [1, 1]:
        raise ValueError("a negated factor")
    a_transposed, b_transposed = (False, *flags) if in_registers and flags else tuple(flags or (False, False))
    p.products.add(pc)
    written = sum(1 << p.operand(name, 32) for name in registers_of(i.operands[0]))
    read = sum(1 << r for r in a) if a is not None else 0
    unfenced = _unfenced(p, pc, written | read)
    element = 4 if kind == "tf32" else 2

    def start(g: Group, active: Array | None) -> None:
        if active is not None:
            raise Fault("a matrix product of a part of a warp")
        if unfenced:
            raise Fault(f"registers of a matrix product are not ordered by wgmma.fence, because of {{{unfenced[0]}}}")
        cta = g.cta
        for low, high in _same(g, [b_descriptor] if in_registers else [a_descriptor, b_descriptor]):
            start_for(cta.group(low, high))

    def start_for(g: Group) -> None:
        """Start the products of adjacent warps that read the same factors from shared memory."""
        cta = g.cta
        b_places = products.tile_places(int(g.u64[b_descriptor][0, 0]), n, k, element, b_transposed)
        tiles = [b_places]
        if not in_registers:
            tiles.append(products.tile_places(int(g.u64[a_descriptor][0, 0]), 64, k, element, a_transposed))
        for places in tiles:
            if places.max() + element > cta.shared.limit:
                raise Fault("a matrix product reads beyond shared memory")
            if cta.traffic is not None:  # the four warps of a warp group read a tile once together
                cta.traffic.add("wgmma shared bytes", places.size * element * g.warps // 4)
            if cta.shadow is not None:
                actors = np.array([cta.clocks.products(w) for w in g.range])
                cta.shadow.read_async(parts_of(places, element), g.range, actors, pc)
        keeps = np.full(g.warps, keep) if keep_at is None else g.pred[keep_at][:, 0].copy()

        def finish(group: Group) -> None:
            file, in_memory = group.files[32], cta.shared.views[element]
            if a is not None:
                left = products.left_from_registers(file[a], kind)
            else:
                left = products.left_from_tile(in_memory[tiles[1] // element], kind, group.range)
            right = products.values(in_memory[b_places // element], kind)
            kept = keeps[group.low - g.low : group.high - g.low]
            file[to] = products.accumulate(file[to], left, right, kept)

        if cta.policy.products == "early":
            finish(g)
            return
        for w in g.range:
            later = functools.partial(finish, cta.group(w, w + 1))
            cta.warps[w].open_products.append(Product(later, written, read))

    return Masked(start)


def _same(g: Group, descriptors: list[int]) -> list[tuple[int, int]]:
    """Return the ranges of adjacent warps of a group whose descriptors are equal."""
    runs: list[tuple[int, int]] = []
    before: list[int] | None = None
    for n in g.range:
        values = [int(g.u64[d][n - g.low, 0]) for d in descriptors]
        if values == before:
            runs[-1] = (runs[-1][0], n + 1)
        else:
            runs.append((n, n + 1))
        before = values
    return runs


def _unfenced(p: Program, pc: int, used: int) -> list[int]:
    """Return the position of an instruction that writes registers of a product without a later wgmma.fence, if any.

    Moves between registers are ignored, because LLVM places some of them after the fence, and ptxas removes them.
    """
    for before in range(pc - 1, -1, -1):
        i = p.kernel.instructions[before]
        if i.opcode == "wgmma" and i.modifiers[0] == "fence":
            return []
        if i.opcode == "bra" or (i.opcode not in ("wgmma", "mov") and _register_masks(p, i)[1] & used):
            return [before]
    return [0]


_WITHOUT_RESULT = {"st", "cp", "bar", "barrier", "bra", "ret", "fence", "mbarrier", "stmatrix", "wgmma", "membar"}


def _register_masks(p: Program, i: Instruction) -> tuple[int, int]:
    """Return a tuple of bit masks of the 32-bit registers that an instruction reads and writes.

    The sums of matrix products are not included.
    """

    def mask(texts: Sequence[str]) -> int:
        found = 0
        for text in texts:
            for name in re.findall(r"%\w+", text):
                register = p.kernel.registers.get(name)
                if register is not None and register.width == 32:
                    found |= 1 << register.number
        return found

    if i.opcode == "wgmma":
        return mask(i.operands[1:]), 0
    if i.opcode in _WITHOUT_RESULT or not i.operands:
        return mask(i.operands), 0
    return mask(i.operands[1:]), mask(i.operands[:1])
