"""Claim: the error of KANs falls with the fourth power of the number of parameters, and that of MLPs more slowly."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter
from torch import Tensor

from fastkan import create_dataset

from ..plots import tidy
from ..records import Result
from . import training
from .claim import FAILS, HOLDS, IN_PART, Claim, Effort, Verdict, attempts, color, groups, median, number, of, values

GRIDS = training.GRIDS
ROWS = 2000
SECONDS = 8.0  # of a KAN on all grids, and of an MLP
SECONDS_WIDE = 30.0  # the same with 100 variables, where every step costs more
SECONDS_DEFAULT = 1.0  # of a KAN by defaults on one grid, at most
SECONDS_PYKAN = 10.0
MLPS = ((8, 8), (16, 16), (32, 32), (16, 16, 16))  # widths of hidden layers
KAN_NAME, SINGLE, DEFAULT = "KAN, finer and finer grids", "KAN, the same in float32", "KAN, new on each grid, defaults"
MLP_NAME, PYKAN = "MLP, {} hidden layers", "pykan, finer and finer grids"
STEEP = -3.0  # "nearly the exponent -4"


class Function(NamedTuple):
    """A function of ``x [N, variables]`` with values ``[N, 1]``, and the width of the KAN that the paper gives."""

    name: str
    formula: Callable[[Tensor], Tensor]
    width: Sequence[int]


FUNCTIONS = (
    Function("J0(20 x), [1,1]", lambda x: torch.special.bessel_j0(20 * x), [1, 1]),
    Function("exp(sin(pi x) + y^2), [2,1,1]", lambda x: torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2),
             [2, 1, 1]),
    Function("x y, [2,2,1]", lambda x: x[:, [0]] * x[:, [1]], [2, 2, 1]),
    Function("four variables, [4,4,2,1]", lambda x: four(x), [4, 4, 2, 1]),
    Function("100 variables, [100,1,1]",
             lambda x: torch.exp(torch.sin(math.pi / 2 * x).square().mean(1, keepdim=True)), [100, 1, 1]),
)  # fmt: skip


def four(x: Tensor) -> Tensor:
    """Return exp((sin(pi (x_1^2 + x_2^2)) + sin(pi (x_3^2 + x_4^2))) / 2)."""
    squares = x.square()
    inner = torch.stack([squares[:, 0] + squares[:, 1], squares[:, 2] + squares[:, 3]], 1)
    return torch.exp(torch.sin(math.pi * inner).sum(1, keepdim=True) / 2)


def run(effort: Effort) -> Iterator[Result]:
    """Train KANs over grids and MLPs over sizes on each function."""
    for seed in effort.seeds:
        for function in effort.some(FUNCTIONS):
            data, narrow = split(function, seed, torch.float64), split(function, seed, torch.float32)
            grids = [
                grid for grid in effort.some(GRIDS) if training.kan_size(function.width, grid, scales=0) < len(data.x)
            ]
            seconds = effort.seconds(SECONDS_WIDE if function.width[0] == 100 else SECONDS)
            yield from extended(function, data, seed, seconds, grids, KAN_NAME)
            if GRIDS[-1] in grids or effort.share < 1:
                yield from extended(function, narrow, seed, seconds, grids, SINGLE)
            for grid in grids:
                yield default(function, data, seed, grid, effort.seconds(SECONDS_DEFAULT))
            shapes = [[function.width[0], *hidden, 1] for hidden in MLPS]
            kinds = training.ranked(data, shapes[:1], seed, seconds)
            for sizes in effort.some(shapes):
                yield mlp(function, data, seed, sizes, kinds, seconds)
            if effort.peers and seed == effort.seeds[0]:
                yield from pykan(function, data, seed, effort.seconds(SECONDS_PYKAN))


def split(function: Function, seed: int, dtype: torch.dtype) -> training.Split:
    """Return the rows of a function. They change with the seed."""
    dataset = create_dataset(
        function.formula, n_var=function.width[0], train_num=ROWS, test_num=ROWS, seed=seed, dtype=torch.float64
    )
    return training.split({name: value.to(dtype) for name, value in dataset.items()})


def extended(
    function: Function, data: training.Split, seed: int, seconds: float, grids: Sequence[int], contender: str
) -> Iterator[Result]:
    """Train a KAN on finer and finer grids."""
    found = training.extension(data, function.width, seed, seconds, grids, dtype=data.x.dtype)
    errors = (training.rmse(model, data.test_x, data.test_y) for _, model, _ in found)
    return attempts(function.name, contender, seed, grids, errors, partial(training.kan_size, function.width))


def default(function: Function, data: training.Split, seed: int, grid: int, seconds: float) -> Result:
    """Train a new KAN on one grid by ``fit`` with its defaults."""
    train = partial(training.kan_by_default, data, function.width, seed, grid, seconds)
    found = training.result(function.name, DEFAULT, seed, data, train)
    return {**found, "grid": grid, "parameters": training.kan_size(function.width, grid)}


def mlp(
    function: Function, data: training.Split, seed: int, sizes: Sequence[int], kinds: Sequence[training.MLPRun],
    seconds: float,
) -> Result:  # fmt: skip
    """Train an MLP with the first activation and optimizer of ``kinds`` that its size allows."""
    kind = next(kind for kind in kinds if training.is_possible(kind.optimizer, sizes))

    def train() -> training.Trained:
        run = training.MLPRun(data, sizes, kind.activation, kind.optimizer, seed)
        run.train(seconds)
        return run.best()

    found = training.result(function.name, MLP_NAME.format(len(sizes) - 2), seed, data, train)
    chosen = f"{kind.activation}, {kind.optimizer}"
    return {**found, "grid": None, "parameters": training.size(sizes), "chosen": chosen}


def pykan(function: Function, data: training.Split, seed: int, seconds: float) -> Iterator[Result]:
    """Train pykan's KAN on each grid with 200 steps of L-BFGS, as the paper does, until the time is up."""
    found = training.pykan_extension(
        function.width, seed, seconds, GRIDS, training.pykan_dataset(*data.all_rows()), steps=200
    )
    errors = (training.rmse(model, data.test_x, data.test_y) for model in found)
    return attempts(function.name, PYKAN, seed, GRIDS, errors, partial(training.kan_size, function.width))


def curve(results: Sequence[Result], prefix: str) -> dict[int, float]:
    """Return the median error for each number of parameters, smaller networks first; infinity for failures.

    Sizes for which some seeds had no time are left out.
    """
    own = [each for each in results if each["contender"].startswith(prefix)]
    seeds = len(groups(own, "seed"))
    found = sorted(groups(own, "parameters").items())
    return {size: median(group) for (size,), group in found if len(groups(group, "seed")) == seeds}


def exponent(results: Sequence[Result], prefix: str) -> float:
    """Return the mean exponent from the smallest network to the best, or 0 if the smallest is the best or failed."""
    found = curve(results, prefix)
    first, best = min(found), min(found, key=lambda size: found[size])
    if best == first or not math.isfinite(found[first]):
        return 0.0
    return math.log(found[best] / found[first]) / math.log(best / first)


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict.

    The claim holds if the exponent of KANs is below -3 and their best error below that of MLPs for each function, and
    in part if that is so for at least half of the functions.
    """
    good, total, parts = 0, 0, []
    for case in dict.fromkeys(each["case"] for each in results):
        own = of(results, case)
        ours, theirs = min(curve(own, KAN_NAME).values()), min(curve(own, "MLP").values())
        steep, other = exponent(own, KAN_NAME), exponent(own, "MLP")
        good += steep < STEEP and ours < theirs
        total += 1
        parts.append(f"{case}: {number(ours)} with N^{steep:.1f} against {number(theirs)} with N^{other:.1f}")
    answer = HOLDS if good == total else IN_PART if 2 * good >= total else FAILS
    floors = [median(group) for (_, grid), group in groups(of(results, None, SINGLE), "case", "grid").items()
              if grid == GRIDS[-1]]  # fmt: skip
    failed = sum(each["error"] is None for each in results if each["contender"] == KAN_NAME)
    failures = f" {failed} results of KANs in float64 are failures." if failed else ""
    floor = f" float32 ends at {number(min(floors))} to {number(max(floors))} at G = {GRIDS[-1]}." if floors else ""
    return Verdict(
        answer, f"For {good} of {total} functions, the error falls more steeply than N^{STEEP:.0f} and below that of "
        "the best MLP.",
        f"Smallest test RMSE and mean exponent of KANs against those of MLPs: {'; '.join(parts)}.{floor}{failures}",
    )  # fmt: skip


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each function and kind of network: its best network, the exponent and the time."""
    rows = []
    for (case, contender), group in groups(results, "case", "contender").items():
        found = curve(group, contender)
        best = min(found, key=lambda size: found[size])
        failures = sum(each["error"] is None for each in group)
        rows.append({
            "case": case, "network": contender, "sizes": f"{min(found)} to {max(found)}", "best size": str(best),
            "its test RMSE, median": number(found[best]), "failures": f"{failures} of {len(group)}",
            "exponent": f"{exponent(group, contender):.1f}",
            "CPU s": f"{median([each for each in group if each['parameters'] == best], 'cpu'):.1f}",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("case")


MARKS = {  # line, marker and strength of each contender
    KAN_NAME: ("-", "o", 1.0),
    SINGLE: (":", "^", 0.7),
    DEFAULT: ("--", "x", 0.7),
    PYKAN: ("-", "D", 1.0),
    MLP_NAME.format(2): ("-", "s", 1.0),
    MLP_NAME.format(3): ("-", "v", 1.0),
}


def draw(results: Sequence[Result]) -> Figure:
    """Draw a panel for each function with errors over numbers of parameters and the line of slope -4."""
    cases = groups(results, "case")
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    *panels, corner = figure.subplots(2, 3).flat
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    handles: dict[str, Artist] = {}
    for axes, ((case,), group) in zip(panels, cases.items()):
        for name, (line, mark, strength) in MARKS.items():
            sizes = groups(of(group, None, name), "parameters")
            points = sorted((size, sorted(values(some))) for (size,), some in sizes.items())
            points = [point for point in points if math.isfinite(point[1][-1])]
            if not points:
                continue
            middle = [statistics.median(errors) for _, errors in points]
            around = [[m - e[0] for m, (_, e) in zip(middle, points)], [e[-1] - m for m, (_, e) in zip(middle, points)]]
            handles[name] = axes.errorbar(
                [size for size, _ in points], middle, around, linestyle=line, marker=mark, markersize=5, linewidth=1.4,
                elinewidth=1, alpha=strength, color=color(name, 0),
            )  # fmt: skip
        first = curve(group, KAN_NAME)
        start, ends = first[min(first)], (min(first), max(first))
        (handles["N^-4"],) = axes.plot(
            ends, [start * (size / ends[0]) ** -4 for size in ends], linestyle=(0, (1, 3)), linewidth=2.5,
            color="#8C8C8C", zorder=0,
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(case, fontsize=10, loc="left")
        axes.set_xlabel("trained parameters N", fontsize=9)
        axes.xaxis.set_minor_formatter(NullFormatter())
        tidy(axes, "y")
        axes.yaxis.set_major_formatter(LogFormatterSciNotation())
    panels[0].set_ylabel("test RMSE, median and range", fontsize=9)
    corner.axis("off")
    corner.legend(list(handles.values()), list(handles), loc="center left", frameon=False, fontsize=10)
    return figure


CLAIM = Claim(
    "scaling",
    "The error of KANs falls as N^-4",
    "On five functions of 1 to 100 variables, the test error of a KAN falls nearly as N^-4 with the number N of "
    "parameters, while MLPs scale slowly and soon reach a plateau (arXiv 2404.19756, section 3.1).",
    f"The five functions and shapes of the paper on [-1, 1], {ROWS:,} training rows, G = {', '.join(map(str, GRIDS))} "
    f"as long as there are more rows than coefficients; seeds change the rows as well. A KAN has {SECONDS:.0f} s for "
    f"all its grids ({SECONDS_WIDE:.0f} s for 100 variables; the paper makes 1,800 steps), and so has an MLP of each "
    f"of {len(MLPS)} sizes. Its activation, tanh or SiLU, and its optimizer, L-BFGS, Adam or (up to "
    f"{training.MAX_MATRIX:,} parameters) Levenberg-Marquardt, are chosen beforehand by the held-out error of the "
    f"smallest size, in the same time. pykan has {SECONDS_PYKAN:.0f} s and one seed. The best size of a KAN and of an "
    "MLP is the one with the smallest median error. The claim holds if, for each function, the exponent is below "
    f"{STEEP:.0f} and the error of the best KAN is below that of the best MLP, and in part if so for half of the "
    "functions. Seconds of a KAN are those of all grids so far.",
    run, verdict, table, draw,
)  # fmt: skip
