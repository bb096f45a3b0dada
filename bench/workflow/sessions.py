"""The session of the article or the notebook, call for call, with either package."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ..records import Result
from . import silenced
from .judge import error, is_found
from .targets import Target

FREE: dict[str, Any] = {"steps": 50}  # with the optimizer that a package chooses
MODULES = {"fastkan": "fastkan", "pykan": "kan"}  # import names of the packages


def run(package: str, target: Target, seed: int, dtype: torch.dtype = torch.float32, plots: bool = False) -> Result:
    """One session, without output.

    Returns:
        ``width`` of the pruned network and ``rmse`` of the last one on the test set, or None if the session did not
        come so far; its ``formula``, the formula's ``error``, and whether it ``found`` the target; ``seconds`` of
        processor time of each part; ``note``, the exception that it ended with, or None.
    """
    names = ("width", "formula", "rmse", "error")
    found: Result = {"case": target.name, "contender": package, "seed": seed, **dict.fromkeys(names)}
    found |= {"found": False, "seconds": {}, "note": None}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with silenced(), _own_folder():
            _session(package, target, seed, found, plots)
            found["error"] = error(target, found["formula"], found.pop("variables"))
            found["found"] = is_found(target, found["formula"], found["error"])
    except Exception as problem:  # of any kind: an error in a package must not end the run
        last = traceback.extract_tb(problem.__traceback__)[-1]
        words = str(problem).splitlines()[0] if str(problem) else ""
        found["note"] = f"{type(problem).__name__} in {last.name}: {words}"[:160]
    finally:
        torch.set_default_dtype(default)
    if found["formula"] is not None:
        found["formula"] = str(found["formula"])
    return found


@contextlib.contextmanager
def _part(found: Result, name: str) -> Iterator[None]:
    """Add the processor time of a part; of all threads, so that a busy machine changes it little."""
    start = time.process_time()
    try:
        yield
    finally:
        found["seconds"][name] = found["seconds"].get(name, 0.0) + time.process_time() - start


def _session(package: str, target: Target, seed: int, found: Result, plots: bool) -> None:
    """The calls of the target's recipe, which both packages have."""
    module, recipe = importlib.import_module(MODULES[package]), target.recipe

    def draw(plot: Callable[[], Any]) -> None:
        if plots:
            with _part(found, "plot"):
                _save(plot())

    with _part(found, "create"):
        width = copy.deepcopy(list(target.width))  # since pykan changes the argument
        model = module.KAN(width=width, grid=recipe.grid, k=3, seed=seed, mult_arity=target.mult_arity)
        dataset = module.create_dataset(target.function, n_var=target.variables, ranges=list(target.ranges))
    with _part(found, "sparse training"):
        model.fit(dataset, **recipe.sparse)
    draw(model.plot)
    with _part(found, "prune"):
        pruned = model.prune()
    draw(partial(model.plot, mask=True) if package == "fastkan" else pruned.plot)
    found["width"] = pruned.width
    with _part(found, "training"):
        pruned.fit(dataset, **FREE)
        if recipe.refine is not None:
            pruned = pruned.refine(recipe.refine)
            pruned.fit(dataset, **FREE)
    with _part(found, "auto_symbolic"):
        pruned.auto_symbolic()
    with _part(found, "training of the formula"):
        results = pruned.fit(dataset, **FREE)
    found["rmse"] = float(results["test_loss"][-1])
    with _part(found, "formula"):
        formulas, found["variables"] = pruned.symbolic_formula(numeric="raise")
    found["formula"] = formulas[0]


def _save(figure: Any) -> None:
    """Save a figure, or the current one where a package returns none, for the time that it takes."""
    from matplotlib import pyplot as plt

    (plt.gcf() if figure is None else figure).savefig(io.BytesIO())
    plt.close("all")


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """Run in a temporary folder, for the files that a package leaves behind."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
