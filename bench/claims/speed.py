"""Claim: KANs are ten times slower than MLPs with as many parameters."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from ..gpu.report import published
from ..measure import Task, interleaved, settle_allocator, timing
from ..plots import tidy
from ..records import RESULTS, Result
from ..report import spread_text
from ..suite import baselines  # noqa: F401  (which enters the contenders)
from ..suite.cases import SWEEPS, VARIED, Case
from ..suite.contenders import CONTENDERS, MLP, OURS, Contender
from ..suite.errors import Oracle
from ..suite.modes import Subject
from ..suite.run import WRONG, checked
from . import training
from .claim import COLORS, FAILS, HOLDS, IN_PART, OTHER_COLORS, Claim, Effort, Verdict, groups, of

SLOWER = 10.0  # the factor that is claimed
SECONDS = 3.0  # processor time of each mode's timing in each case
BATCHES = 4
SMALL = Case(1000, (2, 5, 1))
CASES = tuple(dict.fromkeys([SMALL, *SWEEPS["rows"], *SWEEPS["width"], *SWEEPS["grid"]]))
PLAIN, PYKAN_SPEED, PYKAN = "plain Cox-de Boor", "pykan, speed mode", "pykan"
SHOWN = {MLP: MLP, OURS: "KAN, fastkan", PLAIN: PLAIN, PYKAN_SPEED: PYKAN_SPEED, PYKAN: PYKAN}
STYLES = {OURS: COLORS["KAN"], PLAIN: OTHER_COLORS[0], PYKAN_SPEED: COLORS["pykan"], PYKAN: OTHER_COLORS[2]}
MODES = {"step": "forward and backward", "forward": "forward alone"}


class Batches(Subject):
    """A network with several batches, which take turns, so that nothing can be cached from one step to the next."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject.network, subject.x, subject.upstream)
        shifted = [subject.x.roll(17 * number, 0) for number in range(BATCHES)]
        self._batches: Iterator[Tensor] = itertools.cycle(shifted)

    def forward(self) -> None:
        self.x = next(self._batches)
        super().forward()

    def step(self) -> None:
        self.x = next(self._batches)
        super().step()


def run(effort: Effort) -> Iterator[Result]:
    """Time all networks in turns, for each case."""
    warnings.filterwarnings("ignore", module="kan")  # pykan's own deprecations
    settle_allocator()
    names = [name for name in SHOWN if effort.peers or not name.startswith("pykan")]
    contenders = [contender for name in names for contender in CONTENDERS if contender.name == name]
    for case in effort.some(CASES):
        yield from timed(case, contenders, effort.seconds(SECONDS))


def timed(case: Case, contenders: Sequence[Contender], budget: float) -> list[Result]:
    """Return a result for each contender and mode. One that is wrong, too large or fails has a note and no time."""
    with training.single_precision():
        oracle = Oracle(case)
        ready: dict[str, Subject] = {}
        found: list[Result] = []
        for contender in contenders:
            note, subject, seconds = prepared(contender, oracle)
            parameters = None if subject is None else training.count(subject.network)
            if subject is not None and note is None:
                ready[contender.name] = Batches(subject)
            for mode in MODES:
                found.append({
                    "case": case.name, "contender": contender.name, "seed": 0, "mode": mode, "note": note,
                    "parameters": parameters, "seconds": None, "ratios": {}, "rows": case.rows,
                    "width": case.widths[0], "grid": case.grid_size, "cpu": seconds,
                })  # fmt: skip
        for mode in MODES:
            start = time.process_time()
            tasks = {name: Task(getattr(subject, mode), subject.clear) for name, subject in ready.items()}
            measured = interleaved(tasks, budget, [MLP], clock=time.process_time)
            for result in found:
                if result["mode"] == mode and result["contender"] in tasks:
                    result |= timing(measured.samples, result["contender"], [MLP]) | {"load": round(measured.load, 3)}
                    result["cpu"] += (time.process_time() - start) / len(tasks)
        return found


def prepared(contender: Contender, oracle: Oracle) -> tuple[str | None, Subject | None, float]:
    """Return why a contender is not timed or None, its network if it has one, and the processor time of the check."""
    start = time.process_time()
    why = contender.why_not(oracle.case)
    subject: Subject | None = None
    if why is None:
        try:
            subject, error = checked(contender, oracle)
            why = WRONG if error is not None and error.too_large else None
        except Exception as problem:  # of any kind: an error in another package must not end the run
            why = f"failed: {type(problem).__name__}: {problem}"[:100]
    return why, subject, time.process_time() - start


# -- verdict ----------------------------------------------------------------------------------------


def ratios(results: Sequence[Result], contender: str, mode: str = "step") -> dict[str, float]:
    """Return a dict from each case to the median ratio of a contender's time to the MLP's."""
    return {
        each["case"]: each["ratios"][MLP][0]
        for each in of(results, None, contender)
        if each["mode"] == mode and MLP in each["ratios"]
    }


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict.

    The claim holds if a step of this package takes 10 times that of the MLP or more in half of the cases, and in part
    if in any.
    """
    own = ratios(results, OURS)
    slow = [case for case, ratio in own.items() if ratio >= SLOWER]
    answer = FAILS if not slow else HOLDS if 2 * len(slow) >= len(own) else IN_PART
    least, most = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
    twice = sum(ratio > 2 for ratio in own.values())
    others = []
    for name in (PLAIN, PYKAN_SPEED, PYKAN):
        if found := sorted(ratios(results, name).values()):
            spread = f"{found[0]:.1f} to {found[-1]:.1f}" if len(found) > 1 else f"{found[0]:.1f}"
            over = sum(ratio >= SLOWER for ratio in found)
            others.append(f"{SHOWN[name]} {spread} times, {over} of {len(found)} at least {SLOWER:.0f}")
    beside = f"Other implementations of the same networks: {'; '.join(others)}. " if others else ""
    gpus = ", ".join(published(RESULTS))
    gpu = f"GPUs: see the files of {gpus}." if gpus else "Nothing was timed on a GPU yet."
    return Verdict(
        answer,
        f"A step of this package takes {own[least]:.2f} ({least}) to {own[most]:.2f} ({most}) times as long as the "
        f"MLP's, and more than twice as long in {twice} of {len(own)} cases.",
        beside + gpu,
    )


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each case: the MLP's time, and for each contender the ratio of a step and of a forward."""
    names = [name for name in SHOWN if name != MLP and ratios(results, name)]
    rows: dict[str, dict[str, str | None]] = {}
    for (case,), group in groups(results, "case").items():
        found = {(each["contender"], each["mode"]): each for each in group}
        rows[case] = {"MLP step, ms": spread_text(found[MLP, "step"]["seconds"], 1e3)}
        for name in names:
            for mode, words in (("step", ""), ("forward", ", forward")):
                ratio = found[name, mode]["ratios"].get(MLP) if (name, mode) in found else None
                rows[case][f"{SHOWN[name]}{words}"] = spread_text(ratio)
    return pd.DataFrame(rows.values(), index=list(rows)).rename_axis("time divided by the MLP's")


def draw(results: Sequence[Result]) -> Figure:
    """Draw the ratios over rows, width and grid, for a step above and a forward below."""
    at = {case.name: case for case in CASES}
    present = {result["case"] for result in results}
    sweeps = {name: SWEEPS[name] for name in ("rows", "width", "grid")}
    shown = [value for each in results for value in each["ratios"].get(MLP, ())[:3]]
    limits = 0.8 * min([1.0, *shown]), 1.25 * max([SLOWER, *shown])
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = figure.subplots(len(MODES), len(sweeps), sharey=True, sharex="col")
    for line, mode in zip(panels, MODES):
        for axes, (name, cases) in zip(line, sweeps.items()):
            label, value = VARIED[name]
            names = [case.name for case in cases if case.name in present]
            axes.axhline(1, color=COLORS["MLP"], linewidth=1.5, label="MLP, as many parameters")
            axes.axhline(SLOWER, color="#8C8C8C", linestyle=":", label="claimed factor")
            for contender, shade in STYLES.items():
                rows = [
                    (value(at[each["case"]]), *each["ratios"][MLP][:3])
                    for each in of(results, None, contender)
                    if each["mode"] == mode and each["case"] in names and MLP in each["ratios"]
                ]
                if rows:
                    x, middle, low, high = zip(*sorted(rows))
                    axes.plot(x, middle, marker="o", markersize=4, color=shade, label=SHOWN[contender])
                    axes.fill_between(x, low, high, color=shade, alpha=0.2, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200])
            axes.set_ylim(limits)
            axes.set_xticks([value(at[each]) for each in names], [str(value(at[each])) for each in names])
            axes.minorticks_off()
            tidy(axes, "y")
            if mode == "forward":
                axes.set_xlabel(label, fontsize=9)
        line[0].set_ylabel(f"{MODES[mode]}:\ntime, divided by the MLP's", fontsize=9)
    lines: dict[str, Any] = {}
    for axes in panels.flat:
        lines |= {label: drawn for drawn, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    return figure


CLAIM = Claim(
    "speed",
    "KANs are ten times slower than MLPs",
    "KANs are usually 10 times slower than MLPs with as many parameters (arXiv 2404.19756, section 6).",
    f"Networks of two layers, float32, one thread, one seed, {BATCHES} batches that take turns, so that no step "
    "reuses another's features; the MLP has one hidden layer of SiLU and as many parameters. All networks are checked "
    "against float64 first, and then timed in turns in one run; a figure is the median of the ratios within the "
    "rounds, ± half the interquartile range. A name such as 2048x64-64-64-G5 lists rows, widths and intervals. The "
    "claim holds if a step of this package (forward and backward) takes 10 times the MLP's or more in at least half "
    "of the cases, and in part if in any. A dash: no time, since a package is too slow or too large for the case, or "
    "fails; the JSON file says which.",
    run, verdict, table, draw,
)  # fmt: skip
