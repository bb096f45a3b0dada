"""The training loop ``KAN.fit``, the record of losses that the loop returns, and the checks of its arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastkan_kernels import is_sequence, kind_of, warn
from fastkan_kernels import validation as kinds

from ..layers import grid
from ..layers.distributed import check_one_process
from ..network.refine import update_grid_from_samples
from ..network.samples import Sample, is_array, is_value_list, samples_as_pair
from ..network.trace import check_has_values, check_not_sharded
from .data import Data, Pair, read_data, with_sample_weight
from .node_search import NodeTrials, copy_state, penalty_ramp
from .objective import Evaluated, Loss, Objective, has_row_losses
from .optimizers import FIRST_DAMPING, OPTIMIZERS
from .progress import progress_bar
from .regularization import REG_METRICS, Penalty
from .restarts import START_STEPS, Restarts
from .threads import one_thread

if TYPE_CHECKING:
    from ..network.core import Network

TRAINABLE = ("spline", "base", "scale", "symbolic", "affine", "grid")
LOSSES = ("train_loss", "test_loss", "reg")
# Maximum median magnitude of a column of inputs. For larger inputs the base function is nearly a straight line.
MAX_MEDIAN = 50.0
# Maximum number of trained parameters for which the optimizer "auto" is Levenberg-Marquardt. With about this number of
# parameters, a step of Levenberg-Marquardt costs as much as a step of L-BFGS.
MAX_AUTO_PARAMETERS = 1000
# Maximum number of rows times parameters for which the steps of a fit use one thread.
MAX_ONE_THREAD = 1 << 19
# Maximum share of the values of a column of inputs that may lie outside of the grid.
MAX_OUTSIDE = 0.5


Fn = TypeVar("Fn", bound=Callable[..., Any])


def _accepts_labels(function: Fn) -> Fn:
    """Return a function for which ``fit(model, x, y, ...)`` has the meaning of ``fit(model, (x, y), ...)``.

    The argument after the dataset is the name of an optimizer, so an array or a list in its place can only be labels.
    """

    @functools.wraps(function)
    def call(model: Any, *args: Any, **options: Any) -> Any:
        if len(args) > 1 and (is_sequence(args[1]) or is_array(args[1])):
            x, y, *others = args
            if not (is_array(x) or is_value_list(x)):
                raise TypeError(
                    f"fit takes inputs and labels as two arrays, or one dataset; got {kind_of(x)} and {kind_of(y)}"
                )
            args = (x, y), *others
        return function(model, *args, **options)

    return cast(Fn, call)


class _Names(kinds.Kind):
    """Argument kind: a collection of names from a given list. A plain string is refused, because Python would iterate
    over its letters."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def read(self, name: str, value: Any) -> list[str]:
        entries = list(value) if isinstance(value, (list, tuple, set, frozenset)) else None
        if entries is None or not all(isinstance(entry, str) and entry in self.names for entry in entries):
            shown = repr(value) if isinstance(value, (str, list, tuple, set, frozenset)) else kind_of(value)
            raise ValueError(f"{name} must be a tuple of names of {', '.join(map(repr, self.names))}; got {shown}")
        return entries


class _DecayOrAuto(kinds.Real):
    """Argument kind: a number of at least 0, or "auto"."""

    def read(self, name: str, value: Any) -> Any:
        return value if isinstance(value, str) and value == "auto" else super().read(name, value)


STRENGTH = kinds.Real(least=0)


@_accepts_labels
@kinds.checked(
    opt=kinds.Choice(("auto", *OPTIMIZERS)), steps=kinds.INDEX, log=kinds.Int(least=1), lamb=STRENGTH, lamb_l1=STRENGTH,
    lamb_entropy=STRENGTH, lamb_coef=STRENGTH, lamb_coefdiff=STRENGTH, update_grid=kinds.FLAG,
    grid_update_num=kinds.Int(least=1), loss_fn=kinds.Optional(kinds.Callback()), lr=kinds.Real(above=0),
    start_grid_update_step=kinds.Int(least=-1), stop_grid_update_step=kinds.Int(least=-1), batch=kinds.Int(),
    metrics=kinds.Optional(kinds.Each(kinds.Callback())), display_metrics=kinds.Optional(kinds.Each(kinds.Text())),
    save_fig=kinds.FLAG, beta=kinds.REAL, save_fig_freq=kinds.Int(least=1), img_folder=kinds.Path(),
    singularity_avoiding=kinds.FLAG, y_th=kinds.REAL, reg_metric=kinds.Choice(REG_METRICS),
    train=kinds.Optional(_Names(TRAINABLE)), try_without=kinds.FLAG, callbacks=kinds.Each(kinds.Callback()),
    early_stopping=kinds.Optional(kinds.Int(least=1)), seed=kinds.SEED, progress=kinds.FLAG,
    weight_decay=_DecayOrAuto(least=0),
)  # fmt: skip
def fit(
    model: Network,
    dataset: Any,
    opt: str = "auto",
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
    sample_weight: Any = None,
    weight_decay: float | str = 0.0,
) -> dict[str, list[float]]:
    """Train the network on data.

    The positional arguments are the same as in pykan's ``fit``; the keyword-only arguments do not exist in pykan.

    If a function that was passed as an argument raises an exception, or if a KeyboardInterrupt occurs, the network is
    restored to its state after the last complete step, and ``model.history`` holds the losses up to that step.

    Args:
        dataset: a dictionary with ``train_input``, ``train_label`` and optionally ``test_input`` and ``test_label``,
            as returned by :func:`create_dataset`; a pair ``(x, y)``, which may also be passed as two arguments,
            ``fit(x, y)``; a DataLoader of pairs ``(x, y)``; or a ``torch.utils.data.Dataset`` of samples. Inputs and
            labels may be tensors, NumPy arrays, DataFrames or lists of numbers. Labels have the shape
            ``[N, width[-1]]``, or ``[N]`` if the network has one output. For a classification loss, labels are integers
            ``[N]``.
        opt: name of the optimizer. ``"LM"`` is the Levenberg-Marquardt method of
            :class:`fastkan.optim.LevenbergMarquardt`, whose steps use all rows. It minimizes the mean squared error or
            torch's cross entropy without a penalty. If the mean squared error is still large after 8 steps of the first
            fit of a network, the network is also trained from other initial parameters, which depend on the network's
            seed, and the best one is kept. ``"LBFGS"`` makes up to 20 iterations with a line search in each step, and
            ``"Adam"`` makes one update in each step. ``"auto"`` is ``"LM"`` for the mean squared error without a
            penalty, if all rows are in one batch, the network is float32 or float64, at most 1000 parameters are
            trained, and no hook or subclass changes the outputs of the network. Otherwise ``"auto"`` is ``"LBFGS"``.
        steps: number of training steps.
        log: number of steps between updates of the progress bar and between measurements of the test loss.
        lamb: factor of the penalty in the objective; if 0, no penalty is computed.
        lamb_l1, lamb_entropy: weights within the penalty. ``lamb_l1`` is the weight of the sum of the edge sizes, and
            ``lamb_entropy`` is the weight of the entropy of the edge sizes at each node.
        lamb_coef, lamb_coefdiff: weights within the penalty. ``lamb_coef`` is the weight of the magnitudes of the
            spline coefficients, and ``lamb_coefdiff`` is the weight of the magnitudes of the differences between
            consecutive coefficients.
        update_grid: whether to move the knots to where the samples lie, about ``grid_update_num`` times at equal
            intervals from step ``start_grid_update_step`` to step ``stop_grid_update_step``.
        loss_fn: function of the prediction and the labels that returns a tensor with one number (default: the mean
            squared error). The function is called once on the first batch before the network changes.
        lr: learning rate of the optimizer.
        batch: number of data rows that each step uses, or -1 for all rows. With ``"LM"``, every step uses all rows, in
            parts of this size.
        metrics: functions without arguments that are called after each step. The returned values are recorded under
            the names of the functions.
        save_fig: whether to save a drawing of the network in ``img_folder`` every ``save_fig_freq`` steps. The drawing
            is made by :meth:`KAN.plot` with the arguments ``in_vars``, ``out_vars`` and ``beta``.
        singularity_avoiding, y_th: arguments of :meth:`KAN.forward`.
        reg_metric: name of the metric that measures the size of an edge, one of
            ``fastkan.training.regularization.REG_METRICS``.
        display_metrics: names of the recorded values that the progress bar shows.
        train: groups of parameters to train (default: all trainable parameters). The groups are ``"spline"``,
            ``"base"``, ``"scale"``, ``"symbolic"``, ``"affine"`` and ``"grid"``, where ``"grid"`` allows grid updates.
            With ``train=("spline",)``, training on data from one region leaves the functions in other regions
            unchanged, which is useful for continual learning.
        try_without: whether to also search for a sparser network. The search is made only in a fit by L-BFGS with
            ``lamb > 0``, on all rows, in which all parameters are trained. During the search, the penalty ramps up over
            the first quarter of the steps, and every third step is also tried with one hidden node set to zero. The
            better of the two networks is kept (see ``fastkan.training.node_search``).
        callbacks: functions that are called after each step with the model, the index of the step and the dictionary of
            recorded losses. The fit ends when a callback returns True.
        early_stopping: number of consecutive steps without an improvement of the test loss, or of the training loss if
            there is no test set, after which the fit ends. The best parameters are restored when the fit ends.
        seed: seed of the random order of the batches.
        progress: whether to show a progress bar.
        sample_weight: weights ``[N]`` of the training rows, in an array or a tensor. A row of weight 2 counts as two
            rows in the loss and in grid updates, and a row of weight 0 is ignored. The loss must be the mean squared
            error, ``torch.nn.CrossEntropyLoss()`` or ``torch.nn.BCEWithLogitsLoss()``. A penalty and the test loss do
            not use the weights.
        weight_decay: factor of half the sum of squares of the spline coefficients and base weights in the objective.
            With ``"auto"``, which ``opt="LM"`` supports, every step estimates factors for each layer from the data, so
            that noise in the labels is fitted little (see :class:`fastkan.training.evidence.Evidence`).

    Returns:
        A dictionary of lists with one entry for each step: ``train_loss``, ``test_loss`` (empty without a test set),
        ``reg`` (the penalty) and one list for each metric. Losses are values of ``loss_fn``, or root mean squared
        errors if ``loss_fn`` is None. ``train_loss`` is measured on the batch of the step, or on all rows with
        ``"LM"``. ``test_loss`` is measured on the whole test set or, if ``batch`` is given, on a new random selection
        of ``batch`` test rows each time. With ``log > 1`` the test loss is measured every ``log`` steps, and the last
        measured value is repeated in between. With ``early_stopping`` the test loss is measured on the whole test set
        at every step. The last entry of ``test_loss`` is always measured on the whole test set.

    Raises:
        TypeError, ValueError: if the data are not finite or do not fit the network, or if an argument is out of range.
            In these cases the network is left unchanged.
        RuntimeError: if ``torch.distributed`` is initialised with several processes, or if the parameters are
            distributed over processes. The message says how to train such a network.

    Warns:
        RuntimeWarning: if a step makes the loss infinite or NaN. The fit then ends, and the network has the parameters
            from before that step.
        UserWarning: if the value of ``loss_fn`` does not depend on the assignment of labels to rows, or if columns of
            the inputs should be normalised.

    Example:
        >>> model = KAN(width=[2, 1], grid=3, seed=0)
        >>> dataset = create_dataset(lambda x: x[:, [0]] ** 2 + x[:, [1]], n_var=2, train_num=100, test_num=100)
        >>> results = model.fit(dataset, steps=10, progress=False)
        >>> results["train_loss"][-1] < 0.01
        True
    """
    check_one_process(
        "fit",
        "Wrap the network in torch.nn.parallel.DistributedDataParallel and train it in a loop of your own, with "
        "update_grid(x, group=torch.distributed.group.WORLD) for grid updates; or fit it in one process and load the "
        "result on every rank (save and load, or load_state_dict)",
    )
    check_not_sharded(model, "fit")
    check_has_values(model)
    if batch != -1 and batch < 1:
        raise ValueError(f"batch must be at least 1, or -1 for all rows, got {batch}")
    penalty = Penalty(model, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff, reg_metric) if lamb else None
    data = read_data(
        dataset, in_features=model.in_features, out_features=model.width_in[-1], device=model.device, dtype=model.dtype,
        loss_fn=loss_fn,
    )  # fmt: skip
    guarded = singularity_avoiding, y_th
    objective = Objective(model, _checked_loss(model, data, batch, guarded), penalty, lamb, guarded)
    if sample_weight is not None:
        if not has_row_losses(objective.loss):
            raise ValueError(
                "sample_weight needs the mean squared error, torch.nn.CrossEntropyLoss() or "
                "torch.nn.BCEWithLogitsLoss() as the loss; another loss_fn has to weight the rows itself"
            )
        data = with_sample_weight(data, sample_weight)
    stops_early = early_stopping is not None
    record = Record(objective, data, metrics or (), -1 if stops_early else batch, 1 if stops_early else log, seed)
    results = record.results
    if display_metrics is not None:
        display_metrics = _Names(sorted(results)).read("display_metrics", display_metrics)
    update_grid = update_grid and any(map(model._has_numeric_edges, range(model.depth)))
    updates = _grid_updates(update_grid, train, steps, start_grid_update_step, stop_grid_update_step, grid_update_num)
    draw = partial(_draw, model, Path(img_folder), in_vars=in_vars, out_vars=out_vars, beta=beta)
    parameters = _trained_parameters(model, train)
    objective.is_partial = train is not None
    is_full_batch = data.loader is None and (batch == -1 or batch >= len(data.train_input))
    if opt == "auto":
        is_small = sum(parameter.numel() for parameter in parameters) <= MAX_AUTO_PARAMETERS
        is_auto_lm = is_small and is_full_batch and penalty is None and objective.squares and model.dtype.itemsize > 2
        opt = "LM" if is_auto_lm and not model._has_hooks_or_override() else "LBFGS"
    if weight_decay == "auto":
        if opt != "LM":
            raise ValueError(f"weight_decay='auto' needs opt='LM', got {opt!r}; pass a number instead")
        objective.estimates_decay = True
        objective.rows = data.total_weight * (data.train_label.shape[1] if objective.squares else 1)
    else:
        objective.weight_decay = float(weight_decay)
    searches = bool(lamb) and try_without and opt == "LBFGS" and train is None and is_full_batch
    active = [layer for layer in model.layers if not layer._frozen]
    searches = searches and all(p.requires_grad for layer in active for p in layer.parameters())
    runs_callers_code = bool(metrics or callbacks or save_fig)  # the caller's functions may change the network
    options: dict[str, Any] = {}
    if opt == "Adam":
        options["same_batch"] = is_full_batch and not runs_callers_code
    elif opt == "LM":
        if not is_full_batch:
            options["passes"] = partial(data.one_pass, batch)
        if not model.history:
            options["damping"] = FIRST_DAMPING
    make_optimizer = partial(OPTIMIZERS[opt], parameters, lr, objective, **options)
    optimizer = make_optimizer()
    # A restart draws all parameters again, so it must not replace trained ones, formulas or frozen parameters.
    is_fresh = opt == "LM" and is_full_batch and objective.squares and train is None and not model.history
    is_fresh = is_fresh and not objective.estimates_decay
    is_fresh = is_fresh and not any(symbolic.edges for symbolic in model.symbolic) and all(
        p.requires_grad for layer in active for p in layer.parameters()
    )  # fmt: skip
    restarts = Restarts(model, make_optimizer, updates, data.weight) if is_fresh else None
    trials = NodeTrials(model, make_optimizer, objective, bool(updates), steps, data.weight) if searches else None
    if save_fig:
        draw(step=None)
    batches = data.batches(batch, seed)
    grid_rows, grid_weight = _grid_rows(data, is_full_batch)
    _warn_of_scale(model, data.rows, bool(updates))

    # The state of the network after the last complete step, and the number of complete steps. A single assignment sets
    # both values, so that an interrupt cannot separate them.
    last_good = copy_state(model), 0
    best_state, best_step = last_good[0], -1
    bar = progress_bar(steps, progress)
    is_tiny = _first_rows(data, batch) * sum(parameter.numel() for parameter in parameters) <= MAX_ONE_THREAD
    with _in_history(model, parameters, results), bar, one_thread() if is_tiny else nullcontext():
        try:
            for step in bar:
                x, y, *weights = next(batches)
                objective.sample_weight = weights[0] if weights else None
                if step in updates:
                    # One batch may cover only a small part of the inputs' range, so rows of all batches are used.
                    update_grid_from_samples(model, grid_rows, sample_weight=grid_weight)
                    optimizer.restart()
                evaluated = None
                if trials is None:
                    evaluated = optimizer(x, y)
                else:
                    objective.strength = lamb * penalty_ramp(step, steps)
                    if not trials.due(step):
                        evaluated = optimizer(x, y)
                    elif trials(optimizer, x, y, step):
                        optimizer.restart()
                first = evaluated if step + 1 == START_STEPS else None
                if restarts is not None and first is not None and restarts(x, y, float(first[0])):
                    optimizer, evaluated = make_optimizer(), None
                if not record.measure(step, x, y, evaluated):
                    model.load_state_dict(last_good[0])
                    problem = f"step {step} made the loss infinite or NaN"
                    warn(f"{problem}; the fit ends with the parameters before that step", RuntimeWarning)
                    break
                record.measure_metrics()
                last_good = copy_state(model), step + 1
                _describe(bar, step, log, results, display_metrics)
                if save_fig and step % save_fig_freq == 0:
                    draw(step=step)
                returned = [callback(model, step, results) for callback in callbacks]
                if runs_callers_code:
                    last_good = copy_state(model), step + 1
                current = _trained_parameters(model, train) if callbacks else parameters
                if list(map(id, current)) != list(map(id, parameters)):  # a callback has replaced parameters
                    parameters[:] = current
                    optimizer = make_optimizer()
                ends = any(value is True for value in returned)
                if early_stopping is not None:
                    losses = results["test_loss"] or results["train_loss"]
                    if losses[-1] <= min(losses):
                        best_state, best_step = last_good[0], step
                    ends = ends or step - best_step >= early_stopping
                if ends:
                    break
            record.finish()
        except BaseException:  # a KeyboardInterrupt is caught as well, and can occur at any point of a step
            model.load_state_dict(last_good[0])
            record.truncate(last_good[1])
            raise
        finally:
            if early_stopping is not None and best_step >= 0:
                model.load_state_dict(best_state)
            model.sample = data.rows
    return results


def _checked_loss(model: Network, data: Data, batch: int, guarded: tuple[bool, float]) -> Loss | None:
    """Call the loss function once on as many rows as the first step uses, check the labels if the loss function turns
    out to be a classification loss, and return the loss function."""
    assert data.labels is not None
    x, y = data.train
    rows = _first_rows(data, batch)
    if data.labels.loss is None:
        return None
    with torch.no_grad():
        prediction = model._forward_with_std(x[:rows], *guarded)[0]
    loss = data.labels.checked_loss(prediction, y[:rows])
    if data.labels.takes_classes:
        data.labels.check_classes("train_label", y)
        if data.test is not None:
            data.labels.check_classes("test_label", data.test[1])
    return loss


def _grid_rows(data: Data, is_full_batch: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the rows for updates of the grids and the weights of the rows: all rows if every step uses all of them,
    and at most 10,000 otherwise."""
    if is_full_batch or data.weight is None:
        return data.rows if is_full_batch else Sample(data.rows).rows, data.weight
    table = Sample(torch.cat([data.rows.double(), data.weight.unsqueeze(1)], 1)).rows
    assert table is not None
    return table[:, :-1].to(data.rows.dtype), table[:, -1]


def _first_rows(data: Data, batch: int) -> int:
    """Return the number of rows that the first step uses."""
    rows = len(data.train_input)
    return rows if batch == -1 or data.loader is not None else min(batch, rows)


def _grid_updates(
    update_grid: bool, train: Collection[str] | None, steps: int, start: int, stop: int, count: int
) -> set[int]:
    """Return the steps at which the grids are updated."""
    if not update_grid or (train is not None and "grid" not in train):
        return set()
    every = max(1, stop // count)
    return {step for step in range(0, min(steps, stop), every) if step >= start}


def _trained_parameters(model: Network, train: Collection[str] | None) -> list[nn.Parameter]:
    """Return the trainable parameters of the groups in ``train``. The parameters of a layer are left out if all edges
    of the layer are formulas."""
    groups: dict[str, list[nn.Parameter | None]] = {
        "spline": [layer.spline_weight for layer in model.layers],
        "base": [layer.base_weight for layer in model.layers],
        "scale": [layer.spline_scale for layer in model.layers],
        "symbolic": [symbolic.affine for symbolic in model.symbolic],
        "affine": [*model.node_scale, *model.node_bias, *model.subnode_scale, *model.subnode_bias],
    }
    excluded = {id(p) for layer in range(model.depth) if not model._has_numeric_edges(layer)
            for p in model.layers[layer].parameters()}  # fmt: skip
    if train is not None:
        excluded |= {id(p) for name, group in groups.items() if name not in train for p in group}
    trained = [p for p in model.parameters() if p.requires_grad and p.numel() and id(p) not in excluded]
    if not trained:
        raise ValueError(f"train={train!r} leaves nothing to train")
    return trained


@contextmanager
def _in_history(model: Network, parameters: list[nn.Parameter], results: dict[str, list[float]]) -> Iterator[None]:
    """Append the recorded losses to ``model.history``, and remove them if an exception is raised before the first step
    is complete. On exit, set the gradients of the parameters to their values on entry."""
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


def _describe(bar: Any, step: int, log: int, results: dict[str, list[float]], names: Sequence[str] | None) -> None:
    if bar.disable or step % log:
        return
    shown = names or [name for name in LOSSES if results[name]]
    bar.set_description(" | ".join(f"{name}: {results[name][-1]:.2e}" for name in shown))


def _draw(
    model: Any, folder: Path, step: int | None, in_vars: Sequence | None, out_vars: Sequence | None, beta: float
) -> None:
    """Draw the network and write the picture into the folder. If ``step`` is None, draw the network without writing a
    picture, which ``fit`` does before the first step so that invalid arguments raise early."""
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure = model.plot(beta=beta, in_vars=in_vars, out_vars=out_vars, title=f"Step {step}")
    if step is not None:
        figure.savefig(folder / f"{step}.jpg", bbox_inches="tight", dpi=200)
    plt.close(figure)


@torch.no_grad()
def evaluate(model: Network, dataset: Any) -> dict[str, float]:
    """Return the root mean squared error of the network over the rows of a dataset, as ``{"test_loss": ...}``.

    Args:
        dataset: dictionary with ``test_input`` and ``test_label``, a pair ``(x, y)``, or a ``Dataset`` of single
            samples.

    Raises:
        TypeError, ValueError: if ``dataset`` has none of these forms, or if the data are not finite or do not fit the
            network.

    Example:
        >>> model, x = KAN(width=[2, 5, 1], seed=0), torch.rand(10, 2)
        >>> round(model.evaluate((x, model.predict(x) + 1.0))["test_loss"], 4)
        1.0
    """
    if isinstance(dataset, Mapping) and {"test_input", "test_label"} <= set(dataset):
        pair = dataset["test_input"], dataset["test_label"]
    else:
        pair = samples_as_pair(dataset)
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not (is_pair and all(is_array(part) or is_value_list(part) for part in pair)):
            got = list(dataset) if isinstance(dataset, Mapping) else kind_of(dataset)
            raise ValueError(
                f"dataset must be a dictionary with test_input and test_label, or a pair (x, y), got {got}"
            )
    data = read_data(
        pair, in_features=model.in_features,
        out_features=model.width_in[-1], device=model.device, dtype=model.dtype,
    )  # fmt: skip
    return {"test_loss": (model(data.train_input) - data.train_label).square().mean().sqrt().item()}


# -- the record ------------------------------------------------------------------------------------


class Record:
    """The record of the losses, the penalty and the metrics of each step. The attribute ``results`` is the dictionary
    that :func:`fit` returns.

    Args:
        batch: number of test rows on which the test loss is measured, or -1 for all test rows.
        log: number of steps between measurements of the test loss.
        seed: seed of the random order of the test rows.

    Raises:
        ValueError: if two metrics have the same name, or if a metric has the name of a loss.
    """

    def __init__(
        self, objective: Objective, data: Data, metrics: Sequence[Callable[[], Any]], batch: int, log: int, seed: int
    ) -> None:
        self.objective, self.test, self.log, self.metrics = objective, data.test, log, metrics
        self.batches = None if data.test is None else Data(*data.test).batches(batch, seed)
        self.uses_whole_test_set = data.test is None or batch == -1 or batch >= len(data.test[0])
        self.names = [getattr(metric, "__name__", type(metric).__name__) for metric in metrics]
        names = [*LOSSES, *self.names]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"metrics must have different names, got {repeated} more than once")
        self.results: dict[str, list[float]] = {name: [] for name in names}
        # Whether the last test loss was measured with the current parameters on the whole test set.
        self.is_final = True

    def measure(self, step: int, x: Tensor, y: Tensor, evaluated: Evaluated | None) -> bool:
        """Append the losses and the penalty after a step on the batch ``(x, y)``, and return True. If the training loss
        or the penalty is not finite, append nothing and return False. ``evaluated`` is the pair of training loss and
        penalty, or None if the pair has not been computed yet."""
        with torch.no_grad():
            loss, penalty = self.objective.terms(x, y) if evaluated is None else evaluated
        train_loss, reg = self._as_recorded(loss), 0.0 if penalty is None else float(penalty)
        if not math.isfinite(train_loss + reg):
            return False
        self.results["train_loss"].append(train_loss)
        self.results["reg"].append(reg)
        if self.batches is not None:
            is_due = step % self.log == 0
            self.is_final = is_due and self.uses_whole_test_set
            self.results["test_loss"].append(
                self._loss(next(self.batches)) if is_due else self.results["test_loss"][-1]
            )
        return True

    def measure_metrics(self) -> None:
        """Call all metrics, and append the returned values only after the last metric has returned."""
        values = [(name, _number(name, metric())) for name, metric in zip(self.names, self.metrics)]
        for name, value in values:
            self.results[name].append(value)

    def finish(self) -> None:
        """Replace the last test loss by the loss of the current parameters on the whole test set."""
        if not self.is_final and self.test is not None and self.results["test_loss"]:
            self.results["test_loss"][-1] = self._loss(self.test)
            self.is_final = True

    def truncate(self, steps: int) -> None:
        """Remove all entries except those of the first ``steps`` steps."""
        self.is_final = self.is_final and len(self.results["train_loss"]) <= steps
        for values in self.results.values():
            del values[steps:]

    @torch.no_grad()
    def _loss(self, rows: Pair) -> float:
        model, objective = self.objective.model, self.objective
        avoiding, y_th = objective.guarded
        return self._as_recorded(objective.loss(model(rows[0], singularity_avoiding=avoiding, y_th=y_th), rows[1]))

    def _as_recorded(self, loss: Any) -> float:
        """Return the square root of a mean squared error, and any other loss unchanged."""
        value = float(loss)
        return math.sqrt(value) if self.objective.squares and value >= 0 else value


def _number(name: str, value: Any) -> float:
    """Return the value of a metric as a float."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"the metric {name} must return a number, got {type(value).__name__}") from None


def _warn_of_scale(model: Network, x: Tensor, updates_grid: bool) -> None:
    """Warn if columns of ``x [N, in_features]`` should be normalised.

    If the fit does not move the knots, columns with most values outside of the grid should be normalised. If the fit
    moves the knots, only the base function depends on the scale of a column, and columns of large numbers should be
    normalised.
    """
    layer, rows = model.layers[0], model._select_inputs(x)
    if not model._has_numeric_edges(0):
        return
    if updates_grid:
        if layer.base == "none":
            return
        is_far = rows.abs().median(0).values > MAX_MEDIAN
        problem = f"hold numbers beyond {MAX_MEDIAN:g} for the most part, where the base function is a straight line"
        remedy = ""
    else:
        limits = grid.interior(layer.knots, layer.spline_order)
        outside = (rows < limits[:, 0]) | (rows > limits[:, -1])
        is_far = outside.to(torch.float32).mean(0) > MAX_OUTSIDE
        problem = "lie outside of the grid for the most part, where splines are 0"
        remedy = ", or fit with update_grid=True"
    columns = model.input_id[is_far].tolist()
    if columns:
        shown = f"{columns[:8]}{' and more' if len(columns) > 8 else ''}"
        warn(f"the inputs' columns {shown} {problem}; normalise them, as by (x - x.mean(0)) / x.std(0){remedy}")
