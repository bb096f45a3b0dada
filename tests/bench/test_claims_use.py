"""The claims about the use of KANs: speed, transformers and tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from bench.claims import speed, tables, training, transformers
from bench.claims.claim import FAILS, HOLDS, IN_PART, Effort, of
from bench.records import Result
from bench.suite.cases import Case
from bench.suite.contenders import CONTENDERS, MLP, OURS, Contender
from bench.suite.modes import Subject

QUICK = Effort((0,), 0.01, peers=False)


pytestmark = pytest.mark.usefixtures("float64")


# -- speed ------------------------------------------------------------------------------------------


def contender(name: str) -> Contender:
    return next(each for each in CONTENDERS if each.name == name)


@pytest.mark.parametrize("case", speed.CASES, ids=lambda case: case.name)
def test_timed_networks_have_equally_many_parameters(case: Case) -> None:
    counts = {name: training.count(contender(name).make(case)) for name in (OURS, MLP, speed.PLAIN)}
    assert max(counts.values()) <= 1.02 * min(counts.values())


def test_a_step_has_another_batch_than_the_one_before() -> None:
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return self.weight * x

    subject = speed.Batches(Subject(Spy(), torch.rand(40, 2), torch.rand(40, 2)))
    for _ in range(speed.BATCHES):
        subject.step()
        subject.forward()
    assert len({id(x) for x in seen}) == speed.BATCHES
    assert all(before is not after for before, after in itertools.pairwise(seen))
    assert subject.parameters[0].grad is not None
    for x in seen:
        assert torch.equal(x.sort(0).values, seen[0].sort(0).values)


def test_a_small_case_is_timed() -> None:
    found = speed.timed(Case(8, (2, 3, 1)), [contender(name) for name in (MLP, OURS, speed.PLAIN)], 0.02)
    assert [(each["contender"], each["mode"]) for each in found] == [
        (name, mode) for name in (MLP, OURS, speed.PLAIN) for mode in speed.MODES
    ]
    for each in found:
        assert each["note"] is None
        assert all(math.isfinite(value) and value > 0 for value in (*each["seconds"], *each["ratios"][MLP]))
    assert set(speed.ratios(found, OURS).values()) == {found[2]["ratios"][MLP][0]}
    table = speed.table(found)
    assert table.index.tolist() == ["8x2-3-1-G5"]
    assert table.notna().all(axis=None)


def test_a_wrong_or_failing_network_has_a_note_and_no_time() -> None:
    def fail(case: Case, edges: list) -> nn.Module:
        raise RuntimeError("not today")

    def wrong(case: Case, edges: list) -> nn.Module:
        return contender(OURS).make(case, [edge._replace(base_weight=2 * edge.base_weight) for edge in edges])

    found = speed.timed(Case(8, (2, 3, 1)), [contender(MLP), Contender("a", fail), Contender("b", wrong)], 0.02)
    notes = {each["contender"]: (each["note"], each["seconds"] is None) for each in found}
    assert notes == {MLP: (None, False), "a": ("failed: RuntimeError: not today", True), "b": ("wrong", True)}


def timings(*ratios: float, name: str = OURS) -> list[Result]:
    return [
        {
            "case": case.name, "contender": name, "seed": 0, "mode": mode, "seconds": [1e-3, 1e-3, 1e-3, 9],
            "ratios": {MLP: [ratio if mode == "step" else 99.0, ratio, ratio, 9]}, "note": None, "cpu": 1.0,
        }
        for case, ratio in zip(speed.CASES, ratios)
        for mode in speed.MODES
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "answer"), [((9.9, 3, 0.5), FAILS), ((10, 9, 1), IN_PART), ((10, 20, 1), HOLDS), ((30, 10), HOLDS)]
)
def test_the_verdict_on_speed(ratios: tuple[float, ...], answer: str) -> None:
    """Only steps of this package decide, not forward passes (99 times as long here) and not other packages."""
    ones = [1.0] * len(ratios)
    results = timings(*ones, name=MLP) + timings(*ratios) + timings(*[50.0] * len(ratios), name=speed.PYKAN)
    verdict = speed.verdict(results)
    assert verdict.answer == answer
    assert f"{min(ratios):.2f} (" in verdict.reason
    assert f"in {sum(ratio > 2 for ratio in ratios)} of {len(ratios)} cases" in verdict.reason
    assert f"pykan 50.0 to 50.0 times, {len(ratios)} of {len(ratios)} at least 10" in verdict.reason
    assert isinstance(speed.draw(results), Figure)


# -- transformers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [32, 64])
def test_feed_forward_blocks_have_equally_many_parameters(width: int) -> None:
    kan, mlp = (training.count(block(width)) for block in transformers.BLOCKS.values())
    assert abs(kan / mlp - 1) < 0.02
    four_times = 2 * 4 * width**2 + 5 * width
    assert abs(kan / four_times - 1) < 0.05


@pytest.fixture
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "CHARACTERS", 4000)


@pytest.mark.usefixtures("short_text")
def test_the_last_tenth_of_the_text_is_the_test_and_is_not_trained_on() -> None:
    task = transformers.text_task()
    held, test = (part[0].flatten().tolist() for part in (task.held, task.test))
    assert len(held) == len(test) == 400 // 64 * 64
    random = torch.Generator().manual_seed(0)
    train: list[list[int]] = []
    for _ in range(20):
        x, y = task.batch(random)
        torch.testing.assert_close(x[:, 1:], y.view_as(x)[:, :-1])  # the next character
        train += x.tolist()
    for part in (held, test):
        pieces = [part[at : at + 64] for at in range(len(part) - 63)]
        assert not any(piece in train for piece in pieces)
    assert max(len(set(part)) for part in train) > 10


def test_no_paragraph_is_both_trained_on_and_tested() -> None:
    task = transformers.text_task()
    test = "".join(map(chr, task.test[0].flatten().tolist()))
    random = torch.Generator().manual_seed(0)
    rows = [row for _ in range(30) for row in task.batch(random)[0].tolist()]
    assert sum("".join(map(chr, row)) in test for row in rows) <= 0.02 * len(rows)


def test_test_images_are_not_trained_on() -> None:
    with training.single_precision():
        task = transformers.image_task()
    images = {tuple(image.flatten().tolist()) for part in (task.held, task.test) for image in part[0]}
    assert len(task.test[1]) == 1797 // 5
    assert len(images) == len(task.held[1]) + len(task.test[1])
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        x, y = task.batch(random)
        assert x.shape == (transformers.BATCH[1], 8, 8)
        assert y.shape == (transformers.BATCH[1],)
        assert not images & {tuple(image.flatten().tolist()) for image in x}


@pytest.mark.usefixtures("short_text")
@pytest.mark.parametrize("kind", list(transformers.BLOCKS))
def test_a_causal_transformer_does_not_see_later_characters(kind: str) -> None:
    with training.single_precision(), torch.no_grad():
        network = transformers.text_task().network(kind)
        x = torch.randint(9, (1, transformers.CONTEXT))
        later = x.clone()
        later[0, 40:] = 0
        before, after = network(x), network(later)
    torch.testing.assert_close(before[:40], after[:40])
    assert not torch.allclose(before[40:], after[40:])


@pytest.mark.usefixtures("short_text")
def test_a_longer_training_begins_like_a_shorter_one() -> None:
    with training.single_precision():
        task = transformers.text_task()
        short = list(transformers.fit(task, "MLP", 0, 1e-3, [2, 4]))
        long = list(transformers.fit(task, "MLP", 0, 1e-3, [4, 2, 6, 4]))
    assert [each.step for each in long] == [2, 4, 6]
    assert long[:2] == short
    assert long[2].loss != long[1].loss
    assert long[2].held != long[2].loss


@pytest.mark.usefixtures("short_text")
def test_a_learning_rate_is_chosen_by_held_out_loss_alone() -> None:
    with training.single_precision():
        task = transformers.text_task()._replace(test=(torch.tensor([]), torch.tensor([])))
        assert transformers.tuned_rate(task, "MLP", 6, (1e-9, 1e-2)) == 1e-2
        assert transformers.tuned_rate(task, "MLP", 6, (1e-2, 1e30)) == 1e-2


def losses(case: str, kind: str, *points: tuple[int, float, float]) -> list[Result]:
    """Return results of two seeds; the test loss of the second seed is 2% larger."""
    common = {
        "case": case,
        "contender": kind,
        "steps": 10,
        "equal": 20 if kind == "MLP" else 10,
        "accuracy": 0.5,
        "blocks": 8,
        "parameters": 9,
        "rate": 0.1,
    }
    return [
        {
            **common, "seed": seed, "step": step, "seconds": seconds, "cpu": seconds, "train": loss,
            "held": loss, "loss": loss * (1 + seed / 50), "error": loss * (1 + seed / 50),
        }
        for seed in (0, 1)
        for step, seconds, loss in points
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kan", "mlp_at_steps", "mlp_at_seconds", "answer"),
    [
        (1.0, 1.0, 0.995, HOLDS),
        (1.0, 1.0, 0.98, IN_PART),
        (1.0, 0.98, 0.98, FAILS),
        (0.5, 0.9, 0.8, HOLDS),
        (1.0, 1.0, 2.0, HOLDS),
        (math.inf, 1.0, 1.0, FAILS),
        (1.0, math.inf, math.inf, HOLDS),  # stopped before it diverged
    ],
)
def test_the_verdict_on_transformers(kan: float, mlp_at_steps: float, mlp_at_seconds: float, answer: str) -> None:
    results = losses("a", "KAN", (5, 1.0, 3.0), (10, 2.0, kan))
    results += losses("a", "MLP", (5, 0.5, 3.0), (10, 1.0, mlp_at_steps), (20, 2.0, mlp_at_seconds))
    verdict = transformers.verdict(results)
    assert verdict.answer == answer
    assert "A step of the KAN takes 2.0 times (a) as long as one of the MLP." in verdict.reason
    worse = losses("b", "KAN", (10, 2.0, 9.0)) + losses("b", "MLP", (10, 1.0, 1.0), (20, 2.0, 1.0))
    assert transformers.verdict(results + worse).answer == FAILS  # every task counts


def test_a_transformer_counts_where_its_held_out_loss_is_smallest() -> None:
    results = losses("a", "MLP", (5, 0.5, 0.9), (10, 1.0, 1.0), (20, 2.0, 0.8))
    results[1]["loss"] = 0.1  # a test loss that is small by chance
    assert [each["step"] for each in transformers.at_steps(results, "a", "MLP")] == [5, 5]
    assert [each["step"] for each in transformers.at_seconds(results, "a", "MLP")] == [20, 20]


@pytest.mark.usefixtures("short_text")
def test_a_short_run_trains_both_transformers() -> None:
    results = list(transformers.run(QUICK))
    assert all(math.isfinite(each[name]) for each in results for name in ("loss", "train", "accuracy", "error"))
    for case in (transformers.GPT, transformers.VIT):
        (kan,), (mlp,) = (transformers.at_seconds(results, case, kind) for kind in ("KAN", "MLP"))
        assert abs(kan["parameters"] / mlp["parameters"] - 1) < 0.02
        assert mlp["seconds"] == pytest.approx(kan["seconds"], abs=0.51 * mlp["seconds"] / mlp["step"])
        assert len(transformers.at_steps(results, case, "MLP")) == 1
    assert len(transformers.table(results)) == 4
    assert isinstance(transformers.draw(results), Figure)


# -- tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(tables.SETS))
def test_a_set_is_complete_and_each_row_is_tested_once(name: str) -> None:
    table = tables.SETS[name]()
    assert table.x.ndim == 2
    assert len(table.x) == len(table.y) <= tables.MAX_ROWS
    assert np.isfinite(table.x).all()
    assert len(set(table.y.tolist())) > 10 or table.measure == tables.CLASSIFICATION
    folds = tables.splits(table)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(table.y)))
    assert all(not set(train) & set(test) for train, test in folds)


def results_of(**means: list[float]) -> list[Result]:
    """Return scores of a KAN beside boosted trees at 0.8, 0.9 and 0.7, by set."""
    found: list[Result] = []
    for case, scores in means.items():
        for method in tables.METHODS:
            own = scores if method == tables.KAN else [0.8, 0.9, 0.7] if method == tables.TREES else [0.1, 0.1, 0.2]
            found += [
                {"case": case, "contender": method, "seed": seed, "score": score, "measure": "R2", "rows": 9,
                 "columns": 2, "cpu": 1.0, "error": 0.5}
                for seed, score in enumerate(own)
            ]  # fmt: skip
    return found


BETTER, NEAR, WORSE = [0.9, 0.95, 0.8], [0.83, 0.88, 0.68], [0.3, 0.4, 0.35]


@pytest.mark.parametrize(
    ("sets", "answer"),
    [
        ([BETTER, BETTER, WORSE], HOLDS), ([BETTER, WORSE], FAILS), ([BETTER, NEAR, WORSE], IN_PART),
        ([NEAR, NEAR, NEAR], IN_PART), ([WORSE, WORSE, BETTER], FAILS),
    ],
)  # fmt: skip
def test_the_verdict_on_tables(sets: list[list[float]], answer: str) -> None:
    results = results_of(**{f"set{number}": scores for number, scores in enumerate(sets)})
    verdict = tables.verdict(results)
    assert verdict.answer == answer
    assert f"Number of the {len(sets)} data sets with the best mean: KAN {sets.count(BETTER)}, MLP 0" in verdict.reason
    assert len(tables.table(results)) == len(sets)
    assert isinstance(tables.draw(results), Figure)


def test_a_kan_with_its_defaults_does_not_count() -> None:
    results = results_of(a=WORSE)
    for each in of(results, "a", tables.UNTUNED):
        each["score"] = 0.99
    assert tables.places(results)["a"] == (tables.TREES, False)
    assert tables.table(results).loc["a", tables.UNTUNED].startswith("0.990")
    assert not hasattr(tables.estimator(tables.METHODS[tables.UNTUNED], tables.REGRESSION, 3, 6, 3), "n_iter")


def test_a_failed_fold_makes_the_mean_minus_infinity() -> None:
    results = results_of(a=BETTER)
    next(each for each in results if each["contender"] == tables.KAN)["score"] = None
    assert tables.places(results)["a"] == (tables.TREES, False)
    assert tables.verdict(results).answer == FAILS
    assert tables.table(results).loc["a", tables.KAN] == "-inf ± inf"
    assert isinstance(tables.draw(results), Figure)


def test_all_methods_have_as_many_candidates_on_the_same_folds() -> None:
    made = {(name, measure): tables.estimator(tables.METHODS[name], measure, 3, 6, 3) for name in tables.TUNED
            for measure in (tables.REGRESSION, tables.CLASSIFICATION)}  # fmt: skip
    assert {(each.n_iter, each.random_state) for each in made.values()} == {(6, 3)}
    folds = [each.cv for each in made.values()]
    assert {(each.get_n_splits(), each.shuffle, each.random_state) for each in folds} == {(3, True, 3)}


@pytest.mark.parametrize("name", ["diabetes", "women at work"])
@pytest.mark.parametrize("method", tables.TUNED)
def test_each_method_fits_a_set(name: str, method: str) -> None:
    table = tables.SETS[name]()
    train, test = tables.splits(table)[0]
    found = tables.tested(table, (train[::2], test), method, 0, 2, 2)
    assert found.get("note") is None
    assert 0.1 < found["score"] <= 1
    assert found["error"] == 1 - found["score"]


def test_a_kan_with_its_defaults_fits_a_set() -> None:
    table = tables.SETS["women at work"]()
    found = tables.tested(table, tables.splits(table)[0], tables.UNTUNED, 0, 2, 2)
    assert found["chosen"] == {}
    assert 0.6 < found["score"] <= 1
