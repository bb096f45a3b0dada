"""Pictures: the network, one of its edges, and the history of its fits."""

from __future__ import annotations

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
from ..network.edges import edge_kinds
from .data import METRICS, curves, evenly, may_have_poles, ranges, rows_for, shown_edges, some_of, within
from .draw import COLORS, draw
from .layout import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..network.core import Network

USUAL_SCALE = 0.5
DPI, MAX_PIXELS = 200, 30000
POINTS, RUG = 401, 500  # of an edge's curve, and samples under it
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
    """Draw the network: inputs below, outputs above, and on its way from node to node each edge's curve.

    A curve is drawn over the range of its node's samples, and fills its box. Splines are black, formulas red, the sum
    of both purple; what is off is not drawn. The more an edge matters the less transparent it is: its alpha is
    ``tanh(beta * score)``. A cross in a circle adds or multiplies. The model stays as it is.

    Args:
        folder: where ``kan.png`` is written; None writes nothing.
        beta: the greater, the more is seen of edges that matter little.
        mask: whether to hide what :meth:`prune` would drop.
        metric: the score: ``"backward"`` (:meth:`attribute`), or the spread of an edge's values, by itself
            (``"forward_u"``) or for one of its input's (``"forward_n"``).
        scale: of the whole picture; 0.5 is the usual size.
        tick: whether boxes show the ranges of their curves.
        sample: whether samples are marked on the curves.
        in_vars: names of the inputs, or of all columns of x; texts, which may hold ``$formulas$``, or sympy
            expressions. None names column n ``x_{n+1}``.
        out_vars: names of the outputs.
        title: above everything.
        varscale: of the names' size.
        mode: of older versions, without a meaning now.
        ax: axes to draw into; None makes a figure with ``pyplot``.
        x: ``[..., in_features]`` samples; None takes the rows of the last fit or, before any, points spread
            over the first grids. Of a very large batch some rows serve.
        max_edges: of a layer with more, only the strongest are drawn, and a note says so.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: for arguments out of range, and if nothing is finite that could be drawn.
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
        warn("mode has no meaning here: a score is a spread, or made of spreads")
    pyplot = open_pyplot()
    _check_axes(ax)

    with torch.no_grad():
        _, nodes = rows_for(model, x)
        edges = shown_edges(model, nodes, metric, hide, max_edges)
        picture = draw(model, nodes, edges, beta, tick, sample, inputs, outputs, title, varscale)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)  # before there is a figure, as it may fail
    if ax is None:
        size = [side * scale / USUAL_SCALE for side in picture.size]
        figure = pyplot.figure(figsize=size, facecolor="white", layout="none")
        ax = figure.add_axes((0, 0, 1, 1))
        show_once(figure)
    picture.onto(ax)
    figure = ax.figure.figure  # of a subfigure the whole
    if folder is not None:
        dpi = min(DPI, MAX_PIXELS / max(figure.get_size_inches()))
        figure.savefig(Path(folder) / FILE, dpi=dpi, pil_kwargs={"compress_level": 3})
    return figure


@kinds.checked(l=INDEX, i=INDEX, j=INDEX, title=TITLE)
def plot_edge(
    model: Network,
    l: int,
    i: int,
    j: int,
    ax: Axes | None = None,
    *,
    x: Tensor | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the function of one edge, over the samples of its node, which are marked on the lower side.

    The spline is black, a formula red; where both add up, their sum is purple. Where the samples go beyond the grid,
    its ends are marked.

    Args:
        l: layer of edges.
        i: node that it comes from.
        j: subnode that it goes to.
        ax: axes to draw into; None makes a figure with ``pyplot``.
        x: samples, as in :meth:`plot`.
        title: above it; None names the edge.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: for an edge that is not there, and if nothing is finite that could be drawn.
        ImportError: without matplotlib.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.plot_edge(0, 1, 3).get_title()
        'edge (0, 1, 3)'
    """
    if l >= model.depth:
        raise ValueError(f"l must be below {model.depth}, the layers of edges; got {l}")
    if i >= model.width_in[l]:
        raise ValueError(f"i must be below {model.width_in[l]}, the nodes of layer {l}; got {i}")
    if j >= model.width_out[l + 1]:
        raise ValueError(f"j must be below {model.width_out[l + 1]}, the subnodes of layer {l + 1}; got {j}")
    pyplot = open_pyplot()
    _check_axes(ax)
    edge = torch.tensor([i]), torch.tensor([j])
    with torch.no_grad():
        _, nodes = rows_for(model, x, l)
        low, high = ranges(model.layers[l], nodes[l])
        at, samples = evenly(low, high, POINTS), some_of(nodes[l], RUG)
        numeric, formula = curves(model, l, *edge, at)
        whole = numeric + formula
        if not bool(whole.isfinite().any()):
            raise ValueError(f"nothing can be drawn: edge ({l}, {i}, {j}) is NaN or infinite over its samples' range")
        singular = bool(may_have_poles(model, l, *edge))
        if singular:  # no line across a pole
            bottom, top = within(whole, torch.add(*curves(model, l, *edge, samples)), torch.tensor([True]))
            whole, formula = (torch.where((y >= bottom) & (y <= top), y, torch.nan) for y in (whole, formula))
        limits = grid.interior(model.layers[l].knots, model.layers[l].spline_order)[i]
        is_numeric, is_formula = (bool(on[i, j]) for on in edge_kinds(model, l))
    if ax is None:
        ax = pyplot.figure(figsize=(4.5, 3.4), layout="constrained").add_subplot()
    places, both = _floats(at[:, i]), is_numeric and is_formula
    ink = ax.xaxis.label.get_color()  # black, but in a dark style

    def line(gid: str, values: Tensor, color: Any, label: str, style: str = "-") -> None:
        ax.plot(places, _floats(values[:, 0]), style, color=color, label=label, gid=gid)

    part = "--" if both else "-"
    if is_formula:
        line("symbolic", formula, COLORS["symbolic"], _formula(model, l, i, j), part)
    if is_numeric:
        line("numeric", numeric, ink, "spline", part)
    if both:
        line("both", whole, COLORS["both"], "sum")
    if not (is_numeric or is_formula):
        line("off", torch.zeros_like(whole), "0.6", "off")
    if is_numeric:
        for end in _floats(limits[[0, -1]]):
            if places[0] < end < places[-1]:
                ax.axvline(end, color="0.6", linestyle=":", linewidth=1, zorder=0, gid="grid")
    ax.plot(
        _floats(samples[:, i]), [0.015] * len(samples), "|", color=ink, alpha=0.35, markersize=7,
        transform=ax.get_xaxis_transform(), gid="samples",
    )  # fmt: skip
    ax.margins(y=0.12)
    ax.set_xlabel(_node_name(model, l, i), usetex=False)
    ax.set_ylabel("value of the edge")
    ax.set_title(f"edge ({l}, {i}, {j})" if title is None else title)
    if is_formula or not is_numeric:
        ax.legend(frameon=False, fontsize="small")
    return ax


def plot_history(model_or_results: Network | Mapping | Sequence[Mapping]) -> Figure:
    """Draw how the losses and the regularisation went, step by step.

    Args:
        model_or_results: a network, for all its fits one after another; what :meth:`fit` returned; or a list of that.

    Returns:
        The figure: losses above, and below, if there was any, the regularisation.

    Raises:
        TypeError: for something else.
        ValueError: if nothing has been fitted.
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
    ink = axes[0].xaxis.label.get_color()  # black, but in a dark style
    panels: list[tuple[str, Any, str | None, str]] = [
        ("train_loss", axes[0], "train", ink),
        ("test_loss", axes[0], "test", "red"),
    ]
    if reg:
        panels.append(("reg", axes[1], None, ink))
    for key, ax, label, color in panels:
        first = 1
        for one in fits:
            steps, values = len(one["train_loss"]), [float(value) for value in one.get(key, ())]
            if values:  # of another length where it was recorded less often
                every = (steps - 1) / max(1, len(values) - 1)
                places = [first + every * n for n in range(len(values))]
                marker = "." if len(values) == 1 else None
                ax.plot(places, values, color=color, label=label, linewidth=1.3, marker=marker, gid=key)
                label = None
            first += steps
    for ax in axes:
        first = 1
        for one in fits[:-1]:
            first += len(one["train_loss"])
            ax.axvline(first - 0.5, color="0.7", linestyle=":", linewidth=1, zorder=0, gid="fit")
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
    """One name for each input that the network reads."""
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
    sympy = sys.modules.get("sympy")  # whoever has an expression has imported it
    texts = []
    for n, name in enumerate(names):
        if isinstance(name, str):
            texts.append(name)
        elif sympy is not None and isinstance(name, sympy.Basic):
            latex = f"${sympy.latex(name)}$"
            texts.append(latex if readable(latex) else str(name))
        else:
            raise TypeError(f"{argument}[{n}] must be a str or a sympy expression, got {type(name).__name__}")
    return texts


def _floats(values: Tensor) -> list[float]:
    return values.detach().double().cpu().tolist()


def _formula(model: Network, layer: int, i: int, j: int) -> str:
    """c f(a x + b) + d, to three digits."""
    symbolic = model.symbolic[layer]
    place, edge = next((n, edge) for n, edge in enumerate(symbolic.edges) if edge[:2] == (i, j))
    a, b, c, d = _floats(symbolic.affine[place])
    argument = _linear(a, "x", b)
    if edge.name.isidentifier() or not re.search(r"\bx\b", edge.name):
        called = f"{edge.name}({argument})"
    else:  # x^2, 1/x
        called = re.sub(r"\bx\b", "x" if argument == "x" else f"({argument})", edge.name)
    return _linear(c, called, d)


def _linear(factor: float, of: str, more: float) -> str:
    scaled = {"1": of, "-1": f"-{of}"}.get(f"{factor:.3g}", f"{factor:.3g} {of}")
    return scaled if more == 0 else f"{scaled} {'+' if more > 0 else '-'} {abs(more):.3g}"


def _node_name(model: Network, layer: int, i: int) -> str:
    if layer == 0:
        return f"$x_{{{int(model.input_id[i]) + 1}}}$"
    return f"node {i} of layer {layer}"


# -- matplotlib ---------------------------------------------------------------------------------------


def open_pyplot() -> Any:
    """Return ``matplotlib.pyplot``.

    Raises:
        ImportError: without matplotlib; the message says how to install it.
    """
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
