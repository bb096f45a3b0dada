"""Plots of a network, of one of its edges, and of the history of its fits."""

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
from ..network.trace import check_edge, edge_kinds
from .data import METRICS, curves, evenly_spaced, may_have_poles, ranges, rows_for, shown_edges, some_of, value_limits
from .draw import COLORS, draw
from .layout import is_drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..network.core import Network

USUAL_SCALE = 0.5
DPI, MAX_PIXELS = 200, 30000
POINTS, MAX_SAMPLES = 401, 500  # points of the curve, and samples marked under it, in the plot of one edge
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
    """Draw the network, inputs below and outputs above, with the curve of each edge in a box between its two nodes.

    A curve is drawn over the range of its node's samples and fills its box. Splines are black, formulas red, sums of
    both purple; edges that are off are not drawn. The alpha of an edge is ``tanh(beta * score)``, so that unimportant
    edges are transparent. Circles with a cross are additions (+) and multiplications (x). The model is not changed.

    Args:
        folder: folder into which ``kan.png`` is written; None writes nothing.
        beta: factor of the scores; with a larger one, unimportant edges are more visible.
        mask: whether to hide the edges that :meth:`prune` would remove.
        metric: the score of an edge: ``"backward"`` is that of :meth:`attribute`, ``"forward_u"`` the standard
            deviation of its values, ``"forward_n"`` this divided by the standard deviation of its input.
        scale: size of the picture; 0.5 is the usual size.
        tick: whether the limits of each curve are written beside its box.
        sample: whether samples are marked on the curves.
        in_vars: names of the inputs that the network reads, or of all columns of x: texts, which may contain
            ``$formulas$``, or sympy expressions. None names column n ``x_{n+1}``.
        out_vars: names of the outputs.
        title: title of the picture.
        varscale: factor of the size of the names.
        mode: without effect; an argument of older versions.
        ax: axes to draw into; None makes a figure with ``pyplot``.
        x: ``[..., in_features]`` samples; None takes the rows of the last fit or, before any, points spread over the
            first grids. Of a very large batch only some rows, drawn at random, are used.
        max_edges: number of edges drawn of each layer; of more only the strongest are drawn, and a note says so.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: for arguments out of range, and if there are no finite values to draw.
        RuntimeError: for ``mask=True`` before :meth:`prune`.
        ImportError: without matplotlib.

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
        Path(folder).mkdir(parents=True, exist_ok=True)  # may raise, so it comes before a figure is opened
    if ax is None:
        size = [side * scale / USUAL_SCALE for side in picture.size]
        figure = pyplot.figure(figsize=size, facecolor="white", layout="none")
        ax = figure.add_axes((0, 0, 1, 1))
        show_once(figure)
    picture.draw_onto(ax)
    figure = ax.figure.figure  # the figure itself if the axes are in a subfigure
    if folder is not None:
        dpi = min(DPI, MAX_PIXELS / max(figure.get_size_inches()))
        figure.savefig(Path(folder) / FILE, dpi=dpi, pil_kwargs={"compress_level": 3})
    return figure


@kinds.checked(l=INDEX, i=INDEX, j=INDEX, title=TITLE)
def plot_edge(
    model: Network, l: int, i: int, j: int, ax: Axes | None = None, *, x: Tensor | None = None, title: str | None = None
) -> Axes:
    """Draw the function of one edge over the range of its node's samples, which are marked at the lower side.

    A spline is black, a formula red; if the edge has both, their sum is purple. Ends of the grid that lie within the
    range are marked.

    Args:
        l: layer of edges.
        i: node at which the edge begins.
        j: subnode at which it ends.
        ax: axes to draw into; None makes a figure with ``pyplot``.
        x: samples, as in :meth:`plot`.
        title: title of the axes; None names the edge.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: for an edge that does not exist, and if there are no finite values to draw.
        ImportError: without matplotlib.

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
        if bool(may_have_poles(model, l, *edge)):  # no line is drawn across a pole
            bottom, top = value_limits(total, torch.add(*curves(model, l, *edge, samples)), torch.tensor([True]))
            total, formula = (torch.where((y >= bottom) & (y <= top), y, torch.nan) for y in (total, formula))
        limits = grid.interior(model.layers[l].knots, model.layers[l].spline_order)[i]
        is_numeric, is_formula = (bool(on[i, j]) for on in edge_kinds(model, l))
    if ax is None:
        ax = pyplot.figure(figsize=(4.5, 3.4), layout="constrained").add_subplot()
    positions, both = _floats(at[:, i]), is_numeric and is_formula
    ink = ax.xaxis.label.get_color()  # black, or white in a dark style

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
    """Draw the losses and the penalty of each step.

    Args:
        model_or_results: a network, for all its fits one after another; a result of :meth:`fit`; or a list of results.

    Returns:
        The figure, with the losses above and, unless it was 0 throughout, the penalty below.

    Raises:
        TypeError: for anything else.
        ValueError: if there are no steps to draw.
        ImportError: without matplotlib.

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
    ink = axes[0].xaxis.label.get_color()  # black, or white in a dark style
    panels = [
        ("train_loss", axes[0], "train", ink),
        ("test_loss", axes[0], "test", "red"),
        ("reg", axes[-1], None, ink),
    ]
    for key, ax, label, color in panels if reg else panels[:2]:
        first = 1
        for one in fits:
            steps, values = len(one["train_loss"]), [float(value) for value in one.get(key, ())]
            if values:  # fewer than the steps if they were recorded less often
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
    """Names of the inputs that the network reads."""
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
    sympy = sys.modules.get("sympy")  # imported already if a name is an expression
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
    """The formula c f(a x + b) + d of an edge, with numbers rounded to three digits."""
    symbolic = model.symbolic[layer]
    row, edge = next((n, edge) for n, edge in enumerate(symbolic.edges) if edge[:2] == (i, j))
    a, b, c, d = _floats(symbolic.affine[row])
    argument = _linear(a, "x", b)
    if edge.name.isidentifier() or not re.search(r"\bx\b", edge.name):
        value = f"{edge.name}({argument})"
    else:  # a name that is an expression, as x^2 or 1/x
        value = re.sub(r"\bx\b", "x" if argument == "x" else f"({argument})", edge.name)
    return _linear(c, value, d)


def _linear(factor: float, term: str, constant: float) -> str:
    scaled = {"1": term, "-1": f"-{term}"}.get(f"{factor:.3g}", f"{factor:.3g} {term}")
    return scaled if constant == 0 else f"{scaled} {'+' if constant > 0 else '-'} {abs(constant):.3g}"


# -- matplotlib ---------------------------------------------------------------------------------------


def open_pyplot() -> Any:
    """Return ``matplotlib.pyplot``, or raise an ImportError that says how to install it."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    return pyplot


def show_once(figure: Any) -> None:
    """Make a notebook show a figure once, although it would show both a cell's value and all open figures."""
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
        pyplot.close(figure)  # else pyplot shows it again at the end of the cell


def _check_axes(ax: object) -> None:
    if ax is not None and not hasattr(ax, "add_collection"):
        raise TypeError(f"ax must be matplotlib axes or None, got {type(ax).__name__}")
