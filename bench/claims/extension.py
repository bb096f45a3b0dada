"""Claim: a KAN becomes more accurate by finer grids, without training a new network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastkan import KAN, create_dataset

from ..records import Result
from . import training
from .claim import (
    FAILS,
    HOLDS,
    IN_PART,
    Claim,
    Effort,
    Verdict,
    attempts,
    groups,
    lines,
    median,
    number,
    of,
    spread_words,
    values,
)

GRIDS, WIDTH = training.GRIDS, [2, 1, 1]
CASE = "exp(sin(pi x) + y^2), [2,1,1]"
BEST, SINGLE, PYKAN = "KAN, float64, fit's defaults", "KAN, float32, fit's defaults", "pykan, float64, L-BFGS"
LBFGS = "KAN, float64, L-BFGS"
STUCK = 0.1  # the error of a network that has not learned the function
SECONDS_MLP, SECONDS_PYKAN = 4.0, 30.0


def target(x: Tensor) -> Tensor:
    """Return exp(sin(pi x_1) + x_2^2), the function of the article."""
    return torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2)


def run(effort: Effort) -> Iterator[Result]:
    """Train [2, 1, 1] on finer and finer grids, and MLPs of as many parameters."""
    grids = effort.some(GRIDS)
    for seed in effort.seeds:
        yield from kan(seed, grids, torch.float64, "auto", BEST)
    for seed in effort.seeds:
        yield from kan(seed, grids, torch.float32, "auto", SINGLE)
        yield from kan(seed, grids, torch.float64, "LBFGS", LBFGS)
    data = training.split(create_dataset(target, n_var=2))
    for seed in effort.seeds:
        for grid in grids:
            sizes = training.equal_sizes(2, 1, training.kan_size(WIDTH, grid))
            train = partial(training.tuned_mlp, data, [sizes], seed, effort.seconds(SECONDS_MLP))
            found = training.result(CASE, "MLP, as many parameters, best of 6", seed, data, train)
            yield {**found, "grid": grid}
    if effort.peers:
        for seed in effort.seeds:
            yield from pykan(seed, grids, effort.seconds(SECONDS_PYKAN))


def kan(seed: int, grids: Sequence[int], dtype: torch.dtype, opt: str, name: str) -> Iterator[Result]:
    """Train a KAN with ``fit`` on each grid."""
    return attempts(CASE, name, seed, grids, kan_errors(seed, grids, dtype, opt), partial(training.kan_size, WIDTH))


def kan_errors(seed: int, grids: Sequence[int], dtype: torch.dtype, opt: str) -> Iterator[float]:
    """Train a KAN with ``fit``, and yield its error on each grid. Knots are spaced evenly over the samples."""
    dataset = create_dataset(target, n_var=2, dtype=dtype)
    model = KAN(width=WIDTH, grid=grids[0], k=3, seed=seed, grid_eps=1.0, dtype=dtype)
    for grid in grids:
        if grid == grids[0]:
            found = model.fit(dataset, opt=opt, steps=40, progress=False)
        else:
            model = model.refine(grid)
            found = model.fit(dataset, opt=opt, steps=15 if opt == "auto" else 100, progress=False,
                              stop_grid_update_step=1, grid_update_num=1)  # fmt: skip
        yield found["test_loss"][-1]


def pykan(seed: int, grids: Sequence[int], seconds: float) -> Iterator[Result]:
    """Train pykan's KAN on each grid with 50 steps of L-BFGS, as its tutorial does, until the time is up."""
    dataset = create_dataset(target, n_var=2)
    found = training.pykan_extension(WIDTH, seed, seconds, grids, dataset, steps=50)
    errors = (training.rmse(model, dataset["test_input"], dataset["test_label"]) for model in found)
    return attempts(CASE, PYKAN, seed, grids, errors, partial(training.kan_size, WIDTH))


def slope(results: Sequence[Result], contender: str) -> float:
    """Return the exponent of the median error between the first and the last grid, or 0 if one of them failed."""
    own = {grid: median(group) for (grid,), group in groups(of(results, None, contender), "grid").items()}
    first, last = min(own), max(own)
    if first == last or not math.isfinite(own[first]) or not math.isfinite(own[last]):
        return 0.0
    return math.log(own[last] / own[first]) / math.log(last / first)


def fall(start: float, end: float) -> float:
    """Return how many times smaller an error has become, or 0 after a failure."""
    return start / end if math.isfinite(start) and math.isfinite(end) else 0.0


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict.

    The claim holds if the error of each seed falls 10,000-fold, and in part if it falls 100-fold in the median.
    """
    own = of(results, None, BEST)
    last = max(each["grid"] for each in own)
    starts, ends = ([each for each in own if each["grid"] == grid] for grid in (GRIDS[0], last))
    falls = [fall(start, end) for start, end in zip(values(starts), values(ends))]  # in the order of the seeds
    answer = HOLDS if min(falls) >= 1e4 else IN_PART if statistics.median(falls) >= 100 else FAILS
    single = [each for each in of(results, None, SINGLE) if each["grid"] == last]
    stuck = []
    for name in (LBFGS, PYKAN):
        if seeds := groups(of(results, None, name), "seed").values():
            count = sum(min(values(grids)) > STUCK for grids in seeds)
            stuck.append(f"{count} of {len(seeds)} seeds of {name.split(',')[0]} by L-BFGS")
    beside = f"On no grid below {STUCK:g} are {' and '.join(stuck)}." if stuck else ""
    return Verdict(
        answer,
        f"From G = {GRIDS[0]} to {last}, the test RMSE of the same network falls from {number(median(starts))} to "
        f"{number(median(ends))} (worst seed {number(max(values(ends)))}), with the mean exponent "
        f"{slope(results, BEST):.1f}, in {median(ends, 'cpu'):.1f} s; float32 ends at {number(median(single))}.",
        beside,
    )


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each contender with the median error on each grid, and how many seeds came to it if not all."""
    rows: dict[str, dict[str, str | None]] = {}
    for (name,), group in groups(results, "contender").items():
        on, seeds = groups(group, "grid"), len(groups(group, "seed"))
        last = max(on)
        rows[name] = {
            f"G = {grid}": number(median(some)) + (f" ({len(some)} of {seeds})" if len(some) < seeds else "")
            for (grid,), some in on.items()
        }
        rows[name] |= {"last grid, range": spread_words(on[last]), "CPU s": f"{median(on[last], 'cpu'):.1f}"}
    return pd.DataFrame(rows.values(), index=list(rows)).rename_axis("test RMSE, median")


def draw(results: Sequence[Result]) -> Figure:
    """Draw errors over grids with the line of slope -4."""
    return lines(results, "grid", "intervals G", "test RMSE, median and range", slope=-4)


CLAIM = Claim(
    "extension",
    "The error of KANs falls as grids become finer",
    "The error of a KAN falls as its grid is made finer, as G^-4 in theory, without training a new network from the "
    "start (arXiv 2404.19756, section 2.4).",
    f"{CASE} with 1,000 training rows, which are the same for all seeds, G = {', '.join(map(str, GRIDS))} in one "
    "session, with even knots (`grid_eps=1`). The claim holds if the error of each seed falls 10,000-fold (a mean "
    "exponent of -2.6), and in part if it falls 100-fold in the median. Beside it, for each grid, a new MLP of as "
    "many parameters on nine tenths of the rows: tanh or SiLU, by L-BFGS, Adam or Levenberg-Marquardt, "
    f"{SECONDS_MLP:.0f} s in all. Seconds of a KAN are those of all grids so far.",
    run, verdict, table, draw,
)  # fmt: skip
