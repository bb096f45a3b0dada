"""The Levenberg-Marquardt optimizer: steps, states, blocks, conjugate gradients, cross entropy and bad input."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import network as spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as torch_cross_entropy

from fastkan import KAN, KANLinear
from fastkan.functional import laplacian
from fastkan.optim import LevenbergMarquardt
from fastkan.optim import levenberg_marquardt as module
from fastkan.optim.levenberg_marquardt import MAX_DAMPING, MIN_DAMPING, cross_entropy
from fastkan_kernels import RowJacobian, recorder

D = torch.float64


def network(width=(2, 3, 1), dtype=D, **options: Any) -> KAN:
    return KAN(width=list(width), seed=0, dtype=dtype, **{"grid": 4, **options})


def data(rows: int = 200, dtype=D) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(0), dtype=D) - 1
    return x.to(dtype), (torch.sin(3 * x[:, :1]) + x[:, 1:] ** 2).to(dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def values(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in trained(model)])


def cost_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 0.5 * float((model(x) - y).double().square().sum())


def fit(steps: int = 6, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, LevenbergMarquardt]:
    model = network() if model is None else model
    x, y = data()
    optimizer = LevenbergMarquardt(model, **options)
    for _ in range(steps):
        optimizer.step(lambda: model(x) - y)
    return model, optimizer


def jacobian(outputs: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in outputs.flatten()]
    return torch.stack([torch.cat([each.flatten() for each in row]) for row in rows])


def used(damping: float, trials: int) -> float:
    """The damping of the last trial, which grows by the factors 2, 4, 8, ..."""
    return damping * 2 ** (trials * (trials - 1) / 2)


def damping_matrix(diagonal: Tensor, damping: float) -> Tensor:
    """The damping times D, in which no element is smaller than the damping (at most 1) times the largest element."""
    return damping * diagonal.clamp_min(max(1e-10, min(1.0, damping)) * float(diagonal.max())).diag()


# -- steps ------------------------------------------------------------------------------------------


def test_a_step_minimizes_the_damped_model() -> None:
    model, (x, y) = spread(width=(2, 3, 1)), data()
    before = values(model)
    j = jacobian(model(x), trained(model))
    r = (model(x) - y).detach().flatten()
    optimizer = LevenbergMarquardt(model, damping=0.5, acceleration=False)
    cost = optimizer.step(lambda: model(x) - y)
    report, gram = optimizer.report, j.t() @ j
    damping = used(0.5, report.trials)
    delta = torch.linalg.solve(gram + damping_matrix(gram.diagonal(), damping), -j.t() @ r)
    torch.testing.assert_close(values(model) - before, delta, rtol=1e-8, atol=1e-10)

    predicted = 0.5 * float(r @ r) - 0.5 * float((r + j @ delta).square().sum())
    assert report.accepted
    assert report.before == pytest.approx(0.5 * float(r @ r), rel=1e-12)
    assert report.cost == cost == pytest.approx(cost_of(model, x, y), rel=1e-12)
    assert report.gain == pytest.approx((report.before - cost) / predicted, rel=1e-8)
    assert report.damping == pytest.approx(damping * max(1 / 3, 1 - (2 * report.gain - 1) ** 3), rel=1e-12)


def test_acceleration_is_the_second_derivative_along_the_step() -> None:
    """The residuals exp(a) - y have the Jacobian exp(a), and the second derivative along a step d is exp(a) d^2."""
    layer = KANLinear(1, 1, grid_size=1, spline_order=1, base="none", dtype=D)
    with torch.no_grad():
        layer.spline_weight.zero_()
    x = torch.tensor([[-1.0], [1.0]], dtype=D)  # on the knots: each row depends on one weight
    optimizer = LevenbergMarquardt(layer, damping=1e-12)
    optimizer.step(lambda: layer(x).exp() - 1.2)
    h, d = module.DIFFERENCE, 0.2
    accelerated = (2 / h) * ((math.exp(h * d) - 1) / h - d)
    expected = d - 0.5 * accelerated
    torch.testing.assert_close(layer(x), torch.full((2, 1), expected, dtype=D), rtol=1e-9, atol=0)
    assert abs(expected - math.log(1.2)) < abs(d - math.log(1.2)) / 5


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("acceleration", [False, True])
@pytest.mark.parametrize("max_dense", [0, 4096])
@pytest.mark.parametrize("damping", [1e-12, 1e-2, 1e6])
def test_a_step_is_never_worse(damping: float, max_dense: int, acceleration: bool, dtype: torch.dtype) -> None:
    model, (x, y) = network(dtype=dtype), data(dtype=dtype)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.mul_(4)  # The first steps from these parameters are too long.
    optimizer = LevenbergMarquardt(model, damping=damping, max_dense=max_dense, acceleration=acceleration)
    cost = first = cost_of(model, x, y)
    for _ in range(12):
        before = values(model)
        reached = optimizer.step(lambda: model(x) - y)
        report = optimizer.report
        assert reached == pytest.approx(cost_of(model, x, y), rel=1e3 * torch.finfo(dtype).eps)
        assert report.before == pytest.approx(cost, rel=1e3 * torch.finfo(dtype).eps)
        assert report.accepted == (reached < report.before) == (not torch.equal(before, values(model)))
        assert reached <= report.before
        assert MIN_DAMPING <= report.damping <= MAX_DAMPING
        cost = reached
    assert cost < first / (1.5 if damping > 1 else 10)


def test_a_fit_converges() -> None:
    model, optimizer = fit(60)
    x, y = data()
    assert cost_of(model, x, y) < 1e-4
    assert optimizer.report.damping < 1e-4
    dtype = torch.float32
    single, (x, y) = network(dtype=dtype), data(dtype=dtype)
    optimizer = LevenbergMarquardt(single)
    for _ in range(60):
        optimizer.step(lambda: single(x) - y)
    assert cost_of(single, x, y) < 1e-4
    assert all(parameter.dtype == dtype for parameter in single.parameters())


def test_a_poisson_problem_with_a_border() -> None:
    model = network(width=(2, 5, 1), k=5)
    x = 2 * torch.rand(200, 2, dtype=D) - 1
    side = torch.linspace(-1, 1, 20, dtype=D)
    border = torch.cat([torch.stack([side, torch.full_like(side, s)], 1) for s in (-1.0, 1.0)])
    border = torch.cat([border, border.flip(1)])

    def exact(x: Tensor) -> Tensor:
        return (torch.pi * x).sin().prod(1)

    def residuals() -> list[Tensor]:
        return [laplacian(model, x) + 2 * torch.pi**2 * exact(x), 10 * model(border)]

    optimizer = LevenbergMarquardt(model)
    costs = [optimizer.step(residuals) for _ in range(25)]
    assert costs[-1] < 1e-3 * costs[0]
    assert float((model(x)[:, 0] - exact(x)).detach().abs().max()) < 0.02


@pytest.mark.parametrize("max_dense", [0, 4096])
def test_a_step_from_a_minimum_changes_nothing(max_dense: int) -> None:
    model, x = network(), data()[0]
    y = model(x).detach()
    before = values(model)
    optimizer = LevenbergMarquardt(model, max_dense=max_dense)
    for _ in range(2):
        assert optimizer.step(lambda: model(x) - y) < 1e-28
        assert optimizer.report.trials <= 1
    torch.testing.assert_close(values(model), before, rtol=1e-10, atol=1e-12)
    zero = LevenbergMarquardt(model, max_dense=max_dense)
    assert zero.step(lambda: 0 * model(x)) == 0
    assert zero.report[3:] == (-math.inf, 0, False)


@pytest.mark.parametrize("max_dense", [0, 4096])
def test_parameters_without_influence_do_not_move(max_dense: int) -> None:
    model, (x, y) = network(), data()
    model.layers[0].set_mask(torch.tensor([[1, 0, 1], [1, 0, 1]]))
    before = model.layers[0].spline_weight.detach().clone()
    optimizer = LevenbergMarquardt(model, max_dense=max_dense)
    assert optimizer.step(lambda: model(x) - y) < optimizer.report.before
    assert torch.equal(model.layers[0].spline_weight[:, :, 1], before[:, :, 1])
    for layer in model.layers:
        layer.set_mask(torch.zeros(layer.in_features, layer.out_features))
    before = values(model)
    optimizer.step(lambda: model(x) - y)
    assert not optimizer.report.accepted
    assert torch.equal(values(model), before)


def test_gradients_are_on_inside_no_grad_and_inference_mode() -> None:
    x, y = data()
    expected = values(fit(1)[0])
    for off in (torch.no_grad, torch.inference_mode):
        model = network()
        optimizer = LevenbergMarquardt(model)
        with off():
            optimizer.step(lambda: model(x) - y)  # noqa: B023
        assert torch.equal(values(model), expected)
        model(x).sum().backward()


# -- states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["load_state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("max_dense", [0, 4096])
def test_a_resumed_fit_has_the_same_bits(max_dense: int, way: str) -> None:
    x, y = data()
    model, optimizer = fit(3, max_dense=max_dense, acceleration=False)
    if way in ("deepcopy", "pickle"):
        pair = model, optimizer
        other, resumed = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    else:
        other = network()
        other.load_state_dict(model.state_dict())
        resumed, state = LevenbergMarquardt(other), optimizer.state_dict()
        if way == "file":
            torch.save(state, file := io.BytesIO())
            file.seek(0)
            state = torch.load(file)
        resumed.load_state_dict(state)
    for _ in range(3):
        assert optimizer.step(lambda: model(x) - y) == resumed.step(lambda: other(x) - y)
        assert optimizer.report == resumed.report
    assert torch.equal(values(model), values(other))


# -- blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_dense", [0, 4096])
@pytest.mark.parametrize("kind", ["list", "tuple", "iterator", "shuffled"])
def test_blocks_give_the_step_of_one_tensor(kind: str, max_dense: int) -> None:
    x, y = data()
    options: dict[str, Any] = {"acceleration": False, "max_dense": max_dense, "damping": 100.0}
    expected = fit(2, spread(width=(2, 3, 1)), **options)[0]
    model = spread(width=(2, 3, 1))
    draw = torch.Generator().manual_seed(0)

    def blocks() -> Iterator[Tensor]:
        order = torch.randperm(200, generator=draw) if kind == "shuffled" else torch.arange(200)
        for part in order.split(70):  # the last block is shorter
            yield model(x[part]) - y[part]

    optimizer = LevenbergMarquardt(model, **options)
    for _ in range(2):
        optimizer.step(lambda: list(blocks()) if kind == "list" else tuple(blocks()) if kind == "tuple" else blocks())
    torch.testing.assert_close(values(model), values(expected), rtol=1e-6, atol=1e-8)


def test_blocks_may_have_different_shapes_and_parameters() -> None:
    one, two = KANLinear(2, 1, dtype=D), KANLinear(2, 3, dtype=D)
    x, y = data()
    optimizer = LevenbergMarquardt([*one.parameters(), *two.parameters()])
    costs = [optimizer.step(lambda: [(one(x) - y)[:, 0], two(x[:50]) - 1, one(x[:7]) * two(x[:7])]) for _ in range(5)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


def test_a_tensor_is_evaluated_once_for_the_jacobian() -> None:
    model, (x, y) = network(), data()
    calls = 0

    def residuals() -> Tensor:
        nonlocal calls
        calls += 1
        return model(x) - y

    optimizer = LevenbergMarquardt(model)
    optimizer.step(residuals)
    calls = 0
    optimizer.step(residuals)
    assert calls == 1 + 2 * optimizer.report.trials


# -- conjugate gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1, 3])
def test_conjugate_gradients_solve_the_same_system(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preconditioner is a diagonal (max_dense=0), or a matrix that is computed from a third of the rows."""
    monkeypatch.setattr(module, "CG_TOLERANCE", 1e-12)
    monkeypatch.setattr(module, "CG_ITERATIONS", 500)
    model, (x, y) = spread(width=(2, 3, 1)), data()
    before, j = values(model), jacobian(model(x), trained(model))
    r, gram = (model(x) - y).detach().flatten(), j.t() @ j
    diagonal = share * j[::share].square().sum(0)
    if share > 1:
        monkeypatch.setattr(module, "MAX_PRODUCTS", len(before) ** 2 * 200 // share)
    optimizer = LevenbergMarquardt(model, damping=1.0, acceleration=False, max_dense=0 if share == 1 else 4096)
    optimizer.step(lambda: model(x) - y)
    matrix = gram + damping_matrix(diagonal, used(1.0, optimizer.report.trials))
    torch.testing.assert_close(values(model) - before, torch.linalg.solve(matrix, -j.t() @ r), rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_reach_the_cost_of_the_matrix() -> None:
    x, y = data()
    assert cost_of(fit(40, max_dense=0)[0], x, y) < 2 * cost_of(fit(20)[0], x, y) + 1e-3


# -- cross entropy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_cross_entropy_has_the_exact_gradient_and_matrix(scale: float, dtype: torch.dtype) -> None:
    """Both are exact even if probabilities are below the smallest number of float32."""
    torch.manual_seed(1)
    logits = scale * torch.randn(12, 4, dtype=dtype)
    labels = torch.randint(4, (12,))
    block = cross_entropy(logits, labels, 0.3)
    wide = logits.double().requires_grad_()
    loss = 0.3 * torch_cross_entropy(wide, labels, reduction="sum")
    assert block.cost == pytest.approx(loss.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, wide)
    factors = torch.stack(list(block.upstream)).double()  # [entries, M, C]
    digits = 1e-5 if dtype == torch.float32 else 1e-12
    found = torch.einsum("enc,ne->nc", factors, block.residuals.view(12, 4))
    torch.testing.assert_close(found, gradient, rtol=digits, atol=digits)
    p = wide.detach().softmax(1)
    matrix = 0.3 * (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    torch.testing.assert_close(torch.einsum("enc,end->ncd", factors, factors), matrix, rtol=digits, atol=digits)


def test_a_step_on_a_cross_entropy_is_a_generalized_newton_step() -> None:
    model, x = spread(width=(2, 3, 3)), data(60)[0]
    labels = (x.sum(1) > 0).long() + (x[:, 0] > 0.5).long()
    before, parameters = values(model), trained(model)
    logits = model(x)
    gradient = torch.autograd.grad(torch_cross_entropy(logits, labels), parameters, retain_graph=True)
    slope = torch.cat([each.flatten() for each in gradient])
    p = logits.detach().softmax(1)
    inner = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)) / 60
    j = jacobian(logits, parameters).view(60, 3, -1)
    matrix = torch.einsum("ncp,ncd,ndq->pq", j, inner, j)
    optimizer = LevenbergMarquardt(model, damping=0.2)
    cost = optimizer.step(lambda: cross_entropy(model(x), labels, 1 / 60))
    matrix = matrix + damping_matrix(matrix.diagonal(), used(0.2, optimizer.report.trials))
    torch.testing.assert_close(values(model) - before, torch.linalg.solve(matrix, -slope), rtol=1e-6, atol=1e-8)
    assert cost == pytest.approx(torch_cross_entropy(model(x), labels).item(), rel=1e-12)
    for _ in range(15):
        cost = optimizer.step(lambda: iter([cross_entropy(model(x), labels, 1 / 60)]))
    assert cost < 0.1


@pytest.mark.parametrize(
    ("logits", "labels", "weight", "message"),
    [
        (torch.rand(4), torch.zeros(4).long(), 1, r"logits must .* got Tensor of shape \[4\], torch.float32"),
        (torch.ones(4, 2).long(), torch.zeros(4).long(), 1, r"logits must be a floating-point tensor \[M, C\]"),
        (torch.rand(4, 2).half(), torch.zeros(4).long(), 1, "dtype float32 or float64"),
        (torch.rand(0, 2), torch.zeros(0).long(), 1, "at least one row"),
        (torch.rand(4, 2), torch.zeros(4), 1, r"int64 tensor \[4\], got Tensor of shape \[4\], torch.float32"),
        (torch.rand(4, 2), torch.zeros(3).long(), 1, r"labels must be an int64 tensor \[4\]"),
        (torch.rand(4, 2), torch.tensor([0, 1, 2, 0]), 1, "labels must be from 0 to 1, got 0 to 2"),
        (torch.rand(4, 2), torch.tensor([0, -100, 1, 0]), 1, "labels must be from 0 to 1, got -100 to 1"),
        (torch.rand(4, 2), torch.zeros(4).long(), -1.0, "weight must be above 0"),
        (torch.rand(4, 2), torch.zeros(4).long(), math.nan, "weight must be"),
    ],
)
def test_bad_arguments_of_cross_entropy(logits: Tensor, labels: Tensor, weight: float, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cross_entropy(logits, labels, weight)


# -- bad input --------------------------------------------------------------------------------------


BAD: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda r: None, TypeError, "must return a tensor, or tensors in a list, got NoneType"),
    (lambda r: 1.0, TypeError, "must return a tensor, or tensors in a list, got float"),
    (lambda r: [r, None], TypeError, "residuals must be tensors, got NoneType"),
    (lambda r: iter([r, None]), TypeError, "residuals must be tensors, got NoneType"),
    (lambda r: {"a": r}, TypeError, "residuals must be tensors, got str"),
    (lambda r: [[r]], TypeError, "residuals must be tensors, got list"),
    (lambda r: [], ValueError, "residuals returned no tensors"),
    (lambda r: iter([]), ValueError, "residuals returned no tensors"),
    (lambda r: r.square().mean(), ValueError, r"shape \[M\] or \[M, C\] with at least one row, got \[\]"),
    (lambda r: r.unsqueeze(0), ValueError, r"got \[1, 200, 1\]"),
    (lambda r: r[:0], ValueError, r"got \[0, 1\]"),
    (lambda r: r * 1j, TypeError, "dtype float32 or float64, got torch.complex128"),
    (lambda r: r.long(), TypeError, "dtype float32 or float64, got torch.int64"),
    (lambda r: iter([r.long()]), TypeError, "dtype float32 or float64, got torch.int64"),
    (lambda r: r.bfloat16(), TypeError, "dtype float32 or float64, got torch.bfloat16"),
    (lambda r: r.detach(), ValueError, "do not depend on the parameters"),
    (lambda r: [r, torch.ones(3)], ValueError, "do not depend on the parameters"),
    (lambda r: r * torch.nan, ValueError, "not finite at the current parameters"),
    (lambda r: r / 0, ValueError, "not finite at the current parameters"),
    (lambda r: iter([r, r * torch.nan]), ValueError, "not finite at the current parameters"),
    (lambda r: r - r.mean(), ValueError, "depends on several rows"),
    (lambda r: iter([r, r - r.mean()]), ValueError, "depends on several rows"),
    (lambda r: r[::2], ValueError, "got 100 residuals from a layer that was called with 200 rows"),
    (lambda r: r + torch.rand_like(r), ValueError, "must return the same values when called again"),
    (lambda r: nn.functional.dropout(r), ValueError, "the same values when called again, .* turn off dropout"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "error", "message"), BAD)
def test_bad_residuals(function: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    model, (x, y) = network(), data()
    optimizer = LevenbergMarquardt(model)
    before, state = values(model), copy.deepcopy(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message):
            optimizer.step(lambda: function(model(x) - y))
    assert torch.equal(values(model), before)
    assert optimizer.state_dict() == state
    assert recorder() is None
    assert len(trained(model)) == 6
    assert optimizer.step(lambda: model(x) - y) < optimizer.report.before  # The failed step has left no state.


def test_an_iterator_that_is_exhausted() -> None:
    model, (x, y) = network(), data()
    parts = iter([0, 1])
    with pytest.raises(ValueError, match="return a new iterator in each call"):
        LevenbergMarquardt(model).step(lambda: (model(x) - y for _ in parts))


def test_residuals_under_no_grad() -> None:
    model, (x, y) = network(), data()
    with pytest.raises(ValueError, match=r"gradients are turned off, as by torch.no_grad"):
        LevenbergMarquardt(model).step(torch.no_grad()(lambda: model(x) - y))


def test_residuals_by_torch_func() -> None:
    model, (x, y) = network(), data()
    with pytest.raises(RuntimeError, match=r"use torch\.autograd\.grad"):
        LevenbergMarquardt(model).step(lambda: torch.func.vmap(lambda p: model(p[None])[0])(x) - y)
    assert recorder() is None


def test_residuals_under_autocast() -> None:
    model, (x, y) = network(dtype=torch.float32), data(dtype=torch.float32)

    def residuals() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x) - y

    optimizer = LevenbergMarquardt(model)
    costs = [optimizer.step(residuals) for _ in range(6)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 2


def test_more_parameters_than_residuals() -> None:
    model, (x, y) = network(), data(9)
    optimizer = LevenbergMarquardt(model)
    with pytest.warns(UserWarning, match="there are 9 residuals for 81 parameters"):
        optimizer.step(lambda: model(x) - y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(15):
            cost = optimizer.step(lambda: model(x) - y)
    assert cost < 1e-10


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("acceleration", [False, True])
def test_a_trial_that_is_not_finite_is_rejected(acceleration: bool, value: float) -> None:
    model, (x, y) = network(), data()
    parameters, start = trained(model), values(model)
    limit = float((values(fit(1, damping=1.0)[0]) - start).norm()) / 2

    def distance() -> float:
        return float((torch.cat([parameter.detach().flatten() for parameter in parameters]) - start).norm())

    def residuals() -> Tensor:
        return (model(x) - y) * (value if distance() > limit else 1.0)

    optimizer = LevenbergMarquardt(model, damping=1.0, acceleration=acceleration)
    cost = optimizer.step(residuals)
    assert optimizer.report.trials > 1
    assert optimizer.report.accepted
    assert 0 < distance() <= limit
    assert cost < optimizer.report.before


class Stop(BaseException):
    """An exception that is not derived from Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize(("streams", "call"), [*((False, n) for n in (1, 2, 3)), *((True, n) for n in (1, 2, 3, 4))])
def test_an_exception_leaves_the_parameters_of_the_last_step(
    streams: bool, call: int, error: type[BaseException]
) -> None:
    """The exception occurs in one of the evaluations of a step.

    A step evaluates one tensor for the Jacobian, a trial and the acceleration, or two blocks twice.
    """
    model, (x, y) = network(), data()
    optimizer = LevenbergMarquardt(model)
    optimizer.step(lambda: model(x) - y)
    before, state, calls = values(model), copy.deepcopy(optimizer.state_dict()), 0

    def block() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error("now")
        return model(x) - y

    def residuals() -> Any:
        return (block() for _ in range(2)) if streams else block()

    with pytest.raises(error):
        optimizer.step(residuals)
    assert torch.equal(values(model), before)
    assert optimizer.state_dict() == state
    assert len(trained(model)) == 6
    assert recorder() is None
    optimizer.step(lambda: model(x) - y)
    assert optimizer.report.accepted


@pytest.mark.parametrize("method", ["rmatvec", "gram", "keep"])
@pytest.mark.parametrize("streams", [False, True])
def test_an_interrupt_of_the_algebra(streams: bool, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network(), data()
    optimizer = LevenbergMarquardt(model)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowJacobian, "rmatvec" if streams else method, interrupted)
        with pytest.raises(KeyboardInterrupt) as info:
            optimizer.step(lambda: iter([model(x) - y]) if streams else model(x) - y)
    assert recorder() is None, info  # although the traceback is alive
    assert optimizer.step(lambda: model(x) - y) < optimizer.report.before


def test_another_thread_may_compute_outputs() -> None:
    model, (x, y) = network(), data()
    optimizer, stop, problems = LevenbergMarquardt(model), threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    if not model(x).isfinite().all() or recorder() is not None:
                        problems.append("not finite, or recorded")
            except Exception as error:
                problems.append(repr(error))

    thread = threading.Thread(target=compute)
    thread.start()
    for _ in range(5):
        optimizer.step(lambda: model(x) - y)
    stop.set()
    thread.join()
    assert not problems


def layer() -> KANLinear:
    return KANLinear(2, 1)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ([], {}, "at least one parameter that requires a gradient"),
        (nn.ReLU(), {}, "at least one parameter that requires a gradient"),
        (layer().requires_grad_(False), {}, "at least one parameter that requires a gradient"),
        ([1.0], {}, "params must contain tensors, got float"),
        ([{"params": list(layer().parameters())}], {}, "got groups of parameters"),
        (layer().half(), {}, "dtype float32 or float64 that require a gradient, got torch.float16"),
        (layer().to(torch.bfloat16), {}, "got torch.bfloat16"),
        ([torch.ones(2, dtype=torch.complex64, requires_grad=True)], {}, "got torch.complex64"),
        ([torch.ones(2, requires_grad=True) * 2], {}, "leaf"),
        (KANLinear(2, 1, device="meta"), {}, "params must have values, got parameters on meta"),
        ([*layer().parameters(), *KANLinear(2, 1, device="meta").parameters()], {}, "on meta"),
        (layer(), {"damping": 0}, "damping must be above 0"),
        (layer(), {"damping": math.nan}, "damping must be"),
        (layer(), {"damping": "1"}, "damping must be a number"),
        (layer(), {"max_dense": -1}, "max_dense must be at least 0"),
        (layer(), {"acceleration": 2}, "acceleration must be"),
        (layer(), {"verify": None}, "verify must be"),
    ],
)
def test_bad_arguments(params: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        LevenbergMarquardt(params, **options)


def test_repeated_and_frozen_parameters() -> None:
    model, (x, y) = network(), data()
    repeated = [*model.parameters(), *model.parameters()]
    LevenbergMarquardt(repeated).step(lambda: model(x) - y)
    assert torch.equal(values(model), values(fit(1)[0]))

    model = network()
    optimizer = LevenbergMarquardt(model)
    model.layers[0].spline_weight.requires_grad_(False)
    with pytest.raises(TypeError, match=r"that require a gradient, got .* without requires_grad"):
        optimizer.step(lambda: model(x) - y)
    assert not model.layers[0].spline_weight.requires_grad
    before = model.layers[0].spline_weight.clone()
    LevenbergMarquardt(model).step(lambda: model(x) - y)
    assert torch.equal(model.layers[0].spline_weight, before)
    assert not model.layers[0].spline_weight.requires_grad


def test_other_modules_in_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), KANLinear(3, 4), nn.Linear(4, 1)).double()
    first = cost_of(model, *data())
    fit(25, model)
    assert cost_of(model, *data()) < first / 5
    mixing = nn.Sequential(KANLinear(2, 3), nn.BatchNorm1d(3), KANLinear(3, 1)).double()
    with pytest.raises(ValueError, match="BatchNorm"):
        fit(1, mixing)
    fit(1, mixing.eval())


def test_parameters_of_a_module_are_named_in_errors() -> None:
    x, y = data()
    model = nn.Sequential(KANLinear(2, 3, dtype=D), nn.BatchNorm1d(3, affine=False, dtype=D), KANLinear(3, 1, dtype=D))
    optimizer = LevenbergMarquardt(model)
    with pytest.raises(
        ValueError, match=r"with respect to 0\.spline_weight with the shape \[8, 2, 3\] is not row-wise"
    ):
        optimizer.step(lambda: model(x) - y)
    many = nn.Bilinear(40, 40, 1, dtype=D)
    with pytest.raises(ValueError, match=r"got 1601 in weight \[1, 40, 40\], bias \[1\]"):
        LevenbergMarquardt(many).step(lambda: many(x.repeat(1, 20), x.repeat(1, 20)))
