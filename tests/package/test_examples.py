"""The examples run, draw what they say, and stay short."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

import fastkan.examples

FOLDER = Path(fastkan.examples.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
STEPS = {
    "quickstart": 20, "formula": 20, "poisson": 2, "burgers": 2, "digits": 20, "distributed": 20, "swap": 2,
    "tabular": 5,
}  # fmt: skip


def test_the_packages_docstring_names_each() -> None:
    assert set(NAMES) == set(STEPS)
    assert all(f"``{name}``" in (fastkan.examples.__doc__ or "") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_and_draws(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "swap":
        pytest.importorskip("kan")
    found = importlib.import_module(f"fastkan.examples.{name}").main(STEPS[name], tmp_path)
    assert found if isinstance(found, str) else math.isfinite(found)
    pictures = list(tmp_path.iterdir())
    assert pictures
    assert all(path.name in capsys.readouterr().out for path in pictures[:1])
    assert all(path.stat().st_size > 1000 for path in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_example_is_under_60_lines(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


def run(*words: str) -> str:
    """Run a module in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=FOLDER.parents[1],
        env={
            "PYTHONPATH": f"{FOLDER.parents[1]}:{FOLDER.parents[1] / 'kernels'}",
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_example_is_a_command(tmp_path: Path) -> None:
    run("fastkan.examples.poisson", "--steps", "1", "--folder", str(tmp_path))
    assert (tmp_path / "poisson.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo")
def test_the_distributed_example_runs_in_two_processes(tmp_path: Path) -> None:
    ways = "--standalone", "--nproc-per-node", "2", "-m", "fastkan.examples.distributed"
    said = run("torch.distributed.run", *ways, "--steps", "50", "--folder", str(tmp_path))
    assert said.count("distributed.png") == 1
    assert (tmp_path / "distributed.png").stat().st_size > 1000
    assert float(said.split()[1].rstrip(";")) < 0.5
