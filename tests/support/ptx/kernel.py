"""Parser of the PTX of one kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

REGISTER_WIDTHS = {"pred": 1, "b8": 16, "b16": 16, "u16": 16, "s16": 16, "b32": 32, "u32": 32, "s32": 32, "f32": 32,
                   "b64": 64, "u64": 64, "s64": 64, "f64": 64}  # fmt: skip


class Register(NamedTuple):
    """A register of the threads: its width in bits (1 for a predicate) and its number among registers of this width."""

    width: int
    number: int


class Parameter(NamedTuple):
    """A kernel parameter.

    If the parameter is an array, which holds a tensor map, ``size`` is its number of bytes, and otherwise 0.
    """

    name: str
    type: str
    size: int


class Instruction(NamedTuple):
    """A PTX instruction, split into its parts."""

    text: str
    opcode: str  # part of the instruction's name before the first dot
    modifiers: tuple[str, ...]  # other parts of the instruction's name, which are separated by dots
    operands: tuple[str, ...]  # texts of the operands, including braces and brackets
    guard: Register | None  # the predicate under which the instruction runs
    guard_negated: bool
    scope: str  # suffix of the names that the enclosing block of braces declares

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))


@dataclass
class Kernel:
    """The instructions, parameters and registers of the first kernel in a PTX text."""

    name: str
    threads: int
    parameters: list[Parameter]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # position of the instruction that follows each label
    registers: dict[str, Register] = field(default_factory=dict)
    register_counts: dict[int, int] = field(default_factory=lambda: {1: 0, 16: 0, 32: 0, 64: 0})


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_DIRECTIVE = re.compile(r"^\s*\.(?:loc|file)\b[^\n]*$", re.M)
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", re.S)
_PARAMETER = re.compile(r"\.param\b[^,]*?\.([busf]\d+)\b[^,]*?(\w+)(?:\[(\d+)\])?\s*(?:,|$)")
_LABEL = re.compile(r"([$\w]+):(?!:)")
_GUARD = re.compile(r"@(!?)(%?\w+)\s+(.*)", re.S)


def parse(ptx: str) -> Kernel:
    """Return the first kernel of a PTX text.

    Raises:
        ValueError: if the text has no kernel.
    """
    text = _DIRECTIVE.sub("", _COMMENT.sub("", ptx))
    entry = _ENTRY.search(text)
    if entry is None:
        raise ValueError("the PTX has no kernel")
    parameters = [Parameter(m[2], m[1], int(m[3] or 0)) for m in _PARAMETER.finditer(entry[2])]
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", entry[3])
    kernel = Kernel(entry[1], int(threads[1]) if threads else 128, parameters)
    _read_body(kernel, text, entry.end())
    return kernel


def _read_body(kernel: Kernel, text: str, at: int) -> None:
    scopes, count = [""], 0
    while True:
        while text[at].isspace():
            at += 1
        if text[at] == "{":
            count += 1
            scopes.append(f"#{count}")
            at += 1
        elif text[at] == "}":
            scopes.pop()
            at += 1
            if not scopes:
                return
        elif label := _LABEL.match(text, at):
            kernel.labels[scoped(label[1], scopes[-1])] = len(kernel.instructions)
            at = label.end()
        else:
            end = text.index(";", at)
            statement = " ".join(text[at:end].split())
            at = end + 1
            if statement.startswith(".reg"):
                _declare(kernel, statement, scopes[-1])
            elif statement and not statement.startswith((".pragma", ".branchtargets")):
                kernel.instructions.append(_instruction(kernel, statement, scopes[-1]))


def scoped(name: str, scope: str) -> str:
    """Return the name under which the parser stores a label or register.

    Blocks in braces may declare names of their own.
    """
    return name if name[0] in "%$" else name + scope


def _declare(kernel: Kernel, statement: str, scope: str) -> None:
    _, kind, names = statement.split(None, 2)
    width = REGISTER_WIDTHS[kind[1:]]
    for name in names.split(","):
        ranged = re.fullmatch(r"(%?\w+)<(\d+)>", name.strip())
        every = [f"{ranged[1]}{n}" for n in range(int(ranged[2]))] if ranged else [scoped(name.strip(), scope)]
        for one in every:
            kernel.registers[one] = Register(width, kernel.register_counts[width])
            kernel.register_counts[width] += 1


def _instruction(kernel: Kernel, statement: str, scope: str) -> Instruction:
    guard, negated, rest = None, False, statement
    if match := _GUARD.match(statement):
        guard, negated, rest = kernel.registers[scoped(match[2], scope)], match[1] == "!", match[3]
    name, _, operands = rest.partition(" ")
    opcode, *modifiers = name.split(".")
    return Instruction(statement, opcode, tuple(modifiers), split(operands), guard, negated, scope)


def split(operands: str) -> tuple[str, ...]:
    """Split a list at its commas. A list in braces or brackets inside the list is not split."""
    found, depth, start = [], 0, 0
    for at, character in enumerate(operands + ","):
        if character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        elif character == "," and depth == 0:
            if text := operands[start:at].strip():
                found.append(text)
            start = at + 1
    return tuple(found)
