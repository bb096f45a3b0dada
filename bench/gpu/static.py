"""What a compiled kernel must be before it is timed, read off its machine code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastkan_kernels.backends.triton.config import shared_limit

from ..codegen import judge, ptx, sass
from ..codegen.compile import assembler_log, disassemble

KNOWN_BELOW = 100  # capability, from which the checks can't read the machine code
_judged: dict[tuple[str, bool], str | None] = {}  # by Triton's hash: candidates of many rows are one build


def fault(kernels: Sequence[Any], capability: int, overlaps: bool) -> str | None:
    """Why kernels that have been launched are not to be timed, or None: shared memory, spills and stack; and on sm_90
    registers that are overwritten while a product reads them, which gives wrong numbers now and then.

    Args:
        kernels: as Triton has compiled them; None for an interpreted one.
        overlaps: whether they claim to work while products run, so that products that ptxas serialised are a fault.
    """
    why = unfit(kernels, capability)
    if why is not None or capability >= KNOWN_BELOW:
        return why
    for kernel in kernels:
        if kernel is None:
            continue
        place = kernel.hash, overlaps
        if place not in _judged:
            _judged[place] = "; ".join(map(str, _failures(kernel, capability, overlaps))) or None
        if _judged[place] is not None:
            return _judged[place]
    return None


def unfit(kernels: Sequence[Any], capability: int) -> str | None:
    """A fault of compiled and loaded kernels: too much shared memory, spilled registers or a stack."""
    for kernel in kernels:
        if kernel is None:  # Triton's interpreter ran this kernel
            continue
        limit = shared_limit(capability)
        if kernel.metadata.shared > limit:
            return f"{kernel.metadata.shared} bytes of shared memory, and a block may have {limit}"
        if kernel.n_spills:  # the driver's number includes spilled registers and the stack of a thread
            return f"{4 * kernel.n_spills} bytes of stack"
    return None


def _failures(kernel: Any, capability: int, overlaps: bool) -> Iterator[judge.Failure]:
    try:
        yield from judge.machine_code(sass.parse(disassemble(kernel.asm["cubin"])))
        if overlaps and "ptx" in kernel.asm:  # compiled ahead it isn't kept
            serialised = ptx.assembled(assembler_log(kernel.asm["ptx"], capability)).serialised
            if serialised is not None:
                yield judge.Failure("serialised", serialised)
    except ValueError as unclear:
        yield judge.Failure("unclear", str(unclear))
