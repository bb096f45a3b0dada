"""The control flow of a program of machine code: the orders in which instructions may run, and the loops."""

from __future__ import annotations

from typing import NamedTuple

import networkx as nx

from .sass import Instruction, Program

_ENDS = frozenset({"EXIT", "KILL", "RET"})
_INDIRECT = frozenset({"BRX", "BRXU", "JMX", "JMXU"})
_JUMPS = frozenset({"BRA", "JMP", "CALL"})
# A dict from the index of each BSYNC, at which the threads of a convergence barrier meet, to the indices that may run
# next.
_Joins = dict[int, frozenset[int]]


class Loop(NamedTuple):
    """A natural loop: the indices of its instructions, the number of loops around it, and its first instruction."""

    places: frozenset[int]
    depth: int
    head: int


def graph_of(program: Program) -> nx.DiGraph:
    """Return the graph of the indices of instructions, with an edge to each instruction that may run next.

    A call of a function leads to the instruction after the call. A call of a label within the kernel is a jump.

    Raises:
        ValueError: if the target of a jump is unknown.
    """
    barriers = _barriers(program)
    joins: _Joins = {place: frozenset(label for _, label in named) for place, named in barriers.items()}
    while True:
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(program.instructions)))
        for place, instruction in enumerate(program.instructions):
            graph.add_edges_from((place, after) for after in _next(program, place, instruction, joins))
        nearer = {place: _reaching(program, graph, place, named) for place, named in barriers.items()}
        if nearer == joins:
            return graph
        joins = nearer


def is_function_call(instruction: Instruction) -> bool:
    """Return whether an instruction calls a function that returns. The compiler ptxas also uses CALL for jumps."""
    return instruction.name == "CALL" and not (instruction.target or "").startswith(".L")


def _next(program: Program, place: int, instruction: Instruction, joins: _Joins) -> set[int]:
    name = instruction.name
    if name in _INDIRECT:
        raise ValueError(f"the jump {instruction} at {instruction.address:#x} can't be followed")
    following = {place + 1} if place + 1 < len(program.instructions) else set()
    if name in _ENDS:
        return following if instruction.guard else set()
    if name in _JUMPS and not is_function_call(instruction):
        # A jump may depend on a predicate in front of the instruction or among its operands, or only a part of the warp
        # may jump.
        conditional = instruction.guard or len(instruction.operands) > 1 or "DIV" in instruction.modifiers
        return {_target(program, instruction)} | (following if conditional else set())
    return following | joins.get(place, frozenset())


def _barriers(program: Program) -> dict[int, list[tuple[int, int]]]:
    """Return a dict from each BSYNC to the pairs (BSSY, target of the BSSY) with the same convergence barrier."""
    opened: dict[str, list[tuple[int, int]]] = {}
    for place, instruction in enumerate(program.instructions):
        if instruction.name == "BSSY":
            opened.setdefault(instruction.operands[0], []).append((place, _target(program, instruction)))
    return {
        place: opened.get(instruction.operands[0], [])
        for place, instruction in enumerate(program.instructions)
        if instruction.name == "BSYNC"
    }


def _reaching(program: Program, graph: nx.DiGraph, place: int, named: list[tuple[int, int]]) -> frozenset[int]:
    """Return the indices to which a BSYNC may lead: the target of each BSSY from which a path leads to the BSYNC.

    The path must contain no other instruction with the same barrier. Otherwise a BSYNC before a loop would seem to lead
    into a loop that uses the same barrier again.
    """
    barrier = program.instructions[place].operands[0]
    same = {
        other
        for other, instruction in enumerate(program.instructions)
        if instruction.name in ("BSSY", "BSYNC") and instruction.operands[0] == barrier
    }
    found = set()
    for start, label in named:
        allowed = graph.subgraph((graph.nodes - same) | {start, place})
        if nx.has_path(allowed, start, place):
            found.add(label)
    return frozenset(found)


def _target(program: Program, instruction: Instruction) -> int:
    if instruction.target not in program.labels:
        raise ValueError(f"{instruction} at {instruction.address:#x} names no known label")
    return program.labels[instruction.target]


def loops(graph: nx.DiGraph) -> list[Loop]:
    """Return the natural loops, one for each first instruction, with outer loops before inner ones."""
    reached = graph.subgraph({0, *nx.descendants(graph, 0)})
    dominator = nx.immediate_dominators(reached, 0)
    bodies: dict[int, set[int]] = {}
    for place, head in reached.edges:
        if _dominates(dominator, head, place):
            inside = reached.subgraph(reached.nodes - {head})
            before = {place, *nx.ancestors(inside, place)} if place != head else set()
            bodies.setdefault(head, {head}).update(before)
    found = [
        Loop(frozenset(body), sum(head in other and len(other) > len(body) for other in bodies.values()), head)
        for head, body in bodies.items()
    ]
    return sorted(found, key=lambda loop: (loop.depth, min(loop.places)))


def shortest_round(program: Program, graph: nx.DiGraph, loop: Loop) -> list[int]:
    """Return the indices of the instructions in the shortest iteration of a loop, without NOPs.

    Instructions that run only in some iterations are left out.
    """
    inside = graph.subgraph(loop.places)

    def cost(before: int, after: int, _: object) -> int:
        return int(program.instructions[after].name != "NOP")

    lengths, paths = nx.single_source_dijkstra(inside, loop.head, weight=cost)
    last = min((place for place in inside.predecessors(loop.head)), key=lengths.__getitem__)
    return [place for place in paths[last] if program.instructions[place].name != "NOP"]


def longest_round(program: Program, graph: nx.DiGraph, loop: Loop) -> list[int]:
    """Return the indices of the instructions in the longest round of a loop, without NOPs.

    The round also has the instructions that do not run in the first or last rounds, and one round of each inner loop.
    """
    inside = nx.DiGraph(graph.subgraph(loop.places))
    last = set(inside.predecessors(loop.head))
    inside.remove_edges_from([(place, loop.head) for place in last])
    # In the condensation, each inner loop is one node.
    parts = nx.condensation(inside)
    sizes = {
        n: sum(program.instructions[place].name != "NOP" for place in members)
        for n, members in parts.nodes(data="members")
    }
    lengths: dict[int, int] = {}
    before: dict[int, int | None] = {}
    for n in nx.topological_sort(parts):
        best = max((m for m in parts.predecessors(n) if m in lengths), key=lengths.__getitem__, default=None)
        if best is not None or loop.head in parts.nodes[n]["members"]:
            lengths[n], before[n] = sizes[n] + (0 if best is None else lengths[best]), best
    ends = {parts.graph["mapping"][place] for place in last} & lengths.keys()
    here: int | None = max(ends, key=lengths.__getitem__)
    found: list[int] = []
    while here is not None:
        found += parts.nodes[here]["members"]
        here = before[here]
    return sorted(place for place in found if program.instructions[place].name != "NOP")


def _dominates(dominator: dict[int, int | None], head: int, place: int) -> bool:
    """Return whether every path from the first instruction to ``place`` goes through ``head``."""
    here: int | None = place
    while here is not None and here != head:
        above = dominator.get(here)
        here = above if above != here else None
    return here == head
