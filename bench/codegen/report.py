"""Verdicts as tables for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.table import Table

from fastkan_kernels.backends.triton.selection import ptxas_version

from ..records import describe
from .judge import Verdict
from .product import Inner

SCHEMA = 1
PACKAGES = ("python", "fastkan", "torch", "triton")
COLUMNS = (
    "",
    "sm",
    "regs",
    "stack",
    "shared KiB",
    "products",
    "instr",
    "unrolled",
    "instr/feature",
    "ptxas",
    "verdict",
)
SUMMARY = ("kernel", "sm", "builds", "passed", "regs", "shared KiB", "instr/feature", "serialised", "notes")
LEGEND = (
    "Products and instr count the tensor core products and all instructions of the inner product loop: RS and SS are "
    "HGMMA with the left operand in registers and in shared memory. Instr/feature is how many instructions a thread "
    "runs in that loop for each feature that it makes, products left out. ptxas tells with a code that it serialised "
    "asynchronous products. All is counted in machine code, nothing was run."
)


def about(capabilities: Iterable[int]) -> dict:
    """Versions and commit, for JSON."""
    found = describe()
    versions = {name: found["versions"][name] for name in PACKAGES if name in found["versions"]}
    ptxas = {f"ptxas sm_{capability}": ptxas_version(capability) for capability in capabilities}
    return {"versions": {**versions, **ptxas}, "commit": found["commit"]}


def table(verdicts: list[Verdict]) -> Table:
    """Every build, for the terminal."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in COLUMNS:
        view.add_column(heading, justify="right" if heading not in ("", "verdict") else "left", no_wrap=bool(heading))
    for verdict in verdicts:
        view.add_row(*_cells(verdict), style=None if verdict.passed else "red")
    return view


def failures(verdicts: list[Verdict]) -> list[str]:
    """Each failure in a line."""
    return [f"{verdict.name}: {failure}" for verdict in verdicts for failure in verdict.failures]


def markdown(verdicts: list[Verdict], about: dict) -> str:
    """A summary by kernel, and all failures."""
    return "\n".join(_markdown_lines(verdicts, about)) + "\n"


def as_json(verdicts: list[Verdict], about: dict) -> dict:
    """All that was found."""
    return {"schema": SCHEMA, **about, "builds": [_verdict_json(verdict) for verdict in verdicts]}


def place(about: dict) -> str:
    """Versions and commit in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return versions + (f", commit {about['commit'][:10]}" if about["commit"] else "")


def _cells(verdict: Verdict) -> list[str]:
    return [
        verdict.name,
        str(verdict.capability),
        _number(verdict.registers),
        _number(verdict.stack),
        "" if verdict.shared is None else f"{verdict.shared / 1024:.1f}",
        _products(verdict.inner),
        "" if verdict.inner is None else str(verdict.inner.instructions),
        _number(verdict.unrolled),
        "" if verdict.per_element is None else f"{verdict.per_element:.1f}",
        "" if verdict.serialised is None else verdict.serialised.partition(":")[0],
        ", ".join(dict.fromkeys(failure.check for failure in verdict.failures)) or "; ".join(["ok", *verdict.notes]),
    ]


def _products(inner: Inner | None) -> str:
    """Such as ``4 HGMMA RS``."""
    if inner is None:
        return ""
    counts = {
        "HGMMA RS": inner.wgmma_registers,
        "HGMMA SS": inner.wgmma_shared,
        "HMMA": inner.mma,
        "DMMA": inner.dmma,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _markdown_lines(verdicts: list[Verdict], about: dict) -> Iterator[str]:
    passed = sum(verdict.passed for verdict in verdicts)
    yield f"{passed} of {len(verdicts)} builds pass every check. {place(about)}."
    yield from ("", LEGEND, "")
    yield "| " + " | ".join(SUMMARY) + " |"
    yield "|---|" + "---:|" * (len(SUMMARY) - 2) + "---|"
    groups: dict[tuple[int, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.capability, verdict.kernel), []).append(verdict)
    for (capability, kernel), group in sorted(groups.items()):
        yield "| " + " | ".join(_summary(kernel, capability, group)) + " |"
    if failed := failures(verdicts):
        yield from ("", *(f"- {line}" for line in failed))


def _summary(kernel: str, capability: int, group: list[Verdict]) -> list[str]:
    return [
        f"`{kernel}`",
        str(capability),
        str(len(group)),
        str(sum(verdict.passed for verdict in group)),
        _range([verdict.registers for verdict in group]),
        _range([None if verdict.shared is None else verdict.shared / 1024 for verdict in group], 1),
        _range([verdict.per_element for verdict in group], 1),
        str(sum(verdict.serialised is not None for verdict in group)),
        "; ".join(dict.fromkeys(note for verdict in group for note in verdict.notes)),
    ]


def _range(values: Iterable[float | None], decimals: int = 0) -> str:
    """From the least to the largest."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    ends = dict.fromkeys(f"{value:.{decimals}f}" for value in (min(known), max(known)))
    return " to ".join(ends)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _verdict_json(verdict: Verdict) -> dict:
    return {
        **verdict._asdict(),
        "failures": [failure._asdict() for failure in verdict.failures],
        "inner": None if verdict.inner is None else verdict.inner._asdict(),
        "passed": verdict.passed,
    }
