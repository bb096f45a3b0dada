"""Networks in two processes: knots and affine maps that one process writes reach the results of the other, and
DistributedDataParallel trains networks with formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import same
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from fastkan import KAN, KANLinear

D = torch.float64
X = torch.linspace(-1.2, 1.2, 40, dtype=D).view(20, 2)


def bent(knots: Tensor) -> Tensor:
    return knots + 0.2 * torch.linspace(-1, 1, knots.shape[1], dtype=knots.dtype).square()


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "narrow layer":
        return KANLinear(2, 3, dtype=D)
    if kind == "wide layer":
        return KANLinear(2, 400, dtype=D)
    model = KAN([2, [2, 1], 1], seed=0, dtype=D, affine_trainable=True)
    if kind == "formulas":  # the second layer is all formulas, and its splines are idle
        model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
        for i in range(3):
            model.fix_symbolic(1, i, 0, "x^2", fit_params_bool=False)
    return model


def text_of(name: str) -> Tensor:
    return torch.tensor(list(f'[[0, 0, "{name}"]]'.encode()), dtype=torch.uint8)


def change(model: Any) -> None:
    """Change knots, masks, columns, affine maps and weights by methods that need no samples."""
    for module in model.modules():
        if isinstance(module, KANLinear):
            module.set_knots(bent(module.knots))
    if isinstance(model, KAN):
        with torch.no_grad():
            model.node_bias[0].fill_(0.3)
            model.input_id.copy_(torch.tensor([1, 0]))
        if model.symbolic[0].edges:  # the text of the formula is broadcast as a buffer
            model.symbolic[0].formulas.copy_(text_of("cos"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def all_gather_values(value: Tensor) -> list[Tensor]:
    both = [torch.empty_like(value) for _ in range(2)]
    distributed.all_gather(both, value.detach().contiguous())
    return both


def broadcasts(rank: int, kind: str) -> None:
    """Broadcast changes by torch.distributed itself, and as buffers of DistributedDataParallel in a forward pass."""
    for by_buffers in (False, True):
        model: Any = make(kind)
        called = DistributedDataParallel(model) if by_buffers else model
        before = called(X)
        if rank == 0:
            change(model)
        for value in (*model.parameters(), *(() if by_buffers else model.buffers())):
            distributed.broadcast(value.data, 0)
        one, other = all_gather_values(called(X))
        same(other, one, digits=1e-14)
        assert (one - before).abs().max() > 1e-3
        if kind == "formulas":
            assert model.symbolic[0].name(0, 0) == "cos"
    if kind == "formulas":
        model.symbolic[0].formulas.copy_(text_of("sin" if rank == 0 else "cos"))
        started = DistributedDataParallel(model)  # the constructor copies the buffers of the first process
        one, other = all_gather_values(started(X))
        assert torch.equal(one, other)
        assert model.symbolic[0].name(0, 0) == "sin"


def training(rank: int, kind: str) -> None:
    """Each process has half of the rows; the result is that of one process with all of them."""
    alone, model = make(kind), make(kind)
    wrapped, rows = DistributedDataParallel(model), X.view(2, 10, 2)
    for module, parts in ((alone, (0, 1)), (wrapped, (rank,))):
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            sum(module(rows[part]).square().mean() / len(parts) for part in parts).backward()  # type: ignore[union-attr]
            optimizer.step()
    for (name, p), q in zip(alone.named_parameters(), model.parameters(), strict=True):
        assert p.requires_grad == q.requires_grad, name
        same(q, p, digits=1e-12)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        for kind in ("narrow layer", "wide layer", "network", "formulas"):
            broadcasts(rank, kind)
            training(rank, kind)
        Path(folder, f"done-{rank}").touch()
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo")
def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    assert len(list(tmp_path.glob("done-*"))) == 2


def test_networks_hold_no_rows_between_steps() -> None:
    import gc
    import pickle
    import weakref

    for module in (KANLinear(2, 3), KAN([2, [2, 1], 1], seed=0), make("formulas").float()):
        size = len(pickle.dumps(module))
        x = torch.rand(5000, 2, requires_grad=True)
        y = module(x)
        y.sum().backward()
        held = [weakref.ref(x), weakref.ref(x.untyped_storage()), weakref.ref(y)]
        del x, y
        gc.collect()
        assert [each() for each in held] == [None] * 3
        assert len(pickle.dumps(module)) < size + 100  # gradients are not pickled either
    model = KAN([2, 2, 1], seed=0)
    x = torch.rand(5000, 2)
    size = len(pickle.dumps(model))
    model.fit((x, x[:, :1]), steps=1, progress=False)
    assert model.sample is not None
    assert len(pickle.dumps(nn.Sequential(model))) < size + 1000  # the history has a few numbers
