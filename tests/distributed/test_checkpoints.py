"""States that torch.distributed saves in two processes, and loads in one, two or three."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Processes
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastkan import KAN

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(5))
Y = X.prod(1, keepdim=True)
FULL = StateDictOptions(full_state_dict=True)


def network(seed: int) -> KAN:
    """A network with a product, formulas, a mask, and grids and values of its own for each seed."""
    model = KAN([3, [2, 1], 1], affine_trainable=True, seed=seed)
    for place in ((0, 1, 0, "sin"), (0, 2, 3, "exp"), (1, 0, 0, "x^2")):
        model.fix_symbolic(*place, fit_params_bool=False)
    for layer in model.layers:
        layer.set_knots(layer.knots + 0.05 * (1 + seed) * layer.knots**2)
    model.remove_edge(0, 0, 1)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)


def wrapped(model: KAN, how: str) -> nn.Module:
    if how == "ddp":
        return DistributedDataParallel(model)
    if how == "fsdp":
        for layer in model.layers:
            fully_shard(layer)
        return fully_shard(model, reshard_after_forward=True)  # PyTorch loads only into distributed parameters
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(X) - Y).square().mean().backward()
    optimizer.step()


def full(state: Any) -> Any:
    """Return a state in which no tensor is distributed."""
    if isinstance(state, dict):
        return {name: full(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [full(value) for value in state]
    if isinstance(state, DTensor):
        return state.full_tensor()
    return state.detach().clone() if isinstance(state, torch.Tensor) else state


def saved(folder: str, how: str) -> list[Any]:
    """Save a trained network with its optimizer, and return what the network computes and its next step."""
    model = wrapped(network(0), how)
    optimizer = optimizer_of(model)
    for _ in range(2):
        step(model, optimizer)
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
    checkpoint.save(parts, checkpoint_id=folder)
    return what_follows(model, optimizer)


def what_follows(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    states = full(get_state_dict(model, optimizer))
    step(model, optimizer)
    return [*states, full(get_model_state_dict(model))]


def loaded(folder: str, how: str) -> list[Any]:
    """Load into another network with the same formulas, whose optimizer has made another step."""
    model = wrapped(network(1), how)
    optimizer = optimizer_of(model)
    step(model, optimizer)
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
    checkpoint.load(parts, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
    return what_follows(model, optimizer)


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_equal(one, other)
    else:
        assert found == expected


def assert_continues(found: list[Any], expected: list[Any]) -> None:
    """Check that the loaded state is equal to the bit, and that the next step is equal up to rounding."""
    assert_equal(found[:-1], expected[:-1])
    for name, value in expected[-1].items():
        torch.testing.assert_close(found[-1][name], value, rtol=1e-5, atol=1e-6, msg=name)


# Maps the wrapper that saves a network to the wrapper that loads it in two processes.
WAYS = {"fsdp": "ddp", "ddp": "fsdp"}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("how", WAYS)
def test_two_processes_save_and_one_or_two_load(how: str, two: Processes, tmp_path: Path) -> None:
    first, second = two.run(saved, str(tmp_path), how)
    assert_equal(first, second)
    assert first[1]["state"]["symbolic.0.affine"]["exp_avg"].abs().min() > 0
    for found in two.run(loaded, str(tmp_path), WAYS[how]):
        assert_continues(found, first)
    assert_continues(loaded(str(tmp_path), "plain"), first)


@pytest.fixture
def three() -> Iterator[Processes]:
    processes = Processes(3)
    yield processes
    processes.stop()


@pytest.mark.slow
def test_two_processes_save_and_three_load(two: Processes, three: Processes, tmp_path: Path) -> None:
    first, _ = two.run(saved, str(tmp_path), "fsdp")
    for found in three.run(loaded, str(tmp_path), "fsdp"):
        assert_continues(found, first)


def from_rank_zero() -> list[Any]:
    """Load a state that only the first rank has into networks of all kinds."""
    state = network(0).state_dict() if distributed.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    found = []
    for how in ("plain", "ddp", "fsdp"):
        model = wrapped(network(1), how)
        model(X)  # the call caches what it computes from the knots
        set_model_state_dict(model, dict(state), options=options)  # the function changes the dictionary
        found.append((full(get_model_state_dict(model)), model(X).detach()))
    return found


def test_ranks_get_the_state_of_the_first(two: Processes) -> None:
    model = network(0)
    for states in two.run(from_rank_zero):
        for state, y in states:
            assert_equal(state, dict(model.state_dict()))
            assert torch.equal(y, model(X))
