"""Which general registers an instruction writes, and which a warp group's product still reads while it runs."""

from __future__ import annotations

from .sass import Instruction, is_predicate, register

_A_WIDTH = 4  # 64 rows of 32 bytes over 128 threads: the same for all types
# the first operand is a general register, and only read
_READERS = frozenset(
    {"BAR", "BPT", "BRA", "BRX", "BRXU", "BSYNC", "CALL", "DEPBAR", "EXIT", "JMP", "JMX", "JMXU", "NANOSLEEP", "R2B"}
    | {"RED", "RET", "STG", "STL", "STS", "WARPSYNC"}
)
# predicates come first, and what follows is only read
_PREDICATE_WRITERS = frozenset(
    {"DSETP", "FCHK", "FSETP", "HSETP2", "ISETP", "PLOP3", "PSETP", "QSPC", "R2P", "SYNCS", "UISETP", "UPLOP3", "VSETP"}
)
_DOUBLE = frozenset({"DADD", "DFMA", "DMUL"})
_LOADS = ("LD", "ATOM")  # LDG, LDS, LDL, LDC, LDSM, ATOMG, ...
_WIDTHS = {"64": 2, "128": 4, "256": 8}


def written(instruction: Instruction) -> range:
    """The general registers it may write; an unknown instruction writes its first operand."""
    if instruction.is_wgmma:
        return accumulator(instruction)
    first = _destination(instruction)
    return range(0) if first is None else range(first, first + _width(instruction))


def accumulator(wgmma: Instruction) -> range:
    """Where a warp group's product goes: 64 rows of N numbers over 128 threads."""
    first = register(wgmma.operands[0])
    if first is None:
        return range(0)
    _, columns, _ = (int(size) for size in wgmma.modifiers[0].split("x"))
    half = wgmma.modifiers[1] == "F16"
    return range(first, first + columns // (4 if half else 2))


def a_operand(wgmma: Instruction) -> range:
    """The registers of A; empty where A comes from shared memory."""
    first = register(wgmma.operands[1])
    return range(0) if first is None else range(first, first + _A_WIDTH)


def _destination(instruction: Instruction) -> int | None:
    if instruction.name in _READERS:
        return None
    if instruction.name in _PREDICATE_WRITERS and instruction.operands and is_predicate(instruction.operands[0]):
        return None
    for operand in instruction.operands:
        if not is_predicate(operand):
            return register(operand)
    return None


def _width(instruction: Instruction) -> int:
    """How many registers the result takes."""
    name, modifiers = instruction.name, instruction.modifiers
    if name == "CS2R":
        return 1 if "32" in modifiers else 2
    if name in _DOUBLE or "WIDE" in modifiers:
        return 2
    if name == "LDSM":  # 1, 2 or 4 matrices
        return int(modifiers[-1]) if modifiers[-1] in ("2", "4") else 1
    if name.endswith("MMA"):
        return _mma_width(instruction)
    if name in ("F2F", "I2F", "FRND"):
        return 2 if modifiers[:1] == ["F64"] or (name == "I2F" and "F64" in modifiers) else 1
    if name == "F2I":
        return 2 if {"S64", "U64"} & set(modifiers) else 1
    if name.startswith(_LOADS) or name in ("MOV", "LEPC", "SYNCS"):
        return max([_WIDTHS[size] for size in modifiers if size in _WIDTHS], default=2 if name == "LEPC" else 1)
    return 2 if "64" in modifiers else 1


def _mma_width(mma: Instruction) -> int:
    """A warp's product, over 32 threads."""
    if mma.name == "DMMA":
        return 4 if "884" in mma.modifiers or "8x8x4" in mma.modifiers else 8
    if mma.name == "HMMA" and mma.modifiers[1] == "F16":
        return 2
    return 2 if mma.modifiers[0].startswith("88") else 4  # 8 or 16 rows of 8 numbers
