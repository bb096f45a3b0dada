"""Claim: KANs do not forget. Five peaks are learned one after another, each from its own part of the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastkan import KAN

from ..plots import tidy
from ..records import Result
from . import training
from .claim import (
    FAILS,
    HOLDS,
    IN_PART,
    Claim,
    Effort,
    Verdict,
    attempt,
    best,
    color,
    dots,
    error_table,
    median,
    number,
    of,
)

PEAKS, ROWS = 5, 100
GRID = 200
SMALL = 1e-4  # mean squared error below which nothing counts as forgotten; the peaks have the variance 0.1
SPLINES = "KAN [1,1], only splines are trained"
FLAGS = "KAN [1,1], pykan's flags"
DEEP = "KAN [1,5,1], only splines are trained"
PLAIN = "KAN [1,1], defaults"
PYKAN_FLAGS = {"base_fun": "zero", "sp_trainable": False, "sb_trainable": False, "noise_scale": 0.0}
SHOWN = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(1)  # where the learned functions are drawn
CASE = "five peaks, one after another"


def target(x: Tensor) -> Tensor:
    """Return five Gaussian peaks at -0.8, -0.4, 0, 0.4 and 0.8, as wide as those of the paper."""
    centers = torch.linspace(-0.8, 0.8, PEAKS, dtype=x.dtype)
    return torch.exp(-300 * (x - centers) ** 2).sum(1, keepdim=True)


def phases() -> list[tuple[Tensor, Tensor]]:
    """Return the rows of each fifth of [-1, 1], in order."""
    x = torch.linspace(-1, 1, PEAKS * ROWS).unsqueeze(1)
    return list(zip(x.split(ROWS), target(x).split(ROWS)))


def run(effort: Effort) -> Iterator[Result]:
    """Train each contender on one phase after another, and measure the error over all phases."""
    steps = effort.count(100, 3)
    contenders: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
        SPLINES: lambda seed: kan([1, 1], seed, steps, train=("spline",)),
        FLAGS: lambda seed: kan([1, 1], seed, steps, PYKAN_FLAGS, update_grid=False),
        PLAIN: lambda seed: kan([1, 1], seed, steps),
        DEEP: lambda seed: kan([1, 5, 1], seed, steps, train=("spline",)),
    }
    for activation in training.ACTIVATIONS:
        for optimizer in ("Adam", "L-BFGS"):
            contenders[f"MLP {activation}, {optimizer}"] = partial(mlp, activation, optimizer, effort.seconds(2.0))
    if effort.peers:
        contenders["pykan [1,1], tutorial's flags"] = lambda seed: pykan(seed, steps)
    for name, train in contenders.items():
        for seed in effort.seeds:
            yield attempt(CASE, name, seed, partial(learned, train, seed, seed == effort.seeds[0]))


def learned(train: Callable[[int], Callable[[Tensor], Tensor]], seed: int, is_shown: bool) -> Result:
    """Train a network, and return the error over all phases, and for a picture also the values at ``SHOWN``."""
    network = train(seed)
    x = torch.cat([each for each, _ in phases()])
    found: Result = {"error": training.rmse(network, x, target(x)) ** 2}
    if is_shown:
        with torch.no_grad():
            found["learned"] = [float(f"{value:.4g}") for value in network(SHOWN).flatten().tolist()]
    return found


def kan(width: Sequence[int], seed: int, steps: int, made: Mapping[str, Any] | None = None, **options: Any) -> KAN:
    """Train a KAN on the phases by ``fit``, with options of its constructor and of ``fit``."""
    model = KAN(width=list(width), grid=GRID, k=3, seed=seed, **(made or {}))
    for phase in phases():
        model.fit(phase, opt="LBFGS", steps=steps, progress=False, **options)
    return model


def mlp(activation: str, optimizer: str, seconds: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Train an MLP [1, 64, 64, 1] on the phases, for some seconds each."""
    network = training.mlp([1, 64, 64, 1], activation, seed)
    for x, y in phases():
        data = training.Split(x, y, x, y, x, y)
        step = training.mlp_step(network, data, optimizer)
        begin = time.process_time()
        while (used := (time.process_time() - begin) / seconds) < 1 and step(used):
            pass
    return network


def pykan(seed: int, steps: int) -> Callable[[Tensor], Tensor]:
    """Train pykan's KAN as its tutorial on continual learning does."""
    import kan as package

    with training.quiet():
        model = package.KAN(width=[1, 1], grid=GRID, k=3, seed=seed, auto_save=False, **PYKAN_FLAGS)
        for x, y in phases():
            dataset = {"train_input": x, "train_label": y, "test_input": x, "test_label": y}
            model.fit(dataset, opt="LBFGS", steps=steps, update_grid=False)
    return model


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict.

    The claim holds if KANs forget nothing and MLPs do, and in part if one option makes one layer forget nothing.
    """
    splines, plain, deep = (median(of(results, None, name)) for name in (SPLINES, PLAIN, DEEP))
    name, mlp_error = best(results, "MLP")
    answer = FAILS if splines > SMALL else HOLDS if max(plain, deep) < SMALL < mlp_error else IN_PART
    lost = (
        "A hidden layer makes it forget, since all inputs use the same splines of the second layer. "
        if deep > SMALL
        else ""
    )
    return Verdict(
        answer,
        f"The mean squared error over all five peaks is {number(splines)} at the end for one layer if only splines are "
        f'trained (`fit(train=("spline",))`), {number(plain)} with defaults, {number(deep)} with a hidden layer, and '
        f"{number(mlp_error)} for the best MLP.",
        f"{lost}The best MLP is {name}.",
    )


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return errors and times."""
    return error_table(results, "MSE over all peaks").drop(columns="parameters")


def draw(results: Sequence[Result]) -> Figure:
    """Draw the functions that some contenders have learned at the end, for the first seed, above all errors."""
    curves = {each["contender"]: each["learned"] for each in results if each.get("learned")}
    shown = [name for name in (SPLINES, PLAIN, DEEP, best(results, "MLP")[0]) if name in curves]
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.5], squeeze=False)[:, 0]
    for axes, name in zip(above.subplots(1, max(1, len(shown)), squeeze=False, sharey=True)[0], shown):
        axes.plot(SHOWN, target(SHOWN), color="#8C8C8C", linewidth=3, alpha=0.5)
        axes.plot(SHOWN, curves[name], color=color(name, 0), linewidth=1.4)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_ylim(-0.6, 1.4)
        tidy(axes, "y")
    above.supxlabel("x (the five peaks, learned from left to right, are gray)", fontsize=9)
    dots(below.subplots(), results, "mean squared error over all five peaks, after the last phase")
    return figure


CLAIM = Claim(
    "forgetting",
    "KANs do not forget",
    "KANs have local plasticity: learning five peaks one after another, each from its own data, leaves what was "
    "learned before as it is, whereas MLPs forget catastrophically (arXiv 2404.19756, section 3.5).",
    f"Five peaks on [-1, 1], {ROWS} rows each, in order. In each phase, a KAN on {GRID} intervals makes 100 steps of "
    "L-BFGS, and an MLP [1, 64, 64, 1] is trained for 2 s. The error is measured on the rows of all five phases. The "
    "options of pykan's tutorial are no base function, no noise, and fixed scales and grids. The claim holds if the "
    f"error stays below {SMALL:g} for one layer with the defaults of `KAN` and for a hidden layer whose splines alone "
    "are trained, but not for the best MLP, and in part if it does so for one layer whose splines alone are trained.",
    run, verdict, table, draw,
)  # fmt: skip
