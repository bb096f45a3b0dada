"""What the stage ``tune`` of ``python -m bench --gpu`` times, as builds: ``python -m bench.codegen --candidates``.

So the list is known to be clean before a GPU is held. A candidate whose code another row's has compiled is no
build of its own: sizes are arguments of a kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from fastkan_kernels.backends.triton.builds import Build, Setting, builds_of, problem_of
from fastkan_kernels.backends.triton.key import key
from fastkan_kernels.backends.triton.rules import candidates

from ..gpu.settings import DTYPES
from ..gpu.tune import Choice, choices

PRECISIONS = {"tf32": "tf32", "highest": "tf32x3"}


def builds(capability: int) -> list[Build]:
    """All different ones of a capability."""
    found: dict[Hashable, Build] = {}
    for choice in choices(rehearsal=False):
        for build in of_choice(choice, capability):
            found.setdefault(identity(build), build)
    return list(found.values())


def sample() -> list[Build]:
    """Of one small key, on both capabilities."""
    choice = next(c for c in choices(rehearsal=True) if c.row.dtype == "highest")
    return [build for capability in (90, 80) for build in of_choice(choice, capability)]


def of_choice(choice: Choice, capability: int) -> Iterator[Build]:
    """Of each candidate of a contraction of a row, in their order."""
    row = choice.row
    setting = Setting(
        choice.contraction, DTYPES[row.dtype], PRECISIONS.get(row.dtype, "ieee"), order=row.case.order,
        derivative=choice.derivative, rows=row.rows, inputs=row.inputs, outputs=row.outputs, grid=row.grid,
    )  # fmt: skip
    for config in candidates(key(problem_of(setting, capability)), capability):
        yield from builds_of(setting._replace(way=config.way), capability, config)


def identity(build: Build) -> Hashable:
    """What a compiler sees of it."""
    kernel = build.kernel
    return (
        kernel.fn.__module__, kernel.__name__, build.capability, build.warps, build.stages,
        tuple(sorted(build.signature.items())), tuple(sorted((n, str(v)) for n, v in build.constants.items())),
        tuple(sorted(build.divisible)),
    )  # fmt: skip
