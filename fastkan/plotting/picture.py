"""A picture as lists of lines, boxes, circles and texts, and these put onto axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .layout import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZORDER = {"lines": 1, "links": 1, "curves": 3, "symbols": 5}


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
