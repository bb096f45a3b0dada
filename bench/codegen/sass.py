"""Machine code as nvdisasm prints it: instructions, their operands, labels, and the registers they write."""

from __future__ import annotations

import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_TARGET = re.compile(r"`\(([^)]+)\)")
_REGISTER = re.compile(r"R(\d+)(?:\.\w+)*")
_PREDICATE = re.compile(r"!?U?P(?:T|R|\d+)")
_OPERAND = re.compile(r"(?:[^,\[(]|\[[^\]]*\]|\([^)]*\))+")  # commas inside brackets do not separate operands
_MMA_SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)\b")
_PACKED_SHAPES = {"16816": (16, 8, 16), "16832": (16, 8, 32), "1688": (16, 8, 8), "1684": (16, 8, 4), "884": (8, 8, 4)}

_A_WIDTH = 4  # number of registers of a thread for 64 rows of 32 bytes that are spread over 128 threads, in every dtype
# These instructions only read their operands, although the first operand may be a general register.
_READERS = frozenset(
    {"BAR", "BPT", "BRA", "BRX", "BRXU", "BSYNC", "CALL", "DEPBAR", "EXIT", "JMP", "JMX", "JMXU", "NANOSLEEP", "R2B"}
    | {"RED", "RET", "STG", "STL", "STS", "WARPSYNC"}
)
# These instructions write only the predicates among the first operands, and read all other operands.
_PREDICATE_WRITERS = frozenset(
    {"DSETP", "FCHK", "FSETP", "HSETP2", "ISETP", "PLOP3", "PSETP", "QSPC", "R2P", "SYNCS", "UISETP", "UPLOP3", "VSETP"}
)
_DOUBLE = frozenset({"DADD", "DFMA", "DMUL"})
_LOADS = ("LD", "ATOM")  # prefixes of LDG, LDS, LDL, LDC, LDSM, ATOMG and others
_WIDTHS = {"64": 2, "128": 4, "256": 8}  # number of registers of the result, by the modifier of a load


class Instruction(NamedTuple):
    """A machine instruction.

    If the instruction has a predicate, such as ``!P0``, the field ``guard`` holds its name.
    """

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        """The parts of the opcode after its name, which are separated by dots."""
        return self.opcode.split(".")[1:]

    @property
    def target(self) -> str | None:
        """The label among the operands, or None."""
        return next((found.group(1) for operand in self.operands if (found := _TARGET.search(operand))), None)

    @property
    def is_wgmma(self) -> bool:
        """Whether the instruction is an asynchronous matrix product of a warp group, such as HGMMA."""
        return self.name.endswith("GMMA")

    @property
    def is_mma(self) -> bool:
        """Whether the instruction is a matrix product on tensor cores."""
        return self.name.endswith("MMA")

    @property
    def is_wgmma_wait(self) -> bool:
        """Whether the instruction waits for asynchronous matrix products."""
        return self.name == "WARPGROUP" and "DEPBAR" in self.modifiers

    @property
    def macs(self) -> int:
        """The number of multiplications in a matrix product of a warp or warp group; 0 for other instructions.

        Raises:
            ValueError: if the shape of the product is unknown.
        """
        if not self.is_mma:
            return 0
        found = _MMA_SHAPE.search(self.opcode)
        packed = (_PACKED_SHAPES[modifier] for modifier in self.modifiers if modifier in _PACKED_SHAPES)
        shape = tuple(map(int, found.groups())) if found else next(packed, None)
        if shape is None:
            raise ValueError(f"{self.opcode} has no known shape")
        return shape[0] * shape[1] * shape[2]

    @property
    def written(self) -> range:
        """The general registers that the instruction may write.

        An unknown instruction is assumed to write its first operand.
        """
        if self.is_wgmma:
            return self.accumulator
        first = self._destination()
        return range(0) if first is None else range(first, first + self._width())

    @property
    def accumulator(self) -> range:
        """The registers for the result of a warp group's product, 64 rows of N numbers over 128 threads."""
        first = register(self.operands[0])
        if first is None:
            return range(0)
        _, columns, _ = (int(size) for size in self.modifiers[0].split("x"))
        return range(first, first + columns // (4 if self.modifiers[1] == "F16" else 2))

    @property
    def a_operand(self) -> range:
        """The registers of the left operand of a warp group's product, or none if it is in shared memory."""
        first = register(self.operands[1])
        return range(0) if first is None else range(first, first + _A_WIDTH)

    def _destination(self) -> int | None:
        """Return the first register that is written, or None."""
        if self.name in _READERS:
            return None
        if self.name in _PREDICATE_WRITERS and self.operands and is_predicate(self.operands[0]):
            return None
        return next((register(operand) for operand in self.operands if not is_predicate(operand)), None)

    def _width(self) -> int:
        """Return the number of registers that the result takes."""
        name, modifiers = self.name, self.modifiers
        if name == "CS2R":
            return 1 if "32" in modifiers else 2
        if name in _DOUBLE or "WIDE" in modifiers:
            return 2
        if name == "LDSM":  # the instruction loads 1, 2 or 4 matrices
            return int(modifiers[-1]) if modifiers[-1] in ("2", "4") else 1
        if name == "DMMA":
            return 4 if {"884", "8x8x4"} & set(modifiers) else 8
        if name.endswith("MMA"):  # the result of a warp's product has 8 or 16 rows of 8 numbers, spread over 32 threads
            return 2 if modifiers[0].startswith("88") or (name == "HMMA" and modifiers[1] == "F16") else 4
        if name in ("F2F", "I2F", "FRND"):
            return 2 if modifiers[:1] == ["F64"] or (name == "I2F" and "F64" in modifiers) else 1
        if name == "F2I":
            return 2 if {"S64", "U64"} & set(modifiers) else 1
        if name.startswith(_LOADS) or name in ("MOV", "LEPC", "SYNCS"):
            return max([_WIDTHS[size] for size in modifiers if size in _WIDTHS], default=2 if name == "LEPC" else 1)
        return 2 if "64" in modifiers else 1

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


class Program(NamedTuple):
    """The instructions of a program in the order of addresses, and the index of the instruction after each label."""

    instructions: list[Instruction]
    labels: dict[str, int]


def parse(text: str) -> Program:
    """Parse the machine code that ``nvdisasm -c`` has printed.

    Raises:
        ValueError: if the text has no instruction.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            address, guard, opcode, operands = found.groups()
            split = tuple(filter(None, (operand.strip() for operand in _OPERAND.findall(operands))))
            instructions.append(Instruction(int(address, 16), guard or "", opcode, split))
    if not instructions:
        raise ValueError("no instruction was found in the disassembly")
    return Program(instructions, labels)


def register(operand: str) -> int | None:
    """Return the number of a general register, such as ``R12`` or ``R12.reuse``.

    For RZ and any other operand, return None.
    """
    found = _REGISTER.fullmatch(operand)
    return int(found.group(1)) if found else None


def is_predicate(operand: str) -> bool:
    """Return whether an operand is a predicate, such as ``P0``, ``!UP3`` or ``PT``."""
    return _PREDICATE.fullmatch(operand) is not None
