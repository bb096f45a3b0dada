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
HELD_OUT = 5  # in a careful session, every fifth training row is held out
CAREFUL: dict[str, Any] = {**FREE, "early_stopping": 10}
CAREFUL_THRESHOLD = 0.9  # the smallest R2 of a formula in a careful session
MODULES = {"fastkan": "fastkan", "pykan": "kan"}  # import names of the packages


def run(
    package: str, target: Target, seed: int, dtype: torch.dtype = torch.float32, plots: bool = False,
    noise: float = 0.0, careful: bool = False,
) -> Result:  # fmt: skip
    """One session, without output.

    Args:
        noise: standard deviation of normal noise on the labels for training, as a share of their standard deviation.
        careful: whether to take care of noise: every fifth training row is held out and ends the fits after pruning,
            the grid is not refined, and functions with a smaller R2 are accepted. pykan has no such options.

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
            _session(package, target, seed, found, plots, noise, careful)
            found["error"] = error(target, found["formula"], found.pop("variables"))
            found["found"] = is_found(target, found["formula"], found["error"], noise)
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


def _session(
    package: str, target: Target, seed: int, found: Result, plots: bool, noise: float, careful: bool
) -> None:  # fmt: skip
    """The calls of the target's recipe, which both packages have, and those of a careful session."""
    module, recipe = importlib.import_module(MODULES[package]), target.recipe
    free, symbolic = (CAREFUL, {"r2_threshold": CAREFUL_THRESHOLD}) if careful else (FREE, {})

    def draw(plot: Callable[[], Any]) -> None:
        if plots:
            with _part(found, "plot"):
                _save(plot())

    with _part(found, "create"):
        width = copy.deepcopy(list(target.width))  # since pykan changes the argument
        model = module.KAN(width=width, grid=recipe.grid, k=3, seed=seed, mult_arity=target.mult_arity)
        dataset = module.create_dataset(target.function, n_var=target.variables, ranges=list(target.ranges))
        dataset = _with_noise(dataset, noise, seed, careful)
    with _part(found, "sparse training"):
        model.fit(dataset, **recipe.sparse)
    draw(model.plot)
    with _part(found, "prune"):
        pruned = model.prune()
    draw(partial(model.plot, mask=True) if package == "fastkan" else pruned.plot)
    found["width"] = pruned.width
    with _part(found, "training"):
        pruned.fit(dataset, **free)
        if recipe.refine is not None and not careful:
            pruned = pruned.refine(recipe.refine)
            pruned.fit(dataset, **free)
    with _part(found, "auto_symbolic"):
        pruned.auto_symbolic(**symbolic)
    with _part(found, "training of the formula"):
        results = pruned.fit(dataset, **free)
    found["rmse"] = float(results["test_loss"][-1])
    with _part(found, "formula"):
        formulas, found["variables"] = pruned.symbolic_formula(numeric="raise")
    found["formula"] = formulas[0]


def _with_noise(dataset: dict[str, Any], noise: float, seed: int, careful: bool) -> dict[str, Any]:
    """Return the data set with noise on its training labels; in a careful session, held-out rows are its test set."""
    x, y = dataset["train_input"], dataset["train_label"]
    random = torch.Generator().manual_seed(seed)
    y = y + noise * y.std() * torch.randn(y.shape, generator=random, dtype=y.dtype)
    if not careful:
        return {**dataset, "train_label": y}
    held = torch.arange(len(x)) % HELD_OUT == 0
    return {"train_input": x[~held], "train_label": y[~held], "test_input": x[held], "test_label": y[held]}


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
