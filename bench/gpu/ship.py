"""``python -m bench.gpu.ship OUT``: make ``OUT/tuned.json``, which the stage ``tune`` has measured, a shipped table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastkan_kernels.backends.triton import environment

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


def enter(path: Path) -> str:
    """Put a table where shipped ones are, and say what became of it.

    Choices are added to those of the same GPU and versions; a table of others is replaced.

    Raises:
        ValueError: if it is no table, holds nothing, or was rehearsed without a GPU.
        OSError: if it is not there.
    """
    from fastkan_kernels.backends.triton import tables

    table = tables.read(path)
    if "gpu" not in table.metadata:
        raise ValueError(f"{path} was made without a GPU: it is a rehearsal's, and nothing in it was measured")
    if not table.entries:
        raise ValueError(f"{path} holds no choice")
    target = tables.SHIPPED / f"{environment.slug('sm_' + table.metadata['capability'], table.metadata['gpu'])}.json"
    before = tables.read(target) if target.exists() else tables.Table({}, {})
    kept = before.entries if tables.differs(before.metadata, table.metadata) is None else {}
    tables.write(target, {**kept, **table.entries}, table.metadata)
    added = len(table.entries.keys() - kept.keys())
    replaced = f", {len(before.entries)} of other versions replaced" if before.entries and not kept else ""
    return f"{target}: {len(table.entries)} choices, {added} of them new{replaced}"


if __name__ == "__main__":
    sys.exit(main())
