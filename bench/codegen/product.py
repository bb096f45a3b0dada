"""The matrix products: what the kernel asks for, and the loop of machine code that they became."""

from __future__ import annotations

import re
from typing import NamedTuple

from .flow import Loop, loops, shortest_round
from .registers import a_operand
from .sass import Program

_DOT = re.compile(r"\btt\.dot [^\n]*")
_ASYNC_DOT = re.compile(r"\bttng\.warp_group_dot [^\n]*")  # of Gluon
_PRECISION = re.compile(r"inputPrecision = (\w+)")
_OPERANDS = re.compile(r": tensor<(\d+)x(\d+)x([a-z]\w*)> \* tensor<\d+x(\d+)x[a-z]\w*>")
_ASYNC_OPERANDS = re.compile(r": tensor<(\d+)x(\d+)x([a-z]\w*),[^*]* \* !ttg\.memdesc<\d+x(\d+)x")
_PASSES = {"tf32x3": 3, "bf16x3": 3, "bf16x6": 6}


class Dot(NamedTuple):
    """A ``tl.dot``: [rows, inner] by [inner, columns]."""

    rows: int
    columns: int
    inner: int
    dtype: str  # of the left operand: bf16, f16, f32, f64
    precision: str  # of float32

    @property
    def macs(self) -> int:
        """Multiplications, with those that a split of float32 adds."""
        passes = _PASSES.get(self.precision, 1) if self.dtype == "f32" else 1
        return self.rows * self.columns * self.inner * passes

    @property
    def tensor_cores(self) -> bool:
        """Whether they can make it: not for exact float32."""
        return self.dtype != "f32" or self.precision != "ieee"

    def is_wgmma(self, capability: int, warps: int) -> bool:
        """Whether a warp group can make it by one instruction for 64 rows."""
        return capability == 90 and warps % 4 == 0 and self.rows >= 64 and self.dtype != "f64" and self.tensor_cores


class Inner(NamedTuple):
    """The inner loop of products: how many instructions of each kind an iteration has."""

    instructions: int  # of an iteration that leaves out what is left out now and then
    wgmma_registers: int  # products of a warp group with A in registers
    wgmma_shared: int  # and with A in shared memory
    mma: int  # products of a warp: HMMA
    dmma: int  # likewise, in float64
    warp_macs: int  # multiplications of one warp, or its share in a warp group's

    @property
    def products(self) -> int:
        """All tensor core instructions."""
        return self.wgmma_registers + self.wgmma_shared + self.mma + self.dmma


def dots(ttir: str) -> list[Dot]:
    """The products in Triton's own intermediate code.

    Raises:
        ValueError: for one that isn't of two matrices.
    """
    found = []
    for line in _DOT.findall(ttir) + _ASYNC_DOT.findall(ttir):
        precision, operands = _PRECISION.search(line), _OPERANDS.search(line) or _ASYNC_OPERANDS.search(line)
        if operands is None:
            raise ValueError(f"a product of unknown form: {line}")
        rows, inner, dtype, columns = operands.groups()
        found.append(Dot(int(rows), int(columns), int(inner), dtype, precision.group(1) if precision else "ieee"))
    return found


def inner_loop(program: Program) -> Inner | None:
    """The deepest loop with tensor core products and, of several, the one that has most; None without one."""
    loop = _inner_loop(program)
    if loop is None:
        return None
    body = [program.instructions[place] for place in loop.places]
    wgmma = [instruction for instruction in body if instruction.is_wgmma]
    plain = [instruction for instruction in body if instruction.is_mma and not instruction.is_wgmma]
    in_registers = sum(bool(a_operand(instruction)) for instruction in wgmma)
    doubles = sum(instruction.name == "DMMA" for instruction in plain)
    macs = sum(instruction.macs for instruction in plain) + sum(instruction.macs for instruction in wgmma) // 4
    return Inner(
        shortest_round(program, loop),
        in_registers, len(wgmma) - in_registers, len(plain) - doubles, doubles, macs,
    )  # fmt: skip


def _inner_loop(program: Program) -> Loop | None:
    found = []
    for loop in loops(program):
        if products := sum(program.instructions[place].is_mma for place in loop.places):
            found.append((loop.depth, products, len(loop.places), loop))
    return max(found, key=lambda entry: entry[:3])[3] if found else None


def made_late(program: Program) -> tuple[int, int]:
    """How many of the inner loop's conversions to two bytes, which features end with, come when its asynchronous
    products have been waited for, and of how many."""
    loop = _inner_loop(program)
    if loop is None:
        return 0, 0
    places = sorted(loop.places)
    starts = [place for place in places if program.instructions[place].is_wgmma]
    ends = [
        place
        for place in places
        if program.instructions[place].name == "WARPGROUP" and "DEPBAR" in program.instructions[place].modifiers
    ]
    made = [place for place in places if program.instructions[place].name == "F2FP"]
    if not (starts and ends):
        return 0, len(made)
    end = min((place for place in ends if place > starts[-1]), default=places[-1])
    return sum(not starts[0] < place < end for place in made), len(made)


def unrolled(inner: Inner, asked: list[Dot], elements: int, warps: int) -> int:
    """How many of the kernel's iterations one of the machine code's is.

    Told from the number of multiplications; ``elements``, those of the left operand, say which product it is.
    """
    fitting = [dot for dot in asked if dot.rows * dot.inner == elements]
    if not fitting:
        return 1
    dot = max(fitting, key=lambda dot: dot.macs)
    # 16 rows of 8 columns are the least that a warp makes: in small tiles several make the same
    repeated = max(1, warps * 16 * 8 // (dot.rows * dot.columns))
    return max(1, round(inner.warp_macs * warps / (dot.macs * repeated)))


def per_element(inner: Inner, asked: list[Dot], elements: int, warps: int) -> float | None:
    """Instructions of one thread for each feature element, the products left out; None if none are made."""
    if not elements:
        return None
    made = elements * unrolled(inner, asked, elements, warps)
    return (inner.instructions - inner.products) * 32 * warps / made
