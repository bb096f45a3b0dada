"""Repeated contractions of numbers whose results are known to the last bit. On a GPU, a race appears as a wrong bit.

If a matrix product still reads registers while the features of the next iteration overwrite the registers, some results
are wrong in some runs, often by less than a usual tolerance. A result is exact if the dtype of each intermediate value
can represent the value exactly. For example, results are exact if W, v and g are small integers, if the width of each
cell is a power of two, and if the features are one of the following kinds:

- ``linear``: order 1 and x at quarters of a cell, so that features are quarters;
- ``doubled``: order 2 on single and double knots, so that two neighbouring cells together are as wide as 1 or 2;
- ``slopes``: order 3 and first derivatives on uniform knots at quarters of a cell, so that features are 32nds;
- ``cubic``: order 3 on uniform knots at quarters of a cell. The kernels divide features by 4/3, which gives multiples
  of 1/512, and multiply sums by 4/3, so that sums of multiples of 3 stay exact.

In ``random`` trials, the numbers are like those of an ordinary layer. All repeats must give the same bits as the same
configuration without a software pipeline, and the error relative to float64 must stay within a bound.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from cases import DEVICE, contracted, no_triton
from oracle import Exact, Example, exact_with_sizes
from torch import Tensor

import fastkan_kernels
from fastkan_kernels import Basis, basis_of
from fastkan_kernels.bspline.cox_de_boor import features

if no_triton() is None:
    from fastkan_kernels.backends.triton import builds

INTERPRETED = DEVICE == "cpu"
ORDERS = {"linear": 1, "doubled": 2, "slopes": 3, "cubic": 3, "random": 3}
DERIVATIVES = {"F": 0, "G": 0, "H": 1}
DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "autocast": torch.float32, "tf32": torch.float32,
    "highest": torch.float32,
}  # fmt: skip
TWO_BYTES = ("bfloat16", "float16", "autocast")  # the dtype of autocast is bfloat16
WAYS = {"pipelined": "FG", "fused": "FGH", "chunked": "FGH", "gather": "FH", "auto": "FGH"}
LARGE, ODD, WIDE = (16384, 256, 512), (1037, 67, 131), (8192, 1024, 1024)  # N, I and O; LARGE has more tiles than SMs
TINY = (37, 5, 7)
REPEATS, SECONDS = (2, 60.0) if INTERPRETED else (300, 1.0)  # maximum number of repeats and maximum seconds for a trial
BETWEEN_SYNCHRONIZATIONS = 50

# Relative error of one product, whose factors and sum are rounded, and relative error of storing a result.
PRODUCT = {"bfloat16": 2.0**-8, "float16": 2.0**-10, "autocast": 2.0**-7, "tf32": 2.0**-9, "highest": 2.0**-16}
STORED = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-22}
CELL = 2.0**-22  # rounding error of the position within a cell in float32, for each cell from the first knot


class Trial(NamedTuple):
    """A contraction of given numbers, computed by the implementation ``way``."""

    numbers: str
    name: str
    setting: str
    way: str
    uniform: bool
    sizes: tuple[int, int, int]
    grid: int = 8

    @property
    def derivative(self) -> int:
        return 1 if self.numbers == "slopes" else DERIVATIVES[self.name]

    @property
    def multiplied(self) -> bool:
        """Whether features are multiplied by v, which is the case except in the largest sizes and in H."""
        return self.sizes in (ODD, TINY) and self.name != "H"

    def __str__(self) -> str:
        form = "uniform" if self.uniform else "adapted"
        return (
            f"{self.name} {self.way} {self.numbers} {form} G{self.grid} {self.setting} {'x'.join(map(str, self.sizes))}"
        )


def is_exact(t: Trial) -> bool:
    """Return whether the results of a trial are exact, or the trial uses random numbers."""
    if t.numbers == "doubled":  # the mean width of cells is not a power of two, so derivatives would be rounded
        return not t.uniform and t.derivative == 0 and t.grid < 16
    if t.numbers == "slopes":
        return t.uniform and t.way in ("pipelined", "fused", "auto") and t.grid < 16
    if t.numbers == "cubic":
        return t.uniform and t.way == "fused" and t.setting in TWO_BYTES and t.derivative == 0
    return True


def trials() -> Iterator[Trial]:
    """Yield the trials for a GPU, or a few small trials for Triton's interpreter."""
    settings: tuple[str, ...] = tuple(DTYPES)
    cases = [
        ("pipelined", LARGE, 8), ("fused", LARGE, 8), ("fused", ODD, 8), ("chunked", ODD, 8), ("gather", ODD, 8),
        ("auto", (33, 1, 1), 8), ("auto", (2048, 256, 256), 64), ("auto", WIDE, 5),
    ]  # fmt: skip
    if INTERPRETED:
        settings, cases = ("float16", "highest"), [(way, TINY, 8) for way in ("fused", "chunked", "gather")]
    for way, sizes, grid in cases:
        for numbers, uniform, setting, name in itertools.product(ORDERS, (True, False), settings, WAYS[way]):
            trial = Trial(numbers, name, setting, way, uniform, sizes, grid)
            possible = way != "pipelined" or setting in TWO_BYTES
            if possible and is_exact(trial) and (sizes != WIDE or numbers in ("linear", "random")):
                yield trial


TRIALS = list(dict.fromkeys(trials()))


# -- numbers ----------------------------------------------------------------------------------------


def operands(t: Trial, device: str = DEVICE) -> tuple[Example, Basis]:
    """Return a tuple of the operands of a trial and their basis. All calls return the same numbers."""
    generator = torch.Generator(device).manual_seed(0)
    rows, inputs, outputs = t.sizes
    exact, order, dtype = t.numbers != "random", ORDERS[t.numbers], DTYPES[t.setting]

    def share(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def made(*shape: int) -> Tensor:
        if not exact:
            return torch.randn(shape, generator=generator, device=device)
        # the numbers are -1, 0 and 1, so that sums stay small
        return (2.0 * (share(*shape) < 0.5) - 1) * (share(*shape) < 0.5)

    knots = knots_of(t, share)
    if exact:
        x = on_quarters(knots, rows, t.way == "chunked" or t.grid > 16, share)
    else:
        x = knots[:, 0] + (knots[:, -1] - knots[:, 0]) * (1.1 * share(rows, inputs) - 0.05)
    factor = 3 if t.numbers == "cubic" else 1
    v = made(rows, inputs) if t.multiplied else None
    o = Example(
        x, knots, v if v is None or not exact else v + (v == 0), factor * made(t.grid + order, inputs, outputs),
        made(inputs, outputs) * (share(inputs, outputs) < 0.125), factor * made(rows, outputs),
    )  # fmt: skip
    rounded = o.map(lambda tensor: tensor.to(dtype))._replace(knots=knots)
    assert not exact or torch.equal(rounded.x.float(), x), "x is not exact"
    return rounded, basis_of(knots, order, "identity" if exact else "silu")


def knots_of(t: Trial, share: Callable[..., Tensor]) -> Tensor:
    """Return knots ``[I, M]``, which are integers around 0 in exact trials."""
    inputs, order = t.sizes[1], ORDERS[t.numbers]
    cells, device = t.grid + 2 * order, share(1).device
    if t.uniform:
        return (torch.arange(cells + 1.0, device=device) - cells // 2).expand(inputs, -1).contiguous()
    if t.numbers == "random":
        widths = 0.4 + share(inputs, cells)
    elif order == 2:
        pattern = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], device=device)
        widths = pattern.repeat(-(-cells // 6))[:cells].expand(inputs, -1)
    # The mean of three widths is 2, so that the mean width, by whose powers derivatives are scaled, is a power of two.
    else:
        threes = torch.tensor([1.0, 1.0, 4.0], device=device).repeat(cells // 3)
        pattern = torch.cat([threes, torch.full((cells % 3,), 2.0, device=device)])
        widths = pattern[share(inputs, cells).argsort(1)]
    start = -torch.floor(widths.sum(1, keepdim=True) / 2)
    return torch.cat([start, start + widths.cumsum(1)], 1)


def on_quarters(knots: Tensor, rows: int, whole: bool, share: Callable[..., Tensor]) -> Tensor:
    """Return inputs ``[N, I]`` on knots and, unless ``whole``, at quarters of cells; a few are outside the knots."""
    inputs, count = knots.shape
    cell = (share(inputs, rows) * (count - 1)).long()
    left = knots.gather(1, cell)
    x = left if whole else left + torch.floor(4 * share(inputs, rows)) / 4 * (knots.gather(1, cell + 1) - left)
    outside = share(inputs, rows)
    x = torch.where(outside < 0.01, knots[:, -1:] + 1, torch.where(outside > 0.99, knots[:, :1] - 1, x))
    return x.t().contiguous()


def whole(exact: Tensor) -> Tensor:
    """Return exact results, which are multiples of 1/1024, without the rounding errors of float64."""
    return torch.round(exact * 1024) / 1024


# -- repeats ----------------------------------------------------------------------------------------


def configs_of(t: Trial) -> list[Any]:
    """Return the configuration of a trial's implementation, or an empty list if the GPU has no such implementation."""
    rows, inputs, outputs = t.sizes
    setting = builds.Setting(
        t.name, DTYPES[t.setting], {"tf32": "tf32", "highest": "tf32x3"}.get(t.setting, "ieee"), t.uniform,
        ORDERS[t.numbers], t.derivative, "silu" if t.numbers == "random" else "identity", outputs, inputs, rows,
        t.multiplied, grid=t.grid, matmul_dtype=torch.bfloat16 if t.setting == "autocast" else None,
    )  # fmt: skip
    major, minor = (9, 0) if INTERPRETED else torch.cuda.get_device_capability()
    found = builds.configs_of(setting, 10 * major + minor, every=t.way == "auto")
    return [config for config in found if t.way in ("auto", config.way)][:1]


@contextmanager
def by(t: Trial, config: Any) -> Iterator[None]:
    """Compute a trial's contraction with a configuration and in its precision inside the ``with`` statement."""
    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision("high" if t.setting == "tf32" else "highest")
        stack.enter_context(torch.autocast(DEVICE, torch.bfloat16, enabled=t.setting == "autocast"))
        stack.enter_context(fastkan_kernels.backend("triton"))
        stack.enter_context(builds.override(t.name, config))
        yield


def freed_bytes() -> list[int]:
    """Return sizes of tensors that fill all unused memory of PyTorch's allocator."""
    found = []
    for segment in torch.cuda.memory_snapshot():
        # small blocks are in a separate pool
        most = 1 << 20 if segment["segment_type"] == "small" else segment["total_size"]
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                found += [most] * (block["size"] // most) + [block["size"] % most] * (block["size"] % most > 0)
    return sorted(found, reverse=True)


def deviation(call: Callable[[], tuple[Tensor, ...]], expected: tuple[Tensor, ...]) -> str | None:
    """Repeat a call, with all freed memory of the GPU full of NaN, and describe the results that differ, if any."""
    worst = [torch.zeros_like(want, dtype=torch.promote_types(want.dtype, torch.float32)) for want in expected]
    counts = torch.zeros(REPEATS, dtype=torch.int64, device=expected[0].device)
    sizes: list[int] = []
    if not INTERPRETED:
        torch.cuda.empty_cache()
        call()
        sizes = freed_bytes()
    done, latest = 0, time.monotonic() + SECONDS
    while done < REPEATS:
        # a NaN in each dtype consists of such bytes
        poison = [torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE) for size in sizes]
        del poison
        for value, want, far in zip(call(), expected, worst, strict=True):
            off = (value.to(far.dtype) - want.to(far.dtype)).abs().nan_to_num(torch.inf, torch.inf)
            torch.maximum(far, off, out=far)
            counts[done] += (off > 0).sum()
        done += 1
        if done % BETWEEN_SYNCHRONIZATIONS == 0:
            counts[done - 1].item()
            if time.monotonic() > latest:
                break
    wrong = int((counts > 0).sum())
    if not wrong:
        return None
    part = max(range(len(worst)), key=lambda n: float(worst[n].max()))
    at = tuple(int(index) for index in torch.unravel_index(worst[part].argmax(), worst[part].shape))
    same = "always as many: no race" if len(set(counts[:done].tolist())) == 1 else "not always as many: a race"
    return (
        f"{wrong} of {done} repeats are off ({same}), by up to {float(worst[part].max()):.3g} at {at} of part {part}, "
        f"where {float(expected[part][at]):.6g} is right"
    )


def too_far(t: Trial, o: Example, values: tuple[Tensor, ...], truth: tuple[Exact, ...]) -> str | None:
    """Describe the numbers whose error relative to float64 is larger than rounding explains, if there are any."""
    cells, rate = o.knots.shape[1] - 1, float(1 / o.knots.diff(dim=1).min())
    for value, part in zip(values, truth, strict=True):
        allowed = (PRODUCT[t.setting] + STORED[value.dtype]) * part.size + CELL * cells * rate**t.derivative * part.ones
        wrong = ~((value.double() - part.value).abs() <= allowed)
        if bool(wrong.any()):
            at = tuple(int(index) for index in wrong.nonzero()[0])
            return f"{int(wrong.sum())} numbers, at {at} {float(value[at]):.6g} for {float(part.value[at]):.6g}"
    return None


@pytest.mark.gpu
@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_every_repeat_has_the_right_bits(trial: Trial) -> None:
    configs = configs_of(trial)
    if not configs:
        pytest.skip(f"there is no {trial.way} implementation for it here")
    o, basis = operands(trial)
    truth = exact_with_sizes(trial.name, o, basis, trial.derivative)

    def call() -> tuple[Tensor, ...]:
        return contracted(trial.name, o, basis, trial.derivative)

    with by(trial, configs[0]):
        first = call()
        if trial.numbers != "random":
            expected = tuple(whole(part.value).to(value.dtype) for part, value in zip(truth, first, strict=True))
            assert deviation(call, expected) is None
            return
        assert deviation(call, first) is None
        assert too_far(trial, o, first, truth) is None
    if configs[0].way == "fused" and configs[0].stages > 1:
        with by(trial, configs[0]._replace(stages=1)):
            for value, same in zip(call(), first, strict=True):
                assert torch.equal(value, same), "the software pipeline changes bits"


# -- the tests themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("setting", DTYPES)
def test_the_numbers_are_exact(setting: str) -> None:
    """The part of a feature that the kernels store can be represented in the dtype of the operands and in two bytes."""
    # factor of the features that the kernels store
    held = {"linear": 1.0, "doubled": 1.0, "slopes": 0.5, "cubic": 0.75}
    for numbers, uniform, name in itertools.product(held, (True, False), "FH"):
        trial = Trial(numbers, name, setting, "fused", uniform, (400, 7, 3))
        if not is_exact(trial):
            continue
        o, basis = operands(trial, "cpu")
        psi = held[numbers] * features(o.x.double(), o.knots.double(), basis, trial.derivative)[0]
        torch.testing.assert_close(whole(psi), psi, rtol=0, atol=1e-12)
        for dtype in (torch.bfloat16, torch.float16, DTYPES[setting]):
            assert torch.equal(whole(psi).to(dtype).double(), whole(psi)), str(trial)


@pytest.mark.parametrize(
    "wrong", [torch.nextafter(torch.tensor(3.0), torch.tensor(4.0)), torch.tensor(torch.nan)], ids=str
)
def test_one_wrong_bit_in_one_repeat_is_found(wrong: Tensor) -> None:
    right = torch.full((5, 4), 3.0, device=DEVICE)
    calls = 0

    def call() -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        value = right.clone()
        if calls == 2:
            value[2, 1] = wrong
        return (value,)

    if not INTERPRETED:
        calls = -1  # the first call on a GPU fills the allocator
    found = deviation(call, (right,))
    assert found is not None
    assert found.startswith("1 of ")
    assert "a race" in found
    assert "at (2, 1) of part 0, where 3 is right" in found


def test_a_wrong_number_among_random_ones_is_found() -> None:
    trial = Trial("random", "F", "highest", "fused", True, TINY)
    o, basis = operands(trial, "cpu")
    truth = exact_with_sizes("F", o, basis)
    value = truth[0].value.float()
    assert too_far(trial, o, (value,), truth) is None
    value[3, 2] *= 1 + 1e-3
    assert str(too_far(trial, o, (value,), truth)).startswith("1 numbers, at (3, 2)")
