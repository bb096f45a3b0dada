"""Tuning of one contraction: its candidates are compiled, checked and timed on the given operands."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..launch import watched
from ..problem import Problem
from . import timing
from .config import Config, shared_limit
from .key import Key

Run = Callable[[Problem, Config], "Tensor | tuple[Tensor | None, ...]"]
Timer = Callable[[Mapping[Config, Callable[[], object]], float], dict[Config, float]]

COMPILERS = 8  # threads that compile; most of their work does not hold Python's lock
COMPILING, SCREENING, FINAL = 0.6, 0.15, 0.15  # largest shares of the time; the rest is for checks
FINALISTS = 4  # number of candidates that are timed again, beside the choice without tuning
WORTH = 0.98  # another configuration replaces the choice without tuning below this share of its time
REPEATS = 3  # number of runs that must give the same bits
# Largest relative error, in the norm: four roundings of the dtype of the products, or the error of a sum of a million
# float32 numbers.
BUDGETS = {"bfloat16": 2**-6, "float16": 2**-9, "tf32": 2**-9, "tf32x3": 1e-4, "float64": 1e-12}
MAX_ERROR_FACTOR = 4  # limit on largest error over largest number, in units of the budget


class TuningEnv(NamedTuple):
    """The timer, clock and type of device for tuning; tests replace them by a simulated clock on the CPU."""

    timer: Timer = timing.seconds_on_gpu
    now: Callable[[], float] = time.monotonic
    device_type: str = "cuda"


class Outcome(NamedTuple):
    """The best configuration, the seconds of those that were timed, and the reasons why others were not."""

    config: Config
    seconds: dict[Config, float]
    dropped: dict[Config, str]


def tune(
    k: Key, p: Problem, run: Run, configs: Sequence[Config], env: TuningEnv, seconds: float, incumbent: Config
) -> Outcome | None:
    """Find the fastest of some configurations. The result of the first one is taken as right.

    Args:
        k: the key of the contraction.
        p: the contraction with its operands.
        run: function that computes the contraction by a configuration.
        configs: the configurations to try.
        env: the timer and clock.
        seconds: approximate limit on the time.
        incumbent: the choice without tuning, one of ``configs``, which is kept unless another is clearly faster.

    Returns:
        The outcome, or None if the result has only zeros and NaN, by which no configuration can be checked.
    """
    device = p.x.device
    with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        end = env.now() + seconds
        expected = _parts(run(p, configs[0]))
        if not all(map(_is_informative, expected)):
            return None
        if device.type == "cuda":
            compile_side_by_side(p, run, configs[1:], COMPILING * seconds)
        fit: list[Config] = []
        dropped: dict[Config, str] = {}
        budget = BUDGETS[k.precision if k.dtype == "float32" else k.dtype]
        for config in dict.fromkeys([configs[0], incumbent, *configs]):
            late = env.now() > end - (SCREENING + FINAL) * seconds and config not in (configs[0], incumbent)
            why = "out of time" if late else why_not(p, run, config, expected, budget)
            if why is None:
                fit.append(config)
            else:
                dropped[config] = why
        if not fit:
            return Outcome(incumbent, {}, dropped)

        def task(config: Config) -> Callable[[], object]:
            return lambda: run(p, config)

        screening = env.timer({config: task(config) for config in fit}, SCREENING * seconds)
        best = sorted(fit, key=screening.__getitem__)[:FINALISTS]
        last = dict.fromkeys([incumbent if incumbent in fit else best[0], *best])
        final = env.timer({config: task(config) for config in last}, FINAL * seconds)
    usual = next(iter(last))
    winner = min(final, key=final.__getitem__)
    return Outcome(winner if final[winner] <= WORTH * final[usual] else usual, {**screening, **final}, dropped)


def compile_side_by_side(p: Problem, run: Run, configs: Sequence[Config], seconds: float) -> None:
    """Compile configurations in threads before they are launched. One that fails, or is not finished in time, is
    compiled again, and its error raised, when it is launched."""

    def build(config: Config) -> None:
        with torch.no_grad(), torch.cuda.device(p.x.device), watched(compile_only=True):
            run(p, config)

    pool = ThreadPoolExecutor(min(COMPILERS, os.cpu_count() or 1))
    try:
        wait([pool.submit(build, config) for config in configs], timeout=seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def why_not(p: Problem, run: Run, config: Config, expected: tuple[Tensor, ...], budget: float) -> str | None:
    """The reason why a configuration is not timed, or None: it does not run, spills registers, or is wrong."""
    try:
        with watched() as kernels:
            first = _parts(run(p, config))
        why = unfit(kernels, p.capability)
        if why is not None:
            return why
        for value, right in zip(first, expected, strict=True):
            if not _close(value, right, budget):
                return "wrong"
        for _ in range(REPEATS - 1):
            again = _parts(run(p, config))
            if not all(map(_same_bits, first, again)):
                return "not the same bits each time"
    except Exception as failure:  # Triton and the driver raise many types, such as for too much shared memory
        return f"does not run: {type(failure).__name__}: {str(failure).strip()}"[:200]
    return None


def unfit(kernels: Sequence[Any], capability: int) -> str | None:
    """What is wrong with compiled and loaded kernels, or None: too much shared memory, spilled registers or a stack."""
    for kernel in kernels:
        if kernel is None:  # it was interpreted
            continue
        limit = shared_limit(capability)
        if kernel.metadata.shared > limit:
            return f"{kernel.metadata.shared} bytes of shared memory, and a block may have {limit}"
        if kernel.n_spills:  # the driver reports the local memory of a thread, of spills and stack together
            return f"{4 * kernel.n_spills} bytes of stack"
    return None


def _parts(result: Tensor | tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(part for part in result if part is not None)


def _is_informative(right: Tensor) -> bool:
    """Whether a wrong result could be told from this one; it cannot if weights or upstream gradients are all zeros."""
    return bool((right.isfinite() & (right != 0)).any())


def _close(value: Tensor, right: Tensor, budget: float) -> bool:
    wide = torch.promote_types(value.dtype, torch.float32)
    value, right = value.to(wide), right.to(wide)
    finite = right.isfinite()
    if not bool((finite | (value == right) | (value.isnan() & right.isnan())).all()):
        return False  # a NaN or an infinity is missing
    off, right = torch.where(finite, value - right, 0), torch.where(finite, right, 0)
    return bool(
        (off.norm() <= budget * right.norm()) & (off.abs().max() <= MAX_ERROR_FACTOR * budget * right.abs().max())
    )


def _same_bits(value: Tensor, other: Tensor) -> bool:
    return torch.equal(value.view(torch.uint8), other.view(torch.uint8))
