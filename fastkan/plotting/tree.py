"""The tree that shows how a function combines its inputs. Tests of symmetry and separability determine the tree."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastkan_kernels import Callback, Choice, Each, Flag, Kind, Optional, Real, checked

from ..symbolic.derivatives import check_rows
from ..symbolic.hypothesis import GROUPS, test_general_separability, test_separability, test_symmetry
from ..symbolic.variables import EXPRESSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = Callable[[Tensor], Tensor]
Groups = list[list[int]]


@checked(model=Callback(), sym_th=Real(least=0), verbose=Flag())
def get_molecule(model: Function, x: Tensor, sym_th: float = 1e-3, verbose: bool = True) -> list[Groups]:
    """Find groups of inputs such that a function depends on each group only through a single quantity.

    The result has several levels. The groups of each level are unions of groups of the previous level.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x: points ``[N, in]`` at which the function is tested.
        sym_th: threshold that is passed to :func:`test_symmetry` as ``dependence_th``.
        verbose: whether to print each test.

    Returns:
        A list of levels, each of which is a list of groups. At the first level there is one group for each input, and
        at the last level there is one group that contains all inputs.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) + 0.5
        >>> get_molecule(lambda x: x[:, [0]] ** 2 * (x[:, [1]] + x[:, [2]]), x, verbose=False)
        [[[0], [1], [2]], [[0], [1, 2]], [[0, 1, 2]]]
    """
    check_rows(x, least=2)
    count = x.shape[1]
    levels: list[Groups] = [[[i] for i in range(count)]]
    # The symmetry test always succeeds for the group of all inputs. A merge of two groups that together contain all
    # inputs is therefore postponed, at most once, from the current level to the next level.
    last_apart = False
    while len(levels[-1]) > 1:
        level: Groups = []
        rest = copy.deepcopy(levels[-1])
        while rest:
            group, members = list(rest[0]), [rest[0]]
            for other in rest[1:]:
                is_last = len(group) + len(other) == count
                if is_last and not last_apart and len(members) > 1 and len(levels) > 1:
                    last_apart = True
                    break
                if verbose:
                    print(f"{group} with {other}")
                if test_symmetry(model, x, group + other, dependence_th=sym_th):
                    group += other
                    members.append(other)
            level.append(group)
            rest = [each for each in rest if each not in members]
        if len(level) == len(levels[-1]):
            level = [[i for group in level for i in group]]
        levels.append(level)
    for below, above in zip(reversed(levels[:-1]), reversed(levels[1:])):
        below[:] = [part for group in above for part in _parts(group, below)]
    return levels


def _parts(group: Sequence[int], below: Groups) -> Groups:
    """Return the groups of the level below whose union is ``group``, in the order of the inputs in ``group``."""
    starts = {part[0]: part for part in below}
    parts, position = [], 0
    while position < len(group):
        parts.append(starts[group[position]])
        position += len(parts[-1])
    return parts


@checked(model=Callback(), moleculess=Each(GROUPS), sep_th=Real(least=0), skip_test=Flag())
def get_tree_node(
    model: Function, x: Tensor, moleculess: list[Groups], sep_th: float = 1e-2, skip_test: bool = True
) -> tuple[list[list[int]], list[list[str]]]:
    """Find, for each group of inputs in the tree, the number of its parts in the level below and the operation by which
    the function combines the parts.

    Args:
        model, x: as in :func:`get_molecule`.
        moleculess: the levels that :func:`get_molecule` returned.
        sep_th: threshold of the tests of separability.
        skip_test: whether to skip the tests of separability, which take most of the time.

    Returns:
        A tuple of two nested lists, which have one entry for each group of each level except the first level. Each
        entry of the first list is the number of parts of the group, which are groups of the level below. Each entry of
        the second list is ``"Id"`` if the group has a single part, ``"GS"`` if the parts are generally separable,
        ``"Add"`` or ``"Mul"`` if a group of the last level is a sum or a product of its parts, and ``""`` in all other
        cases.

    Raises:
        TypeError, ValueError: if the groups of a level are not unions of groups of the previous level.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) + 0.5
        >>> f = lambda x: x[:, [0]] ** 2 * (x[:, [1]] + x[:, [2]])
        >>> get_tree_node(f, x, get_molecule(f, x, verbose=False), skip_test=False)
        ([[1, 2], [2]], [['Id', 'GS'], ['Mul']])
    """
    check_rows(x, least=2)
    inputs = list(range(x.shape[1]))
    for each in moleculess:
        if sorted(itertools.chain(*each)) != inputs or not all(each):
            raise ValueError(f"moleculess must have each of {len(inputs)} inputs once in each level, got {each}")
    for below, above in itertools.pairwise(moleculess):
        starts = {part[0]: part for part in below}
        if any([i for start in group if start in starts for i in starts[start]] != group for group in above):
            raise ValueError(f"moleculess must join whole groups from level to level, got {above} after {below}")
    arities: list[list[int]] = []
    properties: list[list[str]] = []
    for level, (below, above) in enumerate(itertools.pairwise(moleculess)):
        parts = [_parts(group, below) for group in above]
        arities.append([len(groups) for groups in parts])
        last = level == len(moleculess) - 2
        properties.append([_property(model, x, groups, sep_th, skip_test, last) for groups in parts])
    return arities, properties


def _property(model: Function, x: Tensor, groups: Groups, sep_th: float, skip_test: bool, last: bool) -> str:
    if len(groups) == 1:
        return "Id"
    if skip_test:
        return ""
    if last:
        for mode, name in (("mul", "Mul"), ("add", "Add")):
            if test_separability(model, x, groups, mode=mode, threshold=sep_th):
                return name
    return "GS" if test_general_separability(model, x, groups, threshold=sep_th) else ""


class Label(Kind):
    """Argument kind: a string, a sympy symbol or a sympy expression."""

    def read(self, name: str, value: Any) -> Any:
        return value if isinstance(value, str) else EXPRESSION.read(name, value)


LEVEL_HEIGHT = 0.5
HALF_BOX = 0.15  # Half the height of a box
MARGIN = 0.3  # Distance between the outermost input of a box and its side, as a fraction of the distance of two inputs


@checked(
    model=Callback(), in_var=Optional(Each(Label())), style=Choice(("tree", "box")), sym_th=Real(least=0),
    sep_th=Real(least=0), skip_sep_test=Flag(), verbose=Flag(),
)  # fmt: skip
def plot_tree(
    model: Function,
    x: Tensor,
    in_var: Sequence[Any] | None = None,
    style: str = "tree",
    sym_th: float = 1e-3,
    sep_th: float = 1e-1,
    skip_sep_test: bool = False,
    verbose: bool = False,
) -> Figure:
    """Draw a tree that shows how a function combines its inputs.

    The inputs are at the bottom of the tree, and the output is at the top.

    Args:
        model, x: as in :func:`get_molecule`.
        in_var: names of the inputs, as strings or sympy symbols (default: x_1, x_2, ...).
        style: ``"tree"`` draws separable groups as lines that meet, with + or × for a sum or a product, and all other
            groups as boxes. ``"box"`` draws all groups as boxes that contain the result of :func:`get_tree_node`.
        sym_th, sep_th: thresholds that are passed to :func:`get_molecule` and :func:`get_tree_node`.
        skip_sep_test: whether to skip the tests of separability.
        verbose: whether to print each test.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: if the number of names differs from the number of inputs.
        ImportError: if matplotlib is not installed.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) + 0.5
        >>> figure = plot_tree(lambda x: x[:, [0]] ** 2 * (x[:, [1]] + x[:, [2]]), x)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['×', '$x_{1}$', '$x_{2}$', '$x_{3}$']
    """
    import sympy

    from .plot import open_pyplot, show_once

    check_rows(x, least=2)
    count = x.shape[1]
    given = [f"x_{{{i + 1}}}" for i in range(count)] if in_var is None else in_var
    names = [name.strip("$") if isinstance(name, str) else sympy.latex(name) for name in given]
    if len(names) != count:
        raise ValueError(f"in_var must have {count} names, one for each input, got {len(names)}")
    levels = get_molecule(model, x, sym_th=sym_th, verbose=verbose)
    _, properties = get_tree_node(model, x, levels, sep_th=sep_th, skip_test=skip_sep_test)

    figure, axes = open_pyplot().subplots()
    show_once(figure)
    order = [i for (i,) in levels[0]]
    position = {i: (n + 0.5) / count for n, i in enumerate(order)}
    center = {id(group): position[group[0]] for group in levels[0]}
    for group in levels[0]:
        axes.plot([center[id(group)]] * 2, [0, LEVEL_HEIGHT / 2 - HALF_BOX], color="black")
    for level, (below, above) in enumerate(itertools.pairwise(levels)):
        middle = (level + 0.5) * LEVEL_HEIGHT
        for group, kind in zip(above, properties[level]):
            parts = _parts(group, below)
            ends = [position[i] for i in group]
            at = (min(ends) + max(ends)) / 2
            center[id(group)] = at
            low, high = middle - HALF_BOX, middle + HALF_BOX
            if style == "tree" and (kind in ("GS", "Add", "Mul", "Id")):
                for part in parts:
                    axes.plot([center[id(part)], at], [low, high], color="black" if kind == "Id" else "blue")
                if kind in ("Add", "Mul"):
                    symbol = "+" if kind == "Add" else "×"  # noqa: RUF001
                    axes.text(at, high, symbol, ha="center", va="center", color="red", fontsize=40)
            else:
                half = (max(ends) - min(ends)) / 2 + MARGIN / count
                left, right = at - half, at + half
                axes.plot([left, right, right, left, left], [low, low, high, high, low], color="black")
                if style == "box":
                    axes.text(at, middle, kind, ha="center", va="center", fontsize=15)
            axes.plot([at, at], [high, middle + LEVEL_HEIGHT - HALF_BOX], color="black")
    for i in order:
        axes.text(position[i], -0.05 * len(levels), f"${names[i]}$", ha="center", fontsize=20)
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    return figure
