"""Control flow of a program: which instruction may follow which, and the loops."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from .sass import Instruction, Program

_ENDS = frozenset({"EXIT", "KILL", "RET"})
_INDIRECT = frozenset({"BRX", "BRXU", "JMX", "JMXU"})
_JUMPS = frozenset({"BRA", "JMP", "CALL"})


_Joins = dict[int, frozenset[int]]  # of each BSYNC, to where it may lead besides onward


class Loop(NamedTuple):
    """A natural loop: the places of its instructions in the program, the one that each round begins with, and how
    many loops lie around it."""

    places: frozenset[int]
    depth: int
    head: int


def successors(program: Program) -> list[tuple[int, ...]]:
    """For each instruction, the places of those that may run next.

    A call of a function is stepped over, and its code is not followed; one of a label within the kernel is a jump.

    Raises:
        ValueError: for a jump to where nobody can tell.
    """
    joins = {place: frozenset(label for _, label in each) for place, each in _barriers(program).items()}
    while True:
        found = _successors(program, joins)
        nearer = _reached(program, found)
        if nearer == joins:
            return found
        joins = nearer


def _successors(program: Program, joins: _Joins) -> list[tuple[int, ...]]:
    found = []
    for place, instruction in enumerate(program.instructions):
        following = (place + 1,) if place + 1 < len(program.instructions) else ()
        found.append(tuple(dict.fromkeys(_next(program, place, instruction, joins, following))))
    return found


def is_function_call(instruction: Instruction) -> bool:
    """A call of a function, which returns; ptxas also jumps with CALL."""
    return instruction.name == "CALL" and not (instruction.target or "").startswith(".L")


def _next(
    program: Program, place: int, instruction: Instruction, joins: _Joins, following: tuple[int, ...]
) -> tuple[int, ...]:
    name = instruction.name
    if name in _INDIRECT:
        raise ValueError(f"the jump {instruction} at {instruction.address:#x} can't be followed")
    if is_function_call(instruction):
        return following
    if name in _ENDS:
        return following if instruction.guard else ()
    if name in _JUMPS:
        target = (_place(program, instruction),)
        return target + following if _is_conditional(instruction) else target
    if name == "BSYNC":
        return (*sorted(joins[place]), *following)
    return following


def _is_conditional(jump: Instruction) -> bool:
    """Under a predicate, before or within; or one that only a part of the warp takes."""
    return bool(jump.guard) or len(jump.operands) > 1 or "DIV" in jump.modifiers


def _barriers(program: Program) -> dict[int, list[tuple[int, int]]]:
    """For each BSYNC, where threads of a convergence barrier meet, every BSSY of that barrier and the place that
    it names."""
    named: dict[str, list[tuple[int, int]]] = {}
    for place, instruction in enumerate(program.instructions):
        if instruction.name == "BSSY":
            named.setdefault(instruction.operands[0], []).append((place, _place(program, instruction)))
    return {
        place: named.get(instruction.operands[0], [])
        for place, instruction in enumerate(program.instructions)
        if instruction.name == "BSYNC"
    }


def _reached(program: Program, following: list[tuple[int, ...]]) -> _Joins:
    """The same with only those BSSY from which a path leads to the BSYNC without another one of the barrier.

    A barrier is used again and again: without this a BSYNC before a loop would seem to lead into it.
    """
    joins: dict[int, set[int]] = {place: set() for place in _barriers(program)}
    for start, opening in enumerate(program.instructions):
        if opening.name != "BSSY":
            continue
        label, seen, waiting = _place(program, opening), set(), list(following[start])
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            instruction = program.instructions[here]
            same = instruction.name in ("BSSY", "BSYNC") and instruction.operands[0] == opening.operands[0]
            if not same:
                waiting += following[here]
            elif instruction.name == "BSYNC":
                joins[here].add(label)
    return {place: frozenset(labels) for place, labels in joins.items()}


def _place(program: Program, instruction: Instruction) -> int:
    if instruction.target not in program.labels:
        raise ValueError(f"{instruction} at {instruction.address:#x} names no known label")
    return program.labels[instruction.target]


def loops(program: Program) -> list[Loop]:
    """The natural loops, one for each head, outer ones first."""
    following = successors(program)
    preceding: list[list[int]] = [[] for _ in following]
    for place, nexts in enumerate(following):
        for after in nexts:
            preceding[after].append(place)
    rank = {place: number for number, place in enumerate(_reverse_postorder(following))}
    dominator = _dominators(rank, preceding)
    bodies: dict[int, set[int]] = {}
    for place in rank:
        for head in following[place]:
            if rank[head] <= rank[place] and _dominates(dominator, head, place):
                bodies.setdefault(head, {head}).update(_reaching(place, head, preceding))
    found = [
        Loop(frozenset(body), sum(head in other and len(other) > len(body) for other in bodies.values()), head)
        for head, body in bodies.items()
    ]
    return sorted(found, key=lambda loop: (loop.depth, min(loop.places)))


def shortest_round(program: Program, loop: Loop) -> int:
    """The fewest instructions, NOPs left out, in which one round of a loop is done: what is done now and then only
    is not in it."""
    following = successors(program)
    head = loop.head
    least, waiting = {head: 0}, [(0, head)]
    while waiting:
        count, here = heapq.heappop(waiting)
        if count > least[here]:
            continue
        count += program.instructions[here].name != "NOP"
        if head in following[here]:
            return count
        for after in following[here]:
            if after in loop.places and count < least.get(after, count + 1):
                least[after] = count
                heapq.heappush(waiting, (count, after))
    raise ValueError("a loop without a way back")


def _reaching(place: int, head: int, preceding: list[list[int]]) -> set[int]:
    """All from which ``place`` is reached without passing ``head``."""
    body, waiting = {head}, [place]
    while waiting:
        here = waiting.pop()
        if here not in body:
            body.add(here)
            waiting += preceding[here]
    return body


def _dominators(rank: dict[int, int], preceding: list[list[int]]) -> dict[int, int]:
    """The immediate dominator of every reachable instruction (Cooper, Harvey and Kennedy)."""
    first, *others = rank
    dominator = {first: first}
    changed = True
    while changed:
        changed = False
        for place in others:
            known = [before for before in preceding[place] if before in dominator]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    if rank[new] > rank[other]:
                        new = dominator[new]
                    else:
                        other = dominator[other]
            if dominator.get(place) != new:
                dominator[place], changed = new, True
    return dominator


def _dominates(dominator: dict[int, int], head: int, place: int) -> bool:
    while place != head and dominator[place] != place:
        place = dominator[place]
    return place == head


def _reverse_postorder(following: list[tuple[int, ...]]) -> list[int]:
    """From the first instruction on, each before what follows it, but for ways back."""
    order: list[int] = []
    seen = {0}
    stack = [(0, iter(following[0]))]
    while stack:
        place, nexts = stack[-1]
        for after in nexts:
            if after not in seen:
                seen.add(after)
                stack.append((after, iter(following[after])))
                break
        else:
            order.append(place)
            stack.pop()
    return order[::-1]
