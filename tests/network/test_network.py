"""``KAN``: its arguments, and its values against formulas on paper; it moves, copies and compiles like any module."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from networks import MIXED, D, mixed, network, nothing_shared, points, same, walk
from torch.func import functional_call, grad, jacrev, jvp, vmap

import fastkan
from fastkan import KAN
from fastkan.kan.old_arguments import IGNORED
from fastkan.layers.value_cache import CachedPredicate

# -- values -----------------------------------------------------------------------------------------

EACH = pytest.mark.parametrize("make", [mixed, lambda: network([3, 4, 2])], ids=["mixed", "stack"])
SIZES = pytest.mark.parametrize("rows", [40, 3000], ids=["in one Function", "by the contractions"])


@SIZES
@pytest.mark.parametrize("base", ["silu", "gelu", "identity", "zero"])
@pytest.mark.parametrize("knots", ["shared", "uniform", "adapted", "repeated"])
def test_a_stack_of_splines_is_what_the_formulas_say(knots: str, base: str, rows: int) -> None:
    model = network([2, 4, 3, 2], knots, base_fun=base, off=[(0, 0, 1), (1, 3, 2)], grid=[6, 7, 8], k=[3, 2, 4])
    x = points(model, rows, wide=1.6)
    same(model(x), walk(model, x)[-1].out)


@SIZES
@pytest.mark.parametrize("seed", range(3))
def test_products_formulas_and_affine_maps_are_what_the_formulas_say(seed: int, rows: int) -> None:
    model = mixed(seed=seed, knots="adapted")
    x = points(model, rows)
    steps = walk(model, x)
    same(model(x), steps[-1].out)
    for found, step in zip(model.trace(x, edges=True), steps, strict=True):
        for name, value in found._asdict().items():
            same(value, getattr(step, name))


def test_a_layer_without_splines_is_its_formulas() -> None:
    model = network([2, 2], formulas=[(0, 0, 0, "sin"), (0, 0, 1, "exp"), (0, 1, 0, "x^2"), (0, 1, 1, "tanh")])
    model.layers[0].set_mask(torch.zeros(2, 2))
    x = points(model)
    y = model(x)
    same(y, walk(model, x)[-1].out)
    with torch.no_grad():
        model.layers[0].spline_weight.fill_(torch.inf)  # these are not read
    assert torch.equal(model(x), y)


def test_every_node_of_the_output_may_multiply() -> None:
    model = network([2, [0, 2]], mult_arity=3)
    x = points(model)
    same(model(x), walk(model, x)[-1].out)
    assert model(x).shape == (60, 2)


def test_singularities_are_avoided_where_that_is_asked_for() -> None:
    model = network([1, 1], off=[(0, 0, 0)])
    model.symbolic[0].fix(0, 0, "1/x")
    x = torch.tensor([[0.0], [1e-3], [2.0]], dtype=D)
    assert model(x)[0].isinf().all()
    y = model(x, singularity_avoiding=True, y_th=5.0)
    assert y.isfinite().all()
    assert y.abs().max() <= 5.0 * (1 + 1e-12)
    same(y[2:], [[0.5]])


@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 4, 2), (2, 1, 3, 2), (0, 2), (3, 0, 2)])
@pytest.mark.parametrize("make", [lambda: network([2, 3, 4]), lambda: network([2, [2, 1], 4], affine=True)])
def test_leading_dimensions_and_empty_batches(make, shape: tuple[int, ...]) -> None:
    model = make()
    x = torch.rand(shape, dtype=D)
    y = model(x)
    assert y.shape == (*shape[:-1], 4)
    same(y.reshape(-1, 4), walk(model, x.reshape(-1, 2))[-1].out)
    y.sum().backward()
    assert all(p.grad is not None for p in model.layers.parameters())


def test_it_reads_the_columns_in_input_id() -> None:
    model = network([3, 2, 1])
    x = points(model)
    y = model(x)
    for order in ([2, 0, 1], [1, 2, 0]):
        model.input_id.copy_(torch.tensor(order))
        assert not torch.equal(model(x), y)
        same(model(x), walk(model, x)[-1].out)
        same(model(x), model(x[:, order][:, torch.tensor(order).argsort()]))
    model.input_id = torch.arange(3)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("part", ["node_scale", "node_bias", "subnode_scale", "subnode_bias"])
@pytest.mark.parametrize("how", ["replaced", "copied", "trained"])
def test_affine_maps_that_changed_nothing_are_no_longer_skipped(part: str, how: str) -> None:
    """Writes into them are tested in test_known."""
    model = network([2, 3, 1])
    x = points(model)
    model(x)
    if how == "replaced":
        getattr(model, part)[0] = torch.nn.Parameter(torch.full((3,), 2.0, dtype=D), requires_grad=False)
    elif how == "copied":
        getattr(model, part)[0].fill_(2.0)
        model = copy.deepcopy(model)
    else:
        getattr(model, part)[0].requires_grad_()
    y = model(x)
    same(y, walk(model, x)[-1].out)
    if how == "trained":
        y.sum().backward()
        parameter, h, sums = getattr(model, part)[0], torch.tensor(1e-6, dtype=D), []
        for step in (h, -2 * h):
            with torch.no_grad():
                parameter[1] += step
                sums.append(model(x).sum())
        torch.testing.assert_close(parameter.grad[1], (sums[0] - sums[1]) / (2 * h), rtol=1e-7, atol=0)


def test_knots_written_into_are_seen_by_copies_of_copies() -> None:
    model = copy.deepcopy(network([2, 1], "own"))  # a copy's knots count from another number
    x = points(model)
    model(x)
    bent = torch.linspace(0, 0.3, 13, dtype=D).square() * torch.tensor([[1.0], [2.0]], dtype=D)
    model.layers[0].knots.add_(bent)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        same(other(x), walk(model, x)[-1].out)


def test_a_fact_is_asked_once_and_again_by_a_copy() -> None:
    asked = []
    fact = CachedPredicate(lambda t: bool(asked.append(1)) or True, default=False)
    t = torch.zeros(2)
    assert fact(t)
    assert fact(t)
    assert len(asked) == 1
    other = copy.deepcopy(fact)  # whose tensors may have the places in memory that these had
    assert other(t)
    assert len(asked) == 2
    with torch.inference_mode():  # which counts no writes
        written = torch.zeros(2)
        assert other(written)
        assert len(asked) == 2
        written += 1
        assert other(written)
        assert len(asked) == 3
    assert not fact(torch.zeros(2, requires_grad=True))
    assert not fact(torch.zeros(2, device="meta"))
    assert len(asked) == 3


# -- a layer with something of its own --------------------------------------------------------------


def test_hooks_of_layers_are_called() -> None:
    model, seen = network([2, 3, 1]), []
    handles = [layer.register_forward_hook(lambda *args: seen.append(args[2].shape)) for layer in model.layers]
    model(points(model))
    assert seen == [(60, 3), (60, 1)]
    for handle in handles:
        handle.remove()
    model(points(model))
    assert len(seen) == 2


def test_layers_count_what_lies_outside() -> None:
    model = network([2, 3, 1], "own")
    model.layers[0].count_outside()
    model(torch.tensor([[0.0, 2.0], [0.5, 0.0]], dtype=D))
    assert model.layers[0].outside_share().tolist() == [0.0, 0.5]


def test_layers_that_go_on_outside_of_their_grid_do_so_in_a_network() -> None:
    model = network([2, 3, 1], "own")
    x = torch.tensor([[3.0, -3.0], [0.1, 4.0]], dtype=D)
    before = model(x)
    for layer in model.layers:
        layer.outside = "linear"
    expected = model.layers[1](model.layers[0](x))
    assert not torch.equal(expected, before)
    assert torch.equal(model(x), expected)


# -- moving and copying -----------------------------------------------------------------------------


@EACH
def test_float32_is_float64_rounded(make) -> None:
    """The distance from float64 is at most twice that of the contractions in float32, and a rounding."""
    model = make()
    x = points(model).float().double()
    single = copy.deepcopy(model).float()
    exact = copy.deepcopy(single).double()(x)
    y = single(x.float())
    assert y.dtype == torch.float32
    with fastkan.backend("reference"):
        reference = single(x.float())
    allowed = 2 * (reference - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
    assert (y - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    model = network([2, 3, 1], "own")
    narrow = copy.deepcopy(model).to(dtype)
    x = points(model).to(dtype)
    y = narrow(x)
    assert y.dtype == dtype
    exact = copy.deepcopy(narrow).double()(x.double())
    assert (y - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_it_moves_as_a_whole() -> None:
    model = mixed()
    model(points(model))
    moved = model.to("meta")
    assert moved is model
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model(torch.rand(5, 3, dtype=D, device="meta")).shape == (5, 2)
    assert mixed().to(torch.float32).dtype == torch.float32


def test_made_on_another_device_and_in_another_dtype() -> None:
    made = KAN([2, [1, 1], 1], device="meta", dtype=torch.float32, sparse_init=True)
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
    with torch.device("meta"):
        assert KAN([2, 3, 1], seed=0).device.type == "meta"


def copies(model: KAN, how: str) -> KAN:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "copy":
        return model.copy()
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "torch.save"])
@EACH
def test_copies_after_a_forward_and_a_backward(make, how: str) -> None:
    model = make()
    x = points(model).requires_grad_()
    model(x).sum().backward()
    other = copies(model, how)
    assert torch.equal(other(x), model(x))
    nothing_shared(model, other)
    with torch.no_grad():
        other.layers[0].spline_weight.add_(1.0)
    assert not torch.equal(other(x), model(x))
    same(other(x), walk(other, x.detach())[-1].out)


def test_a_state_goes_round() -> None:
    model = mixed(seed=1)
    x = points(model)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other = KAN(**MIXED, grid=6, seed=5, dtype=D)
    other(x)
    found = other.load_state_dict(torch.load(stream, weights_only=True))
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(other(x), model(x))
    assert other.symbolic[0].edges == model.symbolic[0].edges


# -- compiled, transformed --------------------------------------------------------------------------


@EACH
def test_compiled_whole_it_gives_the_same(make) -> None:
    model = make()
    x = points(model).requires_grad_()
    y = model(x)
    asked = [x, *(p for p in model.parameters() if p.requires_grad and p.numel())]
    exact = torch.autograd.grad(y.square().sum(), asked)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    same(found, y)
    for got, want in zip(torch.autograd.grad(found.square().sum(), asked), exact):
        same(got, want)


@EACH
def test_transforms_give_the_same(make) -> None:
    model = make()
    x = points(model, 5)
    held = model(x).detach()
    parameters = dict(model.named_parameters())

    def of_x(x: torch.Tensor) -> torch.Tensor:
        return model(x.unsqueeze(0))[0]

    def of_parameters(parameters: dict, x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, x.unsqueeze(0)).sum()

    same(vmap(of_x)(x), held)
    whole = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), x).transpose(0, 1)
    same(vmap(jacrev(of_x))(x), whole)
    t = torch.randn_like(x)
    same(jvp(model, (x,), (t,))[1], torch.einsum("noi,ni->no", whole, t))
    each = vmap(grad(of_parameters), (None, 0))(parameters, x)["layers.0.spline_weight"]
    model.zero_grad()
    model(x).sum().backward()
    same(each.sum(0), model.layers[0].spline_weight.grad)
    assert model.sample is None
    model.trace()  # no transform has left its own tensors behind


@EACH
@pytest.mark.parametrize("known", [True, False], ids=["used before", "fresh"])
@pytest.mark.parametrize("mode", ["real", "fake", "jit"])
def test_traced_by_others_it_keeps_no_tensor_of_theirs(make, known: bool, mode: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    model = make()
    x = points(model, 5)
    expected = copy.deepcopy(model)(2 * x)
    if known:
        model(x)
    with torch.no_grad():
        if mode == "jit":
            with warnings.catch_warnings(), fastkan.backend("reference"):
                warnings.simplefilter("ignore")
                traced = torch.jit.trace(model, (x,), check_trace=False)
        else:
            traced = make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(x)
        same(traced(2 * x), expected)
    assert model.sample is None
    model.trace()
    same(copy.deepcopy(model)(2 * x), expected)


# -- arguments ---------------------------------------------------------------------------------------


def test_nothing_global_is_seeded_and_no_argument_changed() -> None:
    import random

    import numpy as np

    width: list[Any] = [2, [3, 1], 1]
    arity = [[], [2], []]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = KAN(width=width, mult_arity=arity, seed=3, sparse_init=True)
    model(torch.rand(4, 2, generator=torch.Generator().manual_seed(0)))
    model.trace()
    assert width == [2, [3, 1], 1]
    assert arity == [[], [2], []]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    model.width.append([7, 0])
    model.mult_arity[1].append(9)
    assert (model.width, model.mult_arity) == ([[2, 0], [3, 1], [1, 0]], [[], [2], []])


def test_seeds() -> None:
    x = torch.rand(4, 2)
    one, other, third = KAN([2, 3, 1], seed=7), KAN([2, 3, 1], seed=7), KAN([2, 3, 1], seed=8)
    assert torch.equal(one(x), other(x))
    assert not torch.equal(one(x), third(x))
    before = torch.get_rng_state()
    drawn = [KAN([2, 3, 1], seed=None)(x) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.set_rng_state(before)
    assert torch.equal(KAN([2, 3, 1], seed=None)(x), drawn[0])


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_arguments_without_a_meaning_are_taken_and_say_so(name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name} has no meaning here") as caught:
        model = KAN([2, 1], seed=0, **{name: True})
    assert caught[0].filename == __file__
    assert torch.equal(model.layers[0].spline_weight, KAN([2, 1], seed=0).layers[0].spline_weight)


def test_arguments_that_nobody_knows_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'gird'"):
        KAN([2, 1], gird=5)


def test_fresh_parameters_are_in_their_ranges() -> None:
    model = KAN([4, 6, 2], grid=5, k=3, noise_scale=0.5, scale_base_mu=0.2, scale_base_sigma=0.1, seed=0, dtype=D)
    for layer in model.layers:
        root = layer.in_features**0.5
        assert (layer.spline_scale * root == 1).all()
        assert ((layer.base_weight * root - 0.2).abs() <= 0.1).all()
        assert (layer.base_weight * root - 0.2).abs().max() > 0.05
    at_knots = torch.linspace(-1, 1, 6, dtype=D).unsqueeze(1).expand(-1, 4)
    from fastkan_kernels.bspline.cox_de_boor import splines

    values = torch.einsum("npi,pio->nio", splines(at_knots, model.layers[0].knots, 3), model.layers[0].spline_weight)
    assert values.abs().max() <= 0.5 * 0.5 / 5 * 1.2  # the noise, but for the fastest changes, which splines leave out
    assert values.abs().max() > 0.02


def test_what_is_trainable() -> None:
    def trainable(**options: bool) -> set[str]:
        model = KAN([2, 2, 1], seed=0, **options)
        return {name.split(".")[-1 if "layers" in name else 0]
                for name, p in model.named_parameters() if p.requires_grad and p.numel()}  # fmt: skip

    affine = {"node_scale", "node_bias", "subnode_scale", "subnode_bias"}
    assert trainable() == {"spline_weight", "base_weight", "spline_scale"}
    assert trainable(sp_trainable=False) == {"spline_weight", "base_weight"}
    assert trainable(sb_trainable=False) == {"spline_weight", "spline_scale"}
    assert trainable(affine_trainable=True) == {"spline_weight", "base_weight", "spline_scale"} | affine


def test_sparse_init_leaves_every_node_an_edge() -> None:
    for layer in KAN([4, 7, 3], sparse_init=True, seed=0).layers:
        assert (layer.mask.sum(0) >= 1).all()
        assert (layer.mask.sum(1) >= 1).all()
        assert layer.mask.sum() < layer.mask.numel() / 2


def test_sizes() -> None:
    model = KAN([3, [2, 3], [1, 1], 2], grid=[3, 4, 5], k=[1, 2, 3], mult_arity=[[], [2, 3, 4], [2], []])
    assert model.width == [[3, 0], [2, 3], [1, 1], [2, 0]]
    assert model.width_in == [3, 5, 2, 2]
    assert model.width_out == [3, 11, 3, 2]
    assert (model.grid, model.k, model.depth) == ([3, 4, 5], [1, 2, 3], 3)
    assert KAN([2, [1, 2], 1], mult_arity=3).mult_arity == [[], [3, 3], []]
    words = "width=[3, [2, 3], [1, 1], 2], grid=[3, 4, 5], k=[1, 2, 3], mult_arity=[[], [2, 3, 4], [2], []]"
    assert repr(model) == f"KAN({words})"


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"width": 3}, TypeError, "width must be a list"),
    ({"width": "2,1"}, TypeError, "width must be a list"),
    ({"width": [2]}, ValueError, "width must name at least"),
    ({"width": [2, 0, 1]}, ValueError, r"width\[1\] must have at least one node"),
    ({"width": [2, -1, 1]}, ValueError, r"width\[1\] must be at least 0"),
    ({"width": [2, 1.5, 1]}, TypeError, r"width\[1\] must be an int"),
    ({"width": [2, [1, 2, 3], 1]}, ValueError, r"width\[1\] must be a number or"),
    ({"width": [[2, 1], 1]}, ValueError, r"width\[0\] must be inputs alone"),
    ({"width": [2, [1, 1], 1], "mult_arity": 1}, ValueError, "mult_arity must be at least 2"),
    ({"width": [2, [1, 1], 1], "mult_arity": [[], [2]]}, ValueError, "mult_arity must be a number or a list"),
    ({"width": [2, [1, 1], 1], "mult_arity": [[], [2, 2], []]}, ValueError, r"mult_arity\[1\] must have 1 entries"),
    ({"width": [2, [1, 1], 1], "mult_arity": [0, 2, 0]}, TypeError, r"mult_arity\[0\] must be a list"),
    ({"width": [2, 1], "grid": 0}, ValueError, "grid must be at least 1"),
    ({"width": [2, 1], "grid": [3, 4]}, ValueError, "grid must be a number or a list"),
    ({"width": [2, 1], "k": 6}, ValueError, "k must be from 1 to 5"),
    ({"width": [2, 1], "base_fun": "relu"}, ValueError, "base_fun must be one of"),
    ({"width": [2, 1], "grid_range": (1, -1)}, ValueError, "grid_range must be finite and increasing"),
    ({"width": [2, 1], "grid_eps": 2}, ValueError, "grid_eps must be from 0 to 1"),
    ({"width": [2, 1], "dtype": torch.int64}, TypeError, "dtype must be"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_arguments_out_of_range_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KAN(**options)


def test_inputs_of_another_kind_are_refused() -> None:
    model = network([2, 3, 1])
    for x, error in (
        (torch.rand(4, 3, dtype=D), ValueError),
        (torch.rand(4, 2), TypeError),
        (torch.zeros(4, 2, dtype=torch.long), TypeError),
        ([[0.0, 0.0]], TypeError),
        (torch.rand((), dtype=D), ValueError),
    ):
        with pytest.raises(error, match="x"):
            model(x)
