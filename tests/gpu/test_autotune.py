"""Tuning when a contraction is first needed: what is tried, what is taken, when not; by a clock that tests turn."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from cases import make_case, no_triton
from torch import Tensor

import fastkan
from fastkan_kernels.trilinear import Operands

pytestmark = pytest.mark.skipif(
    no_triton() is not None or os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)
if no_triton() is None:
    from fastkan_kernels.backends.triton import autotune, cache, dispatch, environment, rules, selection, tables, tuner
    from fastkan_kernels.backends.triton.key import Key, key
    from fastkan_kernels.backends.triton.problem import Problem, problem
    from fastkan_kernels.backends.triton.selection import Config
    from fastkan_kernels.backends.triton.tuner import TuningEnv

SLOW, QUICK = "fused", "chunked"  # ways, by the clock below


class Clock:
    """Time passes when it is asked for; a configuration takes as long as its way says."""

    def __init__(self) -> None:
        self.time, self.step, self.timed = 0.0, 0.01, 0
        self.seconds = {"fused": 2.0, "chunked": 1.0, "gather": 3.0}

    def now(self) -> float:
        self.time += self.step
        return self.time

    def timer(self, tasks: Mapping[Config, Callable[[], object]], seconds: float) -> dict[Config, float]:
        for task in tasks.values():
            task()
        self.timed += 1
        self.time += seconds
        return {config: self.seconds[config.way] for config in tasks}


def forgotten() -> None:
    """As in a new process."""
    selection.use_table(None)
    selection._tuned.clear()


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A cache of the test's own, and the rules' configuration of each way as candidates."""
    clock = Clock()
    monkeypatch.setenv("FASTKAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selection, "_env", TuningEnv(clock.timer, clock.now, "cpu"))
    monkeypatch.setattr(selection, "candidates", lambda k, capability: rules.by_way(k, capability))
    forgotten()
    yield clock
    forgotten()


def problem_of(name: str = "F", **changes) -> Problem:
    o, basis = make_case(**{"rows": 9, "dtype": torch.float32, "v": False, **changes})
    operands = {
        "F": Operands(None, o.weight, o.base_weight),
        "G": Operands(g=o.g),
        "H": Operands(None, o.weight, o.base_weight, o.g),
    }
    return problem(name, o.x, o.knots, operands[name], basis, int(name == "H"))


def choose(p: Problem) -> Config:
    return selection.choose_for(p, {"F": dispatch._out, "G": dispatch._weights, "H": dispatch._in}[p.name])


def kept() -> dict[Key, Config]:
    return cache.load(environment.metadata(torch.device("cpu")))


# -- what is taken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", "FGH")
def test_the_quickest_is_taken_and_kept(name: str, clock: Clock) -> None:
    p = problem_of(name)
    assert choose(p).way == SLOW
    with fastkan.autotune():
        assert choose(p).way == QUICK
        assert clock.timed == 2
        assert choose(p).way == QUICK
        assert choose(problem_of(name, rows=16)).way == QUICK  # the same power of two
        assert clock.timed == 2
        choose(problem_of(name, rows=17))
        assert clock.timed == 4
    assert choose(p).way == SLOW  # what it is without tuning
    assert kept()[key(p)].way == QUICK


def test_the_next_process_reads_it_if_it_tunes(clock: Clock) -> None:
    p = problem_of()
    with fastkan.autotune():
        choose(p)
    forgotten()
    assert choose(p).way == SLOW
    with fastkan.autotune():
        assert selection.choose(key(p), p.capability, p.x.device).way == QUICK  # before anything is run
        assert choose(p).way == QUICK
    assert clock.timed == 2


def test_a_layer_is_tuned_as_it_is_used() -> None:
    layer = fastkan.KANLinear(3, 4)
    x = torch.rand(9, 3, requires_grad=True)

    @fastkan.autotune()
    @fastkan.backend("triton")
    def step() -> list[Tensor]:
        return list(torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]))

    for value, right in zip(step(), torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)
    assert {k.contraction for k in kept()} == set("FGH")
    assert all(config.way == QUICK for config in kept().values())


def test_what_is_hardly_quicker_is_not_taken(clock: Clock) -> None:
    clock.seconds["chunked"] = 1.99
    with fastkan.autotune():
        assert choose(problem_of()).way == SLOW
    assert kept()[key(problem_of())].way == SLOW  # and is not timed again


def test_without_time_nothing_else_is_tried(clock: Clock) -> None:
    clock.step = 11.0
    p = problem_of()
    found = tuner.tune(
        key(p), p, dispatch._out, rules.by_way(key(p), 90), selection._env, 10.0, rules.default(key(p), 90)
    )
    assert found is not None
    assert found.config.way == SLOW
    assert set(found.dropped.values()) == {"out of time"}


def test_a_users_table_goes_before(tmp_path: Path, clock: Clock) -> None:
    p, path = problem_of(), tmp_path / "tuned.json"
    tables.write(path, {key(p): Config("gather")}, environment.metadata())
    selection.use_table(path)
    with fastkan.autotune():
        assert choose(p) == Config("gather")
    assert clock.timed == 0


def test_too_little_memory_leaves_the_rules(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def timer(*arguments) -> None:
        clock.timed += 1
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(selection, "_env", TuningEnv(timer, clock.now, "cpu"))  # type: ignore[arg-type]
    with fastkan.autotune():
        with pytest.warns(RuntimeWarning, match="F is not tuned: no room"):
            assert choose(problem_of()).way == SLOW
        assert choose(problem_of()).way == SLOW
    assert clock.timed == 1


# -- when nothing is tuned ---------------------------------------------------------------------------


def test_only_where_it_is_asked_for_and_can_be(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    p = problem_of()
    choose(p)
    with fastkan.autotune(), fastkan.autotune(False):
        choose(p)
    with fastkan.autotune():
        with selection.override("F", Config("gather")):
            assert choose(p) == Config("gather")
        torch.use_deterministic_algorithms(True)
        try:
            assert choose(p).way == SLOW
        finally:
            torch.use_deterministic_algorithms(False)
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            assert choose(p).way == SLOW
        with monkeypatch.context() as patched:
            patched.setattr(selection, "_env", TuningEnv(clock.timer, clock.now, "cuda"))
            assert choose(p).way == SLOW  # on a CPU
            patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert not selection._may_tune(key(p), torch.device("cuda"))
            patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
            assert selection._may_tune(key(p), torch.device("cuda"))
        with selection._tuning:  # another thread
            assert choose(p).way == SLOW
        assert clock.timed == 0
        assert choose(p).way == QUICK


def test_under_deterministic_algorithms_the_cache_is_not_asked(clock: Clock) -> None:
    p = problem_of()
    with fastkan.autotune():
        assert choose(p).way == QUICK
        torch.use_deterministic_algorithms(True)
        try:
            assert choose(p).way == SLOW
        finally:
            torch.use_deterministic_algorithms(False)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="enabled must be True or False, got 5"), fastkan.autotune(5):  # type: ignore[arg-type]
        pass
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"seconds must be (above 0|finite)"), fastkan.autotune(seconds=seconds):
            pass


def test_bad_seconds_are_named() -> None:
    for seconds in ("5", None):
        with pytest.raises(TypeError, match="seconds must be a number, got"):
            fastkan.autotune(seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="enabled must be True or False, got function"):
        fastkan.autotune(choose)  # type: ignore[arg-type]  # as a decorator without brackets


def test_threads_may_leave_in_any_order() -> None:
    first, second = fastkan.autotune(seconds=1), fastkan.autotune(seconds=2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert autotune.is_on()
    assert autotune.seconds_each() == 2
    second.__exit__(None, None, None)
    assert autotune.is_on() == autotune.on_by_environment()


def test_a_decorated_function_may_call_itself() -> None:
    @fastkan.autotune(seconds=3)
    def deep(calls: int) -> None:
        assert autotune.is_on()
        if calls:
            deep(calls - 1)

    deep(2)
    assert autotune.is_on() == autotune.on_by_environment()


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_the_environment_turns_it_on(value: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKAN_AUTOTUNE", value)
    assert autotune.on_by_environment() == on


# -- what is dropped ---------------------------------------------------------------------------------


def dropped(spoil: Callable[[Tensor, int], Tensor], clock: Clock) -> dict[str, str]:
    """Why each way is, where what the chunked one gives is spoilt: ``spoil(result, number of the call)``."""
    p, calls = problem_of(), 0

    def run(p: Problem, config: Config) -> Tensor:
        nonlocal calls
        y = dispatch._out(p, config)
        calls += config.way == QUICK
        return spoil(y, calls) if config.way == QUICK else y

    configs = rules.by_way(key(p), 90)
    found = tuner.tune(key(p), p, run, configs, selection._env, 10.0, configs[0])
    assert found is not None
    assert found.config.way == SLOW
    return {config.way: why for config, why in found.dropped.items()}


def test_a_wrong_candidate_is_dropped(clock: Clock) -> None:
    assert dropped(lambda y, call: y * 1.001, clock) == {QUICK: "wrong"}
    assert dropped(lambda y, call: y.index_fill(0, torch.tensor([3]), torch.nan), clock) == {QUICK: "wrong"}
    assert dropped(lambda y, call: y.index_fill(0, torch.tensor([3]), torch.inf), clock) == {QUICK: "wrong"}


def zeroed(p: Problem) -> Problem:
    assert p.weight is not None
    assert p.base_weight is not None
    return p._replace(weight=torch.zeros_like(p.weight), base_weight=torch.zeros_like(p.base_weight))


def test_zeros_wait_for_operands_that_tell(clock: Clock) -> None:
    """Of a product of zeros twice as much is right as well: such a candidate would be taken, and kept on disk."""
    p = problem_of()
    zero = zeroed(p)
    nan = p._replace(x=torch.full_like(p.x, torch.nan))
    with fastkan.autotune():
        for silent in (zero, nan):
            assert choose(silent).way == SLOW
        assert clock.timed == 0
        assert kept() == {}
        assert choose(p).way == choose(zero).way == QUICK


def test_zeros_for_ever_are_not_tried_for_ever() -> None:
    zero, runs = zeroed(problem_of()), 0

    def run(p: Problem, config: Config) -> Tensor:
        nonlocal runs
        runs += 1
        return dispatch._out(p, config)

    with fastkan.autotune():
        for _ in range(2 * selection._MAX_SILENT):
            selection.choose_for(zero, run)
    assert runs == selection._MAX_SILENT


def test_one_that_gives_other_bits_each_time_is_dropped(clock: Clock) -> None:
    def race(y: Tensor, call: int) -> Tensor:
        return y if call != 3 else torch.nextafter(y, y + 1)

    assert dropped(race, clock) == {QUICK: "not the same bits each time"}


def test_one_that_does_not_run_is_dropped(clock: Clock) -> None:
    def fail(y: Tensor, call: int) -> Tensor:
        raise RuntimeError("too many resources")

    assert dropped(fail, clock) == {QUICK: "does not run: RuntimeError: too many resources"}


# -- the cache on disk -------------------------------------------------------------------------------


def some_key(count: int) -> Key:
    return key(problem_of())._replace(spline_count=count)


def store(count: int) -> None:
    cache.store(environment.metadata(torch.device("cpu")), {some_key(count): Config("chunked")})


def test_processes_add_to_each_others_choices() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(store, range(8), chunksize=1)
    assert set(kept()) == {some_key(count) for count in range(8)}


def test_another_process_choices_are_taken_along(clock: Clock) -> None:
    with fastkan.autotune():
        choose(problem_of())
        store(5)
        choose(problem_of("H"))
        assert selection.choose(some_key(5), 90, torch.device("cpu")) == Config("chunked")


@pytest.mark.parametrize("text", ["{", '{"schema": 1}', ""])
def test_a_damaged_file_is_ignored_and_replaced(text: str) -> None:
    path = cache.path_of(environment.metadata(torch.device("cpu")))
    path.parent.mkdir()
    path.write_text(text)
    with fastkan.autotune(), pytest.warns(RuntimeWarning, match="the cache of tuned choices is ignored"):
        assert choose(problem_of()).way == QUICK
    assert len(kept()) == 1


def test_what_cannot_be_written_stays_in_memory(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "cache").write_text("no folder")
    with fastkan.autotune():
        with pytest.warns(RuntimeWarning, match="tuned choices are not kept"):
            assert choose(problem_of()).way == QUICK
        assert choose(problem_of()).way == QUICK
    assert clock.timed == 2


def test_a_write_that_fails_leaves_nothing_behind() -> None:
    path = cache.path_of(environment.metadata(torch.device("cpu")))
    path.mkdir(parents=True)
    with fastkan.autotune(), pytest.warns(RuntimeWarning, match="tuned choices are not kept"):
        choose(problem_of())
    assert not list(path.parent.glob("*.part"))


def test_without_a_home_it_stays_in_memory(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def homeless(_: object = None) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTKAN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with fastkan.autotune(), pytest.warns(RuntimeWarning, match="tuned choices are not kept"):
        assert choose(problem_of()).way == QUICK
