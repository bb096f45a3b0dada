"""One build of each kernel, dtype and form of splines. The results of the interpreter are compared with float64.

The sizes are the smallest with which each loop has at least two steps and some tiles extend beyond the tensors.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from cases import absolute_terms, assert_within, make_case
from oracle import Example, budget, exact

import fastkan_kernels
from fastkan_kernels import Basis
from fastkan_kernels.backends.triton.config import Config
from fastkan_kernels.backends.triton.selection import override

from .launches import emulated
from .machine import LATE, POLICIES, Policy

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


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
    autocast: str | None = None  # dtype of products if different from the dtype of x
    padding: int = 0  # number of elements between the rows of x, v and g
    capability: int = 90
    policies: tuple[Policy, ...] = POLICIES

    def __str__(self) -> str:
        c = self.config
        tiles = "x".join(str(n) for n in (c.rows, c.columns, c.inner, c.splines))
        words = [
            self.contraction, c.way, self.dtype, self.autocast and f"in {self.autocast}", self.knots,
            f"k{self.order}", f"d{self.derivative}", self.v and "v", self.base, "x".join(map(str, self.sizes[:3])),
            f"G{self.sizes[3]}", self.padding and f"padded by {self.padding}", tiles, f"w{c.warps}", f"s{c.stages}",
            c.descriptors and "descriptors", f"sm{self.capability}",
        ]  # fmt: skip
        return " ".join(word for word in words if word)


FUSED = {
    "F": Config("fused", 64, 64, 32, 1, 4, 3, True),
    "G": Config("fused", 64, 64, 32, 1, 4, 3, True),
    "H": Config("fused", 64, 16, 32, 4, 4, 3, True),
}
POINTERS = {
    "F": Config("fused", 64, 16, 32, 1, 4, 3),
    "G": Config("fused", 64, 16, 32, 1, 4, 3),
    "H": Config("fused", 64, 16, 16, 2, 4, 3),
}
SHIPPED = {
    "F": Config("fused", 128, 256, 64, 1, 8, 3, True),
    "G": Config("fused", 128, 128, 64, 1, 8, 3, True),
    "H": Config("fused", 128, 32, 64, 4, 8, 3, True),
}
PIPELINED = {
    "F": Config("pipelined", 64, 64, 64, 1, 4, 3, True),
    "G": Config("pipelined", 64, 64, 64, 1, 4, 3, True),
    "H": Config("pipelined", 64, 16, 64, 8, 4, 3, True),
}
PIPELINED_SHIPPED = {
    "F": Config("pipelined", 128, 256, 64, 1, 8, 4, True),
    "G": Config("pipelined", 128, 256, 64, 1, 8, 4, True),
    "H": Config("pipelined", 128, 32, 64, 8, 8, 4, True),
}
BANDED = {
    "F": Config("banded", 128, 32, 32, 1, 4, 3),
    "H": Config("banded", 64, 4, 64, 1, 4, 3),  # a program computes 4 inputs, and a part has 64 outputs
}
GATHER = Config("gather", 16, 64, 16, 1, 4, 2)
CHUNKED = Config("chunked", 16, 32, 16, 1, 4, 1)
WITHOUT_PRODUCTS = POLICIES[:2]  # policies for kernels that start no asynchronous products


def _fused(name: str) -> Iterator[Case]:
    fused, pointers, d = FUSED[name], POINTERS[name], int(name == "H")
    older = fused._replace(stages=2, descriptors=False)
    v = name != "H"
    yield Case(name, SHIPPED[name], "bf16", (150, 136, 136, 2) if name == "G" else (150, 72, 264, 2), derivative=d)
    for dtype in ("fp16", "tf32", "fp32", "fp64"):
        yield Case(name, fused, dtype, derivative=0 if dtype == "fp16" else d)
    yield Case(name, fused, "bf16", knots="adapted", derivative=d)
    yield Case(name, fused, "fp32", knots="repeated", derivative=d)
    yield Case(name, fused, "fp64", knots="adapted", derivative=1, v=v)
    yield Case(name, pointers, "bf16", (67, 37, 7, 3), derivative=1, v=v)
    yield Case(name, pointers, "fp32", (100, 2, 5, 5), order=2)
    yield Case(name, pointers, "bf16", (1, 1, 1, 3), base="none")
    yield Case(name, fused, "fp32", autocast="bf16", base="identity")
    yield Case(name, fused, "bf16", order=5, derivative=2, base="none")
    yield Case(name, fused, "bf16", (1, 8, 8, 3), padding=5)
    for dtype in ("bf16", "fp32"):  # sizes are divisible by 16, as copies (cp.async) require
        yield Case(name, older, dtype, (70, 48, 48, 3), derivative=d, capability=80)


def _pipelined(name: str) -> Iterator[Case]:
    small, sizes, v, d = PIPELINED[name], (150, 40, 72, 3), name != "H", int(name == "H")
    shipped = {"F": (150, 72, 264, 5), "G": (300, 136, 264, 5), "H": (150, 72, 264, 5)}
    yield Case(name, PIPELINED_SHIPPED[name], "bf16", shipped[name], derivative=d)
    yield Case(name, small, "fp16", sizes, derivative=d)
    yield Case(name, small, "bf16", sizes, knots="adapted", derivative=1, v=v)
    yield Case(name, small, "bf16", sizes, derivative=1, v=v, base="none")
    yield Case(name, small, "bf16", sizes, knots="uniform", derivative=1, v=v)
    yield Case(name, small, "fp32", (70, 24, 40, 20), autocast="bf16", knots="adapted", base="none")
    yield Case(name, small, "fp32", (70, 24, 40, 20), autocast="bf16")
    if name == "F":
        yield Case(name, small._replace(stages=4), "fp32", (150, 72, 136, 9), autocast="fp16", derivative=d)
    yield Case(name, small, "bf16", (75, 24, 40, 3), v=v, padding=8)
    yield Case(name, small, "fp16", (75, 24, 40, 3), v=v, base="identity")
    yield Case(name, small, "bf16", (1, 8, 8, 3), padding=5)
    for order, knots, d in [
        (1, "uniform", 0),
        (1, "shared", 1),
        (2, "repeated", 1),
        (2, "shared", 1),
        (3, "uniform", 3),
        (3, "shared", 2),
    ]:
        yield Case(name, small, "bf16", (70, 8, 24, 3), knots, order, d, v=v, policies=POLICIES[:1])
    for rows, inputs, outputs in ((64, 16, 16), (65, 24, 24), (130, 8, 72), (210, 16, 8), (70, 72, 8)):
        yield Case(name, small, "bf16", (rows, inputs, outputs, 2), base="identity", policies=POLICIES[:1])


def _others(name: str) -> Iterator[Case]:
    d, v = int(name == "H"), name == "F"
    for config, sizes in ((GATHER, (40, 5, 24, 20)), (CHUNKED, (70, 40, 24, 3))):
        yield Case(name, config, "bf16", sizes, derivative=d, v=v, policies=WITHOUT_PRODUCTS)
        yield Case(name, config, "fp32", sizes, knots="repeated", derivative=d, policies=WITHOUT_PRODUCTS)
        yield Case(name, config, "fp64", sizes, base="none", policies=WITHOUT_PRODUCTS)


def _banded(name: str) -> Iterator[Case]:
    config, sizes, d, v = BANDED[name], (150, 6, 40, 20), int(name == "H"), name == "F"
    yield Case(name, config, "bf16", sizes, derivative=d)
    yield Case(name, config, "fp16", sizes)
    yield Case(name, config, "bf16", sizes, knots="adapted", derivative=d, v=v)
    yield Case(name, config, "bf16", sizes, knots="repeated", order=2, derivative=1, v=v, base="none")
    yield Case(name, config, "bf16", sizes, order=1, derivative=1, base="identity")
    yield Case(name, config, "bf16", sizes, derivative=3)
    yield Case(name, config, "fp32", sizes, autocast="bf16", v=v, padding=3)
    yield Case(name, config._replace(rows=64, warps=2, stages=2), "bf16", (1, 1, 8, 1), derivative=d)
    yield Case(name, config, "bf16", (70, 3, 72, 33), derivative=d, capability=80)
    shipped = {
        "F": (Config("banded", 512, 32, 32, 1, 16, 3), (520, 4, 40, 256)),
        "H": (Config("banded", 256, 64, 256, 1, 16, 2), (260, 3, 264, 256)),
    }
    yield Case(name, shipped[name][0], "bf16", shipped[name][1], derivative=d, policies=WITHOUT_PRODUCTS)


def _special(name: str, config: Config) -> Iterator[Case]:
    sizes = (70, 40, 40, 3)
    for knots, base, d in itertools.product(("shared", "adapted"), ("silu", "none"), (0, 1)):
        yield Case(name, config, "bf16", sizes, knots, derivative=d, base=base, policies=POLICIES[:1])


CASES = {
    str(case): case
    for case in itertools.chain(*map(_fused, "FGH"), *map(_pipelined, "FGH"), *map(_others, "FH"), *map(_banded, "FH"))
}  # fmt: skip
# Cases whose inputs have NaN and infinities.
SPECIAL = {
    str(case): case
    for name, config in [*FUSED.items(), *PIPELINED.items(), *BANDED.items(), ("F", GATHER), ("F", CHUNKED)]
    for case in _special(name, config)
}


class Report(NamedTuple):
    """The result of a case: its errors, and the instructions that its launches executed."""

    error: float  # norm of the error relative to the norm of the result
    share: float  # largest error of a number, relative to the bound of that number
    counts: list[Counter[str]]  # counts of instructions of each launch


def compute(case: Case, o: Example, basis: Basis) -> tuple[torch.Tensor, ...]:
    """Return the results of the contraction of a case."""
    parts: tuple[torch.Tensor | None, ...]
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
    if case.padding:
        o = o._replace(x=_padded(o.x, case.padding), g=_padded(o.g, case.padding))
        o = o._replace(v=None if o.v is None else _padded(o.v, case.padding))
    return o, basis._replace(matmul_dtype=DTYPES[case.autocast] if case.autocast else None)


def _padded(matrix: torch.Tensor, padding: int) -> torch.Tensor:
    """Return a view of a wider matrix that has the given values. The other elements of the wider matrix are NaN."""
    wide = torch.full((len(matrix), matrix.shape[1] + padding), torch.nan, dtype=matrix.dtype)
    wide[:, : matrix.shape[1]] = matrix
    return wide[:, : matrix.shape[1]]


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """Select the kernel of a case inside the ``with`` statement, and fill all new tensors with NaN."""
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
    """Return for each number of a result the largest error that the precision of a case can cause."""
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


def _assert_within(value: torch.Tensor, want: np.ndarray, bound: np.ndarray, case: Case) -> None:
    try:
        assert_within(value, want, bound, str(case))
    except pytest.fail.Exception as failure:  # the exception of pytest cannot be sent to another process
        raise AssertionError(str(failure)) from None


def results(
    case: Case, o: Example, basis: Basis, policy: Policy, device: str
) -> tuple[tuple[torch.Tensor, ...], list[Counter[str]]]:
    """Return the results of a case, and the counts of each launch if the interpreter runs it.

    Args:
        case: the case.
        o: operands.
        basis: properties of the features.
        policy: policy of the interpreter.
        device: "cpu" for the interpreter, or a GPU.
    """
    if device != "cpu":
        with settings(case):
            values = compute(case, o.map(lambda tensor: _on(device, tensor)), basis)
        return tuple(value.cpu() for value in values), []
    with emulated(policy, races=policy == LATE, capability=case.capability) as emulation, settings(case):
        values = compute(case, o, basis)
    return values, [run.counts for run in emulation.runs]


def check(case: Case, device: str = "cpu") -> Report:
    """Run a case on a GPU, or in the interpreter under each policy, and raise an exception unless it is right.

    Raises:
        AssertionError: if the error of a number exceeds its bound, or the bits of a number depend on the policy.
        Fault: if an access is invalid, or two accesses race.
    """
    o, basis = operands(case)
    truth = exact(case.contraction, o, basis, case.derivative)
    first, counts = results(case, o, basis, case.policies[0], device)
    for policy in case.policies[1:] if device == "cpu" else ():
        values, _ = results(case, o, basis, policy, device)
        assert all(itertools.starmap(torch.equal, zip(first, values, strict=True))), f"other bits with {policy}"
    allowed = bounds(case, o, basis, truth)
    for value, want, bound in zip(first, truth, allowed, strict=True):
        _assert_within(value, want, bound, case)
    errors = [value.double().numpy() - want for value, want in zip(first, truth, strict=True)]
    error = max(float(np.linalg.norm(e) / max(1e-300, np.linalg.norm(want))) for e, want in zip(errors, truth))
    share = max(float((np.abs(e) / np.maximum(bound, 1e-300)).max()) for e, bound in zip(errors, allowed))
    return Report(error, share, counts)


def check_special(case: Case, device: str = "cpu") -> None:
    """Run a case with NaN and infinities in x, and compare the places of NaN and infinities in the result with float64.

    Raises:
        AssertionError: if a number is NaN or infinite in only one of the two results.
        Fault: if an access is invalid, or two accesses race.
    """
    o, basis = operands(case)
    o.x[5, 3] = o.x[66, 20] = torch.nan
    o.x[7, 1], o.x[8, 2] = torch.inf, -torch.inf
    values, _ = results(case, o, basis, LATE, device)
    for value, want in zip(values, exact(case.contraction, o, basis, case.derivative), strict=True):
        found = value.double().numpy()
        odd = ~np.isfinite(want)
        np.testing.assert_array_equal(found[odd], want[odd])
        assert np.isfinite(found[~odd]).all()


def check_infinite(case: Case, operand: str) -> None:
    """Run a case with an infinite element of v or g, and compare which numbers of the result are finite with float64.

    Raises:
        AssertionError: if a number is finite in only one of the two results.
        Fault: if an access is invalid.
    """
    o, basis = operands(case)
    getattr(o, operand)[5, 3] = torch.inf
    values, _ = results(case, o, basis, LATE, "cpu")
    with np.errstate(invalid="ignore"):
        truth = exact(case.contraction, o, basis, case.derivative)
    for value, want in zip(values, truth, strict=True):
        np.testing.assert_array_equal(value.isfinite().numpy(), np.isfinite(want))


def _on(device: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor on a device with the same strides."""
    if tensor.is_contiguous():
        return tensor.to(device)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)


def error_without_wait(case: Case, strict: bool = False) -> float:
    """Return the relative error of a case, whose kernel is compiled without waits for each product in the loop.

    Args:
        case: the case.
        strict: whether the use of registers of unfinished products raises an exception.

    Raises:
        Fault: if ``strict``, and a register of an unfinished product is used.
    """
    o, basis = operands(case)
    with emulated(strict=strict, capability=case.capability) as emulation, settings(case):
        emulation.constants["WAIT"] = False
        value = compute(case, o, basis)[0].double().numpy()
    want = exact(case.contraction, o, basis, case.derivative)[0]
    return float(np.linalg.norm(value - want) / np.linalg.norm(want))


def counts(case: Case) -> Counter[str]:
    """Return the counts of instructions and memory traffic of the first launch of a case."""
    o, basis = operands(case)
    with emulated(traffic=True, capability=case.capability) as emulation, settings(case):
        compute(case, o, basis)
    return emulation.runs[0].counts
