"""``auto_symbolic``: replacement of the spline edges of a network by formulas, with a report about each edge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastkan_kernels import FLAG, SHARE, Int, checked

from ..layers.edge_functions import edge_functions, mask_of
from ..layers.function_library import BOUNDS, Library, names_of
from ..layers.tables import table
from ..layers.value_cache import is_plain
from ..network.trace import rows_for
from .fix import MIN_ROWS, all_or_nothing, set_numeric
from .search import Range, rank, search

if TYPE_CHECKING:
    from ..network.core import Network


class EdgeReport(NamedTuple):
    """The outcome of :meth:`KAN.auto_symbolic` for one edge.

    Args:
        l, i, j: layer, input node and output subnode of the edge.
        name: name of the function that the edge now has, or None if the edge remains a spline.
        r2, complexity, best: R2, complexity and name of the function that the edge now has or, if the edge remains a
            spline, of the function that fits the edge best.
    """

    l: int
    i: int
    j: int
    name: str | None
    r2: float
    complexity: float
    best: str


class SymbolicReport(list[EdgeReport]):
    """A list with one :class:`EdgeReport` for each edge that was a spline; its string form is a table.

    Args:
        edges: entries of the list.
        kept: number of edges that were already formulas before the call.
        threshold: minimum R2 at which a spline is replaced by a formula.
    """

    def __init__(self, edges: Iterable[EdgeReport] = (), kept: int = 0, threshold: float = 0.0) -> None:
        super().__init__(edges)
        self.kept, self.threshold = kept, threshold

    @property
    def numeric(self) -> list[EdgeReport]:
        """The entries of the edges that remain splines."""
        return [edge for edge in self if edge.name is None]

    def __str__(self) -> str:
        rows = [["edge", "function", "R2", "complexity"]]
        for edge in self:
            function = edge.name or f"stays numeric, best is {edge.best}"
            rows.append([str(edge[:3]), function, f"{edge.r2:.6f}", f"{edge.complexity:g}"])
        lines = [table("llrr", *rows)] if self else []
        lines.append(repr(self))
        if self.numeric:
            lines.append(
                f"An edge stays numeric if no R2 reaches r2_threshold={self.threshold:g}. force=True or fix_symbolic "
                "makes it a formula all the same, remove_edge removes it, and more training or a larger lib may help"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        count = len(self.numeric)
        before = f", {self.kept} were before" if self.kept else ""
        return f"{len(self) - count} edges became formulas, {count} stay numeric{before}"


@checked(
    a_range=BOUNDS, b_range=BOUNDS, lib=Library(), verbose=Int(least=0), weight_simple=SHARE, r2_threshold=SHARE,
    negligible=SHARE, force=FLAG,
)  # fmt: skip
@torch.inference_mode(False)
@torch.no_grad()
def auto_symbolic(
    model: Network,
    a_range: Range = None,
    b_range: Range = None,
    lib: Iterable[str] | None = None,
    verbose: int = 1,
    weight_simple: float = 0.8,
    r2_threshold: float = 0.99,
    negligible: float = 1e-2,
    *,
    force: bool = False,
    x: Any = None,
    dataset: Any = None,
) -> SymbolicReport:
    """Replace each spline edge that a function of the library fits well by a formula with this function, in place.

    Among the functions whose R2 reaches the threshold, the function that :meth:`suggest_symbolic` ranks first is used.
    If no R2 reaches the threshold, the edge remains a spline. Layers are processed in order, so that the formulas of
    one layer are fitted to the outputs of the formulas of the previous layers. A hidden node between new formulas is
    scaled and shifted such that the node is the argument of a function behind it (unless ``a_range`` or ``b_range`` is
    given), which reduces the rounding in float32. Edges that already are formulas, and edges that are off, are not
    changed. The parameters of the formulas are new tensors, so create the optimizer after this call.

    Args:
        a_range, b_range: bounds of a and b, as in :meth:`fix_symbolic`.
        lib: names of the functions to try (default: all functions of the library).
        verbose: whether to print the report.
        weight_simple: weight of simplicity relative to R2, from 0 (only R2 counts) to 1 (only complexity counts).
        r2_threshold: minimum R2 at which a spline is replaced by a formula.
        negligible: relative size below which an edge that no function fits becomes the constant function ``"0"``. The
            relative size is the standard deviation of the values of the edge divided by the standard deviation of the
            sum of all edges of the same subnode.
        force: whether to replace every spline by a formula, as in pykan. If no R2 reaches the threshold, the function
            with the highest R2 is used.
        x, dataset: as in :meth:`fix_symbolic`.

    Returns:
        A list with one :class:`EdgeReport` for each edge that was a spline. The attribute ``numeric`` of the list
        contains the entries of the edges that remain splines.

    Raises:
        TypeError, ValueError: for unknown functions, invalid ranges, fewer than 8 different rows, or rows at which the
            network is NaN or infinite. If an error is raised or the call is interrupted, the network is left unchanged.
        RuntimeError: if ``torch.distributed`` runs several processes, whose rows and therefore formulas would differ,
            or if the parameters are distributed over processes.

    Example:
        >>> model = KAN(width=[2, 1, 1], grid=3, seed=0)
        >>> data = create_dataset(lambda x: torch.exp(x[:, [0]] + x[:, [1]] ** 2), n_var=2, train_num=200)
        >>> _ = model.fit(data, steps=30, progress=False)
        >>> report = model.auto_symbolic(lib=["x", "x^2", "exp"], verbose=0)
        >>> report
        3 edges became formulas, 0 stay numeric
        >>> [edge.name for edge in report]
        ['x', 'x^2', 'exp']
    """
    names = names_of(lib)
    report = SymbolicReport(threshold=r2_threshold)
    nodes = model._select_inputs(rows_for(model, x, dataset, min_rows=MIN_ROWS, changing="auto_symbolic"))
    with all_or_nothing(model):
        for layer in range(model.depth):
            on = mask_of(model.layers[layer]).cpu()
            report.kept += sum(not on[edge.i, edge.j] for edge in model.symbolic[layer].edges)
            if on.any():
                values = edge_functions(model.layers[layer], model.symbolic[layer], nodes)
                i, j = on.nonzero().unbind(1)
                own = values[:, i, j]
                fits = search(nodes[:, i], own, names, a_range=a_range, b_range=b_range)
                fixed = []
                is_negligible = own.std(0, correction=0) < negligible * values.sum(1)[:, j].std(0, correction=0)
                for place, edge in enumerate(zip(i.tolist(), j.tolist())):
                    ranked = rank(fits, place, weight_simple=weight_simple)
                    chosen = next((c for c in ranked if c.r2 >= r2_threshold), None)
                    best = chosen or max(ranked, key=lambda c: c.r2)
                    if force and not is_negligible[place]:
                        chosen = best
                    entry = EdgeReport(layer, *edge, chosen and chosen.name, best.r2, best.complexity, best.name)
                    if chosen is not None:
                        model.symbolic[layer].fix(*edge, chosen.name, chosen.affine)
                        fixed.append(edge)
                    elif is_negligible[place]:
                        model.symbolic[layer].fix(*edge, "0", (1.0, 0.0, 0.0, own[:, place].mean().item()))
                        fixed.append(edge)
                        entry = entry._replace(name="0", r2=0.0, complexity=0.0)
                    report.append(entry)
                set_numeric(model, layer, fixed, False)
            if layer and a_range is None and b_range is None:
                _absorb_arguments(model, layer, {edge[:3] for edge in report if edge.name is not None})
            nodes = model._node_values(layer, model._subnode_values(layer, nodes))
        if verbose:
            print(report)
    return report


def _absorb_arguments(model: Network, layer: int, new: set[tuple[int, int, int]]) -> None:
    """Move a and b of the formulas ``c g(a h + b) + d`` of a layer into the formulas that sum to the hidden node h.

    Afterwards the formula with the largest ``|a|`` has a = 1 and b = 0, so that the rounding of the node is not
    multiplied by a. In float32, the error of exp(sin(pi x) + y^2) after a fit is then 2e-7 in the place of 3e-7. The
    function of the network does not change. The formulas that sum to a node share the sum of their
    constants d equally, so that large constants do not cancel. Nodes with affine maps, with splines, or with formulas
    that are not in ``new`` remain as they are.
    """
    before, after = model.symbolic[layer - 1], model.symbolic[layer]
    first, last = before.affine.detach().double(), after.affine.detach().double()
    has_splines = mask_of(model.layers[layer - 1]).any(0).tolist(), mask_of(model.layers[layer]).any(1).tolist()
    maps = (model.subnode_scale, model.subnode_bias), (model.node_scale, model.node_bias)
    if not all(is_plain(scale[layer - 1], bias[layer - 1]) for scale, bias in maps):
        return
    for node in range(model.architecture.sums[layer]):
        into = [n for n, edge in enumerate(before.edges) if edge.j == node]
        out = [n for n, edge in enumerate(after.edges) if edge.i == node]
        ends = {(layer - 1, *before.edges[n][:2]) for n in into} | {(layer, *after.edges[n][:2]) for n in out}
        steepest = max(out, key=lambda n: abs(last[n, 0]) if after.edges[n].name != "0" else 0.0, default=None)
        if not into or steepest is None or not ends <= new or has_splines[0][node] or has_splines[1][node]:
            continue
        a, b = last[steepest, :2].tolist()
        if after.edges[steepest].name == "0" or a == 0:
            continue
        first[into, 2] *= a
        first[into, 3] = (a * first[into, 3].sum() + b) / len(into)
        last[out, 1] -= last[out, 0] * (b / a)
        last[out, 0] /= a
        last[steepest, 1] = 0.0
    before.affine.copy_(first)
    after.affine.copy_(last)
