"""matplotlib, if there is one, and figures in notebooks."""

from __future__ import annotations

import sys
from functools import partial
from types import FrameType
from typing import Any


def open_pyplot() -> Any:
    """``matplotlib.pyplot``, which opens figures.

    Raises:
        ImportError: without matplotlib; it says how to get it.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    return pyplot


def check_axes(ax: object) -> None:
    """``ax`` is None, or axes."""
    if ax is not None and not hasattr(ax, "add_collection"):
        raise TypeError(f"ax must be matplotlib axes or None, got {type(ax).__name__}")


def show_once(figure: Any) -> None:
    """Let a notebook show an open figure by pyplot alone, at the end of the cell, and not as the cell's value too."""
    figure._ipython_display_ = partial(_display, figure)


def _display(figure: Any) -> None:
    from IPython.display import display
    from matplotlib import get_backend, pyplot

    if "inline" in get_backend().lower() and pyplot.fignum_exists(figure.number) and _is_cells_value():
        return
    own = figure.__dict__.pop("_ipython_display_")
    try:
        display(figure)
    finally:
        figure._ipython_display_ = own


def _is_cells_value() -> bool:
    """Whether the display hook asks, which prints the value of a cell, and not pyplot or the user's own ``display``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_locals.get("self") is sys.displayhook:
            return True
        frame = frame.f_back
    return False
