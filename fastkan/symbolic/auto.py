"""All edges to formulas at once, and a report of what became of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastkan_kernels import FLAG, SHARE, Int, checked

from ..layers.edge_functions import edge_functions, mask_of
from ..layers.function_library import BOUNDS, Library, names_of
from ..network.trace import rows_for
from .fix import MIN_ROWS, all_or_nothing, set_numeric, table
from .search import Range, rank, search

if TYPE_CHECKING:
    from ..network.core import Network


class EdgeReport(NamedTuple):
    """What :meth:`KAN.auto_symbolic` made of an edge.

    Args:
        l, i, j: the edge.
        name: its function, or None if it stays a spline.
        r2: of its function, or of the best there was.
        complexity: of the same.
        best: name of the same.
    """

    l: int
    i: int
    j: int
    name: str | None
    r2: float
    complexity: float
    best: str


class SymbolicReport(list[EdgeReport]):
    """An :class:`EdgeReport` for each edge that was a spline. Printed, it is a table.

    Args:
        edges: the entries.
        kept: how many edges were formulas before.
        threshold: R2 that a formula had to have.
    """

    def __init__(self, edges: Iterable[EdgeReport] = (), kept: int = 0, threshold: float = 0.0) -> None:
        super().__init__(edges)
        self.kept, self.threshold = kept, threshold

    @property
    def numeric(self) -> list[EdgeReport]:
        """Those that stay splines."""
        return [edge for edge in self if edge.name is None]

    def __str__(self) -> str:
        rows = [
            [
                str(edge[:3]),
                edge.name or f"stays numeric, best is {edge.best}",
                f"{edge.r2:.6f}",
                f"{edge.complexity:g}",
            ]
            for edge in self
        ]
        lines = [table("llrr", ["edge", "function", "R2", "complexity"], *rows)] if rows else []
        lines.append(repr(self))
        if self.numeric:
            lines.append(
                f"An edge stays numeric where no R2 reaches r2_threshold={self.threshold:g}. force=True or "
                "fix_symbolic makes it a formula all the same, remove_edge takes it away, more training or a larger "
                "lib may help"
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
    """Make all splines formulas that fit one, in place; those that don't stay splines.

    Of the functions whose R2 reaches the threshold an edge gets the one that :meth:`suggest_symbolic` ranks first.
    Layer by layer, so that every formula is fitted to what really comes in. Formulas and edges that are off are left
    alone. Make the optimizer after: the formulas' parameters are new ones.

    Args:
        a_range, b_range: bounds for the fits. Without, they are in units of each edge's own range.
        lib: names of the functions; None for all.
        verbose: whether to print the report.
        weight_simple: from 0, complexity counts for nothing, to 1, R2 does.
        r2_threshold: what R2 a function must reach to be taken.
        negligible: an edge that fits no function becomes a constant, ``"0"``, if its values spread less than by this
            share of the spread of the sum that they go into.
        force: whether every edge becomes a formula, as in pykan: where none reaches the threshold, the one with the
            highest R2.
        x: ``[..., in_features]`` rows to go by; None takes those of the last fit.
        dataset: instead of x, as :meth:`fit` takes it.

    Returns:
        A list of :class:`EdgeReport`, one for each edge that was a spline; its ``numeric`` are those that still are.

    Raises:
        TypeError, ValueError: for functions or ranges that are not there, fewer than 8 different rows, and rows at
            which the network is NaN or infinite; nothing has changed then, as after an interruption.

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
    nodes = model._select_inputs(rows_for(model, x, dataset, min_rows=MIN_ROWS))
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
                hardly = own.std(0, correction=0) < negligible * values.sum(1)[:, j].std(0, correction=0)
                for place, edge in enumerate(zip(i.tolist(), j.tolist())):
                    ranked = rank(fits, place, weight_simple=weight_simple)
                    chosen = next((c for c in ranked if c.r2 >= r2_threshold), None)
                    best = chosen or max(ranked, key=lambda c: c.r2)
                    if force and not hardly[place]:
                        chosen = best
                    entry = EdgeReport(layer, *edge, chosen and chosen.name, best.r2, best.complexity, best.name)
                    if chosen is not None:
                        model.symbolic[layer].fix(*edge, chosen.name, chosen.affine)
                        fixed.append(edge)
                    elif hardly[place]:
                        model.symbolic[layer].fix(*edge, "0", (1.0, 0.0, 0.0, own[:, place].mean().item()))
                        fixed.append(edge)
                        entry = entry._replace(name="0", r2=0.0, complexity=0.0)
                    report.append(entry)
                set_numeric(model, layer, fixed, False)
            nodes = model._node_values(layer, model._subnode_values(layer, nodes))
        if verbose:
            print(report)
    return report
