"""``python -m bench`` and its tables, pictures and pages, ``--add``, and the demo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matplotlib import image

from bench import __main__ as command
from bench import plots, records, report
from bench.demo import __main__ as demo
from bench.demo import classifier
from bench.suite import cases, contenders
from bench.suite.cases import Case
from bench.suite.contenders import CONTENDERS, MLP, load
from bench.suite.errors import BOUND

ROOT = Path(__file__).resolve().parents[2]
TINY = Case(40, (3, 4, 2))
PACKAGE = '''
"""A package such as a user might have: coefficients by input and output."""
import torch
from torch import nn

from bench.suite.plain import KANLinear as PlainKANLinear


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
def _restore(monkeypatch: pytest.MonkeyPatch):
    """A single tiny case; and contenders and threads, which belong to the process, as before."""
    monkeypatch.setattr(cases, "CASES", (TINY,))
    before, threads = list(CONTENDERS), torch.get_num_threads()
    yield
    CONTENDERS[:] = before
    torch.set_num_threads(threads)


def test_it_writes_json_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--cases", "40x3", "--rivals", "fastkan", "plain", "--budget", "0.05", "--threads", "1"]
    written = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    assert command.main([*arguments, *written]) == 0
    assert "fastkan" in capsys.readouterr().out
    record = records.read(tmp_path / "out.json", command.FIELDS)
    rows = {(result["contender"], result["mode"]): result for result in record.results}
    ours = rows["fastkan", "step"]
    assert ours["case"] == "40x3-4-2-G5"
    assert rows[MLP, "step"]["ratios"][MLP][0] == 1
    assert ours["seconds"][0] > rows["fastkan", "forward"]["seconds"][1] > 0
    assert 0 < ours["error"][0] < BOUND
    assert ours["peak_bytes"] > 0
    assert record.about["versions"]["torch"] == torch.__version__
    lines = (tmp_path / "out.md").read_text().splitlines()
    assert any(line.startswith("| fastkan ") for line in lines)
    assert f"{ours['ratios'][MLP][0]:.2f} ±" in report.layers_block(record.results, record.about)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cases", "nothing"],
        ["--contenders", "nothing"],
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
        ["--quick", "--from", str(records.RESULTS / "cpu.json")],
    ],
)
def test_it_refuses_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert arguments[1].split("/")[0] in capsys.readouterr().err or arguments[0] == "--threads"


# -- a layer of one's own ---------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's example in a file, and the package that it imports."""
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```py\n# my_layer\.py\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) <= 12
    assert example.strip() in (contenders.__doc__ or "")
    (tmp_path / "my_layer.py").write_text(example)
    (tmp_path / "my_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "my_layer.py"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_layer_of_ones_own_takes_part(mine: Path, by_name: bool) -> None:
    out = mine.parent / "out.json"
    options = ["--contenders", "my layer", "--modes", "step", "pinn", "--budget", "0.02", "--threads", "1"]
    assert command.main(["--quick", "--add", "my_layer" if by_name else str(mine), *options, "--json", str(out)]) == 0
    found = [result for result in records.read(out).results if result["contender"] == "my layer"]
    assert [(result["mode"], result["note"]) for result in found] == [("step", None), ("pinn", None)]
    assert all(max(result["error"]) < BOUND and result["seconds"] for result in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it enters no contender"),
        ("1 / 0", "ZeroDivisionError"),
        (
            "from bench.suite.contenders import contender\ncontender('fastkan')(lambda case, edges: None)",
            "'fastkan' already",
        ),
    ],
)
def test_a_file_that_enters_nothing_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(text)
    before = list(CONTENDERS)
    with pytest.raises(ValueError, match=words):
        load(str(path))
    assert before == CONTENDERS


# -- pictures ---------------------------------------------------------------------------------------


def test_sweeps_and_cases_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [TINY._replace(rows=rows) for rows in (20, 40, 80)]
    for module in (cases, plots):
        monkeypatch.setattr(module, "SWEEPS", {"rows": tuple(small)})
    out, folder = tmp_path / "out.json", tmp_path / "plots"
    options = ["--sweep", "rows", "--contenders", "plain", "--threads", "1", "--budget", "0.02"]
    assert command.main([*options, "--modes", "step", "pinn", "--json", str(out), "--plots", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {"sweep-rows.png"}
    record = records.read(out)
    assert list(dict.fromkeys(result["rows"] for result in record.results)) == [20, 40, 80]
    figure = plots._lines(record.results, "rows", small, plots._looks(record.results), "here")
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "plain Cox-de Boor")
    times = [r["seconds"][0] for r in record.results if r["contender"] == "plain Cox-de Boor" and r["mode"] == "step"]
    assert list(line.get_xdata()) == [20, 40, 80]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == pytest.approx([1e3 * time for time in times])

    monkeypatch.setattr(plots, "SWEEPS", {})  # so that they are single cases
    drawn = plots.draw(record, folder)
    assert {path.name for path in drawn} == {"step.png", "memory-step.png", "pinn.png", "memory-pinn.png"}
    for path in drawn:
        pixels = image.imread(path)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 600
        assert len({tuple(pixel) for row in pixels[::7, ::7] for pixel in row}) > 5


def test_bars_show_the_measured_ratios() -> None:
    found = records.read(records.RESULTS / "cpu.json")
    figure = dict(plots._figures(found))["step"]
    step = [result for result in found.results if result["mode"] == "step" and result["contender"] != MLP]
    for axes, case in zip(figure.axes, dict.fromkeys(result["case"] for result in step)):
        ratios = [result["ratios"][MLP][0] for result in step if result["case"] == case and result["seconds"]]
        assert [1 + bar.get_width() for bar in axes.patches] == pytest.approx(ratios)  # type: ignore[attr-defined]
        assert f"{ratios[0]:.2f}x" in [text.get_text() for text in axes.texts]


def test_a_sweep_names_the_wrong_contenders() -> None:
    results = [
        {"case": str(grid), "contender": "other", "mode": mode, "note": note}
        for grid, mode, note in [(5, "pinn", "wrong"), (5, "step", None), (10, "step", "wrong"), (20, "step", "wrong")]
    ]
    assert plots._wrong(results, {"5": 5, "10": 10, "20": 20}) == "other (PINN) at 5; other (fwd+bwd) at 10, 20"


# -- the pages and the demo -------------------------------------------------------------------------


def test_the_pages_show_the_committed_figures() -> None:
    """Every figure stands in a block that is written from ``bench/results``."""
    assert report.main(["--check"]) == 0, "run python -m bench.report"
    shown = {path: set(re.findall("<!-- bench: (.+?) -->", path.read_text())) for path in report.PAGES}
    assert "speed" in shown[ROOT / "README.md"]
    assert {"layers", "curve", "sessions", "gpu"} <= shown[ROOT / "bench" / "README.md"]


def test_pages_are_rewritten_between_their_marks(tmp_path: Path) -> None:
    page, copied = ROOT / "bench" / "README.md", tmp_path / "README.md"
    stale = re.sub(r"(<!-- bench: layers -->\n).*?(<!-- /bench -->)", r"\1old\n\2", page.read_text(), flags=re.DOTALL)
    copied.write_text(stale)
    assert report.main(["--pages", str(copied), "--check"]) == 1
    assert report.main(["--pages", str(copied)]) == 0
    assert copied.read_text() == page.read_text()
    with pytest.raises(ValueError, match="'nothing'"):
        report.rewritten("<!-- bench: nothing --><!-- /bench -->")


def test_the_small_table_has_the_measured_ratios() -> None:
    found = records.read(records.RESULTS / "cpu.json")
    lines = report.speed_block(found.results, found.about).splitlines()
    assert len(lines) <= 2 + 5
    ours = [r["ratios"][MLP][0] for r in found.results if r["contender"] == "fastkan" and r["mode"] == "step"]
    assert [line.split("|")[2].strip() for line in lines[2:]] == [report.digits(ratio) for ratio in ours]


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
