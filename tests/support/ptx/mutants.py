"""Mutants of a kernel, in which one instruction that orders events is left out or changed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from .builds import FUSED, PIPELINED, Case, compute, operands, settings
from .kernel import Instruction, Kernel
from .launches import Run, emulated
from .machine import LATE, POLICIES, Policy
from .memory import Fault


class Mutant(NamedTuple):
    """A change of one instruction of a kernel, or of all instructions with the same effect."""

    name: str
    changes: dict[int, Instruction]  # the replacements of instructions by position

    def of(self, kernel: Kernel) -> Kernel:
        """Return the kernel with the changed instructions."""
        instructions = [self.changes.get(n, i) for n, i in enumerate(kernel.instructions)]
        return dataclasses.replace(kernel, instructions=instructions)


def _nothing(i: Instruction) -> Instruction:
    return Instruction(f"nothing in the place of {i.text}", "nanosleep", (), (), None, False, i.scope)


def _always_ready(i: Instruction) -> Instruction:
    """Return an instruction that sets the result of a wait without waiting."""
    return i._replace(text=f"no {i.text}", opcode="mov", modifiers=("pred",), operands=(i.operands[0], "1"))


def _changed(i: Instruction, operand: int, change: Callable[[str], str]) -> Instruction:
    operands = list(i.operands)
    operands[operand] = change(operands[operand])
    return i._replace(text=f"{i.text} with {operands[operand]}", operands=tuple(operands))


def _plus(amount: int) -> Callable[[str], str]:
    return lambda text: str(int(text, 0) + amount)


def _moved(text: str) -> str:
    return re.sub(r"\s*(?:\+\s*(\d+))?\s*\]", lambda m: f"+{int(m[1] or 0) + 1024}]", text)


def mutants(kernel: Kernel, acted: set[int]) -> Iterator[Mutant]:
    """Yield the mutants of a kernel, each with one change.

    One mutant has no barriers at all, because Triton inserts many barriers each of which is redundant on its own.
    Another mutant has no fences between proxies, which a kernel needs only if threads write data that the asynchronous
    proxy reads. All waits for the same phase of the same barrier are left out in a single mutant. In another mutant,
    all barriers in shared memory expect one more arrival.

    Args:
        kernel: the kernel.
        acted: positions of the instructions that had an effect in a run. Only these instructions are changed.
    """
    together: dict[str, Mutant] = {}
    writes = any(i.opcode in ("st", "stmatrix") and "shared" in i.modifiers for i in kernel.instructions)
    for position, i in enumerate(kernel.instructions):
        if position not in acted:
            continue
        name = i.name
        if name.startswith("bar.sync"):
            together.setdefault("no barriers", Mutant("no barriers", {})).changes[position] = _nothing(i)
        elif name.startswith("fence.proxy.async") and writes:
            together.setdefault("no proxy fences", Mutant("no proxy fences", {})).changes[position] = _nothing(i)
        elif name.startswith("mbarrier.init"):
            key = "another arrival expected"
            together.setdefault(key, Mutant(key, {})).changes[position] = _changed(i, 1, _plus(1))
        elif name.startswith("mbarrier.try_wait"):
            key = f"no wait for {', '.join(i.operands[1:])}"
            together.setdefault(key, Mutant(key, {})).changes[position] = _always_ready(i)
        for what, changed in _changes(i, name):
            yield Mutant(f"{what} at {position}", {position: changed})
    yield from together.values()


def _changes(i: Instruction, name: str) -> Iterator[tuple[str, Instruction]]:
    if name.startswith("mbarrier.arrive.expect_tx"):
        yield "no expected bytes", _nothing(i)
        yield "fewer bytes expected", _changed(i, -1, _plus(-16))
    elif name.startswith("cp.async.bulk.tensor") and i.modifiers[4].startswith("shared"):
        yield "copy to another place", _changed(i, 0, _moved)
        yield "no copy", _nothing(i)
    elif name.startswith("wgmma.wait_group"):
        yield "wait for fewer products", _changed(i, 0, _plus(1))
    elif name.startswith("wgmma.fence"):
        yield "no fence of registers", _nothing(i)
    elif name.startswith("cp.async.wait_group"):
        yield "wait for fewer copies", _changed(i, 0, _plus(1))


# Float32 products in three parts are left out, because a wait between two of the parts is redundant and cannot be
# detected.
CASES = {
    "F pipelined": Case("F", PIPELINED["F"], "bf16", (64, 40, 40, 1), order=1),
    "G pipelined": Case("G", PIPELINED["G"], "bf16", (230, 40, 40, 1), order=1, base="none"),
    "H pipelined": Case("H", PIPELINED["H"], "bf16", (64, 40, 264, 1), order=1, base="none"),
    "F fused": Case("F", FUSED["F"]._replace(inner=16), "bf16", (64, 40, 40, 1), order=1),
    "G fused": Case("G", FUSED["G"]._replace(inner=16), "bf16", (100, 40, 40, 1), order=1, base="none"),
    "H fused": Case("H", FUSED["H"]._replace(inner=16), "bf16", (64, 40, 72, 1), order=1),
    "F fused tf32": Case("F", FUSED["F"], "tf32", (64, 72, 40, 1), order=1),
    "G fused tf32": Case("G", FUSED["G"], "tf32", (100, 40, 40, 1), order=1, base="none"),
    "H fused tf32": Case("H", FUSED["H"], "tf32", (64, 40, 152, 1), order=1),
    "F fused sm80": Case("F", FUSED["F"]._replace(descriptors=False), "bf16", (64, 80, 80, 1), capability=80),
}


def survivors(case: Case) -> tuple[int, list[str]]:
    """Return a tuple of the number of mutants of a case, and the names of the mutants that no policy detects."""
    want, (run,) = _result(case, LATE, None)
    program = run.program
    acted = program.acted | {n for n in program.controls if run.executions[n]}
    tried = list(mutants(program.kernel, acted))
    return len(tried), [mutant.name for mutant in tried if not any(_detects(case, p, mutant, want) for p in POLICIES)]


def _detects(case: Case, policy: Policy, mutant: Mutant, want: torch.Tensor) -> bool:
    try:
        found, _ = _result(case, policy, mutant)
    except Fault:
        return True
    return not torch.equal(found, want)


def _result(case: Case, policy: Policy, mutant: Mutant | None) -> tuple[torch.Tensor, list[Run]]:
    o, basis = operands(case)
    with emulated(policy, races=policy == LATE, capability=case.capability) as emulation, settings(case):
        emulation.mutate = None if mutant is None else mutant.of
        (result,) = compute(case, o, basis)
    return result, emulation.runs
