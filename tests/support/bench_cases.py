"""The smallest case of the benchmark, and its measurement."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases import Case
from bench.rivals import Rival
from bench.run import CaseResult, run_case

TINY = Case(40, (3, 4, 2))


def measured(rivals: Sequence[Rival], modes: Sequence[str], patience: float = 15.0) -> CaseResult:
    """Measure the smallest case in the shortest time."""
    return run_case(TINY, rivals, budget=0.02, patience=patience, modes=modes)
