"""Results as JSON, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from .cases import Case
from .errors import Error
from .measure import Spread
from .modes import MODES
from .run import CaseResult, Row, Timing

SCHEMA = 1


class Record(NamedTuple):
    """One run.

    Args:
        results: of its cases.
        about: machine, versions and commit, as :func:`bench.machine.describe` gives them.
        settings: what it was asked for.
    """

    results: list[CaseResult]
    about: dict
    settings: dict


def as_json(record: Record) -> dict:
    """All figures, in seconds and bytes."""
    return {
        "schema": SCHEMA,
        **record.about,
        "settings": record.settings,
        "results": [
            {
                "case": result.case._asdict() | {"name": result.case.name},
                "modes": list(result.modes),
                "others": result.others,
                "rivals": [_row_json(row) for row in result.rows],
            }
            for result in record.results
        ],
    }


def _row_json(row: Row) -> dict:
    step = row.timings.get("step")
    return {
        "rival": row.rival,
        "note": row.note,
        "notes": row.notes,
        "error": None if row.error is None else row.error._asdict(),
        "errors": {mode: error._asdict() for mode, error in row.errors.items()},
        "peak_bytes": None if step is None else step.peak_bytes,
        **{
            mode: {
                "seconds": timing.seconds._asdict(),
                "ratios": {name: ratio._asdict() for name, ratio in timing.ratios.items()},
                "peak_bytes": timing.peak_bytes,
            }
            for mode, timing in row.timings.items()
        },
    }


def read(path: Path) -> Record:
    """What ``python -m bench --json`` wrote, also before there were modes but the first two.

    Raises:
        ValueError: if the file is not there, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise ValueError(f"{path} can't be read: {failure.strerror}") from failure
    except ValueError as failure:
        raise ValueError(f"{path} is not JSON: {failure}") from failure
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} is not from python -m bench --json: its schema is {schema!r}, expected {SCHEMA}")
    try:
        about = {name: found[name] for name in ("machine", "versions", "commit")}
        return Record([_result(result) for result in found["results"]], about, found["settings"])
    except (KeyError, TypeError, AttributeError) as failure:
        problem = f"{type(failure).__name__}: {failure}"
        raise ValueError(f"{path} is not from python -m bench --json, or was changed since: {problem}") from failure


def _result(found: dict) -> CaseResult:
    fields = {name: found["case"][name] for name in Case._fields}
    case = Case(**fields | {"widths": tuple(fields["widths"])})
    rows = [_row(row) for row in found["rivals"]]
    timed = [mode for mode in MODES if any(mode in row.timings for row in rows)]
    return CaseResult(case, rows, found["others"], tuple(found.get("modes", timed)))


def _row(found: dict) -> Row:
    return Row(
        found["rival"],
        found["note"],
        None if found["error"] is None else Error(**found["error"]),
        {mode: _timing(found, mode) for mode in MODES if mode in found},
        found.get("notes", {}),
        {mode: Error(**error) for mode, error in found.get("errors", {}).items()},
    )


def _timing(row: dict, mode: str) -> Timing:
    found = row[mode]
    peak = found.get("peak_bytes", row["peak_bytes"] if mode == "step" else None)
    ratios = {name: Spread(**ratio) for name, ratio in found["ratios"].items()}
    return Timing(Spread(**found["seconds"]), ratios, peak)
