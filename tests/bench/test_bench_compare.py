"""Two runs compared: which differences fail a CI, and which do not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from rich.console import Console

from bench import __main__ as command
from bench.compare import FASTER, LESS, LOST, MORE, SLOWER, compare, report_changes
from bench.records import RESULTS, Record, read, write
from bench.suite.cases import Case
from bench.suite.contenders import MLP, OURS

CASE = Case(40, (3, 4, 2))
ABOUT = {
    "machine": {"processor": "p", "cores": 2, "threads": 2, "system": "s"},
    "versions": {"torch": "2"},
    "commit": None,
}


def around(median: float, share: float = 0.02) -> list[float]:
    return [median, median * (1 - share), median * (1 + share), 9]


def run(ratio: float = 1.0, to_other: float = 0.4, peak: int = 1000, spread: float = 0.02) -> Record:
    """A run of one case, in which our step takes so many times the anchors' times."""
    sizes = {"case": CASE.name, "rows": 40, "widths": [3, 4, 2], "grid_size": 5, "order": 3, "mode": "step"}
    nothing = {"note": None, "error": None, "seconds": None, "ratios": {}, "peak_bytes": None, "load": None}
    ratios = {MLP: around(ratio, spread), "inkan": around(to_other, spread)}
    ours = {"seconds": around(0.01 * ratio), "ratios": ratios, "peak_bytes": peak, "load": 0.01, "error": [0, 0, 0]}
    results = [
        {**sizes, "contender": OURS, **nothing, **ours},
        {**sizes, "contender": "inkan", **nothing, "note": "not installed"},
        {**sizes, "contender": MLP, **nothing, "seconds": around(0.01), "ratios": {MLP: around(1.0, 0.0)}},
    ]
    return Record(results, ABOUT, {"budget": 1.0, "quick": False})


def changed(record: Record, **fields) -> Record:
    """The run with other fields in our result."""
    ours, *others = copy.deepcopy(record.results)
    return record._replace(results=[ours | fields, *others])


def test_a_written_record_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "run.json", run())
    assert read(tmp_path / "run.json") == run()


@pytest.mark.parametrize("name", ["cpu", "fit-curve", "second-order", "workflow", "workflow-speed"])
def test_the_committed_results_are_read(name: str) -> None:
    record = read(RESULTS / f"{name}.json")
    assert OURS in {result["contender"] for result in record.results}
    assert record.about["versions"]["fastkan"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "its schema is None, expected 2"),
        ('{"schema": 7}', "its schema is 7, expected 2"),
        ('{"schema": 2, "machine": {}, "versions": {}, "commit": null, "settings": {}}', "KeyError: 'results'"),
        ('{"schema": 2, "machine": {}, "versions": {}, "commit": null, "settings": {}, "results": [3]}', "TypeError"),
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


@pytest.mark.parametrize(
    ("new", "threshold", "expected"),
    [
        (run(), 1.15, []),
        (run(1.2, 0.48), 1.15, [SLOWER]),
        (run(1.2, 0.48), 1.25, []),
        (run(1.2, 0.48, spread=0.3), 1.15, []),  # within the spread
        (run(1.2, 0.4), 1.15, []),  # the MLP became faster, not fastkan slower
        (run(0.8, 0.3), 1.15, [FASTER]),
        (run(peak=1200), 1.15, [MORE]),
        (run(peak=1200), 1.3, []),
        (run(peak=800), 1.15, [LESS]),
        (run(2.0, 0.8, 2000), 1.15, [SLOWER, MORE]),
        (changed(run(), seconds=None, ratios={}, note="wrong"), 1.15, [LOST]),
    ],
)
def test_verdicts(new: Record, threshold: float, expected: list[str]) -> None:
    found = compare(run(), new, threshold)
    assert [change["verdict"] for change in found.changes] == expected
    assert found.fails == bool({SLOWER, MORE, LOST} & set(expected))
    assert (found.compared, found.missing) == (1, [])
    assert [change["now"] for change in found.changes if change["verdict"] == LOST] == ["wrong"] * (LOST in expected)


def test_missing_results_are_named_and_fail_only_if_nothing_is_left() -> None:
    other = changed(run(), case="other").results[:1]
    found = compare(run()._replace(results=[*run().results, *other]), run())
    assert (found.missing, found.fails) == (["other"], False)
    nothing = compare(run(), run()._replace(results=other))
    assert (nothing.missing, nothing.fails) == ([CASE.name], True)
    assert compare(run(), changed(run(), mode="forward")).missing == [f"{CASE.name}, fwd+bwd, {OURS}"]
    no_anchor = compare(run(), changed(run(), ratios={}))
    assert no_anchor.compared == 0
    assert "no anchor in common" in no_anchor.missing[0]


def test_times_of_a_busy_machine_are_not_compared_but_memory_is() -> None:
    found = compare(run(), changed(run(2.0, 0.8, peak=2000), load=0.5))
    assert [change["verdict"] for change in found.changes] == [MORE]
    assert found.disturbed == [CASE.name]
    only_time = compare(run(), changed(run(2.0, 0.8), load=0.5))
    assert only_time.changes == []
    assert only_time.fails  # since nothing could be compared


def test_changes_are_printed() -> None:
    old, new = run(), run(1.5, 0.6)._replace(about=ABOUT | {"machine": ABOUT["machine"] | {"threads": 1}})  # type: ignore[operator]
    console = Console(width=140, record=True, quiet=False)
    report_changes(compare(old, new), old, new, 1.15, console)
    said = console.export_text()
    for words in ("1 [0.98-1.02] /MLP", "1.5 [1.47-1.53] /MLP", "1.50", "slower", "1 things worse", "machines differ"):
        assert words in said


@pytest.mark.parametrize(("ratio", "code"), [(1.0, 0), (1.5, 1)])
def test_the_command_fails_on_a_regression(
    ratio: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write(old, run())
    write(new, run(ratio, 0.4 * ratio))
    assert command.main(["--from", str(new), "--compare", str(old)]) == code
    assert ("slower" in capsys.readouterr().out) == bool(code)
