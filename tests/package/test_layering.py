"""The tree: imports run one way, files stay short, and everything imports without triton."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fastkan", "kernels", "bench", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OURS = ("fastkan", "fastkan_kernels", "bench")
MAY_IMPORT = {"fastkan": {"fastkan", "fastkan_kernels"}, "kernels": {"fastkan_kernels"}}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Top names that a file imports, and whether each is imported whenever the file is."""
    found = []

    def visit(node: ast.AST, always: bool) -> None:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found.extend((name.split(".")[0], always) for name in names)
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try, ast.If))
        for child in ast.iter_child_nodes(node):
            visit(child, always and not later)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_needs_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder: str) -> None:
    """fastkan -> fastkan_kernels -> torch, and nothing points back."""
    paths = [path for path in FILES if path.is_relative_to(ROOT / folder)]
    assert paths
    for path in paths:
        wrong = {name for name, _ in imports(path)} & (set(OURS) | {"tests", "oracle", "cases"}) - MAY_IMPORT[folder]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_kernels_know_tensors_only() -> None:
    """No modules and no training in the tensor half."""
    for path in (ROOT / "kernels").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        names |= {
            a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) for a in n.names
        }
        assert not names & {"Module", "Parameter", "optim"}, path.name


def test_the_idea_stands_alone() -> None:
    """trilinear.py imports no backend: the table is data that code and tests both read."""
    tree = ast.parse((ROOT / "kernels/fastkan_kernels/trilinear.py").read_text())
    relative = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


@pytest.mark.parametrize(
    "name", ["triton", "numpy", "scipy", "matplotlib", "sklearn", "sympy", "tqdm", "safetensors", "pandas"]
)
def test_nothing_optional_is_imported_always(name: str) -> None:
    for path in FILES:
        if path.is_relative_to(ROOT / "fastkan") or path.is_relative_to(ROOT / "kernels"):
            if name == "triton" and "triton" in path.relative_to(ROOT).parts[:-1]:
                continue  # its own folder, which is imported when it can be
            assert (name, True) not in imports(path), f"{path.relative_to(ROOT)} needs {name}"


def test_kernels_is_a_source_root_and_no_package() -> None:
    """`kernels` is a package on PyPI, and would clash with an import name of ours."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "kernels").iterdir() if path.is_dir() and path.name[0] not in "._"
            and not path.name.endswith(".egg-info")] == ["fastkan_kernels"]  # fmt: skip


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # an import of them now raises ModuleNotFoundError
import torch
import fastkan, fastkan.functional, fastkan_kernels
import importlib, pkgutil
for package in (fastkan, fastkan_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "triton" not in module.name:
            importlib.import_module(module.name)
layer = fastkan.KANLinear(2, 3)
layer(torch.rand(4, 2)).sum().backward()
print(fastkan.explain(layer, torch.rand(4, 2)))
try:
    with fastkan.backend("triton"):
        layer(torch.rand(4, 2))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "blocked",
    [["triton"], ["triton", "scipy", "matplotlib", "sklearn", "tqdm", "sympy", "safetensors"]],
    ids=["triton", "all"],
)
def test_everything_imports_and_runs_without(blocked: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(blocked=blocked)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "backend: cpu" in done.stdout
    assert "backend 'triton' can't serve" in done.stdout


def test_importing_is_quick_and_quiet() -> None:
    """No compiler, which would take as long as torch itself, no GPU, no output, no random number."""
    code = """
import torch
before = torch.get_rng_state()
import fastkan
assert torch.equal(before, torch.get_rng_state())
assert not torch.cuda.is_initialized()
import sys
for name in ("torch._dynamo", "torch._inductor", "scipy", "matplotlib", "sympy", "safetensors"):
    assert name not in sys.modules, name
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
