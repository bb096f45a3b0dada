"""The checks that a compiled kernel must pass, and the counts that the report shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import flow, hazard, sass
from .compile import WARP, Compiled, compiled

if TYPE_CHECKING:
    import networkx as nx

    from fastkan_kernels.backends.triton.builds import Build

_LOCAL = frozenset({"LDL", "STL"})
_FLOATS = frozenset({"f16", "f16x2", "bf16", "bf16x2", "f32", "f64"})
# number of products of parts that replace a product of split float32 numbers
_PASSES = {"tf32x3": 3, "bf16x3": 3, "bf16x6": 6}

_MIN_MAX = re.compile(r"(?:^|(?<=[\s;{}]))(min|max)((?:\.\w+)+)(?=\s)", re.MULTILINE)
_REGISTERS = re.compile(r"Used (\d+) registers")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SERIALISED = re.compile(r"(?:\((C\d+)\) [^\n]*)?(wgmma\.mma_async instructions are serialized due to [^\n]*)")
_DOT = re.compile(r"\b(?:tt\.dot|ttng\.warp_group_dot) [^\n]*")
_PRECISION = re.compile(r"inputPrecision = (\w+)")
_DOT_OPERANDS = re.compile(
    r": (?:!ttg\.memdesc|tensor)<(\d+)x(\d+)x([a-z]\w*)[^*]* \* (?:!ttg\.memdesc|tensor)<\d+x(\d+)x"
)


class Failure(NamedTuple):
    """A check that a build has failed, and the reason."""

    check: str  # "hazard", "spills", "shared memory", "tensor cores", "NaN", "serialised", "compile" or "unclear"
    detail: str


class Inner(NamedTuple):
    """Numbers of instructions in one iteration of the inner loop with matrix products."""

    instructions: int  # instructions of an iteration, without instructions that run only in some iterations
    wgmma_registers: int  # products of a warp group with the left operand in registers
    wgmma_shared: int  # products of a warp group with the left operand in shared memory
    mma: int  # products of a warp
    dmma: int  # products of a warp in float64
    stores: int  # stores to shared memory: STS and STSM
    loads: int  # loads from shared memory: LDS and LDSM
    barriers: int  # barriers of all threads of a block
    waits: int  # waits for asynchronous products
    copies: int  # waits for asynchronous copies
    warp_macs: int  # number of multiplications per warp

    @property
    def products(self) -> int:
        """The number of all matrix products."""
        return self.wgmma_registers + self.wgmma_shared + self.mma + self.dmma


class Verdict(NamedTuple):
    """The failures and counts of a build. Counts that are unknown are None."""

    name: str
    kernel: str
    capability: int
    failures: list[Failure]
    notes: list[str] = []  # noqa: RUF012
    registers: int | None = None  # number of registers of a thread
    stack: int | None = None  # bytes of stack memory of a thread
    shared: int | None = None  # bytes of shared memory of a thread block
    inner: Inner | None = None
    unrolled: int | None = None  # number of iterations of the kernel's loop in one iteration of the machine code's loop
    per_element: float | None = None  # instructions of a thread for each feature, without products
    serialised: str | None = None  # warning of ptxas

    @property
    def passed(self) -> bool:
        return not self.failures


class Dot(NamedTuple):
    """A product of matrices [rows, inner] and [inner, columns] in Triton's code."""

    rows: int
    columns: int
    inner: int
    dtype: str  # dtype of the left operand: bf16, f16, f32 or f64
    precision: str  # precision of float32 products

    @property
    def macs(self) -> int:
        """The number of multiplications, including the additional ones if float32 numbers are split into parts."""
        return self.rows * self.columns * self.inner * (_PASSES.get(self.precision, 1) if self.dtype == "f32" else 1)

    @property
    def exact_float32(self) -> bool:
        """Whether tensor cores cannot compute the product."""
        return self.dtype == "f32" and self.precision == "ieee"

    def is_wgmma(self, capability: int, warps: int) -> bool:
        """Return whether a warp group can compute the product by asynchronous instructions for 64 rows."""
        fits = warps % 4 == 0 and self.rows >= 64
        return capability == 90 and fits and self.dtype != "f64" and not self.exact_float32


def checked(build: Build, keep: Path | None = None) -> Verdict:
    """Compile a build and apply all checks.

    Args:
        build: the build.
        keep: folder into which the code and the log are written (default: none).
    """
    try:
        code = compiled(build)
        if keep is not None:
            stem = "".join(letter if letter.isalnum() else "_" for letter in build.name)
            for ending in ("ttir", "ptx", "sass", "log"):
                (keep / f"{stem}.{ending}").write_text(getattr(code, ending))
    # an error of any type in Triton or a tool must not prevent the checks of the other builds
    except Exception as failure:
        return failed(build, "compile", reason(failure))
    try:
        return judged(build, code)
    except ValueError as unclear:
        return failed(build, "unclear", str(unclear))


def failed(build: Build, check: str, why: str) -> Verdict:
    """Return the verdict on a build whose code is missing or cannot be checked."""
    return Verdict(build.name, build.launch.kernel.__name__, build.capability, [Failure(check, why)])


def reason(failure: BaseException) -> str:
    """Return the first cause of an exception as one line.

    Triton wraps the cause in an exception for each nested function.
    """
    while failure.__cause__ is not None:
        failure = failure.__cause__
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[-1][:200] if lines else ''}"


def judged(build: Build, code: Compiled) -> Verdict:
    """Apply all checks to a compiled build.

    Raises:
        ValueError: if the log, the code or the disassembly has an unknown form.
    """
    from fastkan_kernels.backends.triton.builds import shared_limit

    program, log = sass.parse(code.sass), code.log
    registers = max((int(number) for number in _REGISTERS.findall(log)), default=None)
    stacks = [tuple(map(int, numbers)) for numbers in _STACK.findall(log)]
    if registers is None or not stacks:
        raise ValueError(f"ptxas did not tell registers and stack: {log.strip()[:200]!r}")
    stack, spilled = max(first for first, _, _ in stacks), sum(stores + loads for _, stores, loads in stacks)
    found = _SERIALISED.search(log)
    serialised = None if found is None else f"{found.group(1) or 'no code'}: {found.group(2)}"
    asked = dots(code.ttir)
    graph = flow.graph_of(program)
    loop = inner_loop(program, graph)
    inner = None if loop is None else counted(program, graph, loop, build.overlaps)

    def failures() -> Iterator[Failure]:
        if broken := hazard.hazards(program, graph):
            yield Failure("hazard", f"{broken[0]}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else ""))
        local = sum(instruction.name in _LOCAL for instruction in program.instructions)
        if stack or spilled or local:
            detail = f"{stack} bytes of stack, {spilled} bytes spilled, {local} accesses to local memory"
            yield Failure("spills", detail)
        if code.shared > (limit := shared_limit(build.capability)):
            yield Failure("shared memory", f"{code.shared} bytes, and a block may have {limit}")
        if build.tensor_cores and (why := _without_tensor_cores(build, program, asked, inner)):
            yield Failure("tensor cores", why)
        if build.keeps_nan and (lost := lost_nan(code.ptx)):
            yield Failure("NaN", f"{len(lost)} times {', '.join(sorted(set(lost)))}")
        if build.overlaps and serialised is not None:
            yield Failure("serialised", serialised)
        if build.overlaps and loop is not None and (late := made_late(program, loop)):
            yield Failure("serialised", f"{late} conversions come after the wait for the product")

    notes = []
    if any(dot.dtype == "f64" for dot in asked):
        notes.append("float64 by DMMA" if inner is not None and inner.dmma else "float64 by DFMA")
    if any(dot.exact_float32 for dot in asked):
        notes.append("exact float32 by FFMA")
    verdict = Verdict(
        build.name, build.launch.kernel.__name__, build.capability, list(failures()), notes,
        registers, stack, code.shared, inner, serialised=serialised,
    )  # fmt: skip
    if inner is None or not build.elements:
        return verdict
    rounds = unrolled(inner, asked, build.elements, build.launch.warps)
    per_element = (inner.instructions - inner.products) * WARP * build.launch.warps / (build.elements * rounds)
    return verdict._replace(unrolled=rounds, per_element=per_element)


def dots(ttir: str) -> list[Dot]:
    """Return the matrix products in Triton's intermediate code.

    Raises:
        ValueError: if a factor of a product is not a matrix.
    """
    found = []
    for line in _DOT.findall(ttir):
        precision, operands = _PRECISION.search(line), _DOT_OPERANDS.search(line)
        if operands is None:
            raise ValueError(f"a product of unknown form: {line}")
        rows, inner, dtype, columns = operands.groups()
        found.append(Dot(int(rows), int(columns), int(inner), dtype, precision.group(1) if precision else "ieee"))
    return found


def lost_nan(ptx: str) -> list[str]:
    """Return the floating-point minimum and maximum instructions that ignore a NaN in an operand."""
    code = re.sub(r"//[^\n]*", "", ptx)
    return [
        operation + modifiers
        for operation, modifiers in _MIN_MAX.findall(code)
        if _FLOATS & set(modifiers.split(".")) and ".NaN" not in modifiers
    ]


def inner_loop(program: sass.Program, graph: nx.DiGraph) -> flow.Loop | None:
    """Return the deepest loop with matrix products on tensor cores, or None.

    Of equally deep loops, return the one with most.
    """

    def rank(loop: flow.Loop) -> tuple[int, int, int]:
        products = sum(program.instructions[place].is_mma for place in loop.places)
        return (loop.depth, products, len(loop.places)) if products else (-1, 0, 0)

    found = max(flow.loops(graph), key=rank, default=None)
    return None if found is None or rank(found)[0] < 0 else found


def counted(program: sass.Program, graph: nx.DiGraph, loop: flow.Loop, whole: bool = False) -> Inner:
    """Count the instructions of a loop by their kinds.

    Args:
        program: the machine code.
        graph: the control flow of the program.
        loop: the loop.
        whole: whether to count the longest round instead of the shortest one.
    """
    body = [program.instructions[place] for place in loop.places]
    round_of = flow.longest_round if whole else flow.shortest_round
    once = [program.instructions[place] for place in round_of(program, graph, loop)]
    wgmma = [instruction for instruction in body if instruction.is_wgmma]
    plain = [instruction for instruction in body if instruction.is_mma and not instruction.is_wgmma]
    in_registers = sum(bool(instruction.a_operand) for instruction in wgmma)
    doubles = sum(instruction.name == "DMMA" for instruction in plain)
    names = Counter(instruction.name for instruction in once)
    return Inner(
        len(once), in_registers, len(wgmma) - in_registers, len(plain) - doubles, doubles,
        names["STS"] + names["STSM"], names["LDS"] + names["LDSM"], names["BAR"],
        sum(instruction.is_wgmma_wait for instruction in once),
        names["DEPBAR"] + sum("TRYWAIT" in instruction.modifiers for instruction in once),
        sum(each.macs for each in plain) + sum(each.macs for each in wgmma) // 4,
    )  # fmt: skip


def unrolled(inner: Inner, asked: list[Dot], elements: int, warps: int) -> int:
    """Return how many iterations of the kernel's loop are unrolled into one iteration of the loop in machine code.

    The result is computed from the numbers of multiplications. ``elements`` is the size of the product's left operand.
    """
    dot = max((dot for dot in asked if dot.rows * dot.inner == elements), key=lambda dot: dot.macs, default=None)
    if dot is None:
        return 1
    # A warp computes at least 16 rows of 8 columns, so in small tiles several warps compute the same numbers.
    repeated = max(1, warps * 16 * 8 // (dot.rows * dot.columns))
    return max(1, round(inner.warp_macs * warps / (dot.macs * repeated)))


def made_late(program: sass.Program, loop: flow.Loop) -> int:
    """Return the number of features that a loop computes while none of its asynchronous products runs.

    The function counts the conversions to two bytes (F2FP), because the computation of each feature ends with one.
    """
    inside = [(place, program.instructions[place]) for place in sorted(loop.places)]
    starts = [place for place, instruction in inside if instruction.is_wgmma]
    # A wait with another operand than 0 lets the latest products run on.
    waits = [place for place, instruction in inside if instruction.is_wgmma_wait and instruction.operands[-1] == "0x0"]
    if not (starts and waits):
        return 0
    end = min((place for place in waits if place > starts[-1]), default=inside[-1][0])
    return sum(instruction.name == "F2FP" and not starts[0] < place < end for place, instruction in inside)


def _without_tensor_cores(build: Build, program: sass.Program, asked: list[Dot], inner: Inner | None) -> str | None:
    """Return the reason why products do not use the expected tensor core instructions, or None if they do.

    On sm_90, a product that a warp group can compute must use the instruction HGMMA. Products of smaller tiles must use
    HMMA. Products in float64 may use DMMA or DFMA.
    """
    if not asked:
        return "the kernel asks for no product"
    if all(dot.dtype == "f64" for dot in asked):
        return None
    if inner is None or not inner.products:
        return "no product on them in any loop"
    wgmma = [dot.is_wgmma(build.capability, build.launch.warps) for dot in asked]
    if any(wgmma) and not (inner.wgmma_registers or inner.wgmma_shared):
        return "HMMA in the inner loop where HGMMA is possible"
    if all(wgmma) and any(instruction.name == "HMMA" for instruction in program.instructions):
        return "HMMA outside of the inner loop where HGMMA is possible"
    return None
