"""Operands of contractions to test on, the ways to compute them, and comparisons with the oracle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from oracle import Example
from torch import Tensor

import fastkan_kernels
from fastkan_kernels import Basis
from fastkan_kernels.backends import cpu as cpu_backend
from fastkan_kernels.backends.cpu import banded, dense, selection
from fastkan_kernels.backends.registry import BACKENDS

# -- knots and operands -----------------------------------------------------------------------------

KNOTS = ("shared", "uniform", "adapted", "repeated")


def make_knots(kind: str, inputs: int, grid: int, order: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Knots ``[inputs, grid + 2 order + 1]``.

    ``shared``: equally spaced, the same for all inputs. ``uniform``: equally spaced, each input its
    own. ``adapted``: cells of widths that differ by up to 9 times. ``repeated``: the same with double
    and triple knots inside and with ends of k + 1 equal knots.
    """
    count = grid + 2 * order + 1
    if kind == "shared":
        return fastkan_kernels.uniform_knots(inputs, grid, order, (-1.3, 1.1), dtype=dtype)
    feature = torch.arange(inputs, dtype=torch.float64).unsqueeze(1) % 7
    if kind == "uniform":
        steps = torch.arange(-order, grid + order + 1, dtype=torch.float64)
        return (-1 - feature / 10 + steps * ((2 + feature / 3) / grid)).to(dtype)
    widths = 0.2 + 1.6 * torch.rand(inputs, count - 1, dtype=torch.float64)
    if kind == "repeated":
        widths[:, :order] = 0
        widths[:, -order:] = 0
        inner = widths[:, order : grid + order]
        inner[:, 1:2] = 0  # a double knot
        inner[:, 4:6] = 0  # a triple one
    knots = -1.2 - feature / 10 + widths.cumsum(1) * (2.4 / max(grid, 1))
    return torch.cat([knots[:, :1] - widths[:, :1] * (2.4 / max(grid, 1)), knots], 1).to(dtype)


def make_inputs(rows: int, knots: Tensor) -> Tensor:
    """Inputs ``[rows, I]`` in, around and on the knots, a few of them far outside."""
    inputs, count = knots.shape
    low, high = knots[:, 0].double(), knots[:, -1].double()
    margin = 0.2 * (high - low)
    x = low - margin + (high - low + 2 * margin) * torch.rand(rows, inputs, dtype=torch.float64)
    x = x.to(knots.dtype)
    on = min(count, rows // 2)
    x[:on] = knots.t()[:on]
    if rows > 4:
        x[-1], x[-2] = 50.0, -50.0
    return x


def make_case(
    kind: str = "shared",
    rows: int = 40,
    inputs: int = 3,
    outputs: int = 4,
    grid: int = 6,
    order: int = 3,
    base: str = "silu",
    dtype: torch.dtype = torch.float64,
    v: bool = True,
) -> tuple[Example, Basis]:
    """Return operands of every contraction and their basis, from a seed of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        knots = make_knots(kind, inputs, grid, order, dtype)
        basis = fastkan_kernels.basis_of(knots, order, base)
        assert basis.uniform == (kind in ("shared", "uniform") and inputs > 0), "the knots are not what they should be"
        x = make_inputs(rows, knots)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype)

        weight, base_weight = randn(grid + order, inputs, outputs), randn(inputs, outputs)
        multiplier, g = randn(rows, inputs), randn(rows, outputs)
    return Example(x, knots, multiplier if v else None, weight, None if base == "none" else base_weight, g), basis


def inside_cells(rows: int, knots: Tensor, order: int) -> Tensor:
    """Inputs ``[rows, I]`` in the grid and away from every knot, where all derivatives are smooth."""
    grid = knots[:, order : knots.shape[1] - order]
    wide = grid.diff(dim=1) > 0
    columns = []
    for row, usable in zip(grid, wide):
        cells = usable.nonzero().flatten()
        cell = cells[torch.arange(rows) % len(cells)]
        share = 0.25 + 0.5 * torch.rand(rows, dtype=knots.dtype)
        columns.append(torch.lerp(row[cell], row[cell + 1], share))
    return torch.stack(columns, 1)


def random_knots(kind: str, inputs: int, count: int, order: int) -> Tensor:
    """Random knots in float64, the same on each call; ``kind`` says which of them coincide."""
    generator = torch.Generator().manual_seed(7 * count + order)
    knots = torch.sort(torch.randn(inputs, count, dtype=torch.float64, generator=generator), 1).values
    if kind == "repeated":
        knots[:, 3] = knots[:, 2]
        knots[:, -2] = knots[:, -1]
    if kind == "as many as the order":
        knots[1, 2 : 2 + order] = knots[1, 2]
    return knots


def inputs_around(knots: Tensor) -> Tensor:
    """Random points, each knot, and values that lie on no grid, in the dtype of the knots."""
    inputs, dtype = len(knots), knots.dtype
    random = torch.randn(50, inputs, dtype=dtype, generator=torch.Generator().manual_seed(1))
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30], dtype=dtype).unsqueeze(1).expand(-1, inputs)
    return torch.cat([random, knots.t(), odd])


# -- ways to compute --------------------------------------------------------------------------------

FILLINGS = ("closed", "scattered", "recursive")  # of the dense way's blocks
CPU_WAYS = (*FILLINGS, "banded", "piecewise")
WAYS = ("reference", *CPU_WAYS)
TRITON_WAYS = ("fused", "chunked", "gather")  # see test_triton.py; test_ptx.py has "pipelined"
# The device of the tensors for Triton's kernels, which are interpreted on the CPU.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def serves(way: str, kind: str, order: int, derivative: int) -> bool:
    """Whether a way supports a derivative: closed forms need uniform knots, the local ones splines that
    are not 0."""
    if way == "closed":
        return kind in ("shared", "uniform") and derivative < order
    if way in TRITON_WAYS:
        return True
    return way in ("reference", "recursive", "piecewise") or derivative <= order


def places(*derivatives: int, kinds: tuple[str, ...] = KNOTS, order: int = 3) -> list[tuple[str, str, int]]:
    """All combinations of ways, kinds of knots and derivatives that are supported."""
    return [(w, kind, d) for w in WAYS for kind in kinds for d in derivatives if serves(w, kind, order, d)]


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Compute by the reference, or by one way of the CPU backend whatever the sizes; "auto" forces nothing.
    What a way doesn't support, such as a higher derivative in a backward, takes its usual way. With a way
    of the Triton backend all three contractions take it, but G is fused where that is "gather"."""
    if way in TRITON_WAYS:
        with forced_triton(way):
            yield
        return
    choose, filling = selection.choose, dense.filling

    def forced_choice(name: str, *sizes: Any) -> str:
        basis = next(size for size in sizes if isinstance(size, Basis))
        derivative = sizes[sizes.index(basis) + 1]
        if way == "banded" and derivative <= basis.order and name != "G":  # G has no banded way
            return way
        return "dense" if way in FILLINGS else choose(name, *sizes)

    def forced_filling(basis: Basis, count: int, derivative: int, *rest: Any, **options: Any) -> str:
        able = basis.uniform and derivative < basis.order if way == "closed" else derivative <= basis.order
        return way if able or way == "recursive" else filling(basis, count, derivative, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        if way == "piecewise":
            patch.setattr(selection, "piecewise_pays", lambda *sizes, **options: True)
        elif way in CPU_WAYS:
            patch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(at_rows=None))
            patch.setattr(selection, "choose", forced_choice)
        if way in FILLINGS:
            patch.setattr(dense, "filling", forced_filling)
        with fastkan_kernels.backend("reference" if way == "reference" else "cpu"):
            yield


TILES = {"rows": 32, "columns": 16, "inner": 16, "splines": 4}


@contextmanager
def forced_triton(way: str, descriptors: bool = False, **tiles: int) -> Iterator[None]:
    """Force one way of the Triton backend, in tiles so small that a small case has several, with several chunks
    and parts, and results that are NaN until they are written. What the way doesn't support is fused."""
    from fastkan_kernels.backends.triton import config as limits
    from fastkan_kernels.backends.triton import cost, selection
    from fastkan_kernels.backends.triton.config import WAYS

    fused = selection.Config("fused", **{**TILES, **tiles}, descriptors=descriptors)
    config = fused._replace(way=way)
    new_empty = torch.Tensor.new_empty

    def spoiled(self: Tensor, *size: Any, **options: Any) -> Tensor:
        made = new_empty(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(torch.Tensor, "new_empty", spoiled)
        patch.setattr(limits, "CHUNK_BYTES", 1)
        patch.setattr(limits, "MIN_ROWS", 11)
        steps = 7 if way == "pipelined" else 1  # more than there are slots
        patch.setattr(cost, "parts", lambda k, c, gpu: (max(1, -(-k.rows // c.inner) // steps),) * 2)
        for name in "FGH":
            stack.enter_context(selection.override(name, config if name in WAYS[way] else fused))
        stack.enter_context(fastkan_kernels.backend("triton"))
        yield


def no_triton() -> str | None:
    """Return the reason why Triton's kernels can't be tested here, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return BACKENDS["triton"].unable(torch.device(DEVICE))


WITH_TRITON = pytest.mark.gpu  # conftest.py skips tests with this mark where Triton's kernels cannot run
FUSED = pytest.param("fused", marks=WITH_TRITON)  # one of Triton's ways beside backends of the CPU


def by_triton(*rest: tuple) -> list[Any]:
    """Parameters ``(way, *values)`` of each of Triton's ways with each of ``rest``."""
    return [pytest.param(way, *values, marks=WITH_TRITON) for way in TRITON_WAYS for values in rest]


@contextmanager
def small_blocks() -> Iterator[None]:
    """Cut even a small case into many blocks, of rows and of splines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "BLOCK_ELEMENTS", 48)
        patch.setattr(dense, "MIN_ROWS", 4)
        patch.setattr(banded, "BLOCK_LOOKUPS", 48)
        patch.setattr(dense, "BASE_ELEMENTS", 12)
        yield


def compute(name: str, o: Example, basis: Basis, derivative: int = 0) -> tuple[Tensor, ...]:
    """F, G or H by the public functions: a tuple of G's two parts, or of one result."""
    if fastkan_kernels.autograd.dispatch.chosen_backend() == "triton" and DEVICE != "cpu":
        moved = Example(*(None if t is None else t.to(DEVICE) for t in o))
        return tuple(part.cpu() for part in contracted(name, moved, basis, derivative))
    return contracted(name, o, basis, derivative)


def contracted(name: str, o: Example, basis: Basis, derivative: int) -> tuple[Tensor, ...]:
    """F, G or H like :func:`compute`, on the device of the operands."""
    if name == "F":
        return (
            fastkan_kernels.contract_out(
                o.x, o.knots, o.weight, o.base_weight, o.v, basis=basis, derivative=derivative
            ),
        )
    if name == "G":
        parts = fastkan_kernels.contract_weight(o.x, o.knots, o.g, o.v, basis=basis, derivative=derivative)
        assert (parts[1] is None) == (basis.base == "none")
        return parts[: 1 if parts[1] is None else 2]
    return (
        fastkan_kernels.contract_in(o.x, o.knots, o.weight, o.base_weight, o.g, basis=basis, derivative=derivative),
    )


def described(name: str, o: Example, basis: Basis, derivative: int = 0) -> str:
    """The CPU backend's description of what it would run."""
    return cpu_backend.describe(name, o.x, o.g.shape[1], basis.splines_of(o.knots), basis, derivative)


# -- verdicts ---------------------------------------------------------------------------------------


def assert_within(got: Tensor, exact: np.ndarray, bound: np.ndarray, what: str = "") -> None:
    """Assert that each number is within its own bound of the exact one, and NaN or infinite where that is."""
    value = got.detach().double().numpy()
    assert value.shape == exact.shape, f"{what} has the shape {value.shape}, not {exact.shape}"
    odd = ~np.isfinite(exact)
    np.testing.assert_array_equal(value[odd], exact[odd], err_msg=what)
    assert np.isfinite(value[~odd]).all(), f"{what} is NaN or infinite where it should not be"
    error = np.abs(np.where(odd, 0.0, value) - np.where(odd, 0.0, exact))
    excess = np.where(odd, 0.0, error - bound)
    if excess.size and excess.max() > 0:
        at = np.unravel_index(excess.argmax(), excess.shape)
        count = int((excess > 0).sum())
        pytest.fail(
            f"{what}: {count} of {excess.size} numbers are too far off; at {at} got {value[at]!r}, exact "
            f"{exact[at]!r}, error {error[at]:.3g}, allowed {np.broadcast_to(bound, error.shape)[at]:.3g}"
        )


def check(o: Example, basis: Basis, derivative: int, way: str, names: str = "FGH") -> None:
    """Assert that F, G and H by ``way`` meet the budget of :func:`oracle.budget`.

    The reference has to meet it alone. Any other way may be off by twice the reference's error in
    the same precision, in units of its budget, plus its own rounding.
    """
    for name in names:
        truth = oracle.exact(name, o, basis, derivative)
        allowed = oracle.budget(name, o, basis, derivative, "reference", sums=True)
        with forced("reference"):
            reference = compute(name, o, basis, derivative)
        if way == "reference":
            for value, want, bound in zip(reference, truth, allowed, strict=True):
                assert_within(value, want, bound, f"{name}_{derivative} by the reference")
            continue
        with forced(way):
            values = compute(name, o, basis, derivative)
        own = oracle.budget(name, o, basis, derivative, way, sums=False)
        for value, ref, want, bound, rounding in zip(values, reference, truth, allowed, own, strict=True):
            with np.errstate(all="ignore"):
                ratio = np.abs(ref.detach().double().numpy() - want) / bound
            worst = ratio[np.isfinite(ratio)].max(initial=0.0)
            assert_within(value, want, 2 * worst * bound + rounding, f"{name}_{derivative}, {way}")


def absolute_terms(name: str, o: Example, basis: Basis, derivative: int) -> tuple[np.ndarray, ...]:
    """The sums of the absolute values of all terms v psi W g, and of float16's error below its normal numbers."""
    a = o.array()
    sizes = Example(*(None if t is None else np.abs(t) for t in a))
    h = float(o.knots[0].diff().mean())
    psi = np.abs(oracle.splines(a.x, a.knots, basis.order, derivative))
    floor = 2.0**-13  # a subnormal of float16 is off by 2^-25, that is 2^-13 half ulps of 1
    base = None if basis.base == "none" else np.abs(oracle.base_function(a.x, basis.base, derivative)) + floor
    return oracle.contract(name, sizes, psi + floor * (psi > 0) / h**derivative, base)


def assert_in_budget(o: Example, basis: Basis, derivative: int, way: str, rounding: float = 0.0) -> None:
    """Assert that F, G and H, computed in what is forced around this call, are within the budget of ``way``.

    Each product may be off by ``rounding`` times its size as well, and a result in half precision by its own rounding.
    """
    for name in "FGH":
        values, truth = compute(name, o, basis, derivative), oracle.exact(name, o, basis, derivative)
        allowed = oracle.budget(name, o, basis, derivative, way, sums=True)
        if rounding:
            sizes = absolute_terms(name, o, basis, derivative)
            allowed = tuple(bound + rounding * size for bound, size in zip(allowed, sizes, strict=True))
        for value, exact, bound in zip(values, truth, allowed, strict=True):
            assert value.dtype == o.x.dtype
            kind = torch.finfo(value.dtype)
            once = (kind.eps / 2 * np.abs(exact) + kind.tiny) * (1 + 1e-3) if kind.bits == 16 else 0.0
            assert_within(value, exact, bound + once, f"{name}_{derivative}, {way}")


def assert_rounded(o: Example, basis: Basis, derivative: int, way: str, dtype: torch.dtype) -> None:
    """Assert that each factor of a product is rounded to ``dtype`` at most once, and the result to its own dtype."""
    with forced(way):  # features (with v), weights, g and, where the product is stored in between, that
        assert_in_budget(o, basis, derivative, way, 3.1 * torch.finfo(dtype).eps / 2)
