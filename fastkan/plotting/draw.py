"""Drawing of a network: its edges, nodes and texts are first collected in lists, which are then drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import layout as placing
from .data import KINDS, ShownEdges, curves, evenly_spaced, may_have_poles, ranges, some_of, value_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..network.core import Network

COLORS = {"numeric": "black", "symbolic": "red", "both": "purple"}
IDLE_COLOR = "0.72"  # Color of nodes without a visible edge
NOTE_COLOR = "0.35"
PADDING = 0.1  # Fraction of the width and height of a box that is left free on each side of the curve
MAX_DOTS = 60  # Maximum number of samples that are marked on a curve
LIMIT_SAMPLES = 512  # Maximum number of samples from which the limits of a curve with a pole are computed
# Lengths are in inches at the default scale, and text sizes are in points
MARGIN = 0.16
TITLE_SIZE, NOTE_SIZE, RANGE_SIZE = 14.0, 8.0, 6.0
TITLE_GAP = 0.13
MIN_ALPHA = 0.03  # Minimum alpha of a visible edge
MIN_SYMBOL = 0.028  # Minimum radius of a circle that is drawn with a cross
ZORDER = {"lines": 1, "links": 1, "curves": 3, "symbols": 5}


def draw(
    model: Network,
    nodes: list[Tensor],
    edges: list[ShownEdges],
    beta: float,
    tick: bool,
    sample: bool,
    inputs: Sequence[str],
    outputs: Sequence[str],
    title: str | None,
    varscale: float,
) -> Picture:
    """Create the picture for :func:`fastkan.plotting.plot`, given the inputs ``nodes [N, nodes]`` of each layer."""
    placing.measured_line.cache_clear()
    title_size = placing.extent(title or "", TITLE_SIZE)
    layout = placing.arrange(model.architecture, [len(shown.i) for shown in edges], tick, title_size[0])
    picture = Picture()
    for layer, shown in enumerate(edges):
        _draw_edges(picture, model, layer, shown, layout, nodes[layer], beta, sample)
    connections = _connections(model, edges, beta)
    _draw_nodes(picture, model, layout, connections)
    _draw_texts(picture, layout, edges, connections, inputs, outputs, varscale, tick)
    if title:
        size = TITLE_SIZE * min(1.0, layout.width / max(title_size[0], 1e-3))
        y = picture.top + TITLE_GAP + title_size[2]
        picture.texts.append(PlacedText("title", layout.width / 2, y, title, size))
        picture.top += TITLE_GAP + title_size[1]
    picture.left, picture.right = picture.left - MARGIN, picture.right + MARGIN
    picture.bottom, picture.top = picture.bottom - MARGIN, picture.top + MARGIN
    return picture


# -- edges --------------------------------------------------------------------------------------------


def _draw_edges(
    picture: Picture, model: Network, layer: int, shown: ShownEdges, layout: placing.Layout, nodes: Tensor, beta: float,
    sample: bool,
) -> None:  # fmt: skip
    from matplotlib.colors import to_rgb

    if not len(shown.i):
        return
    boxes, below, above = layout.boxes[layer], layout.levels[layer], layout.levels[layer + 1]
    low, high = ranges(model.layers[layer], nodes)
    i, j = shown.i, shown.j
    samples = some_of(nodes, LIMIT_SAMPLES)
    values, at_samples = (torch.add(*curves(model, layer, i, j, at)) for at in (evenly_spaced(low, high), samples))
    bottom, top = (end.cpu() for end in value_limits(values, at_samples, may_have_poles(model, layer, i, j)))
    left, right = (end[i.to(end.device)].double().cpu() for end in (low, high))

    def in_boxes(at: Tensor, value: Tensor) -> list[Any]:
        """Return the positions of points ``[N, E]`` inside the boxes of E edges, as a list of E arrays ``[N, 2]``.

        The positions of points above or below a box are NaN.
        """
        share_x = (at.double().cpu() - left) / (right - left)
        share_y = (value.double().cpu() - bottom) / (top - bottom)
        share_y = torch.where((share_y >= -1e-6) & (share_y <= 1 + 1e-6), share_y, torch.nan)
        corner = torch.tensor(boxes.x, dtype=torch.float64) - boxes.width / 2
        x = corner + boxes.width * (PADDING + (1 - 2 * PADDING) * share_x)
        y = boxes.y + boxes.height * (PADDING + (1 - 2 * PADDING) * share_y)
        return list(torch.stack([x, y], 2).transpose(0, 1).numpy())

    points = in_boxes(evenly_spaced(low, high)[:, i.to(nodes.device)], values)
    count = max(12, int(MAX_DOTS * min(1.0, boxes.width / placing.BOX)))
    dots = in_boxes(samples[:count, i.to(nodes.device)], at_samples[:count]) if sample else None
    alpha = torch.tanh(beta * shown.score).tolist()
    lines: list[Any] = []
    colors: list[Any] = []
    curve_lines: list[Any] = []
    curve_colors: list[Any] = []
    thickness = min(1.0, 0.45 + boxes.width / 0.5)
    # Each line from below ends in a vertical part of length ``stub``, which passes between the two limits of the input
    # that are written below the box. Without limits, the line is straight.
    stub = placing.RANGES - 0.04 if boxes.ranges else 0.0
    for e in shown.is_drawn.nonzero().flatten().tolist():
        color = (*to_rgb(COLORS[KINDS[shown.kind[e]]]), alpha[e])
        x, box_top = boxes.x[e], boxes.y + boxes.height
        up = [(below.node_x[i[e]], below.node_y), (x, boxes.y - stub), (x, boxes.y)]
        lines += [up if stub else up[::2], [(x, box_top), (above.sub_x[j[e]], above.sub_y)]]
        colors += [color, color]
        curve_lines.append(points[e])
        curve_colors.append(color)
        picture.boxes.append((x - boxes.width / 2, boxes.y, boxes.width, boxes.height))
        picture.box_colors.append(color)
        if dots is not None:
            picture.dots += [(*at, 2.4 * thickness, color) for at in dots[e].tolist() if math.isfinite(at[1])]
        if boxes.ranges and alpha[e] >= MIN_ALPHA:
            _draw_ranges(picture, boxes, x, [end[e].item() for end in (left, right, bottom, top)], values[:, e])
    picture.lines.append(Lines("lines", lines, colors, 0.9 * thickness))
    picture.lines.append(Lines("curves", curve_lines, curve_colors, (0.7 if sample else 1.4) * thickness))


def _draw_ranges(picture: Picture, boxes: placing.Boxes, x: float, limits: list[float], values: Tensor) -> None:
    """Write the limits of the input of a curve below its box, and the limits of its values to the left of the box."""
    left, right, bottom, top = limits
    side, under, box_top = x - boxes.width / 2, boxes.y - 0.04, boxes.y + boxes.height
    is_constant = bool((values == values[0]).all())

    def put(x: float, y: float, value: float, ha: str, va: str) -> None:
        picture.texts.append(PlacedText("tick", x, y, _short(value), RANGE_SIZE, NOTE_COLOR, ha, va))

    put(side, under, left, "center", "top")
    put(side + boxes.width, under, right, "center", "top")
    if is_constant:
        put(side - 0.03, (boxes.y + box_top) / 2, values[0].item(), "right", "center")
    else:
        put(side - 0.03, boxes.y, bottom, "right", "bottom")
        put(side - 0.03, box_top, top, "right", "top")


def _short(value: float) -> str:
    """Format a number in at most about five characters."""
    if 100 <= abs(value) < 10000:
        text = f"{value:.0f}"
    elif value == 0 or 0.01 <= abs(value) < 100:
        text = f"{value:.2g}"
    else:
        digits, exponent = f"{value:.0e}".split("e")
        text = f"{digits}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


# -- nodes --------------------------------------------------------------------------------------------


class Connections(NamedTuple):
    """The nodes and subnodes of each level that are connected to edges in the picture."""

    drawn: list[list[bool]]  # Whether an edge of the node is drawn
    visible: list[list[bool]]  # Whether a drawn edge of the node is opaque enough to be visible
    visible_subnodes: list[list[bool]]
    strength: list[list[float]]  # Sum of the scores of the drawn edges of the node
    hides_edges: bool  # Whether some of the edges that have a box are not drawn


def _connections(model: Network, edges: list[ShownEdges], beta: float) -> Connections:
    shape = model.architecture
    drawn, visible = ([[False] * count for count in shape.nodes] for _ in range(2))
    visible_subnodes = [[False] * count for count in shape.subnodes]
    strength = [[0.0] * count for count in shape.nodes]
    for layer, shown in enumerate(edges):
        owner = {subnode: node for node, group in enumerate(shape.factors(layer + 1)) for subnode in group}
        columns = shown.i.tolist(), shown.j.tolist(), shown.score.tolist(), shown.is_drawn.tolist()
        for i, j, score, is_drawn in zip(*columns):
            if not is_drawn:
                continue
            drawn[layer][i] = drawn[layer + 1][owner[j]] = True
            strength[layer][i] += score
            strength[layer + 1][owner[j]] += score
            if math.tanh(beta * score) >= MIN_ALPHA:
                visible[layer][i] = visible[layer + 1][owner[j]] = visible_subnodes[layer + 1][j] = True
    hides_edges = not all(bool(shown.is_drawn.all()) for shown in edges)
    return Connections(drawn, visible, visible_subnodes, strength, hides_edges)


def _draw_nodes(picture: Picture, model: Network, layout: placing.Layout, connections: Connections) -> None:
    crosses: list[Any] = []
    cross_colors: list[str] = []
    links: list[Any] = []
    link_colors: list[str] = []

    def draw_operation(x: float, y: float, radius: float, color: str, multiplies: bool) -> None:
        picture.circles.append((x, y, radius, color, radius < MIN_SYMBOL))
        if radius >= MIN_SYMBOL:
            arm = 0.6 * radius
            a, b = (arm * math.sqrt(0.5),) * 2 if multiplies else (arm, 0.0)
            crosses.extend([[(x - a, y - b), (x + a, y + b)], [(x - b, y + a), (x + b, y - a)]])
            cross_colors.extend([color, color])

    for number, level in enumerate(layout.levels):
        groups, sums = model.architecture.factors(number), model.architecture.sums[number]
        for node, group in enumerate(groups):
            is_hidden = 0 < number < len(layout.levels) - 1
            if is_hidden and connections.hides_edges and not connections.drawn[number][node]:
                continue
            color = "black" if connections.visible[number][node] else IDLE_COLOR
            at = level.node_x[node], level.node_y
            if number == 0:
                picture.circles.append((*at, level.radius, color, True))
                continue
            for subnode in group:
                sub_color = "black" if connections.visible_subnodes[number][subnode] else IDLE_COLOR
                if level.node_y == level.sub_y:
                    sub_color = color
                draw_operation(level.sub_x[subnode], level.sub_y, level.radius, sub_color, False)
                if level.node_y > level.sub_y:
                    links.append([(level.sub_x[subnode], level.sub_y), at])
                    link_colors.append(sub_color)
            if node >= sums:
                draw_operation(*at, level.radius, color, True)
            elif level.node_y > level.sub_y:
                picture.circles.append((*at, level.radius / 2, color, True))
    picture.lines.append(Lines("links", links, link_colors, 0.9))
    picture.lines.append(Lines("symbols", crosses, cross_colors, 0.9))


# -- texts --------------------------------------------------------------------------------------------


def _draw_texts(
    picture: Picture,
    layout: placing.Layout,
    edges: list[ShownEdges],
    connections: Connections,
    inputs: Sequence[str],
    outputs: Sequence[str],
    varscale: float,
    tick: bool,
) -> None:
    """Add the names of inputs and outputs and a note about omitted parts, and enlarge the picture accordingly."""
    bottom, top = layout.levels[0], layout.levels[-1]
    picture.left, picture.right = 0.0, layout.width
    picture.bottom, picture.top = -bottom.radius, top.node_y + top.radius

    def draw_names(gid: str, texts: Sequence[str], positions: list[float], level: int) -> list[placing.Label]:
        strength = connections.strength[level]
        order = sorted((n for n in range(len(texts)) if connections.drawn[level][n]), key=lambda n: -strength[n])
        labels = placing.labels_of(texts, positions, order, varscale)
        y = picture.bottom - placing.GAP if gid == "in_var" else picture.top + placing.GAP
        ascent = max((label.height - label.descent for label in labels if not label.is_vertical), default=0.0)
        descent = max((label.descent for label in labels), default=0.0)
        for label in labels:
            color = "black" if connections.visible[level][label.node] else IDLE_COLOR
            if label.is_vertical:
                va = "top" if gid == "in_var" else "bottom"
                text = PlacedText(gid, label.x, y, label.text, label.size, color, va=va, is_vertical=True)
            else:
                base = y + descent if gid == "out_var" else y - ascent
                text = PlacedText(gid, label.x, base, label.text, label.size, color)
                if gid == "in_var" and "\n" in label.text:
                    text = text._replace(y=y, va="top")
            picture.texts.append(text)
            picture.left = min(picture.left, label.x - label.width / 2)
            picture.right = max(picture.right, label.x + label.width / 2)
        room = placing.GAP + max((label.height for label in labels), default=0.0)
        if gid == "in_var":
            picture.bottom -= max(room, placing.GAP + ascent + descent)
        else:
            picture.top += max(room, placing.GAP + ascent + descent)
        return labels

    names = draw_names("in_var", inputs, bottom.node_x, 0)
    draw_names("out_var", outputs, top.node_x, -1)
    note = _note(edges, tick, layout, len(inputs) - len(names))
    if any(map(any, connections.drawn)) and not any(map(any, connections.visible)):
        note.append("No edge can be seen: raise beta, or give samples that vary.")
    if note:
        text = placing.wrapped(note, NOTE_SIZE, picture.right - picture.left)
        height = placing.extent(text, NOTE_SIZE)[1]
        picture.bottom -= 0.14
        at = picture.left, picture.bottom
        picture.texts.append(PlacedText("note", *at, text, NOTE_SIZE, NOTE_COLOR, "left", "top"))
        picture.bottom -= height


def _note(edges: list[ShownEdges], tick: bool, layout: placing.Layout, unnamed: int) -> list[str]:
    """Return a note about the parts that the picture omits, as a list of pieces between which a line may be broken."""
    pieces = []
    for layer, shown in enumerate(edges):
        if shown.left_out:
            count = int(shown.is_drawn.sum())
            pieces.append(f"the {count} strongest of {count + shown.left_out} edges of layer {layer},")
    if pieces:
        pieces = [f"Drawn: {pieces[0]}", *pieces[1:]]
        pieces[-1] = pieces[-1][:-1] + "."
    if unnamed:
        pieces.append(f"No room for the names of {unnamed} inputs.")
    if tick and not all(boxes.ranges for boxes in layout.boxes):
        pieces.append("Ranges are left out where boxes are too narrow.")
    return pieces


# -- the picture -------------------------------------------------------------------------------------


class Lines(NamedTuple):
    """Lines of one kind: a key of ``ZORDER``, the points and colors of the lines, and the line width in points."""

    gid: str
    segments: list[Any]
    colors: list[Any]
    width: float


class PlacedText(NamedTuple):
    """A text with its position, size in points, color and alignment."""

    gid: str
    x: float
    y: float
    text: str
    size: float
    color: str = "black"
    ha: str = "center"
    va: str = "baseline"
    is_vertical: bool = False


class Picture:
    """A picture as lists of lines, boxes, circles, dots and texts, with lengths in inches at the default scale."""

    def __init__(self) -> None:
        self.lines: list[Lines] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.box_colors: list[Any] = []
        self.circles: list[tuple[float, float, float, str, bool]] = []  # x, y, radius, color and whether it is filled
        self.dots: list[tuple[float, float, float, Any]] = []  # x, y, size in points and color
        self.texts: list[PlacedText] = []
        self.left = self.right = self.bottom = self.top = 0.0

    @property
    def size(self) -> tuple[float, float]:
        """The width and height of the picture."""
        return self.right - self.left, self.top - self.bottom

    def draw_onto(self, ax: Axes) -> None:
        """Draw the picture on matplotlib axes, as large as the axes allow."""
        from matplotlib.collections import EllipseCollection, LineCollection, PatchCollection
        from matplotlib.patches import Rectangle

        figure: Any = ax.figure
        per_inch = min(side / figure.dpi / own for side, own in zip(ax.bbox.size, self.size))
        ax.set(xlim=(self.left, self.right), ylim=(self.bottom, self.top), aspect="equal", facecolor="white")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)

        for gid, zorder in ZORDER.items():
            groups = [lines for lines in self.lines if lines.gid == gid]
            segments = [segment for lines in groups for segment in lines.segments]
            colors = [color for lines in groups for color in lines.colors]
            widths = [lines.width * per_inch for lines in groups for _ in lines.segments]
            ax.add_collection(
                LineCollection(
                    segments, colors=colors, linewidths=widths, zorder=zorder, gid=gid,
                    capstyle="round", joinstyle="round",
                ),
                autolim=False,
            )  # fmt: skip
        frames = [Rectangle((x, y), width, height) for x, y, width, height in self.boxes]
        ax.add_collection(
            PatchCollection(
                frames, facecolors="white", edgecolors=self.box_colors, linewidths=0.8 * per_inch, zorder=2, gid="boxes"
            ),
            autolim=False,
        )
        if self.circles:
            x, y, radius, edges, filled = zip(*self.circles)
            diameters = [2 * r for r in radius]
            faces = [color if full else "white" for color, full in zip(edges, filled)]
            ax.add_collection(
                EllipseCollection(
                    diameters, diameters, [0] * len(diameters), units="xy", offsets=list(zip(x, y)),
                    transOffset=ax.transData, facecolors=faces, edgecolors=edges,
                    linewidths=0.8 * per_inch, zorder=4, gid="nodes",
                ),
                autolim=False,
            )  # fmt: skip
        if self.dots:
            x, y, sizes, dot_colors = zip(*self.dots)
            areas = [(size * per_inch) ** 2 for size in sizes]
            ax.scatter(x, y, s=areas, c=dot_colors, linewidths=0, zorder=3.5, gid="samples")
        for text in self.texts:
            ax.text(
                text.x, text.y, text.text, size=text.size * per_inch, color=text.color, ha=text.ha, va=text.va,
                rotation=90 if text.is_vertical else 0, math_fontfamily="cm", usetex=False,
                parse_math=placing.is_drawable(text.text), gid=text.gid, zorder=6,
            )  # fmt: skip
