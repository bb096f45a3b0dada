"""Claim: KANs can take the place of the MLPs in transformers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pydoc_data.topics import topics
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention

from fastkan import KANFeedForward

from ..measure import Task as Timed
from ..measure import interleaved, ratio, times
from ..plots import tidy
from ..records import Result
from . import training
from .claim import COLORS, FAILS, HOLDS, IN_PART, Claim, Effort, Verdict, groups, median, of, values

STEPS, EVALUATIONS = 800, 10
TIMING = 6.0  # seconds for the ratio of the times of a step
WARM_UP = 50
RATES = (1e-3, 3e-3, 1e-2)
AS_GOOD = 1.01  # the largest ratio of losses that counts as equal
TUNING_SEED = 1000  # not one of the seeds of a run
CHARACTERS = 200_000
CONTEXT = 64
BATCH = 16, 64  # texts and images in a batch, about 1,000 tokens each
GPT, VIT = "character GPT, Python's help texts", "ViT, scikit-learn's digits"
KAN, MLP = "KAN", "MLP"


# -- networks ---------------------------------------------------------------------------------------


def kan_block(width: int) -> nn.Module:
    """Return a feed-forward block of two KAN layers, which has about as many parameters as the usual MLP."""
    return KANFeedForward(width)


def mlp_block(width: int) -> nn.Module:
    """Return a feed-forward block with GELU and about as many parameters as the KAN's."""
    hidden = round((training.count(kan_block(width)) - width) / (2 * width + 1))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


BLOCKS: dict[str, Callable[[int], nn.Module]] = {KAN: kan_block, MLP: mlp_block}


class Block(nn.Module):
    """Attention with four heads and a feed-forward block, each after a normalization and beside a shortcut."""

    def __init__(self, width: int, feed_forward: nn.Module, causal: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward, self.causal = feed_forward, causal

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, tokens, width]`` for the same."""
        query, key, value = self.into(self.norms[0](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[1](x))


class Transformer(nn.Module):
    """Two blocks between a layer that reads tokens and one that scores classes.

    Args:
        read: the layer that turns tokens into ``[batch, tokens, width]``.
        tokens: the number of positions.
        causal: whether each position has a score, from the tokens up to it, or all positions together have one.
    """

    def __init__(
        self, read: nn.Module, block: Callable[[int], nn.Module], width: int, tokens: int, classes: int, causal: bool
    ) -> None:
        super().__init__()
        self.read, self.causal = read, causal
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, block(width), causal) for _ in range(2)))
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores ``[rows, classes]``: a row for each position, or for each image."""
        x = self.norm(self.blocks(self.read(x) + self.places))
        return self.score(x.flatten(0, 1) if self.causal else x.mean(1))


class Task(NamedTuple):
    """A network, training batches, and held-out and test data.

    Args:
        network: a function of the kind of the feed-forward block.
        batch: a function of a generator that returns inputs and classes.
        held, test: inputs and classes.
    """

    network: Callable[[str], Transformer]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def text_task() -> Task:
    """Return the next character of a text: eight tenths for training, one for choices, the last one for testing.

    Many help texts contain others, so each paragraph is only used once.
    """
    paragraphs = dict.fromkeys(part for name in sorted(topics) for part in topics[name].split("\n\n"))
    text = "".join(filter(str.isascii, "\n\n".join(paragraphs)))[:CHARACTERS]
    alphabet = sorted(set(text))
    data = torch.tensor([alphabet.index(character) for character in text])
    train, held, test = data.split([8 * len(data) // 10, len(data) // 10, len(data) - 9 * len(data) // 10])

    def pieces(source: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        found = source[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
        return found[:, :-1], found[:, 1:].flatten()

    def batch(random: torch.Generator) -> tuple[Tensor, Tensor]:
        return pieces(train, torch.randint(len(train) - CONTEXT, (BATCH[0],), generator=random))

    def whole(source: Tensor) -> tuple[Tensor, Tensor]:
        return pieces(source, torch.arange(0, len(source) - CONTEXT, CONTEXT))

    def network(kind: str) -> Transformer:
        return Transformer(nn.Embedding(len(alphabet), 64), BLOCKS[kind], 64, CONTEXT, len(alphabet), True)

    return Task(network, batch, whole(held), whole(test))


class Patches(nn.Module):
    """A linear layer on each 2 x 2 patch of images ``[batch, 8, 8]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, 16, width]``."""
        return self.linear(x.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2))


def image_task() -> Task:
    """Return the classes of digits, which are shifted by up to a pixel for training."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32)[order] / 8 - 1
    y = torch.tensor(digits.target)[order]
    held, test = len(y) // 10, len(y) // 5
    train_x, train_y = x[held + test :], y[held + test :]

    def batch(random: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(train_y), (BATCH[1],), generator=random)
        down, right = torch.randint(3, (2,), generator=random).tolist()
        padded = pad(train_x[rows], (1, 1, 1, 1), value=-1.0)
        return padded[:, down : down + 8, right : right + 8], train_y[rows]

    def network(kind: str) -> Transformer:
        return Transformer(Patches(32), BLOCKS[kind], 32, 16, 10, False)

    return Task(network, batch, (x[:held], y[:held]), (x[held : held + test], y[held : held + test]))


# -- training ---------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """A network after some steps: mean training loss since the last time, held-out loss, and test loss and accuracy."""

    step: int
    train: float
    held: float
    loss: float
    accuracy: float


class Trainer:
    """A network that is trained by AdamW.

    The learning rate is constant after a warm-up, so that the beginning of a longer training is a shorter one.
    """

    def __init__(self, task: Task, kind: str, seed: int, rate: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = task.network(kind)
        self.task, self.rate, self.steps = task, rate, 0
        self._random = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), rate)

    def step(self) -> float:
        """Make a step, and return the training loss before it."""
        self.steps += 1
        self._optimizer.param_groups[0]["lr"] = self.rate * min(1.0, self.steps / WARM_UP)
        x, y = self.task.batch(self._random)
        self._optimizer.zero_grad()
        loss = cross_entropy(self.network(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())


@torch.no_grad()
def scores(network: nn.Module, rows: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return the cross entropy and the accuracy."""
    found = torch.cat([network(part) for part in rows[0].split(64)])
    return float(cross_entropy(found, rows[1])), float((found.argmax(1) == rows[1]).double().mean())


def fit(task: Task, kind: str, seed: int, rate: float, marks: Sequence[int]) -> Iterator[Measured]:
    """Train, and measure after each number of steps in ``marks``, until the last of them."""
    trainer = Trainer(task, kind, seed, rate)
    for mark in sorted(set(marks)):
        losses = [trainer.step() for _ in range(mark - trainer.steps)]
        held, _ = scores(trainer.network, task.held)
        yield Measured(mark, statistics.mean(losses), held, *scores(trainer.network, task.test))


def step_seconds(task: Task, budget: float) -> dict[str, float]:
    """Return the processor time of a step of each network, whose ratio is the median over rounds in turns."""
    trainers = {kind: Trainer(task, kind, TUNING_SEED, 1e-3) for kind in BLOCKS}
    for trainer in trainers.values():
        trainer.step()
    tasks = {kind: Timed(trainer.step) for kind, trainer in trainers.items()}
    samples = interleaved(tasks, budget, [MLP], clock=time.process_time).samples
    seconds, slower = times(samples[MLP]).median, ratio(samples[KAN], samples[MLP])
    assert slower is not None
    return {KAN: seconds * slower.median, MLP: seconds}


def tuned_rate(task: Task, kind: str, steps: int, rates: Sequence[float]) -> float:
    """Return the learning rate with the smallest held-out loss on the way to some steps."""
    marks = [*range(every(steps), steps, every(steps)), steps]
    task = task._replace(test=task.held)  # so that no test row can have a part
    ends = {rate: min(each.held for each in fit(task, kind, TUNING_SEED, rate, marks)) for rate in rates}
    return min(ends, key=lambda rate: ends[rate] if math.isfinite(ends[rate]) else math.inf)


def every(steps: int) -> int:
    """Return the number of steps between two measurements."""
    return -(-steps // EVALUATIONS)


def run(effort: Effort) -> Iterator[Result]:
    """Train both networks on both tasks; the MLP makes as many more steps as its steps are quicker."""
    steps = effort.count(STEPS, 4)
    tasks = {GPT: text_task, VIT: image_task}
    for case, make in tasks.items():
        with training.single_precision():
            task = make()
            seconds = step_seconds(task, effort.seconds(TIMING))
            equal = {KAN: steps, MLP: round(steps * seconds[KAN] / seconds[MLP])}
            rates = {kind: tuned_rate(task, kind, equal[kind], effort.some(RATES)) for kind in BLOCKS}
        for seed in effort.seeds:
            for kind in BLOCKS:
                start = time.process_time()
                with training.single_precision():
                    marks = {*range(every(steps), max(equal[kind], steps), every(steps)), steps, equal[kind]}
                    found = list(fit(task, kind, seed, rates[kind], sorted(marks)))
                    network = task.network(kind)
                for each in found:
                    yield {
                        "case": case, "contender": kind, "seed": seed, "parameters": training.count(network),
                        "blocks": training.count(network.blocks), "rate": rates[kind], "steps": steps,
                        "equal": equal[kind], "seconds": each.step * seconds[kind], "error": each.loss,
                        "cpu": time.process_time() - start, **each._asdict(),
                    }  # fmt: skip


# -- verdict ----------------------------------------------------------------------------------------


def stopped(results: Sequence[Result], case: str, kind: str, limit: str) -> list[Result]:
    """Return the result of each seed with the smallest held-out loss within the steps of the field ``limit``."""
    seeds = groups([each for each in of(results, case, kind) if each["step"] <= each[limit]], "seed").values()
    return [min(seed, key=lambda each: values([each], "held")[0]) for seed in seeds]


def at_steps(results: Sequence[Result], case: str, kind: str) -> list[Result]:
    """Return the best result of each seed within the common number of steps."""
    return stopped(results, case, kind, "steps")


def at_seconds(results: Sequence[Result], case: str, kind: str) -> list[Result]:
    """Return the best result of each seed within the steps that take both networks equally long."""
    return stopped(results, case, kind, "equal")


def slowdown(results: Sequence[Result], case: str) -> float:
    """Return the time of a step of the KAN, divided by that of the MLP."""
    own, other = (of(results, case, kind)[0] for kind in (KAN, MLP))
    return float(own["seconds"] / own["step"] / (other["seconds"] / other["step"]))


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict. The claim holds if the KAN is as good in equal time, and in part if it is in equal steps.

    It is as good if its median loss is at most ``AS_GOOD`` times that of the MLP.
    """
    cases = list(dict.fromkeys(each["case"] for each in results))
    losses: dict[tuple[str, str], str] = {}
    good: dict[str, list[bool]] = {"steps": [], "seconds": []}
    for case in cases:
        for name, select in (("steps", at_steps), ("seconds", at_seconds)):
            own, other = (median(select(results, case, kind), "loss") for kind in (KAN, MLP))
            good[name].append(own <= AS_GOOD * other < math.inf)
            losses[case, name] = f"{own:.3g} against {other:.3g}"
    answer = HOLDS if all(good["seconds"]) else IN_PART if all(good["steps"]) else FAILS
    parts = [f"{losses[case, 'steps']} in equal steps and {losses[case, 'seconds']} in equal seconds" for case in cases]
    steps = [f"{slowdown(results, case):.1f} times ({case.split(',')[0]})" for case in cases]
    return Verdict(
        answer,
        "The median test loss of the KAN and of the MLP is "
        f"{'; '.join(f'{part} ({case})' for case, part in zip(cases, parts))}.",
        f"A step of the KAN takes {' and '.join(steps)} as long as one of the MLP.",
    )


def spread(results: Sequence[Result]) -> str:
    """Return the median and the range of the loss with three digits."""
    found = sorted(values(results, "loss"))
    return f"{statistics.median(found):.3g} ({found[0]:.3g} to {found[-1]:.3g})"


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each case and network."""
    rows = []
    for (case, kind), group in groups(results, "case", "contender").items():
        ends, last = at_steps(results, case, kind), at_seconds(results, case, kind)
        rows.append({
            "case": case, "feed-forward": kind, "parameters (all)": f"{group[0]['blocks']:,} "
            f"({group[0]['parameters']:,})", "rate": f"{group[0]['rate']:g}",
            f"test loss within {group[0]['steps']} steps": spread(ends), "test loss in equal time":
            spread(last),
            "accuracy: equal steps, time": f"{median(ends, 'accuracy'):.3f}, {median(last, 'accuracy'):.3f}",
            "CPU s to there: equal steps, time": f"{median(ends, 'seconds'):.1f}, {median(last, 'seconds'):.1f}",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("case")


def draw(results: Sequence[Result]) -> Figure:
    """Draw the test loss of each seed over steps and over seconds."""
    cases = groups(results, "case")
    figure = Figure(figsize=(8.5, 0.6 + 2.5 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 2, squeeze=False, sharey="row")
    for line, ((case,), group) in zip(panels, cases.items()):
        for axes, (field, label) in zip(line, {"step": "steps", "seconds": "processor time, s"}.items()):
            for (kind,), own in groups(group, "contender").items():
                for number_, seed in enumerate(groups(own, "seed").values()):
                    rows = [each for each in seed if field != "step" or each["step"] <= each["steps"]]
                    axes.plot(
                        [each[field] for each in rows], [each["loss"] for each in rows], color=COLORS[kind],
                        alpha=0.8, linewidth=1.2, label=None if number_ else kind,
                    )  # fmt: skip
            axes.set_yscale("log")
            tidy(axes, "y")
            axes.minorticks_off()
            low, high = axes.get_ylim()
            ticks = [tick for tick in TICKS if low <= tick <= high]
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xlabel(label, fontsize=9)
        line[0].set_title(case, fontsize=10, loc="left")
        line[0].set_ylabel("test loss, a line for each seed", fontsize=9)
        line[1].legend(frameon=False, fontsize=9)
    return figure


TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5)

CLAIM = Claim(
    "transformers",
    "KANs can replace the MLPs in transformers",
    "KANs can take the place of the MLPs in transformers (arXiv 2404.19756, section 6, leaves this to be tried).",
    f"A character GPT (width 64) on {CHARACTERS:,} characters of the texts of Python's `help`, whose last tenth is "
    "the test, and a ViT (width 32) on 8 x 8 digits with shifts by a pixel; two blocks each, whose feed-forward part "
    "is an MLP with GELU or `fastkan.KANFeedForward`, of as many parameters. AdamW with a constant learning rate, the "
    f"best of {', '.join(f'{rate:g}' for rate in RATES)} by the held-out loss of another seed; {STEPS} steps. In "
    "equal time, the MLP makes as many steps as take the time of these of the KAN; the ratio of the times of a step "
    "is measured beforehand, with steps of both in turns. A loss is the test loss at the smallest held-out loss so "
    f"far. The claim holds if the median loss of the KAN is at most {AS_GOOD:g} times that of the MLP in equal time, "
    "on both tasks, and in part if so in equal steps.",
    run, verdict, table, draw,
)  # fmt: skip
