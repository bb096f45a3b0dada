"""``KANFeedForward``: its size, and that it takes the place of the blocks of several transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastkan import KANFeedForward


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("d_model", [64, 100, 768])
@pytest.mark.parametrize(("grid_size", "spline_order", "base"), [(5, 3, "silu"), (8, 2, "silu"), (5, 3, "none")])
def test_it_has_as_many_weights_as_an_mlp(d_model: int, grid_size: int, spline_order: int, base: str) -> None:
    options: dict[str, Any] = {"grid_size": grid_size, "spline_order": spline_order, "base": base, "device": "meta"}
    block = KANFeedForward(d_model, **options)
    one_node_more = count(KANFeedForward(d_model, block.inner.out_features + 1, **options)) - count(block)
    assert abs(count(block) - 8 * d_model**2) <= one_node_more / 2
    assert KANFeedForward(1, grid_size=20).inner.out_features == 1


def test_arguments_reach_both_layers() -> None:
    block = KANFeedForward(4, 3, grid_size=7, spline_order=2, grid_range=(-2, 2), base="identity", dtype=torch.float64)
    assert [repr(layer) for layer in (block.inner, block.outer)] == [
        f"KANLinear({sizes}, grid_size=7, spline_order=2, base='identity')" for sizes in ("4, 3", "3, 4")
    ]
    assert all(layer.knots[0, 2] == -2 and layer.knots.dtype == torch.float64 for layer in (block.inner, block.outer))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    assert torch.equal(block(x), block.outer(block.inner(x)))
    dropped = KANFeedForward(4, dropout=1.0)
    assert not dropped(torch.rand(3, 4)).any()
    assert dropped.eval()(torch.rand(3, 4)).all()


def test_splines_reach_most_normalized_inputs() -> None:
    torch.manual_seed(0)
    block, wide = KANFeedForward(64), KANFeedForward(64, grid_range=(-2.2, 2.2))
    x = nn.functional.layer_norm(torch.randn(2000, 64), (64,))
    for layer in (block.inner, block.outer, wide.inner):
        layer.count_outside()
    block(x)
    wide(x)
    assert (block.inner.knots[0, 0].item(), block.inner.knots[0, -1].item()) == pytest.approx((-2.2, 2.2))
    assert block.inner.outside_share().mean().item() == pytest.approx(0.317, abs=0.01)
    assert wide.inner.outside_share().mean().item() == pytest.approx(0.028, abs=0.003)
    assert block.outer.outside_share().mean() < 0.01


@pytest.mark.parametrize("norm_first", [False, True])
def test_in_an_encoder_layer_of_pytorch(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dropout=0.0, batch_first=True, norm_first=norm_first)
    layer.linear1, layer.activation, layer.linear2 = KANFeedForward(8), nn.Identity(), nn.Identity()
    layer.activation_relu_or_gelu = 0
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(3, 5, 8)
    trained = model(x)
    trained.square().sum().backward()
    assert model.layers[1].linear1.outer.spline_weight.grad.any()
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), trained.detach())


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_in_a_model_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if name == "gpt2":
        config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=20)
        model = transformers.GPT2Model(config)
        model.h[0].mlp = block = KANFeedForward(16)
        x = torch.randint(0, 20, (2, 6))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        model = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **sizes))
        model.layers[0].mlp = block = KANFeedForward(16)
        x = torch.rand(2, 3, 8, 8)
    model(x).last_hidden_state.square().sum().backward()
    assert block.inner.spline_weight.grad.any()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "d_model must be .*, got 0"),
        ((4, 0), {}, "hidden must be .*, got 0"),
        ((4,), {"dropout": 1.5}, "dropout must be .*, got 1.5"),
        ((4,), {"base": "relu"}, "base must be one of"),
    ],
)
def test_errors(arguments: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KANFeedForward(*arguments, **options)
