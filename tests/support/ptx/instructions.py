"""Translation of PTX instructions to Python functions that execute them for a group of warps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import products
from .kernel import Instruction, Kernel, Register, scoped, split
from .machine import LANES, Group, Pending, runs_of
from .memory import SHARED_BASE, Fault, shared_wavefronts
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
    "b16": ("u16", 16), "u16": ("u16", 16), "s16": ("i16", 16), "f16": ("u16", 16), "bf16": ("u16", 16),
    "b32": ("u32", 32), "u32": ("u32", 32), "s32": ("i32", 32), "f32": ("f32", 32), "tf32": ("u32", 32),
    "f16x2": ("u32", 32), "bf16x2": ("u32", 32),
    "b64": ("u64", 64), "u64": ("u64", 64), "s64": ("i64", 64), "f64": ("f64", 64),
    "b8": ("u16", 16), "u8": ("u16", 16), "s8": ("i16", 16),
}  # fmt: skip
BYTES = {kind: 1 if kind in ("b8", "u8", "s8") else width // 8 for kind, (_, width) in VIEWS.items()}
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
            except (KeyError, ValueError, IndexError, TypeError, Fault) as error:
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
        special |= {f"&{name}": address for name, address in self.parameter_addresses.items()}
        for axis, at_axis, size in zip("xyz", index, grid, strict=True):
            special[f"%ctaid.{axis}"], special[f"%nctaid.{axis}"] = at_axis, size
        for (width, name), at in self._named.items():
            value = special[name] if name in special else values[name]
            if isinstance(value, float):
                files[width][at].view({32: np.float32, 64: np.float64}[width])[...] = value
            else:
                files[width][at] = value & ((1 << width) - 1)

    def _new(self, width: int) -> int:
        self.counts[width] += 1
        return self.counts[width] - 1

    def named(self, width: int, name: str) -> int:
        """Return the index of a register that holds a parameter or a special register."""
        if (width, name) not in self._named:
            self._named[width, name] = self._new(width)
        return self._named[width, name]

    def register(self, text: str, scope: str = "") -> Register:
        return self.kernel.registers[scoped(text, scope)]

    def width(self, text: str, scope: str = "", otherwise: int = 32) -> int:
        """Return the width of the register that an operand names, or another number if the operand is a constant."""
        known = self.kernel.registers.get(scoped(text, scope))
        return known.width if known else otherwise

    def operand(self, text: str, width: int, scope: str = "") -> int:
        """Return the index of the register that holds an operand: a register, or a new one with a constant.

        For ``_``, the place of a result that is not used, return an unused register.
        """
        known = self.kernel.registers.get(scoped(text, scope))
        if known is not None:
            if known.width != width:
                raise ValueError(f"{text} has {known.width} bits instead of {width}")
            return known.number
        if text == "_":
            return self._new(width)
        if text.startswith("%") or text == "global_smem":
            return self.named(width, text)
        if text in self.parameter_addresses:
            return self.named(width, "&" + text)
        if text[:2] in ("0f", "0d"):
            if width != {"0f": 32, "0d": 64}[text[:2]]:
                raise ValueError(f"{text} with {width} bits")
            value = int(text[2:], 16)
        else:
            value = int(text.rstrip("U"), 0) & ((1 << width) - 1)
        if (width, value) not in self._constants:
            self._constants[width, value] = self._new(width)
        return self._constants[width, value]

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
        names = split(i.operands[0].strip("{}")) if i.operands[0][0] == "{" else i.operands[0].split("|")
        written = [self.register(name, i.scope) for name in names if name != "_"]

        def run(g: Group) -> None:
            active = _active(i, g)
            if active is None or active.all():
                step(g)
            elif active.any():
                before = [g.files[r.width][r.number].copy() for r in written]
                step(g)
                for r, old in zip(written, before, strict=True):
                    np.copyto(g.files[r.width][r.number], old, where=~active)

        return run


def _nothing(g: Group) -> None:
    """Do nothing."""


def _active(i: Instruction, g: Group) -> Array | None:
    """Return the mask of the threads for which an instruction's predicate is true, or None without a predicate."""
    if i.guard is None:
        return None
    value = g.pred[i.guard.number]
    return ~value if i.guard_negated else value


def _mask(i: Instruction, run: Callable[[Group, Array | None], bool | None], pc: int, acted: set[int]) -> Step:
    """Return a step that calls a function with a mask of the threads for which an instruction's predicate is true."""

    def step(g: Group) -> None:
        try:
            active = _active(i, g)
            if active is not None and not active.any():
                return
            if run(g, None if active is None or active.all() else active) is not False:
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


def _computed(
    p: Program, i: Instruction, function: Callable[..., Any], kinds: Sequence[str], operands: Sequence[str | int] = ()
) -> Step:
    """Return a step that writes the result of a NumPy function of registers into a register.

    Numbers of 16 bits are converted to float32 before the function, and its result is rounded.

    Args:
        p: the program.
        i: the instruction.
        function: the function.
        kinds: PTX type of the result and of each argument.
        operands: operands, or indices of registers, for the result and the arguments (default: all operands).
    """
    registers = [
        p.operand(operand, VIEWS[kind][1], i.scope) if isinstance(operand, str) else operand
        for operand, kind in zip(operands or i.operands, kinds, strict=True)
    ]
    step: Step = _template(isinstance(function, np.ufunc), *kinds)(function, *registers)
    return step


@functools.cache
def _template(has_out: bool, *kinds: str) -> Any:
    """Return a function that makes the step of :func:`_computed`, as compiled Python code for the types.

    The code is faster than a loop over the arguments.
    """
    halves = [kind.removesuffix("x2") if kind.endswith(("f16", "f16x2")) else None for kind in kinds]
    places = [f"g.{VIEWS[kind][0]}[r{n}]" + ".view(np.uint16)" * bool(halves[n]) for n, kind in enumerate(kinds)]
    arguments = [f"from_{half}({place})" if half else place for half, place in zip(halves, places, strict=True)][1:]
    call = f"function({', '.join(arguments)})"
    if halves[0]:
        call = f"{places[0]}[...] = to_{halves[0]}({call}.astype(np.float32, copy=False))"
    else:
        call = f"{call[:-1]}, out={places[0]})" if has_out else f"{places[0]}[...] = {call}"
    names = ", ".join(f"r{n}" for n in range(len(kinds)))
    found: dict[str, Any] = {}
    exec(f"def make(function, {names}):\n def step(g):\n  {call}\n return step", {"np": np, **vars(products)}, found)
    return found["make"]


def _wide(x: Array) -> Array:
    return x.astype(f"{x.dtype.kind}{2 * x.itemsize}")


def _fma(a: Array, b: Array, c: Array) -> Array:
    """Multiply and add in a wider type, so that the sum is rounded once."""
    return a.astype(np.longdouble if a.itemsize == 8 else np.float64) * b + c


# Functions whose arguments and result have the type with which the name of the instruction ends. A key with a modifier
# precedes a key for floating-point types, and both precede a key without addition.
FUNCTIONS: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "neg": np.negative, "abs": np.abs, "not": np.invert, "ex2": np.exp2, "rcp": np.reciprocal,
    "max.NaN": np.maximum, "max.float": np.fmax, "max": np.maximum,
    "min.NaN": np.minimum, "min.float": np.fmin, "min": np.minimum,
    "mul.wide": lambda a, b: _wide(a) * b, "mul.hi": lambda a, b: _wide(a) * b >> 8 * a.itemsize, "mul": np.multiply,
    "mad.wide": lambda a, b, c: _wide(a) * b + c, "mad": lambda a, b, c: a * b + c, "fma": _fma,
    "div.float": np.divide, "div": lambda a, b: (a - np.fmod(a, b)) // b, "rem": np.fmod,
}  # fmt: skip


def _is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf"))


@decodes(*(name for name in FUNCTIONS if "." not in name))
def _arithmetic(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    additions = [*i.modifiers, *["float"] * _is_float(kind)]
    function = next((f for a in additions if (f := FUNCTIONS.get(f"{i.opcode}.{a}"))), FUNCTIONS[i.opcode])
    kinds = [kind] * len(i.operands)
    if i.modifiers[0] == "wide":  # the factors are narrower than the result and the summand
        kinds[0] = f"{kind[0]}{2 * VIEWS[kind][1]}"
        kinds[3:] = kinds[:1] * (len(kinds) - 3)
    return _computed(p, i, function, kinds)


@decodes("shl", "shr")
def _shift(p: Program, i: Instruction, pc: int) -> Step:
    """Shift a register. NumPy, like PTX, defines shifts by the width of the register or more."""
    kind = i.modifiers[-1]
    function = np.left_shift if i.opcode == "shl" else np.right_shift
    return _computed(p, i, function, (kind, kind, "s32" if kind[0] == "s" else "u32"))


@decodes("bfe")
def _bit_field(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]

    def extract(a: Array, start: Array, length: Array) -> Array:
        n = length.astype(np.int64)
        value = (a.astype(np.int64) >> start) & ((1 << n) - 1)
        negative = (kind[0] == "s") & (n > 0) & (value >> np.maximum(n - 1, 0) & 1 == 1)
        return np.where(negative, value - (1 << n), value)

    return _computed(p, i, extract, (kind, "b32", "b32", "b32"))


@decodes("prmt")
def _permute_bytes(p: Program, i: Instruction, pc: int) -> Step:
    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = np.stack([a, b], -1).view(np.uint8)
        selectors = (selector[..., None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
        found = np.take_along_axis(both, (selectors & 7).astype(np.int64), -1)
        found = np.where(selectors & 8, (found >> 7) * 0xFF, found).astype(np.uint8)
        return np.ascontiguousarray(found).view(np.uint32)[..., 0]

    return _computed(p, i, permute, ["b32"] * 4)


@decodes("selp")
def _select(p: Program, i: Instruction, pc: int) -> Step:
    kind = f"b{VIEWS[i.modifiers[-1]][1]}"
    return _computed(p, i, lambda a, b, chosen: np.where(chosen, a, b), (kind, kind, kind, "pred"))


def _unordered(function: Any) -> Any:
    return lambda a, b: function(a, b) | (a != a) | (b != b)


_COMPARE: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_COMPARE_FLOAT: dict[str, Any] = {
    **_COMPARE,
    **{f"{name}u": _unordered(_COMPARE[name]) for name in ("eq", "lt", "le", "gt", "ge")},
    "ne": lambda a, b: (a < b) | (a > b),
    "neu": np.not_equal,
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}


@decodes("setp")
def _compare(p: Program, i: Instruction, pc: int) -> Step:
    kind = i.modifiers[-1]
    compare = (_COMPARE_FLOAT if _is_float(kind) else _COMPARE)[i.modifiers[0]]
    targets, *sources = i.operands
    if not kind.endswith("x2"):
        return _computed(p, i, compare, ("pred", kind, kind))
    steps = [  # one step for each number of a pair
        _computed(p, i, lambda a, b, n=n: compare(a, b)[:, n::2], ("pred", kind, kind), (target, *sources))
        for n, target in enumerate(targets.split("|"))
    ]

    def both(g: Group) -> None:
        for step in steps:
            step(g)

    return both


def _unchanged(x: Array) -> Array:
    return x


@decodes("mov", "cvta")
def _mov(p: Program, i: Instruction, pc: int) -> Step:
    width = VIEWS[i.modifiers[-1]][1]
    unpacks = i.operands[0].startswith("{")
    whole, parts = i.operands if not unpacks else i.operands[::-1]
    if not parts.startswith("{"):
        return _computed(p, i, _unchanged, ["pred" if width == 1 else f"b{width}"] * 2)
    names = split(parts[1:-1])
    part = width // len(names)
    at, numbered = p.operand(whole, width, i.scope), [(n, p.operand(x, part, i.scope)) for n, x in enumerate(names)]

    def step(g: Group) -> None:
        elements = g.files[width][at].view(FILE_TYPES[part]).reshape(*g.shape, -1)
        for n, register in numbered:
            if unpacks:
                g.files[part][register][...] = elements[..., n]
            else:
                elements[..., n] = g.files[part][register]

    return step


_ROUNDING: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _in_register(kind: str, width: int) -> str:
    """Return the type of a whole register that holds a number of a type, which may be a narrower integer."""
    return kind if _is_float(kind) else f"{kind[0]}{width}"


@decodes("cvt")
def _convert(p: Program, i: Instruction, pc: int) -> Step:
    to, source = i.modifiers[-2:]
    if to.endswith("x2"):
        return _computed(p, i, lambda high, low: np.stack([low, high], -1).reshape(len(low), -1), (to, source, source))
    if to == "tf32":
        return _computed(p, i, products.round_to_tf32, ("b32", "b32"))
    rounding = next((f for mode, f in _ROUNDING.items() if mode in i.modifiers), _unchanged)
    types = [None if _is_float(k) else np.dtype(f"{'i' if k[0] == 's' else 'u'}{BYTES[k]}") for k in (to, source)]
    saturates = "sat" in i.modifiers

    def convert(x: Array) -> Array:
        x = rounding(x if types[1] is None else x.astype(types[1]))
        if saturates:
            x = np.where(x == x, np.clip(x, 0, 1), 0)
        if types[0] is None:
            return x
        if types[1] is None:
            limits = np.iinfo(types[0])
            x = np.clip(np.where(x == x, x, 0).astype(np.longdouble), limits.min, limits.max)
        return x.astype(types[0])

    widths = [p.width(text, i.scope, VIEWS[kind][1]) for text, kind in zip(i.operands, (to, source), strict=True)]
    return _computed(p, i, convert, [_in_register(k, w) for k, w in zip((to, source), widths, strict=True)])


@decodes("elect")
def _elect(p: Program, i: Instruction, pc: int) -> Step:
    """Choose lane 0 of each warp."""
    lane, chosen = i.operands[0].split("|")
    to, at = p.operand(lane, 32), p.operand(chosen, 1, i.scope)

    def step(g: Group) -> None:
        g.u32[to][...] = 0
        g.pred[at][...] = np.arange(LANES) == 0

    return step


@decodes("shfl")
def _shuffle(p: Program, i: Instruction, pc: int) -> Step:
    mode, lanes = i.modifiers[1], np.arange(LANES)
    if mode not in ("bfly", "idx"):
        raise ValueError(mode)

    def shuffle(a: Array, count: Array, control: Array) -> Array:
        segment, bound = control >> 8 & 31, control & 31
        low = lanes & segment
        source = lanes ^ count if mode == "bfly" else low | (count & ~segment & 31)
        inside = source <= (low | (bound & ~segment))
        return np.take_along_axis(a, np.where(inside, source, lanes), -1)

    return _computed(p, i, shuffle, ("b32", "b32", "s32", "s32"), i.operands[:4])


# -- memory ------------------------------------------------------------------------------------------


def address_of(p: Program, text: str, scope: str = "") -> tuple[int, int, int]:
    """Return a tuple of the width and index of the register in an address in brackets, and the address's offset."""
    match = re.fullmatch(r"\[?\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]?", text)
    if match is None:
        raise ValueError(f"address {text}")
    width = p.width(match[1], scope)
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
    p: Program, i: Instruction, pc: int, address: str, total: int, reads: bool
) -> Callable[[Group, Array | None], tuple[Any, Array]]:
    """Return a function that gives the memory and the places that the active threads of a group access.

    The function also records the accesses for the search for races and for the counts.

    Args:
        p: the program.
        i: the instruction.
        pc: position of the instruction.
        address: the operand with the address.
        total: number of bytes that a thread accesses.
        reads: whether the instruction reads memory; otherwise it writes.
    """
    is_global, name, at = i.modifiers[0] == "global", i.name, address_of(p, address, i.scope)
    action = "read" if reads else "write"

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
            g.cta.traffic[f"{name} bytes"] += places.size * total
            if not is_global:
                g.cta.traffic[f"{name} wavefronts"] += shared_wavefronts(places, total, warp)
        return memory, places

    return access


@decodes("ld", "st")
def _load_or_store(p: Program, i: Instruction, pc: int) -> Step | Masked:
    kind, loads = i.modifiers[-1], i.opcode == "ld"
    registers, address = i.operands if loads else i.operands[::-1]
    names = registers_of(registers)
    width, size = p.width(names[0], i.scope, VIEWS[kind][1]), BYTES[kind]
    if i.modifiers[0] == "param":
        parameter = p.named(VIEWS[kind][1], address[1:-1].split("+")[0].strip())
        return _computed(p, i, _unchanged, (_in_register(kind, width), kind), (names[0], parameter))
    at = [p.operand(name, width, i.scope) for name in names]
    access = _access(p, i, pc, address, size * len(names), loads)
    element = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{size}")  # narrow numbers with a sign are extended

    def act(g: Group, active: Array | None) -> None:
        memory, places = access(g, active)
        elements, first, file = memory.views[size].view(element), places // size, g.files[width]
        for n, register in enumerate(at):
            if not loads:
                elements[first + n] = file[register] if active is None else file[register][active]
            elif active is None:
                file[register][...] = elements[first + n]
            else:
                file[register][active] = elements[first + n]

    return Masked(act)


@decodes("ldmatrix", "stmatrix")
def _move_matrices(p: Program, i: Instruction, pc: int) -> Masked:
    """Move matrices of 8 x 8 numbers of 16 bits; each of the first lanes has the address of a row of a matrix."""
    loads, transposed = i.opcode == "ldmatrix", "trans" in i.modifiers
    registers, address = i.operands if loads else i.operands[::-1]
    at = [p.operand(name, 32) for name in registers_of(registers)]
    access = _access(p, i, pc, address, 16, loads)

    def turned(matrix: Array) -> Array:
        halves = np.ascontiguousarray(matrix).view(np.uint16)
        return np.ascontiguousarray(halves.transpose(0, 2, 1) if transposed else halves).view(np.uint32)

    def move(g: Group, active: Array | None) -> None:
        if active is not None:
            raise Fault(f"{i.opcode} of a part of a warp")
        memory, places = access(g, np.broadcast_to(np.arange(LANES) < 8 * len(at), g.shape))
        rows = (places // 4).reshape(g.warps, len(at), 8, 1) + np.arange(4)
        for n, register in enumerate(at):
            if loads:
                g.u32[register][...] = turned(memory.views[4][rows[:, n]]).reshape(g.shape)
            else:
                memory.views[4][rows[:, n]] = turned(g.u32[register].reshape(g.warps, 8, 4))

    return Masked(move)


def _all(g: Group, active: Array | None) -> list[tuple[int, int]]:
    """Return the warp (relative to the group's first) and the lane of each thread that executes an instruction."""
    chosen = np.ones(g.shape, bool) if active is None else active
    return [(int(w), int(lane)) for w, lane in zip(*np.nonzero(chosen), strict=True)]


def _order(i: Instruction, kind: str) -> Masked:
    """Return the function of an instruction that commits a group of a kind of asynchronous operations or waits."""
    if i.operands:
        left = int(i.operands[0], 0)
        return Masked(lambda g, active: g.cta.wait(g, kind, left))
    return Masked(lambda g, active: g.cta.commit(g, kind))


@decodes("cp")
def _copy(p: Program, i: Instruction, pc: int) -> Masked:
    is_bulk = i.modifiers[1] == "bulk"
    if i.modifiers[1 + is_bulk] in ("commit_group", "wait_group"):
        return _order(i, "stores" if is_bulk else "copies")
    if is_bulk:
        return _bulk_copy(p, i, pc)
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
                cta.traffic["copy bytes"] += found.size * size
            if cta.shadow is not None:
                actor = cta.clocks.actor("copies", number)
                epoch = int(cta.clocks.issued[actor]) + 1
                cta.shadow.write_async(parts_of(places, size), number, actor, epoch, pc, generic=True)

            def finish(places: Array = places, filled: Array = filled, found: Array = found) -> None:
                values = np.zeros((len(places), size), np.uint8)
                values[filled] = cta.memory.views[1][found[:, None] + np.arange(size)]
                cta.shared.views[1][places[:, None] + np.arange(size)] = values

            cta.begin(number, "copies", Pending(finish))

    return Masked(start)


def _bulk_copy(p: Program, i: Instruction, pc: int) -> Masked:
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


@decodes("nanosleep")
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


def _runs_in_all(i: Instruction, g: Group) -> bool:
    """Return whether all warps of a group execute an instruction.

    Raises:
        Fault: if only some warps do.
    """
    taken = _guard_of(i, g)
    if taken.any() != taken.all():
        raise Fault("some warps end or arrive at a barrier, and others do not")
    return bool(taken.all())


@decodes("ret", "exit")
def _return(p: Program, i: Instruction, pc: int) -> Control:
    return Control(lambda g: g.cta.finish(g) if _runs_in_all(i, g) else pc + 1)


@decodes("bar")
def _barrier(p: Program, i: Instruction, pc: int) -> Control | Step:
    if i.modifiers[0] == "warp":
        return _nothing
    if i.operands != ("0",):
        raise ValueError("bar.sync with a part of the warps is not supported")
    return Control(lambda g: g.cta.arrive_at_barrier(g, pc) if _runs_in_all(i, g) else pc + 1)


@decodes("mbarrier")
def _mbarrier(p: Program, i: Instruction, pc: int) -> Control | Masked:
    action = i.modifiers[0]
    at = address_of(p, next(o for o in i.operands if o.startswith("[")), i.scope)
    last = p.operand("0" if i.operands[-1].startswith("[") else i.operands[-1], 32, i.scope)
    if action == "try_wait":
        return Control(lambda g: _wait(p, i, pc, g, addresses(g, at), g.u32[last] & 1))
    if action == "arrive" and "expect_tx" not in i.modifiers:
        raise ValueError("mbarrier.arrive without expect_tx is not supported")

    def act(g: Group, active: Array | None) -> None:
        where = addresses(g, at)
        for w, lane in _all(g, active):
            address, number, warp = int(where[w, lane]), int(g.u32[last][w, lane]), g.low + w
            g.cta.shared.place(np.array([address]), 8)
            if action == "init":
                g.cta.start_mbarrier(address, number, warp, pc)
            elif action == "inval":
                g.cta.end_mbarrier(address, warp, pc)
            else:
                g.cta.arrive_at_mbarrier(address, warp, number, pc)

    return Masked(act)


def _wait(p: Program, i: Instruction, pc: int, g: Group, where: Array, parities: Array) -> int | None:
    """Let warps wait for the phases of mbarriers, and return the next position if no warp must wait."""
    if (where != where[:, :1]).any() or (parities != parities[:, :1]).any():
        raise Fault("the threads of a warp wait for several mbarriers")
    if i.guard is not None:
        raise Fault("a wait with a predicate")
    done = g.cta.wait_for_mbarrier(g, pc, where[:, 0].tolist(), parities[:, 0].tolist())
    g.pred[p.operand(i.operands[0], 1, i.scope)][...] = np.array(done)[:, None]
    following = g.cta.part(g, [pc + one for one in done])
    return following if all(done) else None


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
    if i.modifiers[0] != "commit_group":
        p.products.add(pc)
    return _start_product(p, i, pc) if i.modifiers[0] == "mma_async" else _order(i, "products")


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
        descriptors = [b_descriptor] if in_registers else [a_descriptor, b_descriptor]
        for low, high in runs_of(g.range, lambda n: [int(g.u64[d][n - g.low, 0]) for d in descriptors]):
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
                cta.traffic["wgmma shared bytes"] += places.size * element * g.warps // 4
            if cta.shadow is not None:
                actors = np.array([cta.clocks.actor("products", w) for w in g.range])
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
            cta.begin(w, "products", Pending(functools.partial(finish, cta.group(w, w + 1)), written, read))

    return Masked(start)


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


_WITHOUT_RESULT = {"st", "cp", "bar", "bra", "ret", "fence", "mbarrier", "stmatrix", "wgmma"}


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
