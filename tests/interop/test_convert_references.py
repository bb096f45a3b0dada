"""``convert`` and ``replace_linear`` of modules that are referenced from outside the tree of submodules."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from peers import close, points
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fastkan import KANLinear, convert, replace_linear


class Runner:
    """A plain object that calls a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


class Block(nn.Module):
    """A residual block as minGPT writes it: ``forward`` calls an attribute that is not a module."""

    def __init__(self, hold: Callable[[Block], Any], layer: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"kan": layer, "dropout": nn.Dropout(0.0)})
        self.mlpf = hold(self)

    def run(self, x: Tensor) -> Tensor:
        return self.mlp["dropout"](self.mlp["kan"](x))

    def forward(self, x: Tensor) -> Tensor:
        function = self.mlpf
        while isinstance(function, (list, tuple, dict)):
            function = function[0]
        return x + function(x)


def call(mlp: nn.ModuleDict, x: Tensor) -> Tensor:
    return mlp["dropout"](mlp["kan"](x))


def nested(mlp: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return call(mlp, x)

    return lambda x: inner(x)


def by_keyword(mlp: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor, *, m: nn.ModuleDict = mlp) -> Tensor:
        return call(m, x)

    return function


def by_attribute(mlp: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return call(function.mlp, x)  # type: ignore[attr-defined]

    function.mlp = mlp  # type: ignore[attr-defined]
    return function


def by_global(mlp: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    space = {"the_mlp": mlp, "call": call}
    exec("def function(x):\n    return (lambda: call(the_mlp, x))()", space)
    return space["function"]  # type: ignore[return-value]


def by_class(mlp: nn.ModuleDict) -> Any:
    class Caller:
        def __call__(self, x: Tensor) -> Tensor:
            return call(mlp, x)

    return Caller()


SHARED: dict[str, Callable[[Block], Any]] = {
    "closure": lambda block: lambda x, m=None: call(block.mlp, x),
    "closure over the dictionary": lambda block: (lambda m: lambda x: call(m, x))(block.mlp),
    "closure over an object": lambda block: (lambda run: lambda x: run(x))(Runner(nn.Sequential(block.mlp["kan"]))),
    "nested closure": lambda block: nested(block.mlp),
    "default argument": lambda block: lambda x, m=block.mlp: call(m, x),
    "keyword default": lambda block: by_keyword(block.mlp),
    "attribute of a function": lambda block: by_attribute(block.mlp),
    "global variable": lambda block: by_global(block.mlp),
    "cached function": lambda block: (lambda m: functools.lru_cache(lambda x: call(m, x)))(block.mlp),
    "method of a local class": lambda block: by_class(block.mlp),
    "list of functions": lambda block: [lambda x: call(block.mlp, x)],
    "dictionary of tuples of functions": lambda block: {0: (lambda x: call(block.mlp, x),)},
    "partial of a closure": lambda block: functools.partial(lambda x: call(block.mlp, x)),
    "method of a closure": lambda block: types.MethodType(lambda self, x: call(block.mlp, x), Runner(nn.Identity())),
    "closure over a bound method": lambda block: (lambda run: lambda x: run(x))(block.run),
    "weak reference": lambda block: (lambda ref: lambda x: call(ref(), x))(weakref.ref(block.mlp)),
}
COPIED: dict[str, Callable[[Block], Any]] = {
    "bound method": lambda block: block.run,
    "partial": lambda block: functools.partial(call, block.mlp),
    "list of bound methods": lambda block: [block.run],
    "function without references": lambda block: nn.functional.silu,
}
OF_THE_LAYER: dict[str, Callable[[Block], Any]] = {
    "closure": lambda block: (lambda kan: lambda x: kan(x))(block.mlp["kan"]),
    "default argument": lambda block: lambda x, kan=block.mlp["kan"]: kan(x),
    "bound method": lambda block: block.mlp["kan"].forward,
    "bound method in a list": lambda block: [block.mlp["kan"].forward],
    "closure over a bound method": lambda block: (lambda run: lambda x: run(x))(block.mlp["kan"].forward),
}
IN_PLACE_ALONE: dict[str, Callable[[Block], Any]] = {
    "partial": lambda block: functools.partial(nn.Module.__call__, block.mlp["kan"]),
    "tuple": lambda block: (block.mlp["kan"],),
    "object": lambda block: Runner(block.mlp["kan"]),
}
REPLACED: dict[str, Callable[[Block], Any]] = {
    "list": lambda block: [block.mlp["kan"]],
    "dictionary": lambda block: {0: [block.mlp["kan"]]},
}


def model(hold: Callable[[Block], Any], layer: Callable[[], nn.Module] = lambda: peers.KANLinear(3, 3)) -> Any:
    return nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), Block(hold, layer()))


def check_trains(ours: nn.Module, expected: Tensor) -> None:
    """Check that a conversion computes the same, and that each of its own parameters gets a gradient."""
    y = ours(points(3))
    close(y.detach(), expected)
    y.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())


@pytest.mark.parametrize("name", SHARED)
def test_a_copy_of_what_a_function_holds_is_refused_and_converted_in_place(name: str) -> None:
    source = model(SHARED[name])
    expected = source(points(3)).detach()
    refusal = r"1.mlpf holds .* (in a function, so a copy|which is converted)"
    with pytest.raises(ValueError, match=refusal) as refused:
        convert(source)
    assert type(source[1].mlp["kan"]) is peers.KANLinear
    if name == "closure over an object":  # here the object holds the layer itself
        return
    assert "inplace=True" in str(refused.value)
    assert convert(source, inplace=True) is source
    check_trains(source, expected)


@pytest.mark.parametrize("name", COPIED)
def test_what_a_copy_takes_along_is_converted(name: str) -> None:
    source = model(COPIED[name])
    expected = source(points(3)).detach()
    ours = convert(source)
    if name == "function without references":
        close(ours(points(3)).detach(), expected)
        return
    check_trains(ours, expected)
    assert all(parameter.grad is None for parameter in source.parameters())
    check_trains(convert(source, inplace=True), expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", OF_THE_LAYER)
def test_a_function_that_holds_the_layer_itself_is_refused(name: str, inplace: bool) -> None:
    source = model(OF_THE_LAYER[name])
    with pytest.raises(ValueError, match=r"1.mlpf holds 1.mlp.kan, which is converted"):
        convert(source, inplace=inplace)
    assert type(source[1].mlp["kan"]) is peers.KANLinear


@pytest.mark.parametrize("name", IN_PLACE_ALONE)
def test_what_can_not_be_changed_in_place_is_copied(name: str) -> None:
    source = model(IN_PLACE_ALONE[name])
    expected = source(points(3)).detach()
    with pytest.raises(ValueError, match=r"1.mlpf holds 1.mlp.kan, which is converted"):
        convert(source, inplace=True)
    ours = convert(source)
    check_trains(ours, expected)
    assert all(parameter.grad is None for parameter in source.parameters())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", REPLACED)
def test_lists_and_dictionaries_follow(name: str, inplace: bool) -> None:
    source = model(REPLACED[name])
    expected = source(points(3)).detach()
    ours = convert(source, inplace=inplace)
    check_trains(ours, expected)
    held = ours[1].mlpf[0]
    assert (held[0] if isinstance(held, list) else held) is ours[1].mlp["kan"]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_in_an_attribute_beside_the_tree_follows(inplace: bool) -> None:
    source = model(lambda block: block.run)
    object.__setattr__(source[1], "unregistered", source[1].mlp["kan"])
    ours = convert(source, inplace=inplace)
    assert type(ours[1].unregistered) is KANLinear
    assert ours[1].unregistered is ours[1].mlp["kan"]


def test_hooks_and_parameters_in_functions_count_as_well() -> None:
    source = model(lambda block: block.run)
    mlp = source[1].mlp
    handle = source[0].register_forward_hook(lambda module, inputs, output: output + mlp["kan"](output))
    with pytest.raises(ValueError, match=r"0._forward_hooks holds 1.mlp in a function.*inplace=True"):
        convert(source)
    handle.remove()
    weight = mlp["kan"].base_weight
    source.penalty = lambda: weight.abs().sum()
    for inplace in (False, True):
        with pytest.raises(ValueError, match=r"penalty holds 1.mlp.kan.base_weight, which is converted"):
            convert(source, inplace=inplace)
    first = source[0].weight
    source.penalty = lambda: first.abs().sum()
    with pytest.raises(ValueError, match=r"penalty holds 0.weight in a function.*inplace=True"):
        convert(source)
    source.optimizer = torch.optim.SGD(source.parameters(), lr=0.1)  # users create a new optimizer after the conversion
    convert(source, inplace=True)


def test_a_method_that_reads_a_variable_around_its_class_counts() -> None:
    mlp = nn.ModuleDict({"kan": peers.KANLinear(3, 3), "dropout": nn.Dropout(0.0)})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x: Tensor) -> Tensor:
            return call(mlp, x)

    source = nn.Sequential(Model())
    expected = source(points(3)).detach()
    with pytest.raises(ValueError, match=r"0.forward holds 0.mlp in a function.*inplace=True"):
        convert(source)
    check_trains(convert(source, inplace=True), expected)


def test_an_attribute_that_is_named_like_a_global_variable_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(lambda block: block.run)
    monkeypatch.setitem(globals(), "mlp", source[1].mlp)  # Block.run only reads an attribute of this name
    check_trains(convert(source), source(points(3)).detach())


def test_a_copy_of_a_converted_model_is_refused_as_well() -> None:
    ours = convert(model(SHARED["closure"]), inplace=True)
    with pytest.raises(ValueError, match=r"1.mlpf holds 1 in a function.*inplace=True"):
        convert(ours)
    assert convert(ours, inplace=True) is ours


def test_what_a_copy_leaves_behind_does_not_count() -> None:
    class Quiet(Block):
        def __getstate__(self) -> dict[str, Any]:
            return {**super().__getstate__(), "mlpf": None}

    source = nn.Sequential(Quiet(lambda block: lambda x: call(block.mlp, x), peers.KANLinear(3, 3)))
    assert convert(source)[0].mlpf is None


# -- replace_linear -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", {**OF_THE_LAYER, **IN_PLACE_ALONE, **REPLACED})
def test_a_linear_that_something_else_calls_stays(name: str) -> None:
    hold = {**OF_THE_LAYER, **IN_PLACE_ALONE, **REPLACED}[name]
    ours = model(hold, lambda: nn.Linear(3, 3, dtype=torch.float64))
    report = replace_linear(ours)
    assert [(entry.name, entry.kept_because) for entry in report] == [
        ("0", None),
        ("1.mlp.kan", "1.mlpf holds it as well"),
    ]
    ours(points(3)).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize("name", sorted({**SHARED, **COPIED}.keys() - {"closure over an object"}))
def test_a_linear_that_is_looked_up_in_its_module_is_replaced(name: str) -> None:
    ours = model({**SHARED, **COPIED}[name], lambda: nn.Linear(3, 3, dtype=torch.float64))
    assert len(replace_linear(ours).replaced) == 2
    if name != "function without references":
        ours(points(3)).sum().backward()
        assert all(parameter.grad is not None for parameter in ours.parameters())


# -- distributed training -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not distributed.is_available():
        pytest.skip("torch without torch.distributed")
    store: Path = tmp_path_factory.mktemp("gloo") / "store"
    distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def fully_sharded(module: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=init_device_mesh("cpu", (1,)))  # type: ignore[return-value]


def fully_sharded_before(module: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


def replicated(module: nn.Module) -> nn.Module:
    from torch.distributed._composable.replicate import replicate

    return replicate(module)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DistributedDataParallel": DistributedDataParallel,
    "FSDPSequential": fully_sharded,
    "FullyShardedDataParallel": fully_sharded_before,
    "DDPSequential": replicated,
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:FSDP is switching:UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_wrapper_of_distributed_training_is_refused(name: str, inside: bool, one_process: None) -> None:
    def wrapped(layer: nn.Module) -> nn.Module:
        whole = WRAPPERS[name](nn.Sequential(layer))
        return nn.ModuleDict({"part": whole}) if inside else whole

    said = f"{'part' if inside else 'module'}, a {name}, synchronises the parameters"
    for inplace in (False, True):
        with pytest.raises(ValueError, match=f"{said}.*convert the model first, then wrap"):
            convert(wrapped(peers.KANLinear(3, 3)), inplace=inplace)
    with pytest.raises(ValueError, match=f"{said}.*replace the layers of the model first, then wrap"):
        replace_linear(wrapped(nn.Linear(3, 3)))


def test_a_wrapper_around_something_else_is_no_matter(one_process: None) -> None:
    source = nn.ModuleDict({"other": DistributedDataParallel(nn.Linear(2, 2)), "kan": peers.KANLinear(3, 3)})
    expected = source["kan"](points(3)).detach()
    close(convert(source, inplace=True)["kan"](points(3)).detach(), expected)
    assert len(replace_linear(nn.ModuleDict({**source, "linear": nn.Linear(2, 2)}), "linear").replaced) == 1


def test_what_was_converted_can_be_wrapped(one_process: None) -> None:
    source = nn.Sequential(peers.KANLinear(3, 3))
    ours = DistributedDataParallel(convert(source))
    check_trains(ours, source(points(3)).detach())


def test_data_parallel_is_no_such_wrapper() -> None:
    source = nn.DataParallel(peers.KANLinear(3, 3))
    check_trains(convert(source), source(points(3)).detach())


class Reads(nn.Module):
    """A module that computes with the tensors of its layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = peers.KANLinear(3, 3)
        self.block = nn.ModuleDict({"layer": peers.KANLinear(3, 2)})
        self.linear = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.base_weight) + self.layer(x) + self.linear.weight.sum()

    def penalty(self) -> Tensor:
        return self.layer.spline_scaler.abs().mean() + self.layer.grid.mean() + self.layer.scale_base

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.layer.spline_weight)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_method_that_reads_a_tensor_of_another_layout_is_told(inplace: bool) -> None:
    with pytest.warns(UserWarning, match=r"Reads\.forward reads base_weight, which has another layout") as told:
        convert(Reads(), inplace=inplace)
    (message,) = [str(each.message) for each in told]
    assert "Reads.penalty reads spline_scaler, which the new layer lacks: change these methods" in message
    assert not any(word in message for word in (" grid", "scale_base", "reset", "Reads.forward reads weight"))
