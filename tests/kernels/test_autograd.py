"""The table of derivatives, and what it makes of F, G and H: gradients of every order."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch
from cases import FUSED, WAYS, Example, compute, forced, inside_cells, make_case, serves
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fastkan_kernels import Basis
from fastkan_kernels.autograd.functions import required_grads
from fastkan_kernels.trilinear import CONTRACTIONS, DERIVATIVES, Operands, gradients

OPERANDS = {"F": ("x", "v", "weight", "base_weight"), "G": ("x", "v", "g"), "H": ("x", "weight", "base_weight", "g")}
PARTS = {"v": ("v",), "W": ("weight", "base_weight"), "g": ("g",), "x": ("x",)}


def smooth_case(order: int = 3, base: str = "silu", kind: str = "adapted", **sizes: int) -> tuple[Example, Basis]:
    """A small case with no input near a knot: at one, derivatives of order k and more jump."""
    sizes = {"rows": 3, "inputs": 2, "outputs": 2, "grid": 3, **sizes}
    o, basis = make_case(kind, order=order, base=base, **sizes)
    return o._replace(x=inside_cells(sizes["rows"], o.knots, order)), basis


# -- the table, against numbers that no PyTorch has computed ----------------------------------------


def test_the_table_has_a_rule_for_each_operand_and_no_other() -> None:
    assert set(CONTRACTIONS) == set("FGH")
    for contraction in CONTRACTIONS.values():
        assert {contraction.free, *contraction.filled} == {"v", "W", "g"}
    assert sorted(c.free for c in CONTRACTIONS.values()) == ["W", "g", "v"]
    assert set(DERIVATIVES) == {(name, by) for name, c in CONTRACTIONS.items() for by in ("x", *c.filled)}
    assert len(DERIVATIVES) == 9


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("derivative", [0, 1])
@pytest.mark.parametrize(("name", "by"), DERIVATIVES)
def test_each_rule_is_the_slope_of_the_float64_oracle(name: str, by: str, derivative: int, order: int) -> None:
    """<upstream, contraction> moved along one operand, by central differences of the NumPy oracle."""
    o, basis = smooth_case(order)
    upstream = [torch.randn(value.shape, dtype=torch.float64) for value in compute(name, o, basis, derivative)]
    moves = {part: torch.randn_like(getattr(o, part)) for part in PARTS[by]}

    def number(share: float) -> float:
        moved = o._replace(**{part: getattr(o, part) + share * move for part, move in moves.items()})
        return sum(
            float((value * up.numpy()).sum())
            for value, up in zip(oracle.exact(name, moved, basis, derivative), upstream, strict=True)
        )

    step = 1e-4
    # five points: off by the fourth power of the step, though within a cell splines are polynomials anyway
    slope = (8 * (number(step) - number(-step)) - (number(2 * step) - number(-2 * step))) / (12 * step)

    def contract(name: str, operands: Operands, derivative: int):
        values = oracle.exact(name, Example(o.x, o.knots, *operands), basis, derivative)
        tensors = tuple(map(torch.from_numpy, values))
        return tensors if name == "G" else tensors[0]

    own = tuple(upstream) if name == "G" else upstream[0]
    full = Operands(o.v, o.weight, o.base_weight, o.g).with_operand(CONTRACTIONS[name].free, own)
    found = gradients(name, full, [by], derivative, contract)
    assert list(found) == [by]
    parts = found[by] if by == "W" else (found[by],)
    ruled = sum(float((part * move).sum()) for part, move in zip(parts, moves.values(), strict=True))
    assert slope != 0
    np.testing.assert_allclose(ruled, slope, rtol=1e-8)


# -- gradients of the functions ---------------------------------------------------------------------


def function(name: str, o: Example, basis: Basis, derivative: int, wanted: tuple[str, ...]):
    """F, G or H as a function of some operands, and those operands."""

    def call(*values: torch.Tensor):
        return compute(name, o._replace(**dict(zip(wanted, values))), basis, derivative)

    return call, tuple(getattr(o, part).clone().requires_grad_() for part in wanted)


def wanted_of(name: str, basis: Basis) -> tuple[str, ...]:
    return tuple(part for part in OPERANDS[name] if part != "base_weight" or basis.base != "none")


CHECKED = [
    (way, name, d, order)
    for way, name, d, order in itertools.product(WAYS, "FGH", (0, 1, 2), (1, 2, 3, 4, 5))
    if serves(way, "shared", order, d) and (order in (1, 3) or d == 0)
]


@pytest.mark.parametrize(("way", "name", "derivative", "order"), CHECKED)
def test_gradients_by_every_operand(way: str, name: str, derivative: int, order: int) -> None:
    o, basis = smooth_case(order, kind="shared")
    call, values = function(name, o, basis, derivative, wanted_of(name, basis))
    with forced(way):
        assert gradcheck(call, values, fast_mode=order not in (1, 3))


@pytest.mark.parametrize("kind", ["uniform", "adapted", "repeated"])
@pytest.mark.parametrize("base", ["identity", "none"])
@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize("backend", ["reference", "auto", FUSED])
def test_gradients_on_other_knots_and_bases(backend: str, name: str, base: str, kind: str) -> None:
    o, basis = smooth_case(base=base, kind=kind, grid=8)
    call, values = function(name, o, basis, 0, wanted_of(name, basis))
    with forced(backend):
        assert gradcheck(call, values, fast_mode=backend == "fused")


@pytest.mark.parametrize(("order", "derivative"), [(2, 1), (3, 0), (3, 1)])
@pytest.mark.parametrize("name", "FGH")
@pytest.mark.parametrize("backend", ["reference", "auto", "recursive", "scattered", "banded", "piecewise", FUSED])
def test_gradients_of_gradients(backend: str, name: str, order: int, derivative: int) -> None:
    o, basis = smooth_case(order)
    call, values = function(name, o, basis, derivative, wanted_of(name, basis))
    with forced(backend):
        assert gradgradcheck(call, values, fast_mode=backend == "fused")  # interpreted, each launch takes long


# The rules are the same for all backends, so that one third derivative of the interpreted kernels is enough.
THIRD = [*itertools.product(["reference", "auto", "recursive", "piecewise"], "FGH", [0, 1])]
THIRD.append(pytest.param("fused", "F", 0, marks=FUSED.marks))


@pytest.mark.parametrize(("backend", "name", "derivative"), THIRD)
def test_third_order(backend: str, name: str, derivative: int) -> None:
    """gradgradcheck of a gradient, with cotangents that are differentiated as well."""
    o, basis = smooth_case(order=4)
    wanted = wanted_of(name, basis)
    call, values = function(name, o, basis, derivative, wanted)
    upstream = [torch.randn_like(value) for value in call(*values)]

    def slopes(*values: torch.Tensor):
        return torch.autograd.grad(call(*values), values, upstream, create_graph=True)

    with forced(backend):
        assert gradgradcheck(slopes, values, fast_mode=True)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", "FGH")
def test_only_what_is_asked_for_is_computed(
    name: str, shared: bool, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen weight costs no G, a first layer's input no H."""
    from fastkan_kernels.autograd import dispatch as routing
    from fastkan_kernels.backends import registry as backends
    from fastkan_kernels.backends.cpu.piecewise import PiecewiseTensors

    o, basis = smooth_case()
    if shared and routing.route(o.x, o.knots).backend != "cpu":
        pytest.skip("only the CPU shares what contractions compute")
    ran = []
    implementation = backends.implementation

    def spy(kind, spec, *rest):
        ran.append((kind, spec.derivative))
        return implementation(kind, spec, *rest)

    def shared_vjp(self, kind, full, wanted, derivative):
        def contract(kind, operands, derivative):
            ran.append((kind, derivative))
            return self.contract(kind, operands, derivative)

        return gradients(kind, full, wanted, derivative, contract)

    monkeypatch.setattr(backends, "implementation", spy)
    monkeypatch.setattr("fastkan_kernels.autograd.functions.implementation", spy)
    monkeypatch.setattr(PiecewiseTensors, "vjp", shared_vjp)
    if not shared:
        monkeypatch.setitem(backends.BACKENDS, "cpu", backends.BACKENDS["cpu"]._replace(at_rows=None))
    weight = ("G", 0)
    rules = {"x": ("H", 1), "v": ("H", 0), "weight": weight, "base_weight": weight, "g": ("F", 0)}
    for part in OPERANDS[name]:
        # one that needs a gradient, and all of which one is asked for
        for needing in ((part,), OPERANDS[name]):
            call, values = function(name, o, basis, 0, needing)
            out = call(*values)
            ran.clear()
            (found,) = torch.autograd.grad(
                sum(value.sum() for value in out), values[needing.index(part)], create_graph=graph
            )
            assert ran == [rules[part]], f"{name} by {part} of {needing}"
            assert found.is_contiguous()


def test_torch_says_which_gradients_a_backward_wants_under_this_private_name() -> None:
    """If it fails, look at autograd.required_grads."""
    found = []

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scale, x, nothing, w):
            ctx.save_for_backward(x, nothing, w)
            return scale * x * w

        @staticmethod
        def backward(ctx, g):
            x, nothing, w = ctx.saved_tensors
            found.append(required_grads(ctx, (x, nothing, w)))
            return None, g * w, None, g * x

    x, w = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    for one, other in ((x, w), (2 * x, 3 * w), (x.detach(), w)):
        y = Product.apply(1.0, one, None, other).sum()
        wanted = [each for each in (x, w) if one.requires_grad or each is w]
        for by in (*([each] for each in wanted), wanted):
            torch.autograd.grad(y, by, retain_graph=True)
            y.backward(inputs=by, retain_graph=True)
            assert found == 2 * [[any(each is x for each in by), False, any(each is w for each in by)]]
            found.clear()
        y.backward()
        assert found == [[one.requires_grad, False, True]]
        found.clear()


def test_features_are_not_saved_for_the_backward() -> None:
    """A graph holds the operands and nothing of size N K I (but for what the piecewise way caches)."""
    o, basis = make_case("shared", rows=50, inputs=8, outputs=3)
    saved = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    call, values = function("F", o, basis, 0, wanted_of("F", basis))
    with forced("closed"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(*values)
    mine = {t.data_ptr() for t in (*values, o.knots)}
    assert saved
    assert all(t.data_ptr() in mine for t in saved)


@pytest.mark.usefixtures("each_backend")
def test_an_operand_changed_before_the_backward_is_noticed() -> None:
    o, basis = smooth_case()
    call, (x, weight) = function("F", o, basis, 0, ("x", "weight"))
    (y,) = call(x, weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "auto", FUSED])
@pytest.mark.parametrize("name", "FGH")
def test_nothing_beyond_silus_fourth_derivative_is_silent(name: str, backend: str) -> None:
    """F_4 itself is right; what needs the fifth derivative raises when it is asked for."""
    o, basis = smooth_case(order=5)
    call, values = function(name, o, basis, 4, ("x",))
    with forced(backend):
        value = call(*values)[-1]
        with pytest.raises(ValueError, match=r"at most 4 for base='silu', got 5"):
            torch.autograd.grad(value.sum(), values)
    with forced(backend), pytest.raises(ValueError, match=r"at most 4 for base='silu', got 5"):
        compute(name, o, basis, 5)


# -- on knots, and mixed at random ------------------------------------------------------------------


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["shared", "uniform", "repeated"])
def test_repeated_gradients_on_knots_are_those_of_scipy(kind: str, order: int) -> None:
    """u, u_x, u_xx and on, at inputs that are knots: each is the derivative on the knot's right."""
    o, basis = make_case(kind, inputs=1, outputs=1, order=order, grid=6, base="none")
    x = o.knots.t().contiguous().requires_grad_()
    (value,) = compute("F", o._replace(x=x, v=None), basis)
    for derivative in range(1, order + 2):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        psi = oracle.splines(x.detach().numpy(), o.knots.numpy(), order, derivative)
        exact = np.einsum("nbi,bio->no", psi, o.weight.numpy())
        np.testing.assert_allclose(value.detach().numpy(), exact, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize("backend", ["auto", FUSED])
@given(
    first=st.sampled_from([(name, by) for name, by in DERIVATIVES if by != "W"] + [("F", "weight"), ("H", "weight")]),
    second=st.sampled_from(["x", "v", "weight", "base_weight", "g"]),
    derivative=st.integers(0, 2),
    order=st.integers(1, 5),
    kind=st.sampled_from(["shared", "adapted"]),
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
)
def test_mixed_second_derivatives_agree_with_the_reference(
    backend, first, second, derivative, order, kind, sizes
) -> None:
    """The reference by PyTorch's own rules; the Functions by the table, twice."""
    rows, inputs, outputs = sizes
    o, basis = smooth_case(order, kind=kind, rows=rows, inputs=inputs, outputs=outputs)
    (name, by), found = first, []
    for composite in (True, False):
        leaves = {part: getattr(o, part).clone().requires_grad_() for part in ("x", "v", "weight", "base_weight", "g")}
        # a gradient with respect to the knots makes everything composite, that is, PyTorch's own
        knots = o.knots.clone().requires_grad_(composite)
        with forced("reference" if composite else backend):
            value = compute(name, o._replace(knots=knots, **leaves), basis, derivative)
            torch.manual_seed(3)
            upstream = [torch.randn(part.shape, dtype=part.dtype) for part in value]  # whatever its strides
            (slope,) = torch.autograd.grad(value, leaves[by], upstream, create_graph=True, allow_unused=True)
            (slope,) = torch.autograd.grad(
                (slope * torch.randn(slope.shape, dtype=slope.dtype)).sum(),
                leaves[second],
                allow_unused=True,
                materialize_grads=True,
            )
        found.append(slope)
    size = float(found[0].abs().max()) if found[0].numel() else 0.0
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10 * max(1.0, size))
