"""Training: ``KAN.fit``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastkan_kernels import (
    SEED,
    Callback,
    Choice,
    Each,
    Flag,
    Int,
    Kind,
    Optional,
    Real,
    Text,
    checked,
    is_sequence,
    kind_of,
    warn,
)
from fastkan_kernels import Path as PathKind

from ..layers import grid
from ..layers.distributed import check_one_process
from ..network.refine import update_grid_from_samples
from ..network.samples import Sample
from .data import Data, Pair, read_data
from .node_search import NodeTrials, copy_state, penalty_ramp
from .objective import Evaluated, Loss, Objective
from .optimizers import OPTIMIZERS
from .regularization import REG_METRICS, Penalty

if TYPE_CHECKING:
    from ..network.core import Network

TRAINABLE = ("spline", "base", "scale", "symbolic", "affine", "grid")
LOSSES = ("train_loss", "test_loss", "reg")
LARGE = 50.0  # what the median of a column's magnitude must exceed: base functions change around 0, over a few units
MAX_OUTSIDE = 0.5  # of a column's rows


class _Opt(Choice):
    """An optimizer's name; labels are what comes in its place from those who pass two arguments."""

    def read(self, name: str, value: Any) -> str:
        if is_sequence(value) or hasattr(value, "__array__"):
            raise TypeError(
                f"fit takes inputs and labels as one argument, fit((x, y)); its next one, opt, came as {kind_of(value)}"
            )
        return super().read(name, value)


class _Names(Kind):
    """Some of the names that there are; not a string, which holds letters."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def read(self, name: str, value: Any) -> list[str]:
        entries = list(value) if isinstance(value, (list, tuple, set, frozenset)) else None
        if entries is None or not all(isinstance(entry, str) and entry in self.names for entry in entries):
            shown = repr(value) if isinstance(value, (str, list, tuple, set, frozenset)) else kind_of(value)
            raise ValueError(f"{name} must be a tuple of names of {', '.join(map(repr, self.names))}; got {shown}")
        return entries


STRENGTH = Real(least=0)


@checked(
    opt=_Opt(OPTIMIZERS),
    steps=Int(least=0),
    log=Int(least=1),
    lamb=STRENGTH,
    lamb_l1=STRENGTH,
    lamb_entropy=STRENGTH,
    lamb_coef=STRENGTH,
    lamb_coefdiff=STRENGTH,
    update_grid=Flag(),
    grid_update_num=Int(least=1),
    loss_fn=Optional(Callback()),
    lr=Real(above=0),
    start_grid_update_step=Int(least=-1),
    stop_grid_update_step=Int(least=-1),
    batch=Int(),
    metrics=Optional(Each(Callback())),
    display_metrics=Optional(Each(Text())),
    save_fig=Flag(),
    beta=Real(),
    save_fig_freq=Int(least=1),
    img_folder=PathKind(),
    singularity_avoiding=Flag(),
    y_th=Real(),
    reg_metric=Choice(REG_METRICS),
    train=Optional(_Names(TRAINABLE)),
    try_without=Flag(),
    callbacks=Each(Callback()),
    early_stopping=Optional(Int(least=1)),
    seed=SEED,
    progress=Flag(),
)
def fit(
    model: Network,
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
    callbacks: Sequence[Callable[[Network, int, dict[str, list[float]]], Any]] = (),
    early_stopping: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Train the network on data; the arguments are pykan's, and after the star there are more.

    An exception in a function of the caller's, or a KeyboardInterrupt, leaves the network as it was after the last
    whole step, and the record up to it in ``model.history``.

    Args:
        dataset: a dictionary with ``train_input``, ``train_label`` and, if wanted, ``test_input`` and
            ``test_label``, as :func:`create_dataset` makes it; a pair ``(x, y)``; a Dataset of samples; or a DataLoader
            of such pairs. Labels are ``[N, width[-1]]``, or ``[N]`` for one output; with a loss of classes they are
            integers, ``[N]``.
        opt: ``"LBFGS"`` (each step up to 20 iterations with a line search) or ``"Adam"``.
        steps: how many steps.
        log: every how many steps the progress bar changes, and the test loss is measured.
        lamb: strength of all that is added to the loss; 0 is none.
        lamb_l1, lamb_entropy: of the sizes of edges, and of the entropy of how nodes share them among edges.
        lamb_coef, lamb_coefdiff: of the splines' coefficients, and of their differences.
        update_grid: whether knots move to where the samples are, ``grid_update_num`` times, evenly from step
            ``start_grid_update_step`` to ``stop_grid_update_step``.
        loss_fn: of prediction and label, to a tensor with one number; None is the mean squared error. It is tried
            on the first batch before anything changes.
        lr: learning rate.
        batch: rows in a step; -1 is all.
        metrics: functions without argument, whose values are recorded after each step under their names.
        save_fig: whether the network is drawn into ``img_folder`` every ``save_fig_freq`` steps, with ``in_vars``,
            ``out_vars`` and ``beta`` as :meth:`KAN.plot` takes them.
        singularity_avoiding, y_th: as in :meth:`KAN.forward`.
        reg_metric: how an edge's size is measured: a name in ``fastkan.training.regularization.REG_METRICS``.
        display_metrics: what the progress bar shows, of the recorded names.
        train: what is trained: of ``"spline"``, ``"base"``, ``"scale"``, ``"symbolic"``, ``"affine"`` and
            ``"grid"`` (which stands for grid updates); None is all that is trainable. ``train=("spline",)`` is
            continual learning: what data of one region teaches changes nothing elsewhere.
        try_without: whether a fit with ``lamb > 0`` by L-BFGS, on all rows and of all splines, also searches: the
            penalty rises over the first quarter of the steps, and every third step is tried without one hidden node
            as well; what came out better goes on (see ``fastkan.training.node_search``).
        callbacks: called after each step with the model, the step and the record; one that returns True ends the fit.
        early_stopping: after how many steps without a better test loss (or training loss, without a test set) the
            fit ends; the best parameters are kept.
        seed: of the batches' order.
        progress: whether a progress bar is shown.

    Returns:
        ``train_loss``, ``test_loss`` (empty without a test set) and ``reg`` after each step, and the metrics. Losses
        are root mean squares, or with a ``loss_fn`` its values. ``train_loss`` is of the step's batch. ``test_loss``
        is of the test set; with ``batch`` and without ``early_stopping`` it is of ``batch`` of its rows, drawn anew.
        With ``log > 1`` and without ``early_stopping`` steps between repeat the entry before. The last entry is of
        the whole test set always.

    Raises:
        TypeError, ValueError: for data that is not finite or doesn't fit the network, and for arguments out of range,
            before anything has changed.
        RuntimeError: where ``torch.distributed`` is initialised with several processes.

    Warns:
        RuntimeWarning: when a step makes the loss infinite or NaN. The network then has the last good parameters.
        UserWarning: when the value of ``loss_fn`` does not depend on which row a label belongs to, and for columns of
            inputs that a fit can hardly use as they are.

    Example:
        >>> model = KAN(width=[2, 1], grid=3, seed=0)
        >>> dataset = create_dataset(lambda x: x[:, [0]] ** 2 + x[:, [1]], n_var=2, train_num=100, test_num=100)
        >>> results = model.fit(dataset, steps=5, progress=False)
        >>> results["train_loss"][-1] < 0.01
        True
    """
    check_one_process("fit")
    if batch != -1 and batch < 1:
        raise ValueError(f"batch must be at least 1, or -1 for all rows, got {batch}")
    penalty = Penalty(model, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff, reg_metric) if lamb else None
    data = read_data(
        dataset,
        in_features=model.in_features,
        out_features=model.width_in[-1],
        device=model.device,
        dtype=model.dtype,
        loss_fn=loss_fn,
    )
    guarded = singularity_avoiding, y_th
    objective = Objective(model, _tried(model, data, batch, guarded), penalty, lamb, guarded)
    stops = early_stopping is not None
    record = Record(objective, data, metrics or (), -1 if stops else batch, 1 if stops else log, seed)
    results = record.results
    if display_metrics is not None:
        display_metrics = _Names(sorted(results)).read("display_metrics", display_metrics)
    updates = _grid_updates(update_grid, train, steps, start_grid_update_step, stop_grid_update_step, grid_update_num)
    draw = partial(_draw, model, Path(img_folder), in_vars=in_vars, out_vars=out_vars, beta=beta)
    parameters = _trained(model, train)
    objective.is_partial = train is not None
    takes_all = data.loader is None and (batch == -1 or batch >= len(data.train_input))
    searches = bool(lamb) and try_without and opt == "LBFGS" and train is None and takes_all
    awake = [layer for layer in model.layers if not layer.resting]
    searches = searches and all(p.requires_grad for layer in awake for p in layer.parameters())
    is_left_alone = not (metrics or callbacks or save_fig)  # between steps
    options = {"ahead": takes_all and is_left_alone} if opt == "Adam" else {}
    make_step = partial(OPTIMIZERS[opt], parameters, lr, objective, **options)
    take = make_step()
    trials = NodeTrials(model, make_step, objective, bool(updates), steps) if searches else None
    if save_fig:
        draw(step=None)
    batches = data.batches(batch, seed)
    rows = data.rows if takes_all else Sample(data.rows).rows
    _warn_of_scale(model, data.rows, bool(updates))

    good = copy_state(model), 0  # after so many whole steps
    best, best_step = good[0], -1
    with _course(model, parameters, results), _bar(steps, progress) as bar:
        try:
            for step in bar:
                x, y = next(batches)
                if step in updates:
                    update_grid_from_samples(model, x if takes_all else rows)  # not where a few of them lie
                    take.restart()
                evaluated = None
                if trials is None:
                    evaluated = take(x, y)
                else:
                    objective.strength = lamb * penalty_ramp(step, steps)
                    if not trials.due(step):
                        evaluated = take(x, y)
                    elif trials(take, x, y, step):
                        take.restart()
                if not record.measure(step, x, y, evaluated):
                    model.load_state_dict(good[0])
                    warn(_LOST.format(step=step), RuntimeWarning)
                    break
                record.measure_metrics()
                good = copy_state(model), step + 1
                _tell(bar, step, log, results, display_metrics)
                if save_fig and step % save_fig_freq == 0:
                    draw(step=step)
                answers = [callback(model, step, results) for callback in callbacks]
                if not is_left_alone:
                    good = copy_state(model), step + 1
                if callbacks and not _are_same(parameters, now := _trained(model, train)):
                    parameters[:] = now  # a callback has given the network others
                    take = make_step()
                ends = any(answer is True for answer in answers)
                if early_stopping is not None:
                    watched = results["test_loss"] or results["train_loss"]
                    if watched[-1] <= min(watched):
                        best, best_step = good[0], step
                    ends = ends or step - best_step >= early_stopping
                if ends:
                    break
            record.finish()
        except BaseException:  # KeyboardInterrupt too, in the middle of anything
            model.load_state_dict(good[0])
            record.cut(good[1])
            raise
        finally:
            if early_stopping is not None and best_step >= 0:
                model.load_state_dict(best)
            model.sample = data.rows
    return results


_LOST = "step {step} made the loss infinite or NaN; the fit ends with the parameters before that step"


def _tried(model: Network, data: Data, batch: int, guarded: tuple[bool, float]) -> Loss | None:
    """The loss, after a first call on the rows of a first step; a loss of classes has then seen all labels."""
    assert data.labels is not None
    x, y = data.train
    rows = len(x) if batch == -1 or data.loader is not None else min(batch, len(x))
    if data.labels.loss is None:
        return None
    with torch.no_grad():
        prediction = model.through(x[:rows], *guarded)[0]
    loss = data.labels.settled(prediction, y[:rows])
    if data.labels.classes:
        data.labels.check_classes("train_label", y)
        if data.test is not None:
            data.labels.check_classes("test_label", data.test[1])
    return loss


def _grid_updates(
    wanted: bool, train: Collection[str] | None, steps: int, start: int, stop: int, count: int
) -> set[int]:
    """At which steps the grids are updated."""
    if not wanted or (train is not None and "grid" not in train):
        return set()
    every = max(1, stop // count)
    return {step for step in range(0, min(steps, stop), every) if step >= start}


def _trained(model: Network, train: Collection[str] | None) -> list[nn.Parameter]:
    """The parameters that are trained."""
    groups: dict[str, list[nn.Parameter | None]] = {
        "spline": [layer.spline_weight for layer in model.layers],
        "base": [layer.base_weight for layer in model.layers],
        "scale": [layer.spline_scale for layer in model.layers],
        "symbolic": [symbolic.affine for symbolic in model.symbolic],
        "affine": [*model.node_scale, *model.node_bias, *model.subnode_scale, *model.subnode_bias],
    }
    left = {id(p) for layer in range(model.depth) if not model.has_numeric_edges(layer)
            for p in model.layers[layer].parameters()}  # fmt: skip
    if train is not None:
        left |= {id(p) for name, group in groups.items() if name not in train for p in group}
    trained = [p for p in model.parameters() if p.requires_grad and p.numel() and id(p) not in left]
    if not trained:
        raise ValueError(f"train={train!r} leaves nothing to train")
    return trained


def _are_same(some: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> bool:
    return list(map(id, some)) == list(map(id, others))


@contextmanager
def _course(model: Network, parameters: list[nn.Parameter], results: dict[str, list[float]]) -> Iterator[None]:
    """The record is in the model's history meanwhile, and stays there if a step was made or nothing broke off; the
    parameters get back the gradients that they had."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    model.history.append(results)
    try:
        yield
    except BaseException:
        if not results["train_loss"]:
            model.history.pop()
        raise
    finally:
        for parameter in parameters:
            parameter.grad = None
        for parameter, gradient in before:
            parameter.grad = gradient


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
    model: Any, folder: Path, step: int | None, in_vars: Sequence | None, out_vars: Sequence | None, beta: float
) -> None:
    """A picture into the folder; without a step none, but all that could fail has been done."""
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure = model.plot(beta=beta, in_vars=in_vars, out_vars=out_vars, title=f"Step {step}")
    if step is not None:
        figure.savefig(folder / f"{step}.jpg", bbox_inches="tight", dpi=200)
    plt.close(figure)


@torch.no_grad()
def evaluate(model: Network, dataset: dict[str, Tensor]) -> dict[str, float]:
    """Root mean squared error over ``test_input`` and ``test_label`` of a dataset, as ``{"test_loss": ...}``.

    Raises:
        TypeError, ValueError: for data that is not finite or doesn't fit the network.
    """
    if not isinstance(dataset, Mapping) or not {"test_input", "test_label"} <= set(dataset):
        got = list(dataset) if isinstance(dataset, Mapping) else kind_of(dataset)
        raise ValueError(f"dataset must be a dictionary with test_input and test_label, got {got}")
    data = read_data(
        (dataset["test_input"], dataset["test_label"]),
        in_features=model.in_features,
        out_features=model.width_in[-1],
        device=model.device,
        dtype=model.dtype,
    )
    return {"test_loss": (model(data.train_input) - data.train_label).square().mean().sqrt().item()}


# -- the record ------------------------------------------------------------------------------------


class Record:
    """The losses, the penalty and the metrics of each step, under their names.

    Args:
        objective: of the fit.
        data: what it is trained and tested on.
        metrics: functions without argument.
        batch: rows of a test batch, where there are more; -1 is all.
        log: every how many steps the test loss is measured anew.
        seed: of the test batches.

    Raises:
        ValueError: for metrics of one name.

    Attributes:
        results: a list for each name, with an entry for each step.
    """

    def __init__(
        self,
        objective: Objective,
        data: Data,
        metrics: Sequence[Callable[[], Any]] = (),
        batch: int = -1,
        log: int = 1,
        seed: int | None = 0,
    ) -> None:
        self.objective, self.test, self.log, self.metrics = objective, data.test, log, metrics
        self.batches = None if data.test is None else Data(*data.test).batches(batch, seed)
        self.whole = data.test is None or batch == -1 or batch >= len(data.test[0])
        self.names = [getattr(metric, "__name__", type(metric).__name__) for metric in metrics]
        every = [*LOSSES, *self.names]
        twice = sorted({name for name in every if every.count(name) > 1})
        if twice:
            raise ValueError(f"metrics must have names of their own, got {twice} twice")
        self.results: dict[str, list[float]] = {name: [] for name in every}
        self.is_measured = True  # whether the last test loss is the whole set's, by the last step's parameters

    def measure(self, step: int, x: Tensor, y: Tensor, evaluated: Evaluated | None) -> bool:
        """Note losses and penalty after a step on a batch; whether they are finite.

        Args:
            evaluated: the batch's loss and penalty, where they are known.
        """
        with torch.no_grad():
            loss, penalty = self.objective.terms(x, y) if evaluated is None else evaluated
        losses, reg = self._shown(loss), 0.0 if penalty is None else float(penalty)
        if not math.isfinite(losses + reg):
            return False
        self.results["train_loss"].append(losses)
        self.results["reg"].append(reg)
        if self.batches is not None:
            fresh = step % self.log == 0
            self.is_measured = fresh and self.whole
            self.results["test_loss"].append(self._loss(next(self.batches)) if fresh else self.results["test_loss"][-1])
        return True

    def measure_metrics(self) -> None:
        """Note the metrics.

        Raises:
            TypeError: for one that gives no number.
        """
        found = [(name, _number(name, metric())) for name, metric in zip(self.names, self.metrics)]
        for name, value in found:
            self.results[name].append(value)

    def finish(self) -> None:
        """Make the last test loss the whole set's, by the parameters of the last step."""
        if not self.is_measured and self.test is not None and self.results["test_loss"]:
            self.results["test_loss"][-1] = self._loss(self.test)
            self.is_measured = True

    def cut(self, steps: int) -> None:
        """Forget what comes after so many steps."""
        self.is_measured = self.is_measured and len(self.results["train_loss"]) <= steps
        for values in self.results.values():
            del values[steps:]

    @torch.no_grad()
    def _loss(self, rows: Pair) -> float:
        model, objective = self.objective.model, self.objective
        avoiding, y_th = objective.guarded
        return self._shown(objective.loss(model(rows[0], singularity_avoiding=avoiding, y_th=y_th), rows[1]))

    def _shown(self, loss: Any) -> float:
        value = float(loss)
        return math.sqrt(value) if self.objective.squares and value >= 0 else value


def _number(name: str, value: Any) -> float:
    """A metric's value as a float."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"the metric {name} must return a number, got {type(value).__name__}") from None


def _warn_of_scale(model: Network, x: Tensor, updates: bool) -> None:
    """Name the columns that a fit can hardly use as they are.

    Args:
        x: ``[N, in_features]``.
        updates: whether the fit moves the knots to where the rows are, which leaves only the base function far off.

    Warns:
        UserWarning: for columns with most rows outside of the grid, or with updates for columns of large numbers.
    """
    layer, rows = model.layers[0], model.inputs(x)
    if not model.has_numeric_edges(0):
        return
    if updates:
        if layer.base == "none":
            return
        far = rows.abs().median(0).values > LARGE
        what = f"hold numbers beyond {LARGE:g} for the most part, where the base function is a straight line"
        remedy = ""
    else:
        limits = grid.interior(layer.knots, layer.spline_order)
        outside = (rows < limits[:, 0]) | (rows > limits[:, -1])
        far = outside.to(torch.float32).mean(0) > MAX_OUTSIDE
        what, remedy = (
            "lie outside of the grid for the most part, where splines are 0",
            ", or fit with update_grid=True",
        )
    columns = model.input_id[far].tolist()
    if columns:
        shown = f"{columns[:8]}{' and more' if len(columns) > 8 else ''}"
        warn(f"the inputs' columns {shown} {what}; normalise them, as by (x - x.mean(0)) / x.std(0){remedy}")
