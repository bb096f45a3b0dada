"""The candidates for one contraction tried on its operands: compiled, checked, timed."""

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

COMPILERS = 8  # threads, most of whose work is done without Python's lock
COMPILING, SCREENING, FINAL = 0.6, 0.15, 0.15  # of the time, at most; the rest is for checks
FINALISTS = 4  # beside the choice without tuning
WORTH = 0.98  # of its time, from which another is taken
REPEATS = 3  # that must give the same bits
# relative, of the norm: four roundings of the product's dtype, or what sums of a million numbers do to float32
BUDGETS = {"bfloat16": 2**-6, "float16": 2**-9, "tf32": 2**-9, "tf32x3": 1e-4, "float64": 1e-12}
MOST = 4  # times the budget of the norm is that of the largest deviation, over the largest number


class TuningEnv(NamedTuple):
    """By what it is timed, and where; tests bring a clock of their own."""

    timer: Timer = timing.seconds_on_gpu
    now: Callable[[], float] = time.monotonic
    device_type: str = "cuda"


class Outcome(NamedTuple):
    """The best, the seconds of what was timed and the reasons of what was not."""

    config: Config
    seconds: dict[Config, float]
    dropped: dict[Config, str]


def tune(
    k: Key, p: Problem, run: Run, configs: Sequence[Config], env: TuningEnv, seconds: float, incumbent: Config
) -> Outcome | None:
    """Try configurations, the first of which says what is right; None if it says nothing, by zeros or NaN alone.

    Args:
        run: computes the contraction by a configuration.
        seconds: about how long it may take.
        incumbent: the choice without tuning, one of ``configs``; taken unless another is clearly quicker.
    """
    device = p.x.device
    with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        end = env.now() + seconds
        expected = _parts(run(p, configs[0]))
        if not all(map(_tells, expected)):
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
    """Compile in threads, so that they are ready when they are launched; what is not done in time, or fails, is met
    again there."""

    def build(config: Config) -> None:
        with torch.no_grad(), torch.cuda.device(p.x.device), watched(compile_only=True):
            run(p, config)

    pool = ThreadPoolExecutor(min(COMPILERS, os.cpu_count() or 1))
    try:
        wait([pool.submit(build, config) for config in configs], timeout=seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def why_not(p: Problem, run: Run, config: Config, expected: tuple[Tensor, ...], budget: float) -> str | None:
    """Why a configuration is not timed: it doesn't run, needs memory that it must not, or its result is wrong."""
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
    except Exception as failure:  # whatever Triton or the driver raises: too much shared memory, too many threads
        return f"does not run: {type(failure).__name__}: {str(failure).strip()}"[:200]
    return None


def unfit(kernels: Sequence[Any], capability: int) -> str | None:
    """What is wrong with compiled kernels that have been loaded, or None: shared memory, spilled registers, a stack."""
    for kernel in kernels:
        if kernel is None:  # an interpreted one
            continue
        limit = shared_limit(capability)
        if kernel.metadata.shared > limit:
            return f"{kernel.metadata.shared} bytes of shared memory, and a block may have {limit}"
        if kernel.n_spills:  # the driver tells a thread's local memory: spills and stack
            return f"{4 * kernel.n_spills} bytes of stack"
    return None


def _parts(result: Tensor | tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(part for part in result if part is not None)


def _tells(right: Tensor) -> bool:
    """Whether a wrong result would differ from it: not if weights or what comes from above are still zeros."""
    return bool((right.isfinite() & (right != 0)).any())


def _close(value: Tensor, right: Tensor, budget: float) -> bool:
    wide = torch.promote_types(value.dtype, torch.float32)
    value, right = value.to(wide), right.to(wide)
    finite = right.isfinite()
    if not bool((finite | (value == right) | (value.isnan() & right.isnan())).all()):
        return False  # no NaN, or not that infinity, where there should be
    off, right = torch.where(finite, value - right, 0), torch.where(finite, right, 0)
    return bool((off.norm() <= budget * right.norm()) & (off.abs().max() <= MOST * budget * right.abs().max()))


def _same_bits(value: Tensor, other: Tensor) -> bool:
    return torch.equal(value.view(torch.uint8), other.view(torch.uint8))
