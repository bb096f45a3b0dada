"""Exact Jacobians of row-wise functions, against autograd row by row, and their products."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import make_knots
from networks import D, mixed, network, points
from torch import Tensor, nn

from fastkan import KAN, KANLinear, backend
from fastkan.functional import kan_linear
from fastkan_kernels import RowJacobian, record_rows, recorder, row_jacobian

BACKENDS = ["cpu", "reference", "dense"]


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def by_rows(outputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the Jacobian, computed by one ordinary backward pass for each element of ``outputs``."""
    rows = []
    for value in outputs.flatten():
        found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([each.flatten() for each in found]))
    return torch.stack(rows).double()


def recorded(function: Callable[[], Tensor], parameters: Sequence[Tensor], **options: Any) -> RowJacobian:
    with record_rows(parameters) as rows:
        return rows.jacobian(function(), **options)


def close(found: Tensor, expected: Tensor, digits: float = 1e-12) -> None:
    """Assert that two tensors are equal to ``digits``, relative to the largest element of each column, or to a
    hundredth of the largest element of all."""
    assert found.dtype == torch.float64
    size = expected.abs().amax(0) if expected.ndim == 2 else expected.abs().max()
    error = (found - expected).abs() / torch.clamp_min(size, 0.01 * float(expected.abs().max()))
    assert float(error.max()) <= digits


def compare(function: Callable[[], Tensor], parameters: Sequence[Tensor], digits: float = 1e-12) -> RowJacobian:
    """Compare the Jacobian of a function and all products with autograd row by row."""
    expected = by_rows(function(), parameters)
    assert bool(expected.any())
    jacobian = recorded(function, parameters, check=True)
    assert jacobian.shape == expected.shape
    close(jacobian.dense(), expected, digits)

    count, size = expected.shape
    t = torch.randn(size, dtype=D)
    u = torch.randn(count, dtype=D)
    for _ in range(2):  # by contractions, and then by the dense matrix
        close(jacobian.matvec(t), expected @ t, 10 * digits)
        close(jacobian.rmatvec(u), expected.t() @ u, 10 * digits)
        gram = expected.t() @ expected
        assert float((jacobian.gram() - gram).abs().max()) <= 10 * digits * float(gram.max())
        assert float((jacobian.gram_diagonal() - gram.diagonal()).abs().max()) <= 10 * digits * float(gram.max())
        some = slice(1, None, 3)
        part = expected.view(jacobian.rows, jacobian.entries, size)[some].reshape(-1, size)
        close(jacobian.dense(some), part, 10 * digits)
        assert float((jacobian.gram(some) - part.t() @ part).abs().max()) <= 10 * digits * float(gram.max())
        jacobian.keep()
    return jacobian


def derivative(u: Tensor, x: Tensor, *columns: int) -> Tensor:
    """Return the derivative of ``u`` with respect to the columns of x, one after another."""
    for column in columns:
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        u = slope[:, column]
    return u


EQUATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "u": lambda u, x: u - x.prod(1),
    "u_xx": lambda u, x: derivative(u, x, 0, 0),
    "u_xy": lambda u, x: derivative(u, x, 0, 1) + u * derivative(u, x, 1),
    "u_xxx": lambda u, x: derivative(u, x, 0, 0, 0),
    "all": lambda u, x: (
        derivative(u, x, 0, 0, 0) + derivative(u, x, 0, 1) ** 2 + x[:, 1] * derivative(u, x, 1, 1) * u.sin()
    ),
}  # fmt: skip


def equation(model: nn.Module, x: Tensor, name: str) -> Callable[[], Tensor]:
    def residuals() -> Tensor:
        at = x.clone().requires_grad_()
        return EQUATIONS[name](model(at)[:, 0], at)

    return residuals


# -- derivatives and parameters ---------------------------------------------------------------------


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equations(name: str, order: int) -> None:
    model = network(width=(2, 3, 1), k=order, grid=4)
    compare(
        equation(model, points(model, 12), name), trained(model), 1e-11 if "xxx" in name or name == "all" else 1e-12
    )


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("kind", ["shared", "uniform", "adapted", "repeated"])
def test_every_kind_of_parameter(kind: str, name: str) -> None:
    """The model has weights, scales, affine maps of nodes and subnodes, formulas, masks and products."""
    model = mixed(knots=kind, affine_trainable=True, grid=6)
    parameters = trained(model)
    assert len({id(p) for p in parameters} & {id(p) for p in model.node_scale}) == model.depth
    assert len({id(p) for p in parameters} & {id(layer.affine) for layer in model.symbolic if layer.edges}) == 3
    jacobian = compare(equation(model, points(model, 8, wide=0.7), name), parameters, 1e-10)
    assert not any(isinstance(part, row_jacobian._CopiedRows) and part.parameter.ndim == 3 for part in jacobian.parts)


@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "none"])
@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"bias": True, "spline_scale": True, "mask": True}])
@pytest.mark.parametrize("name", ["u", "u_xx"])
def test_layers(name: str, options: dict[str, bool], outside: str, base: str) -> None:
    given = {key: value for key, value in options.items() if key != "mask"}
    layers = [KANLinear(*sizes, base=base, outside=outside, dtype=D, **given) for sizes in ((2, 3), (3, 1))]
    layers[1].set_knots(make_knots("adapted", 3, 5, 3))
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    if "mask" in options:
        layers[0].set_mask(torch.tensor([[1, 0, 1], [1, 1, 0]]))
    x = 3 * torch.rand(12, 2, dtype=D) - 1.5
    compare(equation(model, x, name), trained(model))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("residuals", ["u", "u_xx"])
def test_every_backend(residuals: str, name: str) -> None:
    model = network(width=(2, 3, 1), knots="adapted")
    with backend(name):
        compare(equation(model, points(model, 12), residuals), trained(model))


def test_several_outputs_and_upstream() -> None:
    model = network(width=(2, 3, 4))
    x, parameters = points(model, 10), trained(model)
    expected = compare(lambda: model(x).sin(), parameters).dense().view(10, 4, -1)
    upstream = [torch.randn(10, 4, dtype=D) for _ in range(2)]
    found = recorded(lambda: model(x).sin(), parameters, upstream=upstream, check=True)
    assert found.shape == (20, expected.shape[2])
    close(found.dense(), torch.einsum("enc,ncp->nep", torch.stack(upstream), expected).flatten(0, 1), 1e-11)
    u = torch.randn(20, dtype=D)
    close(found.rmatvec(u), found.dense().t() @ u, 1e-11)


def test_a_layer_that_is_called_twice() -> None:
    layer = KANLinear(2, 2, bias=True, spline_scale=True, dtype=D)
    x = torch.rand(10, 2, dtype=D)
    compare(lambda: layer(layer(x)).sin() - 2 * layer(-x) * x, trained(layer))


def test_a_parameter_of_two_layers() -> None:
    model = nn.Sequential(KANLinear(2, 2, dtype=D), KANLinear(2, 2, dtype=D))
    model[1].spline_weight = model[0].spline_weight
    x = torch.rand(10, 2, dtype=D)
    compare(lambda: model(x), trained(model))


def test_layers_that_share_knots() -> None:
    """The features of one layer are not those of another with the same knots, or of the first columns of x."""
    knots, x = make_knots("shared", 3, 5, 3), torch.rand(12, 3, dtype=D)
    cubic, square, base, part = (
        torch.randn(shape, dtype=D, requires_grad=True) for shape in ((8, 3, 1), (9, 3, 1), (3, 1), (8, 2, 1))
    )

    def outputs() -> Tensor:
        y = kan_linear(x, cubic, knots=knots, base="none")
        y = y + kan_linear(x, cubic, base, knots=knots) * x[:, :1]
        y = y * kan_linear(x, square, knots=knots, spline_order=2, base="none")
        return y + kan_linear(x[:, :2], part, knots=knots[:2], base="none")

    compare(outputs, [cubic, square, base, part])


@pytest.mark.parametrize("choice", ["spline_weight", "base_weight", "spline_scale"])
@pytest.mark.parametrize("outside", ["zero", "linear"])
@pytest.mark.parametrize("freeze", [False, True])
def test_some_of_the_parameters(freeze: bool, outside: str, choice: str) -> None:
    """Other parameters are constants, whether they require a gradient or not."""
    model = nn.Sequential(*(KANLinear(*s, outside=outside, spline_scale=True, dtype=D) for s in ((2, 3), (3, 1))))
    x = 2 * torch.rand(10, 2, dtype=D) - 1
    chosen = [parameter for name, parameter in model.named_parameters() if name.endswith(choice)]
    if freeze:
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is each for each in chosen))
    jacobian = compare(lambda: model(x), chosen)
    if choice != "base_weight" or outside == "zero":
        assert all(isinstance(part, row_jacobian._SplineRows) for part in jacobian.parts)


@pytest.mark.parametrize("name", ["u", "u_xx"])
def test_other_modules(name: str) -> None:
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.LayerNorm(3), KANLinear(3, 3, bias=True), nn.LayerNorm(3),
        KANLinear(3, 2), nn.Tanh(), nn.Linear(2, 1),
    ).double()  # fmt: skip
    x = torch.rand(9, 2, dtype=D)
    compare(equation(model, x, name), trained(model), 1e-11)


class Tokens(nn.Module):
    """Attention within each row, a layer on flattened tokens, and functions called with other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.flat, self.wide, self.both = nn.Linear(2, 3), nn.Linear(2, 2), nn.Bilinear(6, 3, 1)
        self.norm = nn.LayerNorm([3, 2])

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 3, 2)
        tokens = self.norm(self.attention(tokens, tokens, tokens)[0] + self.wide(tokens))
        flat = nn.functional.linear(tokens.flatten(0, 1), weight=self.flat.weight, bias=self.flat.bias)
        flat = flat + self.flat(tokens.flatten(0, 1)).sin()
        return self.both(tokens.flatten(1), flat.view(-1, 3, 3).sum(1))


def test_modules_that_use_a_row_as_several_tokens() -> None:
    model, x = Tokens().double(), torch.rand(5, 6, dtype=D)
    compare(lambda: model(x), trained(model), 1e-11)


def test_a_parametrized_weight() -> None:
    model = nn.Sequential(KANLinear(2, 3, dtype=D), KANLinear(3, 1, dtype=D))
    nn.utils.parametrizations.weight_norm(model[0], "spline_weight")
    x = torch.rand(9, 2, dtype=D)
    compare(lambda: model(x), trained(model))


def test_a_copy_of_the_model_inside_the_block_is_a_constant() -> None:
    model = network(width=(2, 3, 1))
    x, parameters = points(model, 9), trained(model)
    expected = by_rows(model(x), parameters) * model(x).detach()
    close(recorded(lambda: copy.deepcopy(model)(x) * model(x), parameters).dense(), expected)


def test_a_parameter_whose_gradient_is_0() -> None:
    model, other = network(width=(2, 1)), nn.Parameter(torch.rand(3, dtype=D))
    x = points(model, 9)
    compare(lambda: model(x) + other.round().sum(), [*trained(model), other])


@pytest.mark.parametrize("name", ["u", "u_xx"])
def test_float32(name: str) -> None:
    """The Jacobian is float64; the backward pass for the operands is float32."""
    single = network(width=(2, 3, 1), dtype=torch.float32)
    double = copy.deepcopy(single).double()
    x = points(single, 20)
    found = recorded(equation(single, x, name), trained(single), check=True)
    expected = by_rows(equation(double, x.double(), name)(), trained(double))
    close(found.dense(), expected, 1e-5)
    t, u = torch.randn(found.shape[1], dtype=D), torch.randn(20, dtype=D)
    close(found.matvec(t), found.dense() @ t)
    close(found.rmatvec(u), found.dense().t() @ u)
    assert found.gram().dtype == found.gram_diagonal().dtype == torch.float64


def test_float32_and_float64_residuals() -> None:
    """The rounding of a float32 model is not taken for mixed rows if the residuals are float64."""
    model = KAN([2, 5, 1], grid=50, k=5, seed=0)
    x = 2 * torch.rand(500, 2) - 1
    compute = equation(model, x, "u_xxx")
    assert recorded(lambda: compute() - torch.ones(500, dtype=D), trained(model), check=True).shape[0] == 500
    with pytest.raises(ValueError, match="depends on several rows"):
        recorded(lambda: (r := compute()) - r.double().mean(), trained(model), check=True)


def test_knots_are_not_compared_while_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, a comparison of the knots computes new weights, in which the recorder would find no parameters."""
    from fastkan.layers.value_cache import KnotMetadata

    compared = KnotMetadata.checked
    layer = KANLinear(2, 30, grid_size=20)  # has more elements than may be computed column by column
    x = torch.rand(9, 2)

    class OnGPU:
        """Knots that claim to be on a GPU."""

        is_cuda = True

    def checked(self: Any, knots: Tensor, basis: Any, *weights: Any) -> Any:
        assert recorder() is not None, "the comparison needs a GPU"
        return compared(self, OnGPU(), basis, *weights)  # type: ignore[arg-type]

    monkeypatch.setattr(KnotMetadata, "checked", checked)
    assert all(isinstance(part, row_jacobian._SplineRows) for part in recorded(lambda: layer(x), trained(layer)).parts)


# -- memory -----------------------------------------------------------------------------------------


def test_memory_of_products_does_not_grow_with_the_size_of_the_jacobian() -> None:
    rows, model = 20_000, network(width=(4, 8, 1), grid=10)
    x, parameters = points(model, rows), trained(model)
    jacobian = recorded(lambda: model(x), parameters)
    t, u = torch.ones(jacobian.shape[1], dtype=D), torch.ones(rows, dtype=D)
    bytes_of_jacobian = 8 * jacobian.shape[0] * jacobian.shape[1]
    peaks: list[int] = []

    for product in (
        lambda: jacobian.matvec(t), lambda: jacobian.rmatvec(u), lambda: jacobian.gram_diagonal(slice(0, None, 10)),
    ):  # fmt: skip
        with torch.profiler.profile(profile_memory=True) as run:
            product()
        held, peak = 0, 0
        for event in run.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        peaks.append(peak)
    assert max(peaks) > 8 * rows  # the profiler has seen the results
    assert max(peaks[:2]) < bytes_of_jacobian / 4
    assert peaks[2] < 5 * bytes_of_jacobian / 10


def test_blocks_of_rows_have_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(width=(2, 3, 2))
    x = points(model, 50)
    jacobian = recorded(lambda: model(x), trained(model))
    expected = jacobian.dense()
    shapes: list[tuple[int, ...]] = []
    dense = RowJacobian.dense

    def noted(self: RowJacobian, rows: slice = slice(None)) -> Tensor:
        block = dense(self, rows)
        shapes.append(tuple(block.shape))
        return block

    monkeypatch.setattr(RowJacobian, "dense", noted)
    monkeypatch.setattr(row_jacobian, "BLOCK_ELEMENTS", 8 * jacobian.shape[1])
    for rows in (slice(None), slice(3, 47, 5)):
        part = expected.view(50, 2, -1)[rows].flatten(0, 1)
        close(jacobian.gram(rows), part.t() @ part, 1e-11)
        close(jacobian.gram_diagonal(rows), part.square().sum(0), 1e-11)
    assert max(shapes)[0] == 8
    jacobian.keep()
    assert max(shapes)[0] == 8
    close(dense(jacobian), expected)
    monkeypatch.setattr(row_jacobian, "MAX_KEPT_ELEMENTS", expected.numel() - 1)
    other = recorded(lambda: model(x), trained(model))
    other.keep()
    assert other._dense is None


def test_copies_are_freed_with_the_graphs() -> None:
    model = network(width=(2, 3, 1), affine_trainable=True)
    x, parameters = points(model, 200), trained(model)
    with record_rows(parameters) as rows:
        jacobian = rows.jacobian(model(x))  # The operands of the Jacobian are not part of the graph.
        gc.collect()
        assert rows._alive() == ([], [])
        jacobian.keep()
        assert not jacobian.parts
        for _ in range(5):
            rows.jacobian(model(x))
        assert len(rows._layers) == 2


# -- blocks -----------------------------------------------------------------------------------------


def test_blocks_end_and_nest() -> None:
    model = network(width=(2, 1))
    x, parameters = points(model, 5), trained(model)
    assert recorder() is None
    with record_rows(parameters) as outer:
        with record_rows(parameters) as inner:
            assert recorder() is inner
        assert recorder() is outer
        with pytest.raises(ZeroDivisionError), record_rows(parameters):
            1 / 0  # noqa: B018
        assert recorder() is outer
        y = model(x)
    assert recorder() is None
    close(outer.jacobian(y).dense(), by_rows(model(x), parameters))  # after the block
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)


def test_parts_of_different_lengths() -> None:
    model = network(width=(2, 3, 1))
    parameters = trained(model)
    with record_rows(parameters) as rows:
        x = [points(model, count, seed=count) for count in (5, 9)]
        parts = [model(each) for each in x]
        found = [rows.jacobian(each) for each in parts]
    for each, jacobian in zip(x, found):
        close(jacobian.dense(), by_rows(model(each), parameters))


# -- compiled code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["inside", "outside"])
def test_compiled_models_run_eagerly_inside_the_block(first: str) -> None:
    model = network(width=(2, 4, 1), grid=10)
    x, parameters = points(model, 9), trained(model)
    compiled = torch.compile(model, backend="aot_eager")
    expected = by_rows(model(x), parameters)
    if first == "outside":
        compiled(x)
    close(recorded(lambda: compiled(x), parameters, check=True).dense(), expected)
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)


# -- bad input --------------------------------------------------------------------------------------


def mean_of_rows(y: Tensor) -> Tensor:
    return y - y.mean(0)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda y: None, TypeError, "residuals must be a torch.Tensor, got NoneType"),
        (lambda y: y.sum(), ValueError, r"shape \[M\] or \[M, C\] with at least one row, got \[\]"),
        (lambda y: y[None], ValueError, r"got \[1, 9, 1\]"),
        (lambda y: y[:0], ValueError, r"got \[0, 1\]"),
        (lambda y: y * 1j, TypeError, "dtype float32 or float64, got torch.complex128"),
        (lambda y: y.half(), TypeError, "dtype float32 or float64, got torch.float16"),
        (lambda y: y.long(), TypeError, "dtype float32 or float64, got torch.int64"),
        (lambda y: y.detach(), ValueError, "the residuals do not depend on the parameters.*torch.no_grad"),
        (lambda y: torch.ones(9, dtype=D, requires_grad=True), ValueError, "the residuals do not depend on the par"),
        (mean_of_rows, ValueError, r"depends on several rows.*parameter 0 with the shape \[9, 2, 3\]"),
        (lambda y: y.flip(0), ValueError, "depends on several rows"),
        (lambda y: y.cumsum(0), ValueError, "depends on several rows"),
        (lambda y: y @ y.t(), ValueError, "depends on several rows"),
        (lambda y: y.softmax(0), ValueError, "depends on several rows"),
        (lambda y: y.view(3, 3), ValueError, "got 3 residuals from a layer that was called with 9 rows: flatten"),
        (lambda y: y[1:], ValueError, "got 8 residuals from a layer that was called with 9 rows"),
    ],
)  # fmt: skip
def test_bad_residuals(function: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    model = network(width=(2, 3, 1))
    with pytest.raises(error, match=message):
        recorded(lambda: function(model(points(model, 9))), trained(model), check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_in_training_is_refused_if_it_mixes_rows(dtype: torch.dtype) -> None:
    model = nn.Sequential(KANLinear(2, 3), nn.BatchNorm1d(3), KANLinear(3, 1)).to(dtype)
    x = torch.rand(20, 2, dtype=dtype)
    with pytest.raises(ValueError, match="by BatchNorm in training or attention over the rows"):
        recorded(lambda: model(x), trained(model), check=True)
    model.eval()
    recorded(lambda: model(x), trained(model), check=True)
    before = nn.Sequential(nn.BatchNorm1d(2), KANLinear(2, 1)).double()  # mixes the rows of constants only
    compare(lambda: before(x.double()), trained(before))


def test_terms_that_cancel_are_not_taken_for_mixed_rows() -> None:
    model = network(width=(2, 3, 1))
    x = points(model, 12)

    def curl() -> Tensor:
        at = x.clone().requires_grad_()
        u = model(at)[:, 0]
        return derivative(u, at, 0, 1) - derivative(u, at, 1, 0)

    jacobian = recorded(curl, trained(model), check=True)
    assert float(jacobian.dense().abs().max()) < 1e-12


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: torch.func.vmap(lambda p: model(p[None])[0, 0])(x),
        lambda model, x: torch.func.vmap(torch.func.grad(lambda p: model(p[None])[0, 0]))(x),
        lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    ],
    ids=["vmap", "grad", "jvp"],
)
def test_transforms_are_refused(function: Callable[[KAN, Tensor], Tensor]) -> None:
    model = network(width=(2, 3, 1))
    with pytest.raises(RuntimeError, match=r"use torch.autograd.grad\(..., create_graph=True\) inside"):
        recorded(lambda: function(model, points(model, 9)), trained(model))
    assert recorder() is None


@pytest.mark.parametrize(
    ("parameter", "got"),
    [
        (torch.ones(2), "Tensor of shape .* without requires_grad"),
        (torch.ones(2, requires_grad=True) * 2, "Tensor of shape .*"),
        (torch.ones(2, dtype=torch.float16, requires_grad=True), "torch.float16"),
        (torch.ones(2, dtype=torch.complex64, requires_grad=True), "torch.complex64"),
        (1.0, "float"),
        (None, "NoneType"),
    ],
)
def test_bad_parameters(parameter: Any, got: str) -> None:
    message = f"parameters must be leaf tensors of dtype float32 or float64.*got .*{got}$"
    with pytest.raises(TypeError, match=message), record_rows([parameter]):
        pass
    assert recorder() is None


def test_too_many_columns() -> None:
    module = nn.Bilinear(10, 10, 20)
    with pytest.raises(
        ValueError, match=r"at most 1024 elements, got 2020 in parameter \d \[20, 10, 10\], parameter \d \[20\]"
    ):
        recorded(lambda: module(torch.rand(5, 10), torch.rand(5, 10)), trained(module))
