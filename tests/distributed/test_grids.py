"""Grids that are adapted and refined at the samples of several processes, and errors of calls without a group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import Processes
from torch import Tensor, distributed
from torch.distributed import group

from fastkan import KAN, KANLinear
from fastkan.layers.sampling import MAX_SAMPLES

Tensors = dict[str, Tensor]


def samples(rank: int, rows: int, columns: int = 3) -> Tensor:
    """Return the rows of a rank. Each rank has another mean and another standard deviation."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rank)) * (1 + rank) + rank


def of_all(rows: tuple[int, ...], columns: int = 3) -> Tensor:
    return torch.cat([samples(rank, count, columns) for rank, count in enumerate(rows)])


def tensors(module: torch.nn.Module) -> Tensors:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- layers ---------------------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "linear outside": {"outside": "linear", "grid_size": 4, "spline_order": 2},
}


def layer_of(options: dict[str, Any]) -> KANLinear:
    torch.manual_seed(0)
    return KANLinear(3, 4, **options)


def change(layer: KANLinear, x: Tensor, **options: Any) -> list[Tensors]:
    """The layer after a grid update, and after a refinement."""
    layer.update_grid(x, grid_eps=0.1, margin=0.0, **options)
    updated = tensors(layer)
    layer.refine(9, x, **options)
    return [updated, tensors(layer)]


def changed_layers(rows: tuple[int, ...]) -> list[Tensors]:
    x = samples(distributed.get_rank(), rows[distributed.get_rank()])
    found = []
    for options in LAYERS.values():
        layer = layer_of(options)
        weight, knots = layer.spline_weight, layer.knots
        layer(x.to(weight.dtype))  # the call caches what it computes from the knots
        found += change(layer, x, group=group.WORLD)
        assert layer.knots is not knots  # the number of knots has changed
        layer = layer_of(options)
        layer.update_grid(x, group=group.WORLD)
        assert layer.spline_weight is not weight
    return found


@pytest.mark.parametrize("rows", [(13, 7), (20, 0), (0, 5), (2500, 2500)])
def test_layer_gets_the_grid_of_one_process_with_all_rows(rows: tuple[int, ...], two: Processes) -> None:
    found = two.run(changed_layers, rows)
    expected = [each for options in LAYERS.values() for each in change(layer_of(options), of_all(rows))]
    for rank in found:
        for one, other in zip(rank, expected, strict=True):
            assert_same(one, other)


def too_many(rows: tuple[int, ...]) -> Tensors:
    x = samples(distributed.get_rank(), rows[distributed.get_rank()])
    layer = layer_of({"dtype": torch.float64})
    torch.set_num_threads(1 + distributed.get_rank())
    layer.update_grid(x, grid_eps=0.0, group=group.WORLD)
    torch.set_num_threads(1)
    return tensors(layer)


def test_many_rows_are_bounded_and_keep_the_ends(two: Processes) -> None:
    rows = 2 * MAX_SAMPLES, MAX_SAMPLES // 2
    found = two.run(too_many, rows)
    assert_same(*found)
    knots, x = found[0]["knots"][:, 3:-3], of_all(rows).double()
    torch.testing.assert_close(knots[:, 0], x.amin(0), rtol=0, atol=1e-15)
    torch.testing.assert_close(knots[:, -1], x.amax(0), rtol=0, atol=1e-15)
    # A quantile p of n samples has the standard deviation sqrt(p (1 - p) / n), as a share of the samples.
    shares = (x[None] <= knots.t()[:, None]).double().mean(1)
    expected = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    assert (shares - expected).abs().max() < 4 * 0.5 / MAX_SAMPLES**0.5


def different_dtypes() -> Tensors:
    rank = distributed.get_rank()
    layer = layer_of({})
    layer.update_grid(samples(rank, 10).to((torch.float64, torch.bfloat16)[rank]), group=group.WORLD)
    return tensors(layer)


def test_ranks_may_have_different_dtypes(two: Processes) -> None:
    expected = layer_of({})
    expected.update_grid(torch.cat([samples(0, 10), samples(1, 10).bfloat16().float()]).double())
    for found in two.run(different_dtypes):
        assert_same(found, tensors(expected))


def own_group() -> Tensors:
    """A group of one process updates the grid of that process alone."""
    groups = [distributed.new_group([rank]) for rank in range(2)]
    rank, layer = distributed.get_rank(), layer_of({})
    layer.update_grid(samples(rank, 30), group=groups[rank])
    with pytest.raises(TypeError, match=r"group must be a torch.distributed.ProcessGroup that this process belongs to"):
        layer.update_grid(samples(rank, 30), group=groups[1 - rank])
    return tensors(layer)


def test_a_group_of_one_process_adapts_by_its_own_rows(two: Processes) -> None:
    for rank, found in enumerate(two.run(own_group)):
        layer = layer_of({})
        layer.update_grid(samples(rank, 30))
        assert_same(found, tensors(layer))


# -- networks -------------------------------------------------------------------------------------


def network() -> KAN:
    """A network with products, a formula, a masked edge, and a layer of formulas alone."""
    model = KAN([3, [2, 1], 2, 1], seed=0)
    model.fix_symbolic(0, 1, 0, "sin", fit_params_bool=False)
    model.remove_edge(0, 2, 1)
    for i in range(2):
        model.fix_symbolic(2, i, 0, "exp", fit_params_bool=False)
    return model


def change_network(x: Tensor, **options: Any) -> list[Tensors]:
    model = network()
    model.update_grid(x, **options)
    updated = tensors(model)
    finer = model.refine(7, x, **options)
    model.update_grid_from_samples(dataset=(0.5 * x, x[:, :1]), **options)
    return [updated, tensors(finer), tensors(model)]


def changed_network(rows: tuple[int, ...]) -> list[Tensors]:
    x = samples(distributed.get_rank(), rows[distributed.get_rank()])
    found = change_network(x, group=group.WORLD)
    model = network()
    if len(x):
        model.get_act(x)
    model.update_grid(group=group.WORLD)  # at the rows that each rank keeps
    assert_same(tensors(model), found[0])
    finer = network().refine(6, group=group.WORLD)  # at points spread over the grids
    assert_same(tensors(finer), tensors(network().refine(6)))
    return found


@pytest.mark.parametrize("rows", [(13, 7), (0, 40)])
def test_network_gets_the_grids_of_one_process_with_all_rows(rows: tuple[int, ...], two: Processes) -> None:
    expected = change_network(of_all(rows))
    assert not torch.equal(expected[0]["layers.1.knots"], tensors(network())["layers.1.knots"])
    for rank in two.run(changed_network, rows):
        for one, other in zip(rank, expected, strict=True):
            assert_same(one, other)


# -- errors ------------------------------------------------------------------------------


def refused() -> dict[str, str]:
    """Return the errors of calls that use the samples of one rank only, and of calls with bad samples on one rank."""
    rank = distributed.get_rank()
    x = samples(rank, 20)
    wrong = x.clone()
    wrong[rank - 1] = torch.nan if rank == 1 else 0.0
    layer, model, seen = layer_of({}), network(), network()
    seen.sample = x
    weights = torch.ones(20) if rank else None
    before = [tensors(each) for each in (layer, model, seen)]
    calls = {
        "layer": lambda: layer.update_grid(x),
        "layer refined": lambda: layer.refine(7, x),
        "network": lambda: model.update_grid_from_samples(x),
        "network by its other name": lambda: model.update_grid(x),
        "network refined": lambda: model.refine(7, x),
        "network refined at what it has seen": lambda: seen.refine(7),
        "fit": lambda: model.fit((x, x[:, :1]), steps=2, progress=False),
        "train": lambda: model.train((x, x[:, :1]), steps=2, progress=False),
        "NaN, layer": lambda: layer.update_grid(wrong, group=group.WORLD),
        "NaN, layer refined": lambda: layer.refine(7, wrong, group=group.WORLD),
        "NaN, network": lambda: model.update_grid(wrong, group=group.WORLD),
        "columns": lambda: layer.update_grid(x[:, : 3 - rank], group=group.WORLD),
        "type": lambda: model.update_grid(x if rank else "x", group=group.WORLD),
        "none, layer": lambda: layer.update_grid(x[:0], group=group.WORLD),
        "none, network": lambda: model.update_grid(x[:0], group=group.WORLD),
        "group": lambda: layer.update_grid(x, group="world"),
        "weights, layer": lambda: layer.update_grid(x, sample_weight=weights, group=group.WORLD),
        "weights, network": lambda: model.update_grid(x, sample_weight=weights, group=group.WORLD),
        "one of x, layer refined": lambda: layer.refine(7, x if rank else None, group=group.WORLD),
        "sizes, layer refined": lambda: layer.refine(7 + rank, x, group=group.WORLD),
        "sizes, network refined": lambda: model.refine(7 + rank, x, group=group.WORLD),
        "no size, network refined": lambda: model.refine(7 if rank else None, x, group=group.WORLD),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "nothing"
        except (RuntimeError, ValueError, TypeError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    for each, state in zip((layer, model, seen), before):
        assert_same(tensors(each), state)
    layer.refine(10)  # a refinement of the whole grid needs no samples
    assert layer.grid_size == 10
    assert network().refine(6, grid=None).grid == [6, 6, 6]
    return said


@pytest.mark.filterwarnings("ignore:there has been no fit")
def test_what_would_make_ranks_diverge_is_refused_on_all(two: Processes) -> None:
    first, second = two.run(refused)
    for name in ("layer", "layer refined", "network", "network by its other name", "network refined",
                 "network refined at what it has seen"):  # fmt: skip
        for said in (first[name], second[name]):
            assert said.startswith("RuntimeError")
            assert "but 2 processes are initialised" in said
            assert "with group=torch.distributed.group.WORLD" in said
    for name in ("fit", "train"):
        for said in (first[name], second[name]):
            assert said.startswith("RuntimeError: fit uses the samples of this process alone")
            assert "torch.nn.parallel.DistributedDataParallel" in said
            assert "fit it in one process and load the result on every rank" in said
    for name in ("NaN, layer", "NaN, layer refined", "NaN, network"):
        assert first[name] == "ValueError: rank 1 of the group failed: " + second[name].removeprefix("ValueError: ")
        assert "must be finite" in second[name]
    assert "x must have the shape [..., in_features=3], got [20, 2]" in second["columns"]
    assert "rank 1 of the group failed: x must have the shape" in first["columns"]
    assert first["type"].startswith("TypeError: x must be a torch.Tensor")
    assert second["type"].startswith("ValueError: rank 0 of the group failed: x must be a torch.Tensor")
    for name in ("weights, layer", "weights, network"):
        assert second[name] == "ValueError: sample_weight and group cannot be combined: one of them must be None"
        assert first[name].startswith("ValueError: rank 1 of the group failed: sample_weight and group cannot")
    assert first["no size, network refined"].startswith("TypeError: refine() takes new_grid")
    assert second["no size, network refined"].startswith("ValueError: rank 0 of the group failed: refine() takes")
    for said in (first, second):
        for name, said_of in {
            "one of x, layer refined": "refine needs the same kind of x on every rank of the group, got 'None' on rank "
            "0 and 'samples' on rank 1",
            "sizes, layer refined": "refine needs the same grid_size on every rank of the group, got 7 on rank 0 and 8 "
            "on rank 1",
            "sizes, network refined": "refine needs the same new_grid on every rank of the group, got [7, 7, 7] on "
            "rank 0 and [8, 8, 8] on rank 1",
        }.items():
            assert said[name] == f"ValueError: {said_of}"
        for name in ("none, layer", "none, network"):
            assert said[name] == "ValueError: x must have at least one sample on one of the ranks, got none"
        assert said["group"].startswith("TypeError: group must be a torch.distributed.ProcessGroup")


def changed_by_rows() -> dict[str, str]:
    """Return the errors of methods that change a network by the rows of one rank."""
    x = samples(distributed.get_rank(), 40)
    model, seen = KAN([3, 3, 1], seed=0), KAN([3, 3, 1], seed=0)
    seen.get_act(x)
    before = tensors(model)
    calls = {
        "fix_symbolic": lambda m, **o: m.fix_symbolic(0, 0, 0, "sin", verbose=False, **o),
        "auto_symbolic": lambda m, **o: m.auto_symbolic(verbose=0, **o),
        "prune": lambda m, **o: m.prune(**o),
        "prune_node": lambda m, **o: m.prune_node(**o),
        "prune_edge": lambda m, **o: m.prune_edge(**o),
        "prune_input": lambda m, **o: m.prune_input(**o),
        "auto_swap": lambda m, **o: m.auto_swap(**o),
        "auto_swap_l": lambda m, **o: m.auto_swap_l(1, **o),
        "initialize_from_another_model": lambda m, **o: m.initialize_from_another_model(seen, **o),
    }
    said = {}
    for name, call in calls.items():
        for network, options in ((model, {"x": x}), (seen, {})):
            with pytest.raises(RuntimeError) as error:
                call(network, **options)
            said[name] = str(error.value)
            assert_same(tensors(network), before)
    # What only reads the network, and what is the same for all rows, works on every rank.
    seen.suggest_symbolic(0, 0, 0, lib=["x", "sin"], verbose=False)
    assert seen.attribute(x=x).nodes[0].shape == (3,)
    seen.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    assert seen.prune_input(active_inputs=[0, 2]).prune_node(active_neurons_id=[[0, 1]]).width_in == [2, 2, 1]
    model.fix_symbolic(0, 0, 0, "sin", verbose=False)  # fitted at points spread over the grids
    said["formula"] = str(model.symbolic[0].affine.tolist())
    return said


@pytest.mark.filterwarnings("ignore:there has been no fit")
def test_changes_by_the_rows_of_one_rank_are_refused(two: Processes) -> None:
    first, second = two.run(changed_by_rows)
    assert first == second
    first.pop("formula")
    for name, said in first.items():
        what = {"auto_swap_l": "auto_swap", "initialize_from_another_model": "refine"}.get(name, name)
        assert said.startswith(f"{what} uses the samples of this process alone, but 2 processes are initialised")


def different_models() -> dict[str, str]:
    """Return the errors of calls with models that differ between the ranks. Their bytes would be taken for others."""
    rank = distributed.get_rank()
    x = samples(rank, 20)
    dtype = (torch.float32, torch.float64)[rank]
    pairs: dict[str, tuple[Any, Any]] = {
        "dtype": (layer_of({"dtype": dtype}), KAN([3, 2, 1], seed=0, dtype=dtype)),
        "intervals": (layer_of({"grid_size": 5 + rank}), KAN([3, 2, 1], grid=5 + rank, seed=0)),
        "sizes": (KANLinear(3, 4 + rank), KAN([3, 2 + rank, 1], seed=0)),
    }
    said = {}
    for name, models in pairs.items():
        for model in models:
            before = tensors(model)
            for method, options in (("update_grid", {}), ("refine", {}), ("update_grid", {"x": x[:0]})):
                arguments = {"x": x.to(model.knots.dtype if isinstance(model, KANLinear) else model.dtype), **options}
                size = (8,) if method == "refine" else ()
                with pytest.raises(ValueError, match=r"needs the same .* on every rank of the group") as error:
                    getattr(model, method)(*size, **arguments, group=group.WORLD)
                said[f"{name}, {type(model).__name__}, {method}"] = str(error.value)
            assert_same(tensors(model), before)
    return said


def test_models_that_differ_between_ranks_are_refused_on_all(two: Processes) -> None:
    first, second = two.run(different_models)
    assert first == second
    assert first["dtype, KANLinear, update_grid"] == (
        "update_grid needs the same spline_weight on every rank of the group, got torch.float32 [8, 3, 4] on rank 0 "
        "and torch.float64 [8, 3, 4] on rank 1"
    )
    assert "same layers[0].spline_weight on every rank" in first["intervals, KAN, update_grid"]
    assert "same width on every rank" in first["sizes, KAN, refine"]


@pytest.mark.usefixtures("alone")
def test_one_process_needs_no_group_and_may_give_one() -> None:
    x = samples(0, 20)
    found = []
    for options in ({}, {"group": group.WORLD}):
        model = network()
        model.update_grid(x, **options)
        found.append(tensors(model.refine(7, x, **options)))
    assert_same(*found)
    model = KAN([3, 1], seed=0)
    assert model.fit((x, x[:, :1]), steps=2, progress=False)["train_loss"]
