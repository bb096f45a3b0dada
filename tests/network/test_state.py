"""State dicts and copies of layers, and layers made without memory."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.utils.prune

from fastkan import KAN, KANLinear


def full_layer() -> KANLinear:
    """A layer with everything that has a state, adapted knots included."""
    layer = KANLinear(3, 4, 6, 2, bias=True, spline_scale=True, outside="linear")
    layer.update_grid(torch.randn(100, 3))
    layer.set_mask((torch.arange(12) % 3 > 0).view(3, 4))
    with torch.no_grad():
        layer.spline_scale.normal_()
        layer.bias.normal_()
    return layer


def fresh_layer() -> KANLinear:
    return KANLinear(3, 4, 6, 2, bias=True, spline_scale=True, outside="linear")


@pytest.mark.usefixtures("each_backend")
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


@pytest.mark.usefixtures("each_backend")
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


@pytest.mark.usefixtures("each_backend")
def test_made_without_memory_and_filled_later() -> None:
    """The meta device, as large models are made."""
    source = full_layer()
    with torch.device("meta"):
        layer = fresh_layer()
    assert layer.spline_weight.is_meta
    layer.to_empty(device=source.knots.device).load_state_dict(source.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(layer(x), source(x))
    plain = fresh_layer()
    layer.load_state_dict(plain.state_dict())
    assert repr(layer) == repr(plain)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("write", ["copy_", "averaged model", "functional_call"])
def test_knots_that_somebody_else_wrote_are_noticed(write: str) -> None:
    """The closed form of equal knots isn't used for others, however they were written into the layer."""
    layer, other = KANLinear(2, 3, 10), KANLinear(2, 3, 10)
    other.load_state_dict(layer.state_dict())
    other.update_grid(2 * torch.randn(500, 2))
    x = torch.randn(40, 2)
    expected = other(x)
    if write == "copy_":
        for mine, theirs in zip(layer.state_dict().values(), other.state_dict().values()):
            mine.copy_(theirs)
        y = layer(x)
    elif write == "averaged model":
        average = torch.optim.swa_utils.AveragedModel(layer, avg_fn=lambda old, new, count: new)
        for _ in range(2):
            average.update_parameters(other)
        y = copy.deepcopy(average)(x)
    else:
        y = torch.func.functional_call(layer, other.state_dict(), x)
        compiled = torch.compile(torch.func.functional_call, backend="aot_eager")
        torch.testing.assert_close(compiled(layer, other.state_dict(), x), expected, rtol=1e-4, atol=1e-5)
        layer(x)  # which is as it was
        assert "adapted" not in repr(layer)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_a_failed_load_leaves_a_layer_that_works() -> None:
    layer, other = KANLinear(2, 3), KANLinear(2, 2)
    other.set_mask(torch.ones(2, 2))
    x = torch.rand(5, 2)
    y = layer(x)
    with pytest.raises(RuntimeError, match=r"mask: \[2, 3\] expected, got \[2, 2\]"):
        layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda knots: knots.flip(1), "non-decreasing"),
    (lambda knots: knots * torch.nan, "finite"),
    (lambda knots: knots * 0, "width"),
], ids=["falling", "nan", "flat"])  # fmt: skip
def test_a_state_dict_with_knots_that_are_none_is_refused(spoil, message: str) -> None:
    layer = KANLinear(2, 3)
    state = {**layer.state_dict(), "knots": spoil(layer.knots)}
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=f"knots must be {message}|grid must have a {message}"):
        layer.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.usefixtures("each_backend")
def test_what_was_changed_in_inference_mode_can_be_trained_after() -> None:
    layer = KANLinear(2, 3)
    with torch.inference_mode():
        layer.update_grid(torch.randn(50, 2))
        layer.refine(10)
        layer.set_knots(layer.knots + 0.1)
        layer.set_mask(torch.ones(2, 3))
        layer.count_outside()
        layer(torch.randn(5, 2))
    layer(torch.randn(5, 2)).sum().backward()
    assert layer.outside_share().shape == (2,)


def test_memory_that_is_given_later_holds_the_first_grid() -> None:
    """The recipe of deferred initialisation: meta, to_empty, reset_parameters."""
    with torch.device("meta"):
        layer = KANLinear(2, 3, 6, grid_range=(0, 3))
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.equal(layer.knots, KANLinear(2, 3, 6, grid_range=(0, 3)).knots)
    assert layer(3 * torch.rand(9, 2)).isfinite().all()


def test_splines_that_are_computed_by_something_else_are_not_refitted() -> None:
    layer = KANLinear(2, 3)
    torch.nn.utils.parametrizations.weight_norm(layer, "spline_weight")
    knots, x = layer.knots.clone(), torch.randn(50, 2)
    for change in (lambda: layer.update_grid(x), lambda: layer.refine(10)):
        with pytest.raises(RuntimeError, match="spline_weight is no parameter of the layer itself"):
            change()
    assert torch.equal(layer.knots, knots)


@pytest.mark.parametrize("name", ["spline_weight", "base_weight", "spline_scale", "bias"])
@pytest.mark.parametrize("kind", ["parametrization", "old weight_norm", "pruning"])
def test_computed_weights_are_not_reset_in_part(kind: str, name: str) -> None:
    """PyTorch's own layers keep the old value silently: what is written into a computed weight is lost."""
    layer = full_layer()
    if kind == "parametrization":
        torch.nn.utils.parametrize.register_parametrization(layer, name, torch.nn.Tanh())
    elif kind == "pruning":
        torch.nn.utils.prune.l1_unstructured(layer, name, amount=0.5)
    else:
        with warnings.catch_warnings(action="ignore"):
            torch.nn.utils.weight_norm(layer, name, dim=None)
    model = KAN([2, 3, 4, 1], seed=0)
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    model.layers[1] = layer
    before = copy.deepcopy(layer.state_dict())
    for reset in (layer.reset_parameters, model.reset_parameters):
        with pytest.raises(RuntimeError, match=rf"{name} is no parameter .* Remove that, call reset_parameters"):
            reset()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert model.symbolic[0].edges


@pytest.mark.parametrize("layer", [KANLinear(3, 4), KANLinear(64, 64)], ids=["small", "large"])
def test_another_default_device_is_no_matter(layer: KANLinear) -> None:
    """Constants and scratch memory are made on x's device."""
    x = torch.rand(500, layer.in_features).requires_grad_()
    with torch.device("meta"):
        layer(x).sum().backward()
    y = layer(x)
    assert y.device.type == "cpu"
    assert y.isfinite().all()


def test_a_trace_that_fails_spoils_nothing() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    layer = KANLinear(3, 4, 7)
    x = torch.rand(5, 3)
    try:
        make_fx(layer, tracing_mode="fake")(x)
    except Exception as error:  # fake and real tensors don't mix
        assert "Fake" in str(error)  # noqa: PT017
    assert layer(x).isfinite().all()
