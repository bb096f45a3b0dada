"""A PINN step, with u_x and u_xx in one loss and its gradient by the weights, on every route.

The loss is sum_n r_n^2 with r = u_xx + u u_y - x y. Of one layer it and its gradient are written out
in float64 NumPy from scipy's splines; of two layers all routes have to agree, and with differences.
"""

from __future__ import annotations

import shutil

import numpy as np
import oracle
import pytest
import torch
from cases import make_case
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from fastkan import KANLinear

KINDS = ("shared", "adapted")
WITH_COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


def residual(u, u_y, u_xx, x):
    return u_xx + u * u_y - x[:, 0] * x[:, 1]


# -- routes: (u, u_y, u_xx) of a network, each [N] ---------------------------------------------------


def by_autograd(network, x):
    u = network(x)[:, 0]
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
    return u, slope[:, 1], curved[:, 0]


def point(network):
    return lambda p: network(p[None])[0, 0]


def by_second(second):
    """The route whose u_xx is an element of ``second`` of u, at each point."""

    def route(network, x):
        u = point(network)
        return vmap(u)(x), vmap(grad(u))(x)[:, 1], vmap(second(u))(x)[:, 0, 0]

    return route


by_hessian = by_second(hessian)
by_reverse_twice = by_second(lambda u: jacrev(jacrev(u)))
by_forward_twice = by_second(lambda u: jacfwd(jacfwd(u)))


def by_jvp_of_jvp(network, x):
    along_x, along_y = torch.zeros_like(x), torch.zeros_like(x)
    along_x[:, 0], along_y[:, 1] = 1, 1

    def u_x(x):
        return jvp(network, (x,), (along_x,))[1]

    return network(x)[:, 0], jvp(network, (x,), (along_y,))[1][:, 0], jvp(u_x, (x,), (along_x,))[1][:, 0]


def by_jvp_of_grad(network, x):
    along_x = torch.zeros_like(x)
    along_x[:, 0] = 1

    def slope(x):
        return grad(lambda x: network(x).sum())(x)

    return network(x)[:, 0], slope(x)[:, 1], jvp(slope, (x,), (along_x,))[1][:, 0]


TRANSFORMS = [by_hessian, by_reverse_twice, by_forward_twice, by_jvp_of_jvp, by_jvp_of_grad]
# vmap of jacfwd inside torch.compile raises in torch 2.13, of tanh too; jvp of jvp is in test_routes.py
COMPILED = [by_autograd, by_reverse_twice, by_jvp_of_grad]


def step(route, network, x, wrap=lambda f: f) -> list[torch.Tensor]:
    """The loss, and its gradients by the parameters and by x."""

    def loss(x):
        return residual(*route(network, x), x).square().sum()

    x = x.clone().requires_grad_()
    parameters = list(network.parameters())
    value = wrap(loss)(x)
    return [value.detach(), *torch.autograd.grad(value, [*parameters, x], materialize_grads=True)]


def compiled(backend: str):
    def wrap(function):
        torch._dynamo.reset()
        return torch.compile(function, backend=backend, fullgraph=True)

    return wrap


@pytest.fixture(autouse=True)
def traced_autograd():
    """torch.compile meets torch.autograd.grad whole only if it is asked to."""
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


# -- one layer, against NumPy -----------------------------------------------------------------------


def one_layer(kind: str):
    o, _ = make_case(kind, rows=14, inputs=2, outputs=1, grid=5)
    x = torch.where(o.x.abs() > 40, 0.3, o.x)  # on knots for the most part, but not so far out
    layer = KANLinear(2, 1, dtype=torch.float64)
    layer.set_knots(o.knots)
    with torch.no_grad():
        layer.spline_weight.copy_(o.weight)
        layer.base_weight.copy_(o.base_weight)
    return layer, o._replace(x=x).array(), x


def expected_step(a, order: int = 3) -> list[np.ndarray]:
    """Loss and gradients in NumPy; P[d] are all features' d-th derivatives, [N, K + 1, 2]."""
    features = [
        np.concatenate([oracle.splines(a.x, a.knots, order, d), oracle.silu(a.x, d)[:, None]], 1) for d in range(4)
    ]
    weight = np.concatenate([a.weight, a.base_weight[None]])[..., 0]
    # phi[d][n, i]: the d-th derivative of input i's edge
    phi = [np.einsum("npi,pi->ni", psi, weight) for psi in features]
    u, u_y, u_xx = phi[0].sum(1), phi[1][:, 1], phi[2][:, 0]
    r = u_xx + u * u_y - a.x[:, 0] * a.x[:, 1]
    by_weight = np.einsum("n,npi->pi", 2 * r * u_y, features[0])
    by_weight[:, 0] += np.einsum("n,np->p", 2 * r, features[2][..., 0])
    by_weight[:, 1] += np.einsum("n,np->p", 2 * r * u, features[1][..., 1])
    r_x, r_y = phi[3][:, 0] + phi[1][:, 0] * u_y - a.x[:, 1], phi[1][:, 1] * u_y + u * phi[2][:, 1] - a.x[:, 0]
    by_x = 2 * r[:, None] * np.stack([r_x, r_y], 1)
    return [np.square(r).sum(), by_weight[:-1, :, None], by_weight[-1, :, None], by_x]


def assert_step(found: list[torch.Tensor], expected: list, rtol: float = 1e-10) -> None:
    for value, want in zip(found, expected, strict=True):
        want = np.asarray(want)
        np.testing.assert_allclose(value.numpy(), want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("route", [by_autograd, *TRANSFORMS])
@pytest.mark.parametrize("kind", KINDS)
def test_eager(kind: str, route) -> None:
    layer, a, x = one_layer(kind)
    assert_step(step(route, layer, x), expected_step(a))


@pytest.mark.parametrize(
    ("kind", "route", "each_backend"),
    [
        ("shared", by_autograd, "cpu"),
        *(("adapted", route, "cpu") for route in COMPILED),
        ("adapted", by_autograd, "triton"),
    ],
    indirect=["each_backend"],
)
def test_compiled(kind: str, route, each_backend: list[str]) -> None:
    layer, a, x = one_layer(kind)
    assert_step(step(route, layer, x, compiled("aot_eager")), expected_step(a))


@WITH_COMPILER
def test_compiled_to_machine_code() -> None:
    layer, a, x = one_layer("adapted")
    assert_step(step(by_autograd, layer, x, compiled("inductor")), expected_step(a))


def test_a_step_broken_into_several_graphs_is_not_silently_wrong() -> None:
    """Without trace_autograd_ops the inner gradients run between graphs, and a compiled graph has no
    second derivative: torch says so."""
    layer, a, x = one_layer("adapted")
    with torch._dynamo.config.patch(trace_autograd_ops=False):
        try:
            found = step(by_autograd, layer, x, lambda f: torch.compile(f, backend="aot_eager"))
        except RuntimeError as error:
            assert "double backward" in str(error)  # noqa: PT017
            return
    assert_step(found, expected_step(a))


def test_the_gradient_by_parameters_through_functional_call() -> None:
    """torch.func all the way: the derivative by the parameters of derivatives by the input."""
    layer, a, x = one_layer("adapted")

    def loss(parameters):
        return residual(*by_reverse_twice(lambda x: functional_call(layer, parameters, x), x), x).square().sum()

    found = grad(loss)({name: p.detach() for name, p in layer.named_parameters()})
    _, splines, base, _ = expected_step(a)
    assert_step([found["spline_weight"], found["base_weight"]], [splines, base])


# -- two layers, whose derivatives mix --------------------------------------------------------------


def two_layers() -> tuple[torch.nn.Module, torch.Tensor]:
    network = torch.nn.Sequential(KANLinear(2, 5, 4, 4), KANLinear(5, 1, 3, 4)).double()
    x = 1.6 * torch.rand(9, 2, dtype=torch.float64) - 0.8
    network[0].update_grid(x, margin=0.3)  # adapted knots before equal ones
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    return network, x


def test_two_layers_agree_with_differences() -> None:
    """Compare the loss's derivative along a random direction of all parameters and x with differences."""
    network, x = two_layers()
    found = step(by_autograd, network, x)
    leaves = [*network.parameters(), x]
    moves = [torch.randn_like(leaf) for leaf in leaves]
    ruled = sum((value * move).sum() for value, move in zip(found[1:], moves, strict=True))

    def moved(share: float) -> torch.Tensor:
        with torch.no_grad():
            for leaf, move in zip(leaves, moves, strict=True):
                leaf += share * move
        value = step(by_autograd, network, x)[0]
        with torch.no_grad():
            for leaf, move in zip(leaves, moves, strict=True):
                leaf -= share * move
        return value

    h = 1e-5
    slope = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    torch.testing.assert_close(ruled, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("route", "each_backend"),
    [*((route, "cpu") for route in TRANSFORMS), (by_hessian, "triton")],
    indirect=["each_backend"],
)
def test_two_layers_by_torch_func(route, each_backend: list[str]) -> None:
    """Transforms go by the reference, ``by_autograd`` by each backend."""
    network, x = two_layers()
    assert_step(step(route, network, x), step(by_autograd, network, x), rtol=1e-9)


def test_two_layers_compiled() -> None:
    network, x = two_layers()
    expected = step(by_autograd, network, x)
    assert_step(step(by_autograd, network, x, compiled("aot_eager")), expected, rtol=1e-9)
