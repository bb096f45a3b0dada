"""The kernels with one stage left out, to see what it costs: made from the shipped source, so that they stay in step.

- ``features``: a spline is its argument, one subtraction.
- ``product``: two sums stand for it, so that features and loads are still needed. They aren't free: what is left is
  the most that the rest can cost.
- ``loads``: of W, or of what else streams through shared memory: a constant tile stands for each.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "fastkan_kernels.backends.triton"
KERNELS = {"F": "contract_out", "G": "contract_weight", "H": "contract_in"}
FUSED, PIPELINED, CHUNKED = "fused", "pipelined", "chunked"
FOLDERS = {FUSED: "kernels.", PIPELINED: "hopper."}  # of their modules
# which can be left out: a pipelined kernel's loads and products wait for each other
STAGES = {FUSED: ("features", "product", "loads"), PIPELINED: ("features",), CHUNKED: ("features", "product")}
SPLINE, PRODUCT = "cardinal", "multiply"  # the functions that make features on uniform knots, and that multiply
# what is loaded in each, by the names that it is assigned to, and the constant in its place
LOADS: dict[str, dict[tuple[str, ...], str]] = {
    "F": {("part",): "tl.full((INNER, COLUMNS), 0.5, PRODUCT)"},
    "G": {("right",): "tl.full((INNER, COLUMNS), 0.5, PRODUCT)"},
    "H": {
        ("left",): "tl.full((ROWS, INNER), 0.5, PRODUCT)",
        ("right",): "tl.full((SPLINES * COLUMNS, INNER), 0.5, PRODUCT)",
        ("left", "right"): "tl.full((ROWS, INNER), 0.5, PRODUCT), tl.full((COLUMNS, INNER), 0.5, PRODUCT)",
    },
}
WITHOUT_PRODUCT = """
@triton.jit
def without_product(a, b, total):
    return total + (tl.sum(a.to(total.dtype), 1)[:, None] + tl.sum(b.to(total.dtype), 0)[None, :])
"""


class _LeaveOut(ast.NodeTransformer):
    """Replaces a stage, and counts where."""

    def __init__(self, contraction: str, stage: str) -> None:
        self._loads = LOADS[contraction] if stage == "loads" else {}
        self._stage = stage
        self.replaced = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = node.func.id if isinstance(node.func, ast.Name) else None
        if self._stage == "features" and called == SPLINE:
            self.replaced += 1
            return node.args[0]
        if self._stage == "product" and called == PRODUCT:
            self.replaced += 1
            return ast.Call(ast.Name("without_product", ast.Load()), node.args[:3], [])
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        (target,) = node.targets
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        constant = self._loads.get(tuple(part.id for part in parts if isinstance(part, ast.Name)))
        if constant is not None:
            self.replaced += 1
            node.value = ast.parse(constant, mode="eval").body
        return node


def source(way: str, contraction: str, stage: str) -> str:
    """Of the kernel's module, with a stage left out.

    Raises:
        ValueError: if the shipped source has no such stage any more.
    """
    tree = ast.parse(_path(f"{FOLDERS[way]}{KERNELS[contraction]}").read_text(encoding="utf-8"))
    left_out = _LeaveOut(contraction, stage)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:  # what the compiler sees
            left_out.visit(node)
    if not left_out.replaced:
        raise ValueError(f"{FOLDERS[way]}{KERNELS[contraction]} has no {stage} to leave out")
    tree.body[-1:-1] = ast.parse(WITHOUT_PRODUCT).body if stage == "product" else []
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def shipped(way: str, contraction: str) -> ModuleType:
    """The kernel's module as it is."""
    return importlib.import_module(f"{PACKAGE}.{FOLDERS[way]}{KERNELS[contraction]}")


@functools.cache
def module(way: str, contraction: str, stage: str) -> ModuleType:
    """The kernel's module with a stage left out; Triton reads its source from a file."""
    name = f"{KERNELS[contraction]}_without_{stage}"
    path = Path(_folder()) / f"{way}_{name}.py"
    path.write_text(source(way, contraction, stage), encoding="utf-8")
    return _loaded(f"{PACKAGE}.{FOLDERS[way]}{name}", path)


@functools.cache
def chunked(stage: str) -> Any:
    """The chunked way's module, whose features are not made, or whose products are not taken."""
    found: Any = _loaded(f"{PACKAGE}.chunked_without_{stage}", _path("chunked"))
    if stage == "features":
        found.launch_write = found.launch_dot = lambda *arguments, **named: _Nothing
    else:
        found.product = lambda p, a, b: a.new_empty(a.shape[0], b.shape[1], dtype=p.work)
    return found


class _Nothing:
    """A launch of nothing."""

    @staticmethod
    def run() -> None:
        return None


def _path(module: str) -> Path:
    return Path(str(importlib.util.find_spec(f"{PACKAGE}.{module}").origin))  # type: ignore[union-attr]


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


@functools.cache
def _folder() -> str:
    return tempfile.mkdtemp(prefix="fastkan-variants-")
