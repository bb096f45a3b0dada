"""The derivatives of a scalar function of each row, and its Laplacian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacrev, vmap

from fastkan import KAN
from fastkan.functional import derivatives, laplacian
from fastkan_kernels import record_rows

D = torch.float64


def network(order: int = 3, **options) -> KAN:
    return KAN(width=[2, 3, 1], grid=4, k=order, seed=0, dtype=D, **options)


def bordered(model: KAN):
    """Return a function that is 0 on the border of the square, as in a problem with a hard border condition."""
    return lambda x: (1 - x**2).prod(1, keepdim=True) * model(x)


def rows(count: int = 20) -> Tensor:
    return 2.4 * torch.rand(count, 2, generator=torch.Generator().manual_seed(1), dtype=D) - 1.2


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_a_network_has_the_derivatives_of_torch_func(order: int) -> None:
    u, x = bordered(network(order)), rows()

    def point(p: Tensor) -> Tensor:
        return u(p[None])[0, 0]

    value, gradient, second = derivatives(u, x)
    torch.testing.assert_close(value, vmap(point)(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, vmap(jacrev(point))(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second, vmap(hessian(point))(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(laplacian(u, x), second[:, 0, 0] + second[:, 1, 1], rtol=1e-14, atol=1e-14)
    chosen = derivatives(u, x, columns=[1]).hessian
    assert chosen.shape == (20, 1, 2)
    assert torch.equal(chosen[:, 0], second[:, 1])


def test_closed_forms() -> None:
    x = rows().float()
    a, b = x.T
    for u in (lambda x: x[:, 0] ** 3 * x[:, 1], lambda x: x[:, :1] ** 3 * x[:, 1:]):
        value, gradient, second = derivatives(u, x)
        torch.testing.assert_close(value, a**3 * b)
        torch.testing.assert_close(gradient, torch.stack([3 * a**2 * b, a**3], 1))
        torch.testing.assert_close(second.flatten(1), torch.stack([6 * a * b, 3 * a**2, 3 * a**2, 0 * a], 1))
        torch.testing.assert_close(laplacian(u, x), 6 * a * b)


@pytest.mark.parametrize("u", [lambda x: 2 * x[:, 1], lambda x: x.sum(1) ** 2], ids=["linear", "square"])
def test_constant_derivatives(u) -> None:
    """Autograd has no graph for the derivatives of a constant gradient."""
    second = 2.0 if u(torch.ones(1, 2)) == 4 else 0.0
    assert (derivatives(u, rows()).hessian == second).all()
    assert (laplacian(u, rows()) == 2 * second).all()


def test_results_are_differentiable_with_respect_to_parameters_and_x() -> None:
    model, x = network(), rows()
    u, parameters = bordered(model), list(model.layers.parameters())

    def by_hand() -> Tensor:
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(u(at).sum(), at, create_graph=True)
        return sum(torch.autograd.grad(slope[:, i].sum(), at, create_graph=True)[0][:, i] for i in range(2))

    assert torch.equal(laplacian(u, x), by_hand())
    found, expected = (torch.autograd.grad(f.square().sum(), parameters) for f in (laplacian(u, x), by_hand()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in parameters)

    at = x.clone().requires_grad_()
    (third,) = torch.autograd.grad(laplacian(lambda x: x[:, 0] ** 3 * x[:, 1], at).sum(), at)
    torch.testing.assert_close(third, 6 * x.flip(1))
    torch.testing.assert_close(
        laplacian(lambda x: laplacian(lambda x: x[:, 0] ** 4, x), x), torch.full_like(x[:, 0], 24)
    )


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_values_are_the_same_and_need_no_graph(off) -> None:
    u, x = bordered(network()), rows()
    expected = derivatives(u, x)
    with off():
        for given in (x, x.clone(), x.clone().requires_grad_()):
            found = derivatives(u, given)
            assert not any(each.requires_grad for each in found)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_no_rows_and_no_columns() -> None:
    u = bordered(network())
    assert [each.shape for each in derivatives(u, rows(0))] == [(0,), (0, 2), (0, 2, 2)]
    assert derivatives(u, rows(), columns=[]).hessian.shape == (20, 0, 2)


def test_rows_of_a_laplacian_have_an_exact_jacobian() -> None:
    model, x = network(), rows()
    u, parameters = bordered(model), list(model.layers.parameters())
    with record_rows(parameters) as record:
        found = record.jacobian(laplacian(u, x)).dense()
    expected = [
        torch.cat([each.flatten() for each in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in laplacian(u, x)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("u", "x", "columns", "error"),
    [
        (network(), rows().long(), None, "x must be float16.*got torch.int64"),
        (network(), [[1.0, 2.0]], None, "x must be a torch.Tensor, got list"),
        (network(), rows()[0], None, r"x must have the shape \[rows, columns\], got \[2\]"),
        (1.0, rows(), None, "u must be a function, got"),
        (lambda x: x, rows(), None, r"u\(x\) must have the shape \[20\] or \[20, 1\], got \[20, 2\]"),
        (lambda x: x.sum(), rows(), None, r"u\(x\) must have the shape \[20\] or \[20, 1\], got \[\]"),
        (lambda x: 1.0, rows(), None, r"u\(x\) must be a torch.Tensor, got float"),
        (lambda x: x.detach()[:, 0], rows(), None, r"u\(x\) does not depend on x"),
        (lambda x: network()(rows()), rows(), None, r"u\(x\) does not depend on x"),
        (network(), rows(), [2], r"columns must be below 2, the number of columns of x, got \[2\]"),
        (network(), rows(), [-1], r"columns\[0\] must be at least 0, got -1"),
    ],
)
def test_bad_arguments(u, x, columns, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        derivatives(u, x, columns)
