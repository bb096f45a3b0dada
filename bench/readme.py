"""``python -m bench.readme``: the README's tables and a GPU's pictures, made from the figures in ``bench/results``.

Nobody writes a figure there by hand: ``python -m bench --json bench/results/cpu.json`` measures, and
``python -m bench --gpu`` with ``python -m bench.gpu.publish`` on a GPU; this copies, and a test compares.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .gpu import block
from .report import place

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("bench") / "results" / "cpu.json"
BEGIN, END = "<!-- bench.readme: begin -->", "<!-- bench.readme: end -->"
GPU = "<!-- bench.readme: GPU begin -->", "<!-- bench.readme: GPU end -->"
STATE = "<!-- bench.readme: state begin -->", "<!-- bench.readme: state end -->"  # within a line
ANCHOR = "MLP, as many parameters"
MODES = {"step": "Forward and backward", "forward": "Forward alone"}


def tables(results: dict) -> str:
    """What stands between the marks: two tables of ratios, one of memory, and where they are from."""
    names = _names(results)
    parts = [_table(f"{words}, divided by the MLP's time", results, names, mode) for mode, words in MODES.items()]
    parts.append(_memory(results, [name for name in names if "compile" not in name]))
    parts.append(f"Measured on {place(results)}.")
    return "\n\n".join(parts) + "\n"


def inserted(text: str, new: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """``text`` with ``new`` between its marks.

    Raises:
        ValueError: if the marks are not there.
    """
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"the text has no {marks[0]} ... {marks[1]}")
    return f"{before}{begin}{new}{end}{after}"


def rewritten(text: str, cpu: dict, results: Path, root: Path = ROOT) -> str:
    """The README with what the figures say.

    Args:
        cpu: the figures of ``python -m bench``.
        results: the folder of those of GPUs.
        root: from which links go.
    """
    gpus = block.published(results)
    text = inserted(text, f"\n{tables(cpu)}")
    text = inserted(text, block.state(gpus), STATE)
    return inserted(text, f"\n{block.block(gpus, results, root)}", GPU)


def _names(results: dict) -> list[str]:
    """All rivals with a time somewhere, but for the anchor."""
    timed = {row["rival"] for case in results["results"] for row in case["rivals"] if "step" in row}
    order = [row["rival"] for row in results["results"][0]["rivals"]]
    return [name for name in order if name in timed and name != ANCHOR]


def _table(title: str, results: dict, names: list[str], mode: str) -> str:
    def cell(row: dict) -> str:
        ratio = row.get(mode, {}).get("ratios", {}).get(ANCHOR)
        if ratio is None:
            return "-"
        median, half = ratio["median"], (ratio["high"] - ratio["low"]) / 2
        decimals = 0 if median >= 100 else 1 if median >= 10 else 2
        return f"{median:.{decimals}f} ± {half:.{decimals}f}"

    return _markdown(title, results, names, cell)


def _memory(results: dict, names: list[str]) -> str:
    def cell(row: dict) -> str:
        peak = row["peak_bytes"]
        return "-" if peak is None else f"{peak / 2**20:.1f}"

    return _markdown("Peak memory of forward and backward, MiB", results, [*names, ANCHOR], cell)


def _markdown(title: str, results: dict, names: list[str], cell) -> str:
    lines = [f"| {title} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for result in results["results"]:
        case, rows = result["case"], {row["rival"]: row for row in result["rivals"]}
        label = f"{case['rows']} rows, {'-'.join(map(str, case['widths']))}, G={case['grid_size']}"
        lines.append(f"| {label} | " + " | ".join(cell(rows[name]) for name in names) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Draw, and rewrite the README's blocks; with ``--check`` only say whether it is up to date."""
    arguments = argparse.ArgumentParser("python -m bench.readme", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--json", type=Path, default=ROOT / RESULTS, metavar="FILE", help="figures of python -m bench"
    )
    arguments.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is out of date")
    arguments.add_argument(
        "--results", type=Path, default=ROOT / RESULTS.parent, metavar="FOLDER", help="of the files of GPUs"
    )
    options = arguments.parse_args(argv)
    text = options.readme.read_text(encoding="utf-8")
    if not options.check:
        _draw(options.results)
    new = rewritten(text, json.loads(options.json.read_text()), options.results)
    if options.check:
        return int(new != text)
    options.readme.write_text(new, encoding="utf-8")
    return 0


def _draw(results: Path) -> None:
    from .gpu import pictures

    for name, data in block.published(results).items():
        pictures.draw(data, results / name)


if __name__ == "__main__":
    sys.exit(main())
