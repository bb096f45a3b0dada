"""Choice of a configuration: rules, tables, and tuning by a simulated clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from cases import make_case, no_triton

import fastkan
from fastkan_kernels.trilinear import Operands

pytestmark = pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
if no_triton() is None:
    from stub_driver import run_compiling

    from fastkan_kernels.backends.triton import dispatch, rules, selection
    from fastkan_kernels.backends.triton.key import key
    from fastkan_kernels.backends.triton.problem import Problem, problem
    from fastkan_kernels.backends.triton.selection import Config, Key, metadata, override, use_table, write_table

ROOT = Path(__file__).resolve().parents[2]
TUNED = Config("chunked", 32, 64)


@pytest.fixture(autouse=True)
def no_table() -> Iterator[None]:
    use_table(None)
    selection._tuned.clear()
    yield
    use_table(None)
    selection._tuned.clear()


def problem_of(name: str = "F", rows: int = 9, inputs: int = 3, outputs: int = 4) -> Problem:
    o, basis = make_case(rows=rows, inputs=inputs, outputs=outputs, dtype=torch.float32, v=False)
    operands = {
        "F": Operands(None, o.weight, o.base_weight),
        "G": Operands(g=o.g),
        "H": Operands(None, o.weight, o.base_weight, o.g),
    }
    return problem(name, o.x, o.knots, operands[name], basis, int(name == "H"))


def key_of(contraction: str = "F", **changes) -> Key:
    k = key(problem_of())._replace(
        contraction=contraction, dtype="bfloat16", precision="ieee", form="cardinal", aligned=True, rows=8192,
        inputs=256, outputs=256, spline_count=8, inputs_by_16=True, outputs_by_16=True,
    )  # fmt: skip
    return k._replace(**changes)


# -- keys and rules ----------------------------------------------------------------------------------


def test_a_key_holds_only_the_power_of_two_of_the_rows() -> None:
    """If a key held the exact number of rows, a different batch size could change the order of a sum."""

    def size(rows: int, inputs: int = 3, outputs: int = 4) -> Key:
        return key(problem_of("F", rows, inputs, outputs))

    assert size(33) == size(64) != size(65)
    assert size(5, inputs=100) != size(5, inputs=101)
    # rows of 300 numbers are aligned, rows of 257 or 301 are not
    assert size(5, inputs=257) == size(5, inputs=301) != size(5, inputs=300)
    assert size(5, inputs=300) != size(5, inputs=512)  # 512 is divisible by 16, and 300 is not
    assert size(5, outputs=300) != size(5, outputs=512)


@pytest.mark.parametrize("contraction", "FGH")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("form", ["cardinal", "local"])
def test_every_candidate_is_a_valid_configuration(contraction: str, dtype: str, form: str) -> None:
    for size in (1, 5, 64, 1024):
        for count in (2, 8, 300):
            k = key_of(contraction, dtype=dtype, form=form, rows=size, inputs=size, outputs=size, spline_count=count)
            for config in [selection.choose(k, 80), *rules.candidates(k, 90)]:
                selection.check(contraction, config)
                if config.way == "fused":
                    assert min(config.rows, config.columns, config.inner) >= 16, config
                    assert config.rows * config.columns * config.splines <= 256 * 256, config


def test_impossible_configurations_cannot_be_forced() -> None:
    for contraction, config, message in (
        ("X", Config("fused"), "contraction must be"),
        ("F", Config("blocked"), "an implementation of F"),
        ("G", Config("gather"), "an implementation of G"),
        ("F", Config("fused", rows=0), "rows must be"),
        ("F", Config("fused", rows=17), "rows must be a power of two"),
        ("F", Config("pipelined"), "rows must be 16 for each of 4 warps or more, got 16 of 4"),
        ("F", Config("pipelined", 64, 512), "columns must be from 16 to 256"),
        ("H", Config("pipelined", 64, 64, 64, 8), "columns must be from 16 to 32"),
        ("H", Config("pipelined", 64, 32, 64, 4), "splines must be 8"),
        ("F", Config("pipelined", 64, 64, 8), "inner must be 64"),
        ("H", Config("banded", 16, 4, 64), "rows must be at least 8 for each warp, got 16 of 4"),
        ("H", Config("banded", 64, 4, 16), "inner must be 32, 64, 128 or 256, got 16"),
        ("H", Config("banded", 64, 4, 64, stages=1), "stages must be at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message), override(contraction, config):
            pass
    for field in ("rows", "columns", "inner", "splines", "warps", "stages"):
        config = Config("gather")._replace(**{field: True})
        with pytest.raises(TypeError, match=f"{field} must be an int, got True"), override("F", config):
            pass


# -- tables ------------------------------------------------------------------------------------------


def test_a_table_replaces_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.json"
    write_table(path, {key_of(): TUNED})
    assert selection.read_table(path) == ({key_of(): TUNED}, metadata())
    use_table(path)
    assert selection.choose(key_of(), 90) == TUNED
    assert selection.choose(key_of("H"), 90) == rules.default(key_of("H"), 90)
    exact = key_of(deterministic=True)
    assert selection.choose(exact, 90) == rules.default(exact, 90) != TUNED
    with override("F", Config("gather")):
        assert selection.choose(key_of(), 90) == Config("gather")
    use_table(None)
    assert selection.choose(key_of(), 90) != TUNED
    monkeypatch.setenv("FASTKAN_TUNING", str(path))
    monkeypatch.setattr(selection, "_table", None)
    assert selection.choose(key_of(), 90) == TUNED
    monkeypatch.setenv("FASTKAN_TUNING", "/nowhere.json")
    monkeypatch.setattr(selection, "_table", None)
    with pytest.raises(ValueError, match=r"FASTKAN_TUNING names a table that cannot be used: .*/nowhere.json"):
        selection.choose(key_of(), 90)


@pytest.mark.parametrize(
    ("entries", "about", "message"),
    [
        ({}, {"triton": "0.0"}, "holds for triton '0.0', and here it is"),
        ({("G", True): ("gather", False)}, {}, "an implementation of G"),
        ({("F", False): ("fused", True)}, {}, "descriptors cannot address"),
        ({("F", False): ("pipelined", False)}, {}, "rows must be 16"),
    ],
)
def test_a_refused_table_leaves_the_one_before(entries: dict, about: dict, message: str, tmp_path: Path) -> None:
    path, bad = tmp_path / "tuned.json", tmp_path / "bad.json"
    write_table(path, {key_of(): TUNED})
    use_table(path)
    rows = {key_of(k, aligned=aligned): Config(way, descriptors=d) for (k, aligned), (way, d) in entries.items()}
    write_table(bad, rows, {**metadata(), **about})
    with pytest.raises(ValueError, match=message):
        use_table(bad)
    assert selection.choose(key_of(), 90) == TUNED


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path, schema = tmp_path / "tuned.json", {"schema": selection.SCHEMA, "metadata": {}}
    bad_key = {**key_of()._asdict(), "rows": "8192"}
    for data in (
        *("{}", "[]", "no json", json.dumps({"schema": 1, "metadata": {}, "entries": []})),
        json.dumps({**schema, "entries": [{"key": {}}]}),
        json.dumps({**schema, "metadata": [], "entries": []}),
        json.dumps({**schema, "entries": [{"key": bad_key, "config": {"way": "fused"}}]}),
        json.dumps({**schema, "entries": [{"key": key_of(deterministic=True)._asdict(), "config": {"way": "fused"}}]}),
    ):
        path.write_text(data)
        with pytest.raises(ValueError, match="is not a table of tuned choices"):
            use_table(path)


H100 = {"gpu": "NVIDIA H100 80GB HBM3", "capability": "90", "triton": "3.7.1", "ptxas": "12.8.93"}


def test_tables_hold_for_their_own_gpu_or_are_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's table is used only on its own GPU.

    An installed table of another GPU with the same capability is a last resort.
    """
    monkeypatch.setattr(selection, "SHIPPED", tmp_path)
    monkeypatch.setattr("triton.__version__", "3.7.0")
    monkeypatch.setattr(selection, "metadata", lambda: H100)
    monkeypatch.setattr(selection, "gpu_name", lambda device: (H100["gpu"], "another")[device.index])
    selection._shipped.cache_clear()
    unsupported = Config("pipelined", 64, 64, 64, warps=4)
    write_table(tmp_path / "sm_90-h100.json", {key_of(): TUNED, key_of("H", dtype="float64"): TUNED}, H100)
    other = {key_of(): Config("gather"), key_of("G"): TUNED, key_of("G", dtype="float32"): unsupported}
    write_table(tmp_path / "sm_90-h200.json", other, {**H100, "gpu": "NVIDIA H200"})
    write_table(tmp_path / "sm_90-old.json", {key_of("H"): TUNED}, {**H100, "triton": "3.8.1"})
    here, elsewhere = torch.device("cuda", 0), torch.device("cuda", 1)
    try:
        assert selection.choose(key_of(), 90, here) == TUNED
        assert selection.choose(key_of("G"), 90, here) == TUNED
        for k in (key_of("H"), key_of("G", dtype="float32"), key_of(deterministic=True)):
            assert selection.choose(k, 90, here) == rules.default(k, 90)
        assert selection.choose(key_of(), 90) == rules.default(key_of(), 90)  # without a GPU
        write_table(tmp_path / "own.json", {key_of(): Config("gather", 64)}, H100)
        use_table(tmp_path / "own.json")
        assert selection.choose(key_of(), 90, here) == Config("gather", 64)
        assert selection.choose(key_of(), 80, elsewhere) == rules.default(key_of(), 80)
    finally:
        selection._shipped.cache_clear()


def test_installed_tables_can_be_read_and_a_wheel_holds_their_folder(tmp_path: Path) -> None:
    for path in selection.SHIPPED.glob("*.json"):
        assert selection.read_table(path).metadata.keys() == H100.keys()
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fastkan", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastkan_kernels/backends/triton/tables/README.md" in names
    assert "fastkan_kernels/backends/triton/selection.py" in names


# -- tuning ------------------------------------------------------------------------------------------


class Clock:
    """A simulated clock, by which the time of a configuration depends only on its implementation."""

    def __init__(self) -> None:
        self.seconds = {"fused": 2.0, "chunked": 1.0, "gather": 3.0}
        self.timed: list[str] = []
        self.last = ""

    def bench(self, call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        call()
        self.timed.append(self.last)
        return [self.seconds[self.last]] * len(quantiles)

    def choose(self, p: Problem) -> str:
        def run(p: Problem, config: Config) -> object:
            self.last = config.way
            return dispatch.run(p, config)

        return selection.choose_for(p, run, selection.state())[0].way


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A simulated clock for tuning, which times one configuration of each implementation on the CPU."""
    clock = Clock()
    monkeypatch.setattr(selection, "_bench", clock.bench)
    monkeypatch.setattr(selection, "_compile", lambda *arguments: None)
    monkeypatch.setattr(selection, "_TUNED_TYPE", "cpu")
    monkeypatch.setattr(selection, "candidates", rules.by_way)
    return clock


@interpreted
@pytest.mark.parametrize("name", "FGH")
def test_the_fastest_candidate_is_used_while_tuning_is_on(name: str, clock: Clock, tmp_path: Path) -> None:
    p = problem_of(name)
    assert clock.choose(p) == "fused"
    with fastkan.autotune(seconds=1000):
        assert clock.choose(p) == "chunked"
        timed = sorted(clock.timed)
        assert timed == sorted(config.way for config in rules.by_way(key(p), 90))
        # both numbers of rows are rounded to the same power of two
        assert clock.choose(p) == clock.choose(problem_of(name, rows=16)) == "chunked"
        assert len(clock.timed) == len(timed)
        clock.choose(problem_of(name, rows=17))
        assert len(clock.timed) == 2 * len(timed)
    assert clock.choose(p) == "fused"
    write_table(tmp_path / "tuned.json", selection.tuned())
    use_table(tmp_path / "tuned.json")
    assert clock.choose(p) == "chunked"


@interpreted
def test_candidates_that_fail_or_come_too_late_are_not_used(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    p, bench = problem_of(), clock.bench

    def fail(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        found = bench(call, quantiles)
        if clock.last == "chunked":
            raise RuntimeError("too many resources")
        return found

    monkeypatch.setattr(selection, "_bench", fail)
    with fastkan.autotune(seconds=1000):
        assert clock.choose(p) == "fused"
    selection._tuned.clear()
    monkeypatch.setattr(selection, "_bench", bench)
    clock.timed.clear()
    with fastkan.autotune(seconds=1e-9):
        assert clock.choose(p) == "fused"
    assert clock.timed == ["fused"]


@interpreted
def test_nothing_is_tuned_where_it_is_not_wanted_or_not_possible(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    p = problem_of()
    with fastkan.autotune(seconds=1000), fastkan.autotune(False):
        assert clock.choose(p) == "fused"
    with fastkan.autotune(seconds=1000):
        with override("F", Config("gather")):
            assert clock.choose(p) == "gather"
        torch.use_deterministic_algorithms(True)
        try:
            assert clock.choose(problem_of()) == "fused"
        finally:
            torch.use_deterministic_algorithms(False)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert clock.choose(p) == "fused"
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert clock.choose(p) == "fused"
        with monkeypatch.context() as patch:
            patch.setattr(selection, "_TUNED_TYPE", "cuda")
            assert clock.choose(p) == "fused"
        with selection._tuning:  # another thread is tuning
            assert clock.choose(p) == "fused"
        write_table(tmp_path / "tuned.json", {key(p): Config("gather")})
        use_table(tmp_path / "tuned.json")
        assert clock.choose(p) == "gather"
        use_table(None)
        assert clock.timed == []
        assert clock.choose(p) == "chunked"


@interpreted
def test_a_layer_is_tuned_while_it_is_used(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fastkan.KANLinear(3, 4), torch.rand(9, 3, requires_grad=True)

    def step() -> list[torch.Tensor]:
        return list(torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]))

    def bench(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        call()
        return [1.0] * len(quantiles)

    monkeypatch.setattr(selection, "_bench", bench)
    with fastkan.autotune(seconds=1000), fastkan.backend("triton"):
        found = step()
    for value, right in zip(found, step(), strict=True):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)
    assert {k.contraction for k in selection.tuned()} == set("FGH")


@interpreted
def test_a_switch_of_another_thread_does_not_affect_a_contraction_that_has_begun(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice would otherwise be recorded for a state of the switch in which it was not made."""
    p, bench, states = problem_of(), clock.bench, [*selection._states, selection.State(True, 1000)]
    monkeypatch.setattr(selection, "_states", states)

    def switch(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        states.append(selection.State(False, 1000))
        return bench(call, quantiles)

    monkeypatch.setattr(selection, "_bench", switch)
    assert clock.choose(p) == "chunked"
    assert not selection.state().on
    assert clock.choose(p) == "fused"


def test_the_switch() -> None:
    with pytest.raises(TypeError, match="enabled must be True or False, got 5"):
        fastkan.autotune(5)  # type: ignore[arg-type]
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"seconds must be (above 0|finite)"):
            fastkan.autotune(seconds=seconds)
    before = selection._states[-1]
    first, second = fastkan.autotune(seconds=1), fastkan.autotune(seconds=2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # threads may leave their ``with`` statements in any order
    assert (selection.state().on, selection.state().seconds) == (True, 2)
    second.__exit__(None, None, None)
    assert selection._states == [before]

    @fastkan.autotune()
    def deep(calls: int) -> None:
        assert selection.state().on
        if calls:
            deep(calls - 1)

    deep(2)
    assert selection._states == [before]


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_the_environment_turns_tuning_on(value: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKAN_AUTOTUNE", value)
    assert selection.on_by_environment() == on


SAVED = """
import sys
import torch, fastkan, stub_driver
launched = stub_driver.install()
from fastkan_kernels.backends.triton import selection
from fastkan_kernels.backends.triton.config import Config
gpu, fast = sys.argv[1:]
timed = []

def bench(call, quantiles):
    launched.clear()
    call()
    names = [name for name, _ in launched]
    timed.append(names)
    return [1.0 if len(timed) == int(fast) else 2.0] * len(quantiles)

tiles = dict(rows=64, columns=16, inner=16, warps=4, descriptors=True)
configs = [Config("fused", **tiles), Config("fused", **{**tiles, "rows": 32}), Config("pipelined", **tiles, stages=4)]
selection._TUNED_TYPE, selection._bench, selection.candidates = "cpu", bench, lambda k, capability: configs
selection.gpu_name = lambda device: gpu
layer, x = fastkan.KANLinear(16, 16, base="none").bfloat16(), torch.rand(64, 16).bfloat16()
with fastkan.autotune(seconds=1000), fastkan.backend("triton"), torch.no_grad():
    layer(x)
    launched.clear()
    layer(x)
(config,) = selection.tuned(torch.device("cpu")).values()
(name, arguments), = launched
maps = [a for a in arguments if isinstance(a, tuple)]
print(len(timed), configs.index(config), len(maps))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiles kernels")
def test_results_are_saved_for_later_processes_by_gpu(tmp_path: Path) -> None:
    """Kernels, one of them in Gluon, are compiled for sm_90, and a stub driver replaces the driver of a GPU."""

    def run(gpu: str, fast: int) -> list[str]:
        return run_compiling(SAVED, gpu, str(fast), cache=tmp_path).split()

    # The Gluon kernel has seven descriptors, including placeholders for operands that are missing.
    assert run("one", 3) == ["3", "2", "7"]
    assert run("one", 1) == ["0", "2", "7"]  # the result of tuning is read from the disk
    assert run("another", 2) == ["3", "1", "1"]
