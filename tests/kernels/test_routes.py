"""Every route through autograd gives the numbers of the float64 oracle, or raises: never silence."""

from __future__ import annotations

import shutil

import oracle
import pytest
import torch
from cases import compute, make_case
from oracle import Example
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastkan
from fastkan import KANLinear
from fastkan.functional import kan_linear
from fastkan_kernels import Basis
from fastkan_kernels.autograd import dispatch as routing
from fastkan_kernels.backends.cpu import compiled as cpu_compiled

KINDS = ("shared", "adapted")  # a small layer with equal knots has a route of its own
WITH_COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
COMPILERS = ["aot_eager", pytest.param("inductor", marks=WITH_COMPILER)]


def layer_and_case(kind: str, outputs: int = 3, rows: int = 6) -> tuple[KANLinear, Example, Basis]:
    """A float64 layer of two inputs, and its operands."""
    o, basis = make_case(kind, rows=rows, inputs=2, outputs=outputs, grid=5)
    layer = KANLinear(2, outputs, dtype=torch.float64)
    layer.set_knots(o.knots)
    with torch.no_grad():
        layer.spline_weight.copy_(o.weight)
        layer.base_weight.copy_(o.base_weight)
    return layer, o, basis


def exact(name: str, o: Example, basis: Basis, derivative: int = 0, **operands: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(oracle.exact(name, o._replace(**operands), basis, derivative)[0])


def same(value: torch.Tensor, expected: torch.Tensor) -> None:
    size = float(expected.abs().max())
    torch.testing.assert_close(value.detach(), expected, rtol=1e-10, atol=1e-12 * max(1.0, size))


def compiled(function, backend: str = "aot_eager", fullgraph: bool = True):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=fullgraph)


# -- torch.func and forward mode --------------------------------------------------------------------


HOW = [("shared", lambda f: f), ("adapted", lambda f: f), ("adapted", compiled)]
HOW_IDS = ["shared-eager", "adapted-eager", "adapted-compiled"]


@pytest.mark.parametrize(("kind", "wrap"), HOW, ids=HOW_IDS)
def test_jvp_and_jvp_of_jvp(kind: str, wrap) -> None:
    layer, o, basis = layer_and_case(kind)
    t = torch.randn_like(o.x)

    def once(x: torch.Tensor) -> torch.Tensor:
        return jvp(layer, (x,), (t,))[1]

    def twice(x: torch.Tensor) -> torch.Tensor:
        return jvp(once, (x,), (t,))[1]

    first, second = wrap(lambda x: (once(x), twice(x)))(o.x)
    same(first, exact("F", o, basis, 1, v=t))
    same(second, exact("F", o, basis, 2, v=t * t))


@pytest.mark.parametrize(("kind", "wrap"), HOW, ids=HOW_IDS)
def test_vmap_of_grad_and_of_jacrev(kind: str, wrap) -> None:
    layer, o, basis = layer_and_case(kind)
    slopes = torch.stack(
        [exact("H", o, basis, 1, g=torch.eye(3, dtype=o.x.dtype)[c].expand(6, 3)) for c in range(3)], 1
    )
    total, each = wrap(lambda x: (vmap(grad(lambda x: layer(x).sum()))(x), vmap(jacrev(layer))(x)))(o.x)
    same(total, slopes.sum(1))
    same(each, slopes)
    same(vmap(jacfwd(layer))(o.x), slopes)
    same(vjp(layer, o.x)[1](o.g)[0], exact("H", o, basis, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_hessians(kind: str) -> None:
    """Forward over reverse, reverse over reverse and reverse over forward; inputs don't mix, so it is
    diagonal."""
    layer, o, basis = layer_and_case(kind)
    curved = torch.diag_embed(exact("H", o, basis, 2, g=torch.ones_like(o.g)))

    def u(x: torch.Tensor) -> torch.Tensor:
        return layer(x).sum()

    for second in (hessian(u), jacrev(jacrev(u)), jacrev(jacfwd(u)), jacfwd(jacfwd(u))):
        same(vmap(second)(o.x), curved)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_parameters_of_each_sample(kind: str) -> None:
    layer, o, basis = layer_and_case(kind)
    parameters = dict(layer.named_parameters())

    def u(parameters: dict, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, x).sum()

    found = vmap(grad(u), (None, 0))(parameters, o.x)["spline_weight"]
    for n in range(6):
        one = o._replace(x=o.x[n : n + 1], g=torch.ones(1, 3, dtype=o.x.dtype), v=None)
        same(found[n], exact("G", one, basis))


@pytest.mark.parametrize("derivative", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", "FGH")
def test_forward_mode_levels(name: str, kind: str, derivative: int) -> None:
    """The tangent of each contraction by each operand, against the table in forward mode: a sum."""
    _, o, basis = layer_and_case(kind)
    t = Example(*map(torch.randn_like, o))._replace(knots=None)
    with forward_ad.dual_level():
        dual = Example(*(v if d is None else forward_ad.make_dual(v, d) for v, d in zip(o, t)))
        tangent = forward_ad.unpack_dual(compute(name, dual, basis, derivative)[0]).tangent
    weights = {"weight": t.weight, "base_weight": t.base_weight}
    moves = {"F": ({"v": t.v}, weights), "G": ({"v": t.v}, {"g": t.g}), "H": ({"g": t.g}, weights)}[name]
    by_slots = sum(exact(name, o, basis, derivative, **move) for move in moves)
    along = {} if name == "H" else {"v": o.v * t.x}
    by_x = exact(name, o, basis, derivative + 1, **along) * (t.x if name == "H" else 1)
    same(tangent, by_x + by_slots)


# -- torch.compile and torch.export -----------------------------------------------------------------


@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("seen", ["whole", "decomposed"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_forward_and_backward(kind: str, seen: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small operators are decomposed for the compiler, large ones are called by what it makes."""
    if seen == "whole":
        monkeypatch.setattr(cpu_compiled, "MAX_FEATURES", 0)
    layer, o, basis = layer_and_case(kind)
    x = o.x.clone().requires_grad_()
    y = compiled(layer, backend)(x)
    same(y, exact("F", o, basis, v=None))
    y.backward(o.g)
    splines, base = oracle.exact("G", o._replace(v=None), basis)
    same(layer.spline_weight.grad, torch.from_numpy(splines))
    same(layer.base_weight.grad, torch.from_numpy(base))
    same(x.grad, exact("H", o, basis, 1))


@WITH_COMPILER
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_compiled_by_each_backend(name: str) -> None:
    """At these sizes products come out transposed, and strides are a promise to the compiler."""
    layer, o, basis = layer_and_case("shared", outputs=1, rows=1)
    x = o.x.clone().requires_grad_()
    with fastkan.backend(name):
        y = compiled(layer, "inductor")(x)
        y.backward(o.g)
    same(y, exact("F", o, basis, v=None))
    same(layer.spline_weight.grad, exact("G", o, basis, v=None))
    same(x.grad, exact("H", o, basis, 1))


def test_compiled_once_for_all_numbers_of_rows() -> None:
    layer, o, basis = layer_and_case("adapted", rows=40)
    function = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (2, 7, 40):
        same(function(o.x[:rows]), exact("F", o, basis, v=None)[:rows])


def test_the_compiled_function_follows_the_backend_asked_for() -> None:
    """Code that was compiled for one backend isn't run for another."""
    layer, o, _ = layer_and_case("adapted")
    function = compiled(layer)
    from fastkan_kernels.backends.registry import BACKENDS

    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_compiled, "MAX_FEATURES", 0)  # an operator that is decomposed calls nobody
        for name in ("reference", "cpu"):
            for table in filter(None, (BACKENDS[name].contract, getattr(BACKENDS[name], "compiling", None))):
                plain = table["F"]
                patch.setitem(table, "F", lambda *a, n=name, f=plain, **k: (ran.append(n), f(*a, **k))[1])
        for name in ("auto", "reference", "cpu"):
            with fastkan.backend(name):
                function(o.x)
    assert ran[-3:] == ["cpu", "reference", "cpu"]


@pytest.mark.parametrize("uniform", [True, False])
def test_the_function_compiles_whole(uniform: bool) -> None:
    """kan_linear reads the knots where it is not told about them; told, it has nothing to wait for."""
    _, o, basis = layer_and_case("shared")

    def function(x: torch.Tensor) -> torch.Tensor:
        return kan_linear(x, o.weight, o.base_weight, knots=o.knots, uniform=uniform)

    same(compiled(function)(o.x), exact("F", o, basis, v=None))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported(kind: str, strict: bool) -> None:
    """Only PyTorch's own operators, and any number of rows."""
    layer, o, basis = layer_and_case(kind, rows=12)
    rows = torch.export.Dim("rows")
    program = torch.export.export(layer, (o.x[:5],), dynamic_shapes=({0: rows},), strict=strict)
    assert not any("fastkan" in str(node.target) for node in program.graph.nodes)
    same(program.module()(o.x), exact("F", o, basis, v=None))


# -- a gradient with respect to the knots ------------------------------------------------------------------------


@pytest.mark.parametrize("uniform", [None, False])
def test_knots_that_require_a_gradient_get_it(uniform: bool | None) -> None:
    _, o, _ = layer_and_case("adapted")
    # a knot moved through an input that lies on it would be a jump
    x = o.x.clone() + 0.0123

    def function(knots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return kan_linear(x, o.weight, o.base_weight, knots=knots, uniform=uniform)

    knots = o.knots.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (knots, x.requires_grad_()))
    eager = torch.autograd.grad(function(knots, x).sum(), knots)[0]
    if uniform is not None:
        same(torch.autograd.grad(compiled(function)(knots, x).sum(), knots)[0], eager)
    same(grad(lambda knots: kan_linear(x, o.weight, o.base_weight, knots=knots, uniform=False).sum())(o.knots), eager)


@pytest.mark.parametrize("uniform", [None, True])
def test_equal_knots_that_require_a_gradient_get_it(uniform: bool | None) -> None:
    """The gradient is not the closed form's, which depends only on the first and the last knot."""
    _, o, _ = layer_and_case("shared")
    x = o.x + 0.0123

    def function(knots: torch.Tensor) -> torch.Tensor:
        return kan_linear(x, o.weight, o.base_weight, knots=knots, uniform=uniform)

    knots = o.knots.clone().requires_grad_()
    by_knots = torch.autograd.grad(function(knots).sum(), knots)[0]
    moved = torch.zeros_like(o.knots)
    for j in range(o.knots.shape[1]):  # one knot of input 1: no longer equally spaced
        step = torch.zeros_like(o.knots)
        step[1, j] = 1e-6
        up, down = (kan_linear(x, o.weight, o.base_weight, knots=o.knots + s).sum() for s in (step, -step))
        moved[1, j] = (up - down) / 2e-6
    torch.testing.assert_close(by_knots[1], moved[1], rtol=1e-5, atol=1e-6)


# -- cases that cannot be right ------------------------------------------------------------------------


def right_or_raises(function, expected: torch.Tensor) -> None:
    """The number, or an error; a wrong number is what must not come."""
    try:
        value = function()
    except (RuntimeError, NotImplementedError, torch._dynamo.exc.Unsupported):
        return
    assert value is not None, "silently no derivative"
    same(value, expected)


def dual_of(function, x: torch.Tensor, t: torch.Tensor):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, t))).tangent


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_transform_is_silently_wrong(kind: str, backend: str) -> None:
    """Transforms around what was compiled, and around a backward whose forward they have not seen."""
    layer, o, basis = layer_and_case(kind)
    t = torch.randn_like(o.x)
    tangent, slope = exact("F", o, basis, 1, v=t), exact("H", o, basis, 1)
    x = o.x.clone().requires_grad_()
    with fastkan.backend(backend):
        function = compiled(layer)
        right_or_raises(lambda: jvp(function, (o.x,), (t,))[1], tangent)
        right_or_raises(lambda: dual_of(function, o.x, t), tangent)
        right_or_raises(lambda: vjp(function, o.x)[1](o.g)[0], slope)
        function = compiled(layer)
        right_or_raises(lambda: dual_of(function, o.x, t), tangent)
        function(o.x)
        right_or_raises(lambda: dual_of(function, o.x, t), tangent)
        right_or_raises(lambda: jvp(layer, (o.x,), (t,))[1], tangent)
        right_or_raises(lambda: dual_of(layer, o.x, t), tangent)

        y = layer(x)
        many = torch.stack([o.g, 2 * o.g])

        def backward(g: torch.Tensor, **more: bool) -> torch.Tensor:
            return torch.autograd.grad(y, x, g, retain_graph=True, **more)[0]

        right_or_raises(lambda: backward(many, is_grads_batched=True), torch.stack([slope, 2 * slope]))
        right_or_raises(lambda: vmap(backward)(many), torch.stack([slope, 2 * slope]))
        right_or_raises(lambda: jvp(backward, (o.g,), (o.g,))[1], slope)
        right_or_raises(lambda: dual_of(backward, o.g, o.g), slope)


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward_through_compiled_code_is_not_silently_wrong(kind: str) -> None:
    layer, o, basis = layer_and_case(kind)
    x = o.x.clone().requires_grad_()

    def curvature() -> torch.Tensor:
        (slope,) = torch.autograd.grad(compiled(layer)(x), x, o.g, create_graph=True)
        return torch.autograd.grad(slope.sum(), x)[0]

    right_or_raises(curvature, exact("H", o, basis, 2))


@pytest.mark.parametrize(
    "transformed",
    [
        lambda layer, x: jvp(layer, (x,), (x,)),
        lambda layer, x: vmap(grad(lambda x: layer(x).sum()))(x),
        lambda layer, x: dual_of(layer, x, x),
        lambda layer, x: torch.export.export(layer, (x,)),
        lambda layer, x: kan_linear(
            x, layer.spline_weight, layer.base_weight, knots=layer.knots.clone().requires_grad_(), uniform=False
        ),
    ],
    ids=["jvp", "vmap", "dual level", "export", "knots"],
)
def test_a_backend_that_cannot_serve_a_transform_says_so(transformed) -> None:
    layer, o, _ = layer_and_case("shared")
    with fastkan.backend("cpu"), pytest.raises(RuntimeError, match=r"backend 'cpu' cannot be used here.*reference"):
        transformed(layer, o.x)
    with fastkan.backend("reference"):
        transformed(layer, o.x)


# -- what it stands on ------------------------------------------------------------------------------


def test_the_private_names_of_torch_mean_what_they_did() -> None:
    """There is no public way to ask whether a transform is active. If one of these fails, torch has
    changed: look at routing.needs_composite."""
    asked = []

    def look(x: torch.Tensor) -> torch.Tensor:
        asked.append(torch._C._are_functorch_transforms_active())
        return x.sum()

    x, knots = torch.zeros(3), torch.zeros(1, 8)
    assert torch._C._are_functorch_transforms_active() is False
    assert forward_ad._current_level == -1
    assert routing.needs_composite(knots) is None
    vmap(look)(x), grad(look)(x), jvp(look, (x,), (x,)), vjp(look, x)
    assert asked == [True] * 4
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0
        assert "forward-mode" in routing.needs_composite(knots)
    assert forward_ad._current_level == -1


def test_counting_what_is_outside_stays_out_of_the_way() -> None:
    """Under the compiler the counts go on, and don't make it compile again; transforms aren't counted."""
    layer = KANLinear(2, 3)
    layer.count_outside()
    function = compiled(layer)
    for _ in range(12):
        function(torch.full((5, 2), 9.0))
    assert torch.equal(layer.outside_share(), torch.ones(2))
    x = torch.rand(4, 2)
    torch.testing.assert_close(vmap(layer)(x), layer(x))
    assert jacrev(layer)(x).shape == (4, 3, 4, 2)
    assert torch.equal(layer.outside_share(), torch.full((2,), 60 / 64))


def test_vmap_over_equal_knots() -> None:
    _, o, _ = layer_and_case("shared")
    shifted = torch.stack([o.knots, o.knots + 0.1])

    def function(knots: torch.Tensor) -> torch.Tensor:
        return kan_linear(o.x, o.weight, o.base_weight, knots=knots, uniform=True)

    same(vmap(function)(shifted), torch.stack([function(knots) for knots in shifted]))
