"""``python -m bench.cpu_costs``: the figures in ``fastkan_kernels.backends.cpu.selection``, measured on this machine.

First each constant by itself, beside the one in force; then for a sweep of sizes both ways that F and H
can take, and by how much the chosen one misses the quicker.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fastkan_kernels import Basis, basis_of, uniform_knots
from fastkan_kernels.backends.cpu import banded, dense
from fastkan_kernels.backends.cpu import selection as choice
from fastkan_kernels.backends.cpu.blocks import DenseFeatures
from fastkan_kernels.bspline.local import local_features

from .measure import BUSY, Load, Task, interleaved, ratio, times
from .records import describe, place

ORDER = 3
WAYS = {"banded": banded, "dense": dense}
NARROW, WIDE = 64, 256  # outputs, between which a slope is taken
TIE = 1.05  # two ways no further apart are as quick
FEW, MANY = 8, 131  # splines of a usual grid, and of one that is scattered


class Layer(NamedTuple):
    """Operands of a contraction of some sizes, without a base function."""

    x: Tensor
    knots: Tensor
    weight: Tensor
    g: Tensor
    basis: Basis

    @property
    def values(self) -> int:
        return self.x.numel()


def layer(rows: int, inputs: int, outputs: int, count: int, uniform: bool = True) -> Layer:
    """Random operands; ``count`` splines on knots that are equally spaced, or not quite."""
    generator = torch.Generator().manual_seed(0)
    knots = uniform_knots(inputs, count - ORDER, ORDER)
    if not uniform:
        knots = knots + 0.01 * torch.linspace(-1, 1, knots.shape[1]) ** 2
    return Layer(
        torch.rand(rows, inputs, generator=generator) * 2 - 1,
        knots,
        torch.randn(count, inputs, outputs, generator=generator),
        torch.randn(rows, outputs, generator=generator),
        basis_of(knots, ORDER, "none"),
    )


def way(name: str, how: str, of: Layer) -> Callable[[], Tensor]:
    """Contraction F, or H as a backward asks for it, by one way."""
    module = WAYS[how]
    if name == "F":
        return lambda: module.splines_out(of.x, of.knots, None, of.weight, of.basis, 0)
    return lambda: module.splines_in(of.x, of.knots, of.weight, of.g, of.basis, 1)


def fill(of: Layer) -> None:
    """Make all dense features, and nothing of them."""
    for _ in DenseFeatures(of.x, of.knots, of.basis, 0).blocks():
        pass


def constants(budget: float) -> Iterator[tuple[str, float, float]]:
    """Each constant: its name, what it is here and what is in force, in nanoseconds of one core."""
    usual, wide = layer(2048, 64, NARROW, FEW), layer(2048, 64, WIDE, FEW)
    uneven, many = layer(2048, 64, 1, FEW, uniform=False), layer(2048, 64, 1, MANY)
    psi = torch.rand(usual.x.shape[0], FEW * 64)
    tasks = {
        "product": Task(partial(torch.mm, psi, usual.weight.view(-1, NARROW))),
        "narrow": Task(way("F", "banded", usual)),
        "wide": Task(way("F", "banded", wide)),
        "local": Task(partial(local_features, usual.x, usual.knots, usual.basis, 0)),
        "closed": Task(partial(fill, usual)),
        "recursive": Task(partial(fill, uneven)),
        "scattered": Task(partial(fill, many)),
        "places": Task(partial(local_features, many.x, many.knots, many.basis, 0)),
    }
    for task in tasks.values():
        task.call()
    samples, _ = interleaved(tasks, budget)
    spent = {name: 1e9 * times(taken).median / usual.values for name, taken in samples.items()}
    active = ORDER + 1
    yield "PRODUCT", spent["product"] / (FEW * NARROW), choice.PRODUCT
    yield "GATHER", (spent["wide"] - spent["narrow"]) / (active * (WIDE - NARROW)), choice.GATHER
    yield "LOCAL", spent["local"] / active, choice.LOCAL
    yield "FILL closed", spent["closed"] / FEW, choice.FILL["closed"]
    yield "FILL recursive", spent["recursive"] / FEW, choice.FILL["recursive"]
    yield "FILL scattered", (spent["scattered"] - spent["places"]) / MANY, choice.FILL["scattered"]


def sweep(quick: bool) -> list[tuple[str, int, int]]:
    """Contraction, O and K."""
    outputs, counts = ((16, 256), (8, 67)) if quick else ((4, 16, 64, 256), (8, 13, 23, 35, 67, 131))
    return list(itertools.product("FH", outputs, counts))


def verdict(name: str, outputs: int, count: int, budget: float) -> tuple[list[str], float]:
    """One line of the sweep, and by what factor the chosen way is slower than the quickest."""
    of = layer(1024, 64, outputs, count)
    tasks = {how: Task(way(name, how, of)) for how in WAYS}
    for task in tasks.values():
        task.call()
    samples, _ = interleaved(tasks, budget, list(tasks))
    medians = {how: times(taken).median for how, taken in samples.items()}
    chosen = choice.choose(name, outputs, count, of.basis, int(name == "H"))
    best = min(medians, key=lambda how: medians[how])
    lost = ratio(samples[chosen], samples[best])
    assert lost is not None
    line = [name, str(outputs), str(count), *(f"{1e6 * medians[how]:.0f}" for how in WAYS), chosen]
    if lost.median > TIE:
        line += [best, f"{lost.median:.2f} [{lost.low:.2f}-{lost.high:.2f}]"]
    return line, lost.median


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    arguments = argparse.ArgumentParser("python -m bench.cpu_costs", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="a coarse sweep")
    arguments.add_argument("--threads", type=int, default=1, help="of torch (default 1: the figures are of one core)")
    arguments.add_argument("--budget", type=float, default=0.5, help="seconds for each size (default 0.5)")
    options = arguments.parse_args(argv)
    torch.set_num_threads(options.threads)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(place(describe()), style="dim")
    load = Load()

    found = list(constants(20 * options.budget))
    scale = found[0][1] / found[0][2]  # of PRODUCT: a quicker machine is quicker at all of them
    view = Table(title="nanoseconds of one core", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "here", "in force", "here / in force", "the same, PRODUCT as 1"):
        view.add_column(heading, justify="right" if heading else "left")
    for name, here, there in found:
        view.add_row(name, f"{here:.3f}", f"{there:.3f}", f"{here / there:.2f}", f"{here / there / scale:.2f}")
    console.print(view)

    view = Table(
        title="which way is the quicker, microseconds, 1024 rows of 64", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in ("", "O", "K", *WAYS, "chosen", "quicker, if the other", "slower by"):
        view.add_column(heading, justify="left" if heading in ("", "chosen", "quicker, if the other") else "right")
    factors = []
    for size in track(sweep(options.quick), "sizes", console=console, transient=True):
        line, factor = verdict(*size, options.budget)
        view.add_row(*line)
        factors.append(factor)
    console.print(view)
    right = sum(factor <= TIE for factor in factors)
    console.print(
        f"Chosen right (within {TIE:.2f}) in {right} of {len(factors)} sizes; the worst is {max(factors):.2f}."
    )
    share = load.share()
    if share > BUSY:
        console.print(f"Other processes took {share:.0%} of the processor meanwhile: little of this is worth much.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
