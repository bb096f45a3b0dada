"""Fresh parameters: a reset module equals a new one, whatever the module or its memory contained before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastkan import KAN, KANLinear


def fill(module: nn.Module) -> None:
    """Fill memory with NaN, and with numbers that are invalid as indices, masks and text."""
    for value in (*module.parameters(), *module.buffers()):
        value.data.fill_(torch.nan if value.is_floating_point() else 77)


def by_to_empty(module: nn.Module) -> None:
    module.to_empty(device="cpu")


def by_setattr(module: nn.Module) -> None:
    """Allocate memory as transformers does for missing parameters: each attribute alone, without Module._apply."""
    for each in module.modules():
        for name, value in (*each.named_parameters(recurse=False), *each.named_buffers(recurse=False)):
            empty = torch.empty_like(value, device="cpu")
            setattr(each, name, nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty)


def by_each_module(module: nn.Module) -> None:
    """Allocate memory as FSDP does: each module that has its own parameters or buffers is filled and reset alone, the
    outer ones first."""
    for each in module.modules():
        if any(True for _ in (*each.parameters(recurse=False), *each.buffers(recurse=False))):
            each.to_empty(device="cpu", recurse=False)
            each.reset_parameters()  # type: ignore[operator]


def check_same(module: nn.Module, other: nn.Module) -> None:
    state, found = module.state_dict(), other.state_dict()
    assert state.keys() == found.keys()
    assert [name for name in state if not torch.equal(state[name], found[name])] == []
    assert {name: p.requires_grad for name, p in module.named_parameters()} == {
        name: p.requires_grad for name, p in other.named_parameters()
    }
    assert repr(module) == repr(other)


def make_layer(**options: Any) -> KANLinear:
    return KANLinear(3, 4, 6, 2, grid_range=(0, 3), bias=True, spline_scale=True, **options)


@pytest.mark.parametrize("allocate", [by_to_empty, by_setattr])
def test_a_layer_in_new_memory(allocate: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    expected = make_layer()
    with torch.device("meta"):
        layer = make_layer()
        layer.set_mask(torch.ones(3, 4))
        layer.count_outside()
    allocate(layer)
    fill(layer)
    torch.manual_seed(0)
    layer.reset_parameters()
    check_same(layer, expected)
    x = 3 * torch.rand(9, 3)
    assert torch.equal(layer(x), expected(x))
    assert torch.equal(layer.outside_share(), torch.zeros(3))


def test_a_layer_that_was_trained_keeps_its_grid_size_and_its_parameters_as_objects() -> None:
    layer = make_layer()
    layer.update_grid(torch.randn(50, 3))
    layer.refine(9)
    layer.set_mask(torch.zeros(3, 4))
    layer._freeze_if_idle()
    parameters = dict(layer.named_parameters())
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    check_same(layer, KANLinear(3, 4, 9, 2, grid_range=(0, 3), bias=True, spline_scale=True))
    assert all(value is parameters[name] for name, value in layer.named_parameters())


OPTIONS: dict[str, Any] = {
    "width": [3, [2, 1], 2], "grid": [4, 6], "k": 2, "noise_scale": 0.7, "scale_base_mu": 0.5,
    "scale_base_sigma": 0.1, "affine_trainable": True, "grid_range": (-2, 1), "sb_trainable": False,
}  # fmt: skip


@pytest.mark.parametrize("allocate", [by_to_empty, by_setattr, by_each_module])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_network_in_new_memory(sparse: bool, allocate: Callable[[nn.Module], None]) -> None:
    expected = KAN(**OPTIONS, seed=5, sparse_init=sparse)
    model = KAN(**OPTIONS, seed=5, sparse_init=sparse, device="meta")
    assert all(value.is_meta for value in (*model.parameters(), *model.buffers()))
    allocate(model)
    if allocate is by_each_module:  # the root is reset first, before its layers have memory
        assert all(value.isfinite().all() for value in (*model.parameters(), *model.buffers()))
        for layer, other in zip(model.layers, expected.layers):
            assert torch.equal(layer.knots, other.knots)
            assert torch.equal(layer.spline_scale, other.spline_scale)
            assert (layer.base_weight - 0.5 * layer.in_features**-0.5).abs().max() <= 0.1 * layer.in_features**-0.5
        assert model(torch.rand(5, 3)).isfinite().all()
        return
    fill(model)
    model.reset_parameters()
    check_same(model, expected)
    x = 3 * torch.rand(9, 3) - 2
    assert torch.equal(model(x), expected(x))


def test_a_network_that_was_fitted_and_made_of_formulas() -> None:
    model = KAN(**OPTIONS, seed=5)
    x = 3 * torch.rand(40, 3) - 2
    model.fit((x, x[:, :2]), steps=2, opt="LBFGS", progress=False)
    for i in range(3):
        for j in range(4):
            model.fix_symbolic(0, i, j, "sin", fit_params_bool=False)
    model.layers[1].set_mask(torch.tensor([[1, 0], [1, 1], [0, 1]]))
    with torch.no_grad():
        model.node_bias[1].fill_(0.3)
        model.input_id.copy_(torch.tensor([2, 0, 1]))
    model.prune(x=x)
    assert model.prune_mask is not None
    model.reset_parameters()
    check_same(model, KAN(**OPTIONS, seed=5))
    assert model.sample is None
    assert model.prune_mask is None
    assert model.history == []
    assert torch.equal(model(x), KAN(**OPTIONS, seed=5)(x))


def test_without_a_seed_every_reset_draws_anew_from_the_global_generator() -> None:
    torch.manual_seed(0)
    model = KAN(**OPTIONS, seed=None)
    first = model.layers[0].spline_weight.clone()
    model.reset_parameters()
    assert not torch.equal(model.layers[0].spline_weight, first)
    torch.manual_seed(3)
    model.reset_parameters()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    other = KAN(**OPTIONS, seed=None)
    torch.set_rng_state(state)
    other.reset_parameters()
    check_same(model, other)


def test_a_network_whose_inputs_were_pruned_reads_the_same_columns() -> None:
    model = KAN([4, 2, 1], seed=0)
    pruned = model.prune_input(active_inputs=[1, 3])
    pruned.reset_parameters()
    assert pruned.input_id.tolist() == [1, 3]
    assert pruned(torch.rand(5, 4)).isfinite().all()
    empty = pruned.to("meta").to_empty(device="cpu")
    for wrong in ([1, 1], [1, 4], [-1, 0]):
        empty.input_id.copy_(torch.tensor(wrong))
        with pytest.raises(ValueError, match=r"input_id must be 2 of the 4 columns of x, because inputs were pruned"):
            empty.reset_parameters()


def test_a_network_on_meta_stays_there() -> None:
    model = KAN([2, 2, 1], seed=0, device="meta")
    model.reset_parameters()
    assert all(value.is_meta for value in (*model.parameters(), *model.buffers()))


def test_layers_and_networks_of_inference_mode() -> None:
    model = KAN([2, 2, 1], seed=0)
    with torch.inference_mode():
        made = KAN([2, 2, 1], seed=0)
        for each in (made, model):
            each.reset_parameters()
            check_same(each, KAN([2, 2, 1], seed=0))
    model(torch.rand(5, 2)).sum().backward()


def test_sharded_parameters_are_reset_to_the_same_values() -> None:
    """FSDP2's deferred initialisation: fully_shard on meta, to_empty, reset_parameters."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    if not distributed.is_gloo_available():
        pytest.skip("needs gloo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model: Any = KAN(**OPTIONS, seed=5, device="meta")
        for layer in model.layers:
            fully_shard(layer, mesh=distributed.init_device_mesh("cpu", (1,)))
        fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
        model.to_empty(device="cpu")
        fill(model)
        model.reset_parameters()
        expected = KAN(**OPTIONS, seed=5)
        for name, value in expected.state_dict().items():
            found = model.state_dict()[name]
            assert torch.equal(found.full_tensor() if hasattr(found, "full_tensor") else found, value), name
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("call", [
    lambda model, x: model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False),
    lambda model, x: model.fix_symbolic(0, 0, 0, "sin", x=x),
    lambda model, x: model.suggest_symbolic(0, 0, 0, x=x),
    lambda model, x: model.set_mode(0, 0, 0, "off"),
    lambda model, x: model.auto_symbolic(x=x),
    lambda model, x: model.prune(x=x),
    lambda model, x: model.refine(7, x=x),
    lambda model, x: model.update_grid(x),
    lambda model, x: model.get_act(x),
    lambda model, x: model.plot(),
    lambda model, x: model.fit((x, x[:, :1]), steps=1, progress=False),
])  # fmt: skip
def test_what_needs_values_says_how_a_network_on_meta_gets_them(call: Callable[[KAN, torch.Tensor], Any]) -> None:
    model = KAN([2, 2, 1], seed=0, device="meta")
    with pytest.raises(ValueError, match=r"the network is on the device meta, .* reset_parameters\(\) or load_state"):
        call(model, torch.rand(20, 2))
    assert model.symbolic[0].edges == ()
