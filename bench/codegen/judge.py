"""What must hold of a compiled kernel, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from fastkan_kernels.backends.triton.config import shared_limit

from . import hazard, product, ptx, sass
from .compile import Compiled

if TYPE_CHECKING:
    from fastkan_kernels.backends.triton.builds import Build

_LOCAL = frozenset({"LDL", "STL"})


class Failure(NamedTuple):
    """A check that a build doesn't pass, and why."""

    check: str  # "hazard", "spills", "shared memory", "tensor cores", "NaN", "serialised"; "compile", "unclear"
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


class Verdict(NamedTuple):
    """All that is told of a build; what could not be found is None."""

    name: str
    kernel: str
    capability: int
    warps: int
    failures: list[Failure]
    notes: list[str]
    registers: int | None = None  # of a thread
    stack: int | None = None  # bytes
    shared: int | None = None  # bytes
    inner: product.Inner | None = None
    unrolled: int | None = None  # iterations of the kernel's inner loop in one of the machine code's
    per_element: float | None = None  # instructions of a thread for each feature, without products
    serialised: str | None = None  # ptxas's warning

    @property
    def passed(self) -> bool:
        return not self.failures


def broken(build: Build, check: str, why: str) -> Verdict:
    """Of a build that gave no code, or none that could be judged."""
    return Verdict(build.name, build.kernel.__name__, build.capability, build.warps, [Failure(check, why)], [])


def judge(build: Build, compiled: Compiled) -> Verdict:
    """Apply every check.

    Raises:
        ValueError: if the log, the code or the disassembly is of a form that can't be judged.
    """
    program = sass.parse(compiled.sass)
    asked = product.dots(compiled.ttir)
    assembled = ptx.assembled(compiled.log)
    inner = product.inner_loop(program)
    failures = [
        *_hazards(program),
        *_spills(program, assembled),
        *_shared(build.capability, compiled.shared),
        *_tensor_cores(build, program, asked, inner),
        *_lost_nan(build, compiled.ptx),
        *_serialised(build, program, assembled),
    ]
    verdict = Verdict(
        build.name, build.kernel.__name__, build.capability, build.warps, failures, list(_notes(asked, inner)),
        assembled.registers, assembled.stack, compiled.shared, inner, serialised=assembled.serialised,
    )  # fmt: skip
    if inner is None or not build.elements:
        return verdict
    return verdict._replace(
        unrolled=product.unrolled(inner, asked, build.elements, build.warps),
        per_element=product.per_element(inner, asked, build.elements, build.warps),
    )


def machine_code(program: sass.Program) -> list[Failure]:
    """What can be told without the log of ptxas: hazards, and accesses to local memory."""
    return [*_hazards(program), *_spills(program, ptx.Assembled(0, 0, 0, None))]


def _hazards(program: sass.Program) -> Iterator[Failure]:
    if found := hazard.hazards(program):
        yield Failure("hazard", f"{found[0]}" + (f", and {len(found) - 1} more" if len(found) > 1 else ""))


def _spills(program: sass.Program, assembled: ptx.Assembled) -> Iterator[Failure]:
    local = sum(instruction.name in _LOCAL for instruction in program.instructions)
    if assembled.stack or assembled.spilled or local:
        yield Failure(
            "spills",
            f"{assembled.stack} bytes of stack, {assembled.spilled} bytes spilled, {local} accesses to local memory",
        )


def _shared(capability: int, shared: int) -> Iterator[Failure]:
    limit = shared_limit(capability)
    if shared > limit:
        yield Failure("shared memory", f"{shared} bytes, and a block may have {limit}")


def _tensor_cores(
    build: Build, program: sass.Program, asked: list[product.Dot], inner: product.Inner | None
) -> Iterator[Failure]:
    """On sm_90 a product that a warp group can make must be one (HGMMA), and no warp's product may stand in for it.
    Small tiles must be a warp's product (HMMA); float64 may be either DMMA or plain DFMA."""
    if not build.tensor_cores:
        return
    if not asked:
        yield Failure("tensor cores", "the kernel asks for no product")
        return
    if all(dot.dtype == "f64" for dot in asked):
        return
    if inner is None or not inner.products:
        yield Failure("tensor cores", "no product on them in any loop")
        return
    wgmma = [dot.is_wgmma(build.capability, build.warps) for dot in asked]
    if any(wgmma) and not (inner.wgmma_registers or inner.wgmma_shared):
        yield Failure("tensor cores", "HMMA in the inner loop where HGMMA is possible")
    elif all(wgmma) and any(instruction.name == "HMMA" for instruction in program.instructions):
        yield Failure("tensor cores", "HMMA outside of the inner loop where HGMMA is possible")


def _lost_nan(build: Build, code: str) -> Iterator[Failure]:
    lost = ptx.lost_nan(code) if build.keeps_nan else []
    if lost:
        yield Failure("NaN", f"{len(lost)} times {', '.join(sorted(set(lost)))}")


def _serialised(build: Build, program: sass.Program, assembled: ptx.Assembled) -> Iterator[Failure]:
    """Of a build that claims to make features while products run: ptxas may end those first, and may not say so."""
    if not build.overlaps:
        return
    if assembled.serialised is not None:
        yield Failure("serialised", assembled.serialised)
    late, made = product.made_late(program)
    if late:
        yield Failure("serialised", f"{late} of {made} conversions come after the wait for the product")


def _notes(asked: list[product.Dot], inner: product.Inner | None) -> Iterator[str]:
    if any(dot.dtype == "f64" for dot in asked):
        yield "float64 by DMMA" if inner is not None and inner.dmma else "float64 by DFMA"
    if any(not dot.tensor_cores for dot in asked):
        yield "exact float32 by FFMA"
