"""Where everything in the picture of a network is, in inches before scaling; y grows upwards from the inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..network.architecture import Architecture

MAX_WIDTH, MIN_WIDTH = 14.0, 2.2
MAX_WIDTH_WITH_RANGES = 20.0
SLOT = 0.5  # for one box
SLOT_WITH_RANGES, MIN_SLOT_WITH_RANGES = 1.1, 0.9
RANGES = 0.27  # beside a box with ranges, and under it
BOX = 0.42
TALLEST = 2.2  # a narrow box's height for its width
SYMBOL = 0.085  # radius
DOT = 0.045
CROWDED = 0.38  # radius for the space of a node
NODE_SPACE = 0.34
TO_PRODUCTS = 0.42
MAX_HEIGHT = 30.0
LABEL_SIZES = (13.0, 11.0, 9.5, 8.0)  # points
UPRIGHT_SIZES = (10.0, 8.0, 6.5)
MEASURED = 10.0  # points
LINE = 1.25  # a line's height for its size
GAP = 0.06  # between a label and what is next to it


class Boxes(NamedTuple):
    """The edges' boxes of one layer: their middles, lower end and size."""

    x: list[float]
    y: float
    width: float
    height: float
    ranges: bool  # whether there is room for their ranges


class Level(NamedTuple):
    """One layer of nodes; where none multiply, subnodes and nodes are at the same place."""

    sub_x: list[float]
    sub_y: float
    node_x: list[float]
    node_y: float
    radius: float


class Layout(NamedTuple):
    """The picture but for its texts: from 0 to ``width``, and from the inputs' height 0 to that of the last level."""

    width: float
    levels: list[Level]
    boxes: list[Boxes]


class Label(NamedTuple):
    """A name under or over a node."""

    node: int
    x: float
    text: str
    size: float
    upright: bool
    width: float
    height: float
    descent: float


def arrange(architecture: Architecture, counts: Sequence[int], tick: bool, least_width: float = 0.0) -> Layout:
    """Place nodes and boxes.

    Args:
        counts: boxes of each layer of edges.
        tick: whether boxes need room for their ranges.
        least_width: of the picture, for its title.
    """
    slot = SLOT_WITH_RANGES if tick else SLOT
    places = [nodes * max((1, *arities)) for nodes, arities in zip(architecture.nodes, architecture.arities)]
    wanted = max([slot * count for count in counts] + [NODE_SPACE * count for count in places])
    width = min(MAX_WIDTH_WITH_RANGES if tick else MAX_WIDTH, max(wanted, MIN_WIDTH, least_width))
    depth = architecture.depth
    gap = min(1.2, max(0.5, 0.1 * width))
    gap = max(0.35, min(gap, MAX_HEIGHT / (2 * depth) - BOX))

    inputs = _spread(architecture.nodes[0], width)
    levels = [Level(inputs, 0.0, inputs, 0.0, min(DOT, CROWDED * width / len(inputs)))]
    boxes = []
    y = 0.0
    for layer, count in enumerate(counts):
        one = _boxes(count, width, y + gap, tick)
        boxes.append(one)
        y = one.y + one.height + gap
        node_x = _spread(architecture.nodes[layer + 1], width)
        groups = architecture.factors(layer + 1)
        share = width / len(node_x) / max(len(group) for group in groups)  # of one factor
        sub_x = [x + (n - (len(group) - 1) / 2) * share for x, group in zip(node_x, groups) for n in range(len(group))]
        above = TO_PRODUCTS if architecture.arities[layer + 1] else 0.0
        levels.append(Level(sub_x, y, node_x, y + above, min(SYMBOL, CROWDED * share)))
        y += above
    return Layout(width, levels, boxes)


def _spread(count: int, width: float) -> list[float]:
    return [(n + 0.5) * width / count for n in range(count)]


def _boxes(count: int, width: float, y: float, tick: bool) -> Boxes:
    slot = width / max(1, count)
    ranges = tick and slot >= MIN_SLOT_WITH_RANGES
    size = slot - 2 * RANGES if ranges else min(BOX, 0.76 * slot)
    size = min(size, SLOT_WITH_RANGES - 2 * RANGES)
    height = max(size, min(0.75 * BOX, TALLEST * size))
    return Boxes(_spread(count, width), y + RANGES * ranges, size, height, ranges)


# -- texts --------------------------------------------------------------------------------------------


def extent(text: str, size: float) -> tuple[float, float, float]:
    """Width, height and descent of a text in inches, without anything to draw it on."""
    lines = [_measured_line(line) for line in text.split("\n")]
    width, height, descent = max(line[0] for line in lines), max(line[1] for line in lines), lines[-1][2]
    inches = size / MEASURED / 72
    return width * inches, (height + LINE * MEASURED * (len(lines) - 1)) * inches, descent * inches


def readable(text: str) -> bool:
    """Whether what stands between dollar signs is a formula that matplotlib can draw."""
    return all(_measured_line(line)[3] for line in text.split("\n"))


def _measured_line(line: str) -> tuple[float, float, float, bool]:
    return measured(re.sub("[0-9]", "0", line) or " ")  # digits are equally wide


@lru_cache(maxsize=1024)
def measured(line: str) -> tuple[float, float, float, bool]:
    """Of a line, in points at the size ``MEASURED``; cleared for each picture, fonts may have changed."""
    from matplotlib.cbook import is_math_text
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=MEASURED, math_fontfamily="cm")
    try:
        return (*text_to_path.get_text_width_height_descent(line, font, is_math_text(line)), True)
    except ValueError:
        return (*text_to_path.get_text_width_height_descent(line, font, False), False)


def labels_of(texts: Sequence[str], places: Sequence[float], first: Iterable[int], times: float) -> list[Label]:
    """Names at their nodes, that do not overlap: as large as there is room for, upright where they are long and, if
    even so there is no room for all, only some.

    Args:
        texts: one for each of ``places``.
        first: indices, those first that should rather be there.
        times: what all sizes are multiplied by.
    """
    if not texts:
        return []
    space = min((b - a for a, b in pairwise(places)), default=MAX_WIDTH)
    shortest = 0.5 * LABEL_SIZES[-1] * times / 72
    if shortest <= space:
        tries = [(size * times, False) for size in LABEL_SIZES] + [(size * times, True) for size in UPRIGHT_SIZES]
        for size, upright in tries:
            labels = [_label(n, places[n], text, size, upright) for n, text in enumerate(texts)]
            if all(_apart(a, b) for a, b in pairwise(labels)):
                return labels
    size = LABEL_SIZES[-1] * times
    upright = _label(0, 0.0, max(texts, key=len), size, False).width > 0.6
    placed: list[Label] = []
    for n in first:
        if all(abs(places[n] - other.x) > other.width / 2 + shortest / 2 for other in placed):
            label = _label(n, places[n], texts[n], size, upright)
            if all(_apart(label, other) for other in placed):
                placed.append(label)
    return sorted(placed)


def _label(node: int, x: float, text: str, size: float, upright: bool) -> Label:
    width, height, descent = extent(text, size)
    if upright:
        width, height, descent = height, width, 0.0
    return Label(node, x, text, size, upright, width, height, descent)


def _apart(one: Label, other: Label) -> bool:
    return abs(one.x - other.x) >= (one.width + other.width) / 2 + GAP


def wrapped(pieces: Sequence[str], size: float, width: float) -> str:
    """Pieces of text in lines that are no wider, as far as that can be."""
    lines = [""]
    for piece in pieces:
        longer = f"{lines[-1]} {piece}".strip()
        if lines[-1] and extent(longer, size)[0] > width:
            lines.append(piece)
        else:
            lines[-1] = longer
    return "\n".join(lines)
