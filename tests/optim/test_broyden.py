"""The self-scaled Broyden optimizer: convergence, the update, float32, states, and bad input."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from fastkan import KAN
from fastkan.optim import SelfScaledBroyden
from fastkan.optim.broyden import Trial, line_search, scaling_and_mixing, update_inverse_hessian

DOUBLE = torch.float64
NAN, INF = math.nan, math.inf


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def ill_conditioned(size=50, condition=1e8):
    """Return the Hessian matrix of a quadratic in random coordinates."""
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    return (q * torch.logspace(0, math.log10(condition), size, dtype=DOUBLE)) @ q.t()


def parameter(size, **options):
    return nn.Parameter(torch.ones(size, **options))


class Run:
    """A parameter, its optimizer and the losses of all evaluations of ``function``."""

    def __init__(self, function, x, **options):
        self.x = nn.Parameter(x.clone())
        self.function, self.losses = function, []
        self.optimizer = SelfScaledBroyden([self.x], **{"max_iter": 1000, **options})

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.function(self.x)
        loss.backward()
        self.losses.append(loss.item())
        return loss

    def step(self):
        self.optimizer.step(self.closure)
        return self

    @property
    def state(self):
        return self.optimizer.state[self.x]

    def evaluations_to(self, value):
        return next(n for n, loss in enumerate(self.losses, 1) if loss <= value)


def start(size, dtype=DOUBLE):
    x = torch.full((size,), -1.2, dtype=dtype)
    x[1::2] = 1
    return x


def regression(dtype, seed=0):
    """Return a small network, its parameters and a function that computes the loss of a fit."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(200, 2, dtype=DOUBLE, generator=generator).mul(2).sub(1).to(dtype)
    y = torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)
    model = KAN(width=[2, 3, 1], grid=4, k=3, seed=seed).to(dtype)
    return model, [p for p in model.parameters() if p.requires_grad], lambda: (model(x) - y).square().mean()


def closure_of(loss, parameters, losses=None):
    def closure():
        for parameter in parameters:
            parameter.grad = None
        value = loss()
        value.backward()
        if losses is not None:
            losses.append(value.item())
        return value

    return closure


# -- convergence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 10, 50])
def test_rosenbrock_against_scipys_bfgs(size):
    """The minimum is found to rounding.

    If SciPy's BFGS also finds it, the number of evaluations is at most 1.5 times that of SciPy's BFGS.
    """
    values = []

    def value(x):
        values.append(scipy.optimize.rosen(x))
        return values[-1]

    x0 = start(size)
    scipy.optimize.minimize(value, x0.numpy(), jac=scipy.optimize.rosen_der, method="BFGS", options={"gtol": 1e-12})
    run = Run(rosenbrock, x0).step()
    assert rosenbrock(run.x).item() < 1e-25
    assert (run.x - 1).abs().max() < 1e-12
    if min(values) < 1e-20:
        assert run.evaluations_to(1e-20) <= 1.5 * next(n for n, v in enumerate(values, 1) if v <= 1e-20)


def test_convergence_is_superlinear():
    """At most 8 distances from the minimum lie between 1e-2 and 1e-14, and the last ratio of two is below 0.05."""
    run = Run(rosenbrock, start(2), max_iter=1, max_eval=20)
    distances = []
    for _ in range(45):
        run.step()
        distances.append((run.x - 1).norm().item())
    close = [d for d in distances if 1e-14 < d < 1e-2]
    ratios = [b / a for a, b in itertools.pairwise(close)]
    assert ratios[-1] < 0.05
    assert len(close) <= 8


def test_ill_conditioned_quadratic_against_scipys_bfgs():
    hessian = ill_conditioned()
    x0 = torch.ones(len(hessian), dtype=DOUBLE)
    found = scipy.optimize.minimize(
        lambda x: 0.5 * x @ hessian.numpy() @ x, x0.numpy(), jac=lambda x: hessian.numpy() @ x, method="BFGS"
    )
    run = Run(lambda x: 0.5 * x @ hessian @ x, x0).step()
    assert found.fun < 1e-8
    assert 0.5 * run.x @ hessian @ run.x < 1e-20
    assert run.evaluations_to(found.fun) < 500


@pytest.mark.parametrize("power", [-200, -60, 60, 200])
def test_scale_of_the_loss_changes_no_bit(power):
    plain, scaled = Run(rosenbrock, start(6)), Run(lambda x: 2.0**power * rosenbrock(x), start(6))
    for run in (plain, scaled):
        for group in run.optimizer.param_groups:
            group["max_iter"] = 40
        run.step()
    assert torch.equal(plain.x, scaled.x)


def test_two_evaluations_are_enough_for_most_iterations():
    run = Run(rosenbrock, start(50)).step()
    assert run.state["func_evals"] == len(run.losses)
    assert run.state["func_evals"] < 1.6 * run.state["n_iter"]


# -- the update --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stretch", [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_update_is_the_broyden_family_in_its_usual_form(size, stretch):
    """The update satisfies the secant equation, stays positive definite and equals the literature's for B = H^-1."""
    generator = torch.Generator().manual_seed(size)
    factor = torch.randn(size, size, dtype=DOUBLE, generator=generator)
    h = factor @ factor.t() / size + torch.eye(size, dtype=DOUBLE)
    s, y = torch.randn(2, size, dtype=DOUBLE, generator=generator)
    y = stretch * (y if s @ y > 0 else -y)
    b = torch.linalg.inv(h)
    s_b_s, sy, y_h_y = (s @ b @ s).item(), (s @ y).item(), (y @ h @ y).item()
    tau, phi = scaling_and_mixing(sy, s_b_s, y_h_y, size)
    a = max(s_b_s * y_h_y / sy**2 - 1, 0)
    theta = (1 - phi) / (1 + a * phi)  # the inverse of phi = (1 - theta) / (1 + a theta)
    w = math.sqrt(s_b_s) * (y / sy - b @ s / s_b_s)
    expected = tau * (b - torch.outer(b @ s, b @ s) / s_b_s + theta * torch.outer(w, w)) + torch.outer(y, y) / sy

    rounding = 1e-14 * (h.abs() @ y.abs() / tau + s.abs())
    assert update_inverse_hessian(h, s, y, s_b_s)
    assert 0 < tau <= 1
    assert ((h @ y - s).abs() <= rounding + 1e-14 * (h.abs() @ y.abs())).all()
    values = torch.linalg.eigvalsh(h)
    assert values[0] > 0
    assert (h @ expected - torch.eye(size, dtype=DOUBLE)).abs().max() < 1e-12 * size * values[-1] / values[0]


def test_update_refuses_a_matrix_that_is_not_positive_definite():
    h = -torch.eye(3, dtype=DOUBLE)
    assert not update_inverse_hessian(h, torch.ones(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE), 1.0)
    assert torch.equal(h, -torch.eye(3, dtype=DOUBLE))


@pytest.mark.parametrize("s_b_s", [1e-12, 1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("excess", [0.0, 1e-15, 1e-3, 1.0, 1e9])
def test_coefficients_stay_in_the_interval_of_positive_definiteness(s_b_s, excess):
    y_h_y = (1 + excess) / s_b_s  # s^T y is 1, and the product of the two quotients is at least 1
    tau, phi = scaling_and_mixing(1.0, s_b_s, y_h_y, 100)
    a = s_b_s * y_h_y - 1
    assert 0 < tau <= 1
    assert math.isfinite(phi)
    assert 1 + a * phi > 0  # the determinant of the update


def test_state_satisfies_the_secant_equation_and_is_positive_definite():
    run = Run(rosenbrock, start(20), max_iter=1, max_eval=20)
    for _ in range(60):
        before = run.x.detach().clone(), torch.autograd.grad(rosenbrock(run.x), run.x)[0]
        run.step()
        s, y = run.x.detach() - before[0], torch.autograd.grad(rosenbrock(run.x), run.x)[0] - before[1]
        h = run.state["inverse_hessian"]
        assert (h @ y - s).norm() < 1e-9 * s.norm()
        assert torch.linalg.eigvalsh(h)[0] > 0
    assert (h - h.t()).abs().max() < 1e-12 * h.abs().max()


# -- the line search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1e-6, 1e-2, 1.0, 30.0, 1e6])
@pytest.mark.parametrize(
    "function",
    [
        lambda t: (t - 1) ** 2,
        lambda t: -t / (t * t + 2),  # More & Thuente, 1994, function 1
        lambda t: t**4 - 3 * t,
        lambda t: (t - 1) ** 2 if t.item() < 2 else t * NAN,
        lambda t: -torch.log(t + 0.1) + t if t.item() > -0.1 else t * INF,
    ],
)
def test_line_search_satisfies_the_strong_wolfe_conditions(function, first):
    trials = []

    def evaluate(length):
        t = torch.tensor(length, dtype=DOUBLE, requires_grad=True)
        value = function(t)
        (slope,) = torch.autograd.grad(value, t)
        trials.append(length)
        return Trial(length, value.item(), slope.item(), slope)

    origin = evaluate(0.0)
    found = line_search(evaluate, origin, first, 20)
    assert found.value <= origin.value + 1e-4 * found.length * origin.slope
    assert abs(found.slope) <= 0.9 * abs(origin.slope)
    assert len(set(trials)) == len(trials)


def test_line_search_without_a_lower_value_returns_the_start():
    origin = Trial(0.0, 1.0, -1.0, torch.ones(1))
    assert line_search(lambda t: Trial(t, 1.0 + t, 1.0, torch.ones(1)), origin, 1.0, 20) is origin
    assert line_search(lambda t: Trial(t, NAN, NAN, torch.ones(1)), origin, 1.0, 400) is origin  # down to length 0


# -- guards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_fit_is_finite_and_monotone(dtype):
    _, parameters, loss = regression(dtype)
    optimizer = SelfScaledBroyden(parameters, max_iter=1, max_eval=25)
    losses = [loss().item()]
    for _ in range(600):
        optimizer.step(closure_of(loss, parameters))
        losses.append(loss().item())
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 1e-4 * losses[0]
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert optimizer.state[parameters[0]]["inverse_hessian"].isfinite().all()


def test_lower_loss_than_lbfgs_after_as_many_evaluations():
    ends = {}
    for name in ("LBFGS", "Broyden"):
        _, parameters, loss = regression(DOUBLE)
        limits = {"max_iter": 1000, "max_eval": 800}
        if name == "LBFGS":
            optimizer = torch.optim.LBFGS(
                parameters, **limits, history_size=100, line_search_fn="strong_wolfe", tolerance_grad=0,
                tolerance_change=1e-30,
            )  # fmt: skip
        else:
            optimizer = SelfScaledBroyden(parameters, **limits)
        optimizer.step(closure_of(loss, parameters))
        ends[name] = loss().item()
    assert ends["Broyden"] < ends["LBFGS"]


def test_float32_ends_where_no_lower_loss_is_found():
    """A step at the minimum of a float32 loss ends by itself, and the next one changes nothing."""
    run = Run(rosenbrock, start(10, torch.float32), max_iter=10_000, max_eval=100_000).step()
    assert len(run.losses) < 2000
    assert rosenbrock(run.x) < 1e-10
    end, count = run.x.detach().clone(), len(run.losses)
    run.step()
    assert rosenbrock(run.x) <= rosenbrock(end)
    assert len(run.losses) < count + 100


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_first_evaluation_that_is_not_finite_changes_nothing(what):
    x = nn.Parameter(torch.ones(3))
    optimizer = SelfScaledBroyden([x])
    calls = []

    def closure():
        calls.append(1)
        x.grad = torch.full_like(x, NAN if what == "gradient" else 1.0)
        return torch.tensor(INF if what == "loss" else 1.0)

    optimizer.step(closure)
    assert torch.equal(x, torch.ones(3))
    assert len(calls) == 1


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_trials_that_are_not_finite_are_rejected(bad, value):
    """The loss, or only its gradient, is not finite in the first 30 evaluations at points with x[0] > 0.3."""
    met = []

    def function(x):
        loss = rosenbrock(x)
        if x[0] > 0.3 and len(met) < 30:
            met.append(1)
            loss = loss * value if bad == "loss" else loss + (x - x.detach()).sum() * value
            loss = loss if bad == "loss" else loss.detach() + (x * value).sum() - (x * value).sum().detach()
        return loss

    run = Run(function, start(4)).step()
    assert met
    assert run.x.isfinite().all()
    assert rosenbrock(run.x) < 1e-20


def test_trials_that_are_never_finite_leave_the_start():
    x0 = start(4)
    run = Run(lambda x: rosenbrock(x) * (1.0 if torch.equal(x, x0) else NAN), x0).step()
    assert torch.equal(run.x, x0)
    assert len(run.losses) < 50


def test_loss_without_curvature_is_followed_without_updates():
    run = Run(lambda x: x.sum(), torch.zeros(3, dtype=DOUBLE), max_iter=5, max_eval=100).step()
    assert run.x.isfinite().all()
    assert (run.x < -10).all()
    assert run.state["updates"] == 0


@pytest.mark.parametrize("max_eval", range(1, 12))
def test_no_step_ends_at_a_worse_point_or_evaluates_too_often(max_eval):
    run = Run(rosenbrock, start(6), max_eval=max_eval)
    for _ in range(10):
        before, count = rosenbrock(run.x).item(), len(run.losses)
        run.step()
        assert rosenbrock(run.x).item() <= before
        assert len(run.losses) - count <= max_eval


def test_interrupted_step_ends_at_an_accepted_point():
    x0 = start(6)
    run = Run(rosenbrock, x0)

    def closure():
        if len(run.losses) == 21:
            raise KeyboardInterrupt
        return run.closure()

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(closure)
    assert rosenbrock(run.x).item() in run.losses
    assert rosenbrock(run.x) < rosenbrock(x0)


def test_parameters_without_gradient_stay_as_they_are():
    """The loss does not depend on one parameter, and another one does not require a gradient."""
    frozen, unused = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(3))
    x = nn.Parameter(start(2))
    optimizer = SelfScaledBroyden([frozen, x, unused], max_iter=300)
    optimizer.step(closure_of(lambda: rosenbrock(x), [x]))
    assert torch.equal(frozen, torch.ones(2))
    assert torch.equal(unused, torch.ones(3))
    assert rosenbrock(x) < 1e-20
    assert optimizer.state[frozen]["inverse_hessian"].isfinite().all()


def test_tolerances_end_a_step():
    base = Run(rosenbrock, start(4)).step()
    for options in ({"tolerance_grad": 1e-3}, {"tolerance_change": 1e-4}):
        run = Run(rosenbrock, start(4), **options).step()
        assert len(run.losses) < len(base.losses)
        assert rosenbrock(run.x) < 1e-4


def test_minimum_ends_a_step_after_one_evaluation():
    run = Run(rosenbrock, torch.ones(4, dtype=DOUBLE)).step()
    assert len(run.losses) == 1


def test_step_returns_the_first_loss():
    run = Run(rosenbrock, start(4))
    assert run.optimizer.step(run.closure).item() == rosenbrock(start(4)).item()


def test_parameters_that_are_not_contiguous():
    x = nn.Parameter(start(6).reshape(2, 3).t())
    optimizer = SelfScaledBroyden([x], max_iter=500)
    optimizer.step(closure_of(lambda: rosenbrock(x.reshape(-1)), [x]))
    assert (x - 1).abs().max() < 1e-10 or rosenbrock(x.reshape(-1)) < 4  # the second is the local minimum


# -- states ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("way", ["load_state_dict", "file", "deepcopy", "pickle"])
def test_resumed_run_gives_the_same_bits(dtype, way):
    run = Run(rosenbrock, start(10, dtype), max_iter=15, max_eval=30).step()
    if way in ("deepcopy", "pickle"):
        pair = (run.optimizer, run.x)
        optimizer, x = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
        assert optimizer.param_groups[0]["params"][0] is x
    else:
        saved = run.optimizer.state_dict()
        if way == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        x = nn.Parameter(run.x.detach().clone())
        optimizer = SelfScaledBroyden([x])
        optimizer.load_state_dict(saved)
    assert optimizer.state[x]["inverse_hessian"].dtype == DOUBLE
    for _ in range(2):
        run.step()
        optimizer.step(closure_of(lambda: rosenbrock(x), [x]))
    assert torch.equal(run.x, x)
    assert torch.equal(run.state["inverse_hessian"], optimizer.state[x]["inverse_hessian"])


def test_many_short_steps_give_the_bits_of_one_long_step():
    whole, pieces = Run(rosenbrock, start(10), max_iter=60, max_eval=10_000).step(), Run(rosenbrock, start(10))
    pieces.optimizer.param_groups[0].update(max_iter=1, max_eval=100)
    for _ in range(60):
        pieces.step()
    assert torch.equal(whole.x, pieces.x)


def test_state_of_another_size_is_refused():
    saved = Run(rosenbrock, start(4)).step().optimizer.state_dict()
    other = Run(rosenbrock, start(6))
    with pytest.raises(ValueError, match="for 4 parameters, but params have 6"):
        other.optimizer.load_state_dict(saved)
    assert not other.optimizer.state


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": NAN}, "lr must be positive and finite, got nan"),
        ({"lr": INF}, "lr must be positive and finite, got inf"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"max_eval": 0}, "max_eval must be at least 1, got 0"),
        ({"tolerance_grad": -1.0}, "tolerance_grad must not be negative, got -1.0"),
        ({"tolerance_change": NAN}, "tolerance_change must not be negative, got nan"),
        ({"max_parameters": 3}, "1 to max_parameters=3 elements, got 4"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SelfScaledBroyden([nn.Parameter(torch.ones(4))], **options)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([parameter(2, dtype=torch.complex64)], TypeError, "float32 or float64, got torch.complex64"),
        ([parameter(2, dtype=torch.bfloat16)], TypeError, "float32 or float64, got torch.bfloat16"),
        ([parameter(2), parameter(2, device="meta")], ValueError, "one device.*cpu, meta"),
        ([parameter(100_000)], ValueError, r"got 100000, whose inverse Hessian takes 80 GB.*LBFGS"),
        ([parameter(0)], ValueError, "1 to max_parameters=5000 elements, got 0"),
        ([{"params": [parameter(2)]}, {"params": [parameter(2)]}], ValueError, "one group"),
        ([], ValueError, "empty"),
    ],
)
def test_wrong_parameters(params, error, message):
    with pytest.raises(error, match=message):
        SelfScaledBroyden(params)


def test_closures_that_are_wrong_change_nothing():
    x = nn.Parameter(torch.ones(3))
    embedding = nn.Embedding(3, 1, sparse=True)

    def sparse():
        loss = embedding(torch.tensor([1])).square().sum()
        loss.backward()
        return loss

    for closure, parameters, error, message in (
        (None, [x], TypeError, "closure must be a function that returns the loss, got NoneType"),
        (lambda: None, [x], TypeError, "closure must return the loss, got None"),
        (lambda: x.sum(), [x], ValueError, "closure must call backward"),
        (sparse, list(embedding.parameters()), TypeError, "must be dense, got a sparse one"),
    ):
        before = [parameter.detach().clone() for parameter in parameters]
        with pytest.raises(error, match=message):
            SelfScaledBroyden(parameters).step(closure)
        assert all(map(torch.equal, parameters, before))


def test_oracle_of_rosenbrock():
    x = np.linspace(-1, 2, 7)
    assert rosenbrock(torch.tensor(x)).item() == pytest.approx(scipy.optimize.rosen(x))
