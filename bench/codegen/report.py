"""Verdicts as a table for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ..records import describe
from ..report import markdown
from .judge import Inner, Verdict

SCHEMA = 2
PACKAGES = ("python", "fastkan", "torch", "triton")
LEGEND = (
    "All numbers are counted in machine code; nothing was run. Products, instr, st, ld, bar, waits and copies are the "
    "numbers of tensor core products, instructions, stores to and loads from shared memory, barriers of a block, waits "
    "for asynchronous products and waits for copies in a round of the inner loop with products. RS and SS are HGMMA "
    "with the left operand in registers and in shared memory. Instr/feature is the number of instructions, without "
    "products, that a thread runs in that loop for each feature. The code under ptxas says that it serialised "
    "asynchronous products."
)
COUNTS = {  # from the columns of the table to the fields of Inner
    "instr": "instructions", "st": "stores", "ld": "loads", "bar": "barriers", "waits": "waits", "copies": "copies"
}  # fmt: skip


def about(capabilities: Iterable[int]) -> dict:
    """Return the versions and the commit in the form that is written to JSON."""
    from fastkan_kernels.backends.triton.builds import ptxas_version

    found = describe()
    versions = {name: found["versions"][name] for name in PACKAGES if name in found["versions"]}
    ptxas = {f"ptxas sm_{capability}": ptxas_version(capability) for capability in capabilities}
    return {"versions": {**versions, **ptxas}, "commit": found["commit"]}


def place(about: dict) -> str:
    """Return the versions and the commit as one line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return versions + (f", commit {about['commit'][:10]}" if about["commit"] else "")


def table(verdicts: list[Verdict]) -> pd.DataFrame:
    """Return a table of text with one row for each build."""
    return pd.DataFrame([_row(verdict) for verdict in verdicts]).set_index("build")


def failures(verdicts: list[Verdict]) -> list[str]:
    """Return one line of text for each failure."""
    return [f"{verdict.name}: {check}: {detail}" for verdict in verdicts for check, detail in verdict.failures]


def page(verdicts: list[Verdict], about: dict) -> str:
    """Return a summary by kernel in Markdown, and all failures."""
    passed = sum(verdict.passed for verdict in verdicts)
    groups: dict[tuple[int, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.capability, verdict.kernel), []).append(verdict)
    summary = pd.DataFrame([_summary(*group, groups[group]) for group in sorted(groups)]).set_index("kernel")
    parts = [f"{passed} of {len(verdicts)} builds pass every check. {place(about)}.", LEGEND, markdown(summary)]
    return (
        "\n\n".join(parts + ["\n".join(f"- {line}" for line in failures(verdicts))] * (passed < len(verdicts))) + "\n"
    )


def as_json(verdicts: list[Verdict], about: dict) -> dict:
    """Return all verdicts in the form that is written to JSON."""
    builds = [
        {
            **verdict._asdict(),
            "failures": [failure._asdict() for failure in verdict.failures],
            "inner": None if verdict.inner is None else verdict.inner._asdict(),
        }
        for verdict in verdicts
    ]
    return {"schema": SCHEMA, **about, "builds": builds}


def _row(v: Verdict) -> dict[str, str]:
    wrong = ", ".join(dict.fromkeys(failure.check for failure in v.failures))
    return {
        "build": v.name,
        "regs": _text(v.registers),
        "KiB": _text(None if v.shared is None else v.shared / 1024, 1),
        "products": "" if v.inner is None else _products(v.inner),
        **{name: _text(getattr(v.inner, field, None)) for name, field in COUNTS.items()},
        "unrolled": _text(v.unrolled),
        "instr/feature": _text(v.per_element, 1),
        "ptxas": (v.serialised or "").partition(":")[0],
        "verdict": wrong or "; ".join(["ok", *v.notes]),
    }


def _text(value: float | None, decimals: int = 0) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _products(inner: Inner) -> str:
    """Return the numbers of products by their kinds, such as ``4 RS``."""
    counts = {"RS": inner.wgmma_registers, "SS": inner.wgmma_shared, "HMMA": inner.mma, "DMMA": inner.dmma}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _summary(capability: int, kernel: str, group: list[Verdict]) -> dict[str, str]:
    inner = [verdict.inner for verdict in group if verdict.inner is not None]
    return {
        "kernel": f"`{kernel}`",
        "sm": str(capability),
        "builds": str(len(group)),
        "passed": str(sum(verdict.passed for verdict in group)),
        "regs": _range([verdict.registers for verdict in group]),
        "KiB": _range([None if verdict.shared is None else verdict.shared / 1024 for verdict in group], 1),
        "instr/feature": _range([verdict.per_element for verdict in group], 1),
        **{name: _range([getattr(counts, field) for counts in inner]) for name, field in COUNTS.items()},
        "serialised": str(sum(verdict.serialised is not None for verdict in group)),
        "notes": "; ".join(dict.fromkeys(note for verdict in group for note in verdict.notes)),
    }


def _range(values: Iterable[float | None], decimals: int = 0) -> str:
    """Return text with the smallest and the largest value."""
    known = [value for value in values if value is not None]
    return " to ".join(dict.fromkeys(_text(value, decimals) for value in (min(known), max(known)))) if known else ""
