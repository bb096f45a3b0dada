"""Formatting of tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def table(align: str, *rows: Sequence[str]) -> str:
    """Format rows as text with aligned columns.

    The string ``align`` contains an "l" (left) or an "r" (right) for each column.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width) for side, cell, width in zip(align, row, widths)
        ).rstrip()
        for row in rows
    )
