"""``python -m bench`` as somebody uses it on a layer of their own: ``--add``, ``--sweep``, ``--plots``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from bench_cases import TINY
from matplotlib import image

from bench import __main__ as command
from bench import cases, plots, record
from bench.rivals import RIVALS, load
from bench.run import CaseResult, Row

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = '''
"""A package such as somebody might have: coefficients by input and output."""
import torch
from torch import nn

from bench.plain import KANLinear as PlainKANLinear


class Layer(nn.Module):
    def __init__(self, inputs, outputs, grid_size, spline_order):
        super().__init__()
        self.inner = [PlainKANLinear(inputs, outputs, grid_size, spline_order)]
        self.coefficients = nn.Parameter(torch.zeros(inputs, outputs, grid_size + spline_order))
        self.base = nn.Parameter(torch.zeros(inputs, outputs))

    def forward(self, x):
        y = torch.einsum("nib,iob->no", self.inner[0].splines(x), self.coefficients)
        return y + nn.functional.silu(x) @ self.base


class MyKAN(nn.Module):
    def __init__(self, widths, grid_size, spline_order):
        super().__init__()
        self.layers = nn.Sequential(*(Layer(i, o, grid_size, spline_order) for i, o in zip(widths, widths[1:])))

    def forward(self, x):
        return self.layers(x)
'''


@pytest.fixture(autouse=True)
def _as_it_was():
    """Rivals and threads are the process's own."""
    rivals, threads = list(RIVALS), torch.get_num_threads()
    yield
    RIVALS[:] = rivals
    torch.set_num_threads(threads)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's example in a file, and the package that it speaks of."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```py\n# my_layer\.py\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) <= 12
    (tmp_path / "my_layer.py").write_text(example)
    (tmp_path / "my_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "my_layer.py"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_layer_of_ones_own_takes_part(
    mine: Path, by_name: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "CASES", (TINY,))
    out = mine.parent / "out.json"
    options = ["--rivals", "my layer", "--modes", "step", "pinn", "--budget", "0.02", "--threads", "1"]
    assert command.main(["--quick", "--add", "my_layer" if by_name else str(mine), *options, "--json", str(out)]) == 0
    (case,) = record.read(out).results
    row = next(row for row in case.rows if row.rival == "my layer")
    assert set(row.timings) == {"step", "pinn"}
    assert row.error is not None
    assert not row.error.too_large
    assert "my layer" in capsys.readouterr().out


def test_the_package_says_the_same_as_the_readme(mine: Path) -> None:
    from bench import rivals

    assert mine.read_text().strip() in (rivals.__doc__ or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it enters no rival"),
        ("1 / 0", "ZeroDivisionError"),
        ("from bench.rivals import rival\nrival('fastkan')(lambda case, edges: None)", "'fastkan' already"),
    ],
)
def test_a_file_that_enters_nothing_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(text)
    before = list(RIVALS)
    with pytest.raises(ValueError, match=words):
        load(str(path))
    assert before == RIVALS


def test_sweeps_and_cases_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [TINY._replace(rows=rows) for rows in (20, 40, 80)]
    for module in (cases, plots):
        monkeypatch.setattr(module, "SWEEPS", {"rows": tuple(small)})
    out, folder = tmp_path / "out.json", tmp_path / "plots"
    options = ["--sweep", "rows", "--rivals", "plain", "--threads", "1", "--budget", "0.02"]
    options = [*options, "--modes", "step", "pinn", "--json", str(out), "--plots", str(folder)]

    assert command.main(options) == 0
    assert [result["case"]["rows"] for result in json.loads(out.read_text())["results"]] == [20, 40, 80]
    assert {path.name for path in folder.iterdir()} == {"sweep-rows.png"}
    assert "sweep-rows.png" in capsys.readouterr().out

    monkeypatch.setattr(plots, "SWEEPS", {})  # then they are cases like others
    drawn = plots.draw(record.read(out), folder)
    assert {path.name for path in drawn} == {"step.png", "memory-step.png", "pinn.png", "memory-pinn.png"}
    for path in drawn:
        pixels = image.imread(path)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 600
        assert len({tuple(pixel) for row in pixels[::7, ::7] for pixel in row}) > 5


def test_bars_show_the_measured_ratios() -> None:
    """The picture of the README's figures has them as bar ends."""
    found = record.read(ROOT / "bench" / "results" / "cpu.json")
    figure = dict(plots._figures(found))["step"]
    for axes, result in zip(figure.axes, found.results):
        ratios = [row.timings["step"].ratios[plots.ANCHOR].median for row in result.rows if "step" in row.timings]
        ends = [1 + bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
        assert ends == pytest.approx([ratio for ratio in ratios if ratio != 1])
        written = [text.get_text() for text in axes.texts]
        assert f"{ratios[0]:.2f}x" in written


def test_lines_show_the_measured_times() -> None:
    found = record.read(ROOT / "bench" / "results" / "cpu.json")
    pair = [result for result in found.results if result.case.widths == (64, 64, 64)]
    figure = plots._lines(pair, "grid", plots._looks(pair), "here")
    above = figure.axes[1]  # of the step
    ours = next(line for line in above.get_lines() if line.get_label() == "fastkan")
    times = [1e3 * result.rows[0].timings["step"].seconds.median for result in pair]
    assert list(ours.get_xdata()) == [5, 64]  # type: ignore[arg-type]
    assert list(ours.get_ydata()) == pytest.approx(times)


def test_a_sweep_names_who_was_wrong() -> None:
    def result(grid: int, note: str | None, notes: dict[str, str]) -> CaseResult:
        return CaseResult(TINY._replace(grid_size=grid), [Row("other", note, notes=notes)], None)

    results = [result(5, None, {"pinn": "wrong"}), result(10, "wrong", {}), result(20, "wrong", {})]
    assert plots._wrong(results, lambda case: case.grid_size) == "other (PINN) at 5; other at 10, 20"
