"""Two processes: what would make their networks differ is refused in each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from fastkan import KAN, KANLinear

X = torch.linspace(-1, 1, 40).view(20, 2)
Y = X.prod(1, keepdim=True)


def learned(rank: int) -> dict[str, str]:
    """Calls that learn from the samples of one process raise, name the remedy and leave the network as it was."""
    layer, model, seen = KANLinear(2, 3), KAN([2, 2, 1], seed=0), KAN([2, 2, 1], seed=0)
    seen.sample = X
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    knots = layer.knots.clone()
    x = X + rank
    calls = {
        "layer": lambda: layer.update_grid(x),
        "layer refined": lambda: layer.refine(7, x),
        "network": lambda: model.update_grid_from_samples(x),
        "network by its other name": lambda: model.update_grid(x),
        "network refined": lambda: model.refine(7, x),
        "network refined at what it has seen": lambda: seen.refine(7),
        "fit": lambda: model.fit((x, Y), steps=2, progress=False),
        "train": lambda: model.train((x, Y), steps=2, progress=False),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "nothing"
        except RuntimeError as error:
            said[name] = str(error)
    assert torch.equal(layer.knots, knots)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    layer.refine(10)
    assert layer.grid_size == 10
    return said


def work(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-{count}", rank=rank, world_size=count)
    try:
        if count == 1:
            model = KAN([2, 2, 1], seed=0)
            assert model.fit((X, Y), steps=2, progress=False)["train_loss"]
            model.update_grid_from_samples(X)
            KANLinear(2, 3).update_grid(X)
        else:
            for name, said in learned(rank).items():
                assert f"but {count} processes are initialised" in said, (name, said)
                assert "before torch.distributed.init_process_group" in said
        Path(folder, f"done-{count}-{rank}").touch()
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo")
@pytest.mark.parametrize("count", [1, 2])
def test_what_learns_from_the_samples_of_one_process_is_refused_in_several(count: int, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (count, str(tmp_path)), nprocs=count)
    assert len(list(tmp_path.glob(f"done-{count}-*"))) == count
