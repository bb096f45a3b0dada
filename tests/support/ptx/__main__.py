"""Print a table of all builds, the error of each and the instructions that it executes: ``python -m ptx``."""

from __future__ import annotations

import sys
import time

import triton

from .builds import CASES, check
from .memory import Fault


def main(words: list[str]) -> int:
    """Check the builds whose names contain all words, and return the number of those that fail."""
    print(f"Triton {triton.__version__}")
    failures = 0
    for name, case in CASES.items():
        if not all(word in name.split() for word in words):
            continue
        start = time.process_time()
        try:
            report = check(case)
        except (AssertionError, Fault) as fault:
            failures += 1
            print(f"{name}: {type(fault).__name__}: {str(fault)[:600]}", flush=True)
            continue
        executed = sum(n for counts in report.counts for kind, n in counts.items() if " " not in kind)
        print(
            f"{name}: error {report.error:.1e}, {report.share:.2f} of the bound, {executed} warp instructions, "
            f"{time.process_time() - start:.1f} s",
            flush=True,
        )
    print(f"{failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
