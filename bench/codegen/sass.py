"""Machine code as nvdisasm prints it, parsed: instructions, their operands, labels."""

from __future__ import annotations

import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_TARGET = re.compile(r"`\(([^)]+)\)")
_REGISTER = re.compile(r"R(\d+)(?:\.\w+)*")
_PREDICATE = re.compile(r"!?U?P(?:T|R|\d+)")
_MMA_SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)\b")
_PACKED_SHAPES = {"16816": (16, 8, 16), "16832": (16, 8, 32), "1688": (16, 8, 8), "1684": (16, 8, 4), "884": (8, 8, 4)}


class Instruction(NamedTuple):
    """One machine instruction; ``guard`` is the predicate it runs under, such as ``!P0``, or empty."""

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
        """What follows the name, between dots."""
        return self.opcode.split(".")[1:]

    @property
    def target(self) -> str | None:
        """The label that it names."""
        for operand in self.operands:
            if found := _TARGET.search(operand):
                return found.group(1)
        return None

    @property
    def is_wgmma(self) -> bool:
        """An asynchronous product of a warp group: HGMMA, IGMMA, QGMMA, BGMMA."""
        return self.name.endswith("GMMA")

    @property
    def is_mma(self) -> bool:
        """Any tensor core product."""
        return self.name.endswith("MMA")

    @property
    def macs(self) -> int:
        """Multiplications of one tensor core product, by a warp or a warp group; 0 for anything else.

        Raises:
            ValueError: for a shape that isn't known.
        """
        if not self.is_mma:
            return 0
        if found := _MMA_SHAPE.search(self.opcode):
            m, n, k = map(int, found.groups())
            return m * n * k
        for shape in filter(None, map(_PACKED_SHAPES.get, self.modifiers)):
            return shape[0] * shape[1] * shape[2]
        raise ValueError(f"{self.opcode} has no known shape")

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


class Program(NamedTuple):
    """Instructions in the order of their addresses, and where each label points."""

    instructions: list[Instruction]
    labels: dict[str, int]


def parse(text: str) -> Program:
    """The code that ``nvdisasm -c`` printed.

    Raises:
        ValueError: if there is no instruction in it.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            address, guard, opcode, operands = found.groups()
            instructions.append(Instruction(int(address, 16), guard or "", opcode, _split(operands)))
    if not instructions:
        raise ValueError("no instruction was found in the disassembly")
    return Program(instructions, labels)


def register(operand: str) -> int | None:
    """The number of a general register, as in ``R12`` or ``R12.reuse``; None for all else, RZ too."""
    found = _REGISTER.fullmatch(operand)
    return int(found.group(1)) if found else None


def is_predicate(operand: str) -> bool:
    """``P0``, ``!UP3``, ``PT``."""
    return _PREDICATE.fullmatch(operand) is not None


def _split(operands: str) -> tuple[str, ...]:
    """At commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(operands):
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append(operands[start:place].strip())
            start = place + 1
    parts.append(operands[start:].strip())
    return tuple(filter(None, parts))
