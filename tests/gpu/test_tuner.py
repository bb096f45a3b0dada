"""What the tuner is made of: what it checks of results and of compiled kernels, and how it takes time on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from cases import no_triton

pytestmark = pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
if no_triton() is None:
    from fastkan_kernels.backends.triton import launch, timing, tuner


def test_nan_and_infinities_are_right_where_they_should_be() -> None:
    right = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    assert tuner._close(right.clone(), right, 1e-4)
    for place, value in ((0, torch.nan), (0, torch.inf), (1, 0.0), (2, 0.0), (2, torch.nan), (3, torch.inf)):
        wrong = right.clone()
        wrong[place] = value
        assert not tuner._close(wrong, right, 1e-4)
    assert tuner._same_bits(right, right.clone())


def test_kernels_that_spill_or_take_too_much_are_unfit() -> None:
    def kernel(shared: int = 0, spills: int = 0) -> SimpleNamespace:
        return SimpleNamespace(metadata=SimpleNamespace(shared=shared), n_spills=spills)

    assert tuner.unfit([None, kernel(227 << 10)], 90) is None
    assert (
        tuner.unfit([kernel(), kernel((227 << 10) + 1)], 90)
        == "232449 bytes of shared memory, and a block may have 232448"
    )
    assert "shared memory" in str(tuner.unfit([kernel(200 << 10)], 80))
    assert "shared memory" in str(tuner.unfit([kernel(150 << 10)], 89))
    assert tuner.unfit([kernel(), kernel(spills=3)], 90) == "12 bytes of stack"


def test_launches_are_watched_and_can_be_left_out() -> None:
    class Kernel:
        def __init__(self) -> None:
            self.done: list[str] = []

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., str]:
            return lambda **given: self.done.append("launched") or "kernel"  # type: ignore[func-returns-value]

        def warmup(self, grid: tuple[int, ...], **given) -> str:
            self.done.append("compiled")
            return "kernel"

    kernel = Kernel()
    one = launch.Launch(kernel, (1,), {"x_ptr": torch.zeros(1)}, {})
    one.run()
    with launch.watched() as outer:
        one.run()
        with launch.watched(compile_only=True) as inner:
            one.run()
        one.run()
    one.run()
    assert (outer, inner) == (["kernel", "kernel"], ["kernel"])
    assert kernel.done == ["launched", "launched", "compiled", "launched", "launched"]


def test_a_gpus_samples_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = now[0]

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    def task(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            now[0] += seconds * (100 if len(order) == 9 else 1)  # once something comes between

        return run

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "_lines", lambda: SimpleNamespace(zero_=task("flush", 0.5)))
    found = timing.seconds_on_gpu({"a": task("a", 1.0), "b": task("b", 3.0)}, 0.0)
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(3.0)}
    taken = [name for name in order if name != "flush"][4:]
    assert taken == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert order[6:].count("flush") > 2 * timing.MIN_ROUNDS
