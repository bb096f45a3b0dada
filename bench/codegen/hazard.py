"""Registers of a warp group's matrix product (wgmma) that are overwritten while the product runs.

A wgmma whose left operand A is in registers reads the registers until the program has waited for the product. Compilers
have overwritten such registers (Triton issue 9433), and tests in Triton's interpreter cannot detect the error. The
module therefore follows every path of the program, including loops. For each path, it records the products in flight:
the products that are not committed to a group yet, and the committed groups, with the oldest group first.
"""

from __future__ import annotations

from typing import NamedTuple

import networkx as nx

from .flow import graph_of, is_function_call
from .sass import Instruction, Program

# Maximum number of groups in a state. If there are more, the oldest two groups are merged, and the merged group is
# assumed to run until the younger one of the two ends.
_MAX_GROUPS = 8
_MAX_STATES = 500_000


class Hazard(NamedTuple):
    """An instruction that overwrites registers of a running product. The field ``operand`` is "A" or "accumulator"."""

    writer: Instruction
    wgmma: Instruction
    operand: str

    def __str__(self) -> str:
        return (
            f"{self.writer} at {self.writer.address:#x} overwrites the {self.operand} of "
            f"{self.wgmma} at {self.wgmma.address:#x} in flight"
        )


class _State(NamedTuple):
    """A state of a path: the indices of the matrix products that are running."""

    groups: tuple[frozenset[int], ...] = ()
    open: frozenset[int] = frozenset()  # products that are not committed to a group

    def after(self, instruction: Instruction, place: int) -> set[_State]:
        """Return the states that may follow an instruction. An instruction with a predicate has two possible states."""
        new = self
        if instruction.is_wgmma:
            new = self._replace(open=self.open | {place})
            if any(operand.startswith("gsb") for operand in instruction.operands):
                groups = (*self.groups, new.open)
                new = _State((groups[0] | groups[1], *groups[2:]) if len(groups) > _MAX_GROUPS else groups)
        elif instruction.is_wgmma_wait:
            pending = int(instruction.operands[-1], 0)
            new = self._replace(groups=self.groups[-pending:] if pending else ())
        return {self, new} if instruction.guard else {new}


def hazards(program: Program, graph: nx.DiGraph | None = None) -> list[Hazard]:
    """Return all hazards of a program in the order of the instructions that overwrite registers.

    Args:
        program: the machine code.
        graph: the control flow of the program (default: :func:`.flow.graph_of`).

    Raises:
        ValueError: if the control flow cannot be followed.
    """
    instructions = program.instructions
    if not any(instruction.is_wgmma for instruction in instructions):
        return []
    graph = graph_of(program) if graph is None else graph
    following = [tuple(graph.successors(place)) for place in range(len(instructions))]
    writes = [_writes(program, graph, place) for place in range(len(instructions))]
    seen, waiting, found = {(0, _State())}, [(0, _State())], set()
    while waiting:
        place, state = waiting.pop()
        for wgmma in state.open.union(*state.groups) if writes[place] else ():
            if not writes[place].isdisjoint(instructions[wgmma].a_operand):
                found.add((place, wgmma, "A"))
            # The products of a warp group run one after another, so a product may use the accumulator registers of a
            # running product.
            if not instructions[place].is_wgmma and not writes[place].isdisjoint(instructions[wgmma].accumulator):
                found.add((place, wgmma, "accumulator"))
        for after in state.after(instructions[place], place):
            new = {(next_place, after) for next_place in following[place]} - seen
            seen |= new
            waiting += new
        if len(seen) > _MAX_STATES:
            raise ValueError(f"more than {_MAX_STATES} states of products in flight")
    return [Hazard(instructions[writer], instructions[wgmma], operand) for writer, wgmma, operand in sorted(found)]


def _writes(program: Program, graph: nx.DiGraph, place: int) -> frozenset[int]:
    """Return the registers that an instruction may write.

    For a call, return the registers that the function may write.
    """
    instruction = program.instructions[place]
    if not is_function_call(instruction):
        return frozenset(instruction.written)
    start = program.labels.get(instruction.target or "")
    if start is None:
        raise ValueError(f"the function called by {instruction} at {instruction.address:#x} isn't there")
    return frozenset().union(*(program.instructions[n].written for n in {start, *nx.descendants(graph, start)}))
