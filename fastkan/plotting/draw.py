"""The picture of a network: its edges, nodes and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .data import KINDS, Shown, curves, evenly, may_have_poles, ranges, some_of, within
from .layout import (
    BOX,
    GAP,
    RANGES,
    Boxes,
    Label,
    Layout,
    arrange,
    extent,
    labels_of,
    measured,
    readable,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..network.core import Network

COLORS = {"numeric": "black", "symbolic": "red", "both": "purple"}
IDLE = "0.72"  # of nodes that no edge touches that can be seen
NOTE = "0.35"
INSIDE = 0.1  # of a box, left free around its curve
DOTS = 60  # samples marked on a curve
SEEN = 512  # samples by which a curve's ends are judged
MARGIN = 0.16
TITLE_SIZE, NOTE_SIZE, RANGE_SIZE = 14.0, 8.0, 6.0
TITLE_GAP = 0.13
SEEN_ALPHA = 0.03
MIN_SYMBOL = 0.028  # a smaller circle has no cross
ZORDER = {"lines": 1, "links": 1, "curves": 3, "symbols": 5}


def draw(
    model: Network,
    nodes: list[Tensor],
    edges: list[Shown],
    beta: float,
    tick: bool,
    sample: bool,
    inputs: Sequence[str],
    outputs: Sequence[str],
    title: str | None,
    varscale: float,
) -> Picture:
    """Make the picture; see :func:`fastkan.plotting.plot`."""
    measured.cache_clear()
    title_size = extent(title or "", TITLE_SIZE)
    layout = arrange(model.architecture, [len(shown.i) for shown in edges], tick, title_size[0])
    picture = Picture()
    for layer, shown in enumerate(edges):
        _draw_edges(picture, model, layer, shown, layout, nodes[layer], beta, sample)
    touched = _touched(model, edges, beta)
    _draw_nodes(picture, model, layout, touched)
    _draw_words(picture, layout, edges, touched, inputs, outputs, varscale, tick)
    if title:
        size = TITLE_SIZE * min(1.0, layout.width / max(title_size[0], 1e-3))
        picture.words.append(Words("title", layout.width / 2, picture.top + TITLE_GAP + title_size[2], title, size))
        picture.top += TITLE_GAP + title_size[1]
    picture.left -= MARGIN
    picture.right += MARGIN
    picture.bottom -= MARGIN
    picture.top += MARGIN
    return picture


# -- edges --------------------------------------------------------------------------------------------


def _draw_edges(
    picture: Picture,
    model: Network,
    layer: int,
    shown: Shown,
    layout: Layout,
    nodes: Tensor,
    beta: float,
    sample: bool,
) -> None:
    from matplotlib.colors import to_rgb

    if not len(shown.i):
        return
    boxes, below, above = layout.boxes[layer], layout.levels[layer], layout.levels[layer + 1]
    low, high = ranges(model.layers[layer], nodes)
    i, j = shown.i, shown.j
    seen_at = some_of(nodes, SEEN)
    values, seen = (torch.add(*curves(model, layer, i, j, at)) for at in (evenly(low, high), seen_at))
    least, most = (end.cpu() for end in within(values, seen, may_have_poles(model, layer, i, j)))
    left, right = (end[i.to(end.device)].double().cpu() for end in (low, high))

    def placed(at: Tensor, value: Tensor) -> list[Any]:
        """Points ``[N, E]`` inside their boxes, as E lists of pairs; what leaves a box is NaN."""
        share_x = (at.double().cpu() - left) / (right - left)
        share_y = (value.double().cpu() - least) / (most - least)
        share_y = torch.where((share_y >= -1e-6) & (share_y <= 1 + 1e-6), share_y, torch.nan)
        corner = torch.tensor(boxes.x, dtype=torch.float64) - boxes.width / 2
        x = corner + boxes.width * (INSIDE + (1 - 2 * INSIDE) * share_x)
        y = boxes.y + boxes.height * (INSIDE + (1 - 2 * INSIDE) * share_y)
        return list(torch.stack([x, y], 2).transpose(0, 1).numpy())

    points = placed(evenly(low, high)[:, i.to(nodes.device)], values)
    marked = max(12, int(DOTS * min(1.0, boxes.width / BOX)))
    dots = placed(seen_at[:marked, i.to(nodes.device)], seen[:marked]) if sample else None
    alpha = torch.tanh(beta * shown.score).tolist()
    lines: list[Any] = []
    colors: list[Any] = []
    curve_colors: list[Any] = []
    kept: list[Any] = []
    thin = min(1.0, 0.45 + boxes.width / 0.5)
    stub = RANGES - 0.04 if boxes.ranges else 0.0
    for e in shown.drawn.nonzero().flatten().tolist():
        color = (*to_rgb(COLORS[KINDS[shown.kind[e]]]), alpha[e])
        x, top = boxes.x[e], boxes.y + boxes.height
        up = [(below.node_x[i[e]], below.node_y), (x, boxes.y - stub), (x, boxes.y)]
        lines += [up if stub else up[::2], [(x, top), (above.sub_x[j[e]], above.sub_y)]]
        colors += [color, color]
        kept.append(points[e])
        curve_colors.append(color)
        picture.boxes.append((x - boxes.width / 2, boxes.y, boxes.width, boxes.height))
        picture.box_colors.append(color)
        if dots is not None:
            picture.dots += [(*at, 2.4 * thin, color) for at in dots[e].tolist() if math.isfinite(at[1])]
        if boxes.ranges and alpha[e] >= SEEN_ALPHA:
            _draw_ranges(picture, boxes, x, [end[e].item() for end in (left, right, least, most)], values[:, e])
    picture.lines.append(Lines("lines", lines, colors, 0.9 * thin))
    picture.lines.append(Lines("curves", kept, curve_colors, (0.7 if sample else 1.4) * thin))


def _draw_ranges(picture: Picture, boxes: Boxes, x: float, ends: list[float], values: Tensor) -> None:
    """From where to where a curve goes, under its box and on its left."""
    left, right, least, most = ends
    side, under, top = x - boxes.width / 2, boxes.y - 0.04, boxes.y + boxes.height
    flat = bool((values == values[0]).all())

    def put(x: float, y: float, value: float, ha: str, va: str) -> None:
        picture.words.append(Words("tick", x, y, _short(value), RANGE_SIZE, NOTE, ha, va))

    put(side, under, left, "center", "top")
    put(side + boxes.width, under, right, "center", "top")
    if flat:
        put(side - 0.03, (boxes.y + top) / 2, values[0].item(), "right", "center")
    else:
        put(side - 0.03, boxes.y, least, "right", "bottom")
        put(side - 0.03, top, most, "right", "top")


def _short(value: float) -> str:
    """A number in a few letters."""
    if 100 <= abs(value) < 10000:
        text = f"{value:.0f}"
    elif value == 0 or 0.01 <= abs(value) < 100:
        text = f"{value:.2g}"
    else:
        digits, exponent = f"{value:.0e}".split("e")
        text = f"{digits}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


# -- nodes --------------------------------------------------------------------------------------------


class Touched(NamedTuple):
    """What the drawn edges touch, of each level."""

    kept: list[list[bool]]  # nodes with an edge
    nodes: list[list[bool]]  # with one that can be seen
    subnodes: list[list[bool]]  # the same of subnodes
    strength: list[list[float]]  # of the inputs and outputs
    hides: bool  # whether edges are hidden


def _touched(model: Network, edges: list[Shown], beta: float) -> Touched:
    shape = model.architecture
    kept, nodes = ([[False] * count for count in shape.nodes] for _ in range(2))
    subnodes = [[False] * count for count in shape.subnodes]
    strength = [[0.0] * count for count in shape.nodes]
    for layer, shown in enumerate(edges):
        owner = {subnode: node for node, group in enumerate(shape.factors(layer + 1)) for subnode in group}
        ends = zip(shown.i.tolist(), shown.j.tolist(), shown.score.tolist(), shown.drawn.tolist())
        for i, j, score, drawn in ends:
            if not drawn:
                continue
            kept[layer][i] = kept[layer + 1][owner[j]] = True
            strength[layer][i] += score
            strength[layer + 1][owner[j]] += score
            if math.tanh(beta * score) >= SEEN_ALPHA:
                nodes[layer][i] = nodes[layer + 1][owner[j]] = subnodes[layer + 1][j] = True
    return Touched(kept, nodes, subnodes, strength, not all(bool(shown.drawn.all()) for shown in edges))


def _draw_nodes(picture: Picture, model: Network, layout: Layout, touched: Touched) -> None:
    crosses: list[Any] = []
    cross_colors: list[str] = []
    links: list[Any] = []
    link_colors: list[str] = []

    def operation(x: float, y: float, radius: float, color: str, multiplies: bool) -> None:
        picture.circles.append((x, y, radius, color, radius < MIN_SYMBOL))
        if radius >= MIN_SYMBOL:
            arm = 0.6 * radius
            a, b = (arm * math.sqrt(0.5),) * 2 if multiplies else (arm, 0.0)
            crosses.extend([[(x - a, y - b), (x + a, y + b)], [(x - b, y + a), (x + b, y - a)]])
            cross_colors.extend([color, color])

    for number, level in enumerate(layout.levels):
        groups, sums = model.architecture.factors(number), model.architecture.sums[number]
        for node, group in enumerate(groups):
            inner = 0 < number < len(layout.levels) - 1
            if inner and touched.hides and not touched.kept[number][node]:
                continue
            color = "black" if touched.nodes[number][node] else IDLE
            at = level.node_x[node], level.node_y
            if number == 0:
                picture.circles.append((*at, level.radius, color, True))
                continue
            for subnode in group:
                seen = "black" if touched.subnodes[number][subnode] else IDLE
                if level.node_y == level.sub_y:
                    seen = color
                operation(level.sub_x[subnode], level.sub_y, level.radius, seen, False)
                if level.node_y > level.sub_y:
                    links.append([(level.sub_x[subnode], level.sub_y), at])
                    link_colors.append(seen)
            if node >= sums:
                operation(*at, level.radius, color, True)
            elif level.node_y > level.sub_y:
                picture.circles.append((*at, level.radius / 2, color, True))
    picture.lines.append(Lines("links", links, link_colors, 0.9))
    picture.lines.append(Lines("symbols", crosses, cross_colors, 0.9))


# -- words --------------------------------------------------------------------------------------------


def _draw_words(
    picture: Picture,
    layout: Layout,
    edges: list[Shown],
    touched: Touched,
    inputs: Sequence[str],
    outputs: Sequence[str],
    varscale: float,
    tick: bool,
) -> None:
    """Names, and a note of what is left out; the picture's sides grow by them."""
    bottom, top = layout.levels[0], layout.levels[-1]
    picture.left, picture.right = 0.0, layout.width
    picture.bottom, picture.top = -bottom.radius, top.node_y + top.radius

    def names(gid: str, texts: Sequence[str], places: list[float], level: int) -> list[Label]:
        strength = touched.strength[level]
        order = sorted((n for n in range(len(texts)) if touched.kept[level][n]), key=lambda n: -strength[n])
        labels = labels_of(texts, places, order, varscale)
        y = picture.bottom - GAP if gid == "in_var" else picture.top + GAP
        ascent = max((label.height - label.descent for label in labels if not label.upright), default=0.0)
        descent = max((label.descent for label in labels), default=0.0)
        for label in labels:
            color = "black" if touched.nodes[level][label.node] else IDLE
            if label.upright:
                words = Words(gid, label.x, y, label.text, label.size, color, va="top" if gid == "in_var" else "bottom")
                words = words._replace(upright=True)
            else:
                base = y + descent if gid == "out_var" else y - ascent
                words = Words(gid, label.x, base, label.text, label.size, color)
                if gid == "in_var" and "\n" in label.text:
                    words = words._replace(y=y, va="top")
            picture.words.append(words)
            picture.left = min(picture.left, label.x - label.width / 2)
            picture.right = max(picture.right, label.x + label.width / 2)
        room = GAP + max((label.height for label in labels), default=0.0)
        if gid == "in_var":
            picture.bottom -= max(room, GAP + ascent + descent)
        else:
            picture.top += max(room, GAP + ascent + descent)
        return labels

    shown_names = names("in_var", inputs, bottom.node_x, 0)
    names("out_var", outputs, top.node_x, -1)
    note = _note(edges, tick, layout, len(inputs) - len(shown_names))
    if any(map(any, touched.kept)) and not any(map(any, touched.nodes)):
        note.append("No edge can be seen: raise beta, or give samples that vary.")
    if note:
        text = wrapped(note, NOTE_SIZE, picture.right - picture.left)
        height = extent(text, NOTE_SIZE)[1]
        picture.bottom -= 0.14
        picture.words.append(Words("note", picture.left, picture.bottom, text, NOTE_SIZE, NOTE, "left", "top"))
        picture.bottom -= height


def _note(edges: list[Shown], tick: bool, layout: Layout, unnamed: int) -> list[str]:
    """What is not in the picture, in pieces between which a line may end."""
    left_out = [(layer, shown) for layer, shown in enumerate(edges) if shown.left_out]
    pieces = []
    for layer, shown in left_out:
        count = int(shown.drawn.sum())
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
    """Lines of one sort, which ``ZORDER`` lists."""

    gid: str
    segments: list[Any]
    colors: list[Any]
    width: float


class Words(NamedTuple):
    """A text and where it is."""

    gid: str
    x: float
    y: float
    text: str
    size: float
    color: str = "black"
    ha: str = "center"
    va: str = "baseline"
    upright: bool = False


class Picture:
    """What is drawn, in inches before scaling."""

    def __init__(self) -> None:
        self.lines: list[Lines] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.box_colors: list[Any] = []
        self.circles: list[tuple[float, float, float, str, bool]] = []  # x, y, radius, color, filled
        self.dots: list[tuple[float, float, float, Any]] = []  # x, y, size in points, color
        self.words: list[Words] = []
        self.left = self.right = self.bottom = self.top = 0.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.right - self.left, self.top - self.bottom

    def onto(self, ax: Axes) -> None:
        """Draw it, as large as the axes allow."""
        from matplotlib.collections import EllipseCollection, LineCollection, PatchCollection
        from matplotlib.patches import Rectangle

        figure: Any = ax.figure
        per_inch = min(side / figure.dpi / own for side, own in zip(ax.bbox.size, self.size))
        ax.set(xlim=(self.left, self.right), ylim=(self.bottom, self.top), aspect="equal", facecolor="white")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)

        for gid, zorder in ZORDER.items():
            sorts = [sort for sort in self.lines if sort.gid == gid]
            segments = [segment for sort in sorts for segment in sort.segments]
            colors = [color for sort in sorts for color in sort.colors]
            widths = [sort.width * per_inch for sort in sorts for _ in sort.segments]
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
            across = [2 * r for r in radius]
            faces = [color if full else "white" for color, full in zip(edges, filled)]
            ax.add_collection(
                EllipseCollection(
                    across, across, [0] * len(across), units="xy", offsets=list(zip(x, y)), transOffset=ax.transData,
                    facecolors=faces, edgecolors=edges, linewidths=0.8 * per_inch, zorder=4, gid="nodes",
                ),
                autolim=False,
            )  # fmt: skip
        if self.dots:
            x, y, sizes, inks = zip(*self.dots)
            areas = [(size * per_inch) ** 2 for size in sizes]
            ax.scatter(x, y, s=areas, c=inks, linewidths=0, zorder=3.5, gid="samples")
        for words in self.words:
            ax.text(
                words.x, words.y, words.text, size=words.size * per_inch, color=words.color, ha=words.ha, va=words.va,
                rotation=90 if words.upright else 0, math_fontfamily="cm", usetex=False,
                parse_math=readable(words.text), gid=words.gid, zorder=6,
            )  # fmt: skip
