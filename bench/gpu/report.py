"""The results of ``python -m bench.gpu`` as tables, in the READMEs and in ``bench/results/<gpu>.json``.

``python -m bench.gpu.report OUT`` publishes a run on a GPU, and ``python -m bench.report`` updates the READMEs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..records import RESULTS
from ..records import place as described
from ..report import markdown, spread_text
from . import bars, predict

FILE = "results.json"
WORD = re.compile(r"\b[A-Z]+\d+\w*\b")  # the model of a GPU, such as H100, A100, L40S or B200
NOTHING = (
    "Nothing has run on a GPU yet, so there is no measured GPU figure here; [another page](gpu/README.md) says what "
    "must be reached and how it will be measured. Until then, a cost model predicts the values."
)
STATE = "**they have not run on a GPU yet**, so there is no GPU figure here."
LEGEND = (
    "Times are medians from a cold cache, ± half the distance of the quartiles. Measured values are ratios within the "
    "rounds of one run. The error is the largest deviation from float64, of outputs and gradients, divided by the "
    "largest value."
)


def bars_table(results: Sequence[Mapping[str, Any]], predicted: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return a table of text with a row for each bar.

    Args:
        results: the results of the stage ``speed``.
        predicted: dict from the name of each bar to the value that the cost model predicts. If None, the table has no
            column of predictions.
    """
    rows = []
    for found in bars.judged(results):
        bar, value = found.bar, found.value
        sign = "≥" if bar.quantity == bars.SPEED else "≤"
        row = {
            "bar": bar.name,
            "least": f"{sign} {bar.text(bar.least)}",
            "aim": f"{sign} {bar.text(bar.aim)}",
            "predicted": bar.text(predicted[bar.name]) if predicted and bar.name in predicted else "-",
            "measured": "-" if value is None else f"{bar.text(value.median)} ± {(value.high - value.low) / 2:.2f}",
            "fastkan ms": spread_text(found.seconds, 1e3) or "-",
            "error": "-" if found.error is None else f"{found.error:.0e}",
            "": found.verdict if found.why is None else f"{found.verdict}: {found.why}",
        }
        if predicted is None:
            del row["predicted"]
        rows.append(row)
    return pd.DataFrame(rows).set_index("bar")


def times_table(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table of text with a row for each contestant of each measured row."""
    rows = []
    for result in results:
        for name, found in result["contestants"].items():
            against = {anchor: ratio for anchor, ratio in found.get("ratios", {}).items() if anchor != name}
            rows.append({
                "row": f"{result['name']}: {name}",
                "ms": spread_text(found.get("seconds"), 1e3) or "-",
                "in a row, ms": f"{1e3 * found['in_a_row_seconds']:.3g}" if "in_a_row_seconds" in found else "-",
                "ratios": ", ".join(f"{ratio[0]:.2f} of {anchor}" for anchor, ratio in against.items()),
                "error": f"{found['error']:.0e}" if "error" in found else "-",
                "": found.get("note", ""),
            })  # fmt: skip
    return pd.DataFrame(rows).set_index("row") if rows else pd.DataFrame()


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return descriptions of the stages that failed in a run and of fastkan's wrong or failing contestants."""
    found = list(results.get("failures", ()))
    for result in results.get("speed", ()):
        for name, entry in result["contestants"].items():
            if "note" in entry and name not in (bars.PLAIN, bars.COMPILED, bars.INKAN, bars.LINEAR):
                found.append(f"{result['name']}, {name}: {entry['note']}")
    return found


# -- publishing -------------------------------------------------------------------------------------


def published(folder: Path) -> dict[str, dict[str, Any]]:
    """Return a dict from the name of each GPU file in a folder to its content."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: data for name, data in found.items() if isinstance(data, dict) and "gpu" in data.get("about", ())}


def slug(name: str) -> str:
    """Return the file name for a GPU, such as ``h100`` for ``NVIDIA H100 80GB HBM3``."""
    found = WORD.search(name)
    words = found[0] if found else name.removeprefix("NVIDIA ")
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def publish(results: dict[str, Any], folder: Path, commit: str | None = None) -> Path:
    """Write the results of a run as a GPU's file, and return its path.

    Args:
        results: the results that ``python -m bench.gpu`` has written.
        folder: folder of the file.
        commit: the commit whose code ran, if the code was a copy without the history of git.

    Raises:
        ValueError: if the run was a rehearsal, if its commit is unknown, or if the code had uncommitted changes.
    """
    about = dict(results["about"])
    if about["rehearsal"]:
        raise ValueError("the times of a rehearsal mean nothing and are not published")
    about["commit"] = commit or about["commit"]
    if about["commit"] is None or about["commit"].endswith("+"):
        raise ValueError(f"the run must be of a commit, got {about['commit']}; --commit names it")
    path = folder / f"{slug(about['gpu']['name'])}.json"
    path.write_text(json.dumps({**results, "about": about}, indent=1) + "\n", encoding="utf-8")
    return path


def state(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence that says which GPUs have been measured."""
    if not found:
        return STATE
    words = []
    for data in found.values():
        met = sum(one.verdict in (bars.AIM, bars.MET) for one in bars.judged(data["speed"]))
        words.append(f"{data['about']['gpu']['name']} ({met} of {len(bars.BARS)} bars met)")
    return f"they have been measured on {' and '.join(words)}: [the figures](bench/README.md#on-a-gpu)."


def block(found: Mapping[str, Mapping[str, Any]], predicted: Mapping[str, float] | None = None) -> str:
    """Return the tables of all GPUs for the README, or of predictions if nothing has been measured.

    Args:
        found: dict from the name of each GPU file to its content.
        predicted: the predicted values of the bars, as for :func:`bars_table` (default: those of the cost model).
    """
    if not found:
        return f"{NOTHING}\n\n{predict.block()}"
    predicted = predict.predicted() if predicted is None else predicted
    parts = []
    for data in found.values():
        gpu = data["about"]["gpu"]
        parts += [markdown(bars_table(data["speed"], predicted)), LEGEND]
        parts.append(f"Measured on {gpu['name']}, driver {gpu.get('driver_version')}; {described(data['about'])}.")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Publish a run. Return 0, or exit with code 2 if the run must not be published."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.report", description=(__doc__ or "").splitlines()[2])
    arguments.add_argument("out", type=Path, metavar="OUT", help="folder of python -m bench.gpu")
    arguments.add_argument("--commit", help="commit that ran, if it ran from a copy without history")
    arguments.add_argument("--folder", type=Path, default=RESULTS, help="folder of the file (default bench/results)")
    options = arguments.parse_args(argv)
    try:
        path = publish(json.loads((options.out / FILE).read_text()), options.folder, options.commit)
    except (OSError, ValueError) as problem:
        arguments.error(str(problem))
    print(f"{path}. Now: python -m bench.report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
