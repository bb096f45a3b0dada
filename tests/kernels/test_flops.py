"""The counts of PyTorch's FlopCounterMode: each contraction as a dense product of the features and the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastkan import KAN, KANConv2d, KANLinear
from fastkan.functional import kan_linear


def counted(function: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


SIZES = [(2, 3, 10, 5), (64, 48, 40, 20), (200, 1, 7, 5)]  # inputs, outputs, rows, intervals


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize(("inputs", "outputs", "rows", "grid"), SIZES)
def test_forward_and_backward(inputs: int, outputs: int, rows: int, grid: int, base: str, adapted: bool) -> None:
    layer = KANLinear(inputs, outputs, grid, 2, base=base)
    if adapted:
        layer.update_grid(torch.randn(99, inputs))
    one = 2 * rows * inputs * outputs * (grid + 2 + (base == "silu"))
    x = torch.rand(rows, inputs)
    with torch.no_grad():
        assert counted(lambda: layer(x)) == one
    assert counted(lambda: layer(x).sum().backward()) == 2 * one  # F, and G for the weights
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).sum().backward()
    for p, value in zip(layer.parameters(), expected):
        torch.testing.assert_close(p.grad, value, rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    assert counted(lambda: layer(x).sum().backward()) == 3 * one  # and H for the inputs


def test_a_convolution_counts_as_that_of_its_features() -> None:
    layer = KANConv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, grid_size=5)
    x = torch.rand(2, 4, 7, 8)
    one = 2 * 2 * (4 * 5) * (4 // 2) * 6 * (3 * 2) * (5 + 3 + 1)  # 2 images of 4 x 5 output pixels
    as_torch = nn.Conv2d(4 * 9, 6, (3, 2), stride=2, padding=1, groups=2, bias=False)
    assert counted(lambda: as_torch(torch.rand(2, 36, 7, 8))) == one
    with torch.no_grad():
        assert counted(lambda: layer(x)) == one
    assert counted(lambda: layer(x).sum().backward()) == 2 * one
    assert counted(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * one
    padded = KANConv2d(1, 1, 3, padding="same", padding_mode="reflect", base="none", grid_size=2, spline_order=1)
    assert counted(lambda: padded(torch.rand(1, 1, 5, 4))) == 2 * 20 * 9 * 3
    assert counted(lambda: padded.to("meta")(torch.rand(1, 1, 5, 4, device="meta"))) == 2 * 20 * 9 * 3


def test_second_derivatives() -> None:
    """The function is called, since torch's counter fails for torch.autograd.grad with respect to a module's inputs."""
    layer, x = KANLinear(3, 4), torch.rand(10, 3, requires_grad=True)

    def twice() -> None:
        y = kan_linear(x, layer.spline_weight, layer.base_weight, knots=layer.knots)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        slope.square().sum().backward()

    # F; H for the slope, and G, which operators compute with it; H and G for the second derivatives
    assert counted(twice) == 5 * 2 * 10 * 12 * 9


def test_a_network_counts_as_its_layers_and_a_layer_on_meta_as_any_other() -> None:
    model, x = KAN([2, 5, 1], grid=5, seed=0), torch.rand(100, 2)
    assert counted(lambda: model(x)) == 2 * 100 * (10 + 5) * 9
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    # torch attributes the gradients with respect to the weights to the module, too
    both = torch.ops.fastkan.contract_out, torch.ops.fastkan.contract_weight
    assert counter.get_flop_counts()["KAN.layers.0"] == dict.fromkeys(both, 2 * 100 * 10 * 9)
    meta = KANLinear(2, 3, device="meta")
    assert counted(lambda: meta(x.to("meta"))) == 2 * 100 * 6 * 9


def test_the_summary_of_lightning() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(KANLinear(2, 3), KANLinear(3, 1))
            self.example_input_array = torch.rand(10, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    summary = lightning.utilities.model_summary.summarize(Module(), max_depth=2)
    assert summary.total_flops == 2 * 10 * (6 + 3) * 9
