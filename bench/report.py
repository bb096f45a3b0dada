"""``python -m bench.report``: write the figures of ``bench/results`` into README.md and bench/README.md.

A page marks each block of figures by ``<!-- bench: NAME -->`` and ``<!-- /bench -->``; this command replaces the text
between the marks, and a test compares, so that no figure is written by hand. The names are those in :func:`_blocks`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from .measure import BUSY
from .records import RESULTS, ROOT, Result, place, read
from .suite.contenders import MLP, NOT_INSTALLED, is_ours
from .suite.errors import BOUND
from .suite.modes import MODES, PLAIN

PAGES = (ROOT / "README.md", ROOT / "bench" / "README.md")
IN_README = {  # the contenders of the small table, and their names there
    "fastkan": "fastkan",
    "inkan, compile_basis": "inkan",
    "plain Cox-de Boor": "plain Cox-de Boor",
    "pykan, speed mode": "pykan, speed mode",
}
LEGEND = (
    "Times are medians in ms, ± half the distance of their quartiles; ratios are medians of the ratios within each "
    "round of the interleaved run, ± likewise. Errors are the largest deviations from float64, divided by the largest "
    "value: of the output y, of the gradient dx with respect to the input, and of the slope dW of a loss along a "
    f"direction in the space of all weights; beyond {BOUND:g} a contender gets no time. MiB is the peak memory of the "
    "last mode of a table, without parameters and input."
)
PENALTIES = (
    "The sparsity terms are pykan's, whose value has the error err reg; another package has its own, and the MLP the "
    "absolute values of its weights."
)


# -- text and tables --------------------------------------------------------------------------------


def digits(value: float) -> str:
    """Three significant digits, or fewer."""
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Decimals of a number with three significant digits."""
    return 0 if value >= 100 else 1 if value >= 10 else 2


def spread_text(spread: Sequence[float] | None, unit: float = 1.0) -> str | None:
    """Median ± half the distance of the quartiles."""
    if spread is None:
        return None
    median, half = spread[0] * unit, (spread[2] - spread[1]) * unit / 2
    return f"{median:.{decimals(median)}f} ± {half:.{decimals(median)}f}"


def console(width: int = 150) -> Console:
    """The terminal, or lines of this width."""
    return Console() if sys.stdout.isatty() else Console(width=width)


def show(to: Console, frame: pd.DataFrame, title: str | None = None, notes: str = "") -> None:
    """Print a table of text; rows of fastkan stand out."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        caption=notes or None, caption_justify="left",
    )  # fmt: skip
    table.add_column(frame.index.name or "", no_wrap=True)
    for heading in frame.columns:
        table.add_column(str(heading), justify="right", overflow="fold")
    for name, *cells in frame.fillna("").itertuples():
        table.add_row(str(name), *map(str, cells), style="bold" if is_ours(str(name)) else None)
    to.print(table)


def markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    return frame.fillna("-").to_markdown(disable_numparse=True, colalign=("left", *["right"] * frame.shape[1]))


# -- results of python -m bench ---------------------------------------------------------------------


def title(result: Result) -> str:
    """A result's case in words."""
    widths = "-".join(map(str, result["widths"]))
    return f"{result['rows']} rows, {widths}, grid {result['grid_size']}, order {result['order']}"


def tables(results: Sequence[Result]) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Title, table and notes: for each case one table of forward with step, and one of each other mode."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["case"], MODES[result["mode"]].table), []).append(result)
    for (_, mode), shown in groups.items():
        words = "" if mode == PLAIN else f": {MODES[mode].words}"
        yield title(shown[0]) + words, _table(shown), _notes(shown)


def _table(shown: Sequence[Result]) -> pd.DataFrame:
    anchors = dict.fromkeys(anchor for result in shown for anchor in result["ratios"])
    timed = [mode for mode in MODES.values() if any(result["mode"] == mode.name for result in shown)]
    listed = [result for result in shown if result["note"] is None or result["error"] is not None]
    columns: dict[str, dict[str, str | None]] = {}
    for mode in timed:
        of = {result["contender"]: result for result in listed if result["mode"] == mode.name}
        columns[f"{mode.heading} ms"] = {name: spread_text(r["seconds"], 1e3) for name, r in of.items()}
        for anchor in anchors:
            heading = f"{mode.heading} /{short_name(anchor)}"
            columns[heading] = {name: spread_text(r["ratios"].get(anchor)) for name, r in of.items()}
    for number, heading in enumerate(timed[-1].errors):
        columns[heading] = {name: f"{r['error'][number]:.0e}" for name, r in of.items() if r["error"]}
    columns["MiB"] = {name: _mebibytes(r) for name, r in of.items()}
    return pd.DataFrame(columns, index=list(dict.fromkeys(result["contender"] for result in listed)))


def _mebibytes(result: Result) -> str | None:
    return None if result["peak_bytes"] is None else f"{result['peak_bytes'] / 2**20:.1f}"


def _notes(shown: Sequence[Result]) -> str:
    notes = [f"{r['contender']}: {r['note']}" for r in shown if r["note"] not in (None, NOT_INSTALLED)]
    load = max(result["load"] or 0.0 for result in shown)
    if load > BUSY:
        notes.append(f"other processes took {load:.0%} of the processor meanwhile")
    return "; ".join(dict.fromkeys(notes))


def legend(results: Sequence[Result]) -> str:
    """The meaning of the figures, and the contenders that are not installed."""
    absent = dict.fromkeys(result["contender"] for result in results if result["note"] == NOT_INSTALLED)
    words = [LEGEND]
    if any(result["mode"] == "sparse" for result in results):
        words.append(PENALTIES)
    if absent:
        words.append(f"Not installed: {', '.join(absent)}.")
    return " ".join(words)


def page(results: Sequence[Result], about: dict) -> str:
    """All tables as Markdown, with the machine."""
    parts = [place(about), legend(results)]
    for words, frame, notes in tables(results):
        parts += [f"### {words}", markdown(frame), *([notes] if notes else [])]
    return "\n\n".join(parts) + "\n"


def short_name(anchor: str) -> str:
    """An anchor's name in headings."""
    return anchor.split(",")[0]


# -- the READMEs ------------------------------------------------------------------------------------


def _layers_frame(results: Sequence[Result], mode: str, value: Callable[[Result], str | None]) -> pd.DataFrame:
    """A row for each case, a column for each contender that has a time in some case."""
    timed = dict.fromkeys(result["contender"] for result in results if result["seconds"] is not None)
    rows: dict[str, dict[str, str | None]] = {}
    for result in results:
        if result["mode"] == mode:
            label = f"{result['rows']} rows, {'-'.join(map(str, result['widths']))}, G={result['grid_size']}"
            rows.setdefault(label, {})[result["contender"]] = value(result)
    return pd.DataFrame.from_dict(rows, orient="index")[list(timed)]


def layers_block(results: Sequence[Result], about: dict) -> str:
    """Ratios to the MLP, and memory, of all contenders."""
    parts = []
    for mode in ("step", "forward"):
        frame = _layers_frame(results, mode, lambda r: spread_text(r["ratios"].get(MLP))).drop(columns=MLP)
        parts.append(markdown(frame.rename_axis(f"{MODES[mode].words}, divided by the MLP's time")))
    memory = _layers_frame(results, "step", _mebibytes)
    eager = [name for name in memory.columns if "compile" not in name]
    parts.append(markdown(memory[eager].rename_axis("Peak memory of forward and backward, MiB")))
    return "\n\n".join([*parts, f"Measured on {place(about)}."])


def speed_block(results: Sequence[Result], about: dict) -> str:
    """The small table: a training step of four contenders as multiples of the MLP's, without the spread."""
    frame = _layers_frame(results, "step", lambda r: digits(r["ratios"][MLP][0]) if MLP in r["ratios"] else None)
    shown = [name for name in IN_README if name in frame]
    return markdown(frame[shown].rename(columns=IN_README).rename_axis("time of a step, the MLP's is 1"))


def conv_block(results: Sequence[Result], about: dict) -> str:
    """The tables of convolutions, one for each number of threads."""
    from .conv import tables

    shown = [f"{title}:\n\n{markdown(frame)}" for title, frame in tables(results)]
    return "\n\n".join([*shown, f"Measured on {place(about)}; other processes took up to {_load(results):.0%}."])


def claims_block(folder: Path) -> str:
    """The verdicts on the claims about KANs."""
    from .claims.__main__ import CLAIMS
    from .claims.page import complete, summary

    return summary(complete(folder, CLAIMS))


def _load(results: Sequence[Result]) -> float:
    return max(result["load"] for result in results)


def _blocks(results: Path) -> Mapping[str, Callable[[], str]]:
    from .gpu import report as gpu
    from .second_order.__main__ import table
    from .workflow.__main__ import summaries
    from .workflow.curve import summary

    def of(name: str, made: Callable[..., str]) -> Callable[[], str]:
        return lambda: made(*read(results / name)[:2])

    return {
        "speed": of("cpu.json", speed_block),
        "layers": of("cpu.json", layers_block),
        "curve": of("fit-curve.json", lambda found, about: "\n".join(f"- {line}" for line in summary(found))),
        "sessions": of("workflow.json", lambda found, about: "\n".join(f"- {line}" for line in summaries(found))),
        "second order": of(
            "second-order.json", lambda found, about: f"{markdown(table(found))}\n\nMeasured on {place(about)}."
        ),
        "convolutions": of("conv.json", conv_block),
        "claims": lambda: claims_block(results / "claims"),
        "gpu": lambda: gpu.block(gpu.published(results)),
        "gpu state": lambda: gpu.state(gpu.published(results)),
    }


def rewritten(text: str, results: Path = RESULTS) -> str:
    """A page with the present figures.

    Raises:
        ValueError: if it names a block that does not exist.
    """
    blocks = _blocks(results)

    def replace(match: re.Match[str]) -> str:
        begin, name, old, end = match.groups()
        if name not in blocks:
            raise ValueError(f"a page has the block {name!r}; there are {', '.join(blocks)}")
        new = blocks[name]()
        return begin + (f"\n{new}\n" if old.startswith("\n") else new) + end

    return re.sub(r"(<!-- bench: (.+?) -->)(.*?)(<!-- /bench -->)", replace, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Rewrite the pages; with ``--check`` return 1 if a page is out of date."""
    arguments = argparse.ArgumentParser("python -m bench.report", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    arguments.add_argument("--pages", nargs="+", type=Path, default=PAGES, metavar="FILE")
    arguments.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = arguments.parse_args(argv)
    stale = False
    for path in options.pages:
        text = path.read_text(encoding="utf-8")
        new = rewritten(text, options.results)
        stale |= new != text
        if not options.check:
            path.write_text(new, encoding="utf-8")
    return int(stale and options.check)


if __name__ == "__main__":
    sys.exit(main())
