"""``python -m bench.cpu_costs``: the constants of ``fastkan_kernels.backends.cpu.selection``, measured on this machine.

A step of one layer, forward and backward, is timed by each way at a sample of sizes, and the constants are fitted to
those times; then a table shows how much slower the chosen way is than the best, at the sizes where it is not the best.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastkan import KANLinear
from fastkan_kernels import Basis, FusedStack, StackCache, StackLayer
from fastkan_kernels.backends.cpu import piecewise, selection

from .machine import OtherWork, describe
from .report import BUSY, place

WAYS = ("dense", "banded", "piecewise")
BY_SPLINES = "piecewise, splines cached"  # a way of the first layer of a fit, which is not chosen by cost alone
MAX_WORK = 4e6  # values of splines, with the share of a product for each output, that the sample's largest size has
MAX_LOST = 2.0  # a way that is slower than the quickest by this factor at its first call is not timed further
TIE = 1.1  # ways no further apart are equally quick


class Size(NamedTuple):
    """Sizes of a layer and its batch."""

    rows: int
    inputs: int
    outputs: int
    grid_size: int
    order: int
    uniform: bool

    @property
    def sizes(self) -> tuple[int, int, int, int, Basis]:
        """Arguments of the functions of :mod:`selection`, without the base function."""
        basis = Basis(self.order, "silu", self.uniform)
        return self.rows, self.inputs, self.outputs, self.grid_size + self.order, basis


def sample(count: int) -> list[Size]:
    """Return the same sizes each time, at random by their logarithms, of which a step takes milliseconds."""
    random_state, found = random.Random(0), list[Size]()

    def between(low: int, high: int) -> int:
        return round(low * (high / low) ** random_state.random())

    while len(found) < count:
        size = Size(
            between(100, 20_000),
            between(1, 64),
            between(1, 64),
            between(3, 200),
            random_state.randint(1, 5),
            random_state.random() < 0.6,
        )
        values = size.rows * size.inputs * (size.grid_size + size.order)
        if values * (1 + 0.02 * size.outputs) < MAX_WORK:
            found.append(size)
    return found


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Compute by one way whatever the sizes; G has no banded way, and goes dense."""

    def choose(name: str, *sizes: object) -> str:
        return "dense" if name == "G" else way

    with mock.patch.object(selection, "piecewise_pays", return_value=way == "piecewise"):
        if way == "piecewise":
            yield
        else:
            with mock.patch.object(selection, "choose", choose):
                yield


def ways_at(size: Size) -> list[str]:
    """Ways that a layer of this size can take."""
    too_wide = size.inputs * (size.grid_size + 2 * size.order + 1) > piecewise.MAX_KNOTS
    return [way for way in WAYS if way != "piecewise" or not too_wide]


def step(size: Size) -> Callable[[], object]:
    """Return a step of a layer, with the gradient with respect to its input."""
    layer, x, g = _layer(size)
    operands = (x.requires_grad_(), *layer.parameters())
    return lambda: torch.autograd.grad(layer(x), operands, g)


def step_by_splines(size: Size) -> Callable[[], object]:
    """Return a step of the first layer of a fit, at rows that come again."""
    layer, x, g = _layer(size)
    basis, pieces = layer._known.basis_and_pieces(layer.knots)
    parts = StackLayer(layer.spline_weight, layer.base_weight, None, None, layer.knots, basis, pieces)
    cache, upstream = StackCache(), g.T.contiguous().numpy()

    def call() -> object:
        stack = FusedStack(x, [parts], cache=cache)
        return stack.vjp(upstream, [(None, None)], (False, True, True, False, False))

    return call


def _layer(size: Size) -> tuple[KANLinear, torch.Tensor, torch.Tensor]:
    layer = KANLinear(size.inputs, size.outputs, size.grid_size, size.order)
    if not size.uniform:
        cell = 2 / size.grid_size
        layer.set_knots(layer.knots + 0.2 * cell * torch.sin(torch.arange(layer.knots.shape[1])))
    return layer, torch.rand(size.rows, size.inputs) * 2 - 1, torch.randn(size.rows, size.outputs)


def seconds(size: Size, ways: list[str], rounds: int = 5) -> dict[str, float]:
    """Best processor time of a step by each way, and under the name ``"chosen"`` by the one that would be taken."""
    calls = {way: (way, step(size)) for way in ways if way in WAYS}
    calls["chosen"] = ("", step(size))
    if BY_SPLINES in ways:
        calls[BY_SPLINES] = ("", step_by_splines(size))
    best = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, (way, call) in calls.items():
            if number > 1 and best[name] > MAX_LOST * min(best.values()) and name != "chosen":
                continue
            with forced(way) if way else mock.patch.dict({}):
                start, count = time.process_time(), 0
                while count == 0 or (number > 0 and time.process_time() - start < 2e-3):
                    call()
                    count += 1
                if number > 0:  # the first one warms up
                    best[name] = min(best[name], (time.process_time() - start) / count)
    return best


def work(size: Size, way: str) -> dict[str, float]:
    """Count what a step does, by the names of ``selection.NANOSECONDS``."""
    if way == BY_SPLINES:
        return selection.by_splines_work(*size.sizes)
    if way == "piecewise":
        return selection.piecewise_work(*size.sizes)
    return selection.step_work(*size.sizes, way)


def fitted(times: list[tuple[Size, str, float]]) -> dict[str, float]:
    """Nanoseconds of each constant, by which the ratios of modelled to measured times are nearest to 1.

    Args:
        times: size, way and seconds of each step.
    """
    from scipy.optimize import least_squares

    names = list(selection.NANOSECONDS)
    matrix = np.array([[1e-9 * work(size, way).get(name, 0.0) / taken for name in names] for size, way, taken in times])
    start = np.array([selection.NANOSECONDS[name] for name in names])

    def errors(constants: np.ndarray) -> np.ndarray:
        return np.log(matrix @ constants + 1e-12)

    bounds = 1e-3 * start.clip(1e-3), np.inf
    found = least_squares(
        errors, start.clip(1e-3), bounds=bounds, loss="soft_l1", f_scale=0.1, x_scale=start.clip(1e-3)
    )
    return dict(zip(names, found.x.tolist()))


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    arguments = argparse.ArgumentParser("python -m bench.cpu_costs", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--sizes", type=int, default=200, help="how many sizes to measure (default 200)")
    arguments.add_argument("--threads", type=int, default=1, help="of torch (default 1: the figures are of one core)")
    options = arguments.parse_args(argv)
    torch.set_num_threads(options.threads)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(place(describe()), style="dim")
    others, times = OtherWork(), list[tuple[Size, str, float]]()
    view = Table(title="sizes at which another way is quicker, ms", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in (*Size._fields, *WAYS, "chosen", "slower by"):
        view.add_column(heading, justify="right")
    lost = list[float]()
    for size in track(sample(options.sizes), "sizes", console=console, transient=True):
        best = seconds(size, [*ways_at(size), BY_SPLINES])
        times += [(size, way, taken) for way, taken in best.items() if way != "chosen"]
        lost.append(best["chosen"] / min(taken for way, taken in best.items() if way in WAYS))
        if lost[-1] > TIE:
            shown = (f"{1e3 * best[way]:.3f}" if way in best else "-" for way in (*WAYS, "chosen"))
            view.add_row(*map(str, size), *shown, f"{lost[-1]:.2f}")
    found = fitted(times)
    scale = found["product"] / selection.NANOSECONDS["product"]  # a quicker machine is quicker at everything
    constants = Table(title="nanoseconds of one core", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "here", "in force", "here / in force", "the same, product as 1"):
        constants.add_column(heading, justify="right" if heading else "left")
    for name, here in found.items():
        there = selection.NANOSECONDS[name]
        constants.add_row(name, f"{here:.4g}", f"{there:.4g}", f"{here / there:.2f}", f"{here / there / scale:.2f}")
    console.print(constants)
    console.print(view)
    near = sum(factor <= TIE for factor in lost)
    console.print(f"Chosen right (within {TIE:.2f}) at {near} of {len(lost)} sizes; the worst is {max(lost):.2f}.")
    share = others.share()
    if share is not None and share > BUSY:
        console.print(f"Other processes took {share:.0%} of the processor meanwhile: the figures are worth little.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
