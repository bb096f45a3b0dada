"""The command-line interface of the examples."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(main: Callable[..., Any]) -> None:
    """Call the function ``main(steps, folder)`` of an example with the options of the command line."""
    steps = inspect.signature(main).parameters["steps"].default
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps ({steps})")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the picture goes (the current folder)")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more, got {options.steps}")
    main(options.steps, options.folder)
