"""The measurements of the second-order optimizers. Each result has a ``case`` and a ``contender``."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from fastkan import KAN, create_dataset
from fastkan.functional import derivatives
from fastkan.optim import LevenbergMarquardt
from fastkan_kernels import record_rows

from ..measure import spread
from ..records import Result
from .poisson import Poisson, kan, mlp, solve

GRIDS = (3, 5, 10, 20, 50, 100)
OPTIMIZERS = ("Levenberg-Marquardt", "self-scaled Broyden", "L-BFGS")
MAX_OTHER_SEEDS = 3  # maximum number of seeds for the optimizers that Levenberg-Marquardt is compared with
# The number of points on an axis, the weight of the border, the first grid and the finer grids of each network.
RECIPES: dict[str, tuple[int, float, int, tuple[int, ...]]] = {
    "KAN k=5": (31, 10.0, 5, (10,)),
    "KAN k=3": (71, 30.0, 10, ()),
    "MLP": (31, 10.0, 0, ()),
}


def target(x: Tensor) -> Tensor:
    """Return exp(sin(pi x_1) + x_2^2), the function of the article."""
    return torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2)


def jacobians() -> Iterator[Result]:
    """Compare Jacobians with autograd, row by row, for a fit and a PINN with each kind of parameter."""
    torch.manual_seed(0)
    x = torch.rand(40, 2) * 2.4 - 1.2
    model = KAN(width=[2, [3, 2], 1], grid=5, k=4, seed=0, affine_trainable=True)
    model.fix_symbolic(0, 0, 1, "sin", x=x, verbose=False)
    model.update_grid_from_samples(x)
    model.layers[0].set_mask((torch.rand_like(model.layers[0].base_weight) > 0.3).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def equation() -> Tensor:
        z = x.clone().requires_grad_()
        u = derivatives(model, z)
        (third,) = torch.autograd.grad(u.hessian[:, 0, 0].sum(), z, create_graph=True)
        return third[:, 0] + u.hessian[:, 0, 1] * u.value + u.gradient[:, 1]

    for name, residuals in (("fit", lambda: model(x)[:, 0]), ("u_xxx + u u_xy + u_y", equation)):
        with record_rows(parameters) as recording:
            jacobian = recording.jacobian(residuals(), check=True).dense()
        worst = 0.0
        for found, value in zip(jacobian, residuals()):
            row = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            exact = torch.cat([torch.zeros_like(p).flatten() if r is None else r.flatten()
                               for p, r in zip(parameters, row)])  # fmt: skip
            worst = max(worst, float((found - exact).abs().max() / exact.abs().max()))
        yield {"case": f"Jacobian: {name}", "contender": "fastkan", "error": worst}


def step(rounds: int = 30) -> Result:
    """Time steps of Levenberg-Marquardt in turns with closures of L-BFGS, on 1,217 residuals and 330 parameters."""
    problem, model = Poisson("sin(pi x) sin(pi y^2)"), kan(0)
    problem.edge, problem._edge_weight, problem._values = (
        each[: 1217 - len(problem.inside)] for each in (problem.edge, problem._edge_weight, problem._values)
    )
    for layer in model.layers:
        layer.spline_scale.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = LevenbergMarquardt(parameters)

    def closure() -> None:
        torch.autograd.backward([0.5 * block.square().sum() for block in problem.residuals(model)])

    ratios, closures = [], []
    for _ in range(rounds):
        times = []
        for call in (closure, lambda: optimizer.step(lambda: problem.residuals(model))):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
        closures.append(times[0])
    count = sum(parameter.numel() for parameter in parameters)
    return {
        "case": "step", "contender": "Levenberg-Marquardt", "parameters": count,
        "ratios": {"closure of L-BFGS": list(spread(ratios[3:]))}, "seconds": list(spread(closures[3:])),
    }  # fmt: skip


def equations(
    problems: Sequence[str], networks: Sequence[str], optimizers: Sequence[str], seconds: float, seeds: int
) -> Iterator[Result]:
    """Solve Poisson's equations by each network with each optimizer."""
    for problem, optimizer, network in itertools.product(problems, optimizers, networks):
        points, border, grid, grids = RECIPES[network]
        poisson = Poisson(problem, points, border)
        for seed in range(seeds if optimizer == OPTIMIZERS[0] else min(seeds, MAX_OTHER_SEEDS)):
            order = 3 if network == "KAN k=3" else 5
            model: nn.Module = mlp(seed) if network == "MLP" else kan(seed, grid, order)
            start = time.process_time()
            model, cost, steps = solve(poisson, model, optimizer, seconds, grids)
            yield {
                "case": problem, "contender": network, "optimizer": optimizer, "seed": seed,
                "mse": poisson.error(model), "cost": cost, "steps": steps, "cpu": time.process_time() - start,
            }  # fmt: skip


def extensions(seeds: int) -> Iterator[Result]:
    """Fit [2, 1, 1] on finer and finer grids, each of which is evenly spaced over the samples."""
    dataset = create_dataset(target, n_var=2)
    for seed in range(seeds):
        start, errors = time.process_time(), []
        model = KAN(width=[2, 1, 1], grid=GRIDS[0], k=3, seed=seed, grid_eps=1.0)
        for grid in GRIDS:
            if grid == GRIDS[0]:
                results = model.fit(dataset, opt="LM", steps=40, progress=False)
            else:
                model = model.refine(grid)
                options: dict[str, Any] = {"stop_grid_update_step": 1, "grid_update_num": 1}
                results = model.fit(dataset, opt="LM", steps=15, progress=False, **options)
            errors.append(results["test_loss"][-1])
        yield {
            "case": "grid extension", "contender": "fastkan", "seed": seed, "rmse": errors,
            "cpu": time.process_time() - start,
        }  # fmt: skip


def rows(count: int, seconds: float) -> Iterator[Result]:
    """Fit [8, 16, 1] to many rows by Levenberg-Marquardt without a matrix of all rows, and by L-BFGS, in equal time."""
    torch.manual_seed(0)
    x = torch.rand(count, 8) * 2 - 1
    y = torch.exp((torch.sin(math.pi * x[:, :4]) + x[:, 4:] ** 2).mean(1, keepdim=True))
    # The first optimizer imports 190 MB of PyTorch, which do not count as memory of the fit.
    LevenbergMarquardt([torch.zeros(1, requires_grad=True)])
    for optimizer in ("LM", "LBFGS"):
        model = KAN(width=[8, 16, 1], grid=5, k=3, seed=0)
        start = time.process_time()
        with _PeakMemory() as peak:
            results = model.fit(
                (x, y), opt=optimizer, steps=1000, update_grid=False, progress=False,
                callbacks=[lambda *_: time.process_time() - start > seconds],  # noqa: B023
            )  # fmt: skip
        yield {
            "case": f"{count} rows", "contender": optimizer, "rmse": results["train_loss"][-1],
            "steps": len(results["train_loss"]), "cpu": time.process_time() - start, "memory": peak.bytes,
        }  # fmt: skip


class _PeakMemory:
    """The largest resident memory beyond the memory at the start, in bytes, sampled every 5 ms."""

    def __enter__(self) -> _PeakMemory:
        self._process, self.bytes, self._ends = psutil.Process(), 0, threading.Event()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ends.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def summary(results: list[Result]) -> Iterator[tuple[str, str, str]]:
    """Yield a row of strings for each measurement: the case, the network or method, and the outcome."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result["case"], result["contender"], result.get("optimizer", "")), []).append(result)
    for (case, contender, optimizer), group in groups.items():
        first, cpu = group[0], statistics.median(result.get("cpu", 0.0) for result in group)
        if "mse" in first:
            values = sorted(result["mse"] for result in group)
            outcome = f"MSE {statistics.median(values):.1e} ({values[0]:.1e} to {values[-1]:.1e}) in {cpu:.0f} s"
        elif case == "grid extension":
            medians = [statistics.median(values) for values in zip(*(result["rmse"] for result in group))]
            worst = max(result["rmse"][-1] for result in group)
            outcome = f"RMSE {', '.join(f'{m:.1e}' for m in medians)} in {cpu:.1f} s; worst seed {worst:.1e}"
        elif "rmse" in first:
            outcome = f"RMSE {first['rmse']:.1e} in {first['steps']} steps, {cpu:.0f} s, {first['memory'] / 1e6:.0f} MB"
        elif "error" in first:
            outcome = f"largest error {first['error']:.1e}"
        else:
            low, high = first["ratios"]["closure of L-BFGS"][1:3]
            outcome = f"{first['ratios']['closure of L-BFGS'][0]:.1f} closures of L-BFGS ({low:.1f} to {high:.1f})"
        yield case, f"{contender}, {optimizer}" if optimizer else contender, outcome
