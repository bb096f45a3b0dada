"""``convert`` of layers and networks as projects hold them: renamed and changed copies, containers that are kept, and
pykan 0.0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import copies
import peers
import pytest
import torch
from copies import COPIES, Copy, OldKAN, OldLayer, named, one_output, parts
from peers import D, close, points, value_and_slope
from torch import Tensor, nn
from torch.nn import functional

from fastkan import KAN, KANLinear, convert, convert_state_dict, to_efficient_kan_state_dict


def expected(source: nn.Module, x: Tensor) -> Tensor:
    y = source(x.unsqueeze(0)) if isinstance(source, (copies.Tokens, copies.Grouped)) else source(x)
    return y.reshape(len(x), -1).detach()


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_under_any_name(name: str) -> None:
    source, x = COPIES[name](), points(3)
    wanted = expected(source, x)
    ours = convert(nn.Sequential(nn.Identity(), source))
    assert type(ours[1]) is KANLinear
    close(ours(x).detach(), wanted)
    assert (ours[1].bias is not None) == (name == "bias")
    others = {"no base": "none", "identity, called in forward": "identity", "names of its own": "gelu"}
    assert ours[1].base == others.get(name, "silu")


def test_layers_with_tensors_of_like_shapes_stay() -> None:
    class Like(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 8, dtype=D))
            self.places = torch.arange(12.0, dtype=D)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.sum(2).t() + self.places[:4]

    source, x = nn.Sequential(Like(), peers.KANLinear(4, 2), nn.Conv1d(1, 1, 1, dtype=D)), points(3)
    ours = convert(source)
    assert [type(each) for each in ours] == [Like, KANLinear, nn.Conv1d]
    close(ours[:2](x).detach(), source[:2](x).detach())


def test_a_layer_of_pykan_s_tensors_that_returns_one() -> None:
    source = peers.pykan((3, 4)).act_fun[0]
    x = points(3)
    wanted = source(x)[0].detach()
    source.__class__ = one_output(type(source))
    parent = nn.Sequential(source, nn.Tanh())
    close(convert(parent)(x).detach(), wanted.tanh())
    old = one_output(OldLayer)(3, 4)
    close(convert(nn.Sequential(old))(x).detach(), old(x).detach())


def test_a_copy_of_pykan_s_network_under_another_module_is_compared() -> None:
    source = peers.with_formulas()
    x = points(2)
    wanted = source(x).detach()  # the call stores values with graphs, which PyTorch refuses to copy
    cls = type(source)
    source.__class__ = named("MultKAN", cls)
    close(convert(source)(x).detach(), wanted)
    source.__class__ = named("MultKAN", cls, forward=lambda self, x: cls.forward(self, x).tanh())
    with pytest.raises(ValueError, match=r"module, a MultKAN: .*computes something else"):
        convert(source)


class Hidden(Copy):
    """A layer whose change is invisible as long as its weights are 0."""

    def change(self) -> None:
        for parameter in self.parameters():
            parameter.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return parts(self, x).tanh()


class Outside(Copy):
    """A layer that differs only far outside of its knots."""

    def forward(self, x: Tensor) -> Tensor:
        return parts(self, x.clamp(-4, 4))


@pytest.mark.parametrize("cls", [Hidden, Outside])
def test_a_difference_that_the_tensors_or_the_grid_hide_is_found(cls: type) -> None:
    with pytest.raises(ValueError, match=r"computes something else.*KANLinear\.from_splines"):
        convert(named("KANLinear", cls)())


def tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def without_mean(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True) if x.dim() == 3 else x


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The outputs for inputs of any shape, as efficient-kan computes them."""
    return parts(layer, x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def detached_splines(layer: Any, x: Tensor) -> Tensor:
    splines = functional.linear(layer.splines(x).flatten(1), (layer.spline_weight.detach() * layer.scale()).flatten(1))
    return splines + functional.linear(functional.silu(x), layer.base_weight)


def small(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(1e-3)


DIFFERENT: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a gradient stops at the inputs": (lambda self, x: parts(self, x.detach()), "other gradients .* its inputs"),
    "a gradient stops at the base": (
        lambda self, x: parts(self, x, lambda x: functional.silu(x.detach())), "other gradients .* its inputs"),
    "a gradient stops at the weights": (detached_splines, "other gradients .* its parameters"),
    "no gradients": (lambda self, x: parts(self, x).detach(), "other gradients .* its inputs"),
    "tokens are centred": (lambda self, x: rows_of(self, without_mean(x)), r"for x of the shape \[2, 5, 3\]"),
    "one row is special": (lambda self, x: parts(self, x) + (len(x) == 1), r"for x of the shape \[1, 3\]"),
    "another gelu": (lambda self, x: parts(self, x, tanh_gelu), "computes something else"),
    "a small constant": (lambda self, x: parts(self, x) + 1e-7, "computes something else"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("case", DIFFERENT)
def test_differences_in_gradients_other_shapes_and_small_differences_are_found(case: str, dtype: torch.dtype) -> None:
    forward, message = DIFFERENT[case]
    source = named("KANLinear", Copy, change=small, forward=forward)().to(dtype)
    with pytest.raises(ValueError, match=message):
        convert(source)


def test_a_copy_that_takes_any_shape_or_one_dtype_is_converted() -> None:
    x = points(3)
    source = named("KANLinear", Copy, forward=rows_of)()
    close(convert(source)(x.view(2, 8, 4, 3)).detach(), source(x).detach().view(2, 8, 4, 4))
    flattens = named("KANLinear", Copy, forward=lambda self, x: parts(self, x.reshape(-1, 3)))()
    with pytest.warns(UserWarning, match=r"KANLinear returns \[10, 4\] for x of the shape \[2, 5, 3\], but the conv"):
        convert(flattens)
    narrow = named("KANLinear", Copy, forward=lambda self, x: parts(self.float(), x.float()))().float()
    assert convert(narrow).spline_weight.dtype == torch.float32
    narrow = named("KANLinear", Copy, forward=lambda self, x: parts(self.float(), x.detach().float()))().float()
    with pytest.raises(ValueError, match=r"other gradients .* its inputs"):
        convert(narrow)
    frozen = Copy().requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in convert(nn.Sequential(frozen)).parameters())


def test_a_part_of_torch_jit_stays() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 2), nn.Tanh()).to(D))
    model = nn.Sequential(Copy(), scripted)
    wanted = model(points(3)).detach()
    close(convert(model)(points(3)).detach(), wanted)
    close(convert(model, inplace=True)(points(3)).detach(), wanted)
    assert type(model[0]) is KANLinear
    assert model[1] is scripted


@pytest.mark.parametrize("training", [False, True])
def test_a_dropout_is_refused_with_the_way_on(training: bool) -> None:
    source = named("DropKANLinear", copies.Dropped, rate=0.2)().train(training)
    with pytest.raises(ValueError, match=r"random numbers.*dropout of 0, and put an nn\.Dropout in front of or behind"):
        convert(source)


class LKAN(nn.Module):
    """A layer with a name and tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.coeff = nn.Parameter(torch.randn(4, 3, 8))
        self.grid = nn.Parameter(torch.linspace(-2, 2, 12), requires_grad=False)


def test_refusals_name_the_tensors_and_the_way_on() -> None:
    model = nn.Sequential(nn.Linear(3, 3), named("MyKAN", LKAN)())
    message = r"Not recognised: 1, a MyKAN with coeff, grid\. KANLinear\.from_splines\(knots, coefficients"
    with pytest.raises(ValueError, match=message):
        convert(model)
    with pytest.raises(ValueError, match=r"lacks tensors .*; it has coeff, grid\. KANLinear\.from_splines"):
        convert(named("KANLinear", LKAN)())
    with pytest.raises(
        ValueError, match=r"base_activation=Softplus is none of .*add F\.linear\(base\(x\), weight\) to its output"
    ):
        convert(peers.KANLinear(3, 4, base_activation=nn.Softplus))
    source = Copy()
    source.spline_weight = nn.Parameter(torch.ones(2, 4, 3, 8, dtype=D))
    with pytest.raises(ValueError, match=r"groups, make a KANLinear for each group by KANLinear\.from_splines"):
        convert(source)


# -- networks ---------------------------------------------------------------------------------------------


class EfficientKAN(peers.KAN):
    """efficient-kan's network with the methods that its training loops call."""

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        for layer in self.layers:
            if update_grid:
                layer.update_grid(x)
            x = layer(x)
        return x

    def regularization_loss(self, activation: float = 1.0, entropy: float = 1.0) -> Tensor:
        return sum(layer.regularization_loss(activation, entropy) for layer in self.layers)


EfficientKAN.__name__ = "KAN"


class Block(nn.Module):
    """A part of a larger model that calls a KAN in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3, dtype=D)
        self.kan = EfficientKAN([3, 5, 3])

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        return x + self.kan(self.norm(x), update_grid)


def test_networks_inside_keep_their_class_and_all_that_is_called_on_them() -> None:
    source, x = Block(), points(3)
    ours = convert(source)
    assert type(ours.kan) is EfficientKAN
    assert [type(layer) for layer in ours.kan.layers] == [KANLinear, KANLinear]
    close(ours(x).detach(), source(x).detach())
    before = ours.kan.layers[0].knots.clone()
    ours(x, update_grid=True).sum().backward()
    assert not torch.equal(before, ours.kan.layers[0].knots)
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert ours.kan.regularization_loss(1.0, 0.0) > 0
    decayed = {n for name, m in ours.named_modules() if isinstance(m, peers.KAN) for n, _ in m.named_parameters(name)}
    assert decayed == {name for name, _ in ours.named_parameters() if name.startswith("kan.")}


def test_checkpoints_of_a_model_with_a_network_inside_load_strictly_both_ways() -> None:
    source, x = Block(), points(3)
    ours = convert(source)
    other = Block()
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    ours.load_state_dict(convert_state_dict(other.state_dict()))
    close(ours(x).detach(), other(x).detach())
    source.load_state_dict(to_efficient_kan_state_dict(ours))
    close(source(x).detach(), other(x).detach())


def test_networks_can_be_chosen() -> None:
    assert type(convert(Block(), networks=True).kan) is KAN
    assert type(convert(EfficientKAN([3, 4, 2]))) is KAN
    kept = convert(EfficientKAN([3, 4, 2]), networks=False)
    assert type(kept) is EfficientKAN
    assert type(kept.layers[0]) is KANLinear
    assert type(convert(nn.Sequential(peers.pykan()), networks=False)[0]) is KAN  # its layers return four tensors


class Padded(EfficientKAN):
    """A network whose forward can't be called with the inputs of its first layer."""

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        return super().forward(torch.cat([x, x], -1))


class Activated(EfficientKAN):
    """A network that does more than call its layers."""

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        return super().forward(x).tanh()


@pytest.mark.parametrize(
    ("cls", "columns", "reason"), [(Padded, 2, "cannot be called"), (Activated, 4, "computes something else")]
)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_that_differs_gets_new_layers(cls: type, columns: int, reason: str, inplace: bool) -> None:
    source, x = named("KAN", cls)([4, 3, 2]), points(columns)
    wanted = source(x).detach()
    with pytest.raises(ValueError, match=reason):
        convert(source, networks=True)
    with pytest.warns(UserWarning, match=f"KAN keeps its class, and only its layers are converted: .*{reason}") as told:
        ours = convert(source, inplace=inplace)
    assert told[0].filename == __file__
    assert (ours is source) is inplace
    assert type(ours.layers[0]) is KANLinear
    close(ours(x).detach(), wanted)


def test_layers_between_the_layers_of_a_network_stay() -> None:
    source, x = peers.inkan(3, 4, 2), points(3)
    source.layers.insert(1, nn.LayerNorm(4, dtype=D))
    source.gain = nn.Parameter(torch.ones(1))
    with pytest.warns(UserWarning, match="KANNetwork keeps its class"):
        ours = convert(source)
    assert [type(each) for each in ours.layers] == [KANLinear, nn.LayerNorm, KANLinear]
    close(ours(x).detach(), source(x).detach())


class Tokens(EfficientKAN):
    """kan-gpt's network."""

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        batch, tokens, columns = x.shape
        return super().forward(x.view(-1, columns)).view(batch, tokens, -1)


def test_a_network_of_tokens() -> None:
    source, x = named("KAN", Tokens)([3, 4, 2]), points(3).view(4, 16, 3)
    ours = convert(source)
    assert type(ours) is KAN
    close(ours(x).detach(), source(x).detach())


# -- pykan 0.0 ----------------------------------------------------------------------------------------------


def old_network() -> OldKAN:
    source = OldKAN([2, 3, 1])
    source.fix(0, 1, 2, "sin", torch.sin, (2.0, 0.3, 1.5, -0.2))
    return source


def test_pykan_0_0_and_twenty_steps_of_training() -> None:
    source, x = old_network(), points(2)
    source(x)  # the call stores values with graphs
    source.biases[0].weight.requires_grad_(False)
    ours = convert(source)
    assert type(ours) is KAN
    assert [tuple(edge) for edge in ours.symbolic[0].edges] == [(1, 2, "sin")]
    assert [bias.requires_grad for bias in ours.node_bias] == [False, True]
    assert ours.grid_eps == 1.0
    for got, wanted in zip(value_and_slope(ours, x), value_and_slope(source, x), strict=True):
        close(got, wanted)
    for model in (source, ours):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - x.prod(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    close(ours(x).detach(), source(x).detach())


def test_what_pykan_0_0_can_do_and_a_layer_can_not() -> None:
    locked = OldKAN([2, 3])
    locked.act_fun[0].weight_sharing[1] = 0
    with pytest.raises(ValueError, match=r"act_fun.0: edges share a function by lock\(\)"):
        convert(locked)
    several = OldKAN([2, 3])
    several.act_fun[0].grid.data[2, 1] += 0.01
    with pytest.raises(ValueError, match=r"act_fun.0: the edges of an input have different grids"):
        convert(several)
    source = OldLayer(2, 3)
    del source.in_dim, source.weight_sharing
    with pytest.raises(ValueError, match=r"OldLayer: it lacks in_dim"):
        convert(source)
    with pytest.raises(ValueError, match=r"0, a OldLayer: it is pykan 0.0's KANLayer, which returns four tensors"):
        convert(nn.Sequential(OldLayer(2, 3)))


def test_a_checkpoint_of_pykan_0_0() -> None:
    source, x = OldKAN([2, 3, 1]), points(2)
    ours = KAN([2, 3, 1], grid=5, dtype=D)
    ours.load_state_dict(convert_state_dict(source.state_dict()))
    close(ours(x).detach(), source(x).detach())
    state = {f"net.{name}": value for name, value in source.state_dict().items()}
    nn.ModuleDict({"net": ours}).load_state_dict(convert_state_dict(state))
    with pytest.raises(ValueError, match=r"act_fun.0: .*sizes are not in a state_dict without biases"):
        convert_state_dict({name: value for name, value in source.state_dict().items() if "biases" not in name})
    with pytest.raises(ValueError, match=r"symbolic_fun.0: it has formulas"):
        convert_state_dict(old_network().state_dict())


# -- what training loops call -----------------------------------------------------------------------------


def reference_loss(weight: Tensor, activation: float, entropy: float) -> Tensor:
    """efficient-kan's penalty, of weights ``[out, in, K]``."""
    size = weight.abs().sum(2) / weight.shape[2]
    share = size / size.sum()
    return activation * size.sum() + entropy * torch.special.entr(share).sum()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.0), (0.0, 2.5)])
def test_regularization_loss_and_its_gradient(weights: tuple[float, float]) -> None:
    source = peers.KAN([3, 4, 2])
    ours = convert(source)
    wanted = sum(reference_loss(layer.spline_weight, *weights) for layer in source.layers)
    ours.regularization_loss(*weights).backward()
    wanted.backward()
    close(ours.regularization_loss(*weights).detach(), wanted.detach())
    for layer, theirs in zip(ours.layers, source.layers):
        close(layer.spline_weight.grad, theirs.spline_weight.grad.permute(2, 1, 0))


def test_regularization_loss_of_edges_that_are_off_is_finite() -> None:
    layer = KANLinear(2, 3, dtype=D)
    layer.set_mask(torch.tensor([[1, 0, 1], [1, 1, 1]]))
    loss = layer.regularization_loss()
    loss.backward()
    on = layer.spline_weight.detach().flatten(1)[:, [0, 2, 3, 4, 5]]
    close(loss.detach(), reference_loss(on.t().unsqueeze(0), 1.0, 1.0))
    assert layer.spline_weight.grad.isfinite().all()
    layer.spline_weight.data.zero_()
    assert layer.regularization_loss() == 0
    with pytest.raises(TypeError, match="regularize_entropy must be a number"):
        layer.regularization_loss(1.0, "a")


def test_a_forward_that_updates_grids_is_a_grid_update_and_a_forward() -> None:
    model, other = (KAN([3, 4, 2], seed=0, dtype=D) for _ in range(2))
    x = 3 * points(3)
    y = model(x.view(8, 8, 3), update_grid=True)
    other.update_grid(x)
    assert torch.equal(y.flatten(0, 1), other(x))
    assert torch.equal(model.layers[1].knots, other.layers[1].knots)
    y.sum().backward()
    assert model.layers[0].spline_weight.grad.any()
    before = model.layers[0].knots.clone()
    with pytest.raises(ValueError, match="finite"):
        model(x * torch.nan, update_grid=True)
    assert torch.equal(model.layers[0].knots, before)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_checkpoint_of_efficient_kan_s_network_loads_into_a_network_and_into_layers(scaled: bool) -> None:
    source, x = peers.KAN([3, 4, 2], scaled=scaled), points(3)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    found = convert_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    network = KAN([3, 4, 2], grid=5, dtype=D)
    for name in ("node_scale", "subnode_bias"):
        getattr(network, name)[0].data.fill_(3.0)
    network.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    network.load_state_dict(found)
    close(network(x).detach(), source(x).detach())
    nn.ModuleDict({"module": network}).load_state_dict(convert_state_dict(state))
    layers = nn.ModuleDict({"layers": nn.ModuleList(
        KANLinear(i, o, spline_scale=scaled, dtype=D) for i, o in ((3, 4), (4, 2)))})  # fmt: skip
    layers.load_state_dict(found)
    close(layers["layers"][1](layers["layers"][0](x)).detach(), source(x).detach())


def test_a_state_without_layers_is_incomplete() -> None:
    model = KAN([3, 2])
    with pytest.raises(RuntimeError, match=r"Missing key.*input_id"):
        model.load_state_dict({})
    part = {name: value for name, value in KAN([3, 4, 2]).state_dict().items() if name.startswith("layers.0")}
    with pytest.raises(RuntimeError, match=r"Missing key.*input_id"):
        KAN([3, 4, 2]).load_state_dict(part)
