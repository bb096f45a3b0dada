"""Results as tables for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from .cases import Case
from .errors import BOUND
from .measure import Spread
from .rivals import RIVALS
from .run import MODES, CaseResult, Row

SCHEMA = 1
BUSY = 0.05  # share of the processor taken by others that is worth telling
MODE_NAMES = {"forward": "fwd", "step": "fwd+bwd"}
LEGEND = (
    "Times are medians in ms, ± half the distance of their quartiles; ratios are medians of the ratios within each "
    "round of the interleaved run, ± likewise. Errors are the largest deviations from float64, divided by the largest "
    f"value, of the output and of its gradient by the input; beyond {BOUND:g} a rival gets no time. MiB is the peak of "
    "what forward + backward holds beside parameters and input."
)


def columns() -> list[str]:
    """Headings, the same for all cases."""
    timed = []
    for mode in (MODE_NAMES[mode] for mode in MODES):
        timed += [f"{mode} ms", *(f"{mode} /{anchor}" for anchor in _anchors().values())]
    return ["", *timed, "err y", "err dx", "MiB"]


def cells(row: Row) -> list[str]:
    """A row of the table; empty where there is nothing to tell."""
    found = [row.rival]
    for mode in MODES:
        timing = row.timings.get(mode)
        if timing is None:
            found += [""] * (1 + len(_anchors()))
            continue
        found.append(_short(timing.seconds, 1e3))
        found += [_short(timing.ratios[a]) if a in timing.ratios else "" for a in _anchors()]
    found += ["", ""] if row.error is None else [f"{row.error.output:.0e}", f"{row.error.gradient:.0e}"]
    found.append("" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}")
    return found


def notes(result: CaseResult) -> str:
    """Who has no time, and why; and whether the times are worth much."""
    found = [f"{row.rival}: {row.note}" for row in result.rows if row.note is not None]
    if result.others is not None and result.others > BUSY:
        found.append(f"other processes took {result.others:.0%} of the processor meanwhile")
    return "; ".join(found)


def table(result: CaseResult) -> Table:
    """For the terminal."""
    view = Table(
        title=title(result.case), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        caption=notes(result), caption_justify="left",
    )  # fmt: skip
    for heading in columns():
        view.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in _told(result.rows):
        view.add_row(*cells(row), style="bold" if row.rival.startswith("fastkan") else None)
    return view


def markdown(results: list[CaseResult], about: dict) -> str:
    """The tables as Markdown, with where they were measured."""
    return "\n".join(_markdown_lines(results, about)) + "\n"


def _markdown_lines(results: list[CaseResult], about: dict) -> Iterator[str]:
    yield place(about)
    yield ""
    yield LEGEND
    for result in results:
        yield from ("", f"### {title(result.case)}", "")
        yield "| " + " | ".join(columns()) + " |"
        yield "|---|" + "---:|" * (len(columns()) - 1)
        for row in _told(result.rows):
            yield "| " + " | ".join(cells(row)) + " |"
        if notes(result):
            yield from ("", notes(result))


def as_json(results: list[CaseResult], about: dict, settings: dict) -> dict:
    """All figures, in seconds and bytes."""
    return {
        "schema": SCHEMA,
        **about,
        "settings": settings,
        "results": [
            {
                "case": result.case._asdict() | {"name": result.case.name},
                "others": result.others,
                "rivals": [_row_json(row) for row in result.rows],
            }
            for result in results
        ],
    }


def _row_json(row: Row) -> dict:
    return {
        "rival": row.rival,
        "note": row.note,
        "error": None if row.error is None else row.error._asdict(),
        "peak_bytes": row.peak_bytes,
        **{
            mode: {
                "seconds": timing.seconds._asdict(),
                "ratios": {name: ratio._asdict() for name, ratio in timing.ratios.items()},
            }
            for mode, timing in row.timings.items()
        },
    }


def title(case: Case) -> str:
    """A case in words."""
    widths = "-".join(map(str, case.widths))
    return f"{case.rows} rows, {widths}, grid {case.grid_size}, order {case.order}"


def place(about: dict) -> str:
    """Machine, versions and commit in one line."""
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    commit = f", commit {about['commit'][:10]}" if about["commit"] else ""
    return f"{machine['processor']}, {machine['threads']} threads, {machine['system']}; {versions}{commit}"


def _anchors() -> dict[str, str]:
    """Names of the anchors, and what the headings call them."""
    return {rival.name: rival.name.split(",")[0] for rival in RIVALS if rival.anchor}


def _told(rows: list[Row]) -> list[Row]:
    """Those with a figure."""
    return [row for row in rows if row.note is None or row.error is not None]


def _short(value: Spread, unit: float = 1.0) -> str:
    """Three digits, and as many decimals in what follows the ±."""
    median, half = value.median * unit, (value.high - value.low) * unit / 2
    decimals = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{decimals}f} ±{half:.{decimals}f}"
