"""What a layer carries along: state dicts, copies, and layers made without memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fastkan import KANLinear


def full_layer() -> KANLinear:
    """With everything that has a state, adapted knots among it."""
    layer = KANLinear(3, 4, 6, 2, bias=True, spline_scale=True, outside="linear")
    layer.update_grid(torch.randn(100, 3))
    layer.set_mask((torch.arange(12) % 3 > 0).view(3, 4))
    with torch.no_grad():
        layer.spline_scale.normal_()
        layer.bias.normal_()
    return layer


def fresh_layer() -> KANLinear:
    return KANLinear(3, 4, 6, 2, bias=True, spline_scale=True, outside="linear")


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_everything_back(assign: bool) -> None:
    layer, other = full_layer(), fresh_layer()
    x = torch.randn(20, 3)
    state = layer.state_dict()
    assert set(state) == {"spline_weight", "base_weight", "spline_scale", "bias", "knots", "mask"}
    other.load_state_dict(copy.deepcopy(state), assign=assign)
    assert torch.equal(other(x), layer(x))
    assert repr(other) == repr(layer)
    # and from a layer without a mask to one with
    plain = fresh_layer()
    assert "mask" not in plain.state_dict()
    other.load_state_dict(plain.state_dict())
    assert other.mask is None
    assert torch.equal(other(x), plain(x))
    assert "adapted" not in repr(other)


def test_a_state_dict_of_other_layers_changes_nothing() -> None:
    layer = full_layer()
    network, before = torch.nn.Sequential(layer, torch.nn.Linear(4, 2)), copy.deepcopy(layer.state_dict())
    network.load_state_dict({"1.bias": torch.zeros(2)}, strict=False)
    after = layer.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_state_dict_of_another_grid_is_refused() -> None:
    layer, before = full_layer(), full_layer().state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for spline_weight"):
        KANLinear(3, 4, 9, 2, bias=True, spline_scale=True).load_state_dict(layer.state_dict())
    assert set(before) == set(layer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
def test_a_copy_is_the_same_and_its_own(copied) -> None:
    layer = full_layer()
    layer.count_outside()
    x = torch.randn(20, 3)
    y = layer(x)
    y.sum().backward()  # pykan's models can't be copied after this
    other = copied(layer)
    assert torch.equal(other(x), y)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        other.mask.zero_()
        other.set_knots(other.knots + 1)
    assert torch.equal(layer(x), y)


def test_made_without_memory_and_filled_later() -> None:
    """The meta device, as large models are made."""
    source = full_layer()
    with torch.device("meta"):
        layer = fresh_layer()
    assert layer.spline_weight.is_meta
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(layer(x), source(x))
    plain = fresh_layer()
    layer.load_state_dict(plain.state_dict())
    assert repr(layer) == repr(plain)
