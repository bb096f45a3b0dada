"""``python -m bench --gpu``, rehearsed without a GPU: that each stage runs, and that what is wrong is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")

from bench import __main__ as bench_command
from bench.gpu import child, hazard, sanitizer, stages, suite, trials, tune, warm
from bench.gpu.accuracy import Deviation
from bench.gpu.place import Place
from bench.gpu.poison import Poison
from bench.gpu.record import Record
from bench.gpu.settings import DTYPES
from bench.measure import Task
from fastkan_kernels.backends.registry import BACKENDS
from fastkan_kernels.bspline.cox_de_boor import features
from tests.support.oracle import exact_with_sizes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PLACE = Place(CPU, "reference")


def rehearse(out: Path, *arguments: str) -> int:
    """The command on the CPU, by the reference, in this process."""
    return bench_command.main(["--gpu", str(out), "--device", "cpu", "--backend", "reference", *arguments])


def results(out: Path, stage: str) -> dict:
    return json.loads((out / f"{stage}.json").read_text())


def record(out: Path, seconds: float = 60.0) -> Record:
    return Record(out / "stage.json", "stage", {}, {}, seconds, lambda line: None)


def spoilt(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Tensor, int], Tensor]) -> None:
    """Let the reference's F, G or H be changed by ``spoil(result, number of the call)``."""
    contract = BACKENDS["reference"].contract
    right, calls = contract[name], [0]

    def wrong(*arguments):
        calls[0] += 1
        result = right(*arguments)
        if name == "G":
            return spoil(result[0], calls[0]), result[1]
        return spoil(result, calls[0])

    monkeypatch.setitem(contract, name, wrong)


# -- the command ------------------------------------------------------------------------------------

END_TO_END = (
    "F_0 linear uniform G8 float16 37x5x7 v fused",
    "H_1 random adapted G8 highest 37x5x7 chunked",
    "32 5-7 G5 float16 fwd",
    "F_0 48 5-7 G5 highest",
)


def test_every_stage_runs_in_the_interpreter(tmp_path: Path) -> None:
    """As on a GPU, each in a process of its own."""
    pytest.importorskip("triton")
    stages = ["hazard", "speed", "tune"]
    arguments = ["--gpu", str(tmp_path), "--device", "cpu", "--only", *stages, "--cases", *END_TO_END]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {stage: results(tmp_path, stage) for stage in stages}
    assert {result["way"] for result in found["hazard"]["results"]} == {"fused", "chunked"}
    (row,) = found["speed"]["results"]
    timed = {c["name"] for c in row["contestants"] if "cold" in c}
    assert timed >= {"gemm", "linear", "plain", "auto", "fused", "chunked", "gather"}
    (tuned,) = found["tune"]["results"]
    assert tuned["best"]["way"] in ("fused", "chunked", "gather")
    assert json.loads((tmp_path / tune.TABLE).read_text())["entries"]
    assert "REHEARSAL" in done.stdout
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_refuses_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench_command.main(["--gpu", str(tmp_path / "out")])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "there is no GPU here" in said
    assert "--device cpu" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--backend", "nothing"],
        ["--seconds", "nan"],
        ["--total", "0"],
        ["--workers", "-1"],
        ["--resume", "no_such_folder"],
    ],
)
def test_it_refuses_what_it_does_not_understand(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        rehearse(tmp_path, *arguments)
    assert left.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_a_stage_that_breaks_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(stages.STAGES, "hazard", broken)
    assert rehearse(tmp_path, "--only", "hazard") == 1
    assert "no such thing" in results(tmp_path, "hazard")["failures"][0]


def test_a_stage_that_does_nothing_is_a_failure(tmp_path: Path) -> None:
    assert rehearse(tmp_path, "--only", "hazard", "--cases", "no such trial") == 1
    assert results(tmp_path, "hazard")["failures"] == ["hazard: nothing was done"]


def test_a_stage_whose_process_left_nothing_is_a_failure(tmp_path: Path) -> None:
    assert stages.read("speed", stages.Options(tmp_path, PLACE, None, 0, {}))["failures"]


def test_results_are_on_disk_as_soon_as_they_are_known(tmp_path: Path) -> None:
    found = record(tmp_path)
    found.add({"name": "a"}, "a")
    found.add({"name": "b"}, "b", "b is wrong")
    written = results(tmp_path, "stage")
    assert [result["name"] for result in written["results"]] == ["a", "b"]
    assert written["failures"] == ["b is wrong"]


# -- hazard -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", DTYPES)
def test_exact_trials_are_exact(setting: str) -> None:
    """What the kernels hold of a feature is a number of the operands' dtype, and of two bytes."""
    held = {"linear": 1.0, "doubled": 1.0, "slopes": 0.5, "cubic": 0.75}  # of psi^(d)
    wanted = {(t.numbers, t.form, t.derivative): t for t in trials.trials(False) if t.exact and t.setting == setting}
    assert {numbers for numbers, _, _ in wanted} >= {"linear", "doubled", "slopes"}
    for trial in wanted.values():
        o, basis = trials.operands(trial._replace(sizes=(400, 7, 3)), CPU)
        psi, _ = features(o.x.double(), o.knots.double(), basis, trial.derivative)
        kept = trials.whole(held[trial.numbers] * psi)
        torch.testing.assert_close(kept, held[trial.numbers] * psi, rtol=0, atol=1e-12)
        for dtype in (torch.bfloat16, torch.float16, DTYPES[setting]):
            assert torch.equal(kept.to(dtype).double(), kept), trial.name


def test_every_kernel_dtype_and_form_is_tried_and_has_a_name() -> None:
    found = trials.trials(False)
    assert len({trial.name for trial in found}) == len(found)
    for way in ("fused", "chunked", "gather"):
        for setting in DTYPES:
            for form in trials.FORMS:
                tried = {t.contraction for t in found if (t.way, t.setting, t.form) == (way, setting, form)}
                assert tried == (set("FH") if way == "gather" else set("FGH"))


def test_hazard_passes_what_is_right(tmp_path: Path) -> None:
    assert rehearse(tmp_path, "--only", "hazard", "--cases", "float16 37x5x7") == 0
    found = results(tmp_path, "hazard")
    assert {result["numbers"] for result in found["results"]} >= {"linear", "doubled", "slopes", "random"}
    assert all(result["repeats"] == hazard.REHEARSED_REPEATS for result in found["results"])


@pytest.mark.parametrize("numbers", ["linear", "random"])
@pytest.mark.parametrize("contraction", ["F", "G", "H"])
def test_hazard_catches_one_number_that_is_off_once(
    numbers: str, contraction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one rounding, in the last repeat only."""

    def nudge(value: Tensor, call: int) -> Tensor:
        if call == 4:  # after the first, one to settle the allocator, and one repeat
            value.view(-1)[3] = torch.nextafter(value.view(-1)[3], torch.tensor(torch.inf, dtype=value.dtype))
        return value

    spoilt(monkeypatch, contraction, nudge)
    cases = [f"{contraction}_{int(contraction == 'H')} {numbers} uniform G8 highest 33x1x1"]
    assert rehearse(tmp_path, "--only", "hazard", "--cases", *cases) == 1
    found = results(tmp_path, "hazard")
    (failure,) = found["failures"]
    assert "1 of 2 repeats" in failure
    assert "a race" in failure
    (result,) = found["results"]
    assert 0 < result["deviation"]["worst"] < 1e-5


def test_hazard_catches_what_is_wrong_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within no tolerance if results are exact, else beyond the budget of rounding."""
    spoilt(monkeypatch, "F", lambda value, call: value * (1 + 1e-3))
    assert rehearse(tmp_path, "--only", "hazard", "--cases", "F_0 linear uniform G8 highest 37", "F_0 random") == 1
    first, *rest = results(tmp_path, "hazard")["failures"]
    assert "the same each time" in first
    assert any("too far from float64" in failure for failure in rest)


def test_hazard_catches_what_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hole(value: Tensor, call: int) -> Tensor:
        value.view(-1)[-1] = torch.nan  # as poison shows where nothing was stored
        return value

    spoilt(monkeypatch, "H", hole)
    assert rehearse(tmp_path, "--only", "hazard", "--cases", "H_1 slopes uniform G8 highest 37") == 1
    (failure,) = results(tmp_path, "hazard")["failures"]
    assert "by up to inf" in failure


def test_poison_is_nan_in_every_dtype() -> None:
    poison = Poison(CPU, [1 << 22])
    poison.spread()
    assert poison.bytes == 1 << 22
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.full((8,), 0xFF, dtype=torch.uint8).view(dtype).isnan().all()


# -- speed and tune ---------------------------------------------------------------------------------


def test_speed_gives_no_time_to_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient by the input that is off by a hundredth."""
    spoilt(monkeypatch, "H", lambda value, call: value * 1.01)
    assert rehearse(tmp_path, "--only", "speed", "--cases", "32 5-7 G5 highest fwd", "32 5-7 G5 tf32 fwd+bwd") == 1
    step, forward = results(tmp_path, "speed")["results"]
    assert step["row"]["mode"] == "step"
    (wrong,) = (c for c in step["contestants"] if c["name"] == "auto")
    assert "wrong: dx" in wrong["note"]
    assert "cold" not in wrong
    assert wrong["error"]["dx"]["norm"] == pytest.approx(0.01, rel=0.01)
    assert wrong["error"]["dw"]["largest"] < 1e-5
    (plain,) = (c for c in step["contestants"] if c["name"] == "plain")
    assert plain["cold"]["ratios"]["linear"]["median"] > 0
    (right,) = (c for c in forward["contestants"] if c["name"] == "auto")
    assert right["cold"]["seconds"]["median"] > 0
    (failure,) = results(tmp_path, "speed")["failures"]
    assert failure.startswith("32 5-7 G5 tf32 fwd+bwd, auto: wrong: dx")


def test_a_small_network_trains_and_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rehearse(tmp_path, "--only", "speed", "--cases", "graphed") == 0
    (result,) = results(tmp_path, "speed")["results"]
    of = {c["name"]: c for c in result["contestants"]}
    for mode in ("backward", "step"):
        assert of["fastkan"][mode]["ratios"]["MLP, as many parameters"]["median"] > 0
    assert of["fastkan"]["error"] < 1e-5
    spoilt(monkeypatch, "F", lambda value, call: value * 1.01)
    assert rehearse(tmp_path, "--only", "speed", "--cases", "graphed") == 1
    assert "wrong" in results(tmp_path, "speed")["failures"][0]


@pytest.mark.parametrize("deviation", [Deviation(float("nan"), 0.0), Deviation(0.0, 5.0), Deviation(2.0, 0.0)])
def test_what_is_too_far_off(deviation: Deviation) -> None:
    assert deviation.exceeds(1.0)


def test_a_candidate_that_is_wrong_or_fails_is_not_timed() -> None:
    choice = tune.choices(rehearsal=True)[0]
    o, basis, _ = tune._operands(choice, PLACE)
    exact = exact_with_sizes("F", o, basis)
    right = exact[0].value.to(o.x.dtype)

    def failing() -> None:
        raise ValueError("too much shared memory")

    assert tune._why_not(choice, Task(lambda: (right,)), exact, PLACE) is None
    wrong = tune._why_not(choice, Task(lambda: (1.01 * right,)), exact, PLACE)
    assert wrong is not None
    assert wrong.startswith("wrong by 1.0e-02")
    assert "too much shared memory" in str(tune._why_not(choice, Task(failing), exact, PLACE))


# -- tests and sanitizer ----------------------------------------------------------------------------

TESTS = f"""
import os

def test_right():
    assert os.environ["{suite.DEVICE}"] == "cpu"

def test_wrong():
    for line in range(3):
        print("line", line)
    assert line == 7, "seven"
"""


@pytest.fixture
def small_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two tests, one of which fails."""
    (tmp_path / "test_small.py").write_text(TESTS)
    (tmp_path / "test_other.py").write_text("def test_that_reads_nothing():\n    assert False\n")
    monkeypatch.setattr(suite, "TESTS", tmp_path)
    return tmp_path


def test_the_suites_counts_and_failures_are_kept(small_suite: Path) -> None:
    found = record(small_suite)
    suite.run(found, PLACE, None, workers=0)
    (result,) = found.results
    assert result["files"] == ["test_small.py"]
    assert result["counts"] == {"passed": 1, "failed": 1}
    assert "1 failed, 1 passed in" in result["closing"]
    assert any("seven" in line for line in result["ends"]["test_wrong"])
    (failure,) = found.failures
    assert "1 failed" in failure


def test_a_suite_out_of_time_says_what_it_left_out(small_suite: Path) -> None:
    found = record(small_suite, seconds=suite.GRACE - 1)
    suite.run(found, PLACE, None, workers=0)
    assert found.left_out == ["2 tests"]
    assert found.failures == ["tests: none passed"]


def test_a_command_is_stopped_with_what_it_started() -> None:
    start = time.monotonic()
    code, output = child.run(["sh", "-c", "echo begun; sleep 60 & sleep 60"], 1.0)
    assert code is None
    assert output == "begun\n"
    assert time.monotonic() - start < 20


def test_the_sanitizer_says_that_it_needs_a_gpu(tmp_path: Path) -> None:
    assert rehearse(tmp_path, "--only", "sanitizer") == 0
    assert results(tmp_path, "sanitizer")["left_out"] == list(sanitizer.TOOLS)


CLEAN = {
    "memcheck": "========= COMPUTE-SANITIZER\ntouched 32 kernels, 0 wrong\n========= ERROR SUMMARY: 0 errors\n",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
}


@pytest.mark.parametrize("tool", CLEAN)
def test_what_the_sanitizer_says_is_read(tool: str) -> None:
    output = CLEAN[tool]
    assert sanitizer.verdict(tool, 0, output) is None
    assert sanitizer.verdict(tool, 0, output.replace("0 errors", "3 errors").replace("0 hazards", "3 hazards"))
    assert sanitizer.verdict(tool, 0, "nothing of the kind")
    assert sanitizer.verdict(tool, 1, output)
    assert sanitizer.verdict(tool, None, output)


def test_work_is_done_side_by_side_until_time_is_up(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "no/such/folder", "b")]
    assert warm.in_parallel(Path.touch, files, 2, seconds=60) == 3
    assert [file.exists() for file in files] == [True, False, True]
    assert warm.in_parallel(time.sleep, [60, 60], 2, seconds=1) == 0
