"""Stage ``hazard``: a thousand repeats of each contraction, whose result must not differ by a bit.

A product that still reads registers while the next iteration's features overwrite them gives a wrong
number now and then, by an amount that a tolerance forgives. Against exact results there is none to
forgive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import Basis
from tests.support.oracle import Exact, Example, exact_with_sizes

from . import ways
from .place import Place
from .poison import Poison
from .record import Record
from .settings import precision
from .trials import Trial, operands, trials, whole
from .truth import budget, compute, kernel_operands
from .warm import in_parallel

REPEATS = 1000
REHEARSED_REPEATS = 2
MAX_SECONDS = 4.0  # about, after which a slow trial has had enough repeats
MIN_SECONDS = 0.3
MIN_REPEATS = 50
WARMING = 0.3  # of the time, at most, to compile side by side

Call = Callable[[], "tuple[Tensor, ...]"]


class Deviation(NamedTuple):
    """Of repeats from what they should give."""

    counts: list[int]  # of numbers that differ, for each repeat
    worst: float
    at: tuple[int, ...]
    part: int  # 1 is the base function's, of G
    want: float

    @property
    def repeats(self) -> int:
        """That deviate."""
        return sum(count > 0 for count in self.counts)

    def __str__(self) -> str:
        moving = "not the same each time: a race" if len(set(self.counts)) > 1 else "the same each time"
        return (
            f"{self.repeats} of {len(self.counts)} repeats are off ({moving}), by up to {self.worst:.3g} at "
            f"{list(self.at)} of part {self.part}, where {self.want:.6g} is right; {max(self.counts)} numbers at most"
        )


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Try all that there is time for."""
    found = trials(not place.is_gpu, ways.available(place))
    wanted = record.wanted(trial for trial in found if not patterns or any(p in trial.name for p in patterns))
    in_parallel(_Warm(place), wanted, workers, WARMING * record.left())
    for number, trial in enumerate(wanted):
        if record.left() < 0:
            record.leave_out(trial.name)
            continue
        share = record.left() / (len(wanted) - number)  # so that the last ones have a turn too
        try:
            repeats = REPEATS if place.is_gpu else REHEARSED_REPEATS
            result = attempt(trial, place, repeats, max(MIN_SECONDS, min(MAX_SECONDS, share)))
        except ways.NoSuchWay as reason:
            record.leave_out(trial.name, str(reason))
            continue
        except Exception as failure:
            record.add({"name": trial.name, "error": repr(failure)}, trial.name, f"{trial.name}: {failure!r}"[:500])
            if "CUDA error" in str(failure):  # nothing works in this process from here on
                record.fail("the GPU does not answer any more; the rest is left out")
                return
            continue
        record.add(result, f"{trial.name}: {result['repeats']} repeats", result["failure"])


class _Warm:
    """Compiles what a trial needs, in another process."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, trial: Trial) -> None:
        o, basis = operands(trial, self._place.device)
        config = _config(trial, self._place, o, basis)
        for each in [config] if trial.exact else [config, _unpipelined(config)]:
            with _forced(trial, each), precision(trial.setting, o.x.device.type), self._place.ours():
                compute(trial.contraction, o, basis, trial.derivative)


def attempt(trial: Trial, place: Place, repeats: int, seconds: float = MAX_SECONDS) -> dict:
    """Repeat a trial for about so many seconds; ``failure`` says what is wrong, or is None.

    Raises:
        ways.NoSuchWay: where the trial's way does not have this contraction.
    """
    o, basis = operands(trial, place.device)
    truth = exact_with_sizes(trial.contraction, o, basis, trial.derivative)

    def call() -> tuple[Tensor, ...]:
        return compute(trial.contraction, o, basis, trial.derivative)

    found: dict[str, Any] = {"name": trial.name, **trial._asdict(), "failure": None}
    with precision(trial.setting, place.device.type), place.ours():
        config = _config(trial, place, o, basis)
        with _forced(trial, config):
            first = call()
            if trial.exact:
                expected = tuple(whole(part.value).to(value.dtype) for part, value in zip(truth, first, strict=True))
            else:
                expected = first
            deviation, found["repeats"], found["poisoned_bytes"], found["poison_seen"] = _repeated(
                call, expected, place, repeats, seconds
            )
        if deviation.repeats:
            found["failure"] = f"{trial.name}: {deviation}"
        elif not trial.exact:
            found["failure"] = _beyond_budget(trial, o, first, truth) or _pipeline_shows(trial, config, call, first)
    found["config"] = None if config is None else config._asdict()
    found["deviation"] = deviation._replace(counts=[])._asdict() if deviation.repeats else None
    return found


def _repeated(
    call: Call, expected: tuple[Tensor, ...], place: Place, most: int, seconds: float
) -> tuple[Deviation, int, int, bool]:
    """Deviations of up to ``most`` calls, how many there were, and what was filled with NaN before each."""
    device = expected[0].device
    worst = [torch.zeros_like(want, dtype=torch.promote_types(want.dtype, torch.float32)) for want in expected]

    def once(count: Tensor) -> None:
        for value, want, far in zip(call(), expected, worst, strict=True):
            off = torch.nan_to_num((value.to(far.dtype) - want.to(far.dtype)).abs(), nan=torch.inf, posinf=torch.inf)
            torch.maximum(far, off, out=far)
            count += (off > 0).sum()

    once(torch.zeros((), dtype=torch.int64, device=device))  # the allocator now holds all that it takes
    poison = Poison(device, [want.nbytes for want in expected])
    poison.spread()
    seen = poison.reaches(expected[0])
    place.wait()
    start = time.perf_counter()
    for far in worst:
        far.zero_()
    counts = torch.zeros(most, dtype=torch.int64, device=device)
    done = 0
    while done < most:
        poison.spread()
        once(counts[done])
        done += 1
        if done % MIN_REPEATS == 0:
            place.wait()
            if time.perf_counter() - start > seconds:
                break
    part = max(range(len(worst)), key=lambda n: float(worst[n].max()) if worst[n].numel() else 0.0)
    at = torch.unravel_index(worst[part].argmax(), worst[part].shape)
    place_of = tuple(int(index) for index in at)
    size, want = float(worst[part][place_of]), float(expected[part][place_of])
    return Deviation(counts[:done].tolist(), size, place_of, part, want), done, poison.bytes, seen


def _beyond_budget(trial: Trial, o: Example, got: tuple[Tensor, ...], truth: tuple[Exact, ...]) -> str | None:
    """Where a result is further from float64 than rounding leads."""
    cells = o.knots.shape[1] - 1
    rate = float(1 / o.knots.diff(dim=1).min())
    for number, (value, part) in enumerate(zip(got, truth, strict=True)):
        off = (value.double() - part.value).abs()
        allowed = budget(part, trial.setting, value.dtype, cells, rate, trial.derivative)
        wrong = ~(off <= allowed)
        if bool(wrong.any()):
            at = tuple(int(index) for index in wrong.nonzero()[0])
            return (
                f"{trial.name}: {int(wrong.sum())} numbers are too far from float64, the first at {list(at)} of part "
                f"{number}: {float(value[at]):.6g} for {float(part.value[at]):.6g}, allowed {float(allowed[at]):.3g}"
            )
    return None


def _pipeline_shows(trial: Trial, config: Any, call: Call, first: tuple[Tensor, ...]) -> str | None:
    """Whether the same configuration gives other bits where an iteration ends before the next begins."""
    if config is None or config.way != "fused" or config.stages == 1:
        return None
    with _forced(trial, _unpipelined(config)):
        plain = call()
    for number, (value, other) in enumerate(zip(first, plain, strict=True)):
        if not torch.equal(value, other):
            off = (value.double() - other.double()).abs()
            at = [int(index) for index in torch.unravel_index(off.argmax(), off.shape)]
            return (
                f"{trial.name}: {int((off > 0).sum())} numbers differ from those of num_stages=1, by up to "
                f"{float(off.max()):.3g} at {at} of part {number}"
            )
    return None


def _config(trial: Trial, place: Place, o: Example, basis: Basis) -> Any:
    """The configuration of the trial's way; None where the backend has but one."""
    if not ways.available(place):
        return None
    arguments = (trial.contraction, o.x, o.knots, kernel_operands(trial.contraction, o), basis, trial.derivative)
    return ways.candidates(*arguments)[0] if trial.way == "auto" else ways.of_way(trial.way, *arguments)


def _forced(trial: Trial, config: Any) -> AbstractContextManager[None]:
    return nullcontext() if config is None else ways.forced({trial.contraction: config})


def _unpipelined(config: Any) -> Any:
    return None if config is None else config._replace(stages=1)
