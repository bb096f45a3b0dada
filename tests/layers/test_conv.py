"""KAN convolutions: the definition as a loop, nn.Conv, derivatives, PyTorch's modes, and KANLinear's methods."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path

import numpy as np
import oracle
import peers
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastkan
from fastkan import KANConv1d, KANConv2d, KANConv3d, KANLinear, convert
from fastkan.layers.conv import KANConv
from fastkan_kernels.backends import convolution

CLASSES = {1: (KANConv1d, nn.Conv1d), 2: (KANConv2d, nn.Conv2d), 3: (KANConv3d, nn.Conv3d)}
SIZES = {1: (9,), 2: (6, 5), 3: (4, 3, 5)}
GEOMETRIES = {
    "plain": {"kernel_size": 2},
    "padded": {"kernel_size": 3, "padding": 1},
    "same": {"kernel_size": 3, "padding": "same", "groups": 2},
    "same, even kernel": {"kernel_size": 2, "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid", "dilation": 2},
    "strided, depthwise": {"kernel_size": 3, "stride": 2, "padding": 2, "groups": 4},
    "dilated": {"kernel_size": 2, "dilation": 2, "padding": 1, "stride": 2},
    "gaps": {"kernel_size": 1, "stride": 2},
}


def definition(layer: KANConv, x: Tensor) -> Tensor:
    """The sum over channels and taps of each edge function at each pixel that lies inside the border, in float64."""
    x, knots = x.detach().double(), layer.knots.double().numpy()
    groups, padding = layer.groups, [before for before, _ in layer._padding_pairs]
    weight = layer.spline_weight.detach().double().unflatten(2, (-1, *layer.kernel_size))
    base = layer.base_weight.detach().double().unflatten(1, (-1, *layer.kernel_size))
    size = [
        (n + sum(border) - d * (k - 1) - 1) // s + 1
        for n, border, d, k, s in zip(
            x.shape[2:], layer._padding_pairs, layer.dilation, layer.kernel_size, layer.stride
        )
    ]
    y = torch.zeros(len(x), layer.out_channels, *size, dtype=torch.float64)
    pixels = x.movedim(1, -1).reshape(-1, x.shape[1]).numpy()
    psi = torch.tensor(oracle.splines(pixels, knots, layer.spline_order))  # [N * pixels, K, C]
    psi = psi.unflatten(0, (len(x), *x.shape[2:]))
    silu = torch.tensor(oracle.silu(pixels)).unflatten(0, (len(x), *x.shape[2:]))
    of_group = layer.out_channels // groups
    for channel, tap, place in itertools.product(
        range(x.shape[1]), itertools.product(*map(range, layer.kernel_size)), itertools.product(*map(range, size))
    ):
        pixel = [p * s + t * d - b for p, s, t, d, b in zip(place, layer.stride, tap, layer.dilation, padding)]
        if all(0 <= q < n for q, n in zip(pixel, x.shape[2:])):
            first = channel // (x.shape[1] // groups) * of_group
            edges = (slice(None), channel, slice(None), *tap)
            found = psi[(slice(None), *pixel)][:, :, channel] @ weight[edges]
            found += silu[(slice(None), *pixel)][:, channel, None] * base[edges[1:]]
            y[(slice(None), slice(first, first + of_group), *place)] += found
    return y


def images(dimensions: int, channels: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pixels in and around the grid."""
    return 2.8 * torch.rand(2, channels, *SIZES[dimensions], dtype=dtype) - 1.4


@pytest.fixture(params=["one block", "some channels", "one channel"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the images into blocks: one block, blocks of some channels, or blocks of one channel."""
    if request.param != "one block":
        limit = 1 if request.param == "one channel" else 9 * 2 * 30 * 9
        monkeypatch.setattr(convolution, "BLOCK_ELEMENTS", limit)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("geometry", list(GEOMETRIES))
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_it_is_the_sum_over_channels_and_taps(dimensions: int, geometry: str) -> None:
    layer = CLASSES[dimensions][0](4, 8, **GEOMETRIES[geometry], dtype=torch.float64)
    x = images(dimensions)
    torch.testing.assert_close(layer(x).detach(), definition(layer, x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("geometry", list(GEOMETRIES))
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_with_linear_functions_it_is_the_convolution_of_torch(
    dimensions: int, geometry: str, padding_mode: str
) -> None:
    ours, theirs = CLASSES[dimensions]
    options = dict(GEOMETRIES[geometry], padding_mode=padding_mode, bias=True, dtype=torch.float64)
    layer, conv = ours(4, 8, base="identity", **options), theirs(4, 8, **options)
    with torch.no_grad():
        layer.spline_weight.zero_()
        weight = conv.weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)  # [groups, C / groups, O / groups, taps]
        layer.base_weight.copy_(weight.reshape(4, -1))
        layer.bias.copy_(conv.bias)
    x = images(dimensions)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), rtol=1e-12, atol=1e-12)


def test_a_spline_of_order_1_can_be_the_weight_of_a_convolution() -> None:
    layer = KANConv2d(2, 3, 3, padding=1, base="none", spline_order=1, grid_range=(-2, 2), dtype=torch.float64)
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():  # the coefficient of a hat is the value at its middle knot
        values = conv.weight.transpose(0, 1).reshape(2, -1)
        layer.spline_weight.copy_(layer.knots[:, 1:-1].t().unsqueeze(2) * values)
    x = images(2, 2)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outside", ["zero", "linear"])
def test_it_is_kanlinear_on_unfolded_images(outside: str) -> None:
    layer = KANConv2d(3, 5, 3, stride=2, spline_scale=True, outside=outside, dtype=torch.float64)
    layer.update_grid(images(2, 3))
    with torch.no_grad():
        layer.spline_scale.normal_()
    layer.set_mask((torch.rand(3, 45) > 0.3).double())
    linear = KANLinear(27, 5, spline_scale=True, outside=outside, dtype=torch.float64)
    linear.set_knots(layer.knots.repeat_interleave(9, 0))
    with torch.no_grad():
        for name in ("base_weight", "spline_scale"):
            edges = getattr(layer, name).unflatten(1, (5, 9)).transpose(1, 2)
            getattr(linear, name).copy_(edges.reshape(27, 5))
        linear.spline_weight.copy_(layer.spline_weight.unflatten(2, (5, 9)).transpose(2, 3).reshape(-1, 27, 5))
    linear.set_mask(layer.mask.unflatten(1, (5, 9)).transpose(1, 2).reshape(27, 5))
    x = 2 * torch.randn(2, 3, 7, 7, dtype=torch.float64)
    rows = functional.unfold(x, 3, stride=2).transpose(1, 2)
    torch.testing.assert_close(layer(x).flatten(2), linear(rows).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_pixels_beyond_the_border_contribute_nothing_or_the_value_at_0() -> None:
    layer = KANConv2d(2, 3, 3, padding=1, dtype=torch.float64)
    shown = KANConv2d(2, 3, 3, padding=1, padding_mode="zero_inputs", dtype=torch.float64)
    shown.load_state_dict(layer.state_dict())
    x = images(2, 2)
    inner = KANConv2d(2, 3, 3, dtype=torch.float64)
    inner.load_state_dict(layer.state_dict())
    torch.testing.assert_close(shown(x), inner(functional.pad(x, (1, 1, 1, 1))))
    torch.testing.assert_close(layer(x)[:, :, 1:-1, 1:-1], inner(x))
    beyond = torch.full_like(functional.pad(x, (1, 1, 1, 1)), 1e9)  # where splines are 0, as is silu of -1e9
    beyond[:, :, 1:-1, 1:-1] = -x
    torch.testing.assert_close(layer(x), inner(-beyond))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("outside", ["zero", "linear"])
def test_first_and_second_derivatives(outside: str) -> None:
    layer = KANConv2d(
        4, 2, (2, 1), padding=(1, 0), groups=2, bias=True, spline_scale=True, outside=outside, grid_size=2,
        spline_order=4, dtype=torch.float64,
    )  # fmt: skip
    names = [name for name, _ in layer.named_parameters()]
    x = (2 * torch.rand(2, 4, 2, 1, dtype=torch.float64) - 1).requires_grad_()

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    given = (x, *layer.parameters())
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.fixture
def layer() -> KANConv2d:
    return KANConv2d(3, 4, 3, padding=1, bias=True, dtype=torch.float64)


def gradients(layer: KANConv, call, x: Tensor, twice: bool = False) -> list[Tensor]:
    """Gradients of a sum of squares, or of the squared gradient with respect to x."""
    x = x.detach().requires_grad_()
    loss = call(x).square().sum()
    if twice:
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = slope.square().sum()
    return list(torch.autograd.grad(loss, [x, layer.spline_weight, layer.base_weight]))


def test_torch_func_and_batched_gradients_agree(layer: KANConv2d) -> None:
    x = images(2, 3)
    expected = gradients(layer, layer, x)[0]
    each = torch.func.vmap(torch.func.grad(lambda one: layer(one).square().sum()))(x)
    torch.testing.assert_close(each, expected)
    y, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    ahead = (layer(x + 1e-6) - layer(x - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, ahead, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(y, layer(x))
    x.requires_grad_()
    y = layer(x)
    g = torch.randn(3, *y.shape, dtype=torch.float64)
    many = torch.autograd.grad(y, [x, layer.spline_weight], g, is_grads_batched=True, retain_graph=True)
    for place, one in enumerate(g):
        alone = torch.autograd.grad(y, [x, layer.spline_weight], one, retain_graph=True)
        for whole, part in zip(many, alone):
            torch.testing.assert_close(whole[place], part)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_compiled_gradients_agree(layer: KANConv2d, twice: bool) -> None:
    """Second derivatives are compared too, which need the second-order term of the registered operators."""
    torch._dynamo.reset()
    x = images(2, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Tensor) -> Tensor:
        if not twice:
            return layer(x)
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return slope

    expected = gradients(layer, layer, x, twice)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        found_gradients = gradients(layer, compiled, x)
    for found, like in zip(found_gradients, expected):
        torch.testing.assert_close(found, like)


def test_compiled_code_takes_other_sizes() -> None:
    layer = KANConv2d(2, 4, 3, padding="same", groups=2)
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend="aot_eager")
    for shape in ((3, 2, 5, 6), (7, 2, 9, 8)):
        x = torch.rand(shape)
        torch.testing.assert_close(compiled(x), layer(x))


def test_autocast_and_low_precision_round_features_and_weights() -> None:
    layer = KANConv2d(8, 4, 3, padding=1)
    x = images(2, 8, torch.float32)
    expected = definition(layer, x)
    # Each of 72 terms has two roundings to 8 bits, and the sum, which has the dtype of torch.nn.Conv2d's, has another.
    bound = 3 * 2**-9 * definition_of_sizes(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.nn.Conv2d(8, 4, 3)(x).dtype == torch.bfloat16
    assert ((y - expected).abs() <= bound).all()
    low = copy.deepcopy(layer).to(torch.bfloat16)
    assert low.knots.dtype == torch.float32
    y = low(x.bfloat16())
    assert y.dtype == torch.bfloat16
    exact = copy.deepcopy(layer).double()
    exact.load_state_dict(low.state_dict())  # the parameters as they were rounded
    expected = exact(x.bfloat16().double()).detach()
    torch.testing.assert_close(y.double().detach(), expected, rtol=2**-8, atol=1e-4)
    y.sum().backward()
    assert low.spline_weight.grad.dtype == torch.bfloat16


def definition_of_sizes(layer: KANConv, x: Tensor) -> Tensor:
    """The definition with the absolute values of all terms, since only silu is below 0, by at most 0.28."""
    sizes = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in sizes.parameters():
            parameter.abs_()
    return definition(sizes, x) + 2 * 0.28 * sizes.base_weight.sum()


def test_layouts_of_the_inputs(layer: KANConv2d) -> None:
    layer = layer.float()
    x = images(2, 3, torch.float32)
    expected = layer(x)
    assert expected.is_contiguous()
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(layer(torch.stack([x, x], 4)[..., 0]), expected)
    expected = layer(x.transpose(2, 3).contiguous())
    torch.testing.assert_close(layer(x.transpose(2, 3)), expected)


def test_an_empty_batch(layer: KANConv2d) -> None:
    x = images(2, 3)[:0].requires_grad_()
    y = layer(x)
    assert y.shape == (0, 4, 6, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(layer.spline_weight.grad, torch.zeros_like(layer.spline_weight))


@pytest.mark.parametrize("grid_size", [5, 40], ids=["closed form", "scattered"])
def test_nan_affects_its_windows_and_its_channel_alone(grid_size: int) -> None:
    layer = KANConv2d(3, 4, 2, grid_size=grid_size, dtype=torch.float64)
    x = images(2, 3)
    clean = x.clone().requires_grad_()
    clean_y = layer(clean)
    clean_y.sum().backward()
    x[1, 2, 2, 3] = torch.nan
    x.requires_grad_()
    y = layer(x)
    hit = torch.zeros(y.shape, dtype=torch.bool)
    hit[1, :, 1:3, 2:4] = True
    assert torch.equal(y.isnan(), hit)
    torch.testing.assert_close(y[~hit], clean_y[~hit], rtol=1e-12, atol=1e-12)
    weight_grad = layer.spline_weight.grad.clone()
    layer.zero_grad()
    y.sum().backward()
    assert torch.equal(x.grad.isnan(), x.isnan())
    assert layer.spline_weight.grad[:, 2].isnan().all()
    torch.testing.assert_close(layer.spline_weight.grad[:, :2], weight_grad[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_for_which_torch_uses_another_library(stride: int) -> None:
    """Convolutions of many float32 numbers run in oneDNN, which must not mix pixels of different windows either."""
    layer = KANConv2d(8, 16, 3, stride, padding=1)
    exact = KANConv2d(8, 16, 3, stride, padding=1, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x = 2 * torch.rand(16, 8, 16, 16) - 1
    for found, like in zip(gradients(layer, layer, x), gradients(exact, exact, x.double())):
        torch.testing.assert_close(found.double(), like, rtol=1e-4, atol=1e-5 * float(like.abs().max()))
    x[3, 2, 8, 8] = torch.nan
    y = layer(x)
    assert torch.equal(y.isnan(), exact(x.double()).isnan())
    assert y.isnan().sum() == 16 * (9 if stride == 1 else 1)
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_infinite_pixels_have_the_base_function_alone(layer: KANConv2d) -> None:
    x = images(2, 3)
    x[0, 0, 2, 2] = -torch.inf  # where splines are 0, as is silu
    y = layer(x)
    x[0, 0, 2, 2] = -1000.0
    torch.testing.assert_close(y, layer(x))


def test_methods_of_kanlinear(layer: KANConv2d) -> None:
    x = 2 * torch.randn(4, 3, 9, 9, dtype=torch.float64)
    pixels = x.movedim(1, -1).reshape(-1, 3)
    layer.count_outside()
    layer(x)
    torch.testing.assert_close(layer.outside_share(), (pixels.abs() > 1).float().mean(0))
    layer.count_outside(False)

    like = KANLinear(3, 36, dtype=torch.float64)
    like.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "bias"})
    layer.update_grid(x)
    like.update_grid(pixels)
    assert torch.equal(layer.knots, like.knots)
    assert torch.equal(layer.spline_weight, like.spline_weight)
    assert "knots=adapted" in repr(layer)
    before = layer(x)
    layer.refine(10, x)
    assert layer.grid_size == 10
    torch.testing.assert_close(layer(x), before)

    mask = torch.ones(3, 4, 3, 3)
    mask[1, 2] = 0
    layer.set_mask(mask.flatten(1))
    y = layer(x)
    x[:, 1] = torch.randn(4, 9, 9)
    moved = (layer(x) - y).abs().amax((0, 2, 3))
    assert torch.equal(moved == 0, torch.tensor([False, False, True, False]))

    loaded = KANConv2d(3, 4, 3, padding=1, bias=True, grid_size=10)  # float32
    loaded.load_state_dict(layer.state_dict())
    torch.testing.assert_close(loaded(x.float()).double(), layer(x), rtol=1e-4, atol=1e-4)


def test_from_splines_and_convert(layer: KANConv2d) -> None:
    """The shapes of splines do not say what the kernel is; a converted model keeps its convolutions."""
    with pytest.raises(TypeError, match=r"KANConv1d cannot be constructed by from_splines.*kernel_size"):
        KANConv1d.from_splines(torch.linspace(-2, 2, 11), torch.randn(7, 2, 5))
    layer.update_grid(torch.randn(3, layer.in_channels, 6, 6, dtype=layer.knots.dtype))
    x = torch.rand(2, layer.in_channels, 6, 6, dtype=layer.knots.dtype)
    model = nn.Sequential(layer, nn.Flatten(), peers.KANLinear(layer(x).flatten(1).shape[1], 2))
    ours = convert(model)
    assert [type(each) for each in ours] == [KANConv2d, nn.Flatten, KANLinear]
    torch.testing.assert_close(ours(x), model(x))
    assert convert(model, inplace=True)[0] is layer
    assert torch.equal(convert(nn.Sequential(layer))[0](x), layer(x))


def test_fresh_parameters_have_the_scale_of_torch() -> None:
    for make in (lambda: KANConv2d(8, 64, 3, groups=2), lambda: KANConv2d(8, 64, 3, groups=2, device="meta")):
        layer = make()
        if layer.knots.is_meta:
            assert layer(torch.rand(2, 8, 5, 5, device="meta")).shape == (2, 64, 3, 3)
            layer.to_empty(device="cpu")
            layer.reset_parameters()
        bound = 1 / np.sqrt(4 * 9)
        assert 0.98 * bound < layer.base_weight.abs().max() <= bound
        assert layer.spline_weight.abs().max() < 0.1
        assert layer(torch.rand(2, 8, 5, 5)).isfinite().all()


def test_copies_and_explain(layer: KANConv2d) -> None:
    x = images(2, 3)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), layer(x))
    text = fastkan.explain(layer, x)
    assert "x is 60 rows" in text
    assert "convolved by PyTorch" in text
    assert repr(layer) == "KANConv2d(3, 4, kernel_size=(3, 3), padding=(1, 1), grid_size=5, spline_order=3, bias=True)"


@pytest.mark.parametrize("name", ["reference", "dense", "triton"])
def test_each_backend(name: str, layer: KANConv2d) -> None:
    x = images(2, 3)
    expected = gradients(layer, layer, x)
    missing = fastkan_missing(name)
    if missing:
        pytest.skip(missing)
    with fastkan.backend(name):
        found = gradients(layer, layer, x)
    for one, like in zip(found, expected):
        torch.testing.assert_close(one, like)


def fastkan_missing(name: str) -> str | None:
    from fastkan_kernels import BACKENDS

    return BACKENDS[name].missing() or BACKENDS[name].unable(torch.device("cpu"))


def test_the_second_order_optimizer() -> None:
    """Jacobians with respect to the parameters of a convolution are computed column by column."""
    layer, target = (KANConv2d(1, 1, 2, bias=True, grid_size=2, spline_order=2, dtype=torch.float64) for _ in "ab")
    x = images(2, 1)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.normal_()
        expected = target(x).flatten()
    optimizer = fastkan.optim.LevenbergMarquardt(layer)
    for _ in range(10):
        optimizer.step(lambda: layer(x).flatten() - expected)
    torch.testing.assert_close(layer(x).flatten().detach(), expected, rtol=1e-6, atol=1e-6)


BAD = {
    "kernel 0": ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    "kernel of 3": ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must have 2 entries, got 3"),
    "stride word": ({"stride": "2"}, TypeError, "stride must be an int, got str"),
    "padding word": ({"padding": "full"}, ValueError, "padding must be one of .*'full'"),
    "padding -1": ({"padding": (0, -1)}, ValueError, r"padding\[1\] must be at least 0, got -1"),
    "same strided": ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs a stride of 1, got 2"),
    "groups": ({"groups": 2}, ValueError, "in_channels must be a multiple of groups=2, got 3"),
    "mode": ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_arguments(name: str) -> None:
    options, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        KANConv2d(3, 4, **{"kernel_size": 3, **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 4, 5, 5), r"x must have the shape \[N, in_channels=3, height, width\] or .*got \[2, 4, 5, 5\]"),
        (torch.rand(5, 5), r"x must have the shape"),
        (torch.rand(1, 2, 3, 5, 5), r"x must have the shape"),
        (torch.rand(2, 3, 2, 5), r"x must be at least as large as the kernel, got the size \[2, 5\]"),
    ],
    ids=["channels", "dimensions", "too many", "small"],
)
def test_bad_images(x: Tensor, message: str) -> None:
    layer = KANConv2d(3, 4, 3)
    with pytest.raises(ValueError, match=message):
        layer(x)
    if "small" not in message and x.ndim != 4:
        with pytest.raises(ValueError, match=message):
            layer.update_grid(x)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        layer([1.0])
    with pytest.raises(TypeError, match=r"knots is torch\.float32, but x is torch\.float64"):
        layer(torch.rand(2, 3, 5, 5, dtype=torch.float64))


def test_it_exports_to_onnx_with_any_batch(tmp_path: Path) -> None:
    """The exporter itself takes most of the time."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = KANConv2d(2, 4, 2, padding="same", groups=2, bias=True, outside="linear", grid_size=2).eval()
    layer.update_grid(torch.randn(4, 2, 6, 6))
    file = tmp_path / "model.onnx"
    program = torch.onnx.export(
        layer, (torch.randn(3, 2, 4, 5),), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    program.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 2, 4, 5)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.tensor(found), layer(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [KANConv1d(2, 3, 2), KANConv2d(2, 3, 2), KANConv3d(2, 3, 2)], ids=["1", "2", "3"])
def test_a_traced_module_calls_its_convolutions(layer: KANConv) -> None:
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    x = torch.rand(4, 2, *[5] * layer._dimensions)
    assert torch.equal(traced(x), layer(x))
    layer.update_grid(x)
    layer.set_mask(torch.zeros_like(layer.spline_weight[0]))
    assert torch.equal(traced(x), torch.zeros_like(layer(x)))
    with pytest.raises(TypeError, match=r"torch.fx cannot trace a convolution itself"):
        torch.fx.symbolic_trace(layer)
