"""Runs as JSON, and two of them compared: what fails a CI, and what does not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from bench_cases import TINY
from rich.console import Console

from bench import __main__ as command
from bench.compare import FASTER, LESS, LOST, MORE, SLOWER, compare, tell
from bench.errors import Error
from bench.measure import Spread
from bench.record import Record, as_json, read
from bench.run import CaseResult, Row, Timing

ROOT = Path(__file__).resolve().parents[2]
MLP, OTHER = "MLP, as many parameters", "inkan"
ABOUT = {
    "machine": {"processor": "p", "cores": 2, "threads": 2, "system": "s"},
    "versions": {"torch": "2"},
    "commit": None,
}


def around(median: float, share: float = 0.02) -> Spread:
    return Spread(median, median * (1 - share), median * (1 + share), 9)


def run(ratio: float = 1.0, to_other: float = 0.4, peak: int = 1000, spread: float = 0.02) -> Record:
    """A run of one case, in which our step takes so many times the anchors' times."""
    timing = Timing(around(0.01 * ratio), {MLP: around(ratio, spread), OTHER: around(to_other, spread)}, peak)
    rows = [
        Row("fastkan", None, Error(1e-7, 1e-7, 1e-8), {"step": timing}, {"pinn": "wrong"}, {"pinn": Error(1, 0)}),
        Row(OTHER, "not installed"),
        Row(MLP, timings={"step": Timing(around(0.01), {MLP: around(1.0, 0.0)}, 3000)}),
    ]
    return Record([CaseResult(TINY, rows, 0.01, ("step", "pinn"))], ABOUT, {"budget": 1.0, "quick": False})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(as_json(run())))
    assert read(path) == run()


def test_runs_from_before_there_were_modes_are_read() -> None:
    found = read(ROOT / "bench" / "results" / "cpu.json")
    raw = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    assert len(found.results) == len(raw["results"])
    ours, theirs = found.results[0].rows[0], raw["results"][0]["rivals"][0]
    assert ours.timings["step"].seconds.median == theirs["step"]["seconds"]["median"]
    assert ours.timings["step"].peak_bytes == theirs["peak_bytes"]
    assert found.results[0].case.widths == tuple(raw["results"][0]["case"]["widths"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "its schema is None, expected 1"),
        ('{"schema": 7}', "its schema is 7, expected 1"),
        ('{"schema": 1, "machine": {}, "versions": {}, "commit": null, "settings": {}}', "KeyError: 'results'"),
        ('{"schema": 1, "machine": {}, "versions": {}, "commit": null, "settings": {}, "results": [3]}', "TypeError"),
    ],
)
@pytest.mark.parametrize("option", ["--compare", "--from"])
def test_another_file_is_refused(
    option: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as left:
        command.main([option, str(path)])
    assert left.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "other.json" in said


def test_the_same_run_fails_nothing() -> None:
    found = compare(run(), run())
    assert (found.compared, found.changes, found.missing, found.fails) == (1, [], [], False)


@pytest.mark.parametrize(
    ("new", "threshold", "expected"),
    [
        (run(1.2, 0.48), 1.15, [SLOWER]),
        (run(1.2, 0.48), 1.25, []),
        (run(1.2, 0.48, spread=0.3), 1.15, []),  # within the spread
        (run(1.2, 0.4), 1.15, []),  # the MLP became quicker, not we slower
        (run(0.8, 0.3), 1.15, [FASTER]),
        (run(peak=1200), 1.15, [MORE]),
        (run(peak=1200), 1.3, []),
        (run(peak=800), 1.15, [LESS]),
        (run(2.0, 0.8, 2000), 1.15, [SLOWER, MORE]),
    ],
)
def test_what_counts_as_a_change(new: Record, threshold: float, expected: list[str]) -> None:
    found = compare(run(), new, threshold)
    assert [change.verdict for change in found.changes] == expected
    assert found.fails == bool({SLOWER, MORE} & set(expected))


def test_a_lost_time_fails() -> None:
    new = copy.deepcopy(run())
    ours = new.results[0].rows[0]
    ours.timings.clear()
    ours.note = "wrong"
    (change,) = compare(run(), new).changes
    assert (change.verdict, change.new, change.is_bad) == (LOST, "wrong", True)


def test_what_is_not_measured_is_named_and_nothing_at_all_fails() -> None:
    old = run()
    other = CaseResult(TINY._replace(rows=7), *old.results[0][1:])
    both = old._replace(results=[*old.results, other])
    found = compare(both, run())
    assert found.missing == [other.case.name]
    assert not found.fails
    nothing = compare(old, old._replace(results=[other]))
    assert nothing.missing == [TINY.name]
    assert nothing.fails
    only_forward = old._replace(results=[old.results[0]._replace(modes=("forward",))])
    assert compare(old, only_forward).missing == [f"{TINY.name}, fwd+bwd, fastkan"]


def test_times_of_a_busy_machine_are_not_compared_but_memory_is() -> None:
    busy = run(2.0, 0.8, peak=2000)
    busy = busy._replace(results=[busy.results[0]._replace(others=0.5)])
    found = compare(run(), busy)
    assert [change.verdict for change in found.changes] == [MORE]
    assert found.disturbed == [TINY.name]
    only_time = busy._replace(results=[run(2.0, 0.8).results[0]._replace(others=0.5)])
    assert compare(run(), only_time).changes == []
    assert compare(run(), only_time).fails  # for nothing could be compared


def test_rivals_without_a_common_anchor_are_not_compared() -> None:
    new = copy.deepcopy(run())
    new.results[0].rows[0].timings["step"].ratios.clear()
    found = compare(run(), new)
    assert found.compared == 0
    assert "no anchor in common" in found.missing[0]


def test_it_tells_what_changed() -> None:
    old, new = run(), run(1.5, 0.6)._replace(about=ABOUT | {"machine": ABOUT["machine"] | {"threads": 1}})  # type: ignore[operator]
    console = Console(width=140, record=True, quiet=False)
    tell(compare(old, new), old, new, 1.15, console)
    said = console.export_text()
    for words in ("1 [0.98-1.02] /MLP", "1.5 [1.47-1.53] /MLP", "1.50", "slower", "1 things worse", "machines differ"):
        assert words in said


@pytest.mark.parametrize(("ratio", "code"), [(1.0, 0), (1.5, 1)])
def test_the_command_fails_on_a_regression(
    ratio: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for path, record in ((old, run()), (new, run(ratio, 0.4 * ratio))):
        found = record._replace(results=[record.results[0]._replace(modes=("step",))])
        path.write_text(json.dumps(as_json(found)))
    assert command.main(["--from", str(new), "--compare", str(old)]) == code
    assert ("slower" in capsys.readouterr().out) == bool(code)


def test_nothing_is_measured_beside_a_file() -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["--from", str(ROOT / "bench" / "results" / "cpu.json"), "--quick"])
    assert left.value.code == 2
