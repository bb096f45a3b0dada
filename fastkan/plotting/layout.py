"""Computation of the positions and sizes of all objects in the picture of a network.

All lengths are in inches at the default scale. The input nodes are at y = 0, and y grows upwards.
"""

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
SLOT = 0.5  # Width that is available for one box and the space around the box
SLOT_WITH_RANGES, MIN_SLOT_WITH_RANGES = 1.1, 0.9
RANGES = 0.27  # Size of the space for numbers to the left of each box and below each box
BOX = 0.42  # Maximum side length of a box without numbers
MAX_BOX_RATIO = 2.2  # Maximum ratio of the height of a box to its width
SYMBOL_RADIUS = 0.085  # Maximum radius of an addition node or multiplication node
DOT_RADIUS = 0.045  # Maximum radius of an input node
MAX_RADIUS_SHARE = 0.38  # Maximum ratio of the radius of a node to the width that is available for the node
NODE_SPACE = 0.34
PRODUCT_HEIGHT = 0.42  # Height of multiplication nodes above their factors
MAX_HEIGHT = 30.0
LABEL_SIZES = (13.0, 11.0, 9.5, 8.0)  # Font sizes of horizontal labels, in points
VERTICAL_SIZES = (10.0, 8.0, 6.5)
MEASURED_SIZE = 10.0  # Font size, in points, at which all texts are measured before the result is scaled
LINE_HEIGHT = 1.25  # Distance of two lines of text divided by the font size
GAP = 0.06  # Minimum distance between a label and the nearest other object


class Boxes(NamedTuple):
    """The boxes of the edges of one layer: the x coordinates of the centers, and the y coordinate of the lower sides
    and the size, which are common to all boxes."""

    x: list[float]
    y: float
    width: float
    height: float
    ranges: bool  # Whether the limits of the curves are written beside the boxes


class Level(NamedTuple):
    """The positions of the nodes and subnodes of one layer of nodes. If the layer has no multiplication nodes, the
    positions of nodes and subnodes are equal."""

    sub_x: list[float]
    sub_y: float
    node_x: list[float]
    node_y: float
    radius: float


class Layout(NamedTuple):
    """The positions of all objects of the picture except texts. All x coordinates are between 0 and ``width``."""

    width: float
    levels: list[Level]
    boxes: list[Boxes]


class Label(NamedTuple):
    """A name that is written below or above a node."""

    node: int
    x: float
    text: str
    size: float
    is_vertical: bool
    width: float
    height: float
    descent: float


def arrange(architecture: Architecture, counts: Sequence[int], tick: bool, min_width: float = 0.0) -> Layout:
    """Compute the positions of the nodes and of the boxes of the edges.

    Args:
        architecture: architecture of the network.
        counts: number of boxes in each layer of edges.
        tick: whether the limits of the curves are written beside the boxes of each layer that has enough space.
        min_width: minimum width of the picture, namely the width of the title.
    """
    slot = SLOT_WITH_RANGES if tick else SLOT
    positions = [nodes * max((1, *arities)) for nodes, arities in zip(architecture.nodes, architecture.arities)]
    needed = max([slot * count for count in counts] + [NODE_SPACE * count for count in positions])
    width = min(MAX_WIDTH_WITH_RANGES if tick else MAX_WIDTH, max(needed, MIN_WIDTH, min_width))
    depth = architecture.depth
    gap = min(1.2, max(0.5, 0.1 * width))
    gap = max(0.35, min(gap, MAX_HEIGHT / (2 * depth) - BOX))

    inputs = _evenly_spaced(architecture.nodes[0], width)
    levels = [Level(inputs, 0.0, inputs, 0.0, min(DOT_RADIUS, MAX_RADIUS_SHARE * width / len(inputs)))]
    boxes = []
    y = 0.0
    for layer, count in enumerate(counts):
        one = _boxes(count, width, y + gap, tick)
        boxes.append(one)
        y = one.y + one.height + gap
        node_x = _evenly_spaced(architecture.nodes[layer + 1], width)
        groups = architecture.factors(layer + 1)
        share = width / len(node_x) / max(len(group) for group in groups)  # Width that is available for one factor
        sub_x = [x + (n - (len(group) - 1) / 2) * share for x, group in zip(node_x, groups) for n in range(len(group))]
        above = PRODUCT_HEIGHT if architecture.arities[layer + 1] else 0.0
        levels.append(Level(sub_x, y, node_x, y + above, min(SYMBOL_RADIUS, MAX_RADIUS_SHARE * share)))
        y += above
    return Layout(width, levels, boxes)


def _evenly_spaced(count: int, width: float) -> list[float]:
    return [(n + 0.5) * width / count for n in range(count)]


def _boxes(count: int, width: float, y: float, tick: bool) -> Boxes:
    slot = width / max(1, count)
    ranges = tick and slot >= MIN_SLOT_WITH_RANGES
    size = slot - 2 * RANGES if ranges else min(BOX, 0.76 * slot)
    size = min(size, SLOT_WITH_RANGES - 2 * RANGES)
    height = max(size, min(0.75 * BOX, MAX_BOX_RATIO * size))
    return Boxes(_evenly_spaced(count, width), y + RANGES * ranges, size, height, ranges)


# -- texts --------------------------------------------------------------------------------------------


def extent(text: str, size: float) -> tuple[float, float, float]:
    """Return a tuple of the width, height and descent of a text, in inches, at a font size in points.

    The text is measured without creating a figure.
    """
    lines = [_measured_line(line) for line in text.split("\n")]
    width, height, descent = max(line[0] for line in lines), max(line[1] for line in lines), lines[-1][2]
    inches = size / MEASURED_SIZE / 72
    return width * inches, (height + LINE_HEIGHT * MEASURED_SIZE * (len(lines) - 1)) * inches, descent * inches


def is_drawable(text: str) -> bool:
    """Whether matplotlib can draw the formulas between dollar signs in a text."""
    return all(_measured_line(line)[3] for line in text.split("\n"))


def _measured_line(line: str) -> tuple[float, float, float, bool]:
    # All digits have the same width. Each digit is replaced by 0, so that lines with different digits share an entry of
    # the cache.
    return measured_line(re.sub("[0-9]", "0", line) or " ")


@lru_cache(maxsize=1024)
def measured_line(line: str) -> tuple[float, float, float, bool]:
    """Return a tuple of the width, height and descent of a line, in points, and whether its formulas can be drawn.

    The line is measured at the font size ``MEASURED_SIZE``. The cache is cleared before each picture is drawn, because
    the user may have changed the fonts of matplotlib.
    """
    from matplotlib.cbook import is_math_text
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=MEASURED_SIZE, math_fontfamily="cm")
    try:
        return (*text_to_path.get_text_width_height_descent(line, font, is_math_text(line)), True)
    except ValueError:
        return (*text_to_path.get_text_width_height_descent(line, font, False), False)


def labels_of(texts: Sequence[str], positions: Sequence[float], order: Iterable[int], factor: float) -> list[Label]:
    """Return the labels of nodes, placed so that they do not overlap.

    The largest font size at which all labels fit is used. Labels are horizontal if possible and vertical otherwise. If
    there is no font size at which all labels fit, the labels are tried one after another in the order of the indices
    ``order``, and each label that overlaps an earlier label is left out.
    """
    if not texts:
        return []
    space = min((b - a for a, b in pairwise(positions)), default=MAX_WIDTH)
    min_label_width = 0.5 * LABEL_SIZES[-1] * factor / 72
    if min_label_width <= space:
        sizes = [(size * factor, False) for size in LABEL_SIZES] + [(size * factor, True) for size in VERTICAL_SIZES]
        for size, is_vertical in sizes:
            labels = [_label(n, positions[n], text, size, is_vertical) for n, text in enumerate(texts)]
            if all(_are_apart(a, b) for a, b in pairwise(labels)):
                return labels
    size = LABEL_SIZES[-1] * factor
    is_vertical = _label(0, 0.0, max(texts, key=len), size, False).width > 0.6
    placed: list[Label] = []
    for n in order:
        if all(abs(positions[n] - other.x) > other.width / 2 + min_label_width / 2 for other in placed):
            label = _label(n, positions[n], texts[n], size, is_vertical)
            if all(_are_apart(label, other) for other in placed):
                placed.append(label)
    return sorted(placed)


def _label(node: int, x: float, text: str, size: float, is_vertical: bool) -> Label:
    width, height, descent = extent(text, size)
    if is_vertical:
        width, height, descent = height, width, 0.0
    return Label(node, x, text, size, is_vertical, width, height, descent)


def _are_apart(one: Label, other: Label) -> bool:
    return abs(one.x - other.x) >= (one.width + other.width) / 2 + GAP


def wrapped(pieces: Sequence[str], size: float, width: float) -> str:
    """Join pieces of text into lines that are not wider than ``width``.

    A piece that is wider than ``width`` is a line by itself.
    """
    lines = [""]
    for piece in pieces:
        longer = f"{lines[-1]} {piece}".strip()
        if lines[-1] and extent(longer, size)[0] > width:
            lines.append(piece)
        else:
            lines[-1] = longer
    return "\n".join(lines)
