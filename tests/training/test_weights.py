"""Weights of rows and weight decay: the objective, all optimizers, and the estimates of the decay from the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastkan import KAN, KANLinear
from fastkan.optim import LevenbergMarquardt, binary_cross_entropy, cross_entropy
from fastkan.training.data import read_data, with_sample_weight
from fastkan.training.objective import Objective

ROWS = 40
GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(ROWS, 2, generator=GENERATOR, dtype=torch.float64) * 2 - 1
VALUES = torch.stack([X[:, 0] ** 2, X.prod(1)], 1)
CLASSES = torch.randint(2, (ROWS,), generator=GENERATOR)
WEIGHT = torch.randint(0, 4, (ROWS,), generator=GENERATOR)
LOSSES: dict[str, tuple[Any, Tensor]] = {
    "squares": (None, VALUES),
    "cross entropy": (nn.CrossEntropyLoss(), CLASSES),
    "binary": (nn.BCEWithLogitsLoss(), (VALUES > 0.1).double()),
}


def network(**options: Any) -> KAN:
    return KAN([2, 2, 2], grid=3, seed=0, dtype=torch.float64, **options)


def row_loss(name: str, prediction: Tensor, y: Tensor) -> Tensor:
    if name == "squares":
        return ((prediction - y) ** 2).sum(1) / 2
    if name == "cross entropy":
        return -prediction.log_softmax(1)[torch.arange(len(y)), y]
    p = prediction.sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log()).sum(1) / 2


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("route", ["usual", "hooked"])
def test_value_and_gradient_of_the_objective(name: str, route: str) -> None:
    """A hook makes the objective use autograd; without one, the mean squared error is computed on arrays."""
    loss, y = LOSSES[name]
    model = network()
    if route == "hooked":
        model.register_forward_hook(lambda *_: None)
    objective = Objective(model, loss, None, 0.0, (False, 10.0))
    objective.sample_weight, objective.weight_decay = WEIGHT.double(), 0.3
    parameters = [p for p in model.parameters() if p.requires_grad]
    with objective.step(X, y):
        found = objective.value_and_grad(X, y, parameters, 2.0)
    gradients = [p.grad for p in parameters]
    weights = [w for layer in model.layers for w in (layer.spline_weight, layer.base_weight)]
    decay = 0.15 * sum((w**2).sum() for w in weights)
    expected = 2.0 * ((WEIGHT * row_loss(name, model(X), y)).sum() / ROWS + decay)
    assert found == pytest.approx(expected.item(), rel=1e-12)
    assert objective(X, y).item() == pytest.approx(expected.item() / 2, rel=1e-12)
    assert float(objective.evaluated[0]) == pytest.approx((expected / 2 - decay).item(), rel=1e-11)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("opt", ["LM", "LBFGS", "Adam"])
def test_a_row_of_weight_two_is_two_rows(opt: str, name: str) -> None:
    loss, y = LOSSES[name]
    steps = 1 if opt == "LBFGS" else 3  # further steps of L-BFGS, of 20 iterations each, amplify rounding errors
    options = {"opt": opt, "steps": steps, "loss_fn": loss, "progress": False, "lr": 0.1 if opt == "Adam" else 1.0}
    weighted, repeated, unweighted = network(), network(), network()
    found = weighted.fit(X.numpy(), y.numpy(), **options, sample_weight=WEIGHT.tolist())
    expected = repeated.fit(X.repeat_interleave(WEIGHT, 0), y.repeat_interleave(WEIGHT, 0), **options)
    np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=1e-9)
    for one, other in zip(weighted.state_dict().values(), repeated.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    unweighted.fit(X, y, **options)
    assert (unweighted.predict(X) - weighted.predict(X)).abs().max() > 1e-4


def test_restarts_use_the_weights() -> None:
    """A first fit by LM that is stuck starts again from other parameters."""
    y = torch.exp(torch.sin(torch.pi * X[:, :1]) + X[:, 1:] ** 2)
    one, other = (KAN([2, 1, 1], seed=0, dtype=torch.float64) for _ in "ab")
    found = one.fit(X, y, opt="LM", steps=9, sample_weight=WEIGHT, progress=False)
    rows = [part.repeat_interleave(WEIGHT, 0) for part in (X, y)]
    expected = other.fit(*rows, opt="LM", steps=9, progress=False)
    np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=1e-4)


def test_batches_carry_weights_of_mean_one() -> None:
    data = with_sample_weight(read_data((X, VALUES), in_features=2, out_features=2, dtype=torch.float64), WEIGHT)
    kept = WEIGHT > 0
    assert torch.equal(data.train_input, X[kept])
    assert data.total_weight == WEIGHT.sum()
    x, y, weight = next(data.batches())
    assert weight.mean() == pytest.approx(1)
    torch.testing.assert_close(weight, WEIGHT[kept] / WEIGHT[kept].double().mean())
    parts = [torch.cat(found) for found in zip(*data.one_pass(7))]
    assert all(map(torch.equal, parts, (x, y, weight)))
    for x, y, weight in (next(data.batches(5, seed)) for seed in range(3)):
        for row, label, w in zip(x, y, weight):
            place = int((row == X).all(1).nonzero())
            assert torch.equal(label, VALUES[place])
            assert w == pytest.approx(float(WEIGHT[place] / WEIGHT[kept].double().mean()))


def test_small_weights_are_scaled_to_a_mean_of_one() -> None:
    data = with_sample_weight(read_data((X, VALUES), in_features=2, out_features=2), WEIGHT / 1000)
    assert data.total_weight == pytest.approx(int((WEIGHT > 0).sum()))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (WEIGHT[1:], r"sample_weight must have the shape \[40\], got \[39\]"),
        (-WEIGHT, "sample_weight must have no negative value"),
        (0 * WEIGHT, "sample_weight must have no negative value and at least one positive value"),
        (WEIGHT / 0.0, "sample_weight must be finite"),
    ],
)
def test_bad_weights_are_refused(weight: Tensor, message: str) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.fit(X, VALUES, sample_weight=weight, progress=False)
    with pytest.raises(ValueError, match=message):
        model.update_grid(X, sample_weight=weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_weights_are_refused() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, VALUES), 10)
    with pytest.raises(ValueError, match="sample_weight needs a dataset whose rows are known"):
        network().fit(loader, sample_weight=WEIGHT, progress=False)
    with pytest.raises(ValueError, match="another loss_fn has to weight the rows itself"):
        network().fit(X, VALUES, loss_fn=nn.L1Loss(), sample_weight=WEIGHT, progress=False)
    with pytest.raises(ValueError, match="weight_decay='auto' needs opt='LM', got 'LBFGS'"):
        network().fit(X, VALUES, opt="LBFGS", weight_decay="auto", progress=False)
    with pytest.raises(TypeError, match="weight_decay must be a number"):
        network().fit(X, VALUES, weight_decay="much", progress=False)


@pytest.mark.parametrize("grid_eps", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("outside", ["zero", "linear"])
def test_update_grid_at_weighted_samples(grid_eps: float, outside: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    x[:, 2] = x[:, 2].round()  # repeated values
    weight = torch.randint(0, 5, (200,), generator=generator)
    torch.manual_seed(0)
    one = KANLinear(3, 2, outside=outside, dtype=torch.float64)
    other, plain = (KANLinear(3, 2, outside=outside, dtype=torch.float64) for _ in "ab")
    for layer in (other, plain):
        layer.load_state_dict(one.state_dict())
    one.update_grid(x.view(2, 100, 3), grid_eps=grid_eps, sample_weight=weight.view(2, 100))
    other.update_grid(x.repeat_interleave(weight, 0), grid_eps=grid_eps)
    torch.testing.assert_close(one.knots, other.knots, rtol=1e-12, atol=1e-12)
    # Most splines of the last input have no samples; rounding errors there are divided by the small weight of anchors.
    torch.testing.assert_close(one.spline_weight[:, :2], other.spline_weight[:, :2], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one(x), other(x), rtol=1e-8, atol=1e-9)
    plain.update_grid(x, grid_eps=grid_eps)
    assert not torch.allclose(plain.spline_weight, one.spline_weight, rtol=1e-6)


# -- Levenberg-Marquardt --------------------------------------------------------------------------------


def features(layer: KANLinear) -> np.ndarray:
    """The derivatives ``[N, K]`` of the outputs of a layer with one output with respect to its spline weights."""
    columns = []
    for place in range(layer.spline_weight.numel()):
        unit = torch.zeros_like(layer.spline_weight).flatten()
        unit[place] = 1
        with torch.no_grad():
            saved = layer.spline_weight.clone()
            layer.spline_weight.copy_(unit.view_as(saved))
            columns.append(layer(X)[:, 0].numpy())
            layer.spline_weight.copy_(saved)
    return np.stack(columns, 1)


def test_a_step_with_weight_decay_solves_a_ridge_regression() -> None:
    layer = KANLinear(2, 1, base="none", dtype=torch.float64)
    a, y = features(layer), VALUES[:, 1]
    optimizer = LevenbergMarquardt(layer, damping=1e-14, weight_decay=0.2)
    for _ in range(2):
        cost = optimizer.step(lambda: layer(X)[:, 0] - y)
    solution = np.linalg.solve(a.T @ a + 0.2 * np.eye(a.shape[1]), a.T @ y.numpy())
    np.testing.assert_allclose(layer.spline_weight.detach().flatten().numpy(), solution, rtol=1e-9)
    expected = 0.5 * np.sum((a @ solution - y.numpy()) ** 2) + 0.1 * solution @ solution
    assert cost == pytest.approx(expected, rel=1e-12)
    assert optimizer.decay_cost() == pytest.approx(0.1 * solution @ solution, rel=1e-9)
    inverse = np.linalg.inv(a.T @ a + 0.2 * np.eye(a.shape[1])).diagonal()
    np.testing.assert_allclose(optimizer.variances().numpy(), inverse, rtol=1e-9)


@pytest.mark.parametrize("options", [{"max_dense": 0}, {}], ids=["conjugate gradients", "stream"])
def test_weight_decay_without_a_matrix(options: dict[str, Any]) -> None:
    layer = KANLinear(2, 1, base="none", dtype=torch.float64)
    a, y = features(layer), VALUES[:, 1]
    decay = torch.linspace(0.1, 1, a.shape[1], dtype=torch.float64)
    optimizer = LevenbergMarquardt(layer, weight_decay=decay, **options)
    for _ in range(25):
        optimizer.step(lambda: (layer(x)[:, 0] - z for x, z in zip(X.split(15), y.split(15))))
    solution = np.linalg.solve(a.T @ a + np.diag(decay), a.T @ y.numpy())
    np.testing.assert_allclose(layer.spline_weight.detach().flatten().numpy(), solution, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "classes"])
def test_a_step_on_weighted_cross_entropies_is_newtons(kind: str) -> None:
    """The outputs are linear in the parameters, so the Gauss-Newton matrix is the Hessian matrix."""
    layer = nn.Linear(2, 2, dtype=torch.float64)
    weight = WEIGHT.double() + 0.5
    labels = (VALUES > 0.1).double() if kind == "binary" else CLASSES

    def total(flat: Tensor) -> Tensor:
        outputs = X @ flat[:4].view(2, 2).t() + flat[4:]
        name = {"binary": "binary", "classes": "cross entropy"}[kind]
        return (weight * row_loss(name, outputs, labels)).sum() * (2 if kind == "binary" else 1)

    theta = torch.cat([p.detach().flatten() for p in layer.parameters()])
    decay = 0.1
    gradient = torch.autograd.functional.jacobian(total, theta) + decay * theta
    hessian = torch.autograd.functional.hessian(total, theta) + decay * torch.eye(6, dtype=torch.float64)
    expected = theta - torch.linalg.solve(hessian, gradient)
    term = binary_cross_entropy if kind == "binary" else cross_entropy
    optimizer = LevenbergMarquardt(layer, damping=1e-14, weight_decay=decay, acceleration=False)
    cost = optimizer.step(lambda: term(layer(X), labels, weight))
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in layer.parameters()]), expected)
    assert cost == pytest.approx(float(total(expected) + 0.5 * decay * expected.square().sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: binary_cross_entropy(z, CLASSES), r"labels must be a tensor \[40, 2\]"),
        (lambda z: binary_cross_entropy(z, 2 + 0 * z), "labels must be from 0 to 1, got 2 to 2"),
        (lambda z: binary_cross_entropy(z[:, 0], z[:, 0]), r"logits must be a floating-point tensor \[M, C\]"),
        (lambda z: cross_entropy(z, CLASSES, torch.ones(3)), "weight must be a positive number or a tensor of 40"),
        (lambda z: cross_entropy(z, CLASSES, WEIGHT.double()), "weight must be a positive number or a tensor of 40"),
        (lambda z: LevenbergMarquardt([nn.Parameter(z)], weight_decay=torch.ones(3)), r"a number or a tensor \[80\]"),
        (
            lambda z: LevenbergMarquardt([nn.Parameter(z)], weight_decay=-torch.ones(80)),
            "weight_decay must be a number",
        ),
    ],
)
def test_bad_arguments_of_terms(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(VALUES.clone())


def test_the_estimated_decay_is_that_of_bayesian_ridge_regression() -> None:
    """The outputs are linear in the coefficients of one group, for which scikit-learn maximizes the evidence too."""
    bayesian = pytest.importorskip("sklearn.linear_model").BayesianRidge
    x = X[:, :1]
    y = torch.sin(2 * x) + 0.3 * torch.randn(ROWS, 1, generator=GENERATOR, dtype=torch.float64)
    model = KAN([1, 1], grid=4, base_fun="zero", sp_trainable=False, seed=0, dtype=torch.float64)
    options: dict[str, Any] = {"opt": "LM", "weight_decay": "auto", "update_grid": False, "progress": False}
    results = model.fit(x, y, steps=200, **options)
    layer = model.layers[0]
    a = np.stack([_with_one(layer, place)(x)[:, 0].detach().numpy() for place in range(7)], 1)
    oracle = bayesian(fit_intercept=False, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, max_iter=3000, tol=1e-12)
    oracle.fit(a, y[:, 0].numpy())
    np.testing.assert_allclose(layer.spline_weight.detach().flatten().numpy(), oracle.coef_, rtol=2e-3)
    residuals = y[:, 0].numpy() - a @ oracle.coef_
    assert results["train_loss"][-1] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-4)


def _with_one(layer: KANLinear, place: int) -> KANLinear:
    """A copy of a layer in which one spline coefficient is 1 and all others are 0."""
    other = KANLinear(1, 1, layer.grid_size, base="none", dtype=torch.float64)
    with torch.no_grad():
        other.spline_weight.zero_()[place] = 1
    return other
