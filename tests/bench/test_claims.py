"""The claims about KANs: the form of a claim, the page, and the claims of the paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from bench.claims import __main__ as command
from bench.claims import claim, extension, forgetting, pde, training
from bench.claims.claim import FAILS, HOLDS, IN_PART, Effort
from bench.claims.page import complete, text, write_page
from bench.records import RESULTS, Record, Result, describe, read, write
from fastkan import create_dataset

QUICK = Effort((0,), 0.005, peers=False)


pytestmark = pytest.mark.usefixtures("float64")


def made(case: str, contender: str, *errors: float | None, **fields: object) -> list[Result]:
    """Return a result for each error, whose seeds are counted from 0."""
    return [
        {"case": case, "contender": contender, "seed": seed, "error": error, "cpu": 1.0, **fields}
        for seed, error in enumerate(errors)
    ]


# -- the form of a claim ----------------------------------------------------------------------------


def test_an_effort_shrinks_seconds_steps_and_problems() -> None:
    full, quick = Effort(), Effort((0,), 0.1, peers=False)
    assert (full.seconds(15.0), full.count(100), full.some("abc")) == (15.0, 100, list("abc"))
    assert quick.seconds(15.0) == pytest.approx(1.5)
    assert (quick.count(100), quick.count(5), quick.count(5, 3)) == (10, 1, 3)
    assert (quick.some("abc"), quick.some(range(20))) == (["a"], [0, 1])


def test_a_failure_counts_as_an_infinite_error() -> None:
    results = made("a", "KAN", 1e-3, None, 3e-3, 2e-3, math.nan)
    assert claim.values(results) == [1e-3, math.inf, 3e-3, 2e-3, math.inf]
    assert claim.median(results) == 3e-3
    assert math.isnan(claim.median([]))
    assert claim.spread_words(results) == "3.0e-03 (1.0e-03 to failed)"
    assert claim.spread_words(results[:1]) == "1.0e-03"
    assert claim.spread_words([]) is None
    assert [claim.number(value) for value in (0.123, 12.3, 1e-5, 12345.0, math.inf)] == [
        "0.12", "12", "1.0e-05", "1.2e+04", "failed",
    ]  # fmt: skip


def test_results_are_chosen_by_case_and_contender_and_the_best_by_its_median() -> None:
    results = [*made("a", "KAN x", 1.0, 9.0, 2.0), *made("a", "KAN y", 3.0, 3.0, 3.0), *made("b", "MLP", 5.0)]
    assert claim.of(results, "a", "KAN y") == results[3:6]
    assert claim.of(results, None, "MLP") == claim.of(results, "b") == results[6:]
    assert claim.best(results, "KAN") == ("KAN x", 2.0)
    assert claim.best(results, "pykan") == ("none", math.inf)
    assert list(claim.groups(results, "case", "contender")) == [("a", "KAN x"), ("a", "KAN y"), ("b", "MLP")]


def test_a_table_has_a_row_for_each_case_and_contender() -> None:
    table = claim.error_table([*made("a", "KAN", 0.1, 0.3, 0.2, parameters=7), *made("b", "MLP", None)])
    assert table.reset_index().fillna("").to_numpy().tolist() == [
        ["a", "KAN", "7", "0.2 (0.1 to 0.3)", "1.0"],
        ["b", "MLP", "", "failed", "1.0"],
    ]


def test_an_error_on_a_grid_makes_failures_of_this_and_the_finer_ones() -> None:
    def work() -> Iterator[float]:
        yield 0.5
        yield math.nan
        raise ZeroDivisionError("on the third grid")

    found = list(claim.attempts("a", "KAN", 7, (3, 5, 10, 20), work(), lambda grid: 2 * grid))
    assert [(each["grid"], each["error"], each["parameters"]) for each in found] == [
        (3, 0.5, 6), (5, None, 10), (10, None, 20), (20, None, 40),
    ]  # fmt: skip
    assert [each.get("note") for each in found] == [None, "not finite", *["ZeroDivisionError: on the third grid"] * 2]
    assert all((each["case"], each["contender"], each["seed"]) == ("a", "KAN", 7) for each in found)
    assert [each["cpu"] for each in found] == sorted(each["cpu"] for each in found)


def test_grids_for_which_there_was_no_time_have_no_result() -> None:
    assert [each["grid"] for each in claim.attempts("a", "KAN", 0, (3, 5, 10), iter([1.0, 2.0]), int)] == [3, 5]


# -- the command and the page -----------------------------------------------------------------------


def test_the_command_writes_results_a_picture_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--only", "forgetting", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "forgetting.json", "forgetting.png"]
    record = read(tmp_path / "forgetting.json", ("case", "contender", "seed", "error", "cpu"))
    assert all(math.isfinite(result["error"]) for result in record.results)
    assert {result["seed"] for result in record.results} == {0}
    assert (record.settings["share"], record.about["machine"]["threads"]) == (0.01, 1)
    page = (tmp_path / "README.md").read_text()
    verdict = forgetting.verdict(record.results)
    assert f"- **KANs do not forget: {verdict.answer}.** {verdict.sentence}" in page
    assert f"{verdict.answer[1:]}.*** {verdict.sentence} {verdict.more}" in page
    assert "![KANs do not forget](forgetting.png)" in page
    assert "This was a quick run, whose figures mean nothing." in page
    assert pde.CLAIM.title not in page
    assert verdict.answer in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float64


def test_a_claim_that_raises_does_not_stop_the_others_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def run(_: Effort) -> Iterator[Result]:
        yield from made(forgetting.CASE, forgetting.PLAIN, 1.0)
        raise ZeroDivisionError("in the middle")

    def good(_: Effort) -> Iterator[Result]:
        names = (extension.BEST, extension.SINGLE)
        yield from (each for name in names for each in made(extension.CASE, name, 1.0, grid=3))

    claims = (forgetting.CLAIM._replace(run=run), extension.CLAIM._replace(run=good))
    monkeypatch.setattr(command, "CLAIMS", claims)
    assert command.main(["--quick", "--only", "forgetting", "extension", "--out", str(tmp_path)]) == 1
    assert "in the middle" in capsys.readouterr().out
    page = (tmp_path / "README.md").read_text()
    assert extension.CLAIM.title in page
    assert forgetting.CLAIM.title not in page
    assert len(read(tmp_path / "forgetting.json").results) == 1


def test_the_page_is_drawn_again_without_running(tmp_path: Path) -> None:
    settings = {"share": 1.0, "seeds": [0], "minutes": 2.0, "complete": True}
    results = [
        *made(forgetting.CASE, forgetting.SPLINES, 1e-9),
        *made(forgetting.CASE, forgetting.PLAIN, 1e-9),
        *made(forgetting.CASE, forgetting.DEEP, 1e-9),
        *made(forgetting.CASE, "MLP tanh, Adam", 3.0),
    ]
    write(tmp_path / "forgetting.json", Record(results, describe(), settings))
    before = (tmp_path / "forgetting.json").read_bytes()
    assert command.main(["--page", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "***Holds.***" in page
    assert "quick run" not in page
    assert (tmp_path / "forgetting.json").read_bytes() == before


def test_a_page_needs_no_results_and_an_unknown_claim_is_refused(tmp_path: Path) -> None:
    assert write_page(tmp_path, command.CLAIMS).read_text().startswith("# Claims about KANs")
    with pytest.raises(SystemExit):
        command.parser().parse_args(["--only", "nothing"])


def test_the_published_page_shows_the_published_results() -> None:
    folder = RESULTS / "claims"
    assert (folder / "README.md").read_text(encoding="utf-8") == text(complete(folder, command.CLAIMS))
    for each in command.CLAIMS:
        settings = read(folder / f"{each.name}.json").settings
        assert settings["share"] == 1.0
        assert settings["complete"]
        assert settings["seeds"] in ([0, 1, 2], [0, 1, 2, 3, 4])
        assert 5e3 < (folder / f"{each.name}.png").stat().st_size < 250e3


def test_names_are_identifiers_and_titles_are_different() -> None:
    assert len({each.name for each in command.CLAIMS}) == len({each.title for each in command.CLAIMS})
    assert all(each.name.isidentifier() for each in command.CLAIMS)


# -- verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kan", "small", "large", "answer"),
    [
        (1e-9, 2e-7, 1e-5, HOLDS),
        (1e-9, 1e-9, 1e-6, IN_PART),
        (1e-9, 1e-9, 1e-8, FAILS),
        (None, 1e-9, 1e-8, FAILS),
        (1e-9, None, None, FAILS),
    ],
)
def test_the_verdict_on_differential_equations(
    kan: float | None, small: float | None, large: float | None, answer: str
) -> None:  # fmt: skip
    case = pde.POISSON[0]
    results = [
        *made(case, "KAN [2,10,1] k=5, LM", kan, kan), *made(case, "MLP tanh 2 x 16, LM", small, small),
        *made(case, pde.AS_PUBLISHED, large, large),
    ]  # fmt: skip
    assert pde.verdict(results).answer == answer


def test_the_kan_must_be_better_on_every_equation() -> None:
    results = [
        *made(pde.POISSON[0], "KAN", 1e-9), *made(pde.POISSON[0], "MLP", 1e-4),
        *made(pde.BURGERS, "KAN", 1e-4), *made(pde.BURGERS, "MLP", 1e-4),
    ]  # fmt: skip
    assert pde.verdict(results).answer == FAILS


@pytest.mark.parametrize(
    ("splines", "plain", "deep", "answer"),
    [
        (1e-9, 1e-9, 1e-9, HOLDS),
        (1e-9, 1e-9, 0.1, IN_PART),
        (1e-9, 0.1, 1e-9, IN_PART),
        (0.1, 1e-9, 1e-9, FAILS),
        (1e-9, 1e-9, None, IN_PART),
        (None, 1e-9, 1e-9, FAILS),
    ],
)
def test_the_verdict_on_forgetting(
    splines: float | None, plain: float, deep: float | None, answer: str
) -> None:  # fmt: skip
    names = {forgetting.SPLINES: splines, forgetting.PLAIN: plain, forgetting.DEEP: deep, "MLP SiLU, Adam": 2.0}
    results = [result for name, error in names.items() for result in made(forgetting.CASE, name, error)]
    verdict = forgetting.verdict(results)
    assert verdict.answer == answer
    assert "2 for the best MLP. " in verdict.reason
    assert verdict.reason.endswith("The best MLP is MLP SiLU, Adam.")
    assert ("A hidden layer makes it forget, " in verdict.reason) == (deep is None or deep > forgetting.SMALL)


def test_forgetting_holds_in_part_if_mlps_forget_nothing() -> None:
    names = (forgetting.SPLINES, forgetting.PLAIN, forgetting.DEEP, "MLP tanh, Adam")
    results = [result for name in names for result in made(forgetting.CASE, name, 1e-9)]
    assert forgetting.verdict(results).answer == IN_PART


@pytest.mark.parametrize(
    ("ends", "answer"),
    [
        ((1e-7, 2e-7), HOLDS), ((1e-7, 1e-4, 1e-3), IN_PART), ((1e-3, 1e-3), FAILS), ((1e-7, None, 1e-7), IN_PART),
    ],
)  # fmt: skip
def test_the_verdict_on_grid_extension(ends: tuple[float | None, ...], answer: str) -> None:
    starts = [0.02] * len(ends)
    results = [
        *made(extension.CASE, extension.BEST, *starts, grid=3), *made(extension.CASE, extension.BEST, *ends, grid=100),
    ]  # fmt: skip
    assert extension.verdict(results).answer == answer


@pytest.mark.parametrize("failed", [0, 4])
@pytest.mark.parametrize("both", [False, True])
def test_a_seed_that_fails_on_the_first_grid_has_not_become_better(failed: int, both: bool) -> None:
    starts, ends = [0.02] * 5, [1e-7] * 5
    starts[failed] = None
    ends[failed] = None if both else 1e-7
    results = [
        *made(extension.CASE, extension.BEST, *starts, grid=3), *made(extension.CASE, extension.BEST, *ends, grid=100),
    ]  # fmt: skip
    assert extension.verdict(results).answer == IN_PART


def test_no_exponent_is_measured_between_failures() -> None:
    for errors in ((None, 1e-7), (0.1, None), (None, None)):
        results = [each for at, error in zip((3, 100), errors) for each in made("a", "KAN", error, grid=at)]
        assert extension.slope(results, "KAN") == 0
        assert extension.verdict([{**each, "contender": extension.BEST} for each in results]).answer == FAILS


def test_a_grid_that_some_seeds_did_not_come_to_says_so() -> None:
    results = [*made("a", "pykan", 1e-2, 1e-2, 1e-2, grid=3), *made("a", "pykan", 1e-4, grid=5)]
    row = extension.table(results).loc["pykan"]
    assert (row["G = 3"], row["G = 5"]) == ("0.01", "1.0e-04 (1 of 3)")


def test_the_exponent_is_that_of_a_power_law() -> None:
    results = [
        result for grid in extension.GRIDS for result in made(extension.CASE, extension.BEST, grid**-4.0, grid=grid)
    ]
    assert extension.slope(results, extension.BEST) == pytest.approx(-4)


@pytest.mark.parametrize("each", [pde.CLAIM, extension.CLAIM], ids=lambda each: each.name)
def test_a_short_run_has_finite_errors_a_table_and_a_picture(each: claim.Claim) -> None:
    """Of the differential equations, only the first contender runs, since the others take the same path."""
    results = list(itertools.islice(each.run(QUICK), 1 if each is pde.CLAIM else None))
    assert all(math.isfinite(result["error"]) for result in results)
    assert all(result["cpu"] > 0 for result in results)
    assert len(each.table(results)) >= 1
    assert isinstance(each.draw(results), Figure)


# -- training ---------------------------------------------------------------------------------------


def line() -> training.Split:
    """Return rows of a function that a small network learns at once."""
    return training.split(create_dataset(lambda x: x[:, [0]] - 0.5 * x[:, [1]], n_var=2, train_num=200, test_num=50))


def test_a_tenth_of_the_training_rows_is_held_out() -> None:
    dataset = create_dataset(lambda x: x[:, [0]], n_var=1, train_num=100, test_num=30)
    data = training.split(dataset)
    assert [len(part) for part in data] == [90, 90, 10, 10, 30, 30]
    both = torch.cat([data.x, data.held_x]).flatten().sort().values
    torch.testing.assert_close(both, dataset["train_input"].flatten().sort().values)
    torch.testing.assert_close(data.test_x, dataset["test_input"])


@pytest.mark.parametrize("parameters", [20, 337, 5000])
def test_an_mlp_has_at_least_as_many_parameters_and_no_wider_layers_than_needed(parameters: int) -> None:
    sizes = training.equal_sizes(2, 1, parameters)
    narrower = [2, sizes[1] - 1, sizes[1] - 1, 1]
    assert training.count(training.mlp(sizes, "tanh", 0)) >= parameters
    assert sizes[1] == 1 or training.count(training.mlp(narrower, "tanh", 0)) < parameters


def test_an_mlp_depends_on_its_seed_alone() -> None:
    first, again, other = (training.mlp([2, 4, 1], "SiLU", seed)[0].weight for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("optimizer", training.MLP_OPTIMIZERS)
def test_each_optimizer_trains_an_mlp(optimizer: str) -> None:
    data = line()
    before = training.rmse(training.mlp([2, 5, 1], "tanh", 0), data.held_x, data.held_y)
    run = training.MLPRun(data, [2, 5, 1], "tanh", optimizer, 0)
    run.train(0.1)
    halfway = run.held
    run.train(0.1)
    trained = run.best()
    assert trained.held == run.held <= halfway
    assert trained.held < 0.2 * before
    assert training.rmse(trained.network, data.held_x, data.held_y) == pytest.approx(trained.held)


def test_large_mlps_are_not_trained_by_levenberg_marquardt() -> None:
    with pytest.raises(ValueError, match="no network"):  # no optimizer is left
        training.tuned_mlp(line(), [[2, 100, 100, 1]], 0, 0.1, optimizers=("LM",))
    assert training.tuned_mlp(line(), [[2, 100, 100, 1], [2, 3, 1]], 0, 0.3, ("LM",)).parameters == 13


def test_a_candidate_that_raises_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(*_: object) -> None:
        raise RuntimeError("singular")

    monkeypatch.setattr(training.LevenbergMarquardt, "step", singular)
    assert training.tuned_mlp(line(), [[2, 5, 1]], 0, 0.3).held < 1
    with pytest.raises(RuntimeError, match="singular"):
        training.tuned_mlp(line(), [[2, 5, 1]], 0, 0.3, ("LM",))


def test_a_finer_grid_that_raises_does_not_cost_the_coarser_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training.extension

    def broken(*arguments: Any, **options: Any) -> Iterator[tuple]:
        yield next(whole(*arguments, **options))
        raise RuntimeError("too fine")

    monkeypatch.setattr(training, "extension", broken)
    assert training.kan_extended(line(), [2, 1], 0, 0.6, (3, 5)).parameters == 16


def test_an_extended_kan_is_the_best_by_held_out_rows() -> None:
    data = line()
    found = [held for _, _, held in training.extension(data, [2, 1], 0, 0.6, (3, 5))]
    best = training.kan_extended(data, [2, 1], 0, 0.6, (3, 5))
    assert len(found) == 2
    assert best.held < 1e-3
    assert training.rmse(best.network, data.held_x, data.held_y) == pytest.approx(best.held)


def test_a_training_that_fails_is_a_result_with_a_note() -> None:
    def fail() -> training.Trained:
        raise RuntimeError("diverged")

    failed = training.result("a", "KAN", 0, line(), fail)
    assert (failed["error"], failed["note"]) == (None, "RuntimeError: diverged")
    diverged = training.result("a", "MLP", 0, line(), lambda: training.Trained(lambda x: x * math.nan, 0.5, 13))
    assert (diverged["error"], diverged["note"]) == (None, "not finite")
    network = training.mlp([2, 3, 1], "tanh", 0)
    done = training.result("a", "MLP", 0, line(), lambda: training.Trained(network, 0.5, 13))
    assert (done["held"], done["parameters"], done["error"] > 0) == (0.5, 13, True)
