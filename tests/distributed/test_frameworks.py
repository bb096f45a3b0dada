"""Training of a ``KAN`` in two processes by Lightning and by accelerate."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from processes import Processes
from torch import Tensor, distributed
from torch.distributed import group
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from fastkan import KAN

D = torch.float64
X = torch.randn(64, 3, dtype=D, generator=torch.Generator().manual_seed(5))
Y = X[:, :2].prod(1, keepdim=True)
BATCH, STEPS = 16, 2  # rows of each rank in a step, and steps of an epoch


def network() -> KAN:
    """A network with a product and formulas, one of whose layers consists of formulas alone."""
    model = KAN([3, [2, 1], 2, 1], seed=0, dtype=D)
    for place in ((0, 1, 0, "sin"), (2, 0, 0, "x"), (2, 1, 0, "exp")):
        model.fix_symbolic(*place, fit_params_bool=False)
    return model


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)


def by_one(name: str) -> dict[str, Tensor]:
    """Train one process on the rows of both ranks, which get alternate rows in Lightning and batches in accelerate."""
    model = network()
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        rows = slice(2 * BATCH * step, 2 * BATCH * (step + 1))
        if step == 1:
            x = X[rows]
            model.update_grid(torch.cat([x[::2], x[1::2]]) if name == "lightning" else x)
        optimizer.zero_grad()
        (model(X[rows]) - Y[rows]).square().mean().backward()
        optimizer.step()
    return dict(model.state_dict())


DATA = TensorDataset(X, Y)


def trained_by_lightning(folder: str) -> dict[str, Tensor]:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def training_step(self, batch: Any, number: int) -> Tensor:
            x, y = batch
            return (self.model(x) - y).square().mean()

        def on_train_batch_start(self, batch: Any, number: int) -> None:
            if number == 1:
                self.model.update_grid(batch[0], group=group.WORLD)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            strategy="ddp", devices=2, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, precision="64-true",
        )  # fmt: skip
        # Lightning's own sampler would shuffle the rows.
        trainer.fit(module, DataLoader(DATA, BATCH, sampler=DistributedSampler(DATA, shuffle=False)))
        assert trainer.world_size == 2
        assert trainer.global_step == STEPS
    return dict(module.model.state_dict())


def trained_by_accelerate() -> dict[str, Tensor]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    plain = network()
    model, optimizer, batches = accelerator.prepare(plain, optimizer_of(plain), DataLoader(DATA, BATCH))
    for step, (x, y) in enumerate(batches):
        if step == 1:
            plain.update_grid(x, group=group.WORLD)
        optimizer.zero_grad()
        accelerator.backward((model(x) - y).square().mean())
        optimizer.step()
    assert step + 1 == STEPS
    assert distributed.get_world_size() == 2
    return dict(accelerator.unwrap_model(model).state_dict())


@pytest.mark.parametrize("name", ["accelerate", pytest.param("lightning", marks=pytest.mark.slow)])
def test_ranks_train_the_network_of_one_process(name: str, two: Processes, tmp_path: Any) -> None:
    if find_spec(name) is None:
        pytest.skip(f"needs {name}")
    first, second = (
        two.run(trained_by_lightning, str(tmp_path)) if name == "lightning" else two.run(trained_by_accelerate)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    expected = by_one(name)
    assert first.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, rtol=1e-12, atol=1e-12, msg=lambda text: f"{key}: {text}")  # noqa: B023
