"""Training: ``KAN.fit``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastkan_kernels.checks import check_int

from . import sparsity
from .activations import remember
from .datasets import Data, read_data
from .objective import Objective
from .optimizers import OPTIMIZERS
from .regularization import Penalty

if TYPE_CHECKING:
    from .network import KAN

TRAINABLE = ("spline", "base", "scale", "symbolic", "affine", "grid")


def fit(
    model: KAN,
    dataset: Any,
    opt: str = "LBFGS",
    steps: int = 100,
    log: int = 1,
    lamb: float = 0.0,
    lamb_l1: float = 1.0,
    lamb_entropy: float = 2.0,
    lamb_coef: float = 0.0,
    lamb_coefdiff: float = 0.0,
    update_grid: bool = True,
    grid_update_num: int = 10,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    lr: float = 1.0,
    start_grid_update_step: int = -1,
    stop_grid_update_step: int = 50,
    batch: int = -1,
    metrics: Sequence[Callable[[], Any]] | None = None,
    save_fig: bool = False,
    in_vars: Sequence | None = None,
    out_vars: Sequence | None = None,
    beta: float = 3.0,
    save_fig_freq: int = 1,
    img_folder: str = "./video",
    singularity_avoiding: bool = False,
    y_th: float = 1000.0,
    reg_metric: str = "edge_forward_spline_n",
    display_metrics: Sequence[str] | None = None,
    *,
    train: Collection[str] | None = None,
    try_without: bool = True,
    callbacks: Sequence[Callable[[KAN, int, dict[str, list[float]]], Any]] = (),
    early_stopping: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Train the network on data; the arguments are pykan's, and after the star there are more.

    Args:
        dataset: a dictionary with ``train_input``, ``train_label`` and, if wanted, ``test_input`` and
            ``test_label``, as :func:`create_dataset` makes it; a pair ``(x, y)``; or a DataLoader of such pairs.
        opt: ``"LBFGS"`` (each step up to 20 iterations with a line search) or ``"Adam"``.
        steps: how many steps.
        log: every how many steps the progress bar changes.
        lamb: strength of all that is added to the loss; 0 is none.
        lamb_l1, lamb_entropy: of the sizes of edges, and of the entropy of how nodes share them among edges.
        lamb_coef, lamb_coefdiff: of the splines' coefficients, and of their differences.
        update_grid: whether knots move to where the samples are, ``grid_update_num`` times, evenly from step
            ``start_grid_update_step`` to ``stop_grid_update_step``.
        loss_fn: of prediction and label; None is the mean squared error.
        lr: learning rate.
        batch: rows in a step; -1 is all.
        metrics: functions without argument, whose values are recorded after each step under their names.
        save_fig: whether the network is drawn into ``img_folder`` every ``save_fig_freq`` steps, with ``in_vars``,
            ``out_vars`` and ``beta`` as :meth:`KAN.plot` takes them.
        singularity_avoiding, y_th: as in :meth:`KAN.forward`.
        reg_metric: how an edge's size is measured: a name in ``fastkan.regularization.REG_METRICS``.
        display_metrics: what the progress bar shows, of the recorded names.
        train: what is trained: of ``"spline"``, ``"base"``, ``"scale"``, ``"symbolic"``, ``"affine"`` and
            ``"grid"`` (which stands for grid updates); None is all that is trainable. ``train=("spline",)`` is
            continual learning: what data of one region teaches changes nothing elsewhere.
        try_without: whether a fit with ``lamb > 0`` by L-BFGS, on all rows and of all splines, also searches: the
            penalty rises over the first quarter of the steps, and every third step is tried without one hidden node
            as well; what came out better goes on (see ``fastkan.sparsity``).
        callbacks: called after each step with the model, the step and the record; one that returns True ends the fit.
        early_stopping: after how many steps without a better test loss (or training loss, without a test set) the
            fit ends; the best parameters are kept.
        seed: of the batches' order.
        progress: whether a progress bar is shown.

    Returns:
        ``train_loss``, ``test_loss`` (empty without a test set) and ``reg`` after each step, and the metrics. Losses
        are root mean squares, or with a ``loss_fn`` its values.

    Raises:
        TypeError, ValueError: for data that is not finite or doesn't fit the network, and for arguments out of range,
            before anything has changed.

    Warns:
        RuntimeWarning: when a step makes the loss infinite or NaN. The network then has the last good parameters.

    Example:
        >>> model = KAN(width=[2, 1], grid=3, seed=0)
        >>> dataset = create_dataset(lambda x: x[:, [0]] ** 2 + x[:, [1]], n_var=2, train_num=100, test_num=100)
        >>> results = model.fit(dataset, steps=5, progress=False)
        >>> results["train_loss"][-1] < 0.01
        True
    """
    penalty = Penalty(model, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff, reg_metric) if lamb else None
    _check(opt, steps, log, grid_update_num, stop_grid_update_step, batch, early_stopping, save_fig_freq, train)
    data = read_data(
        dataset,
        in_features=model.in_features,
        out_features=model.width_in[-1],
        device=model.device,
        dtype=model.dtype,
        check_labels=loss_fn is None,
    )
    names = [_name(metric) for metric in metrics or ()]
    results: dict[str, list[float]] = {name: [] for name in ("train_loss", "test_loss", "reg", *names)}
    if display_metrics is not None and not set(display_metrics) <= set(results):
        raise ValueError(f"display_metrics must be of {sorted(results)}, got {sorted(display_metrics)}")
    objective = Objective(model, loss_fn, penalty, lamb, (singularity_avoiding, y_th))
    updates = _grid_updates(update_grid, train, steps, start_grid_update_step, stop_grid_update_step, grid_update_num)

    searches = bool(lamb) and try_without and opt == "LBFGS" and train is None and _takes_all(data, batch)
    awake = [layer for layer in model.layers if not layer.resting]
    searches = searches and all(p.requires_grad for layer in awake for p in layer.parameters())

    @torch.no_grad()
    def record(x: Tensor, y: Tensor) -> None:
        loss, reg = objective.terms(x, y)
        losses = {"train_loss": loss}
        if data.test is not None:
            losses["test_loss"] = objective.loss(model(data.test[0], singularity_avoiding, y_th), data.test[1])
        for name, value in losses.items():
            results[name].append((value.sqrt() if loss_fn is None else value).item())
        results["reg"].append(0.0 if reg is None else reg.item())

    with _training(model, train) as parameters, _bar(steps, progress) as bar:
        make_step = partial(OPTIMIZERS[opt], parameters, lr, objective)
        take = make_step()
        trials = sparsity.NodeTrials(model, make_step, objective, bool(updates), steps) if searches else None
        batches = data.batches(batch, seed)
        best, best_step = sparsity.state_of(model), -1
        for step in bar:
            x, y = next(batches)
            good = sparsity.state_of(model)
            if step in updates:
                model.update_grid_from_samples(x)
                take.restart()
            if trials is None:
                take(x, y)
            else:
                objective.strength = lamb * sparsity.rise(step, steps)
                if not trials.due(step):
                    take(x, y)
                elif trials(take, x, y, step):
                    take.restart()
            record(x, y)
            if not math.isfinite(results["train_loss"][-1] + results["reg"][-1]):
                model.load_state_dict(good)
                for name in ("train_loss", "test_loss", "reg"):
                    del results[name][step:]
                warnings.warn(f"{_LOST.format(step=step)}", RuntimeWarning, stacklevel=2)
                break
            for name, metric in zip(names, metrics or ()):
                value = metric()
                results[name].append(float(value.detach() if isinstance(value, Tensor) else value))
            _tell(bar, step, log, results, display_metrics)
            if save_fig and step % save_fig_freq == 0:
                _draw(model, Path(img_folder), step, in_vars, out_vars, beta)
            answers = [callback(model, step, results) for callback in callbacks]
            ends = any(answer is True for answer in answers)
            if early_stopping is not None:
                watched = results["test_loss"] or results["train_loss"]
                if watched[-1] <= min(watched):
                    best, best_step = sparsity.state_of(model), step
                ends = ends or step - best_step >= early_stopping
            if ends:
                break
        if early_stopping is not None:
            model.load_state_dict(best)
    remember(model, data.train[0])
    model.history.append(results)
    return results


_LOST = "step {step} made the loss infinite or NaN; the fit ends with the parameters before that step"


def _check(
    opt: str,
    steps: int,
    log: int,
    grid_update_num: int,
    stop_grid_update_step: int,
    batch: int,
    early_stopping: int | None,
    save_fig_freq: int,
    train: Collection[str] | None,
) -> None:
    if opt not in OPTIMIZERS:
        raise ValueError(f"opt must be one of {', '.join(map(repr, OPTIMIZERS))}; got {opt!r}")
    check_int("steps", steps, least=0)
    check_int("log", log, least=1)
    check_int("grid_update_num", grid_update_num, least=1)
    check_int("stop_grid_update_step", stop_grid_update_step, least=-1)
    check_int("save_fig_freq", save_fig_freq, least=1)
    if batch != -1:
        check_int("batch", batch, least=1)
    if early_stopping is not None:
        check_int("early_stopping", early_stopping, least=1)
    if train is not None and (isinstance(train, str) or not set(train) <= set(TRAINABLE)):
        raise ValueError(f"train must be a tuple of names of {', '.join(map(repr, TRAINABLE))}; got {train!r}")


def _takes_all(data: Data, batch: int) -> bool:
    return data.loader is None and (batch == -1 or batch >= len(data.train_input))


def _grid_updates(
    wanted: bool, train: Collection[str] | None, steps: int, start: int, stop: int, count: int
) -> set[int]:
    """At which steps the grids are updated."""
    if not wanted or (train is not None and "grid" not in train):
        return set()
    every = max(1, stop // count)
    return {step for step in range(0, min(steps, stop), every) if step >= start}


@contextmanager
def _training(model: KAN, train: Collection[str] | None) -> Iterator[list[nn.Parameter]]:
    """The parameters that are trained; nothing else asks for a gradient meanwhile."""
    groups: dict[str, list[nn.Parameter | None]] = {
        "spline": [layer.spline_weight for layer in model.layers],
        "base": [layer.base_weight for layer in model.layers],
        "scale": [layer.spline_scale for layer in model.layers],
        "symbolic": [symbolic.affine for symbolic in model.symbolic],
        "affine": [*model.node_scale, *model.node_bias, *model.subnode_scale, *model.subnode_bias],
    }
    idle = {id(p) for layer in range(model.depth) if not model.has_numeric_edges(layer)
            for p in model.layers[layer].parameters()}  # fmt: skip
    frozen = [
        parameter
        for name, group in groups.items()
        for parameter in group
        if parameter is not None
        and parameter.requires_grad
        and (id(parameter) in idle or parameter.numel() == 0 or (train is not None and name not in train))
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError(f"train={train!r} leaves nothing to train")
        yield parameters
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for parameter in model.parameters():
            parameter.grad = None


def _name(metric: Callable) -> str:
    return getattr(metric, "__name__", type(metric).__name__)


@contextmanager
def _bar(steps: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(range(steps), disable=not progress, ncols=100, desc="fit") as bar:
        yield bar


def _tell(bar: Any, step: int, log: int, results: dict[str, list[float]], names: Sequence[str] | None) -> None:
    if bar.disable or step % log:
        return
    shown = names or [name for name in ("train_loss", "test_loss", "reg") if results[name]]
    bar.set_description(" | ".join(f"{name}: {results[name][-1]:.2e}" for name in shown))


def _draw(
    model: KAN, folder: Path, step: int, in_vars: Sequence | None, out_vars: Sequence | None, beta: float
) -> None:
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure = model.plot(beta=beta, in_vars=in_vars, out_vars=out_vars, title=f"Step {step}")
    figure.savefig(folder / f"{step}.jpg", bbox_inches="tight", dpi=200)
    plt.close(figure)
