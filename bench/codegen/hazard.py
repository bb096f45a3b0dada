"""Registers of a warp group's product (wgmma) that are overwritten while it runs.

A wgmma whose A operand lies in registers reads them until a wait covers it. Compilers have overwritten them
before (triton issue 9433), and no interpreter can see it. So every path of the program is followed, around loops
too, with the products that are in flight on it: those not yet committed, and the committed groups, oldest first.
"""

from __future__ import annotations

from typing import NamedTuple

from .flow import is_function_call, successors
from .registers import a_operand, accumulator, written
from .sass import Instruction, Program

_MAX_GROUPS = 8  # beyond, the oldest are taken together: they end with the younger of them
_MAX_STATES = 500_000
_WAIT = "WARPGROUP"


class Hazard(NamedTuple):
    """An instruction that overwrites what a product in flight still uses."""

    writer: Instruction
    wgmma: Instruction
    operand: str  # "A", or "accumulator"

    def __str__(self) -> str:
        return (
            f"{self.writer} at {self.writer.address:#x} overwrites the {self.operand} of "
            f"{self.wgmma} at {self.wgmma.address:#x} in flight"
        )


class _State(NamedTuple):
    """Places of the products in flight."""

    groups: tuple[frozenset[int], ...] = ()
    open: frozenset[int] = frozenset()  # not committed

    @property
    def running(self) -> frozenset[int]:
        return self.open.union(*self.groups)


def hazards(program: Program) -> list[Hazard]:
    """All of them, in the order of the writers.

    Raises:
        ValueError: if the program's control flow can't be followed to its end.
    """
    instructions = program.instructions
    if not any(instruction.is_wgmma for instruction in instructions):
        return []
    following = successors(program)
    writes = [_writes(program, following, place) for place in range(len(instructions))]
    start = (0, _State())
    seen, waiting, found = {start}, [start], set()
    while waiting:
        place, state = waiting.pop()
        if writes[place]:
            found |= {(place, *broken) for broken in _broken(instructions, place, writes[place], state.running)}
        for after in _after(instructions[place], place, state):
            for following_place in following[place]:
                step = (following_place, after)
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)
        if len(seen) > _MAX_STATES:
            raise ValueError(f"more than {_MAX_STATES} states of products in flight")
    return [Hazard(instructions[writer], instructions[wgmma], operand) for writer, wgmma, operand in sorted(found)]


def _broken(
    instructions: list[Instruction], place: int, writes: frozenset[int], running: frozenset[int]
) -> list[tuple[int, str]]:
    """The products in flight that use a register of ``writes``, and as what."""
    found = []
    for wgmma in running:
        if not writes.isdisjoint(a_operand(instructions[wgmma])):
            found.append((wgmma, "A"))
        # products of one warp group accumulate in turn
        if not instructions[place].is_wgmma and not writes.isdisjoint(accumulator(instructions[wgmma])):
            found.append((wgmma, "accumulator"))
    return found


def _after(instruction: Instruction, place: int, state: _State) -> list[_State]:
    """What may be in flight after an instruction: two possibilities if it runs under a predicate."""
    if instruction.is_wgmma:
        new = state._replace(open=state.open | {place})
        if any(operand.startswith("gsb") for operand in instruction.operands):
            new = _committed(new)
    elif instruction.name == _WAIT and "DEPBAR" in instruction.modifiers:
        pending = int(instruction.operands[-1], 0)
        new = state._replace(groups=state.groups[-pending:] if pending else ())
    else:
        return [state]
    return [state, new] if instruction.guard and new != state else [new]


def _committed(state: _State) -> _State:
    groups = (*state.groups, state.open)
    if len(groups) > _MAX_GROUPS:
        groups = (groups[0] | groups[1], *groups[2:])
    return _State(groups)


def _writes(program: Program, following: list[tuple[int, ...]], place: int) -> frozenset[int]:
    """The registers that the instruction may write; those of the whole function, if it calls one."""
    instruction = program.instructions[place]
    if not is_function_call(instruction):
        return frozenset(written(instruction))
    start = program.labels.get(instruction.target or "")
    if start is None:
        raise ValueError(f"the function called by {instruction} at {instruction.address:#x} isn't there")
    registers: set[int] = set()
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        registers.update(written(program.instructions[here]))
        fresh = [after for after in following[here] if after not in seen]
        seen.update(fresh)
        waiting += fresh
    return frozenset(registers)
