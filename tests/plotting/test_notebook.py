"""Pictures in a Jupyter notebook, executed by a real kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
PREPARED = """
from matplotlib import pyplot as plt
from fastkan import KAN, create_dataset

m = KAN(width=[2, 1], grid=3, seed=0)
data = create_dataset(lambda x: x[:, [0]], n_var=2, train_num=20, test_num=20)
m.fit(data, steps=2, progress=False);
"""
FIT = "m.fit(data, steps=3);"
SUGGEST = "m.suggest_symbolic(0, 0, 0, verbose=False)"
CELLS = {  # and how many pictures each shows
    PREPARED: 0,
    "m.plot()": 1,
    "m.plot();": 1,
    "f = m.plot()": 1,
    "f": 1,
    "m.plot()\nplt.show()": 1,
    "m.plot(); plt.show(); None": 1,
    "m.plot_history()": 1,
    "m.plot_edge(0, 0, 0)": 1,
    "f = m.plot(); plt.close(f)": 0,
    "display(f)": 1,
    "for _ in range(2):\n    m.plot()": 2,
    "%%capture shown\nm.plot()": 0,
    "shown()": 1,
    "%matplotlib inline": 0,
    "m.plot() ": 1,
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each cell."""
    folder = tmp_path_factory.mktemp("notebook")
    sources = [*CELLS, FIT, SUGGEST]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    changed = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)  # the kernel sets its own
        for name, value in changed.items():
            patch.setenv(name, value)
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    return {source: cell.outputs for source, cell in zip(sources, notebook.cells)}


@pytest.mark.parametrize("source", CELLS, ids=lambda source: source.strip().splitlines()[-1])
def test_a_cell_shows_each_picture_once(source: str, outputs: dict[str, list[Any]]) -> None:
    pictures = [output for output in outputs[source] if "image/png" in output.get("data", {})]
    assert len(pictures) == CELLS[source], outputs[source]
    errors = [output for output in outputs[source] if output.output_type in ("error", "stream")]
    assert not errors


def test_a_fit_shows_its_progress_and_no_warning(outputs: dict[str, list[Any]]) -> None:
    """A widget where ipywidgets is installed, and lines of text elsewhere."""
    widgets = [
        output for output in outputs[FIT] if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    text = "".join(output.text for output in outputs[FIT] if output.output_type == "stream")
    assert widgets or "3/3" in text
    assert widgets or "train_loss: " in text
    assert "Warning" not in text
    assert not [output for output in outputs[FIT] if output.output_type == "error"]


def test_a_suggestion_is_one_short_line(outputs: dict[str, list[Any]]) -> None:
    (shown,) = outputs[SUGGEST]
    assert shown.data["text/plain"].startswith("('x', SymbolicFunction('x', complexity=1), ")
    assert len(shown.data["text/plain"]) < 100
