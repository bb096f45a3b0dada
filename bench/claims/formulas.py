"""Claim: a KAN finds the formula behind data. The workflow's suite of formulas, with noise on the labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure

from ..records import Result
from ..workflow.sessions import run as session
from ..workflow.targets import SUITE, Target
from .claim import COLORS, FAILS, HOLDS, IN_PART, Claim, Effort, Verdict, groups, median, of

NOISES = (0.0, 0.01, 0.05)
PLAIN, CAREFUL, PYKAN = "KAN, plain session", "KAN, careful session", "pykan, plain session"
MOST = 0.8  # the share of formulas that counts as "finds formulas"


def jobs(effort: Effort) -> Iterator[tuple[str, Target, float, int]]:
    """Yield the contender, the target, the noise and the seed of each session."""
    targets, noises = effort.some(SUITE), NOISES if effort.share == 1 else NOISES[:1]
    for seed in effort.seeds:
        for target in targets:
            for noise in noises:
                yield PLAIN, target, noise, seed
                yield CAREFUL, target, noise, seed
    if effort.peers:
        for target in targets[:2]:  # a session of pykan takes 50 to 500 s
            for noise in noises:
                yield PYKAN, target, noise, effort.seeds[0]


def run(effort: Effort) -> Iterator[Result]:
    """Run a session for each contender, target and noise."""
    for contender, target, noise, seed in jobs(effort):
        package = "pykan" if contender == PYKAN else "fastkan"
        found = session(package, target, seed, torch.float32, noise=noise, careful=contender == CAREFUL)
        yield {
            "case": target.name, "contender": contender, "seed": seed, "noise": noise, "found": found["found"],
            "error": found["error"], "formula": found["formula"], "note": found["note"],
            "cpu": sum(found["seconds"].values()),
        }  # fmt: skip


def share(results: Sequence[Result], contender: str, noise: float) -> float:
    """Return the share of formulas that are found; the seeds of a formula share its weight. NaN without results."""
    cases = groups([each for each in of(results, None, contender) if each["noise"] == noise], "case")
    shares = [sum(each["found"] for each in group) / len(group) for group in cases.values()]
    return sum(shares) / len(shares) if shares else float("nan")


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict.

    The claim holds if four fifths of the formulas are found at each noise, and in part if only without noise. Of the
    plain and the careful session, the one counts that finds more over all noises.
    """
    noises = sorted({each["noise"] for each in results})
    shares = {name: [share(results, name, noise) for noise in noises] for name in (PLAIN, CAREFUL)}
    name = max(shares, key=lambda each: sum(shares[each]))
    own = shares[name]
    answer = HOLDS if min(own) >= MOST else IN_PART if own[0] >= MOST else FAILS
    words = [
        f"{noise:.0%} noise: {', '.join(f'{shares[each][at]:.0%} in the {each[5:]}' for each in shares)}"
        for at, noise in enumerate(noises)
    ]
    peer = [f"{share(results, PYKAN, noise):.0%} at {noise:.0%}" for noise in noises if of(results, None, PYKAN)]
    beside = f"pykan finds {', '.join(peer)} of the formulas that it was run on." if peer else ""
    return Verdict(answer, f"Formulas found with {'; '.join(words)}.", beside)


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each formula and kind of session, with a column for each noise."""
    noises = sorted({each["noise"] for each in results})
    rows = []
    for (case, contender), group in groups(results, "case", "contender").items():
        row = {"case": case, "session": contender}
        for noise in noises:
            own = [each for each in group if each["noise"] == noise]
            row[f"{noise:.0%} noise: found, median error / std"] = _cell(own) if own else None
        rows.append({**row, "CPU s": f"{median(group, 'cpu'):.1f}"})
    return pd.DataFrame(rows).set_index("case")


def _cell(own: Sequence[Result]) -> str:
    """Return how many seeds found the formula, with the median error of the formulas."""
    errors = [each["error"] for each in own if each["error"] is not None]
    words = f"{sum(each['found'] for each in own)} of {len(own)}"
    return f"{words}, {statistics.median(errors):.0e}" if errors else f"{words}, no formula"


def draw(results: Sequence[Result]) -> Figure:
    """Draw a panel for each kind of session with a square for each formula and noise, filled by the share of seeds."""
    names = [name for (name,) in groups(results, "contender")]
    cases = [case for (case,) in groups(results, "case")]
    noises = sorted({each["noise"] for each in results})
    figure = Figure(figsize=(2.2 + 1.9 * len(names), 1.2 + 0.3 * len(cases)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names):
        shade = next(value for key, value in COLORS.items() if name.startswith(key))
        for row, case in enumerate(cases):
            for column, noise in enumerate(noises):
                own = [each for each in of(results, case, name) if each["noise"] == noise]
                if own:
                    part = sum(each["found"] for each in own) / len(own)
                    axes.barh(row, 0.8 * part, 0.7, left=column - 0.4, color=shade)
                    axes.barh(row, 0.8, 0.7, left=column - 0.4, color="none", edgecolor="#8C8C8C", linewidth=0.8)
        axes.set_xticks(range(len(noises)), [f"{noise:.0%}" for noise in noises])
        axes.set_yticks(range(len(cases)), cases)
        axes.set_xlim(-0.6, len(noises) - 0.4)
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.set_title(name.replace(", ", "\n"), fontsize=10, loc="left")
        axes.set_xlabel("noise of the labels", fontsize=9)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


CLAIM = Claim(
    "formulas",
    "KANs find the formula behind data",
    "A KAN that is trained sparsely, pruned and fitted with functions shows the formula behind the data (arXiv "
    "2404.19756, section 2.5; the examples there have no noise).",
    "The twelve formulas and the sessions of `bench/workflow` (plain), 1,000 rows in float32, with noise of 0, 1 and "
    "5% of the labels' standard deviation; pykan on the first two formulas with one seed. A formula counts as found "
    "if its error against the true values is below 1e-5 of their standard deviation, or if it has the functions and "
    "powers of the target (sine and cosine count as one) and an error below 0.5%, or below half the noise. A careful "
    "session holds out every fifth row, stops the fits after pruning by the error on them, does not refine the grid, "
    f"and accepts functions with R2 of at least 0.9 instead of 0.99. The claim holds if {MOST:.0%} of the formulas "
    "are found at every noise in the kind of session that finds more, and in part if so without noise.",
    run, verdict, table, draw,
)  # fmt: skip
