"""The session of the article or the notebook, call for call, by either package."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from .judge import error, is_found
from .targets import Recipe, Target

FREE: dict[str, Any] = {"opt": "LBFGS", "steps": 50}


class Outcome(NamedTuple):
    """What a session came to.

    Args:
        width: of the pruned network, or None if it did not come that far.
        rmse: of the last network on the test set.
        error: of its formula, see :func:`error`.
        found: whether that is the target.
        seconds: of processor time, of each part.
        failure: what it ended with, if it broke off.
    """

    package: str
    target: str
    seed: int
    width: list | None
    formula: str | None
    rmse: float | None
    error: float | None
    found: bool
    seconds: dict[str, float]
    failure: str | None


class _Clock:
    """Processor time of named parts; of all threads, so that a busy machine counts for little."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


def run(package: str, target: Target, seed: int, dtype: torch.dtype = torch.float32, plots: bool = False) -> Outcome:
    """One session, in silence; where it breaks off, the outcome says with what."""
    clock = _Clock()
    seen: dict[str, Any] = {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            SESSIONS[package](target, seed, clock, seen, plots)
            apart = error(target, seen["formula"], seen["variables"])
            found, failure = is_found(target, seen["formula"], apart), None
    except Exception as problem:  # whatever a package does, the table goes on
        last = traceback.extract_tb(problem.__traceback__)[-1]
        apart, found = None, False
        failure = f"{type(problem).__name__} in {last.name}: {str(problem).splitlines()[0] if str(problem) else ''}"[
            :160
        ]
    finally:
        torch.set_default_dtype(default)
    formula = str(seen["formula"]) if "formula" in seen else None
    rmse = seen.get("rmse")
    return Outcome(
        package, target.name, seed, seen.get("width"), formula, rmse, apart, found, clock.seconds, failure
    )  # fmt: skip


def _fastkan(target: Target, seed: int, clock: _Clock, seen: dict[str, Any], plots: bool) -> None:
    from fastkan import KAN, create_dataset

    with clock.part("create"):
        model = KAN(width=target.width, grid=target.recipe.grid, k=3, seed=seed, mult_arity=target.mult_arity)
        dataset = create_dataset(target.function, n_var=target.variables, ranges=target.ranges)
    _follow(target.recipe, model, dataset, clock, seen, plots, lambda pruned: model.plot(mask=True))


def _pykan(target: Target, seed: int, clock: _Clock, seen: dict[str, Any], plots: bool) -> None:
    import kan

    with clock.part("create"):
        width = copy.deepcopy(list(target.width))  # it writes into it
        model = kan.KAN(width=width, grid=target.recipe.grid, k=3, seed=seed, mult_arity=target.mult_arity)
        dataset = kan.create_dataset(target.function, n_var=target.variables, ranges=list(target.ranges))
    _follow(target.recipe, model, dataset, clock, seen, plots, lambda pruned: pruned.plot())


SESSIONS: dict[str, Callable] = {"fastkan": _fastkan, "pykan": _pykan}


def _follow(
    recipe: Recipe,
    model: Any,
    dataset: dict,
    clock: _Clock,
    seen: dict[str, Any],
    plots: bool,
    plot_pruned: Callable[[Any], Any],
) -> None:
    """The calls of a recipe, which both packages have."""

    def draw(plot: Callable[[], Any]) -> None:
        if plots:
            with clock.part("plot"):
                _close(plot())

    with clock.part("sparse training"):
        model.fit(dataset, **recipe.sparse)
    draw(model.plot)
    with clock.part("prune"):
        pruned = model.prune()
    draw(lambda: plot_pruned(pruned))
    seen["width"] = pruned.width
    with clock.part("training"):
        pruned.fit(dataset, **FREE)
        if recipe.refine is not None:
            pruned = pruned.refine(recipe.refine)
            pruned.fit(dataset, **FREE)
    with clock.part("auto_symbolic"):
        pruned.auto_symbolic()
    with clock.part("training of the formula"):
        results = pruned.fit(dataset, **FREE)
    seen["rmse"] = float(results["test_loss"][-1])
    with clock.part("formula"):
        formulas, seen["variables"] = pruned.symbolic_formula(numeric="raise")
    seen["formula"] = formulas[0]


def _close(figure: Any) -> None:
    from matplotlib import pyplot as plt

    if figure is not None:
        figure.savefig(io.BytesIO())
    else:
        plt.gcf().savefig(io.BytesIO())
    plt.close("all")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No output, and a folder of its own for what a package leaves behind."""
    before = os.getcwd()
    nowhere = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
