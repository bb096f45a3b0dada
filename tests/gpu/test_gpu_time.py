"""``python -m bench --gpu`` within a time: shares, what is left out, runs that go on, builds that are known ahead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("triton")

import oracle
from gpu_runs import rehearse

from bench.gpu import deadline, hazard, join, needed, parts, stages, suite, trials, variants, warm
from bench.gpu.place import Place
from bench.gpu.record import Record
from bench.gpu.rows import MANY, ROWS, Row

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
EXACT = [f"{name} linear uniform G8 highest 33x1x1" for name in ("F_0", "G_0", "H_1")]


def results(out: Path, stage: str) -> dict:
    return json.loads((out / f"{stage}.json").read_text())


def names(out: Path, stage: str) -> list[str]:
    return [result["name"] for result in results(out, stage)["results"]]


# -- shares -----------------------------------------------------------------------------------------


def test_the_time_is_shared_and_what_is_left_goes_on() -> None:
    assert list(stages.SHARES) == list(stages.STAGES)
    assert sum(stages.SHARES.values()) == pytest.approx(1)
    assert stages.share("tests", list(stages.STAGES), 100.0) == pytest.approx(100 * stages.SHARES["tests"])
    assert stages.share("sanitizer", list(stages.STAGES), 33.0) == pytest.approx(33.0)
    spent = 0.0
    for name in stages.STAGES:
        spent += stages.share(name, list(stages.STAGES), 100.0 - spent)
    assert spent == pytest.approx(100)


class Slow:
    """A thing to do."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_what_is_not_done_is_left_out_by_name_at_any_moment(tmp_path: Path) -> None:
    found = Record(tmp_path / "a.json", "a", {}, {}, 60.0, lambda line: None, before=["c"])
    assert [item.name for item in found.wanted(map(Slow, "abcd"))] == ["a", "b", "d"]
    assert results(tmp_path, "a")["left_out"] == ["a", "b", "d"]
    found.add({"name": "b"}, "b")
    found.leave_out("d", "no such way")
    found.save()
    assert results(tmp_path, "a")["left_out"] == ["d: no such way", "a"]


def hanging(record: Record, *arguments) -> None:
    record.wanted(map(Slow, "ab"))
    record.add({"name": "a"}, "a")
    time.sleep(600)


def test_a_stage_that_hangs_is_stopped_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "REHEARSED_WORDS", 0.5)
    monkeypatch.setitem(stages.STAGES, "tune", hanging)
    monkeypatch.setattr(warm, "context", lambda: __import__("multiprocessing").get_context("fork"))
    start = time.monotonic()
    options = stages.Options(tmp_path, Place(CPU, "reference"), None, 0, {})
    assert stages.run_apart("tune", options, 8.0) == 1
    assert time.monotonic() - start < 60
    (failure,) = results(tmp_path, "tune")["failures"]
    assert "after a: something hangs" in failure
    assert results(tmp_path, "tune")["left_out"] == ["b"]


HOLDING = """
import sys
from pathlib import Path
from bench.gpu import warm
from gpu_runs import hold
if __name__ == "__main__":
    warm.in_parallel(hold, [Path(sys.argv[1])], 1, 600)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script, path = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(HOLDING)
    folders = (ROOT, ROOT / "kernels", ROOT / "tests" / "support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    process = subprocess.Popen([sys.executable, str(script), str(path)], env=environment, cwd=tmp_path)
    try:
        worker = int(_when(lambda: path.exists() and path.read_text()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        _when(lambda: not Path(f"/proc/{worker}").exists() or "Z" in _state(worker))
    finally:
        process.kill()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def _when(true, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("not in time")


# -- runs that go on --------------------------------------------------------------------------------


def test_a_second_run_does_what_the_first_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    assert rehearse(first, "--only", "hazard", "--cases", EXACT[0]) == 0
    assert rehearse(second, "--only", "hazard", "--cases", *EXACT, "--resume", str(first)) == 0
    assert not set(names(first, "hazard")) & set(names(second, "hazard"))
    joined = join.joined([join.read(first), join.read(second)])["hazard"]
    assert [r["name"].split(" auto")[0] for r in joined["results"]] == EXACT
    assert joined["left_out"] == []
    capsys.readouterr()
    assert rehearse(third, "--only", "hazard", "--cases", *EXACT, "--resume", str(first), str(second)) == 0
    assert names(third, "hazard") == []
    said = capsys.readouterr().out
    assert "nothing is left to do" in said
    assert "hazard: ok, 3 results" in said  # of all runs


def test_a_run_goes_on_only_from_its_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "1"
    assert rehearse(first, "--only", "hazard", "--cases", EXACT[0]) == 0
    with pytest.raises(SystemExit):
        rehearse(first, "--only", "hazard", "--resume", str(first))
    assert "not that of this one" in capsys.readouterr().err
    assert names(first, "hazard")
    data = results(first, "hazard")
    (first / "hazard.json").write_text(json.dumps({**data, "sources": "other"}))
    with pytest.raises(SystemExit):
        rehearse(tmp_path / "2", "--only", "hazard", "--resume", str(first))
    assert "sources differs" in capsys.readouterr().err


TESTS = """
import os
from pathlib import Path
import pytest

device = os.environ["DEVICE"]

@pytest.mark.parametrize("number", range(3))
def test_late(number):
    order(f"late {number}")

def test_nan():
    order("nan")

def test_wrong():
    order("wrong")
    assert (Path(__file__).parent / "mended").exists()

def order(name):
    with open(Path(__file__).parent / "order", "a") as file:
        file.write(name + "\\n")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_that_passed_are_not_run_again(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what tells most comes first."""
    (tmp_path / "test_small.py").write_text(TESTS.replace("DEVICE", suite.DEVICE))
    monkeypatch.setattr(suite, "TESTS", tmp_path)
    order = tmp_path / "order"

    def run(before: list[str]) -> Record:
        order.unlink(missing_ok=True)
        found = Record(tmp_path / "tests.json", "tests", {}, {}, 120.0, lambda line: None, before)
        suite.run(found, Place(CPU, "reference"), None, workers)
        return found

    first = run([])
    assert len(first.failures) == 1
    done = join.done({"tests": first.as_json()})["tests"]
    assert len(done) == 4
    if not workers:
        assert order.read_text().splitlines() == ["nan", "late 0", "late 1", "late 2", "wrong"]
    (tmp_path / "mended").touch()
    second = run(done)
    assert order.read_text().splitlines() == ["wrong"]
    assert second.failures == []
    third = run([*done, *join.done({"tests": second.as_json()})["tests"]])
    assert not order.exists()
    assert third.failures == []


def test_the_first_tests_are_there() -> None:
    """Each part names one: or the order would mean nothing."""
    text = "".join(path.read_text() for path in suite.test_files()) + "".join(p.name for p in suite.test_files())
    assert [part for part in deadline.FIRST if part not in text] == []


# -- builds -----------------------------------------------------------------------------------------

TRIALS = [
    trials.Trial("random", "F", 0, trials.TINY, "float16", "uniform", "fused", 8, True),
    trials.Trial("random", "G", 0, trials.TINY, "highest", "adapted", "fused", 8, True),
    trials.Trial("random", "H", 1, trials.TINY, "tf32", "uniform", "chunked", 8),
    trials.Trial("linear", "F", 0, trials.TINY, "highest", "uniform", "gather", 8, True),
]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_the_builds_of_a_trial_are_those_that_it_launches(trial: trials.Trial) -> None:
    from fastkan_kernels.backends.triton.launch import Launch

    with needed.launches(Launch.run) as launched:
        assert hazard.attempt(trial, Place(CPU), 1)["failure"] is None
    with needed.launches() as counted:
        needed.touch_one(trial)
    assert counted
    assert counted.keys() == launched.keys()


def test_the_builds_of_a_row_are_told_apart_as_the_compiler_does() -> None:
    def of(row: Row) -> set[tuple]:
        with needed.launches() as found:
            needed.touch_one(row)
        return set(found)

    forward = of(Row(*MANY, "bfloat16", "forward"))
    assert forward < of(Row(*MANY, "bfloat16", "step"))  # by each way that F has
    assert not forward & of(Row(*MANY, "tf32", "forward"))
    assert forward & of(Row(MANY[0] * 2, *MANY[1:], "bfloat16", "forward"))  # as many bits, divisible alike


def test_the_plan_counts_and_needs_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", str(tmp_path / "out"), "--plan", "--cases", "65536 64-64", "--workers", "14"]
    from bench import __main__ as command

    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    items, builds = needed.of_stage("speed", ["65536 64-64"])
    assert len(items) == sum("65536 64-64" in row.name for row in ROWS)
    assert rows["speed"][1:3] == [str(len(items)), str(len(builds))]
    assert int(rows["tune"][2]) > 0
    assert not (tmp_path / "out").exists()


def test_builds_are_made_ahead(tmp_path: Path) -> None:
    """And found again by another process: nothing is compiled twice."""
    cases = ["65536 64-64 G5 tf32"]
    _, wanted = needed.of_stage("speed", cases)
    command = [sys.executable, "-m", "bench.gpu.ahead", str(tmp_path), "--only", "speed", "--jobs", "1", "--cases"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    for _ in range(2):
        done = subprocess.run(
            [*command, *cases], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(wanted)} builds, 0 failed" in done.stdout
        made = sorted(path.parent.name for path in tmp_path.rglob("*.cubin"))
        assert len(made) == len(wanted)


# -- parts ------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Of each launch, by the stage that its kernel lacks."""
    from fastkan_kernels.backends.triton.launch import Launch

    found: dict[str, torch.Tensor] = {}
    run = Launch.run

    def kept(launch: Launch) -> None:
        run(launch)
        module = launch.kernel.fn.__module__
        out = next(launch.arguments[name] for name in ("y_ptr", "out_ptr", "h_ptr") if name in launch.arguments)
        found[module.rsplit("without_", 1)[1] if "without_" in module else parts.WHOLE] = out.clone()

    monkeypatch.setattr(Launch, "run", kept)
    return found


@pytest.mark.parametrize("contraction", "FGH")
def test_a_variant_lacks_its_stage_and_no_other(contraction: str, outputs: dict[str, torch.Tensor]) -> None:
    """Without loads it gives what the contraction does of constants; without the others, something else."""
    (part,) = (p for p in parts.subjects(True) if (p.contraction, p.way) == (contraction, "fused"))
    place = Place(CPU)
    parts.launches(part, place)
    assert set(outputs) == {parts.WHOLE, *variants.STAGES[variants.FUSED]}
    whole = outputs.pop(parts.WHOLE)
    for stage, out in outputs.items():
        assert out.shape == whole.shape
        assert not torch.allclose(out, whole, rtol=1e-2, atol=1e-2), stage
    o, basis = parts.operands_of(part, place)
    half = o._replace(**{name: torch.full_like(getattr(o, name), 0.5) for name in ("weight", "base_weight", "g")})
    expected = oracle.exact_with_sizes(contraction, half, basis, part.derivative)[0].value
    got = outputs["loads"].double().view_as(expected)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_a_stage_that_is_not_there_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "SPLINE", "another_name")
    with pytest.raises(ValueError, match="contract_out has no features to leave out"):
        variants.source("fused", "F", "features")
