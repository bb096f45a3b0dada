"""``convert`` of efficient-kan's classes as projects have copied and changed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from peers import D, points
from test_convert import close
from torch import Tensor, nn

from fastkan import KAN, KANLinear, convert, convert_state_dict


def layer(forward: Callable[[Any, Tensor], Tensor], change: Callable[[Any], None] = lambda layer: None) -> Any:
    """A layer with the name and tensors of efficient-kan's, but another forward."""

    def call(self: Any, x: Tensor) -> Tensor:
        return forward(self, x)

    made = type("KANLinear", (peers.KANLinear,), {"forward": call})(3, 4)
    change(made)
    return made


def plain(self: Any, x: Tensor) -> Tensor:
    return peers.KANLinear.forward(self, x)


def with_dropout_of_its_own(self: Any, x: Tensor) -> Tensor:
    return plain(self, nn.functional.dropout(x, 0.1, self.training))


def with_a_dropout_layer(self: Any, x: Tensor) -> Tensor:
    return self.dropout(plain(self, x))


def give_a_dropout_layer(self: Any) -> None:
    self.dropout = nn.Dropout(0.02)


def with_noise(self: Any, x: Tensor) -> Tensor:
    return plain(self, x) + (1e-12 * torch.randn(len(x), 4, dtype=x.dtype) if self.training else 0.0)


def doubled_in_training(self: Any, x: Tensor) -> Tensor:
    return plain(self, x) * (2 if self.training else 1)


def doubled_in_evaluation(self: Any, x: Tensor) -> Tensor:
    return plain(self, x) * (1 if self.training else 2)


CHANGED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout in forward": (lambda: layer(with_dropout_of_its_own), "it draws random numbers, as dropout does"),
    "a dropout layer": (lambda: layer(with_a_dropout_layer, give_a_dropout_layer), "it draws random numbers"),
    "noise": (lambda: layer(with_noise), "it draws random numbers"),
    "another in training": (lambda: layer(doubled_in_training), "computes something else in training mode"),
    "another in evaluation": (lambda: layer(doubled_in_evaluation), "computes something else$"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_what_a_layer_does_in_either_mode_counts(name: str, training: bool) -> None:
    make, message = CHANGED[name]
    source = nn.Sequential(make().train(training), nn.Tanh())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"0, a KANLinear: .*{message}"):
        convert(source)
    assert source[0].training is training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropout_inside_of_a_network_counts() -> None:
    source = peers.KAN([3, 4]).eval()
    source.layers[0] = layer(with_dropout_of_its_own)
    source.layers[0].eval()
    with pytest.raises(ValueError, match="module, a KAN: it draws random numbers"):
        convert(source)


def test_the_source_is_left_as_it_was() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = plain(self, x)
        with torch.no_grad():
            self.calls += 1
            if self.training:
                self.spline_weight += 1
                self.grid = self.grid + 1
        return y

    source = layer(forward, lambda layer: layer.register_buffer("calls", torch.zeros(())))
    source.base_activation.eval()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    grid = source.grid
    ours = convert(source)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert source.grid is grid
    assert (source.training, source.base_activation.training, ours.training) == (True, False, True)
    source.calls -= 1
    close(ours(points(3)).detach(), peers.KANLinear.forward(source, points(3)).detach())


def test_a_changed_file_in_a_folder_of_the_package_s_name_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = layer(doubled_in_evaluation)
    monkeypatch.setattr(type(source), "__module__", "efficient_kan.kan")
    with pytest.raises(ValueError, match="computes something else"):
        convert(source)


def test_a_layer_that_calls_silu_itself() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        base = nn.functional.linear(function(x), self.base_weight)
        weight = self.spline_weight * self.spline_scaler.unsqueeze(2)
        return base + nn.functional.linear(self.splines(x).flatten(1), weight.flatten(1))

    source = layer(forward, lambda layer: delattr(layer, "base_activation"))
    function: Callable[[Tensor], Tensor] = nn.functional.silu
    ours = convert(source)
    assert ours.base == "silu"
    close(ours(points(3)).detach(), source(points(3)).detach())
    function = nn.functional.gelu
    with pytest.raises(ValueError, match="computes something else"):
        convert(source)


def grouped() -> Any:
    """convkan's layer, which has one weight for each group of channels."""
    made = layer(plain)
    made.spline_weight = nn.Parameter(torch.ones(2, 4, 3, 8, dtype=D))
    made.base_weight = nn.Parameter(torch.ones(2, 4, 3, dtype=D))
    return made


def test_weights_of_groups_are_refused_by_name() -> None:
    message = r"spline_weight must have 3 dimensions, as in efficient-kan; got the shape \[2, 4, 3, 8\]"
    with pytest.raises(ValueError, match=f"module, a KANLinear: {message}"):
        convert(grouped())
    with pytest.raises(ValueError, match=f"state_dict: {message}"):
        convert_state_dict(grouped().state_dict())


class Convolution(nn.Module):
    """A convolution made of a list of layers, each applied to patches."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(peers.KANLinear(9, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 3).transpose(1, 2)
        return torch.cat([conv(patches.flatten(0, 1)) for conv in self.convs], 1)


@pytest.mark.parametrize("name", ["KAN_Convolutional_Layer", "KANLinear"])
def test_a_module_that_is_named_like_a_layer_and_holds_some_is_looked_through(name: str) -> None:
    source = nn.Sequential(type(name, (Convolution,), {})(), peers.KAN([2, 3]))
    x = points(36, 5).reshape(5, 1, 6, 6)
    expected = source(x).detach()
    ours = convert(source)
    assert [type(each) for each in ours[0].convs] == [KANLinear] * 2
    assert type(ours[1]) is KAN
    close(ours(x).detach(), expected)
