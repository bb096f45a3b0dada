"""Functions that plot a network, a single edge of a network, or the history of the fits of a network."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import FLAG, INDEX, warn
from fastkan_kernels import validation as kinds

from ..layers import grid
from ..network.trace import check_edge, check_has_values, edge_kinds
from .data import METRICS, curves, evenly_spaced, may_have_poles, ranges, rows_for, shown_edges, some_of, value_limits
from .draw import COLORS, draw
from .layout import is_drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..network.core import Network

USUAL_SCALE = 0.5
DPI, MAX_PIXELS = 200, 30000
POINTS, MAX_SAMPLES = 401, 500  # Number of points of the curve and maximum number of marked samples in plot_edge
FILE = "kan.png"
POSITIVE, TITLE = kinds.Real(above=0), kinds.Optional(kinds.Text())


@kinds.checked(
    folder=kinds.Optional(kinds.Path()), beta=POSITIVE, mask=FLAG, metric=kinds.Choice(METRICS), scale=POSITIVE,
    tick=FLAG, sample=FLAG, title=TITLE, varscale=POSITIVE, max_edges=kinds.Int(least=1),
)  # fmt: skip
def plot(
    model: Network,
    folder: str | os.PathLike | None = None,
    beta: float = 3.0,
    mask: bool = False,
    metric: str = "backward",
    scale: float = USUAL_SCALE,
    tick: bool = False,
    sample: bool = False,
    in_vars: Sequence | None = None,
    out_vars: Sequence | None = None,
    title: str | None = None,
    varscale: float = 1.0,
    *,
    mode: str | None = None,
    ax: Axes | None = None,
    x: Tensor | None = None,
    max_edges: int = 100,
) -> Figure:
    """Draw the network with the inputs at the bottom, the outputs at the top and the curve of each edge in a box.

    The curve of an edge is drawn over the range of the samples of its input node, and is scaled to fill the box.
    Splines are black, formulas are red, and sums of a spline and a formula are purple. Edges that are off are not
    drawn. The alpha of an edge is ``tanh(beta * score)``, so that unimportant edges are transparent. Circles with a
    cross are additions (+) and multiplications (x). The model is not changed.

    Args:
        folder: folder into which ``kan.png`` is written. If None, no file is written.
        beta: factor of the scores. A larger factor makes unimportant edges more visible.
        mask: whether to hide the edges that :meth:`prune` would remove.
        metric: score of an edge. ``"backward"`` is the score that :meth:`attribute` computes, ``"forward_u"`` is the
            standard deviation of the values of the edge, and ``"forward_n"`` is the standard deviation of the values
            divided by the standard deviation of the input of the edge.
        scale: factor of the size of the picture. A scale of 1 gives twice the default size.
        tick: whether to write the limits of each curve beside its box.
        sample: whether to mark samples on the curves.
        in_vars: names of the inputs that the network uses, or of all columns of x (default: ``x_1``, ``x_2``, ...). The
            names are strings, which may contain ``$formulas$``, or sympy expressions.
        out_vars: names of the outputs, in the same form as ``in_vars``.
        title: title of the picture.
        varscale: factor of the font size of the names.
        mode: argument of older versions, without effect.
        ax: matplotlib axes to draw into (default: the axes of a new ``pyplot`` figure).
        x: samples ``[..., in_features]``. If None, the rows of the last fit are used or, if there was no fit, points
            spread evenly over the first layer's grids. If there are very many samples, a random subset is used.
        max_edges: maximum number of edges drawn per layer. If a layer has more, only the strongest are drawn, and a
            note says so.

    Returns:
        The matplotlib figure.

    Raises:
        TypeError, ValueError: for arguments out of range, and if there are no finite values to draw.
        RuntimeError: if ``mask`` is True and :meth:`prune` has not been called yet, or the network has changed since.
        ImportError: if matplotlib is not installed.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> figure = model.plot(beta=10, in_vars=["a", "b"], title="untrained")
        >>> len(figure.axes)
        1
    """
    hide = None
    if mask:
        hide = getattr(model, "prune_mask", None)
        sizes = [(layer.in_features, layer.out_features) for layer in model.layers]
        if hide is None or [tuple(part.shape) for part in hide] != sizes:
            again = "" if hide is None else " again, the network has changed"
            raise RuntimeError(f"mask=True hides what prune() would drop: call prune() first{again}")
    check_has_values(model)
    inputs, outputs = _inputs(model, in_vars), _outputs(model, out_vars)
    if mode is not None:
        warn("mode has no meaning here: scores are standard deviations, or computed from them")
    pyplot = open_pyplot()
    _check_axes(ax)

    with torch.no_grad():
        _, nodes = rows_for(model, x)
        edges = shown_edges(model, nodes, metric, hide, max_edges)
        picture = draw(model, nodes, edges, beta, tick, sample, inputs, outputs, title, varscale)
    if folder is not None:
        # The folder is created before a figure is opened, because creating a folder may raise an exception
        Path(folder).mkdir(parents=True, exist_ok=True)
    if ax is None:
        size = [side * scale / USUAL_SCALE for side in picture.size]
        figure = pyplot.figure(figsize=size, facecolor="white", layout="none")
        ax = figure.add_axes((0, 0, 1, 1))
        show_once(figure)
    picture.draw_onto(ax)
    figure = ax.figure.figure  # If the axes are in a subfigure, the second ``.figure`` gives the whole figure
    if folder is not None:
        dpi = min(DPI, MAX_PIXELS / max(figure.get_size_inches()))
        figure.savefig(Path(folder) / FILE, dpi=dpi, pil_kwargs={"compress_level": 3})
    return figure


@kinds.checked(l=INDEX, i=INDEX, j=INDEX, title=TITLE)
def plot_edge(
    model: Network, l: int, i: int, j: int, ax: Axes | None = None, *, x: Tensor | None = None, title: str | None = None
) -> Axes:
    """Draw the function of one edge over the range of the samples of its input node.

    A spline is black, and a formula is red. If the edge has both a spline and a formula, their sum is drawn in purple.
    Small lines above the x axis mark the samples. A dotted line marks each end of the grid that lies within the range
    of the samples.

    Args:
        l: index of the layer of edges.
        i: index of the node at which the edge begins.
        j: index of the subnode at which the edge ends.
        ax: matplotlib axes to draw into (default: the axes of a new ``pyplot`` figure).
        x: samples, as in :meth:`plot`.
        title: title of the axes (default: the indices of the edge).

    Returns:
        The matplotlib axes.

    Raises:
        TypeError, ValueError: for an edge that does not exist, and if there are no finite values to draw.
        ImportError: if matplotlib is not installed.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.plot_edge(0, 1, 3).get_title()
        'edge (0, 1, 3)'
    """
    check_edge(model, l, i, j)
    pyplot = open_pyplot()
    _check_axes(ax)
    edge = torch.tensor([i]), torch.tensor([j])
    with torch.no_grad():
        _, nodes = rows_for(model, x, l)
        low, high = ranges(model.layers[l], nodes[l])
        at, samples = evenly_spaced(low, high, POINTS), some_of(nodes[l], MAX_SAMPLES)
        numeric, formula = curves(model, l, *edge, at)
        total = numeric + formula
        if not bool(total.isfinite().any()):
            raise ValueError(f"nothing can be drawn: edge ({l}, {i}, {j}) is NaN or infinite over its samples' range")
        if bool(may_have_poles(model, l, *edge)):  # The curve is interrupted at a pole
            bottom, top = value_limits(total, torch.add(*curves(model, l, *edge, samples)), torch.tensor([True]))
            total, formula = (torch.where((y >= bottom) & (y <= top), y, torch.nan) for y in (total, formula))
        limits = grid.interior(model.layers[l].knots, model.layers[l].spline_order)[i]
        is_numeric, is_formula = (bool(on[i, j]) for on in edge_kinds(model, l))
    if ax is None:
        ax = pyplot.figure(figsize=(4.5, 3.4), layout="constrained").add_subplot()
    positions, both = _floats(at[:, i]), is_numeric and is_formula
    ink = ax.xaxis.label.get_color()  # The color of texts is black, or white in a dark matplotlib style

    def line(gid: str, values: Tensor, color: Any, label: str, style: str = "-") -> None:
        ax.plot(positions, _floats(values[:, 0]), style, color=color, label=label, gid=gid)

    part = "--" if both else "-"
    if is_formula:
        line("symbolic", formula, COLORS["symbolic"], _formula(model, l, i, j), part)
    if is_numeric:
        line("numeric", numeric, ink, "spline", part)
    if both:
        line("both", total, COLORS["both"], "sum")
    if not (is_numeric or is_formula):
        line("off", torch.zeros_like(total), "0.6", "off")
    if is_numeric:
        for end in _floats(limits[[0, -1]]):
            if positions[0] < end < positions[-1]:
                ax.axvline(end, color="0.6", linestyle=":", linewidth=1, zorder=0, gid="grid")
    ax.plot(
        _floats(samples[:, i]), [0.015] * len(samples), "|", color=ink, alpha=0.35, markersize=7,
        transform=ax.get_xaxis_transform(), gid="samples",
    )  # fmt: skip
    ax.margins(y=0.12)
    name = f"$x_{{{int(model.input_id[i]) + 1}}}$" if l == 0 else f"node {i} of layer {l}"
    ax.set_xlabel(name, usetex=False)
    ax.set_ylabel("value of the edge")
    ax.set_title(f"edge ({l}, {i}, {j})" if title is None else title)
    if is_formula or not is_numeric:
        ax.legend(frameon=False, fontsize="small")
    return ax


def plot_history(model_or_results: Network | Mapping | Sequence[Mapping]) -> Figure:
    """Draw the losses and the penalty at each step of one or several fits.

    Args:
        model_or_results: a network, a result of :meth:`fit`, or a list of results. If a network is given, all its fits
            are drawn one after another.

    Returns:
        The matplotlib figure, with the losses in the upper axes. If the penalty was not always 0, the penalty is drawn
        in the lower axes.

    Raises:
        TypeError: if ``model_or_results`` is not a network, a result of :meth:`fit` or a list of results.
        ValueError: if there are no steps to draw.
        ImportError: if matplotlib is not installed.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.history.append({"train_loss": [0.5, 0.2], "test_loss": [], "reg": [0.0, 0.0]})
        >>> len(model.plot_history().axes)
        1
    """
    results = getattr(model_or_results, "history", model_or_results)
    fits: list[Mapping] = [results] if isinstance(results, Mapping) else results  # type: ignore[assignment]
    if not isinstance(fits, Sequence) or not all(isinstance(one, Mapping) and "train_loss" in one for one in fits):
        raise TypeError("model_or_results must be a KAN, or what fit() returned, or a list of that; "
                        f"got {type(model_or_results).__name__}")  # fmt: skip
    fits = [one for one in fits if len(one["train_loss"])]
    if not fits:
        raise ValueError("model_or_results must have steps to draw: call fit() first")
    pyplot = open_pyplot()
    reg = any(float(value) != 0 for one in fits for value in one.get("reg", ()))
    figure = pyplot.figure(figsize=(5.5, 4.6 if reg else 3.2), layout="constrained")
    show_once(figure)
    axes = figure.subplots(2 if reg else 1, 1, sharex=True, squeeze=False)[:, 0]
    ink = axes[0].xaxis.label.get_color()  # The color of texts is black, or white in a dark matplotlib style
    panels = [
        ("train_loss", axes[0], "train", ink),
        ("test_loss", axes[0], "test", "red"),
        ("reg", axes[-1], None, ink),
    ]
    for key, ax, label, color in panels if reg else panels[:2]:
        first = 1
        for one in fits:
            steps, values = len(one["train_loss"]), [float(value) for value in one.get(key, ())]
            if values:  # There are fewer values than steps if values were recorded less often
                every = (steps - 1) / max(1, len(values) - 1)
                positions = [first + every * n for n in range(len(values))]
                marker = "." if len(values) == 1 else None
                ax.plot(positions, values, color=color, label=label, linewidth=1.3, marker=marker, gid=key)
                label = None
            first += steps
    for ends in itertools.accumulate(len(one["train_loss"]) for one in fits[:-1]):
        for ax in axes:
            ax.axvline(ends + 0.5, color="0.7", linestyle=":", linewidth=1, zorder=0, gid="fit")
    losses = [float(value) for one in fits for key in ("train_loss", "test_loss") for value in one.get(key, ())]
    if any(value > 0 for value in losses):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("loss")
    axes[0].legend(frameon=False)
    if reg:
        axes[1].set_ylabel("regularisation")
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


# -- arguments ----------------------------------------------------------------------------------------


def _inputs(model: Network, names: Sequence | None) -> list[str]:
    """Return the names of the inputs that the network uses."""
    ids = model.input_id.tolist()
    if names is None:
        return [f"$x_{{{column + 1}}}$" for column in ids]
    texts = _texts("in_vars", names)
    if len(texts) == len(ids):
        return texts
    if len(texts) == model.in_features:
        return [texts[column] for column in ids]
    counts = sorted({len(ids), model.in_features})
    raise ValueError(f"in_vars must have {' or '.join(map(str, counts))} names, got {len(texts)}")


def _outputs(model: Network, names: Sequence | None) -> list[str]:
    count = model.width_in[-1]
    if names is None:
        return ["$y$"] if count == 1 else [f"$y_{{{n + 1}}}$" for n in range(count)]
    texts = _texts("out_vars", names)
    if len(texts) != count:
        raise ValueError(f"out_vars must have {count} names, got {len(texts)}")
    return texts


def _texts(argument: str, names: Any) -> list[str]:
    if not kinds.is_sequence(names):
        raise TypeError(f"{argument} must be a list of names, got {type(names).__name__}")
    sympy = sys.modules.get("sympy")  # If one of the names is a sympy expression, sympy has already been imported
    texts = []
    for n, name in enumerate(names):
        if isinstance(name, str):
            texts.append(name)
        elif sympy is not None and isinstance(name, sympy.Basic):
            latex = f"${sympy.latex(name)}$"
            texts.append(latex if is_drawable(latex) else str(name))
        else:
            raise TypeError(f"{argument}[{n}] must be a str or a sympy expression, got {type(name).__name__}")
    return texts


def _floats(values: Tensor) -> list[float]:
    return values.detach().double().cpu().tolist()


def _formula(model: Network, layer: int, i: int, j: int) -> str:
    """Return the formula c f(a x + b) + d of an edge as a string, with numbers rounded to three significant digits."""
    symbolic = model.symbolic[layer]
    row, edge = next((n, edge) for n, edge in enumerate(symbolic.edges) if edge[:2] == (i, j))
    a, b, c, d = _floats(symbolic.affine[row])
    argument = _linear(a, "x", b)
    if edge.name.isidentifier() or not re.search(r"\bx\b", edge.name):
        value = f"{edge.name}({argument})"
    else:  # The name of the function is an expression, such as x^2 or 1/x
        value = re.sub(r"\bx\b", "x" if argument == "x" else f"({argument})", edge.name)
    return _linear(c, value, d)


def _linear(factor: float, term: str, constant: float) -> str:
    scaled = {"1": term, "-1": f"-{term}"}.get(f"{factor:.3g}", f"{factor:.3g} {term}")
    return scaled if constant == 0 else f"{scaled} {'+' if constant > 0 else '-'} {abs(constant):.3g}"


# -- matplotlib ---------------------------------------------------------------------------------------


def open_pyplot() -> Any:
    """Return ``matplotlib.pyplot``, or raise an ImportError that says how to install matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    return pyplot


def show_once(figure: Any) -> None:
    """Make a notebook show a figure only once.

    By default a notebook shows a figure twice if the figure is both the value of a cell and an open pyplot figure.
    """
    figure._ipython_display_ = partial(_display, figure)


def _display(figure: Any) -> None:
    from IPython.display import display
    from matplotlib import get_backend, pyplot

    hook = figure.__dict__.pop("_ipython_display_")
    try:
        display(figure)
    finally:
        figure._ipython_display_ = hook
    if "inline" in get_backend().lower():
        pyplot.close(figure)  # Without this call, pyplot would show the figure again at the end of the cell


def _check_axes(ax: object) -> None:
    if ax is not None and not hasattr(ax, "add_collection"):
        raise TypeError(f"ax must be matplotlib axes or None, got {type(ax).__name__}")
