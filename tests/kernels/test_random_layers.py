"""Random layers against float64: which numbers are NaN or infinite, exactly, and the others within the budget.

Knots equally spaced, random, repeated inside and at the ends; ranges from 1e-6 to 1e6, some far from 0; inputs on
knots, outside, NaN, infinite, of 1e30. A draw goes through a layer by the reference and by one other way; its gradients
are of the first and of the second order.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import torch
from cases import CPU_WAYS, DEVICE, TRITON_WAYS, WITH_TRITON, forced
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Example
from torch import Tensor

from fastkan.functional import forward
from fastkan_kernels import Basis, basis_of, uniform_knots
from fastkan_kernels.validation import check_knots

SIZES = [  # rows, inputs and outputs of every class: NumPy's, each filling, banded
    (1, 3, 2), (7, 4, 3), (300, 2, 2), (300, 17, 8), (1500, 9, 3), (33, 48, 48), (128, 5, 200), (20000, 2, 3),
]  # fmt: skip
GRIDS = (1, 3, 13, 33, 64, 300)
RANGES = [(-1.0, 1.0), (0.0, 1.0), (-1e-6, 1e-6), (-1e-3, 2e-3), (9999.0, 10010.0), (100.0, 103.0), (-1e6, 1e6)]
ODD = [[], [np.nan], [np.inf], [-np.inf], [1e30, -1e30], [np.nan, np.inf, -np.inf, 1e30, -1e30]]


class Draw(NamedTuple):
    o: Example  # whose v is what the gradient by x is multiplied by in the second order
    basis: Basis
    outside: str

    def __repr__(self) -> str:
        x, knots, _, weight, *_ = self.o
        return f"Draw(x {list(x.shape)} {x.dtype}, W {list(weight.shape)}, {self.basis}, {self.outside}, {knots[0]})"


@st.composite
def draws(pick: Any, sizes: list[tuple[int, int, int]] = SIZES, grids: tuple[int, ...] = GRIDS) -> Draw:
    rows, inputs, outputs = pick(st.sampled_from(sizes))
    grid, order = pick(st.sampled_from(grids)), pick(st.integers(1, 5))
    if rows * inputs * grid > 1 << 18:
        grid = 3
    low, high = pick(st.sampled_from(RANGES))
    dtype = pick(st.sampled_from([torch.float32, torch.float64]))
    base, outside = (
        pick(st.sampled_from(["silu", "gelu", "identity", "none"])),
        pick(st.sampled_from(["zero", "linear"])),
    )
    kind = pick(st.sampled_from(["shared", "own", "random", "repeated", "ends"]))
    random = torch.Generator().manual_seed(pick(st.integers(0, 2**31)))

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    knots = knots_of(kind, inputs, grid, order, low, high, rand).to(dtype)
    try:
        check_knots(knots, order)
    except ValueError:  # float32 has too few numbers there
        assume(False)
    x = (low + (high - low) * (1.6 * rand(rows, inputs) - 0.3)).to(dtype)
    on = rand(rows, inputs) < 0.2
    at = (rand(rows, inputs) * knots.shape[1]).long()
    x = torch.where(on, knots.gather(1, at.t()).t(), x)
    ends = torch.tensor([0, -1, order, -order - 1]) % knots.shape[1]
    x[: min(rows, 4), 0] = knots[0, ends[: min(rows, 4)]]
    odd = pick(st.sampled_from(ODD))
    for value in odd:
        x[int(rand(1) * rows), int(rand(1) * inputs)] = value
    weight, g, v = randn(grid + order, inputs, outputs), randn(rows, outputs), randn(rows, inputs)
    base_weight = None if base == "none" else randn(inputs, outputs)
    return Draw(Example(x, knots, v, weight, base_weight, g), basis_of(knots, order, base), outside)


def knots_of(kind: str, inputs: int, grid: int, order: int, low: float, high: float, rand: Any) -> Tensor:
    def even(low: float, high: float) -> Tensor:
        return uniform_knots(1, grid, order, (low, high), dtype=torch.float64)

    if kind == "shared":
        return even(low, high).repeat(inputs, 1)
    if kind == "own":
        return torch.cat([even(low - 0.1 * i * (high - low), high + 0.2 * i * (high - low)) for i in range(inputs)])
    widths = 0.05 + rand(inputs, grid + 2 * order)
    if kind == "repeated":
        widths[:, order + 1 : order + min(3, grid)] = 0
    if kind == "ends":
        widths[:, :order] = widths[:, -order:] = 0
    t = torch.nn.functional.pad(widths.cumsum(1), (1, 0))
    first, last = t[:, order, None], t[:, -order - 1, None]
    return low + (high - low) * (t - first) / (last - first)


def computed(draw: Draw, way: str) -> dict[str, Tensor]:
    """The value, gradients, and those of the gradient by x times v."""
    o = draw.o.map(lambda tensor: tensor.to(DEVICE if way in TRITON_WAYS else "cpu"))
    x, knots, v, weight, base_weight, g = o
    given_ = [t.clone().requires_grad_() for t in (x, weight, base_weight) if t is not None]
    based = base_weight is not None
    with nullcontext() if way == "auto" else forced(way):

        def value() -> Tensor:
            x, weight, *base = given_
            return forward(x, weight, *(base or [None]), None, None, None, knots, draw.basis, draw.outside)

        y = value()
        first = torch.autograd.grad(y, given_, g)
        (dx,) = torch.autograd.grad(value(), given_[0], g, create_graph=True)
        second = torch.autograd.grad(dx, given_, v)
    names = ["x", "weight", "base_weight"][: 2 + based]
    found = {
        "F_0": y.detach(),
        "H_1, of a graph": dx.detach(),
        **{f"first order by {name}": t for name, t in zip(names, first, strict=True)},
        **{f"second order by {name}": t for name, t in zip(names, second, strict=True)},
    }
    return {name: t.cpu() for name, t in found.items()}


def features(draw: Draw, derivative: int, sizes: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """psi^(d) and the base function's, in float64; or the sizes of what they are sums of."""
    a, order = draw.o.array(), draw.basis.order
    near, beyond, outside = a.x, np.zeros_like(a.x), np.zeros(a.x.shape, bool)
    if draw.outside == "linear":
        low = draw.o.knots[:, order]
        high = torch.nextafter(draw.o.knots[:, -order - 1], low).double().numpy()
        near = np.clip(a.x, low.double().numpy(), high)
        beyond = np.where(np.isinf(a.x), np.nan, a.x - near)
        outside = near != a.x
        outside &= ~np.isnan(a.x)

    def splines(d: int) -> np.ndarray:
        if not sizes:
            return oracle.splines(near, a.knots, order, d)
        finite = np.where(np.isfinite(near), near, 0.0)
        made = oracle.magnitudes(finite, a.knots, order, d) + oracle.polynomial_sizes(finite, a.knots, order, d)
        if draw.basis.uniform and d <= order:  # of what counting cells, or their mean width, moves, in roundings
            eps = np.finfo(np.float64 if draw.o.x.dtype == torch.float64 else np.float32).eps
            made = made + oracle._counting_error(finite, a.knots, order, d, eps) / eps
        return made

    psi = splines(derivative)
    if draw.outside == "linear" and derivative == 0:
        beyond = np.abs(np.nan_to_num(beyond)) if sizes else beyond
        # a tangent at a point moved by a rounding has the slope of there
        psi = psi + splines(1) * beyond[:, None]
    elif draw.outside == "linear" and derivative > 1:
        psi = np.where(outside[:, None], 0.0, psi)
    base = draw.basis.base
    if base == "none":
        return psi, None
    if sizes:
        finite = np.where(np.isfinite(a.x), a.x, 0.0)
        # silu' near 1 and in terms of x: beyond 100 what is left of it underflows
        reach = finite if derivative == 0 or base == "identity" else np.clip(finite, -100, 100)
        return psi, oracle._base_magnitude(reach, base, derivative)
    return psi, oracle.base_function(a.x, base, derivative)


def expected(draw: Draw, sizes: bool) -> dict[str, np.ndarray]:
    a = draw.o.array()
    if sizes:
        a = Example(*(None if t is None else np.abs(t) for t in a))
    plain = a._replace(v=None)
    psi = {d: features(draw, d, sizes) for d in range(3)}
    with np.errstate(all="ignore"):
        g_0, g_1 = oracle.contract("G", plain, *psi[0]), oracle.contract("G", a, *psi[1])
        (h_1,) = oracle.contract("H", plain, *psi[1])
        found = {
            "F_0": oracle.contract("F", plain, *psi[0])[0],
            "H_1, of a graph": h_1,
            "first order by x": h_1,
            "first order by weight": g_0[0],
            "second order by x": a.v * oracle.contract("H", plain, *psi[2])[0],
            "second order by weight": g_1[0],
        }
        if draw.basis.base != "none":
            found |= {"first order by base_weight": g_0[1], "second order by base_weight": g_1[1]}
    return found


def verify(draw: Draw, way: str) -> None:
    dtype = draw.o.x.dtype
    eps, largest = torch.finfo(dtype).eps, torch.finfo(dtype).max
    exact, sizes = expected(draw, sizes=False), expected(draw, sizes=True)
    reference = computed(draw, "reference")
    values = computed(draw, way)
    assert values.keys() == exact.keys()
    # splines are made of 3 k roundings, and summed up in 2 sqrt(n)
    rows, inputs = draw.o.x.shape
    terms = max(rows, (draw.basis.order + 2) * max(inputs, draw.o.g.shape[1]))
    roundings = 3 * draw.basis.order + 6 + 2 * np.sqrt(terms)
    for name, want in exact.items():
        size = sizes[name]
        got = values[name].double().numpy()
        ref = reference[name].double().numpy()
        # what leaves the dtype's range may be infinite, or a part of it may; sizes say where nothing can
        sure = ~np.isnan(want) & (np.isinf(want) | (size < largest / 4))
        for value, by in ((got, way), (ref, "the reference")):
            np.testing.assert_array_equal(np.isnan(value), np.isnan(want), err_msg=f"{name}, {by}: NaN")
            infinite = np.isinf(want)[sure]
            np.testing.assert_array_equal(np.isinf(value)[sure], infinite, err_msg=f"{name}, {by}: infinite")
        number = sure & np.isfinite(want)
        bound = roundings * eps * size + torch.finfo(dtype).tiny * 1e3
        error = np.abs(np.where(number, got, 0) - np.where(number, want, 0))
        by_reference = np.abs(np.where(number, ref, 0) - np.where(number, want, 0))
        worst = (np.where(number, by_reference, 0) / bound).max(initial=0.0)
        assert worst <= 1, f"{name}: the reference is off by {worst:.3g} of its budget"
        ratio = (np.where(number, error, 0) / bound).max(initial=0.0)
        assert ratio <= 2, f"{name}, {way}: off by {ratio:.3g} times the budget"


@settings(max_examples=50)
@given(draws())
def test_a_layer_as_it_comes(draw: Draw) -> None:
    verify(draw, "auto")


@settings(max_examples=20)
@given(draws([(7, 4, 3), (100, 3, 4)]))
@pytest.mark.parametrize("way", CPU_WAYS)
def test_every_way_of_the_cpu(way: str, draw: Draw) -> None:
    verify(draw, way)


@WITH_TRITON
@settings(max_examples=3)
@given(draws([(7, 3, 2)], grids=(1, 3, 13)))
@pytest.mark.parametrize("way", TRITON_WAYS)
def test_every_way_of_triton(way: str, draw: Draw) -> None:
    verify(draw, way)
