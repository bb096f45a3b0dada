"""The claims about scaling, equations and formulas: right targets, verdicts in both directions, and runs to the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench.claims import equations, formulas, scaling, training
from bench.claims.claim import FAILS, HOLDS, IN_PART, Claim, Effort
from bench.records import Result
from bench.workflow import sessions
from bench.workflow.judge import error, is_found
from bench.workflow.targets import ARTICLE
from fastkan import KAN

QUICK = Effort((0,), 0.005, peers=False)


# -- targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [each for each in equations.PROBLEMS if not each.is_special], ids=lambda p: p.name)
def test_an_equation_has_the_values_of_its_formula(problem: equations.Problem) -> None:
    import sympy

    names = sympy.symbols("a b c")[: len(problem.ranges)]
    formula = sympy.sympify(problem.formula)
    assert formula.free_symbols == set(names)
    point = [low + 0.3 * (high - low) for low, high in problem.ranges]
    wanted = float(formula.subs(dict(zip(names, point))))
    assert float(equations.target(problem, torch.tensor([point]))) == pytest.approx(wanted, rel=1e-6)
    assert problem.width[0] == len(problem.ranges)


def test_equations_are_those_of_the_database() -> None:
    from fastkan import get_feynman_dataset

    # The dimensionless formulas are those of the database if the variables used as units are set to 1.
    ones = {
        "I.16.6": lambda a, b: [a, b, 1], "I.26.2": lambda a, b: [a, b], "II.11.27": lambda a, b: [a, b, 1, 1],
        "I.37.4": lambda a, b: [a, 1, b], "I.29.16": lambda a, b, c: [1, a, b, c],
        "III.17.37": lambda a, b, c: [a, b, c],
        "I.30.5": lambda a, b: [a, 1, b], "I.27.6": lambda a, b: [1, 1 / a, b], "I.50.26": lambda a, b: [1, b, a, 1],
        "I.13.12": lambda a, b: [a, 1, 1, 1, b], "I.44.4": lambda a, b: [a, 1, 1, 1, b],
        "I.18.4": lambda a, b: [1, 1, a, b], "I.12.11": lambda a, b: [1, 1, 1, a, b],
        "II.35.18": lambda a, b: [a, b, 1, 1, 1],
    }  # fmt: skip
    for name, arguments in ones.items():
        problem = next(each for each in equations.PROBLEMS if each.name == name)
        point = [low + 0.4 * (high - low) for low, high in problem.ranges]
        formula = get_feynman_dataset(name)[2]
        wanted = float(formula(torch.tensor([arguments(*point)], dtype=torch.float64)))
        found = float(equations.target(problem, torch.tensor([point], dtype=torch.float64)))
        assert found == pytest.approx(wanted, rel=1e-9), name


def test_special_functions_have_known_values() -> None:
    def value(name: str, *point: float) -> float:
        problem = next(each for each in equations.PROBLEMS if each.name == name)
        return float(equations.target(problem, torch.tensor([point], dtype=torch.float64)))

    assert value("sn", 0.7, 0.0) == pytest.approx(math.sin(0.7))
    assert value("sn", 0.7, 1.0) == pytest.approx(math.tanh(0.7))
    assert value("ellipkinc", 0.8, 0.0) == pytest.approx(0.8)
    assert value("ellipeinc", 0.8, 1.0) == pytest.approx(math.sin(0.8))
    half = math.sqrt(2 / (math.pi * 2.0))  # Bessel functions of order 1/2 are elementary
    assert value("jv", 0.5, 2.0) == pytest.approx(half * math.sin(2.0))
    assert value("yv", 0.5, 2.0) == pytest.approx(-half * math.cos(2.0))
    assert value("iv", 0.5, 2.0) == pytest.approx(half * math.sinh(2.0))
    assert value("kv", 0.5, 2.0) == pytest.approx(math.sqrt(math.pi / 4) * math.exp(-2.0))
    assert value("lpmv, m = 0", 2.0, 0.3) == pytest.approx((3 * 0.3**2 - 1) / 2)
    wanted = -math.sqrt(3 / (8 * math.pi)) * math.sin(1.1) * math.cos(0.4)
    assert value("sph_harm(1, 1)", 0.4, 1.1) == pytest.approx(wanted)


@pytest.mark.parametrize("problem", equations.PROBLEMS, ids=lambda p: p.name)
def test_a_problem_is_finite_on_its_ranges(problem: equations.Problem) -> None:
    corners = torch.cartesian_prod(*(torch.linspace(low, high, 7, dtype=torch.float64) for low, high in problem.ranges))
    assert equations.target(problem, corners).isfinite().all()


def test_the_toy_functions_have_their_values() -> None:
    from scipy.special import j0

    values = {each.name: each for each in scaling.FUNCTIONS}
    x = torch.tensor([[0.3, -0.7, 0.2, 0.9]], dtype=torch.float64)
    assert float(values["J0(20 x), [1,1]"].formula(x[:, :1])) == pytest.approx(j0(6.0))
    four = math.exp((math.sin(math.pi * 0.58) + math.sin(math.pi * 0.85)) / 2)
    assert float(values["four variables, [4,4,2,1]"].formula(x)) == pytest.approx(four)
    wide = values["100 variables, [100,1,1]"].formula(torch.full((1, 100), 0.5, dtype=torch.float64))
    assert float(wide) == pytest.approx(math.exp(0.5))
    for function in scaling.FUNCTIONS:
        assert f"[{','.join(map(str, function.width))}]" in function.name


# -- verdicts -----------------------------------------------------------------------------------------


def _curve(case: str, contender: str, power: float, first: float = 0.1) -> list[Result]:
    return [
        {"case": case, "contender": contender, "seed": 0, "grid": 3, "cpu": 1.0, "parameters": 10 * 2**step,
         "error": first * 2 ** (power * step)} for step in range(4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("powers", "answer"),
    [
        ((-4.0, -3.5), HOLDS),
        ((-4.0, -2.0), IN_PART),  # not steep
        ((-2.0, -2.0), FAILS),
    ],
)
def test_scaling_is_judged_by_exponents(powers: tuple[float, ...], answer: str) -> None:
    results = [each for at, power in enumerate(powers) for each in _curve(f"f{at}", scaling.KAN_NAME, power)]
    results += [each for at in range(2) for each in _curve(f"f{at}", scaling.MLP_NAME.format(2), -1.0)]
    assert scaling.verdict(results).answer == answer
    assert scaling.exponent(results[:4], scaling.KAN_NAME) == pytest.approx(powers[0])


def test_scaling_fails_if_mlps_end_lower() -> None:
    results = _curve("f", scaling.KAN_NAME, -4.0) + _curve("f", scaling.MLP_NAME.format(2), -1.0, 1e-9)
    assert scaling.verdict(results).answer == FAILS


def test_failures_count_and_are_named() -> None:
    """A failure of most seeds on the smallest size leaves no exponent; one on another size is in the table."""
    results = [{**each, "seed": seed} for seed in range(3) for each in _curve("f", scaling.KAN_NAME, -4.0)]
    results += [{**each, "seed": seed} for seed in range(3) for each in _curve("f", scaling.MLP_NAME.format(2), -1.0)]
    assert scaling.verdict(results).answer == HOLDS
    results[4]["error"] = results[5]["error"] = None
    assert scaling.verdict(results).answer == HOLDS  # the medians are as before
    assert "2 results of KANs in float64 are failures." in scaling.verdict(results).reason
    assert scaling.table(results).set_index("network").loc[scaling.KAN_NAME, "failures"] == "2 of 12"
    results[0]["error"] = None
    assert scaling.exponent(results, scaling.KAN_NAME) == 0
    assert scaling.verdict(results).answer == FAILS


def test_a_size_that_some_seeds_had_no_time_for_does_not_count() -> None:
    results = [{**each, "seed": seed} for seed in range(3) for each in _curve("f", scaling.KAN_NAME, -4.0)]
    assert list(scaling.curve(results[:-1], scaling.KAN_NAME)) == [10, 20, 40]


@pytest.mark.parametrize("width", [[1, 1], [4, 4, 2, 1]])
def test_the_number_of_parameters_is_that_of_the_network(width: list[int]) -> None:
    for grid in (3, 20):
        assert training.kan_size(width, grid) == training.count(KAN(width=width, grid=grid, k=3))


def test_a_failure_on_a_grid_stays_in_the_table() -> None:
    results = _curve("f", scaling.KAN_NAME, -4.0) + _curve("f", scaling.MLP_NAME.format(2), -1.0)
    results += [{**each, "contender": scaling.PYKAN, "error": None} for each in results[:1]]
    table = scaling.table(results).set_index("network")
    assert table.loc[scaling.PYKAN, "its test RMSE, median"] == "failed"
    assert scaling.verdict(results).answer == HOLDS
    assert scaling.draw(results).axes


def _errors(better: Callable[[equations.Problem], bool]) -> list[Result]:
    return [
        {"case": each.name, "contender": name, "seed": 0, "cpu": 1.0, "parameters": 1,
         "error": 1e-7 if (name == equations.RECIPE) == better(each) else 1e-1, "held": 1e-7}
        for each in equations.PROBLEMS for name in (equations.RECIPE, equations.MLP)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("better", "answer"),
    [
        (lambda each: True, HOLDS),
        (lambda each: each.name != "jv", IN_PART),
        (lambda each: each.is_special, IN_PART),
        (lambda each: not each.is_special, FAILS),
    ],
)
def test_equations_are_judged_against_mlps(better: Callable[[equations.Problem], bool], answer: str) -> None:
    assert equations.verdict(_errors(better)).answer == answer


def test_what_misses_the_published_error_is_named() -> None:
    assert "but not for jv" in equations.verdict(_errors(lambda each: each.name != "jv")).reason
    assert "but not" not in equations.verdict(_errors(lambda each: True)).reason


def test_a_failed_run_is_worse_than_any_other() -> None:
    results = _errors(lambda each: True)
    for each in results:
        if each["case"] == "jv" and each["contender"] == equations.RECIPE:
            each["error"] = None
    assert equations.verdict(results).answer == IN_PART
    assert "failed" in equations.table(results).loc["jv", equations.RECIPE]


def _found(shares: dict[float, int]) -> list[Result]:
    return [
        {"case": str(case), "contender": name, "seed": 0, "noise": noise, "found": case < count, "error": 1e-3,
         "cpu": 1.0, "formula": "x", "note": None}
        for noise, count in shares.items() for case in range(10) for name in (formulas.PLAIN, formulas.CAREFUL)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "answer"),
    [
        ({0.0: 10, 0.01: 9, 0.05: 8}, HOLDS),
        ({0.0: 10, 0.01: 9, 0.05: 7}, IN_PART),
        ({0.0: 7, 0.01: 7, 0.05: 7}, FAILS),
    ],
)
def test_formulas_are_judged_at_every_noise(shares: dict[float, int], answer: str) -> None:
    assert formulas.verdict(_found(shares)).answer == answer


def test_a_formula_counts_once_whatever_its_seeds() -> None:
    results = _found({0.0: 1})
    seeds = [{**each, "seed": seed} for each in results for seed in (range(3) if each["case"] == "0" else [0])]
    assert formulas.share(seeds, formulas.PLAIN, 0.0) == pytest.approx(0.1)


# -- noise ----------------------------------------------------------------------------------------------


def test_noise_raises_the_accepted_error_of_a_formula_but_not_its_form() -> None:
    import sympy

    x = sympy.symbols("x_1 x_2")
    near = sympy.sympify("1.01*exp(sin(pi*x_1) + x_2**2)")
    apart = error(ARTICLE, near, x)
    assert not is_found(ARTICLE, near, apart)
    assert is_found(ARTICLE, near, apart, noise=0.05)
    other = sympy.sympify("exp(sin(pi*x_1) + x_2**2) + 0.01*tanh(x_1)")
    assert not is_found(ARTICLE, other, error(ARTICLE, other, x), noise=0.05)


def test_noise_is_on_training_labels_alone() -> None:
    x, y = torch.zeros(10_000, 1), torch.linspace(-1, 1, 10_000).unsqueeze(1)
    data = {"train_input": x, "train_label": y, "test_input": x, "test_label": y}
    noisy = sessions._with_noise(data, 0.05, 0, careful=False)
    ratio = float((noisy["train_label"] - y).std() / y.std())
    assert ratio == pytest.approx(0.05, rel=0.05)
    assert torch.equal(noisy["test_label"], y)
    assert torch.equal(sessions._with_noise(data, 0.0, 0, careful=False)["train_label"], y)


def test_a_careful_session_sees_no_test_rows() -> None:
    x = torch.arange(10.0).unsqueeze(1)
    data = {"train_input": x, "train_label": x, "test_input": -x - 1, "test_label": x}
    careful = sessions._with_noise(data, 0.0, 0, careful=True)
    assert careful["test_input"].flatten().tolist() == [0, 5]
    assert sorted(torch.cat([careful["train_input"], careful["test_input"]]).flatten().tolist()) == list(range(10))


def test_a_careful_session_finds_the_formula_of_the_article_in_noise() -> None:
    found = sessions.run("fastkan", ARTICLE, 0, noise=0.01, careful=True)
    assert found["found"], found["note"]


# -- runs -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("claim", [scaling.CLAIM, equations.CLAIM], ids=lambda claim: claim.name)
def test_a_quick_run_gives_finite_errors_and_a_picture(claim: Claim) -> None:
    results = list(claim.run(QUICK))
    assert len({each["contender"] for each in results}) >= 3
    assert all(math.isfinite(each["error"]) and each["cpu"] >= 0 for each in results)
    assert claim.verdict(results).answer in (HOLDS, IN_PART, FAILS)
    assert not claim.table(results).empty
    assert claim.draw(results).axes


def test_results_of_formulas_become_a_table_and_a_picture() -> None:
    results = _found({0.0: 10, 0.05: 3})
    table = formulas.table(results)
    assert table.loc["9", "5% noise: found, median error / std"].tolist() == ["0 of 1, 1e-03"] * 2
    assert len(formulas.draw(results).axes) == 2
    assert np.isclose(formulas.share(results, formulas.CAREFUL, 0.05), 0.3)
