"""The examples of the documentation work as shown: those of docstrings, and the README's."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import matplotlib
import matplotlib.pyplot
import pytest
import torch

import fastkan
import fastkan.functional
import fastkan_kernels
from fastkan_kernels.bspline.cox_de_boor import splines

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [
    importlib.import_module(info.name)
    for package in (fastkan, fastkan_kernels)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]
PUBLIC = {name: getattr(module, name) for module in (fastkan_kernels, fastkan) for name in module.__all__}
NAMES = {**PUBLIC, "torch": torch, "splines": splines, "kan_linear": fastkan.functional.kan_linear}


class Unwrapped(doctest.DocTestFinder):
    """A finder that also sees functions in decorators, which are of another module for the standard one."""

    def _from_module(self, module: ModuleType | None, object: object) -> bool:
        return super()._from_module(module, inspect.unwrap(object) if callable(object) else object)  # type: ignore[misc]


@pytest.mark.parametrize("module", [fastkan, *MODULES], ids=lambda module: module.__name__)
def test_docstrings_examples(module: ModuleType) -> None:
    others = {name: value for name, value in NAMES.items() if not hasattr(module, name)}  # its own names come first
    runner = doctest.DocTestRunner()
    for case in Unwrapped().find(module, extraglobs=others):
        runner.run(case)
    assert runner.summarize().failed == 0


def test_examples_of_decorated_functions_are_run() -> None:
    found = {case.name for case in Unwrapped().find(fastkan.layers.linear) if case.examples}
    assert {"fastkan.layers.linear.KANLinear", "fastkan.layers.linear.KANLinear.update_grid"} <= found
    assert "fastkan.network.prune.prune" in {
        case.name for case in Unwrapped().find(fastkan.network.prune) if case.examples
    }


@pytest.mark.parametrize(
    "name",
    sorted(set(PUBLIC) - {"functional", "optim", "__version__", "BASE_FUNCTIONS", "MAX_SPLINE_ORDER", "SYMBOLIC_LIB"}),
)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    assert ">>>" in (PUBLIC[name].__doc__ or "")


def test_the_readmes_examples_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "exp(x_2**2 + sin(3.14*x_1))" in said.splitlines()
    assert "# exp(x_2**2 + sin(3.14*x_1))" in README  # as it is shown
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("folder", [".", "kernels/fastkan_kernels", "bench", "bench/gpu"])
def test_files_that_are_named_exist(folder: str) -> None:
    """Links, and names of Python files and folders in backquotes (relative to the root or to the page)."""
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(((?!http)[^)#]+)\)", text) + re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name
