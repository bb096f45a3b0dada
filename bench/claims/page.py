"""The page of all claims, made from the results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plots import saved
from ..records import Record, place, read
from ..report import markdown
from .claim import Claim

HEAD = """# Claims about KANs, run on this package

Each section states a claim, what was run here, and whether it holds, by a rule that was fixed in the code before the
results were known. Seeds were fixed beforehand as well. Everything that has to be chosen is chosen on held-out training
rows, and errors are measured on test rows that nothing else uses. Seconds are processor time of one thread. Failures
stay in the tables.

`python -m bench.claims` runs everything, `--only NAME` one claim, `--quick` a check in a minute."""


def write_page(folder: Path, claims: Sequence[Claim]) -> Path:
    """Write the pictures and ``README.md`` from the JSON files of a folder.

    Args:
        folder: folder with a file ``NAME.json`` for each claim that was run.

    Returns:
        The path of the page.
    """
    found = {claim.name: read(folder / f"{claim.name}.json") for claim in claims if _file(folder, claim).is_file()}
    parts = [HEAD, "\n".join(summary(folder, claims))]
    for claim in claims:
        if claim.name in found:
            parts.append(_section(folder, claim, found[claim.name]))
    page = folder / "README.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def summary(folder: Path, claims: Sequence[Claim]) -> list[str]:
    """Return a line of Markdown with the verdict of each claim that was run."""
    lines = []
    for claim in claims:
        if _file(folder, claim).is_file():
            answer, reason = claim.verdict(read(_file(folder, claim)).results)
            lines.append(f"- **{claim.title}: {answer}.** {reason}")
    return lines


def _file(folder: Path, claim: Claim) -> Path:
    return folder / f"{claim.name}.json"


def _section(folder: Path, claim: Claim, record: Record) -> str:
    answer, reason = claim.verdict(record.results)
    picture = saved(claim.draw(record.results), folder / f"{claim.name}.png")
    quick = " This was a quick run, whose figures mean nothing." if record.settings["share"] < 1 else ""
    return "\n\n".join(
        (
            f"## {claim.title}",
            f"*Claim.* {claim.statement}",
            f"*Here.* {claim.setting}",
            f"***{answer[0].upper()}{answer[1:]}.*** {reason}{quick}",
            f"![{claim.title}]({picture.name})",
            markdown(claim.table(record.results)),
            f"`python -m bench.claims --only {claim.name}`, {record.settings['minutes']:.0f} minutes on "
            f"{place(record.about)}.",
        )
    )
