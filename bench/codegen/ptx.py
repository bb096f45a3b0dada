"""What PTX and its assembler's log tell: operations that lose a NaN, registers, spills, serialised products."""

from __future__ import annotations

import re
from typing import NamedTuple

_MIN_MAX = re.compile(r"(?:^|(?<=[\s;{}]))(min|max)((?:\.\w+)+)(?=\s)", re.MULTILINE)
_FLOATS = frozenset({"f16", "f16x2", "bf16", "bf16x2", "f32", "f64"})
_REGISTERS = re.compile(r"Used (\d+) registers")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SERIALISED = re.compile(r"(?:\((C\d+)\) [^\n]*)?(wgmma\.mma_async instructions are serialized due to [^\n]*)")


class Assembled(NamedTuple):
    """What ptxas said with ``-v``."""

    registers: int
    stack: int  # bytes of a thread
    spilled: int  # bytes stored and loaded, in all instructions
    serialised: str | None  # why products wait for each other, in ptxas's words


def lost_nan(ptx: str) -> list[str]:
    """The minima and maxima of floating-point numbers that give the other operand where one is NaN.

    What selects by a comparison, or saturates, isn't looked for.
    """
    code = re.sub(r"//[^\n]*", "", ptx)
    return [
        operation + modifiers
        for operation, modifiers in _MIN_MAX.findall(code)
        if _FLOATS & set(modifiers.split(".")) and ".NaN" not in modifiers
    ]


def assembled(log: str) -> Assembled:
    """Read ptxas's log.

    Raises:
        ValueError: if it doesn't tell registers and stack.
    """
    registers = [int(number) for number in _REGISTERS.findall(log)]
    stacks = [tuple(map(int, numbers)) for numbers in _STACK.findall(log)]
    if not registers or not stacks:
        raise ValueError(f"ptxas did not tell registers and stack: {log.strip()[:200]!r}")
    serialised = _SERIALISED.search(log)
    return Assembled(
        max(registers),
        max(stack for stack, _, _ in stacks),
        sum(stores + loads for _, stores, loads in stacks),
        None if serialised is None else f"{serialised.group(1) or 'no code'}: {serialised.group(2)}",
    )
