"""The page of all claims, made from the results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plots import saved
from ..records import Record, place, read
from ..report import markdown
from .claim import SEEDS, Claim

HEAD = """# Claims about KANs, run on this package

Each section states a claim, what was run here, and whether it holds, by a rule in the code that was not loosened after
a result. Every network has the seeds 0 to 4, unless a section says otherwise. Shapes, optimizers and the moment to stop
are chosen on held-out training rows, and errors are measured on other rows. Candidates for an MLP share a third of its
time, and the best two share the rest. Where a verdict names the best of several rows of its table, it is the best by
the reported median, for KANs and for MLPs alike. Seconds are processor time of one thread. Failures stay in the tables.

`python -m bench.claims` runs everything, `--only NAME` one claim, `--quick` a check in a minute."""


def write_page(folder: Path, claims: Sequence[Claim]) -> Path:
    """Write the pictures and ``README.md`` from the JSON files of a folder.

    Args:
        folder: folder with a file ``NAME.json`` for each claim that was run. Runs that were interrupted are left out.

    Returns:
        The path of the page.
    """
    found = complete(folder, claims)
    for claim, record in found:
        saved(claim.draw(record.results), folder / f"{claim.name}.png")
    page = folder / "README.md"
    page.write_text(text(found), encoding="utf-8")
    return page


def complete(folder: Path, claims: Sequence[Claim]) -> list[tuple[Claim, Record]]:
    """Return the claims whose run came to its end, with their results."""
    files = {claim.name: folder / f"{claim.name}.json" for claim in claims}
    found = [(claim, read(files[claim.name])) for claim in claims if files[claim.name].is_file()]
    return [(claim, record) for claim, record in found if record.settings["complete"]]


def text(found: Sequence[tuple[Claim, Record]]) -> str:
    """Return the page as Markdown, which names the pictures but does not need them."""
    sections = [_section(claim, record) for claim, record in found]
    return "\n\n".join([HEAD, summary(found), *sections]) + "\n"


def summary(found: Sequence[tuple[Claim, Record]]) -> str:
    """Return a line of Markdown with the verdict of each claim."""
    verdicts = [(claim.title, claim.verdict(record.results)) for claim, record in found]
    return "\n".join(f"- **{title}: {verdict.answer}.** {verdict.sentence}" for title, verdict in verdicts)


def _section(claim: Claim, record: Record) -> str:
    verdict = claim.verdict(record.results)
    seeds = len(record.settings["seeds"])
    option = "" if seeds == SEEDS else f" --seeds {seeds}"
    remark = f" {record.settings['remark']}" if "remark" in record.settings else ""  # of results from several runs
    quick = " This was a quick run, whose figures mean nothing." if record.settings["share"] < 1 else ""
    return "\n\n".join(
        (
            f"## {claim.title}",
            f"*Claim.* {claim.statement}",
            f"*Here.* {claim.setting}",
            f"***{verdict.answer[0].upper()}{verdict.answer[1:]}.*** {verdict.reason}{quick}",
            f"![{claim.title}]({claim.name}.png)",
            markdown(claim.table(record.results)),
            f"`python -m bench.claims --only {claim.name}{option}`, "
            f"{record.settings['minutes']:.0f} minutes of processor time on {place(record.about)}.{remark}",
        )
    )
