"""What comes out of ``python -m bench --gpu``: bars judged, runs joined and published, the README's block, pictures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("rich")

from gpu_runs import CLOCKS, COMMIT, GPU, as_of_a_gpu, bar, entry, rehearse, set_ratio, write

from bench import report
from bench.gpu import bars, block, contest, join, pictures, publish, sources
from bench.gpu.rows import ROWS, Row, measured

ROOT = Path(__file__).resolve().parents[2]
FORWARD = bars.BARS[0].row
CASES = (
    "ceilings",
    "graphed",
    "32 5-7 G5 highest fwd",
    "32 5-7 G5 tf32 fwd+bwd",
    "F_0 linear uniform G8 highest 33x1x1",
)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> join.Run:
    out = tmp_path_factory.mktemp("run")
    for stage in ("hazard", "speed"):
        assert rehearse(out, "--only", stage, "--cases", *CASES) == 0
    return join.read(out)


@pytest.fixture
def run(rehearsed: join.Run) -> join.Run:
    return as_of_a_gpu(rehearsed)


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these sources were the commit's."""
    monkeypatch.setattr(sources, "at", lambda commit: sources.here())
    monkeypatch.setattr(sources, "whole", lambda commit: commit)


def judged(run: join.Run, which: bars.Bar) -> bars.Judged:
    (found,) = bars.judged(run["speed"]["results"], [which])
    return found


# -- bars -------------------------------------------------------------------------------------------


def test_every_bar_can_be_measured() -> None:
    """Its row is among those that are measured, and its anchor takes part there."""
    items = {item.name: item for item in measured(rehearsal=False)}
    assert len(set(bars.BARS)) == len(bars.BARS) == 13
    for one in bars.BARS:
        item = items[one.row]
        if isinstance(item, Row):
            rivals = {contest.PLAIN, contest.COMPILED, contest.INKAN} if item.rivals else set()
            assert one.anchor in {contest.GEMM, contest.LINEAR, bars.HELD, *rivals}, one
        assert (one.aim > one.least) == (one.quantity == bars.SPEED), one


@pytest.mark.parametrize(
    ("anchor", "row", "ratio", "verdict"),
    [
        (contest.LINEAR, bars.FIRST, 0.99, bars.AIM), (contest.LINEAR, bars.FIRST, 1.29, bars.MET),
        (contest.LINEAR, bars.FIRST, 1.31, bars.MISSED), (contest.LINEAR, bars.FIRST, float("nan"), bars.MISSED),
        (contest.GEMM, FORWARD, 1 / 0.86, bars.AIM), (contest.GEMM, FORWARD, 1 / 0.61, bars.MET),
        (contest.GEMM, FORWARD, 1 / 0.59, bars.MISSED), (contest.PLAIN, bars.FIRST, 1 / 21, bars.AIM),
        (contest.PLAIN, bars.FIRST, 1 / 11, bars.MET), (contest.PLAIN, bars.FIRST, 1 / 9, bars.MISSED),
    ],
)  # fmt: skip
def test_a_bar_is_met_or_missed(run: join.Run, anchor: str, row: str, ratio: float, verdict: str) -> None:
    set_ratio(run, row, anchor, ratio)
    found = judged(run, bar(anchor, row))
    assert found.verdict == verdict
    assert found.value is not None
    assert found.value.median == pytest.approx(ratio if found.bar.quantity == bars.TIME else 1 / ratio, nan_ok=True)
    assert not found.value.low > found.value.high
    assert found.error is not None
    assert 0 < found.error < 1e-2


@pytest.mark.parametrize(("share", "verdict"), [(0.01, bars.AIM), (0.09, bars.MET), (0.11, bars.MISSED)])
def test_memory_is_judged_by_what_can_not_be_spared(run: join.Run, share: float, verdict: str) -> None:
    ours = entry(run, bars.FIRST)
    assert ours["held_bytes"] > 0
    ours["extra_bytes"] = share * ours["held_bytes"]
    assert judged(run, bar(bars.HELD)).verdict == verdict


def test_what_must_be_held_is_parameters_input_output_and_gradients(rehearsed: join.Run) -> None:
    (step,) = (r for r in rehearsed["speed"]["results"] if r.get("row", {}).get("mode") == "step")
    ours = next(c for c in step["contestants"] if c["name"] == contest.AUTO)
    rows, inputs, outputs, edges = 32, 5, 7, 5 * 7 * 9
    assert ours["held_bytes"] == 4 * (2 * rows * inputs + rows * outputs + 2 * edges)


def test_what_was_not_measured_is_not_met(run: join.Run) -> None:
    assert judged(run, bar(contest.COMPILED)).verdict == bars.UNMEASURED
    assert "rehearsal" in str(judged(run, bar(contest.COMPILED)).why)
    run["speed"]["results"] = []
    for found in bars.judged([]):
        assert (found.verdict, found.value) == (bars.UNMEASURED, None)


def test_who_is_wrong_has_missed(run: join.Run) -> None:
    ours = entry(run, bars.FIRST)
    del ours["cold"]
    ours["note"] = "wrong: dx by 1.0"
    found = judged(run, bar(contest.LINEAR))
    assert (found.verdict, found.value, found.why) == (bars.MISSED, None, "wrong: dx by 1.0")


def test_a_way_that_beats_the_choice_is_named(run: join.Run) -> None:
    set_ratio(run, bars.FIRST, contest.LINEAR, 1.2)
    (result,) = (r for r in run["speed"]["results"] if r["name"] == bars.FIRST)
    for way, ratio in (("fused", 1.1), ("chunked", 1.3)):
        cold = {"seconds": {}, "ratios": {contest.LINEAR: {"median": ratio, "low": ratio, "high": ratio, "rounds": 9}}}
        result["contestants"].append({"name": way, "ours": True, "note": None, "cold": cold})
    assert judged(run, bar(contest.LINEAR)).best == ("fused", pytest.approx(1.1))


def test_the_stage_says_the_bars_in_its_file(rehearsed: join.Run) -> None:
    assert [one["verdict"] for one in rehearsed["speed"]["bars"]] == [bars.UNMEASURED] * len(bars.BARS)


# -- publishing -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("committed")
def test_runs_become_one_file(run: join.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second has the rows that the first one left out."""
    first, second = as_of_a_gpu(run), {"speed": as_of_a_gpu(run)["speed"]}
    results = first["speed"]["results"]
    first["speed"] |= {"results": results[:4], "left_out": [r["name"] for r in results[4:]]}
    second["speed"] |= {"results": second["speed"]["results"][3:], "left_out": ["something else"]}
    set_ratio(second, results[3]["name"], contest.LINEAR, 77.0)  # the first run's counts
    folders = [str(write(part, tmp_path / name)) for name, part in (("1", first), ("2", second))]
    assert publish.main([*folders, "--folder", str(tmp_path)]) == 0
    assert "h100.json" in capsys.readouterr().out
    data = json.loads((tmp_path / "h100.json").read_text())
    found = data["stages"]["speed"]
    assert [r["name"] for r in found["results"]] == [r["name"] for r in results]
    assert entry({"speed": found}, results[3]["name"])["cold"]["ratios"][contest.LINEAR]["median"] != 77.0
    assert found["left_out"] == ["something else"]
    assert data["commit"] == COMMIT
    assert data["versions"] == run["speed"]["versions"]
    assert [set(each) for each in data["runs"]] == [{"hazard", "speed"}, {"speed"}]
    assert data["runs"][0]["speed"]["clocks_before"] == CLOCKS
    assert data["runs"][0]["speed"]["left_out"] == len(results) - 4
    (hazards,) = data["stages"]["hazard"]["results"]
    assert hazards["repeats"] == 2 * hazards["trials"]
    assert len(data["bars"]) == len(bars.BARS)


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rehearsal": True}, "rehearsal"), ({"gpu": GPU | {"name": "NVIDIA H200"}}, "GPU differs"),
        ({"gpu": GPU | {"driver": "1"}}, "driver differs"), ({"backend": "reference2"}, "backend differs"),
        ({"sources": "other"}, "sources differs"), ({"versions": {}}, "versions differs"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(run: join.Run, change: dict, words: str) -> None:
    other = as_of_a_gpu(run)
    other["hazard"] |= change
    with pytest.raises(ValueError, match=words):
        publish.joined([run, other])


@pytest.mark.usefixtures("committed")
def test_commits_that_differ_in_no_source_are_one(run: join.Run) -> None:
    other = as_of_a_gpu(run)
    for stage in other.values():
        stage["commit"] = "f" * 40 + "+"
    assert publish.joined([run, other])["commit"] == COMMIT


def test_other_sources_than_the_commits_are_refused(run: join.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "at", lambda commit: "another hash")
    with pytest.raises(ValueError, match="sources are not those of commit"):
        publish.joined([run])
    for stage in run.values():
        stage["commit"] = None
    with pytest.raises(ValueError, match="--commit"):
        publish.joined([run])


def test_sources_are_those_of_a_commit_until_one_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in sources.FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(f"# {folder}\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "a")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert sources.at("HEAD") == sources.here()
    assert len(sources.whole("HEAD")) == 40
    (tmp_path / "bench" / "notes.txt").write_text("no source")
    assert sources.at("HEAD") == sources.here()
    (tmp_path / "bench" / "b.py").write_text("")
    assert sources.at("HEAD") != sources.here()
    with pytest.raises(ValueError, match="no such commit"):
        sources.at("nothing")


@pytest.mark.parametrize(
    ("name", "file"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090")],
)
def test_a_gpus_file_has_its_name(name: str, file: str) -> None:
    assert publish.slug(name) == file


# -- the README -------------------------------------------------------------------------------------


@pytest.fixture
def results(run: join.Run, tmp_path: Path, committed: None) -> Path:
    """A folder with an H100's file."""
    set_ratio(run, bars.FIRST, contest.LINEAR, 1.234)
    folder = tmp_path / "results"
    folder.mkdir()
    assert publish.main([str(write(run, tmp_path / "run")), "--folder", str(folder)]) == 0
    return folder


def test_without_a_gpu_the_page_says_so() -> None:
    found = block.published(ROOT / "bench" / "results")
    assert (block.NOTHING in (ROOT / "bench" / "README.md").read_text(encoding="utf-8")) == (not found)
    assert (block.state(found) == block.STATE) == (not found)


def test_the_block_has_every_bar_and_only_pictures_that_are_there(results: Path) -> None:
    root = results.parent
    without = block.block(block.published(results), results, root)
    assert all(one.what in without for one in bars.BARS)
    assert "| 1.23 ± 0.01 of its time | 1.3 of its time | 1 of its time |" in without
    assert "2 repeats" in without
    assert "SM clock 1980 MHz before" in without
    assert f"commit {COMMIT[:10]}" in without
    assert "Not measured: against that layer under torch.compile (not compiled in a rehearsal)" in without
    assert ".png" not in without
    (results / "h100").mkdir()
    (results / "h100" / "time.png").touch()
    assert "(results/h100/time.png)" in block.block(block.published(results), results, root)


def test_a_page_is_written_and_drawn(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- bench: gpu -->\n<!-- /bench -->\nThe kernels: <!-- bench: gpu state --><!-- /bench -->")
    arguments = ["--pages", str(page), "--results", str(results)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0
    text = page.read_text()
    assert block.STATE not in text
    assert block.NOTHING not in text
    assert "they have been measured on NVIDIA H100 80GB HBM3 (" in text
    assert "(results/h100/roofline.png)" in text


def test_pictures_show_what_was_measured(results: Path, tmp_path: Path) -> None:
    data = block.published(results)["h100"]
    drawn = pictures.draw(data, tmp_path / "drawn")
    assert {path.name for path in drawn} == {"time.png", "memory.png", "roofline.png"}
    assert all(path.stat().st_size > 20_000 for path in drawn)
    (first,) = (r for r in data["stages"]["speed"]["results"] if r["name"] == FORWARD)
    ours, linear = sorted(pictures._points(first))[::-1]
    row = ROWS[0]
    numbers = row.rows * row.inputs + row.wide * row.outputs + row.rows * row.outputs
    assert ours[0] == pytest.approx(row.operations / (2 * numbers))
    assert ours[2:] == (contest.AUTO, "bfloat16")
    assert linear[0] < ours[0]
    del data["stages"]["speed"]
    assert pictures.draw(data, tmp_path / "none") == []
