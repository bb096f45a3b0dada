"""``python -m bench.gpu.ship OUT``: make ``OUT/tuned.json``, which the stage ``tune`` has measured, a shipped table."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from fastkan_kernels.backends.triton import selection

from .tune import TABLE


def main(argv: list[str] | None = None) -> int:
    """Enter it. Returns 1 if it is no table of a GPU."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.ship", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("out", type=Path, metavar="OUT", help=f"folder with {TABLE}")
    options = arguments.parse_args(argv)
    try:
        print(enter(options.out / TABLE))
    except (OSError, ValueError) as error:
        print(f"nothing is shipped: {error}", file=sys.stderr)
        return 1
    return 0


def _file_name(metadata: dict[str, str]) -> str:
    """Name of a shipped table, such as ``sm_90-h100-80gb-hbm3.json``."""
    plain = re.sub(r"[^a-z0-9._]+", "-", metadata["gpu"].lower().replace("nvidia", " ")).strip("-")
    return f"sm_{metadata['capability']}-{plain}.json"


def enter(path: Path) -> str:
    """Put a table where shipped ones are, and say what became of it.

    Choices are added to those of the same GPU and versions; a table of others is replaced.

    Raises:
        ValueError: if it is no table, holds nothing, or was rehearsed without a GPU.
        OSError: if it is not there.
    """
    table = selection.read_table(path)
    if "gpu" not in table.metadata:
        raise ValueError(f"{path} was made without a GPU: it is a rehearsal's, and nothing in it was measured")
    if not table.entries:
        raise ValueError(f"{path} holds no choice")
    target = selection.SHIPPED / _file_name(table.metadata)
    before = selection.read_table(target) if target.exists() else selection.Table({}, {})
    kept = before.entries if before.metadata == table.metadata else {}
    selection.write_table(target, {**kept, **table.entries}, table.metadata)
    added = len(table.entries.keys() - kept.keys())
    replaced = f", {len(before.entries)} of other versions replaced" if before.entries and not kept else ""
    return f"{target}: {len(table.entries)} choices, {added} of them new{replaced}"


if __name__ == "__main__":
    sys.exit(main())
