"""The bench of the workflow: formulas are judged rightly, and a session comes to its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import sympy
import torch

from bench.records import read
from bench.workflow import __main__ as command
from bench.workflow import sessions
from bench.workflow.judge import error, is_found
from bench.workflow.targets import ARTICLE, SUITE, Target

X = sympy.symbols("x_1 x_2")


@pytest.mark.parametrize("target", SUITE, ids=lambda target: target.name)
def test_a_targets_text_is_its_function(target: Target) -> None:
    variables = sympy.symbols([f"x_{i + 1}" for i in range(target.variables)])
    apart = error(target, sympy.sympify(target.formula), variables)
    assert apart < 1e-12
    assert is_found(target, sympy.sympify(target.formula), apart)


@pytest.mark.parametrize(
    ("formula", "found"),
    [
        ("exp(3.1416*0 + sin(3.14159*x_1) + x_2**2)", True),
        ("1.001*exp(1.001*cos(3.14*x_1 - 1.571) + x_2**2)", True),
        ("1.1*exp(sin(pi*x_1) + x_2**2)", False),
        ("exp(sin(pi*x_1) + x_2**2) + 0.001*tanh(x_1)", False),
        ("exp(sin(pi*x_1) + x_2**4)", False),
    ],
)
def test_a_formula_is_judged(formula: str, found: bool) -> None:
    expression = sympy.sympify(formula)
    assert is_found(ARTICLE, expression, error(ARTICLE, expression, X)) is found


def test_a_formula_that_is_nan_somewhere_is_infinitely_wrong() -> None:
    assert error(ARTICLE, sympy.log(X[0]), X) == float("inf")


def test_a_session_finds_a_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, table = tmp_path / "outcomes.json", tmp_path / "table.md"
    arguments = ["--only", "sum", "--seeds", "0", "--json", str(written), "--markdown", str(table)]
    assert command.main(arguments) == 0
    (outcome,) = read(written).results
    assert outcome["found"]
    assert outcome["width"] == [[2, 0], [1, 0], [1, 0]]
    assert outcome["rmse"] < 1e-5
    assert set(outcome["seconds"]) >= {"sparse training", "prune", "training", "auto_symbolic", "formula"}
    assert "1 of 1 other formulas" in capsys.readouterr().out
    assert "| sum | 0 | 2-1-1, **found** |" in " ".join(table.read_text().split())


def test_a_session_that_breaks_off_says_with_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(package, target, seed, found, *options):
        found["width"] = [[2, 0], [1, 0]]
        raise RuntimeError("no luck\nat all")

    monkeypatch.setattr(sessions, "_session", broken)
    outcome = sessions.run("fastkan", ARTICLE, 0)
    assert (outcome["found"], outcome["note"], outcome["width"]) == (
        False,
        "RuntimeError in broken: no luck",
        [[2, 0], [1, 0]],
    )
    assert torch.get_default_dtype() == torch.float32
