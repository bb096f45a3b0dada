"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def table(align: str, *rows: Sequence[str]) -> str:
    """Return rows of text with aligned columns; ``align`` has an "l" (left) or an "r" (right) for each column."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width) for side, cell, width in zip(align, row, widths)
        ).rstrip()
        for row in rows
    )
