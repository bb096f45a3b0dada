"""Rehearsal of ``python -m bench.gpu`` without a GPU: stages run, and a wrong kernel gets no time and meets no bar."""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("triton")

from bench import report as pages
from bench.gpu import __main__ as command
from bench.gpu import ahead, bars, report, speed
from bench.gpu.bars import BARS, FIRST, GEMM, LINEAR, MEASURED, Bar, Graphed, Row
from bench.gpu.clock import Clock
from bench.gpu.machine import Place
from fastkan_kernels.backends.registry import BACKENDS
from tests.support.stub_driver import run_compiling

ROOT = Path(__file__).resolve().parents[2]
PLACE = Place(torch.device("cpu"), "reference")
STEP = Row(32, 5, 7, 5, "highest")
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))


def measured(item: Row | Graphed) -> dict[str, Any]:
    """Measure a row on the CPU with the reference backend."""
    return speed.measured(item, PLACE, Clock(PLACE))["contestants"]


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Make the reference backend return wrong results of F, G or H."""
    contract = BACKENDS["reference"].contract
    right = contract[name]

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        return (change(result[0]), result[1]) if name == "G" else change(result)

    monkeypatch.setitem(contract, name, wrong)


# -- the command ------------------------------------------------------------------------------------


def run(out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATHS, **environment}
    arguments = [sys.executable, "-m", "bench.gpu", str(out), "--device", "cpu", *options]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_every_stage_runs_in_the_interpreter(tmp_path: Path) -> None:
    done = run(tmp_path, "--cases", "copy", "32 5-7 G5 float16", "32 5-7 G5 highest", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / report.FILE).read_text())
    assert found["about"]["rehearsal"]
    assert "backend: triton" in found["tune"][0]["choices"]
    assert "entries" in json.loads((tmp_path / command.TABLE).read_text())
    by_name = {result["name"]: result["contestants"] for result in found["speed"]}
    assert {"copy", "32 5-7 G5 float16 forward", "32 5-7 G5 highest step"} <= by_name.keys()
    apart = by_name["32 5-7 G5 highest contractions"]
    assert {f"F {name}" for name in ("gemm", "auto", "fused", "chunked", "gather")} <= apart.keys()
    assert all("note" not in entry for entry in apart.values())
    assert apart["H fused"]["ratios"]["gemm"][0] > 0
    assert "No kernels were compiled ahead" in done.stdout


def test_a_stage_that_is_stopped_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(item: Row | Graphed, *rest: Any) -> dict[str, Any]:
        if measured:
            raise SystemExit("as if the process were killed")
        measured.append(item.name)
        return {"name": item.name, "contestants": {}}

    monkeypatch.setattr(speed, "measured", measure)
    results = command.Results(tmp_path)
    results.data["speed"] = []
    results.save()
    with pytest.raises(SystemExit):
        command.run("speed", str(tmp_path), "cpu", 60.0)
    found = json.loads((tmp_path / report.FILE).read_text())
    assert [result["name"] for result in found["speed"]] == ["copy", *measured]


def test_a_stage_without_time_names_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.Results(tmp_path).save()
    command.run("speed", str(tmp_path), "cpu", -1.0)
    assert "[speed] no time for copy, 32 5-7 G5 float16 forward" in capsys.readouterr().out


def test_a_stage_that_fails_or_hangs_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(out=tmp_path, device="no such device", cases=None)
    assert command._apart(options, "speed", 60.0) == "its process ended with 1"
    monkeypatch.setattr(command, "GRACE", 0.0)
    assert command._apart(options, "speed", 0.1) == "stopped 0 s after its time"
    assert report.failures({"failures": ["speed: stopped"], "speed": []}) == ["speed: stopped"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_refuses_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (([], "there is no GPU here"), (["--total", "0"], "--total must be above 0")):
        with pytest.raises(SystemExit, match="2"):
            command.main([str(tmp_path / "out"), *options])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- what is wrong ----------------------------------------------------------------------------------


def test_a_wrong_gradient_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "H", lambda value: value * 1.01)
    found = measured(STEP)
    assert "wrong: H0 by 1.0e-02" in found[bars.AUTO]["note"]
    assert "seconds" not in found[bars.AUTO]
    assert found[LINEAR]["ratios"][GEMM][0] > 0
    apart = measured(STEP._replace(mode="contractions"))
    assert "wrong" in apart["H auto"]["note"]
    assert apart["F auto"]["error"] < 1e-5
    results = {"speed": [{"name": FIRST.name, "contestants": found}]}
    assert [failure.partition(":")[0] for failure in report.failures(results)] == [f"{FIRST.name}, auto"]


@pytest.mark.parametrize(
    "spoilt", [lambda value: value * torch.nan, lambda value: value + 1e-2 * (value == value.max())]
)
def test_one_wrong_number_is_enough(spoilt: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "F", spoilt)
    assert "wrong: F0" in measured(STEP._replace(mode="forward"))[bars.AUTO]["note"]


def test_a_small_network_trains_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Graphed(bars.GRAPHED.case._replace(rows=64))
    found = measured(item)
    assert found[bars.AUTO]["ratios"][bars.MLP][0] > 0
    assert found[bars.AUTO]["error"] < 1e-5
    spoil(monkeypatch, "F", lambda value: value * 1.01)
    assert "wrong: y" in measured(item)[bars.AUTO]["note"]


def test_what_must_be_held_is_parameters_input_output_and_gradients() -> None:
    ours = measured(STEP)[bars.AUTO]
    rows, inputs, outputs, edges = 32, 5, 7, 5 * 7 * 9
    assert ours["held_bytes"] == 4 * (2 * rows * inputs + rows * outputs + 2 * edges)
    assert ours["extra_bytes"] > 0


# -- bars -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsed() -> dict[str, dict[str, Any]]:
    """The results of tiny rows, which get the names of the rows that the bars need."""
    tiny = {mode: measured(STEP._replace(mode=mode)) for mode in ("forward", "step")}
    beside = measured(STEP._replace(rivals=True))
    graphed = measured(Graphed(bars.GRAPHED.case._replace(rows=64)))

    def of(item: Row | Graphed) -> dict[str, Any]:
        if isinstance(item, Graphed):
            return graphed
        return beside if item.rivals else tiny.get(item.mode, {})

    return {item.name: of(item) for item in MEASURED}


def judged(results: dict[str, dict[str, Any]], bar: Bar) -> bars.Judged:
    (found,) = bars.judged([{"name": name, "contestants": each} for name, each in results.items()], [bar])
    return found


def test_every_bar_can_be_measured() -> None:
    items = {item.name: item for item in MEASURED}
    assert len(items) == len(MEASURED)
    assert len(set(BARS)) == len(BARS) == 13
    for bar in BARS:
        item = items[bar.row]
        if isinstance(item, Row):
            assert bar.anchor in ({bars.PLAIN, bars.COMPILED, bars.INKAN} if item.rivals else {GEMM, LINEAR, bars.HELD})
        assert (bar.aim > bar.least) == (bar.quantity == bars.SPEED)


@pytest.mark.parametrize(
    ("bar", "ratio", "verdict"),
    [
        (BARS[1], 0.99, bars.AIM), (BARS[1], 1.29, bars.MET), (BARS[1], 1.31, bars.MISSED),
        (BARS[1], float("nan"), bars.MISSED), (BARS[0], 1 / 0.86, bars.AIM), (BARS[0], 1 / 0.61, bars.MET),
        (BARS[0], 1 / 0.59, bars.MISSED), (BARS[8], 1 / 21, bars.AIM), (BARS[8], 1 / 9, bars.MISSED),
    ],
)  # fmt: skip
def test_a_bar_is_met_or_missed(rehearsed: dict, bar: Bar, ratio: float, verdict: str) -> None:
    results = copy.deepcopy(rehearsed)
    results[bar.row][bars.AUTO]["ratios"][bar.anchor] = [ratio, ratio * 0.99, ratio * 1.01, 9]
    found = judged(results, bar)
    assert found.verdict == verdict
    assert found.value is not None
    assert found.value.median == pytest.approx(ratio if bar.quantity == bars.TIME else 1 / ratio, nan_ok=True)
    assert not found.value.low > found.value.high


@pytest.mark.parametrize(("share", "verdict"), [(0.01, bars.AIM), (0.09, bars.MET), (0.11, bars.MISSED)])
def test_memory_is_judged_by_what_can_not_be_spared(rehearsed: dict, share: float, verdict: str) -> None:
    results = copy.deepcopy(rehearsed)
    ours = results[FIRST.name][bars.AUTO]
    ours["extra_bytes"] = share * ours["held_bytes"]
    assert judged(results, BARS[11]).verdict == verdict


def test_what_was_not_measured_is_not_met(rehearsed: dict) -> None:
    assert judged(rehearsed, BARS[9]).verdict == bars.UNMEASURED
    assert "rehearsal" in str(judged(rehearsed, BARS[9]).why)
    assert {found.verdict for found in bars.judged([])} == {bars.UNMEASURED}
    results = copy.deepcopy(rehearsed)
    results[FIRST.name][bars.AUTO] = {"note": "wrong: H0 by 1.0", "error": 1.0}
    found = judged(results, BARS[1])
    assert (found.verdict, found.value, found.why) == (bars.MISSED, None, "wrong: H0 by 1.0")


# -- publishing -------------------------------------------------------------------------------------

GPU = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "driver_version": "580.1"}
ABOUT = {
    "machine": {"processor": "a processor", "threads": 2, "system": "Linux"}, "versions": {"torch": "2.11"},
    "commit": "0123456789" * 4, "rehearsal": False, "gpu": GPU,
}  # fmt: skip


@pytest.fixture
def results(rehearsed: dict) -> dict[str, Any]:
    speeds = [{"name": name, "contestants": copy.deepcopy(each)} for name, each in rehearsed.items()]
    for entry in speeds:
        if entry["name"] == FIRST.name:
            entry["contestants"][bars.AUTO]["ratios"][LINEAR] = [1.234, 1.224, 1.244, 9]
    return {"about": ABOUT, "failures": [], "speed": speeds}


def test_a_run_becomes_a_file_and_the_pages_tables(results: dict, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / report.FILE).write_text(json.dumps(results))
    assert report.main([str(tmp_path / "out"), "--folder", str(tmp_path)]) == 0
    page = tmp_path / "README.md"
    page.write_text("<!-- bench: gpu -->\n<!-- /bench -->\nThe kernels: <!-- bench: gpu state --><!-- /bench -->")
    arguments = ["--pages", str(page), "--results", str(tmp_path)]
    assert pages.main([*arguments, "--check"]) == 1
    assert pages.main(arguments) == 0
    assert pages.main([*arguments, "--check"]) == 0
    text = page.read_text()
    assert all(bar.name in text for bar in BARS)
    assert "1.23 ± 0.01" in text
    assert "they have been measured on NVIDIA H100 80GB HBM3 (" in text
    assert report.NOTHING not in text
    heading = next(line for line in text.splitlines() if line.startswith("| bar"))
    assert [cell.strip() for cell in heading.split("|")][2:6] == ["least", "aim", "predicted", "measured"]


def test_predictions_stand_beside_measurements(results: dict) -> None:
    frame = report.bars_table(results["speed"], {BARS[1].name: 1.17})
    assert list(frame.columns)[:4] == ["least", "aim", "predicted", "measured"]
    assert frame.loc[BARS[1].name, ["predicted", "measured"]].tolist() == ["1.17", "1.23 ± 0.01"]
    assert frame.loc[BARS[2].name, "predicted"] == "-"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rehearsal": True}, "rehearsal"), ({"commit": None}, "must be of a commit"), ({"commit": "a+"}, "of a commit")],
)
def test_what_can_not_be_published_is_refused(results: dict, change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        report.publish({**results, "about": {**ABOUT, **change}}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090")],
)
def test_a_gpus_file_has_its_name(name: str, file: str) -> None:
    assert report.slug(name) == file


def test_without_a_gpu_the_page_says_so() -> None:
    found = report.published(ROOT / "bench" / "results")
    assert (report.NOTHING in (ROOT / "bench" / "README.md").read_text(encoding="utf-8")) == (not found)
    assert (report.state(found) == report.STATE) == (not found)


# -- kernels that are compiled ahead ----------------------------------------------------------------

LAUNCHES = """
import sys
import torch
import fastkan_kernels
from bench.gpu.bars import LAYERS
from bench.gpu.machine import Place
from bench.gpu.speed import Material, setting
from fastkan_kernels.backends.triton import builds, hardware
from fastkan_kernels.backends.triton.launch import Launch
from stub_driver import StubDriver
from triton.runtime.driver import driver

kernels = []

def compile_only(launch):
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "grid": launch.grid}
    kernels.append(launch.kernel.warmup(**launch.arguments, **launch.constants, **options))

Launch.run = compile_only
driver.set_active(StubDriver(90))
hardware.INTERPRETED = True  # so that the backend takes tensors on the CPU
material = Material(LAYERS[-1], Place(torch.device("cpu")))
with fastkan_kernels.backend("triton"):
    for name in "FGH":
        for config in builds.configs_of(setting(material.row, name), 90, every=True):
            with builds.override(name, config):
                material.contraction(name)
print(len(kernels))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux to compile kernels")
def test_kernels_that_are_compiled_ahead_are_those_that_are_launched(tmp_path: Path) -> None:
    """The cache is moved to another folder after the compilation, as if sent to another machine."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = PATHS
    made, moved = tmp_path / "made", tmp_path / "moved"
    command = [sys.executable, "-m", "bench.gpu.ahead", str(made), "--sample", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ahead.sample())} builds, 0 failed" in done.stdout
    made.rename(moved)
    before = set(moved.rglob("*.cubin"))
    assert "for this Triton" in ahead.applies(str(moved))
    assert int(run_compiling(LAUNCHES, cache=moved)) >= len(before) > 5
    assert not list(moved.rglob("*.source")), "kernels were compiled again"


def test_a_cache_of_another_triton_is_named(tmp_path: Path) -> None:
    assert "No kernels were compiled ahead" in ahead.applies(None)
    (tmp_path / ahead.KEY).write_text(ahead.triton_key() + "\n")
    assert "compiled ahead for this Triton" in ahead.applies(str(tmp_path))
    (tmp_path / ahead.KEY).write_text("another\n")
    assert "another Triton" in ahead.applies(str(tmp_path))
