"""One classifier of handwritten digits, trained twice.

Once with the plain Cox-de Boor layer, once with its conversion by ``fastkan.convert``: from the same weights, on the
same batches, with the same optimizer, step by step in turn. All printed figures are measured while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from fastkan import convert

from ..measure import Samples, Task, interleaved, peak_bytes
from ..suite.plain import KANLinear as PlainKANLinear

HIDDEN, BATCHES, EPOCHS, LEARNING_RATE = 256, 3, 30, 3e-3
BUDGET = 6.0  # seconds, for timing steps
PATIENCE = 60.0  # seconds; on a slow machine training ends before the last epoch
PLAIN, OURS = "plain Cox-de Boor", "fastkan"


class Digits(NamedTuple):
    """8 x 8 images as rows of 64 numbers from -1 to 1, the grid's range, and their classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Cost(NamedTuple):
    """Time and memory of a training step of each network."""

    seconds: dict[str, Samples]
    memory: dict[str, int]  # peak bytes, without parameters, optimizer state and input
    load: float  # share of the processor that other processes took meanwhile


class Learner:
    """A network in training, with its losses and test accuracies so far."""

    def __init__(self, network: nn.Sequential) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One training step; returns its loss."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def test(self, x: Tensor, y: Tensor) -> float:
        """Share of the images that are classified correctly."""
        return (self.network(x).argmax(1) == y).float().mean().item()


def digits() -> Digits:
    """Scikit-learn's bundled digits, a quarter of them for the test."""
    pixels, shown = load_digits(return_X_y=True)
    split = train_test_split(pixels / 8 - 1, shown, test_size=0.25, stratify=shown, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])
    return Digits(train_x, train_y, test_x, test_y)


def learners(inputs: int, classes: int) -> dict[str, Learner]:
    """Both networks, with the same weights."""
    torch.manual_seed(0)
    plain = nn.Sequential(PlainKANLinear(inputs, HIDDEN), PlainKANLinear(HIDDEN, classes))
    ours = convert(plain)
    assert isinstance(ours, nn.Sequential)
    return {PLAIN: Learner(plain), OURS: Learner(ours)}


def batches(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images once, shuffled, in equal parts."""
    order = torch.randperm(len(data.train_x))
    for part in order[: len(order) // BATCHES * BATCHES].chunk(BATCHES):
        yield data.train_x[part], data.train_y[part]


def measure(both: dict[str, Learner], x: Tensor, y: Tensor) -> Cost:
    """Time steps of both side by side, of networks that serve no other purpose."""
    tasks = {name: Task(partial(learner.step, x, y)) for name, learner in both.items()}
    for task in tasks.values():
        task.call()
    memory = {}
    for name, learner in both.items():
        learner.optimizer.zero_grad()
        memory[name] = peak_bytes(tasks[name].call)
    samples, load = interleaved(tasks, BUDGET, list(tasks))
    return Cost(samples, memory, load)


def train(both: dict[str, Learner], data: Digits) -> None:
    """Train both in turn, on the same batches."""
    start = time.perf_counter()
    with tqdm(total=EPOCHS, desc="training both", unit="epoch") as bar:
        for _ in range(EPOCHS):
            for x, y in batches(data):
                for learner in both.values():
                    learner.losses.append(learner.step(x, y).item())
            for learner in both.values():
                learner.accuracies.append(learner.test(data.test_x, data.test_y))
            bar.set_postfix({name: f"{learner.accuracies[-1]:.1%}" for name, learner in both.items()})
            bar.update()
            if time.perf_counter() - start > PATIENCE:
                break
