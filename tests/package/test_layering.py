"""The tree: imports run one way between rooms and files, and everything imports without triton."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fastkan_kernels

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fastkan", "kernels", "bench", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OURS = ("fastkan", "fastkan_kernels", "bench")
MAY_IMPORT = {"fastkan": {"fastkan", "fastkan_kernels"}, "kernels": {"fastkan_kernels"}}
PACKAGES = {"fastkan": ROOT / "fastkan", "fastkan_kernels": ROOT / "kernels/fastkan_kernels"}
# The folders and files of each package, from top to bottom: each imports only what stands after it.
ROOMS = {
    "fastkan": [
        "examples", "sklearn", "__init__", "interop", "kan", "plotting", "symbolic", "training", "optim", "network",
        "layers", "functional", "version",
    ],
    "fastkan_kernels": [
        "__init__", "contractions", "row_jacobian", "statistics", "autograd", "backends", "bspline", "knots",
        "validation", "basis", "trilinear",
    ],
}  # fmt: skip
MAX_ROOMS = {"fastkan": 12, "fastkan_kernels": 10}


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


def imported_files(path: Path, package: Path) -> Iterator[Path]:
    """Files of a package that one of its files imports: at the top, in functions, or for types alone."""

    def file_of(parts: list[str]) -> Path | None:
        place = package.joinpath(*parts)
        return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)

    here = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[list[str]] = []
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            modules = [[*module, alias.name] for alias in node.names]  # a module, or a name in one
        for _, *parts in (module for module in modules if module[0] == package.name):
            found = file_of(parts) or file_of(parts[:-1])
            if found is not None and found != path:
                yield found


def import_graph(package: Path) -> dict[Path, set[Path]]:
    return {path: set(imported_files(path, package)) for path in sorted(package.rglob("*.py"))}


def circle_of(graph: dict[Path, set[Path]]) -> list[str]:
    """The files of one import circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(path) for path in error.args[1]]
    return []


def arrows_up(package: Path, rooms: list[str]) -> list[str]:
    """The imports from a room to one above it."""

    def floor(path: Path) -> int:
        return rooms.index(path.relative_to(package).parts[0].removesuffix(".py"))

    graph = import_graph(package)
    return [f"{a} -> {b}" for a, files in graph.items() for b in files if floor(b) < floor(a)]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_room_is_known_and_they_are_few(name: str) -> None:
    parts = {path.relative_to(PACKAGES[name]).parts[0].removesuffix(".py") for path in PACKAGES[name].rglob("*.py")}
    rooms = parts - {"__init__"}
    assert rooms <= set(ROOMS[name])
    assert len(rooms) <= MAX_ROOMS[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_imports_run_down_the_rooms(name: str) -> None:
    assert not arrows_up(PACKAGES[name], ROOMS[name])


@pytest.mark.parametrize("name", PACKAGES)
def test_no_files_import_each_other(name: str) -> None:
    """No circle of imports, those for types and those in functions included."""
    assert not circle_of(import_graph(PACKAGES[name]))


@pytest.mark.parametrize(
    "line",
    [
        "from ..high.b import B",
        "from .. import high",
        "import package.high.b",
        "from package.high import b",
        "def f():\n    from ..high import b",
        "if TYPE_CHECKING:\n    from ..high.b import B",
    ],
)
def test_a_circle_and_an_arrow_up_are_found(line: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    for room, text in (("high", "from ..low.a import A\n"), ("low", "")):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text(text)
    (package / "high/b.py").write_text("from ..low import a\n")
    (package / "low/a.py").write_text("import torch\n")
    assert not circle_of(import_graph(package))
    assert not arrows_up(package, ["high", "low"])
    (package / "low/a.py").write_text(line + "\n")
    assert circle_of(import_graph(package))
    assert arrows_up(package, ["high", "low"])


def test_the_kernels_have_one_door() -> None:
    """``fastkan`` imports from ``fastkan_kernels/__init__.py`` alone, which imports nothing that is not used there."""
    door = ast.parse((PACKAGES["fastkan_kernels"] / "__init__.py").read_text(encoding="utf-8"))
    offered = {alias.name for node in door.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    used: set[str] = set()
    for path in (ROOT / "fastkan").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("fastkan_kernels")], path
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastkan_kernels"):
                assert node.module == "fastkan_kernels", path
                used |= {alias.name for alias in node.names}
    assert used <= offered
    assert offered <= used | set(fastkan_kernels.__all__)


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
    "name",
    ["triton", "numpy", "scipy", "matplotlib", "sklearn", "sympy", "tqdm", "safetensors", "pandas", "transformers"],
)
def test_nothing_optional_is_imported_always(name: str) -> None:
    for path in FILES:
        if path.is_relative_to(ROOT / "fastkan") or path.is_relative_to(ROOT / "kernels"):
            if path.is_relative_to(ROOT / "fastkan/examples"):
                continue  # programs, which nothing imports
            if path == ROOT / "fastkan/sklearn.py":
                continue  # the estimators for scikit-learn, which nothing imports
            if name == path.stem and path.is_relative_to(ROOT / "fastkan/interop"):
                continue  # the file about the package, which nothing imports
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
        # torch.distributed.tensor, which the styles of tensor_parallel derive from, needs sympy
        left_out = ("triton", "examples", "interop.transformers", "tensor_parallel", "sklearn")
        if not any(part in module.name for part in left_out):
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
    assert "backend 'triton' cannot be used" in done.stdout


def test_importing_is_quick_and_quiet() -> None:
    """No compiler, which would take as long as torch itself, no GPU, no output, no random number."""
    code = """
import torch
before = torch.get_rng_state()
import fastkan
assert torch.equal(before, torch.get_rng_state())
assert not torch.cuda.is_initialized()
import sys
for name in ("torch._dynamo", "torch._inductor", "scipy", "matplotlib", "sympy", "safetensors", "transformers"):
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
