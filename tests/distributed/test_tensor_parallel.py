"""Layers whose edges are distributed over two processes, and models with such layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import Processes
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from fastkan import KAN, KANConv1d, KANLinear
from fastkan.interop.tensor_parallel import ColwiseParallelKAN, RowwiseParallelKAN

D = torch.float64
X = torch.randn(6, 4, 7, dtype=D, generator=torch.Generator().manual_seed(5))
Y = torch.randn(6, 4, 3, dtype=D, generator=torch.Generator().manual_seed(6))


def pair(**options: Any) -> nn.Module:
    """Two layers of odd sizes, with all kinds of parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(
        KANLinear(7, 5, 4, bias=True, spline_scale=True, dtype=D, **options),
        KANLinear(5, 3, 3, bias=True, spline_scale=True, dtype=D, **options),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def adapted() -> nn.Module:
    model = pair(outside="linear")
    model[0].update_grid(X)
    model[1].update_grid(model[0](X))
    for layer in model:
        layer.set_mask(torch.rand(layer.in_features, layer.out_features) > 0.3)
    return model


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(KANLinear(7, 5, base="none", dtype=D), KANLinear(5, 3, base="identity", dtype=D))


def narrow() -> nn.Module:
    """Layers of which one process has no edge."""
    torch.manual_seed(0)
    return nn.Sequential(KANLinear(7, 1, bias=True, dtype=D), KANLinear(1, 3, bias=True, outside="linear", dtype=D))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "uniform": pair,
    "adapted": adapted,
    "few parameters": plain,
    "narrow": narrow,
}


def mesh() -> Any:
    return init_device_mesh("cpu", (2,))


def full(tensors: Any) -> dict[str, Tensor]:
    return {n: v.full_tensor() if isinstance(v, DTensor) else v.detach().clone() for n, v in tensors}


def train(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The parameters and buffers after three steps of Adam, and the gradients of the last step."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01, eps=1e-3)
    x = x.clone().requires_grad_()
    for _ in range(3):
        optimizer.zero_grad()
        x.grad = None
        (model(x) - y).square().mean().backward()
        optimizer.step()
    gradients = [(f"gradient of {name}", parameter.grad) for name, parameter in model.named_parameters()]
    return full([*model.state_dict().items(), *gradients, ("gradient of x", x.grad)])


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-14, atol=2e-15, msg=lambda text: f"{name}: {text}")  # noqa: B023


# -- a pair of layers -----------------------------------------------------------------------------


def trained_pair(model: nn.Module) -> dict[str, Tensor]:
    parallelize_module(model, mesh(), {"0": ColwiseParallelKAN(), "1": RowwiseParallelKAN()})
    first, second = model
    own = first.out_features // 2 + (first.out_features % 2) * (1 - distributed.get_rank())
    assert first.spline_weight.to_local().shape[1:] == (7, own)
    assert second.spline_weight.to_local().shape[1:] == (own, 3)
    assert second.knots.to_local().shape[0] == own
    assert first(X).shape == (6, 4, own)
    return train(model, X, Y)


@pytest.mark.parametrize("name", MODELS)
def test_a_pair_of_layers_trains_as_in_one_process(name: str, two: Processes) -> None:
    first, second = two.run(trained_pair, MODELS[name]())
    expected = train(MODELS[name](), X, Y)
    assert_close(first, expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


# -- placements of inputs and outputs -------------------------------------------------------------

LAYOUTS = {"replicated": Replicate(), "features": Shard(-1), "positions": Shard(1), "rows": Shard(0)}


def with_layouts(model: nn.Module, style: Any, wanted: str) -> dict[str, Tensor]:
    """The output and the gradients of a layer for inputs of each placement, as plain tensors and as DTensors."""
    layer, device_mesh, rank = model[0], mesh(), distributed.get_rank()
    found = {}
    for given in LAYOUTS:
        for is_local in (True, False):
            copy = pair()[0]
            copy.load_state_dict(layer.state_dict())
            parallelize_module(
                copy,
                device_mesh,
                style(
                    input_layouts=LAYOUTS[given],
                    output_layouts=LAYOUTS[wanted],
                    use_local_output=is_local,
                ),
            )
            dim = None if given == "replicated" else LAYOUTS[given].dim  # type: ignore[attr-defined]
            part = (X if dim is None else X.chunk(2, dim)[rank]).clone().requires_grad_()
            y = copy(part)
            if is_local:
                y = DTensor.from_local(y, device_mesh, [LAYOUTS[wanted]], shape=(6, 4, 5), stride=(20, 5, 1))
            whole = y.full_tensor()
            whole.sin().sum().backward()
            gradient = DTensor.from_local(
                part.grad, device_mesh, [LAYOUTS[given]], shape=X.shape, stride=X.stride()
            ).full_tensor()
            gradients = [(f"{given} {is_local} {name}", parameter.grad) for name, parameter in copy.named_parameters()]
            found |= full(gradients) | {f"{given} {is_local} x": gradient, f"{given} {is_local} y": whole.detach()}
    return found


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize("style", [ColwiseParallelKAN, RowwiseParallelKAN])
def test_inputs_and_outputs_have_the_placements_that_were_asked_for(style: Any, wanted: str, two: Processes) -> None:
    layer = pair()[0]
    x = X.clone().requires_grad_()
    y = layer(x)
    y.sin().sum().backward()
    one = {**{name: parameter.grad for name, parameter in layer.named_parameters()}, "x": x.grad, "y": y.detach()}
    expected = {
        f"{given} {is_local} {key}": v for given in LAYOUTS for is_local in (True, False) for key, v in one.items()
    }
    for found in two.run(with_layouts, pair(), style, wanted):
        assert_close(found, expected)


# -- blocks of a transformer ----------------------------------------------------------------------


class Block(nn.Module):
    """A feed-forward block with a norm, and a linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7, dtype=D)
        self.up = KANLinear(7, 6, 4, bias=True, dtype=D)
        self.down = KANLinear(6, 7, 4, bias=True, dtype=D)
        self.head = nn.Linear(7, 3, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.up(self.norm(x))))


def block() -> nn.Module:
    torch.manual_seed(0)
    model = Block()
    model.up.update_grid(model.norm(X))
    return model


def trained_block(model: nn.Module, over_positions: bool) -> dict[str, Tensor]:
    plan: dict[str, Any] = {"up": ColwiseParallelKAN(), "down": RowwiseParallelKAN()}
    if over_positions:  # the sequence is distributed between the layers
        plan = {
            "norm": SequenceParallel(),
            "up": ColwiseParallelKAN(input_layouts=Shard(1)),
            "down": RowwiseParallelKAN(output_layouts=Shard(1)),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
    else:
        plan["head"] = RowwiseParallel(input_layouts=Replicate())
    device_mesh = mesh()
    parallelize_module(model, device_mesh, plan)
    if not over_positions:
        return train(model, X, Y)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        x = X.chunk(2, 1)[distributed.get_rank()]
        (model(x) - Y).square().mean().backward()
        optimizer.step()
    return full(model.state_dict().items())


@pytest.mark.parametrize("over_positions", [False, True])
def test_a_block_trains_as_in_one_process(over_positions: bool, two: Processes) -> None:
    first, second = two.run(trained_block, block(), over_positions)
    expected = train(block(), X, Y)
    if over_positions:
        expected = {name: value for name, value in expected.items() if not name.startswith("gradient")}
    assert_close(first, expected)
    assert_close(second, expected)


# -- networks, and layers that FSDP distributes too ------------------------------------------------


def network() -> KAN:
    """A network with a product, a formula and adapted grids."""
    model = KAN([7, [4, 1], 3], seed=0, dtype=D)
    model.update_grid(X)
    model.fix_symbolic(0, 1, 2, "sin", fit_params_bool=False)
    model.remove_edge(0, 0, 1)
    return model


def trained_network(model: KAN) -> dict[str, Tensor]:
    first, second = ColwiseParallelKAN(output_layouts=Replicate()), RowwiseParallelKAN(input_layouts=Replicate())
    parallelize_module(model, mesh(), {"layers.0": first, "layers.1": second})
    return train_trainable(model)


def train_trainable(model: KAN) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01, eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()
    return full(model.state_dict().items())


def test_layers_of_a_network_are_distributed(two: Processes) -> None:
    first, second = two.run(trained_network, network())
    expected = train_trainable(network())
    assert_close(first, expected)
    assert_close(second, expected)


def trained_twice_distributed(model: nn.Module, sizes: tuple[int, int]) -> dict[str, Tensor]:
    """Train on a mesh whose first dimension divides the rows, and whose second dimension divides the edges."""
    both = init_device_mesh("cpu", sizes, mesh_dim_names=("rows", "edges"))
    parallelize_module(model, both["edges"], {"0": ColwiseParallelKAN(), "1": RowwiseParallelKAN()})
    for layer in model:
        fully_shard(layer, mesh=both["rows"])
    fully_shard(model, mesh=both["rows"])
    own = slice(both["rows"].get_local_rank(), None, sizes[0])
    return {n: v for n, v in train(model, X[own], Y[own]).items() if n != "gradient of x"}


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
def test_fsdp_may_distribute_what_a_style_has_distributed(sizes: tuple[int, int], two: Processes) -> None:
    expected = {n: v for n, v in train(adapted(), X, Y).items() if n != "gradient of x"}
    for found in two.run(trained_twice_distributed, adapted(), sizes):
        assert_close(found, expected)


# -- states, and what is refused ------------------------------------------------------------------


def states(model: nn.Module) -> dict[str, Any]:
    """Return the errors of a distributed layer, and its state after another state was loaded."""
    other = {name: value.clone() for name, value in model.state_dict().items()}
    plan = {"0": ColwiseParallelKAN(), "1": RowwiseParallelKAN()}
    uniform = repr(parallelize_module(pair(outside="linear"), mesh(), plan))
    parallel = pair(outside="linear")
    for layer in parallel:  # torch loads only into buffers that the model already has
        layer.set_mask(torch.ones(layer.in_features, layer.out_features))
    parallelize_module(parallel, mesh(), plan)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(parallel, other if distributed.get_rank() == 0 else {}, options=options)
    loaded = get_model_state_dict(parallel, options=StateDictOptions(full_state_dict=True))
    sharded = fully_shard(pair()[0], mesh=mesh())
    calls: dict[str, Callable[[], Any]] = {}
    for kind, layer in (("column", parallel[0]), ("row", parallel[1]), ("fsdp", sharded)):
        x = torch.rand(9, layer.in_features, dtype=D)
        calls |= {
            f"{kind} update_grid": lambda layer=layer, x=x: layer.update_grid(x, group=distributed.group.WORLD),
            f"{kind} refine": lambda layer=layer: layer.refine(8),
        }
        if kind != "fsdp":
            calls |= {
                f"{kind} reset_parameters": layer.reset_parameters,
                f"{kind} set_mask": lambda layer=layer: layer.set_mask(None),
                f"{kind} set_knots": lambda layer=layer: layer.set_knots(layer.knots),
                f"{kind} count_outside": layer.count_outside,
            }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "nothing"
        except RuntimeError as error:
            said[name] = str(error)
    sharded.set_mask(torch.zeros(7, 5))
    return {
        "uniform": uniform, "adapted": repr(parallel), "sharded": repr(sharded), "loaded": loaded, "said": said,
        "masked": sharded(X).detach(), "y": parallel(X).detach(),
    }  # fmt: skip


def test_states_load_and_what_needs_all_values_is_refused(two: Processes) -> None:
    model = adapted()
    for found in two.run(states, model)[:1]:
        assert found["uniform"] == repr(pair(outside="linear"))
        assert found["adapted"] == repr(model)
        for name, value in model.state_dict().items():
            assert torch.equal(found["loaded"][name], value)
        torch.testing.assert_close(found["y"], model(X).detach(), rtol=1e-14, atol=1e-14)
        for name, said in found["said"].items():
            assert said.startswith(name.partition(" ")[2]), (name, said)
            assert "is a DTensor" in said
            assert "before fully_shard or parallelize_module" in said
            assert "set_model_state_dict" in said
        assert "masked=True" in found["sharded"]
        assert torch.equal(found["masked"], pair()[0].bias.detach().expand(6, 4, 5))


@pytest.mark.usefixtures("alone")
def test_what_a_style_cannot_distribute_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"ColwiseParallelKAN distributes a KANLinear, got Linear"):
        parallelize_module(nn.Linear(2, 2), init_device_mesh("cpu", (1,)), ColwiseParallelKAN())
    with pytest.raises(NotImplementedError, match=r"RowwiseParallelKAN distributes a KANLinear, got KANConv1d"):
        parallelize_module(KANConv1d(2, 2, 3), init_device_mesh("cpu", (1,)), RowwiseParallelKAN())
    with pytest.raises(ValueError, match=r"device_mesh must have 1 dimension, .*, got 2 dimensions"):
        parallelize_module(pair(), init_device_mesh("cpu", (1, 1)), {"0": RowwiseParallelKAN()})
    with pytest.raises(TypeError, match=r"input_layouts must be Replicate\(\) or Shard\(dim\) .*, got 'replicate'"):
        ColwiseParallelKAN(input_layouts="replicate")  # type: ignore[arg-type]
    layer = parallelize_module(pair()[0], init_device_mesh("cpu", (1,)), RowwiseParallelKAN())
    torch.testing.assert_close(layer(X), pair()[0](X), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"x must have the shape \[..., 7\], the part of in_features=7"):
        layer(X[..., :4])
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor"):
        layer(None)
