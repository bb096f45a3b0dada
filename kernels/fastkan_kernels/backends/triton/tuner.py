"""Tuning of one contraction, which compiles, checks and times candidate configurations on the given operands."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import timing
from .config import Config, shared_limit
from .key import Key
from .launch import watched
from .problem import Problem

Run = Callable[[Problem, Config], "Tensor | tuple[Tensor | None, ...]"]
Timer = Callable[[Mapping[Config, Callable[[], object]], float], dict[Config, float]]

COMPILERS = 8  # maximum number of threads that compile; the compilers mostly run without Python's global lock
# Maximum shares of the time limit for compiling all candidates, for timing all candidates once, and for timing the
# fastest candidates again. The rest of the time is for checking the results.
COMPILING, SCREENING, FINAL = 0.6, 0.15, 0.15
FINALISTS = 4  # number of the fastest candidates that are timed again, in addition to the configuration without tuning
# A candidate is chosen if its time is at most this fraction of the time without tuning.
WORTH = 0.98
REPEATS = 3  # number of runs whose results must agree bit for bit
# Maximum relative error of a result in the Euclidean norm. The limits correspond to four rounding errors in the dtype
# of the matrix products, or to the error of a sum of a million float32 numbers.
BUDGETS = {"bfloat16": 2**-6, "float16": 2**-9, "tf32": 2**-9, "tf32x3": 1e-4, "float64": 1e-12}
# Maximum absolute error of a result, divided by the maximum absolute value of the reference result, as a multiple of
# the limit in BUDGETS.
MAX_ERROR_FACTOR = 4


class TuningEnv(NamedTuple):
    """The timer, the clock and the device type that tuning uses.

    Tests replace the timer and the clock by a simulated clock on the CPU.
    """

    timer: Timer = timing.seconds_on_gpu
    now: Callable[[], float] = time.monotonic
    device_type: str = "cuda"


class Outcome(NamedTuple):
    """The outcome of tuning a contraction.

    ``config`` is the best configuration. ``seconds`` has the time of each configuration that was timed, and ``dropped``
    has the reason why each other configuration was not timed.
    """

    config: Config
    seconds: dict[Config, float]
    dropped: dict[Config, str]


def tune(
    k: Key, p: Problem, run: Run, configs: Sequence[Config], env: TuningEnv, seconds: float, incumbent: Config
) -> Outcome | None:
    """Find the fastest of several configurations.

    The result of ``configs[0]`` is the reference against which the results of the other configurations are checked.

    Args:
        k: the key of the contraction.
        p: the contraction with its operands.
        run: function that computes the contraction with a configuration.
        configs: the configurations to try.
        env: the timer and clock.
        seconds: approximate time limit for tuning, in seconds.
        incumbent: the configuration that is used without tuning, an element of ``configs``. The incumbent is kept
            unless another configuration is clearly faster.

    Returns:
        The outcome, or None if all numbers in the reference result are zero or not finite, so that no configuration can
        be checked.
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
    """Compile the kernels of several configurations in parallel threads, before any of the kernels is launched.

    A configuration whose compilation fails or is not finished in time is compiled again at launch, which then raises
    the error of the compiler.
    """

    def build(config: Config) -> None:
        with torch.no_grad(), torch.cuda.device(p.x.device), watched(compile_only=True):
            run(p, config)

    pool = ThreadPoolExecutor(min(COMPILERS, os.cpu_count() or 1))
    try:
        wait([pool.submit(build, config) for config in configs], timeout=seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def why_not(p: Problem, run: Run, config: Config, expected: tuple[Tensor, ...], budget: float) -> str | None:
    """Return the reason why a configuration is not worth timing, or None if it is worth timing.

    The reason may be that the kernels do not run, spill registers, give a wrong result, or give different results in
    repeated runs.
    """
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
    except Exception as failure:  # Triton and the driver raise exceptions of many types
        return f"does not run: {type(failure).__name__}: {str(failure).strip()}"[:200]
    return None


def unfit(kernels: Sequence[Any], capability: int) -> str | None:
    """Return a description of a fault of compiled and loaded kernels, or None if they have no fault.

    The fault may be that a kernel needs too much shared memory, spills registers or uses a stack.
    """
    for kernel in kernels:
        if kernel is None:  # Triton's interpreter ran this kernel
            continue
        limit = shared_limit(capability)
        if kernel.metadata.shared > limit:
            return f"{kernel.metadata.shared} bytes of shared memory, and a block may have {limit}"
        if kernel.n_spills:  # the driver's number includes spilled registers and the stack of a thread
            return f"{4 * kernel.n_spills} bytes of stack"
    return None


def _parts(result: Tensor | tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(part for part in result if part is not None)


def _is_informative(right: Tensor) -> bool:
    """Return whether wrong results can be detected by comparison with a reference result.

    The reference result must have a finite number other than 0. If all weights are 0, for example, the result has only
    zeros.
    """
    return bool((right.isfinite() & (right != 0)).any())


def _close(value: Tensor, right: Tensor, budget: float) -> bool:
    wide = torch.promote_types(value.dtype, torch.float32)
    value, right = value.to(wide), right.to(wide)
    finite = right.isfinite()
    if not bool((finite | (value == right) | (value.isnan() & right.isnan())).all()):
        return False  # a NaN or an infinity of the reference is missing in the result
    off, right = torch.where(finite, value - right, 0), torch.where(finite, right, 0)
    return bool(
        (off.norm() <= budget * right.norm()) & (off.abs().max() <= MAX_ERROR_FACTOR * budget * right.abs().max())
    )


def _same_bits(value: Tensor, other: Tensor) -> bool:
    return torch.equal(value.view(torch.uint8), other.view(torch.uint8))
