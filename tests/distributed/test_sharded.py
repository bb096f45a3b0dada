"""Models whose parameters are distributed over two processes by FSDP, and gathered for each forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import Processes
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from fastkan import KAN, KANLinear

D = torch.float64
X = torch.randn(24, 7, dtype=D, generator=torch.Generator().manual_seed(5))
Y = torch.sin(X[:, :3] * X[:, 3:6])


def layers() -> nn.Module:
    """Layers of odd sizes, with all kinds of parameters, adapted knots and masks."""
    torch.manual_seed(0)
    stack = nn.Sequential(
        KANLinear(7, 4, 3, bias=True, spline_scale=True, dtype=D),
        KANLinear(4, 5, 4, 2, outside="linear", base="none", dtype=D),
        KANLinear(5, 3, 5, spline_scale=True, dtype=D),
    )
    stack[0].update_grid(X)
    stack[0].set_mask(torch.rand(7, 4) > 0.3)
    stack[2].set_knots(stack[2].knots + 0.1 * stack[2].knots ** 2)
    return stack


def kan() -> KAN:
    """A network with products, formulas, trained affine maps and adapted grids."""
    model = KAN([7, [3, 1], 3], grid=3, affine_trainable=True, seed=0, dtype=D)
    model.update_grid(X)
    for place in ((0, 1, 0, "sin"), (1, 0, 1, "exp")):
        model.fix_symbolic(*place, fit_params_bool=False)
    return model


def plain_kan() -> KAN:
    """A network whose layers are computed together."""
    return KAN([7, 4, 3], grid=3, seed=0, dtype=D)


MODELS: dict[str, Callable[[], nn.Module]] = {"layers": layers, "network": kan, "plain network": plain_kan}


def train(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The losses of three steps of Adam. The first of them accumulates the gradients of two halves of the batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01, eps=1e-3)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        parts = 2 if step == 0 else 1
        for part, target in zip(x.chunk(parts), y.chunk(parts)):
            loss = (model(part) - target).square().mean() / parts
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def own_half(*tensors: Tensor) -> list[Tensor]:
    """The rows of this rank, in the order in which one process has them."""
    return [tensor[distributed.get_rank() :: 2] for tensor in tensors]


def full(model: nn.Module) -> dict[str, Any]:
    return {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in model.state_dict().items()}


def trained(model: nn.Module, parts: bool, reshard: bool) -> dict[str, Any]:
    if parts:
        for part in model.layers if isinstance(model, KAN) else model:
            fully_shard(part, reshard_after_forward=reshard)
    fully_shard(model, reshard_after_forward=reshard)
    train(model, *own_half(X, Y))
    return full(model)


def trained_by_fsdp1(model: nn.Module) -> dict[str, Any]:
    wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    train(wrapped, *own_half(X, Y))
    with FullyShardedDataParallel.summon_full_params(wrapped):
        return {name: value.clone() for name, value in model.state_dict().items()}


def check(found: list[dict[str, Any]], name: str) -> None:
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, X, Y)
    expected = model.state_dict()
    for state in found:
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=1e-14, atol=1e-15, msg=key)
    assert max((expected[key] - value).abs().max().item() for key, value in before.items() if value.numel()) > 0.01


@pytest.mark.parametrize(("parts", "reshard"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("name", MODELS)
def test_fully_shard_trains_the_model_of_one_process(name: str, parts: bool, reshard: bool, two: Processes) -> None:
    check(two.run(trained, MODELS[name](), parts, reshard), name)


@pytest.mark.parametrize("name", MODELS)
def test_fsdp_trains_the_model_of_one_process(name: str, two: Processes) -> None:
    check(two.run(trained_by_fsdp1, MODELS[name]()), name)


def fresh() -> dict[str, Any]:
    """The parameters after FSDP2's deferred initialisation, with a different seed on each rank."""
    torch.manual_seed(distributed.get_rank())
    layers = nn.Sequential(KANLinear(7, 5, bias=True, device="meta"), KANLinear(5, 3, spline_scale=True, device="meta"))
    for layer in layers:
        fully_shard(layer)
    layers.to_empty(device="cpu")
    for layer in layers:
        layer.reset_parameters()
    return full(layers)


def test_deferred_initialisation_gives_the_parameters_of_the_first_rank(two: Processes) -> None:
    torch.manual_seed(0)
    expected = nn.Sequential(KANLinear(7, 5, bias=True), KANLinear(5, 3, spline_scale=True)).state_dict()
    for found in two.run(fresh):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def penalised(part: str) -> dict[str, Any]:
    """The gradients of a loss and efficient-kan's penalty, of a masked network that is distributed or a copy."""
    model = plain_kan()
    model.remove_edge(0, 1, 2)
    x, y = own_half(X, Y) if distributed.is_initialized() else (X, Y)
    if part == "fsdp":
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    for _ in range(2):  # the second pass adds to the gradients
        ((model(x) - y).square().mean() + 0.1 * model.regularization_loss()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


def test_the_penalty_on_distributed_coefficients_has_the_gradient_of_one_process(two: Processes) -> None:
    expected = penalised("plain")
    for found in two.run(penalised, "fsdp"):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-13, atol=1e-15, msg=name)


@pytest.mark.usefixtures("alone")
def test_networks_that_are_distributed_refuse_what_needs_all_values() -> None:
    model = fully_shard(kan_of_one(), mesh=init_device_mesh("cpu", (1,)))
    before = full(model)
    for name, call in {
        "update_grid_from_samples": lambda: model.update_grid(X),
        "refine": lambda: model.refine(6, X),
        "fit": lambda: model.fit((X, Y), steps=1, progress=False),
        "get_reg": lambda: model.get_reg(x=X),
        "save": lambda: model.save("unused"),
        "symbolic_formula": model.symbolic_formula,
        "attribute": lambda: model.attribute(x=X),
        "a trace with edges=True": lambda: model.get_act(X),
        "a plot": lambda: model.plot(),
        "prune": lambda: model.prune(x=X),
        "prune_input": lambda: model.prune_input(x=X),
        "auto_symbolic": lambda: model.auto_symbolic(x=X),
        "fix_symbolic": lambda: model.fix_symbolic(0, 0, 0, "sin", x=X),
        "suggest_symbolic": lambda: model.suggest_symbolic(0, 0, 0, x=X),
        "perturb": lambda: model.perturb(mode="all"),
    }.items():
        with pytest.raises(RuntimeError, match=rf"^{name} needs all values of spline_weight, which is a DTensor"):
            call()
    assert all(torch.equal(value, before[key]) for key, value in full(model).items())
    assert model.sample is None
    assert repr(model) == repr(kan_of_one())


def kan_of_one() -> KAN:
    return KAN([7, 3], seed=0, dtype=D)
