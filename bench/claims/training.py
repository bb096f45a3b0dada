"""The contenders of most claims: KANs by defaults and by the best recipe, MLPs by several optimizers, and pykan.

Whatever has to be chosen (a grid, an optimizer, an activation, the moment to stop) is chosen by the error on a tenth of
the training rows that is kept apart. Test rows are only used for the error that is reported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastkan import KAN
from fastkan.optim import LevenbergMarquardt

from ..records import Result
from ..second_order.poisson import adam_rate
from .claim import attempt

HELD_OUT = 10  # every tenth row is held out
GRIDS = (3, 5, 10, 20, 50, 100)
MAX_MATRIX = 2000  # the largest number of parameters of an MLP that is trained by Levenberg-Marquardt
HAS_PYKAN = importlib.util.find_spec("kan") is not None


class Split(NamedTuple):
    """Rows for training, held-out rows for choices and rows for testing, as ``x [N, in]`` and ``y [N, out]``."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def all_rows(self) -> tuple[Tensor, Tensor]:
        """Return the rows for training with the held-out ones."""
        return torch.cat([self.x, self.held_x]), torch.cat([self.y, self.held_y])


def split(dataset: dict[str, Tensor]) -> Split:
    """Split a data set of ``create_dataset``."""
    x, y = dataset["train_input"], dataset["train_label"]
    held = torch.arange(len(x)) % HELD_OUT == 0
    return Split(x[~held], y[~held], x[held], y[held], dataset["test_input"], dataset["test_label"])


@torch.no_grad()
def rmse(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Return the root mean squared error, or infinity if it is not a number."""
    found = float((network(x) - y).square().mean().sqrt())
    return math.inf if math.isnan(found) else found


class Trained(NamedTuple):
    """A trained network, its held-out error and its size."""

    network: Callable[[Tensor], Tensor]
    held: float
    parameters: int


def best(found: Iterable[Trained]) -> Trained:
    """Return the network with the smallest held-out error of all that come before an exception.

    Raises:
        Exception: if it comes before the first network.
        ValueError: if there is no network.
    """
    least: Trained | None = None
    try:
        for trained in found:
            if least is None or trained.held < least.held:
                least = trained
    except Exception:  # of any kind: an error on a finer grid must not cost the coarser ones
        if least is None:
            raise
    if least is None:
        raise ValueError("no network was trained")
    return least


def best_of(candidates: Iterable[Callable[[], Trained]]) -> Trained:
    """Train candidates, and return the one with the smallest held-out error. Those that raise are left out.

    Raises:
        Exception: the last one, if all candidates raise.
    """
    found, last = [], None
    for train in candidates:
        try:
            found.append(train())
        except Exception as problem:  # of any kind: one candidate must not end the others
            last = problem
    if not found and last is not None:
        raise last
    return best(found)


def result(case: str, contender: str, seed: int, data: Split, train: Callable[[], Trained]) -> Result:
    """Train, and return the error on test rows with the processor time; ``error`` is None if training failed."""

    def work() -> Result:
        trained = train()
        error = rmse(trained.network, data.test_x, data.test_y)
        return {"error": error, "held": trained.held, "parameters": trained.parameters}

    return attempt(case, contender, seed, work)


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Make float32 the default dtype, where the claims have float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# -- KANs -----------------------------------------------------------------------------------------


def kan_by_default(
    data: Split, width: Sequence, seed: int, grid: int = 5, seconds: float = math.inf
) -> Trained:  # fmt: skip
    """Train a KAN by ``fit`` with its defaults, on all training rows, for at most ``seconds`` of processor time."""
    end = time.process_time() + seconds
    model = KAN(width=list(width), grid=grid, k=3, seed=seed)
    model.fit(data.all_rows(), progress=False, callbacks=[lambda *_: time.process_time() > end])
    return Trained(model, rmse(model, data.held_x, data.held_y), count(model))


def kan_extended(
    data: Split, width: Sequence, seed: int, seconds: float, grids: Sequence[int] = GRIDS, order: int = 3,
    **options: Any,
) -> Trained:  # fmt: skip
    """Train a KAN on finer and finer grids while the held-out error falls, and return the best."""

    def found() -> Iterator[Trained]:
        least, begin = math.inf, time.process_time()
        for _, model, held in extension(data, width, seed, seconds, grids, order, **options):
            yield Trained(model, held, count(model))
            if held > 2 * least or (held >= least and time.process_time() - begin > seconds):
                return
            least = min(least, held)

    return best(found())


def extension(
    data: Split, width: Sequence, seed: int, seconds: float, grids: Sequence[int] = GRIDS, order: int = 3,
    **options: Any,
) -> Iterator[tuple[int, KAN, float]]:  # fmt: skip
    """Yield the grid, the network and its held-out error after training on each grid.

    The first grid takes up to a third of the time, and the others share the rest.
    """
    options = {"outside": "linear", "grid_eps": 1.0, **options}
    begin = time.process_time()
    model = KAN(width=list(width), grid=grids[0], k=order, seed=seed, **options)
    _fit(model, data, 60, begin + seconds / 3)
    yield grids[0], model, rmse(model, data.held_x, data.held_y)
    for stage, grid in enumerate(grids[1:], 1):
        now = time.process_time()
        if now - begin > seconds:
            return
        model = model.refine(grid, x=data.x)
        _fit(model, data, 30, now + (begin + seconds - now) / (len(grids) - stage), grids=1)
        yield grid, model, rmse(model, data.held_x, data.held_y)


def _fit(model: KAN, data: Split, steps: int, deadline: float, grids: int = 10) -> None:
    """Train by ``fit`` until the deadline in processor time. In the first third, grids are updated ``grids`` times."""
    model.fit(
        (data.x, data.y), steps=steps, progress=False, grid_update_num=grids, stop_grid_update_step=max(1, steps // 3),
        callbacks=[lambda *_: time.process_time() > deadline],
    )  # fmt: skip


def kan_size(width: Sequence[int], grid: int, scales: int = 2) -> int:
    """Return the number of trained parameters of a KAN of order 3: coefficients, and two scales for each edge.

    The number is the same for pykan without its symbolic layer, which is switched off.
    """
    return (grid + 3 + scales) * sum(a * b for a, b in itertools.pairwise(width))


def count(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# -- MLPs -----------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "SiLU": nn.SiLU}
MLP_OPTIMIZERS = ("L-BFGS", "Adam", "LM")


def mlp(sizes: Sequence[int], activation: str, seed: int) -> nn.Sequential:
    """Return a multilayer perceptron with PyTorch's initial parameters."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def size(sizes: Sequence[int]) -> int:
    """Return the number of parameters of an MLP."""
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def equal_sizes(inputs: int, outputs: int, parameters: int, hidden: int = 2) -> list[int]:
    """Return the sizes of an MLP with ``hidden`` equal layers whose number of parameters is at least that given."""
    width = 1
    while True:
        sizes = [inputs, *[width] * hidden, outputs]
        if size(sizes) >= parameters:
            return sizes
        width += 1


def tuned_mlp(
    data: Split, shapes: Sequence[Sequence[int]], seed: int, seconds: float, optimizers: Sequence[str] = MLP_OPTIMIZERS
) -> Trained:
    """Train MLPs of each shape with each activation by each optimizer, and return the best by held-out error.

    All candidates share a third of the time, and the best two by held-out error then share the rest.
    """
    finalists = ranked(data, shapes, seed, seconds / 3, optimizers)[:2]
    for run in finalists:
        run.train(2 * seconds / 3 / len(finalists))
    return best_of(run.best for run in finalists)


def ranked(
    data: Split, shapes: Sequence[Sequence[int]], seed: int, seconds: float, optimizers: Sequence[str] = MLP_OPTIMIZERS
) -> list[MLPRun]:
    """Train MLPs of each shape with each activation by each optimizer, and return those with small errors first."""
    runs = [
        MLPRun(data, sizes, activation, optimizer, seed)
        for sizes in shapes
        for activation in ACTIVATIONS
        for optimizer in optimizers
        if is_possible(optimizer, sizes)
    ]
    for run in runs:
        run.train(seconds / len(runs))
    return sorted(runs, key=lambda run: run.held)


def is_possible(optimizer: str, sizes: Sequence[int]) -> bool:
    """Return whether an MLP is small enough for an optimizer."""
    return optimizer != "LM" or size(sizes) <= MAX_MATRIX


class MLPRun:
    """The training of an MLP, which can be continued.

    L-BFGS has a history of 100 and a line search; Adam uses all rows and a learning rate that falls along a cosine from
    0.01 within each call of ``train``; where nothing changes any more, training starts again from other initial
    parameters. The parameters with the smallest held-out error are kept.

    Attributes:
        activation, optimizer: their names.
        held: the smallest held-out error.
    """

    def __init__(self, data: Split, sizes: Sequence[int], activation: str, optimizer: str, seed: int) -> None:
        self.activation, self.optimizer = activation, optimizer
        self._data, self._sizes, self._seed = data, sizes, seed
        self.held = math.inf
        self._problem: Exception | None = None
        self._state = mlp(sizes, activation, seed).state_dict()
        self._start()

    def _start(self) -> None:
        """Begin from new parameters."""
        self._network = mlp(self._sizes, self.activation, self._seed).to(self._data.x.dtype)
        self._step = mlp_step(self._network, self._data, self.optimizer)
        self._seed += 1000

    def train(self, seconds: float) -> None:
        """Train for some seconds of processor time, or for a step where that is shorter, until a step raises."""
        begin, used = time.process_time(), 0.0
        while used < 1 and self._problem is None:
            try:
                going = self._step(used)
            except Exception as problem:  # of any kind: one optimizer must not end the others
                self._problem = problem
                return
            held = rmse(self._network, self._data.held_x, self._data.held_y)
            if held < self.held:
                self.held = held
                self._state = {name: value.clone() for name, value in self._network.state_dict().items()}
            if not going:
                self._start()
            used = (time.process_time() - begin) / seconds

    def best(self) -> Trained:
        """Return the network with the smallest held-out error so far, or raise what its first step raised."""
        if self._problem is not None and self.held == math.inf:
            raise self._problem
        network = mlp(self._sizes, self.activation, self._seed).to(self._data.x.dtype)
        network.load_state_dict(self._state)
        return Trained(network, self.held, count(network))


def mlp_step(network: nn.Module, data: Split, optimizer: str) -> Callable[[float], bool]:
    """Return a function of the used share of the time that trains for a while, and is False once nothing changes."""

    def loss() -> Tensor:
        return (network(data.x) - data.y).square().mean()

    if optimizer == "LM":
        second = LevenbergMarquardt(network)

        def second_step(_: float) -> bool:
            second.step(lambda: (network(data.x) - data.y).flatten() / math.sqrt(data.y.numel()))
            return second.report is not None and second.report.accepted

        return second_step
    if optimizer == "Adam":
        first = torch.optim.Adam(network.parameters(), lr=0.01)

        def first_step(used: float) -> bool:
            for group in first.param_groups:
                group["lr"] = adam_rate(used)
            for _ in range(20):
                first.zero_grad()
                loss().backward()
                first.step()
            return True

        return first_step
    quasi = torch.optim.LBFGS(
        network.parameters(), max_iter=20, history_size=100, line_search_fn="strong_wolfe", tolerance_grad=0.0,
        tolerance_change=1e-16,
    )  # fmt: skip

    def quasi_step(_: float) -> bool:
        before = [parameter.detach().clone() for parameter in network.parameters()]

        def closure() -> Tensor:
            quasi.zero_grad()
            value = loss()
            value.backward()
            return value

        quasi.step(closure)
        return any(not torch.equal(old, new) for old, new in zip(before, network.parameters()))

    return quasi_step


# -- pykan ----------------------------------------------------------------------------------------


class TimeUp(Exception):
    """The end of the time of a fit by pykan."""


def pykan_fit(model: Any, dataset: dict[str, Tensor], seconds: float, **options: Any) -> bool:
    """Call pykan's ``fit`` for at most about ``seconds`` of processor time.

    Returns:
        Whether the fit has come to its end; if not, the model has the parameters of its last step.
    """
    end = time.process_time() + seconds

    def clock() -> Tensor:
        if time.process_time() > end:
            raise TimeUp
        return torch.zeros(())

    try:
        with quiet():
            model.fit(dataset, metrics=(clock,), **options)
    except TimeUp:
        return False
    return True


def pykan_dataset(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return rows as pykan's ``fit`` takes them, with few for testing, since it measures on these at every step."""
    return {"train_input": x, "train_label": y, "test_input": x[:10], "test_label": y[:10]}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run in a temporary folder and without output, since pykan prints and leaves files behind."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        os.mkdir("model")  # where pykan keeps a list of its calls
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(before)


def pykan_extended(data: Split, width: Sequence, seed: int, seconds: float, grids: Sequence[int] = GRIDS) -> Trained:
    """Train pykan's KAN on finer and finer grids until the time is up, and return the best by held-out error."""
    models = pykan_extension(width, seed, seconds, grids, pykan_dataset(data.x, data.y), steps=200)
    return best(Trained(model, rmse(model, data.held_x, data.held_y), count(model)) for model in models)


def pykan_extension(
    width: Sequence, seed: int, seconds: float, grids: Sequence[int], dataset: dict[str, Tensor], steps: int
) -> Iterator[Any]:
    """Yield pykan's KAN after some steps of L-BFGS on each grid, as its tutorial makes them, until the time is up."""
    import kan

    end = time.process_time() + seconds
    with quiet():
        model = kan.KAN(width=list(width), grid=grids[0], k=3, seed=seed, auto_save=False)
    for grid in grids:
        if grid != grids[0]:
            with quiet():
                model(dataset["train_input"])
                model = model.refine(grid)
        ended = pykan_fit(model, dataset, end - time.process_time(), opt="LBFGS", steps=steps)
        yield model
        if not ended:
            return
