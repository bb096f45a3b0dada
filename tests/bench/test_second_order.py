"""The measurements of the second-order optimizers: problems and points are right, and each part runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.records import read
from bench.second_order import __main__ as command
from bench.second_order import poisson, runs
from fastkan.functional import laplacian

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", list(poisson.PROBLEMS))
def test_the_source_is_the_laplacian_of_the_solution(name: str) -> None:
    solution, source = poisson.PROBLEMS[name]
    z = torch.rand(50, 2) * 2 - 1
    torch.testing.assert_close(source(z), laplacian(solution, z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list(poisson.PROBLEMS))
def test_residuals_are_those_of_the_equation(name: str) -> None:
    """They vanish at the solution, and a constant error c on the border costs border^2 c^2 / 2."""
    problem = poisson.Poisson(name, points=11, border=7.0)
    for block in problem.residuals(lambda z: problem.solution(z).unsqueeze(1)):
        assert block.abs().max() < 1e-10
    equation, edge = problem.residuals(lambda z: problem.solution(z).unsqueeze(1) + 0.1)
    assert equation.abs().max() < 1e-10
    torch.testing.assert_close(edge.square().sum(), torch.tensor(49 * 0.01))
    assert problem.error(lambda z: problem.solution(z).unsqueeze(1) + 0.1) == pytest.approx(0.01)
    # The mean of (x^2)^2 over the square is 1/5, which Gauss-Legendre quadrature computes exactly.
    weight = problem._inside_weight.square()
    torch.testing.assert_close((problem.inside[:, 0] ** 4 * weight).sum(), torch.tensor(0.2))


@pytest.mark.parametrize("optimizer", runs.OPTIMIZERS)
def test_each_optimizer_approaches_the_solution(optimizer: str) -> None:
    problem = poisson.Poisson("sin(pi x) sin(pi y)", points=20)
    network = poisson.kan(0, grid=4, order=4)
    before = sum(float(block.detach().square().sum()) for block in problem.residuals(network)) / 2
    network, cost, steps = poisson.solve(problem, network, optimizer, 1.0, grids=(8,))
    assert network.grid == [8, 8]
    assert steps > 0
    assert cost < 0.1 * before
    after = sum(float(block.detach().square().sum()) for block in problem.residuals(network)) / 2
    assert cost == pytest.approx(after, rel=1e-6)


def test_adam_approaches_the_solution_with_a_rate_that_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, closure: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    problem, network = poisson.Poisson("sin(pi x) sin(pi y)", points=10), poisson.mlp(0)
    before = problem.error(network)
    network, _, steps = poisson.solve(problem, network, "Adam", 2.0)
    assert len(rates) == steps
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.01
    assert 0 <= rates[-1] < 0.002
    assert problem.error(network) < 0.3 * before


def test_no_time_is_no_step() -> None:
    for seconds in (0.0, -1.0):
        assert (
            poisson.solve(poisson.Poisson("sin(pi x) sin(pi y)", points=4), poisson.mlp(0), "L-BFGS", seconds)[2] == 0
        )


def test_the_command_writes_all_parts(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = ["--seeds", "1", "--seconds", "0.2", "--rows", "3000", "--row-seconds", "0.2", "--problems"]
    assert command.main([*arguments, "sin(pi x) sin(pi y)", "--json", str(file)]) == 0
    results = read(file).results
    errors = [result["error"] for result in results if "error" in result]
    assert len(errors) == 2
    assert max(errors) < 1e-12
    (extension,) = (result for result in results if result["case"] == "grid extension")
    assert extension["rmse"][-1] < 1e-6
    assert {result["contender"] for result in results if result["case"] == "3000 rows"} == {"LM", "LBFGS"}
    assert len(command.table(results)) == len(list(runs.summary(results))) == 15
