"""The benchmark itself: that it times in turn, checks before it times, and writes what it measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_cases import TINY
from torch import nn

from bench import __main__ as command
from bench import cases, measure, readme, report
from bench.cases import CASES, Case
from bench.demo import __main__ as demo
from bench.demo import classifier
from bench.errors import BOUND, Error, Oracle
from bench.measure import Task, interleaved, ratio, spread, times
from bench.memory import peak_bytes
from bench.modes import DEFAULT
from bench.plain import KANLinear as PlainKANLinear
from bench.rivals import RIVALS, Rival
from bench.run import run_case
from fastkan import KANLinear, convert

ROOT = Path(__file__).resolve().parents[2]

EAGER = [rival for rival in RIVALS if not rival.compiled and rival.why_not(TINY) is None]

# -- the baseline and the rivals --------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 3, 5])
def test_the_plain_layer_is_the_same_function(order: int) -> None:
    plain = PlainKANLinear(3, 4, 6, order, (-2, 1), dtype=torch.float64)
    ours = convert(plain)
    assert type(ours) is KANLinear
    x = 3 * torch.rand(50, 3, dtype=torch.float64) - 2
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rival", EAGER, ids=lambda rival: rival.name)
def test_every_rival_computes_the_same_function(rival: Rival) -> None:
    network = rival.make(TINY)
    assert network(TINY.inputs()).shape == (40, 2)
    if rival.is_kan:
        assert not Oracle(TINY).error(network).too_large


def test_the_mlp_has_as_many_parameters() -> None:
    """As a KAN I-H-O: I H (G+k+1) + H O (G+k+1)."""
    (mlp,) = (rival for rival in RIVALS if rival.name == readme.ANCHOR)
    count = sum(p.numel() for p in mlp.make(TINY).parameters())
    assert count == sum(p.numel() for i, o in TINY.layers for p in KANLinear(i, o).parameters())


# -- timing -----------------------------------------------------------------------------------------


def test_tasks_take_turns_and_each_round_starts_with_another() -> None:
    order: list[str] = []

    def task(name: str) -> Task:
        return Task(lambda: (order.append(name), time.sleep(2 * measure.SAMPLE_SECONDS))[0])

    samples, _ = interleaved({name: task(name) for name in "abc"}, budget=0.5, anchors=["a"])
    rounds = len(samples["a"])
    taken = order[9:]  # after three calls of each, to see how long they take
    assert rounds >= measure.MIN_ROUNDS
    rounds_taken = [taken[6 * n : 6 * n + 6] for n in range(3)]  # each is called once before it is timed
    assert rounds_taken == [list("aabbcc"), list("bbccaa"), list("ccaabb")]
    assert all(len(s) == rounds for s in samples.values())


def test_a_ratio_is_taken_within_each_round() -> None:
    """Twice as slow in each round, though the weather changes: the ratio of the medians is not 2."""
    anchor: measure.Samples = [1.0, 1.0, 5.0, None]
    other: measure.Samples = [2.0, None, 10.0, 3.0]
    found = ratio(other, anchor)
    assert found is not None
    assert found == spread([2.0, 2.0])
    assert times(other).median / times(anchor).median == 3.0
    assert ratio([None, 1.0], [1.0, None]) is None


def test_peak_memory_is_that_of_the_call() -> None:
    def call() -> torch.Tensor:
        torch.empty(1_000_000)
        return torch.empty(250_000)

    assert 4_000_000 <= peak_bytes(call) < 4_100_000


def test_peak_memory_counts_numpys_arrays_too() -> None:
    assert 8_000_000 <= peak_bytes(lambda: np.empty(1_000_000)) < 8_100_000


# -- a case -----------------------------------------------------------------------------------------


def wrong(case: Case, edges: list[cases.Edges]) -> nn.Module:
    network = EAGER[0].build(case, edges)
    next(network.parameters()).mul_(1 + 100 * BOUND)
    return network


def failing(case: Case, edges: list[cases.Edges]) -> nn.Module:
    raise RuntimeError("no such thing\nand more")


def test_a_rival_that_is_wrong_or_fails_has_no_time() -> None:
    rivals = [*EAGER[:2], Rival("wrong", wrong), Rival("failing", failing), Rival("absent", wrong, needs="no_such_pkg")]
    result = run_case(TINY, rivals, budget=0.05)
    rows = {row.rival: row for row in result.rows}
    assert list(rows) == [rival.name for rival in rivals]
    for rival in EAGER[:2]:
        assert set(rows[rival.name].timings) == set(DEFAULT)
        assert rows[rival.name].note is None
    assert rows["wrong"].note == "wrong"
    assert rows["wrong"].error is not None
    assert rows["wrong"].error.too_large
    assert rows["failing"].note == "failed: RuntimeError: no such thing"
    assert rows["absent"].note == "not installed"
    assert not any(rows[name].timings for name in ("wrong", "failing", "absent"))
    (view,) = report.views(result)
    assert "wrong: wrong; failing: failed: RuntimeError: no such thing" in view.notes()
    assert "Not installed: absent." in report.legend([result])


@pytest.mark.parametrize("error", [Error(float("nan"), 0.0), Error(0.0, 2 * BOUND), Error(float("inf"), 0.0)])
def test_what_is_too_large_an_error(error: Error) -> None:
    assert error.too_large


# -- the command ------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """What ``python -m bench`` writes, of a tiny case and without other packages."""
    monkeypatch.setattr(cases, "CASES", (TINY,))
    arguments = ["--quick", "--cases", "40x3", "--rivals", "fastkan", "plain", "--budget", "0.05"]
    written = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    threads = torch.get_num_threads()
    try:
        assert command.main([*arguments, "--threads", "1", *written]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "fastkan" in capsys.readouterr().out
    return tmp_path


def test_it_writes_json_and_tables(measured: Path) -> None:
    results = json.loads((measured / "out.json").read_text())
    (case,) = results["results"]
    rows = {row["rival"]: row for row in case["rivals"]}
    ours, anchor = rows["fastkan"], rows[readme.ANCHOR]
    assert case["case"]["name"] == "40x3-4-2-G5"
    assert anchor["step"]["ratios"][readme.ANCHOR]["median"] == 1
    assert ours["step"]["seconds"]["median"] > ours["forward"]["seconds"]["low"] > 0
    assert 0 < ours["error"]["output"] < BOUND
    assert ours["peak_bytes"] > 0
    assert results["versions"]["torch"] == torch.__version__
    lines = (measured / "out.md").read_text().splitlines()
    assert any(line.startswith("| fastkan |") for line in lines)
    made = readme.tables(results)
    assert f"{ours['step']['ratios'][readme.ANCHOR]['median']:.2f}" in made


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cases", "nothing"],
        ["--rivals", "nothing"],
        ["--threads", "0"],
        ["--budget", "soon"],
        ["--budget", "nan"],
        ["--budget", "0"],
        ["--json", "no_such_folder/out.json"],
        ["--plots", "no_such_folder/plots"],
        ["--modes", "backward"],
        ["--sweep", "depth"],
        ["--threshold", "0.9"],
        ["--add", "no_such_module"],
        ["--from", "no_such_file.json"],
        ["--compare", "no_such_file.json"],
    ],
)
def test_it_refuses_what_it_does_not_understand(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert arguments[1].split("/")[0] in capsys.readouterr().err or arguments[0] == "--threads"


def test_the_readmes_figures_are_those_that_were_measured() -> None:
    assert readme.main(["--check"]) == 0, "run python -m bench.readme"
    with pytest.raises(ValueError, match="has no"):
        readme.inserted("no marks", "")


def test_the_readme_is_rewritten_between_its_marks(tmp_path: Path) -> None:
    copied = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copied)
    text = copied.read_text()
    copied.write_text(readme.inserted(text, "stale\n"))
    assert readme.main(["--readme", str(copied), "--check"]) == 1
    assert readme.main(["--readme", str(copied)]) == 0
    assert copied.read_text() == text


def test_every_case_has_a_name_of_its_own_and_is_found_by_it() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert case in cases.chosen([case.name], quick=True)


# -- the demo ---------------------------------------------------------------------------------------


def test_the_demo_learns_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifier, "EPOCHS", 2)
    monkeypatch.setattr(classifier, "BUDGET", 0.2)
    assert demo.main(["--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for words in ("1347 images to learn from", "test accuracy", "training step", "peak memory", "digits.png"):
        assert words in out
    assert (tmp_path / "digits.png").stat().st_size > 20_000


FAULTS = """
import resource, torch
from bench.memory import settle_allocator
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(6_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if SETTLE: print(settle_allocator())
faults()
print(faults())
"""


def test_a_settled_allocator_reuses_what_was_freed() -> None:
    def run(settle: bool) -> list[str]:
        code = FAULTS.replace("SETTLE", str(settle))
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # as if nothing had been freed yet
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()

    worked, settled = run(settle=True)
    if worked != "True":
        pytest.skip("no glibc")
    (fresh,) = run(settle=False)
    assert int(fresh) > 100  # in pages of 4 KiB they are 5860, in huge ones fewer
    assert int(settled) < 20


class _Once(torch.autograd.Function):
    """A graph that may be gone back through once, as a compiled network's."""

    @staticmethod
    def forward(ctx, y):
        ctx.gone = False
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        assert not ctx.gone
        ctx.gone = True
        return g


def test_errors_of_a_network_whose_graph_can_be_gone_back_through_once() -> None:
    (make,) = (rival.make for rival in RIVALS if rival.name == "fastkan")

    class Network(torch.nn.Module):
        def __init__(self, *edges) -> None:
            super().__init__()
            self.inner = make(TINY, *edges)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _Once.apply(self.inner(x))

    assert not Oracle(TINY).error(Network(), lambda edges: Network(edges)).too_large
