"""One build of each kernel, dtype and form, which the interpreter compares with float64.

Sizes are the smallest with two or more steps of each loop and tiles that exceed the tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from cases import absolute_terms, assert_within, make_case
from oracle import Example, budget, exact

import fastkan_kernels
from fastkan_kernels import Basis
from fastkan_kernels.backends.triton.tuning.config import Config
from fastkan_kernels.backends.triton.tuning.selection import override

from .launches import Run, emulated
from .machine import LATE, POLICIES, Policy

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32, "fp64": torch.float64}


class Case(NamedTuple):
    """A contraction, the kernel that computes it, and its operands."""

    contraction: str
    config: Config
    dtype: str  # a name of DTYPES; "tf32" is float32 with tf32 products
    sizes: tuple[int, int, int, int] = (70, 40, 40, 3)  # rows, inputs, outputs, and cells of the grid
    knots: str = "shared"  # a kind of cases.make_knots
    order: int = 3
    derivative: int = 0
    v: bool = False
    base: str = "silu"
    autocast: str | None = None  # dtype of products, if it is not that of x
    capability: int = 90

    def __str__(self) -> str:
        c = self.config
        tiles = "x".join(str(n) for n in (c.rows, c.columns, c.inner, c.splines))
        words = [
            self.contraction, c.way, self.dtype, self.autocast and f"in {self.autocast}", self.knots,
            f"k{self.order}", f"d{self.derivative}", self.v and "v", self.base, "x".join(map(str, self.sizes[:3])),
            f"G{self.sizes[3]}", tiles, f"w{c.warps}", f"s{c.stages}", c.descriptors and "descriptors",
            f"sm{self.capability}",
        ]  # fmt: skip
        return " ".join(word for word in words if word)


def _cases() -> Iterator[Case]:
    fused = {
        "F": Config("fused", 64, 64, 32, 1, 4, 3, True),
        "G": Config("fused", 64, 64, 32, 1, 4, 3, True),
        "H": Config("fused", 64, 16, 32, 4, 4, 3, True),
    }
    pointers = {
        "F": Config("fused", 64, 16, 32, 1, 4, 3),
        "G": Config("fused", 64, 16, 32, 1, 4, 3),
        "H": Config("fused", 64, 16, 16, 2, 4, 3),
    }
    pipelined = Config("pipelined", 64, 64, 16, 1, 4, 4, True)
    shipped = {
        "F": Config("fused", 128, 256, 64, 1, 8, 3, True),
        "G": Config("fused", 128, 128, 64, 1, 8, 3, True),
        "H": Config("fused", 128, 32, 64, 4, 8, 3, True),
    }
    for name in "FGH":
        d = int(name == "H")
        wide = (150, 72, 264, 2) if name != "G" else (150, 136, 136, 2)
        yield Case(name, shipped[name], "bf16", wide, derivative=d)
        for dtype in ("fp16", "tf32", "fp32", "fp64"):
            yield Case(name, fused[name], dtype, derivative=0 if dtype == "fp16" else d)
        yield Case(name, fused[name], "bf16", knots="adapted", derivative=d)
        yield Case(name, fused[name], "fp32", knots="repeated", derivative=d)
        yield Case(name, fused[name], "fp64", knots="adapted", derivative=1, v=name != "H")
        yield Case(name, pointers[name], "bf16", (67, 37, 7, 3), derivative=1, v=name != "H")
        yield Case(name, pointers[name], "fp32", (100, 2, 5, 5), order=2)
        yield Case(name, pointers[name], "bf16", (1, 1, 1, 3), base="none")
        yield Case(name, fused[name], "fp32", autocast="bf16", base="identity")
        yield Case(name, fused[name], "bf16", order=5, derivative=2, base="none")
        yield Case(name, fused[name]._replace(stages=2, descriptors=False), "bf16", derivative=d, capability=80)
        yield Case(name, fused[name]._replace(stages=2, descriptors=False), "fp32", derivative=d, capability=80)
    for name in "FG":
        wide = (150, 72, 264, 2) if name == "F" else (300, 72, 264, 1)
        yield Case(name, Config("pipelined", 128, 256, 64, 1, 8, 4, True), "bf16", wide)
        yield Case(name, pipelined, "fp16", (150, 40, 72, 3))
        yield Case(name, pipelined, "bf16", (150, 40, 72, 3), knots="adapted", derivative=1, v=True)
        yield Case(name, pipelined, "bf16", (150, 40, 72, 3), derivative=1, v=True, base="none")
        yield Case(name, pipelined, "fp32", (70, 24, 40, 3), autocast="bf16", knots="adapted", base="none")
        yield Case(name, pipelined, "bf16", (70, 8, 8, 3), order=2)
    for name in "FH":
        gather = Config("gather", 16, 64, 16, 1, 4, 2)
        chunked = Config("chunked", 16, 32, 16, 1, 4, 1)
        d = int(name == "H")
        yield Case(name, gather, "bf16", (40, 5, 24, 20), derivative=d, v=name == "F")
        yield Case(name, gather, "fp32", (40, 5, 24, 20), knots="repeated", derivative=d)
        yield Case(name, gather, "fp64", (40, 5, 24, 9), base="none")
        yield Case(name, chunked, "bf16", (70, 40, 24, 3), derivative=d, v=name == "F")
        yield Case(name, chunked, "fp32", (70, 40, 24, 3), knots="adapted", derivative=d)
        yield Case(name, chunked, "fp64", (70, 40, 24, 3))


CASES = {str(case): case for case in _cases()}


class Report(NamedTuple):
    """The result of a case: the largest error relative to the bound of each number, and what ran."""

    error: float  # norm of the error relative to the norm of the result
    share: float  # largest error of a number, relative to the bound of that number
    runs: list[Run]


def compute(case: Case, o: Example, basis: Basis) -> tuple[torch.Tensor, ...]:
    """Return the results of the contraction of a case."""
    if case.contraction == "F":
        parts = (fastkan_kernels.contract_out(
            o.x, o.knots, o.weight, o.base_weight, o.v, basis=basis, derivative=case.derivative), None)  # fmt: skip
    elif case.contraction == "G":
        parts = fastkan_kernels.contract_weight(o.x, o.knots, o.g, o.v, basis=basis, derivative=case.derivative)
    else:
        parts = (fastkan_kernels.contract_in(
            o.x, o.knots, o.weight, o.base_weight, o.g, basis=basis, derivative=case.derivative), None)  # fmt: skip
    return tuple(part for part in parts if part is not None)


def operands(case: Case) -> tuple[Example, Basis]:
    rows, inputs, outputs, grid = case.sizes
    dtype = DTYPES[case.dtype]
    work = torch.promote_types(dtype, torch.float32)
    o, basis = make_case(case.knots, rows, inputs, outputs, grid, case.order, case.base, work, case.v)
    if dtype != work:
        o = Example(*(t if t is o.knots or t is None else t.to(dtype) for t in o))
    return o, basis._replace(matmul_dtype=DTYPES[case.autocast] if case.autocast else None)


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """Select the kernel of a case, and fill the tensors that it must write with NaN."""
    new_empty = torch.Tensor.new_empty

    def spoiled(self: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        made = new_empty(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if case.dtype == "tf32" else "highest")
    try:
        with (
            mock.patch.object(torch.Tensor, "new_empty", spoiled),
            override(case.contraction, case.config),
            fastkan_kernels.backend("triton"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def bounds(case: Case, o: Example, basis: Basis, truth: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the largest error of each number that the precision of a case explains."""
    way = "gather" if case.config.way == "gather" else "fused"
    eps = {"tf32": 2.0**-10, "fp32": 2.0**-22}.get(case.dtype, 0.0)
    product = DTYPES[case.autocast or case.dtype]
    if product.itemsize == 2:
        eps = torch.finfo(product).eps
    found = []
    sizes = absolute_terms(case.contraction, o, basis, case.derivative)
    for bound, size, value in zip(
        budget(case.contraction, o, basis, case.derivative, way, sums=True), sizes, truth, strict=True
    ):
        once = torch.finfo(o.x.dtype).eps / 2 * np.abs(value) * (1 + 1e-3) if o.x.dtype.itemsize == 2 else 0.0
        found.append(bound + 3.1 * eps / 2 * size + once)
    return found


def policies_of(case: Case) -> tuple[Policy, ...]:
    if case.config.way in ("chunked", "gather"):
        return POLICIES[:2]  # the kernels start no products, and at most a few copies
    return POLICIES


def check(case: Case) -> Report:
    """Run a case under each policy, and raise an exception unless it is right.

    Raises:
        AssertionError: if a number is further from float64 than its bound, or its bits depend on the policy.
        Fault: if an access is invalid, or two accesses race.
    """
    o, basis = operands(case)
    truth = exact(case.contraction, o, basis, case.derivative)
    first: tuple[torch.Tensor, ...] | None = None
    for policy in policies_of(case):
        with emulated(policy, races=policy == LATE, capability=case.capability) as emulation, settings(case):
            values = compute(case, o, basis)
        if first is None:
            first, runs = values, emulation.runs
        assert all(itertools.starmap(torch.equal, zip(first, values, strict=True))), f"other bits with {policy}"
    assert first is not None
    errors = [value.double().numpy() - want for value, want in zip(first, truth, strict=True)]
    allowed = bounds(case, o, basis, truth)
    for value, want, bound in zip(first, truth, allowed, strict=True):
        assert_within(value, want, bound, str(case))
    error = max(float(np.linalg.norm(e) / max(1e-300, np.linalg.norm(want))) for e, want in zip(errors, truth, strict=True))
    share = max(float((np.abs(e) / np.maximum(bound, 1e-300)).max()) for e, bound in zip(errors, allowed, strict=True))
    return Report(error, share, runs)
